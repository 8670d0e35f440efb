//! Conversations about who is well: transitions together, flapping, samples, machines, and two servers of one name.

use pflex_proto::ids::{LogTime, Revision};

use super::world::{
    GIB, World, create_pool, create_sdc, create_volume, delete, lost, opened, register_sdc, register_sds, returned,
};
use crate::{
    command::{Body, ErrorCode, proto},
    state::{
        limits::{MAX_HEARTBEAT_SAMPLES, MAX_METRIC_SAMPLES, MAX_REGISTRATIONS_KEPT},
        model::{Component, Event, Kind, Severity, Status},
    },
};

fn newest(world: &World) -> Event {
    world.state.events_after(Revision(0)).next_back().expect("something happened").clone()
}

pub(super) fn entry(kind: proto::Kind, id: u32, status: proto::Status) -> proto::SetComponentStatus {
    proto::SetComponentStatus { kind: kind.into(), id, status: status.into(), why: "late".into() }
}

pub(super) fn set(entries: Vec<proto::SetComponentStatus>) -> Body {
    Body::SetStatuses(proto::SetStatuses { entries })
}

pub(super) fn sample(id: u32, value: u64) -> Body {
    Body::RecordSample(proto::RecordSample {
        heartbeats: vec![proto::HeartbeatSample {
            kind: proto::Kind::Sds.into(),
            id,
            reports: 6,
            ..Default::default()
        }],
        metrics: vec![proto::MetricSample { name: "cluster.used_bytes".into(), value }],
    })
}

fn status(world: &World, kind: Kind, id: u32) -> Status {
    world.state.health_of(Component { kind, id }).expect("it registered").status
}

#[test]
fn transitions_of_one_look_are_one_command_and_one_event() {
    let mut world = World::with_sds(3);
    for n in 1..=2 {
        world.ok(create_sdc(&format!("c{n}")));
        world.ok(register_sdc(&format!("c{n}"), n));
    }
    world.ok(lost(3, 3));
    let stale = |kind, id| entry(kind, id, proto::Status::Stale);
    world.ok(set(vec![
        stale(proto::Kind::Sdc, 1),
        stale(proto::Kind::Sdc, 2),
        stale(proto::Kind::Sdc, 77),
        entry(proto::Kind::Sds, 3, proto::Status::Active),
        stale(proto::Kind::Sds, 1),
    ]));
    assert_eq!(status(&world, Kind::Sdc, 1), Status::Stale);
    assert_eq!(status(&world, Kind::Sds, 1), Status::Stale);
    assert_eq!(status(&world, Kind::Sds, 3), Status::Down, "only its beats bring a lost server back");
    let event = newest(&world);
    assert_eq!((event.kind.as_str(), event.severity), ("component.status", Severity::Warning));
    assert_eq!(event.what, "sdc c1 is STALE: late; sdc c2 is STALE: late; sds s1 is STALE: late");
    let health = world.state.health_of(Component { kind: Kind::Sdc, id: 1 }).unwrap();
    assert_eq!((health.since, health.revision), (world.state.log_time(), world.state.revision()));

    world.ok(set(vec![entry(proto::Kind::Sdc, 1, proto::Status::Active)]));
    let back = newest(&world);
    assert_eq!(
        (back.object.as_str(), back.what.as_str(), back.severity),
        ("sdc c1", "is ACTIVE: late", Severity::Info)
    );
    world.ok(set(vec![entry(proto::Kind::Sdc, 1, proto::Status::Active)]));
    assert_eq!(newest(&world), back, "the same again is no news");
    assert_eq!(world.refused(set(vec![entry(proto::Kind::Sdc, 1, proto::Status::Unspecified)])), ErrorCode::Invalid);
    assert_eq!(world.state.oscillation_of(Component { kind: Kind::Sdc, id: 1 }, LogTime(world.now)), [1, 1, 1]);
    assert!(world.reloaded() == world.state);
}

/// Lost and taken back so often that the next loss costs a wait.
fn flapping(world: &mut World) {
    for _ in 0..3 {
        world.ok(lost(1, 1));
        world.ok(returned(1, 1, 1));
        world.now += 1_000;
    }
}

#[test]
fn a_server_that_flaps_is_taken_back_later_and_later() {
    let mut world = World::with_sds(3);
    world.ok(create_volume("v", GIB));
    flapping(&mut world);
    world.ok(lost(1, 1));
    let event = newest(&world);
    assert!(event.what.contains("lost 4 times within an hour, so it is taken back in 1 s"), "{}", event.what);
    assert_eq!(world.refused(returned(1, 1, 1)), ErrorCode::Precondition);
    let why = format!("{:?}", world.state.why("sds s1"));
    assert!(why.contains("4 in the last hour") && why.contains("kept out until log time"), "{why}");
    world.now += 1_000;
    world.ok(returned(1, 1, 1));
    assert!(world.state.sds_by_name("s1").unwrap().alive);

    // The next one costs twice as much, and a new process does not get around it.
    world.ok(lost(1, 1));
    world.now += 1_999;
    world.ok(register_sds(1, 11, 2));
    let sds = world.state.sds_by_name("s1").unwrap();
    assert!(!sds.alive && sds.registration.as_ref().unwrap().count == 2, "registered, and kept out");
    assert!(world.state.devices_of(sds.id).all(|device| !device.alive && device.incarnation.get() == 2));
    assert_eq!(status(&world, Kind::Sds, 1), Status::Down);
    assert!(newest(&world).what.contains("taken back in 1 s at the earliest"), "{:?}", newest(&world));
    world.now += 1;
    world.ok(returned(1, 11, 2));
    assert_eq!(status(&world, Kind::Sds, 1), Status::Active);

    // An hour of peace is forgiven.
    world.now += 3_600_001;
    world.ok(lost(1, 11));
    world.ok(returned(1, 11, 2));
    assert!(world.reloaded() == world.state);
}

#[test]
fn nobody_waits_whose_copy_is_the_only_one_or_with_the_setting_off() {
    let mut world = World::with_sds(2);
    world.ok(create_volume("v", GIB));
    flapping(&mut world);
    world.ok(lost(1, 1));
    assert_eq!(world.refused(returned(1, 1, 1)), ErrorCode::Precondition, "server 2 has everything");
    // It left every in-sync set, so even now that nobody else is there its copies may be old.
    world.ok(lost(2, 2));
    assert_eq!(world.refused(returned(1, 1, 1)), ErrorCode::Precondition);
    for _ in 0..6 {
        world.ok(returned(2, 2, 1));
        world.ok(lost(2, 2));
    }
    world.ok(returned(2, 2, 1));
    assert!(world.state.all_pgs().all(|pg| pg.config.primary.is_some()), "lost seven times, and needed at once");

    let off = proto::Setting { key: "readmission.most_ms".into(), value: 0, to_default: false };
    world.ok(Body::ChangeSettings(proto::ChangeSettings { entries: vec![off] }));
    world.ok(returned(1, 1, 1));
}

#[test]
fn a_device_that_flaps_is_kept_out_and_its_server_stays() {
    let mut world = World::with_sds(3);
    world.ok(create_volume("v", GIB));
    let fail = || {
        Body::SdsLost(proto::SdsLost {
            sds_id: 1,
            devices: vec![proto::DeviceLife { device_id: 1, incarnation: 1 }],
            process_id: vec![1; 16],
            why: "device 1 failed".into(),
            ..Default::default()
        })
    };
    for _ in 0..3 {
        world.ok(fail());
        world.ok(returned(1, 1, 1));
    }
    world.ok(fail());
    assert!(newest(&world).what.contains("lost 4 times within an hour"), "{:?}", newest(&world));
    world.ok(returned(1, 1, 1));
    assert!(!world.state.device(1.into()).unwrap().alive, "not yet");
    assert!(world.state.sds_by_name("s1").unwrap().alive);
    assert!(format!("{:?}", world.state.why("device 1")).contains("kept out until log time"));
    world.now += 1_000;
    world.ok(returned(1, 1, 1));
    assert!(world.state.device(1.into()).unwrap().alive);
    assert!(world.reloaded() == world.state);
}

#[test]
fn samples_are_kept_up_to_their_bounds_and_are_no_events() {
    let mut world = World::with_sds(1);
    let before = newest(&world);
    for n in 0..=MAX_METRIC_SAMPLES as u64 {
        world.now += 60_000;
        world.ok(sample(1, n));
    }
    assert_eq!(newest(&world), before);
    assert_eq!(world.state.metrics_newest_first().count(), MAX_METRIC_SAMPLES);
    let newest_sample = world.state.metrics_newest_first().next().unwrap();
    assert_eq!(newest_sample.values["cluster.used_bytes"], MAX_METRIC_SAMPLES as u64);
    assert_eq!(world.state.heartbeats_at(newest_sample.revision).unwrap().samples[0].reports, 6);
    let with_heartbeats =
        world.state.metrics_newest_first().filter(|s| world.state.heartbeats_at(s.revision).is_some()).count();
    assert_eq!(with_heartbeats, MAX_HEARTBEAT_SAMPLES);
    let unknown = proto::HeartbeatSample::default();
    let bad = proto::RecordSample { heartbeats: vec![unknown], metrics: vec![] };
    assert_eq!(world.refused(Body::RecordSample(bad)), ErrorCode::Invalid);
    assert!(world.reloaded() == world.state);
}

#[test]
fn a_component_says_where_it_runs_and_its_last_starts_are_kept() {
    let mut world = World::with_sds(1);
    let component = Component { kind: Kind::Sds, id: 1 };
    assert_eq!(world.state.machine_of(component).unwrap().host_name, "host1");
    for life in 2..=30_u8 {
        world.ok(register_sds(1, life, life.into()));
    }
    let kept: Vec<_> = world.state.registrations_of(component).collect();
    assert_eq!((kept.len(), kept[0].count, kept[15].count), (MAX_REGISTRATIONS_KEPT, 15, 30));
    assert!(kept.iter().all(|start| start.host_name == "host1"));
    assert!(newest(&world).what.starts_with("started on host1, version 1 with 1 device"), "{}", newest(&world).what);
    assert!(world.reloaded() == world.state);

    world.ok(delete(proto::Object::Pool, "p"));
    world.ok(Body::RemoveDevice(proto::RemoveDevice { device_id: 1 }));
    world.ok(delete(proto::Object::Sds, "s1"));
    assert!(world.state.machine_of(component).is_none() && world.state.registrations_of(component).count() == 0);
}

#[test]
fn a_second_server_of_a_name_does_not_take_the_place_of_one_that_lives() {
    let mut world = World::with_sds(3);
    let Body::RegisterComponent(mut other) = register_sds(1, 50, 1) else { unreachable!() };
    other.devices = vec![opened(60, 1)];
    let outcome = world.say(Body::RegisterComponent(other.clone()));
    assert_eq!(outcome.error().map(|error| error.code()), Some(ErrorCode::Precondition));
    assert!(outcome.error().unwrap().what.contains("stop the other one first"));
    assert!(world.state.sds_by_name("s1").unwrap().runs(pflex_proto::ids::ProcessId::from_bytes([1; 16])));

    // A restart with one more disk is no other server.
    let Body::RegisterComponent(mut again) = register_sds(1, 51, 2) else { unreachable!() };
    again.devices.push(opened(61, 1));
    world.ok(Body::RegisterComponent(again));

    // The server died and this one replaces it.
    world.ok(lost(1, 51));
    world.ok(Body::RegisterComponent(other));
    assert!(world.state.sds_by_name("s1").unwrap().alive);
    assert!(!world.state.device(1.into()).unwrap().alive, "the old disks stay, out of service");
    world.ok(create_pool("q", 1, 4));
}
