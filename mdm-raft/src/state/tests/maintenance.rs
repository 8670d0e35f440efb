//! Maintenance: what is proven when it is entered, what it changes while it lasts, and that it ends.

use std::collections::BTreeSet;

use pflex_proto::ids::{DeviceId, LogTime, SdsId};

use super::{
    leader::{led_by, words},
    rebuilds::fill_all,
    recovery::restored,
    world::{GIB, POOL, World, create_pool, create_sds, create_volume, lost, register_sds, returned},
};
use crate::{
    command::{Body, ErrorCode, proto},
    liveness::homes::Homeless,
    state::{
        Outlook,
        model::{Component, JobState, Kind, Severity},
    },
};

/// Far beyond `rebuild.delay_ms`.
const LONG_MS: u64 = 10_000_000;

pub(super) fn enter(name: &str) -> Body {
    Body::EnterMaintenance(proto::EnterMaintenance { name: name.into(), ..Default::default() })
}

pub(super) fn exit(name: &str) -> Body {
    Body::ExitMaintenance(proto::ExitMaintenance { name: name.into() })
}

fn with(n: u8) -> World {
    let mut world = World::with_sds(n);
    world.ok(create_volume("v", GIB));
    world
}

fn moves(world: &World) -> usize {
    Homeless::all(&world.state, LogTime(world.now)).iter().filter_map(Homeless::command).count()
}

#[test]
fn leads_leave_with_one_epoch_and_copies_stay_in_sync() {
    let mut world = with(3);
    let before: Vec<_> = world.state.all_pgs().cloned().collect();
    assert!(led_by(&world, 1) > 0);
    world.ok(enter("s1"));
    assert_eq!(led_by(&world, 1), 0);
    for (pg, before) in world.state.all_pgs().zip(&before) {
        assert_eq!((&pg.config.in_sync, &pg.replicas), (&before.config.in_sync, &before.replicas));
        let moved = before.config.primary == Some(DeviceId(1));
        assert_eq!(pg.config.epoch.get(), before.config.epoch.get() + u64::from(moved));
    }
    // Evenly, as far as the places of the copies allow.
    assert!((3..=5).contains(&led_by(&world, 2)) && (3..=5).contains(&led_by(&world, 3)));
    let event = world.state.event(world.state.revision()).unwrap();
    assert_eq!((event.kind.as_str(), event.object.as_str()), ("sds.maintenance", "sds s1"));
    assert!(event.what.starts_with("is in maintenance: ") && event.what.contains("with another primary"), "{event:?}");
    let [why] = world.state.why("sds s1").try_into().unwrap();
    assert!(why.state == "in maintenance" && why.causes[1].what.starts_with("it is in maintenance: "), "{why:?}");

    // Said again it is no change.
    let since = world.state.sds(SdsId(1)).unwrap().maintenance;
    world.now += 5_000;
    world.ok(enter("s1"));
    assert_eq!(world.state.sds(SdsId(1)).unwrap().maintenance, since);
    assert_eq!(world.last.as_ref().unwrap().rows.len(), 1, "only the position");
    assert!(world.reloaded() == world.state);

    world.ok(exit("s1"));
    assert!(!world.state.is_in_maintenance(SdsId(1)) && world.reloaded() == world.state);
    assert_eq!(world.refused(exit("s1")), ErrorCode::Precondition);
    assert_eq!((world.refused(enter("s9")), world.refused(exit("s9"))), (ErrorCode::NotFound, ErrorCode::NotFound));
}

#[test]
fn nobody_may_go_who_has_the_only_copy_outside_maintenance() {
    let mut world = with(3);
    world.ok(enter("s1"));
    // Groups between 1 and 2 would have nobody.
    let shared = |world: &World, other: u32| {
        let on = |n: u32| move |pg: &&crate::state::model::Pg| pg.config.member(DeviceId(n)).is_some();
        world.state.all_pgs().filter(on(1)).filter(on(other)).map(|pg| pg.id.to_string()).collect::<Vec<_>>()
    };
    let between = shared(&world, 2);
    assert!(!between.is_empty());
    let before = world.state.clone();
    let refusal = words(&mut world, enter("s2"));
    assert!(refusal.contains(&format!("{} would have no", between.join(", "))), "{refusal}, expected {between:?}");
    assert!(before.all_pgs().eq(world.state.all_pgs()), "a refusal changes nothing");

    // Nor while a copy elsewhere is not in sync yet, even if its server is there.
    world.ok(exit("s1"));
    world.ok(lost(3, 3));
    assert_eq!(world.refused(enter("s1")), ErrorCode::Precondition);
    world.ok(returned(3, 3, 1));
    assert_eq!(world.refused(enter("s1")), ErrorCode::Precondition);
    fill_all(&mut world);
    world.ok(enter("s1"));

    // Said again, it is about now: the other copies are gone meanwhile.
    world.ok(lost(2, 2));
    assert_eq!(world.refused(enter("s1")), ErrorCode::Precondition);
    assert!(world.state.is_in_maintenance(SdsId(1)), "it stays as it was");
}

#[test]
fn a_refusal_names_ten_groups_and_counts_the_rest() {
    let mut world = World::with_sds(0);
    world.ok(create_pool("q", 1, 32));
    world.ok(create_sds("s1"));
    let Body::RegisterComponent(mut start) = register_sds(1, 1, 1) else { unreachable!() };
    start.devices[0].pool = "q".into();
    world.ok(Body::RegisterComponent(start));
    let refusal = words(&mut world, enter("s1"));
    assert!(
        refusal.starts_with("placement groups 2.0, 2.1, ") && refusal.contains("2.9 and 22 more would"),
        "{refusal}"
    );
}

#[test]
fn two_may_be_down_together_where_every_group_keeps_a_third_copy() {
    let mut world = World::with_sds(0);
    world.ok(create_pool("q", 3, 8));
    for n in 1..=3_u8 {
        world.ok(create_sds(&format!("s{n}")));
        let Body::RegisterComponent(mut start) = register_sds(n, n, 1) else { unreachable!() };
        start.devices[0].pool = "q".into();
        world.ok(Body::RegisterComponent(start));
    }
    world.ok(enter("s1"));
    world.ok(enter("s2"));
    assert!(world.state.all_pgs().all(|pg| pg.config.primary == Some(DeviceId(3))));
    assert_eq!(world.refused(enter("s3")), ErrorCode::Precondition);
    // Only those in maintenance are left: availability comes first.
    world.ok(lost(3, 3));
    assert!(world.state.all_pgs().all(|pg| pg.config.primary.is_some()));
}

#[test]
fn an_absence_that_was_announced_moves_nothing_and_is_no_warning() {
    let mut world = with(4);
    world.ok(enter("s1"));
    world.ok(lost(1, 1));
    let event = world.state.event(world.said).unwrap();
    assert_eq!(event.severity, Severity::Info);
    assert!(event.what.starts_with("in maintenance: silent"), "{}", event.what);
    let job = world.state.open_rebuild(POOL).unwrap();
    assert_eq!(job.state, JobState::Waiting);
    world.now += LONG_MS;
    let now = LogTime(world.now);
    assert_eq!(world.state.rebuild_waits_for(POOL, now), ["s1 is in maintenance"]);
    assert_eq!(moves(&world), 0);
    let places = world.state.places_of(POOL, now);
    let pg = world.state.all_pgs().find(|pg| pg.replicas.contains(&DeviceId(1))).unwrap().clone();
    assert_eq!(world.state.outlook(&pg, DeviceId(1), &places), Some(Outlook::Maintenance));

    // Restarted again and again, it is not kept out as one that flaps.
    let component = Component { kind: Kind::Sds, id: 1 };
    for life in 2..8 {
        world.ok(register_sds(1, life, life.into()));
        assert_eq!(led_by(&world, 1), 0, "it comes back as a backup");
        world.ok(lost(1, life));
    }
    assert_eq!(world.state.oscillation_of(component, LogTime(world.now)), [0; 3]);
    assert!(world.state.sds_kept_out(SdsId(1), LogTime(world.now)).is_none());

    // It does not come back: from the end of the maintenance on it is missed like any other.
    world.ok(exit("s1"));
    assert_eq!(world.state.device(DeviceId(1)).unwrap().lost_at, Some(LogTime(world.now)));
    assert_eq!(moves(&world), 0);
    let waits = world.state.rebuild_waits_for(POOL, LogTime(world.now));
    assert_eq!(waits, ["s1 is DOWN; new homes once rebuild.delay_ms has passed (600 s left)"]);
    world.now += LONG_MS;
    assert_eq!(moves(&world), 1);
    assert!(world.reloaded() == world.state);
}

#[test]
fn no_copy_goes_to_a_server_in_maintenance() {
    let mut world = with(3);
    world.ok(create_sds("s4"));
    world.ok(register_sds(4, 4, 1));
    world.ok(enter("s4"));
    world.ok(lost(3, 3));
    world.now += LONG_MS;
    let plans: Vec<Body> =
        Homeless::all(&world.state, LogTime(world.now)).iter().filter_map(Homeless::command).collect();
    let to = |body: &Body| match body {
        Body::MoveCopies(moves) => moves.moves.iter().map(|step| step.to_device_id).collect::<BTreeSet<_>>(),
        other => panic!("{other:?}"),
    };
    assert!(plans.iter().all(|plan| !to(plan).contains(&4)), "{plans:?}");
    let pg = world.state.all_pgs().find(|pg| pg.replicas.contains(&DeviceId(3))).unwrap().clone();
    let step = |to_device_id| proto::CopyMove {
        index: pg.id.index.get(),
        expected_epoch: pg.config.epoch.get(),
        from_device_id: 3,
        to_device_id,
    };
    let result = |world: &mut World| match world.ok(super::homes::move_copies(vec![step(4)])) {
        crate::command::Answer::Reconfigured(answer) => answer.results[0].clone(),
        other => panic!("{other:?}"),
    };
    let refused = result(&mut world);
    assert!(refused.why.contains("on an SDS in maintenance"), "{refused:?}");
    world.ok(exit("s4"));
    world.ok(enter("s3"));
    let refused = result(&mut world);
    assert!(refused.why.contains("sds s3 is in maintenance: its copies keep their places"), "{refused:?}");
    world.ok(exit("s3"));
    assert!(result(&mut world).accepted);
}

#[test]
fn a_pool_without_volumes_uses_the_server_again_afterwards() {
    let mut world = World::with_sds(2);
    world.ok(enter("s2"));
    world.ok(super::world::delete(proto::Object::Pool, "p"));
    world.ok(create_pool("q", 2, 8));
    assert_eq!(world.state.all_pgs().count(), 0, "one server is no place for two copies");
    world.ok(exit("s2"));
    assert_eq!(world.state.all_pgs().filter(|pg| pg.replicas.contains(&DeviceId(2))).count(), 8);
}

#[test]
fn a_restored_backup_knows_who_was_in_maintenance_and_enters_nobody() {
    let mut world = with(3);
    world.ok(enter("s1"));
    let mut world = restored(&world.state.dump());
    assert!(world.state.is_in_maintenance(SdsId(1)));
    assert_eq!(world.refused(enter("s2")), ErrorCode::Precondition);
    assert!(words(&mut world, enter("s1")).contains("recovery"));
    world.ok(exit("s1"));
    assert!(world.reloaded() == world.state);
}
