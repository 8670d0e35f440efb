//! Copies that move between living devices: what a move may be, drains, rebalances, and that no group ever has fewer copies.
//! That a copy leaves only when as many are in sync as before is part of `check_step`, after every command here.

use std::collections::BTreeSet;

use pflex_proto::ids::{DeviceId, LogTime, PgId, SdsId};
use rand::{RngExt as _, seq::IndexedRandom as _};

use super::{
    leader::{and_one, first_on, lead, led_by, on, refused, results, set, settle, step, words},
    leads::move_leads,
    maintenance::{enter, exit},
    protected::protect,
    rebuilds::{fillable, filled},
    recovery::restored,
    world::{
        GIB, POOL, World, create_pool, create_sds, create_volume, delete, lost, member_message, opened, register_sds,
        returned,
    },
};
use crate::{
    command::{Body, ErrorCode, proto},
    liveness::{homes::Homeless, leads::Looks},
    state::{
        PgState,
        model::{JobKind, JobState, Pg, Setting},
    },
    testing::{Seeds, rng},
};

pub(super) fn move_live(kind: proto::MoveKind, moves: Vec<proto::CopyMove>) -> Body {
    Body::MoveCopies(proto::MoveCopies { pool_id: POOL.get(), kind: kind.into(), moves, left: 0 })
}

pub(super) fn drain(sds: &str) -> Body {
    Body::Drain(proto::Drain { sds: sds.into(), ..Default::default() })
}

pub(super) fn drain_device(device_id: u32) -> Body {
    Body::Drain(proto::Drain { device_id, ..Default::default() })
}

pub(super) fn cancel(sds: &str) -> Body {
    Body::Drain(proto::Drain { sds: sds.into(), cancel: true, ..Default::default() })
}

pub(super) fn rebalance(pool: &str, planned: u32, cancel: bool) -> Body {
    Body::Rebalance(proto::Rebalance { pool: pool.into(), planned, cancel })
}

/// A group of which the copy on device 1 moves to device 4, and that group before.
pub(super) fn on_its_way() -> (World, Pg) {
    let mut world = and_one(3);
    let before = first_on(&world, 1);
    let [result] =
        results(&mut world, move_live(proto::MoveKind::Balance, vec![step(&before, 1, 4)])).try_into().unwrap();
    assert!(result.accepted, "{}", result.why);
    (world, before)
}

pub(super) fn now(world: &World, pg: &Pg) -> Pg {
    world.state.pg(pg.id).unwrap().clone()
}

#[test]
fn a_copy_leaves_with_the_epoch_in_which_its_successor_is_in_sync() {
    for led in [true, false] {
        let (mut world, before) = on_its_way();
        let other = before.replicas.iter().find(|device| device.get() != 1).unwrap().get();
        let moving = now(&world, &before);
        assert_eq!(moving.config.epoch, before.config.epoch.next());
        assert_eq!((&moving.config.in_sync, moving.config.primary), (&before.config.in_sync, before.config.primary));
        assert_eq!((moving.leaving, moving.newcomer()), (Some(DeviceId(1)), Some(DeviceId(4))));
        assert_eq!(moving.replicas, [before.replicas.clone(), vec![DeviceId(4)]].concat());
        assert_eq!(world.state.joiners(&moving).map(|device| device.id).collect::<Vec<_>>(), [DeviceId(4)]);
        assert_eq!((world.state.pg_state(&moving), moving.is_whole()), (PgState::Active, true));
        assert_eq!(world.state.open_rebuild(POOL), None, "nothing is missing");
        let event = world.state.event(world.state.revision()).unwrap();
        let words = "1 copy begins to move for a rebalance: from device 1 of sds s1 to device 4 of sds s4; ";
        assert!(event.kind == "pg.move" && event.what.starts_with(words), "{event:?}");
        let leader = if led { 1 } else { other };
        if moving.config.primary != Some(DeviceId(leader)) {
            let index = moving.id.index.get();
            let to = proto::LeadMove { index, expected_epoch: moving.config.epoch.get(), to_device_id: leader };
            world.ok(move_leads(vec![to]));
        }
        assert!(world.reloaded() == world.state);

        let moving = now(&world, &before);
        filled(&mut world, before.id);
        let after = now(&world, &before);
        assert_eq!(after.config.epoch, moving.config.epoch.next());
        assert_eq!(after.replicas.iter().map(|d| d.get()).collect::<BTreeSet<_>>(), BTreeSet::from([other, 4]));
        assert_eq!((after.leaving, after.config.in_sync.len(), after.is_whole()), (None, 2, true));
        assert!(led == (after.config.primary != Some(DeviceId(other))) || led_by(&world, 4) == 0);
        let event = world.state.event(world.state.revision()).unwrap();
        assert!(event.what.contains("took in synced copies on device 4, instead of copies on device 1"), "{event:?}");
        let job = world.state.rebuilds_of(POOL).next_back().unwrap();
        assert_eq!((job.kind, job.state, job.groups_done), (JobKind::Rebalance, JobState::Done, 1));
        assert!(world.reloaded() == world.state);
    }
}

#[test]
fn a_move_ends_when_its_new_home_is_lost_and_goes_on_when_the_old_one_is() {
    let (mut world, before) = on_its_way();
    world.ok(lost(4, 4));
    let after = now(&world, &before);
    assert_eq!((&after.replicas, after.leaving), (&before.replicas, None));
    assert_eq!((after.config.primary, &after.config.in_sync), (before.config.primary, &before.config.in_sync));
    assert!(world.state.rebuilds_of(POOL).all(|job| job.is_finished()));

    // A restart in between is no loss: it joins in its new life.
    let (mut world, before) = on_its_way();
    world.ok(register_sds(4, 44, 2));
    assert_eq!(now(&world, &before).leaving, Some(DeviceId(1)));
    filled(&mut world, before.id);
    assert_eq!(now(&world, &before).leaving, None);

    // The old copy is lost: one copy is missing, and it is the new one that is filled.
    let (mut world, before) = on_its_way();
    world.ok(lost(1, 1));
    let moving = now(&world, &before);
    assert_eq!((moving.leaving, moving.config.in_sync.len(), moving.is_whole()), (Some(DeviceId(1)), 1, false));
    assert_eq!(moving.missing().collect::<Vec<_>>(), [DeviceId(4)]);
    world.now += 10_000_000;
    let elsewhere = Homeless::all(&world.state, LogTime(world.now));
    let others = elsewhere.iter().filter_map(Homeless::command).flat_map(|body| match body {
        Body::MoveCopies(moves) => moves.moves,
        other => panic!("{other:?}"),
    });
    assert!(others.into_iter().all(|step| step.index != before.id.index.get()), "it has its new home");
    filled(&mut world, before.id);
    let after = now(&world, &before);
    assert_eq!((after.leaving, after.is_whole(), after.replicas.contains(&DeviceId(1))), (None, true, false));

    // Back before that, it is a copy as before, and leaves when the new one is there.
    let (mut world, before) = on_its_way();
    world.ok(lost(1, 1));
    world.ok(returned(1, 1, 1));
    filled(&mut world, before.id);
    let after = now(&world, &before);
    assert_eq!((after.leaving, after.config.in_sync.len()), (None, 2));

    // Nobody serves: nothing can be filled, and whoever has the data keeps its place.
    let (mut world, before) = on_its_way();
    for n in before.replicas.iter().map(|device| device.get() as u8) {
        world.ok(lost(n, n));
    }
    let after = now(&world, &before);
    assert_eq!((&after.replicas, after.leaving, after.config.primary), (&before.replicas, None, None));
}

/// The newcomer is in sync, another copy is missing, and now the old one drops out: it has its place until all are there.
#[test]
fn a_move_is_not_over_while_a_copy_besides_the_old_one_is_missing() {
    let (mut world, before) = on_its_way();
    let other = before.replicas.iter().find(|device| device.get() != 1).unwrap().get() as u8;
    world.ok(lost(other, other));
    filled(&mut world, before.id);
    let moving = now(&world, &before);
    let in_sync: BTreeSet<_> = moving.config.in_sync.iter().map(|member| member.device.get()).collect();
    assert_eq!((in_sync, moving.leaving), (BTreeSet::from([1, 4]), Some(DeviceId(1))));
    let proposal = proto::Proposal {
        pool_id: before.id.pool.get(),
        index: before.id.index.get(),
        expected_epoch: moving.config.epoch.get(),
        in_sync: vec![member_message(4, 1)],
        primary_device_id: 4,
        activate: false,
    };
    let result = world.propose(1, 1, proposal);
    assert!(result.accepted, "{}", result.why);
    let moving = now(&world, &before);
    assert_eq!((moving.leaving, moving.config.in_sync.len()), (Some(DeviceId(1)), 1), "its disk may be read yet");
    assert!(moving.replicas.contains(&DeviceId(1)));
    world.ok(returned(other, other, 1));
    filled(&mut world, before.id);
    let after = now(&world, &before);
    let places: BTreeSet<_> = after.replicas.iter().map(|device| device.get()).collect();
    assert_eq!((places, after.leaving, after.is_whole()), (BTreeSet::from([other.into(), 4]), None, true));
}

/// S11: the newcomer has every acknowledged write, and who goes on alone has answered nothing yet.
#[test]
fn a_newcomer_that_is_lost_with_everything_may_be_chosen_until_others_answer_without_it() {
    for answers in [false, true] {
        let (mut world, before) = on_its_way();
        let other = before.replicas.iter().find(|device| device.get() != 1).unwrap().get() as u8;
        world.ok(lost(other, other));
        filled(&mut world, before.id);
        world.primaries_wait = true;
        world.ok(lost(4, 4));
        let alone = now(&world, &before);
        assert_eq!((alone.config.in_sync.len(), alone.is_activated()), (1, false));
        assert_eq!((alone.newcomer(), alone.is_complete_on(DeviceId(4))), (Some(DeviceId(4)), true), "{alone:?}");
        if answers {
            world.activate_all();
            let alone = now(&world, &before);
            assert_eq!((&alone.replicas, alone.leaving), (&before.replicas, None), "its move is called off now");
            continue;
        }
        world.ok(lost(1, 1));
        world.ok(returned(4, 4, 1));
        let chosen = now(&world, &before);
        assert_eq!(chosen.config.in_sync.iter().map(|member| member.device.get()).collect::<Vec<_>>(), [4]);
        assert!(world.reloaded() == world.state);
    }
}

#[test]
fn a_server_that_is_drained_and_in_maintenance_is_left_alone_until_it_is_back() {
    let mut world = and_one(3);
    let mut looks = Looks::default();
    settle(&mut world, &mut looks);
    world.ok(drain("s4"));
    world.ok(enter("s4"));
    let copies = on(&world, 4);
    assert!(copies > 0 && settle(&mut world, &mut looks) == 0, "nothing begins, and nothing is refused each second");
    world.ok(exit("s4"));
    settle(&mut world, &mut looks);
    assert_eq!(on(&world, 4), 0);
}

#[test]
fn moves_that_may_not_be_are_refused_by_themselves() {
    let balance = proto::MoveKind::Balance;
    let mut world = and_one(3);
    let pg = first_on(&world, 1);
    let other = pg.replicas.iter().find(|device| device.get() != 1).unwrap().get();
    let third = 5 - other;
    refused(
        &mut world,
        move_live(balance, vec![proto::CopyMove { expected_epoch: 99, ..step(&pg, 1, 4) }]),
        "the epoch is",
    );
    refused(
        &mut world,
        move_live(balance, vec![proto::CopyMove { index: 99, ..step(&pg, 1, 4) }]),
        "no such placement group",
    );
    refused(&mut world, move_live(balance, vec![step(&pg, third, 4)]), "has no copy to give up");
    refused(&mut world, move_live(balance, vec![step(&pg, 1, 1)]), "where that copy is");
    refused(&mut world, move_live(balance, vec![step(&pg, 1, other)]), "fails together");
    refused(&mut world, move_live(balance, vec![step(&pg, 1, 77)]), "there is no device 77");
    refused(&mut world, move_live(proto::MoveKind::Drain, vec![step(&pg, 1, 4)]), "is not being drained");
    refused(&mut world, move_live(proto::MoveKind::Lost, vec![step(&pg, 1, 4)]), "is in sync");
    world.ok(enter("s4"));
    refused(&mut world, move_live(balance, vec![step(&pg, 1, 4)]), "in maintenance");
    world.ok(exit("s4"));
    world.ok(drain("s4"));
    refused(&mut world, move_live(balance, vec![step(&pg, 1, 4)]), "device 4 is being drained");
    world.ok(cancel("s4"));
    world.ok(drain("s1"));
    refused(&mut world, move_live(balance, vec![step(&pg, 1, 4)]), "device 1 is being drained");
    world.ok(cancel("s1"));
    // One at a time of a group, and none while it lacks something.
    let two =
        vec![step(&pg, 1, 4), proto::CopyMove { expected_epoch: pg.config.epoch.get() + 1, ..step(&pg, other, third) }];
    let answers = results(&mut world, move_live(balance, two));
    assert!(answers[0].accepted && answers[1].why.contains("another copy of it is moving"), "{answers:?}");
    world.ok(lost(third as u8, third as u8));
    let lacking = world.state.all_pgs().find(|pg| !pg.is_whole()).unwrap().clone();
    let here = lacking.config.in_sync[0].device.get();
    refused(&mut world, move_live(balance, vec![step(&lacking, here, 4)]), "which is filled first");
    refused(&mut world, move_live(balance, vec![step(&lacking, third, 4)]), "not in sync or not in service");
}

#[test]
fn a_server_is_drained_removed_and_nothing_ever_lacked_a_copy() {
    let mut world = and_one(3);
    world.ok(set(Setting::RebalanceAuto, 0));
    let mut looks = Looks::default();
    assert_eq!(settle(&mut world, &mut looks), 0, "nobody asked");
    let held = on(&world, 1);
    assert_eq!(world.refused(delete(proto::Object::Sds, "s1")), ErrorCode::InUse);
    world.ok(drain("s1"));
    let job = world.state.open_job(POOL, JobKind::Drain).unwrap().clone();
    assert_eq!((job.groups_left as usize, job.state), (held, JobState::Waiting));
    assert!(job.why.starts_with("sds s1: is drained"), "{job:?}");
    let [why] = world.state.why("sds s1").try_into().unwrap();
    let said = format!("device 1 is being drained: it gets no copies, and {held} of its copies are still to move");
    assert!(why.state == "being drained" && why.causes.iter().any(|cause| cause.what == said), "{why:?}");
    world.now += 1_000;
    world.ok(set(Setting::MovesPerDevice, 1));
    let most = lead(&mut world, &mut looks);
    assert!((1..=2).contains(&most), "{most}: each move takes two devices of four");
    assert_eq!(lead(&mut world, &mut looks), 0, "and the next ones wait");
    assert_eq!(world.state.open_job(POOL, JobKind::Drain).unwrap().state, JobState::Running);
    settle(&mut world, &mut looks);
    assert_eq!((1..=4).map(|n| on(&world, n)).sum::<usize>(), 16);
    assert_eq!(on(&world, 1), 0);
    assert!(world.state.all_rebuilds().all(|job| job.kind == JobKind::Drain), "no rebuild was needed");
    let job = world.state.rebuilds_of(POOL).next_back().unwrap();
    assert_eq!((job.state, job.groups_done as usize, job.groups_left), (JobState::Done, held, 0));
    let [why] = world.state.why("sds s1").try_into().unwrap();
    assert_eq!(why.state, "drained");
    assert_eq!(settle(&mut world, &mut looks), 0, "it gets none back");
    world.ok(delete(proto::Object::Sds, "s1"));
    assert!(world.state.device(DeviceId(1)).is_none() && world.state.sds(SdsId(1)).is_none());
    assert!(world.reloaded() == world.state);
}

#[test]
fn a_drain_is_refused_when_the_others_cannot_take_it() {
    let mut world = World::with_sds(2);
    world.ok(create_volume("v", GIB));
    let why = words(&mut world, drain("s1"));
    assert!(why.starts_with("placement groups 1.0, 1.1, ") && why.contains("1 would be left; add one first"), "{why}");
    let mut world = World::with_sds(3);
    world.ok(create_volume("v", GIB));
    let used = vec![proto::PoolUse { pool_id: POOL.get(), bytes: 21 * GIB }];
    let why = words(&mut world, Body::Drain(proto::Drain { sds: "s1".into(), used, ..Default::default() }));
    assert!(why.contains("21474836480 bytes, and its copies hold 22548578304"), "{why}");
    world.ok(create_volume("w", 60 * GIB));
    let why = words(&mut world, drain_device(2));
    assert!(why.contains("over-commit limit"), "{why}");
    assert_eq!(world.refused(drain("s9")), ErrorCode::NotFound);
    assert_eq!(world.refused(drain_device(9)), ErrorCode::NotFound);
    assert_eq!(world.refused(cancel("s1")), ErrorCode::Precondition);
    let both = Body::Drain(proto::Drain { sds: "s1".into(), device_id: 1, ..Default::default() });
    assert_eq!(world.refused(both), ErrorCode::Invalid);
    world.ok(create_sds("s4"));
    assert!(words(&mut world, drain("s4")).contains("no devices"));
}

#[test]
fn a_drain_that_is_cancelled_leaves_what_has_not_moved() {
    let mut world = and_one(3);
    world.ok(set(Setting::RebalanceAuto, 0));
    let mut looks = Looks::default();
    world.ok(drain("s1"));
    let since = world.state.device(DeviceId(1)).unwrap().draining;
    world.now += 1_000;
    world.ok(drain("s1"));
    assert_eq!(world.state.device(DeviceId(1)).unwrap().draining, since, "said again it is no change");
    assert!(lead(&mut world, &mut looks) > 0);
    let held = on(&world, 1);
    let first = fillable(&world)[0];
    filled(&mut world, first);
    world.ok(cancel("s1"));
    assert_eq!(on(&world, 1), held - 1);
    assert!(world.state.all_pgs().all(|pg| pg.leaving.is_none() && pg.is_whole()));
    assert!(world.state.all_rebuilds().all(|job| job.is_finished()));
    assert_eq!(settle(&mut world, &mut looks), 0);
}

#[test]
fn a_new_server_gets_its_share_by_itself_and_leads_its_part() {
    let mut world = and_one(3);
    let mut looks = Looks::default();
    world.now += 1_000;
    assert_eq!(lead(&mut world, &mut looks), 0, "it has to stay first");
    world.now += 6_000;
    assert_eq!(lead(&mut world, &mut looks), 4, "and not all at once");
    assert_eq!(world.state.open_job(POOL, JobKind::Rebalance).unwrap().state, JobState::Running);
    settle(&mut world, &mut looks);
    assert_eq!((1..=4).map(|n| on(&world, n)).collect::<Vec<_>>(), [4; 4]);
    assert!(
        (1..=4).all(|n| (1..=3).contains(&led_by(&world, n))),
        "{:?}",
        (1..=4).map(|n| led_by(&world, n)).collect::<Vec<_>>()
    );
    let job = world.state.rebuilds_of(POOL).next_back().unwrap();
    assert_eq!((job.kind, job.state, job.groups_done), (JobKind::Rebalance, JobState::Done, 4));
    assert_eq!(settle(&mut world, &mut looks), 0, "and then it is quiet");
    assert!(world.state.all_rebuilds().all(|job| job.kind == JobKind::Rebalance), "nothing ever lacked a copy");
}

#[test]
fn a_rebalance_that_is_asked_for_is_a_job_and_ends() {
    let mut world = and_one(3);
    world.ok(set(Setting::RebalanceAuto, 0));
    let mut looks = Looks::default();
    assert_eq!(settle(&mut world, &mut looks), 0);
    world.ok(rebalance("p", 4, false));
    let job = world.state.open_job(POOL, JobKind::Rebalance).unwrap().clone();
    assert_eq!((job.groups_left, job.state, job.why.as_str()), (4, JobState::Waiting, "asked for by an operator"));
    let event = world.state.event(world.state.revision()).unwrap();
    assert_eq!((event.kind.as_str(), event.object.as_str()), ("pool.rebalance", "pool p"));
    world.ok(rebalance("p", 4, false));
    assert_eq!(settle(&mut world, &mut looks), 4);
    let job = world.state.rebuilds_of(POOL).next_back().unwrap();
    assert_eq!((job.state, job.groups_done, job.planned), (JobState::Done, 4, 0));
    world.ok(rebalance("p", 0, false));
    assert_eq!(world.state.open_job(POOL, JobKind::Rebalance), None, "nothing is to do");

    // One whose plan came to nothing is closed by the leader, and one that is cancelled at once.
    world.ok(rebalance("p", 7, false));
    assert_eq!(settle(&mut world, &mut looks), 0);
    assert_eq!(world.state.open_job(POOL, JobKind::Rebalance), None);
    world.ok(rebalance("p", 7, false));
    world.ok(rebalance("p", 0, true));
    assert_eq!(world.state.open_job(POOL, JobKind::Rebalance), None);
    assert_eq!(world.refused(rebalance("p", 0, true)), ErrorCode::Precondition);
    assert_eq!(world.refused(rebalance("q", 0, true)), ErrorCode::NotFound);
    assert!(world.reloaded() == world.state);
}

#[test]
fn a_rebalance_that_an_operator_ended_does_not_begin_again_by_itself() {
    let mut world = and_one(3);
    let mut looks = Looks::default();
    world.now += 1_000;
    assert_eq!(lead(&mut world, &mut looks), 0, "it has to stay first");
    world.now += 6_000;
    assert!(lead(&mut world, &mut looks) > 0);
    world.ok(rebalance("p", 0, true));
    assert!(world.state.all_pgs().all(|pg| pg.leaving.is_none()));
    assert_eq!(settle(&mut world, &mut looks), 0, "the operator said no");
    assert!(world.reloaded() == world.state);
    let why = world.state.why("pool p").remove(0);
    assert!(why.causes.iter().any(|cause| cause.what.starts_with("an operator ended its rebalance")), "{why:?}");
    // What the planner had under way does not begin it either.
    let late = move_live(proto::MoveKind::Balance, vec![step(&first_on(&world, 1), 1, 4)]);
    assert_eq!(world.refused(late), ErrorCode::Precondition);
    // Until he asks, or a device comes.
    world.ok(rebalance("p", 4, false));
    assert!(settle(&mut world, &mut looks) > 0);
    assert!(!world.state.pool(POOL).unwrap().left_alone);
    world.ok(drain("s4"));
    settle(&mut world, &mut looks);
    world.ok(cancel("s4"));
    world.now += 1_000;
    while lead(&mut world, &mut looks) == 0 {
        world.now += 1_000;
    }
    world.ok(rebalance("p", 0, true));
    assert_eq!(settle(&mut world, &mut looks), 0);
    world.ok(create_sds("s5"));
    world.ok(register_sds(5, 5, 1));
    assert!(settle(&mut world, &mut looks) > 0 && on(&world, 5) > 0 && on(&world, 4) > 0);
}

#[test]
fn a_pool_without_volumes_has_nothing_to_rebalance() {
    let mut world = World::with_sds(3);
    world.ok(rebalance("p", 7, false));
    assert_eq!(world.state.open_job(POOL, JobKind::Rebalance), None, "it would never end");
}

#[test]
fn a_drain_ends_with_the_place_in_the_pool() {
    let mut world = and_one(3);
    world.ok(drain("s4"));
    world.ok(create_pool("q", 2, 8));
    world.ok(super::topology::assign(4, "q"));
    assert!(!world.state.is_draining(DeviceId(4)), "it is new there");
}

#[test]
fn a_restore_in_the_middle_of_a_move_knows_who_has_the_data() {
    let (world, before) = on_its_way();
    let mut back = restored(&world.state.dump());
    assert_eq!(now(&back, &before).leaving, Some(DeviceId(1)));
    let names = (1..=4).map(|n| format!("s{n}")).collect();
    back.ok(Body::EndRecovery(proto::EndRecovery { without: names }));
    let after = now(&back, &before);
    assert_eq!((after.leaving, after.replicas.len()), (None, 2));
    assert!(before.replicas.iter().all(|device| after.replicas.contains(device)), "{after:?}");
}

/// A cluster of 3 to 10 servers with one or two devices each.
fn random_cluster(rng: &mut rand_chacha::ChaCha8Rng) -> (World, u8) {
    let count = rng.random_range(3..=10_u8);
    let mut world = World::new();
    world.ok(Body::CreateDomain(proto::CreateDomain { name: "d".into(), if_not_exists: false }));
    world.ok(create_pool("p", rng.random_range(1..=2), 32));
    for n in 1..=count {
        world.ok(create_sds(&format!("s{n}")));
        let Body::RegisterComponent(mut start) = register_sds(n, n, 1) else { unreachable!() };
        if n % 2 == 0 {
            start.devices.push(opened(100 + n, 1));
        }
        world.ok(Body::RegisterComponent(start));
        if n == 2 {
            world.ok(create_volume("v", GIB));
        }
    }
    world.ok(set(Setting::MovesPerDevice, rng.random_range(1..=8)));
    (world, count)
}

#[test]
fn random_clusters_are_drained_and_evened_out_whatever_is_lost_meanwhile() {
    let (mut moved, mut drained) = (0, 0);
    // The first drained a server without copies, which was the only place for those of another drain; the second ended a
    // protected maintenance while copies moved.
    for seed in Seeds::new(12).and(&[7_852_649_413_165_574_974, 1_096_376_937_231_545_360]) {
        let mut rng = rng(seed);
        let (mut world, count) = random_cluster(&mut rng);
        world.ok(Body::ChangeSettings(proto::ChangeSettings {
            entries: vec![proto::Setting { key: "readmission.most_ms".into(), value: 0, to_default: false }],
        }));
        let mut looks = Looks::default();
        for _ in 0..120 {
            world.now += rng.random_range(0..20_000_u64);
            let n = rng.random_range(1..=count);
            let life: Vec<proto::DeviceLife> = world
                .state
                .devices_of(SdsId(n.into()))
                .map(|device| proto::DeviceLife { device_id: device.id.get(), incarnation: 1 })
                .collect();
            match rng.random_range(0..14_u32) {
                0 => drop(world.say(lost(n, n))),
                1..=3 => drop(world.say(Body::SdsReturned(proto::SdsReturned {
                    sds_id: n.into(),
                    devices: life,
                    process_id: vec![n; 16],
                }))),
                4 => drop(world.say(drain(&format!("s{n}")))),
                5 => drop(world.say(cancel(&format!("s{n}")))),
                6 => drop(world.say(rebalance("p", 3, rng.random_bool(0.3)))),
                7 => drop(world.say(protect(&format!("s{n}")))),
                8 => drop(world.say(exit(&format!("s{n}")))),
                _ => {}
            }
            world.activate_all();
            moved += lead(&mut world, &mut looks);
            let groups: Vec<PgId> = fillable(&world);
            if let Some(group) = groups.choose(&mut rng) {
                filled(&mut world, *group);
            }
        }
        // Everybody is there, and whoever is to go goes.
        for n in 1..=count {
            drop(world.say(exit(&format!("s{n}"))));
            let life = world.state.devices_of(SdsId(n.into())).map(|device| device.id.get()).collect::<Vec<_>>();
            world.ok(Body::SdsReturned(proto::SdsReturned {
                sds_id: n.into(),
                devices: life.into_iter().map(|device_id| proto::DeviceLife { device_id, incarnation: 1 }).collect(),
                process_id: vec![n; 16],
            }));
        }
        world.now += 4_000_000;
        // A rebalance that was ended by hand does not begin by itself.
        world.ok(rebalance("p", 3, false));
        settle(&mut world, &mut looks);
        assert!(
            world.state.all_rebuilds().all(|job| job.is_finished()),
            "seed {seed}: {:?}",
            world.state.why("pool p")
        );
        for device in world.state.draining_in(POOL) {
            assert_eq!(world.state.copies_on(device.id), 0, "seed {seed}: device {} is not empty", device.id);
            drained += 1;
        }
        let candidates = world.state.candidates(POOL);
        let groups: Vec<_> = world.state.all_pgs().map(|pg| pg.replicas.clone()).collect();
        let copies = world.state.pool(POOL).unwrap().copies as usize;
        let plan = crate::placement::plan(&groups, copies, &candidates).expect("there are enough");
        assert_eq!(plan.moves, [], "seed {seed}: it is not even");
        assert!(world.reloaded() == world.state, "seed {seed}");
    }
    assert!((moved > 0 && drained > 0) || std::env::var("PFLEX_TEST_SEED").is_ok(), "nothing ever moved");
}
