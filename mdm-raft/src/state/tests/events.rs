//! Conversations about what is told of them: events, settings, and held verdicts.

use pflex_proto::ids::{LogTime, Revision};

use super::world::{GIB, World, create_sdc, create_volume, lost, map, register_sds, returned};
use crate::{
    command::{Body, ErrorCode, Request, proto},
    state::{
        limits::MAX_EVENTS,
        model::{Event, Setting, Severity},
    },
};

fn newest(world: &World) -> Event {
    world.state.events_after(Revision(0)).next_back().expect("something happened").clone()
}

fn change(key: &str, value: u64) -> Body {
    let entry = proto::Setting { key: key.into(), value, to_default: false };
    Body::ChangeSettings(proto::ChangeSettings { entries: vec![entry] })
}

#[test]
fn each_change_says_who_did_what_and_when_and_a_retry_says_nothing() {
    let mut world = World::with_sds(2);
    world.ok(Body::OpenClientSession(proto::OpenClientSession { name: "ann@desk".into() }));
    let request = Request { client: 1.into(), sequence: 1.into(), low_water: 0.into() };
    world.say_once(request, create_volume("v", GIB));
    let event = newest(&world);
    assert_eq!(
        (event.kind.as_str(), event.object.as_str(), event.who.as_str()),
        ("volume.create", "volume v", "ann@desk")
    );
    assert_eq!((event.revision, event.at), (world.state.revision(), world.state.log_time()));

    world.say_once(request, create_volume("v", GIB));
    assert_eq!(newest(&world), event, "the first answer again is no new deed");

    assert_eq!(world.refused(create_volume("v", GIB)), ErrorCode::AlreadyExists);
    assert_eq!(newest(&world), event, "what was refused did not happen");

    let again = proto::CreateVolume { name: "v".into(), size_bytes: GIB, if_not_exists: true, ..Default::default() };
    world.ok(Body::CreateVolume(again));
    assert_eq!(newest(&world), event, "what was there was not made");
}

#[test]
fn a_loss_is_a_warning_and_unreachable_data_is_critical_and_groups_name_the_command() {
    let mut world = World::with_sds(2);
    world.ok(create_volume("v", GIB));
    world.ok(lost(1, 1));
    let first = newest(&world);
    assert_eq!((first.severity, first.kind.as_str()), (Severity::Warning, "sds.lost"));
    assert!(first.what.contains("8 degraded") && first.who == "the leader", "{first:?}");
    assert_eq!(world.pg(0).since, first.revision);

    world.ok(lost(2, 2));
    let second = newest(&world);
    assert_eq!(second.severity, Severity::Critical, "{second:?}");
    assert!(second.what.contains("8 unavailable"), "{second:?}");

    world.ok(returned(2, 2, 1));
    assert_eq!(newest(&world).severity, Severity::Info);
    assert_eq!(world.pg(0).since, world.state.revision());
    assert_eq!(world.state.event(world.pg(0).since), Some(&newest(&world)));
}

#[test]
fn the_oldest_events_go_and_tokens_leave_none() {
    let mut world = World::with_sds(1);
    world.ok(create_sdc("c"));
    let before = newest(&world);
    world.say(Body::IssueTokens(proto::IssueTokens {
        sdc_id: 1,
        process_id: vec![1; 16],
        volume_ids: vec![],
        plans: vec![],
    }));
    assert_eq!(newest(&world), before);
    for n in 0..=MAX_EVENTS as u64 {
        let (revision, at) = (Revision(world.revision + n), LogTime(world.now));
        world.state.events.put(Event { revision, at, ..before.clone() });
    }
    world.ok(create_sdc("d"));
    assert_eq!(world.state.events_after(Revision(0)).count(), MAX_EVENTS);
    assert!(newest(&world).revision >= world.state.revision());
}

#[test]
fn settings_hold_until_changed_and_bad_ones_change_nothing() {
    let mut world = World::new();
    assert_eq!(world.state.settings().get(Setting::LivenessSilence), 3_000);
    world.ok(change("liveness.silence_ms", 5_000));
    assert_eq!(world.state.settings().get(Setting::LivenessSilence), 5_000);
    assert!(newest(&world).what.contains("liveness.silence_ms to 5000"));

    assert_eq!(world.refused(change("liveness.silence_ms", 1)), ErrorCode::Invalid);
    assert_eq!(world.refused(change("liveness.silence_s", 5)), ErrorCode::Invalid);
    assert_eq!(world.refused(change("health.down_ms", 30_000)), ErrorCode::Invalid, "not before STALE");
    assert_eq!(world.state.settings().get(Setting::LivenessSilence), 5_000);
    assert!(world.reloaded() == world.state);

    let entry = proto::Setting { key: "liveness.silence_ms".into(), value: 0, to_default: true };
    world.ok(Body::ChangeSettings(proto::ChangeSettings { entries: vec![entry] }));
    assert_eq!(world.state.settings().chosen().count(), 0);
}

#[test]
fn a_held_verdict_is_remembered_with_its_leader() {
    let mut world = World::with_sds(2);
    world.ok(register_sds(1, 11, 2));
    assert_eq!(world.state.eviction_hold(), None);
    world.ok(Body::HoldEvictions(proto::HoldEvictions { node_id: 3, why: "hears 1 of 4 SDSs".into() }));
    let hold = world.state.eviction_hold().expect("just held");
    assert_eq!((hold.by, hold.at), (3, world.state.log_time()));
    assert_eq!(newest(&world).severity, Severity::Warning);
    assert!(world.reloaded() == world.state);
    world.ok(create_sdc("c"));
    world.ok(create_volume("v", GIB));
    world.ok(map("v", "c"));
    assert!(newest(&world).what.starts_with("mapped to sdc c"), "{:?}", newest(&world));
}
