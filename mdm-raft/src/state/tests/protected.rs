//! Protected maintenance: every copy is elsewhere before a server may stop, and comes back afterwards.

use pflex_proto::ids::{DeviceId, Revision, SdsId};

use super::{
    leader::{and_one, lead, led_by, on, set, settle, words},
    maintenance::{enter, exit},
    moves::{cancel, drain, rebalance},
    rebuilds::{fill_all, fillable, filled},
    recovery::restored,
    world::{GIB, POOL, World, create_pool, create_sds, create_volume, delete, lost, opened, register_sds, returned},
};
use crate::{
    command::{Body, ErrorCode, proto},
    liveness::{leads::Looks, maintenance},
    state::model::{JobKind, JobState, Setting},
};

pub(super) fn protect(name: &str) -> Body {
    Body::EnterMaintenance(proto::EnterMaintenance { name: name.into(), protected: true, ..Default::default() })
}

fn is_preparing(world: &World, n: u32) -> bool {
    world.state.sds(SdsId(n)).unwrap().is_preparing()
}

fn all_drain(world: &World, n: u32) -> bool {
    world.state.devices_of(SdsId(n)).all(|device| device.draining.is_some() && device.lent)
}

fn none_drains(world: &World, n: u32) -> bool {
    world.state.devices_of(SdsId(n)).all(|device| device.draining.is_none() && !device.lent)
}

#[test]
fn all_copies_are_elsewhere_before_it_is_entered_and_come_back_afterwards() {
    for auto in [1, 0] {
        let mut world = and_one(3);
        let mut looks = Looks::default();
        settle(&mut world, &mut looks);
        world.ok(set(Setting::RebalanceAuto, auto));
        world.ok(protect("s1"));
        assert!(is_preparing(&world, 1) && all_drain(&world, 1) && !world.state.is_in_maintenance(SdsId(1)));
        let event = world.state.event(world.state.revision()).unwrap();
        assert!(event.what.starts_with("is prepared for maintenance: "), "{event:?}");
        let [why] = world.state.why("sds s1").try_into().unwrap();
        assert!(why.state == "being prepared for maintenance" && why.causes[1].what.contains("exit"), "{why:?}");
        let held = on(&world, 1);
        let job = world.state.open_job(POOL, JobKind::Drain).unwrap();
        assert_eq!(job.groups_left as usize, held);
        // Said again it is no change.
        let since = world.state.sds(SdsId(1)).unwrap().protected;
        world.now += 1_000;
        world.ok(protect("s1"));
        assert_eq!(world.state.sds(SdsId(1)).unwrap().protected, since);

        settle(&mut world, &mut looks);
        assert!(world.state.is_in_maintenance(SdsId(1)) && on(&world, 1) == 0);
        assert!(world.state.all_pgs().all(|pg| pg.is_whole() && pg.config.in_sync.len() == 2));
        assert!(world.state.all_rebuilds().all(|job| job.kind != JobKind::Rebuild), "nothing ever lacked a copy");
        let entered = world
            .state
            .events_after(Revision(0))
            .filter(|event| event.what.contains("has all of its copies elsewhere"));
        assert_eq!(entered.count(), 1, "it is entered once");
        assert!(world.reloaded() == world.state);

        // It is away, and back, and nothing is made of it.
        world.ok(lost(1, 1));
        assert!(world.state.all_rebuilds().all(|job| job.kind != JobKind::Rebuild), "nothing is missing");
        world.ok(register_sds(1, 11, 2));
        assert_eq!(settle(&mut world, &mut looks), 0);
        world.ok(exit("s1"));
        assert!(none_drains(&world, 1) && world.reloaded() == world.state);
        settle(&mut world, &mut looks);
        assert_eq!((on(&world, 1), led_by(&world, 1) > 0), (held, true), "it has its share again");
        assert!(world.state.all_rebuilds().all(|job| job.is_finished()));
        let job = world.state.rebuilds_of(POOL).next_back().unwrap();
        assert_eq!(
            (job.kind, job.state, job.why.as_str()),
            (JobKind::Rebalance, JobState::Done, "a protected maintenance is over")
        );
    }
}

/// Its maintenance is ended while it is down, or it is lost again before anything has come back.
#[test]
fn what_left_comes_back_when_its_server_does_whatever_rebalance_auto_is() {
    for (down_at_exit, auto) in [(true, 0), (true, 1), (false, 0), (false, 1)] {
        let mut world = and_one(3);
        let mut looks = Looks::default();
        settle(&mut world, &mut looks);
        world.ok(set(Setting::RebalanceAuto, auto));
        let held = on(&world, 1);
        world.ok(protect("s1"));
        settle(&mut world, &mut looks);
        assert_eq!(on(&world, 1), 0);
        if down_at_exit {
            world.ok(lost(1, 1));
        }
        world.ok(exit("s1"));
        if !down_at_exit {
            assert!(world.state.open_job(POOL, JobKind::Rebalance).is_some());
            world.ok(lost(1, 1));
        }
        settle(&mut world, &mut looks);
        assert!(world.state.all_rebuilds().all(|job| job.is_finished()), "nothing waits for it");
        let [why] = world.state.why("device 1").try_into().unwrap();
        assert!(why.causes.iter().any(|cause| cause.what.contains("comes back once it is in service")), "{why:?}");
        assert!(world.reloaded() == world.state);

        world.ok(register_sds(1, 11, 2));
        let job = world.state.open_job(POOL, JobKind::Rebalance).unwrap();
        assert_eq!(job.why, "a protected maintenance is over");
        settle(&mut world, &mut looks);
        assert_eq!((on(&world, 1), world.state.device(DeviceId(1)).unwrap().owed), (held, false));
        assert!(world.state.all_rebuilds().all(|job| job.is_finished()) && world.reloaded() == world.state);
        world.ok(lost(1, 11));
        world.ok(register_sds(1, 12, 3));
        assert!(world.state.open_job(POOL, JobKind::Rebalance).is_none(), "it has come back");
    }
}

#[test]
fn an_operator_who_ends_the_rebalance_ends_what_comes_back() {
    let mut world = and_one(3);
    let mut looks = Looks::default();
    world.ok(protect("s1"));
    settle(&mut world, &mut looks);
    world.ok(exit("s1"));
    world.ok(rebalance("p", 0, true));
    world.ok(lost(1, 1));
    world.ok(register_sds(1, 11, 2));
    settle(&mut world, &mut looks);
    assert_eq!(on(&world, 1), 0);

    // One that is taken out for good is owed nothing when that is given up.
    world.ok(protect("s1"));
    world.ok(exit("s1"));
    assert!(world.state.device(DeviceId(1)).unwrap().owed);
    world.ok(drain("s1"));
    world.ok(cancel("s1"));
    assert!(!world.state.device(DeviceId(1)).unwrap().owed);
}

#[test]
fn it_is_refused_when_the_others_cannot_take_the_copies() {
    let mut world = World::with_sds(2);
    world.ok(create_volume("v", GIB));
    let why = words(&mut world, protect("s1"));
    assert!(why.contains("1 would be left; add one first"), "{why}");
    assert!(none_drains(&world, 1) && !is_preparing(&world, 1), "a refusal changes nothing");
    world.ok(enter("s1"));
    world.ok(exit("s1"));

    let mut world = World::with_sds(3);
    world.ok(create_volume("v", GIB));
    let used = vec![proto::PoolUse { pool_id: POOL.get(), bytes: 21 * GIB }];
    let full = proto::EnterMaintenance { name: "s1".into(), protected: true, used, prepared: false };
    assert!(words(&mut world, Body::EnterMaintenance(full)).contains("its copies hold 22548578304"));
    // Who is in maintenance takes none.
    world.ok(enter("s3"));
    assert!(words(&mut world, protect("s1")).contains("1 would be left"));
    // And one with copies in place has another promise.
    assert!(words(&mut world, protect("s3")).contains("keep their places there; exit that first"));
    assert_eq!(world.refused(protect("s9")), ErrorCode::NotFound);
}

#[test]
fn exit_ends_it_at_any_time_and_what_has_moved_comes_back() {
    let mut world = and_one(3);
    let mut looks = Looks::default();
    settle(&mut world, &mut looks);
    let held = on(&world, 1);
    world.ok(protect("s1"));
    assert!(lead(&mut world, &mut looks) > 0);
    let first = fillable(&world)[0];
    filled(&mut world, first);
    world.ok(exit("s1"));
    assert!(none_drains(&world, 1) && !is_preparing(&world, 1));
    assert!(world.state.all_pgs().all(|pg| pg.leaving.is_none() && pg.is_whole()));
    settle(&mut world, &mut looks);
    assert_eq!(on(&world, 1), held);
    // What the leader said too late enters nobody.
    let late = proto::EnterMaintenance { name: "s1".into(), protected: true, prepared: true, used: Vec::new() };
    assert_eq!(world.refused(Body::EnterMaintenance(late)), ErrorCode::Stale);
    assert_eq!(world.refused(exit("s1")), ErrorCode::Precondition);
}

#[test]
fn a_server_that_is_lost_while_it_is_prepared_is_given_up_at_once_and_may_be_hurried() {
    let mut world = and_one(3);
    let mut looks = Looks::default();
    settle(&mut world, &mut looks);
    world.ok(protect("s1"));
    world.ok(lost(1, 1));
    // No `rebuild.delay_ms`: its copies were to go anyhow.
    settle(&mut world, &mut looks);
    assert!(world.state.is_in_maintenance(SdsId(1)) && on(&world, 1) == 0);

    // Somebody cannot wait: the ordinary one, for what has not moved.
    let mut world = and_one(3);
    world.ok(protect("s1"));
    world.ok(enter("s1"));
    assert!(world.state.is_in_maintenance(SdsId(1)) && on(&world, 1) > 0);
    assert_eq!(settle(&mut world, &mut looks), 0);
    world.ok(exit("s1"));
    assert!(none_drains(&world, 1));
}

#[test]
fn a_drain_for_good_and_a_protected_maintenance_are_apart() {
    let mut world = and_one(3);
    let mut looks = Looks::default();
    settle(&mut world, &mut looks);
    world.ok(protect("s1"));
    assert!(words(&mut world, cancel("s1")).contains("`pflex sds maintenance exit` ends that"));
    // Drained meanwhile: it stays so when the maintenance is over.
    world.ok(drain("s1"));
    settle(&mut world, &mut looks);
    world.ok(exit("s1"));
    settle(&mut world, &mut looks);
    assert_eq!((on(&world, 1), world.state.is_draining(DeviceId(1))), (0, true));
    world.ok(cancel("s1"));

    // The other way round, and its drain cancelled in the middle.
    settle(&mut world, &mut looks);
    world.ok(drain("s1"));
    world.ok(protect("s1"));
    world.ok(cancel("s1"));
    assert!(all_drain(&world, 1), "it is wanted empty still");
    settle(&mut world, &mut looks);
    assert!(world.state.is_in_maintenance(SdsId(1)));
    // A device that comes gets nothing before it is over.
    let Body::RegisterComponent(mut start) = register_sds(1, 1, 1) else { unreachable!() };
    start.devices.push(opened(101, 1));
    world.ok(Body::RegisterComponent(start));
    assert!(all_drain(&world, 1));
    assert_eq!(settle(&mut world, &mut looks), 0);
    world.ok(exit("s1"));
    assert!(none_drains(&world, 1));
    world.ok(rebalance("p", 0, true));
}

#[test]
fn a_pool_without_volumes_and_a_server_without_copies_wait_for_nobody() {
    let mut world = World::with_sds(3);
    world.ok(protect("s1"));
    assert!(world.state.is_in_maintenance(SdsId(1)) && on(&world, 1) == 0, "its groups are placed anew");
    world.ok(exit("s1"));
    assert!(on(&world, 1) > 0 && world.state.open_job(POOL, JobKind::Rebalance).is_none());
    world.ok(create_sds("s4"));
    world.ok(protect("s4"));
    assert!(world.state.is_in_maintenance(SdsId(4)));
    world.ok(exit("s4"));
    // One copy of each chunk: nothing else would let it be stopped.
    world.ok(delete(proto::Object::Pool, "p"));
    world.ok(create_pool("q", 1, 8));
    for n in 1..=2_u8 {
        world.ok(Body::AssignDevice(proto::AssignDevice {
            device_id: n.into(),
            pool: "q".into(),
            if_not_exists: true,
        }));
    }
    world.ok(Body::CreateVolume(proto::CreateVolume {
        name: "v".into(),
        pool: "q".into(),
        size_bytes: GIB,
        ..Default::default()
    }));
    assert_eq!(world.refused(enter("s1")), ErrorCode::Precondition);
    world.ok(protect("s1"));
    let mut looks = Looks::default();
    settle(&mut world, &mut looks);
    assert!(world.state.is_in_maintenance(SdsId(1)) && world.state.all_pgs().all(|pg| pg.config.in_sync.len() == 1));
}

#[test]
fn a_restored_cluster_goes_on_preparing_when_its_recovery_is_over() {
    let mut world = and_one(3);
    world.ok(protect("s1"));
    let mut back = restored(&world.state.dump());
    assert!(is_preparing(&back, 1) && maintenance::commands(&back.state).is_empty());
    assert_eq!(back.refused(protect("s1")), ErrorCode::Precondition);
    back.ok(exit("s1"));
    assert!(none_drains(&back, 1));
    world.ok(lost(1, 1));
    world.ok(returned(1, 1, 1));
    fill_all(&mut world);
    assert!(is_preparing(&world, 1), "a loss in between changes nothing");
}
