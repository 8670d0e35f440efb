//! Writeback pools: who kept its memory, and what the volatility id says of it (S2, S14).

use pflex_proto::ids::{DeviceId, VolatilityId};

use super::world::{GIB, World, create_volume, lost, member, member_message, register_sds, returned};
use crate::{
    command::{Body, proto},
    state::PgState,
};

/// A group of a writeback pool, with its primary on 1 and its backup on 2.
fn two() -> (World, u32) {
    let mut world = World::with_policy(2, proto::WritePolicy::Writeback);
    world.ok(create_volume("v", GIB));
    let pg = world.pg_between(1, 2);
    (world, pg)
}

/// Who is in sync, who leads, and the volatility id.
fn present(world: &World, pg: u32) -> (Vec<(u32, u64)>, Option<u32>, u64) {
    let config = &world.pg(pg).config;
    let in_sync = config.in_sync.iter().map(|member| (member.device.get(), member.incarnation.get())).collect();
    (in_sync, config.primary.map(DeviceId::get), config.volatility.get())
}

/// Its process is gone: the port refuses (S8).
fn proven_dead(n: u8, process: u8) -> Body {
    let Body::SdsLost(mut lost) = lost(n, process) else { unreachable!() };
    lost.proven_dead = true;
    Body::SdsLost(lost)
}

#[test]
fn a_restarted_copy_joins_while_another_one_has_its_memory() {
    let (mut world, pg) = two();
    world.ok(register_sds(1, 11, 2));
    assert_eq!(present(&world, pg), (vec![(2, 1)], Some(2), 1), "2 has what was acknowledged");
    assert_eq!(world.state.joiners(world.pg(pg)).map(|device| device.id).collect::<Vec<_>>(), [DeviceId(1)]);
    let epoch = world.pg(pg).config.epoch.get();
    let joins = proto::Proposal {
        pool_id: 1,
        index: pg,
        expected_epoch: epoch,
        in_sync: vec![member_message(2, 1), member_message(1, 2)],
        primary_device_id: 0,
        activate: false,
    };
    assert!(world.propose(2, 2, joins).accepted);
    assert_eq!(present(&world, pg), (vec![(2, 1), (1, 2)], Some(2), 1), "a joiner changes no memory");
}

#[test]
fn the_only_copy_restarts_and_goes_on_under_another_id() {
    let (mut world, pg) = two();
    world.ok(lost(2, 2));
    world.ok(register_sds(1, 11, 2));
    assert_eq!(present(&world, pg), (vec![(1, 2)], Some(1), 2));
}

/// Both were silent, so either may live and remember; then the first restarts.
fn one_restarts_while_the_other_is_silent() -> (World, u32) {
    let (mut world, pg) = two();
    world.ok(super::world::judge([lost(1, 1), lost(2, 2)]));
    world.ok(register_sds(1, 11, 2));
    (world, pg)
}

#[test]
fn nobody_serves_while_the_other_copy_may_have_its_memory() {
    let (mut world, pg) = two();
    world.ok(super::world::judge([lost(1, 1), lost(2, 2)]));
    assert_eq!(present(&world, pg), (vec![(1, 1), (2, 1)], None, 1));
    world.ok(register_sds(1, 11, 2));
    assert_eq!(present(&world, pg), (vec![(1, 2), (2, 1)], None, 1), "2 was silent: it may live and remember");
    assert_eq!(world.state.pg_state(world.pg(pg)), PgState::Unavailable);
    assert!(world.pg(pg).forgot.contains(&DeviceId(1)));

    world.ok(register_sds(2, 12, 2));
    assert_eq!(
        world.pg(pg).config.in_sync,
        [member(1, 2), member(2, 2)],
        "all have restarted: both have what is on disks"
    );
    assert_eq!(world.pg(pg).config.volatility, VolatilityId(2));
    assert!(world.pg(pg).config.primary.is_some() && world.pg(pg).forgot.is_empty());
}

#[test]
fn a_copy_that_comes_back_with_its_memory_goes_on_alone() {
    let (mut world, pg) = one_restarts_while_the_other_is_silent();
    world.ok(returned(2, 2, 1));
    assert_eq!(present(&world, pg), (vec![(2, 1)], Some(2), 1), "the other one joins");
}

#[test]
fn a_process_that_is_proven_dead_remembers_nothing() {
    let (mut world, pg) = two();
    world.ok(super::world::judge([proven_dead(1, 1), proven_dead(2, 2)]));
    world.ok(register_sds(1, 11, 2));
    assert_eq!(present(&world, pg), (vec![(1, 2)], Some(1), 2));
}

#[test]
fn a_copy_that_came_back_empty_remembers_nothing() {
    let (mut world, pg) = two();
    world.ok(super::world::judge([lost(1, 1), lost(2, 2)]));
    let Body::RegisterComponent(mut empty) = register_sds(1, 11, 2) else { unreachable!() };
    empty.devices[0].empty = true;
    world.ok(Body::RegisterComponent(empty));
    assert_eq!(present(&world, pg).1, None);
    world.ok(register_sds(2, 12, 2));
    assert_eq!(present(&world, pg), (vec![(2, 2)], Some(2), 2));
}

#[test]
fn a_forced_promotion_of_the_copy_that_waits_is_another_memory() {
    let (mut world, pg) = two();
    world.ok(super::world::judge([lost(1, 1), lost(2, 2)]));
    world.ok(register_sds(1, 11, 2));
    world.ok(Body::FreezePg(proto::FreezePg { pool: "p".into(), index: pg, device_id: 1 }));
    world.ok(Body::PromotePg(proto::PromotePg {
        pool: "p".into(),
        index: pg,
        device_id: 1,
        frozen_at: world.revision,
        why_safe: "waited".into(),
    }));
    assert_eq!(present(&world, pg), (vec![(1, 2)], Some(1), 2));
}

#[test]
fn in_a_sync_pool_a_restarted_copy_stays() {
    let mut world = World::with_sds(2);
    world.ok(create_volume("v", GIB));
    let pg = world.pg_between(1, 2);
    world.ok(register_sds(1, 11, 2));
    assert_eq!(present(&world, pg).0, [(1, 2), (2, 1)]);
}

/// As `two`, with a third server, and primaries that have not answered yet (S11).
fn unanswered() -> (World, u32) {
    let mut world = World { primaries_wait: true, ..World::with_policy(3, proto::WritePolicy::Writeback) };
    world.ok(create_volume("v", GIB));
    let pg = world.pg_between(1, 2);
    (world, pg)
}

#[test]
fn who_has_everything_and_its_memory_is_waited_for_while_nobody_has_answered() {
    let (mut world, pg) = unanswered();
    world.ok(lost(1, 1));
    assert_eq!(present(&world, pg), (vec![(2, 1)], Some(2), 1));
    world.ok(register_sds(2, 12, 2));
    assert_eq!(present(&world, pg), (vec![(2, 2)], None, 2), "1 was silent: it may live and remember");
    world.ok(returned(1, 1, 1));
    assert_eq!(present(&world, pg), (vec![(1, 1)], Some(1), 3), "nothing is lost, and nobody need believe it");
    assert!(world.pg(pg).forgot.contains(&DeviceId(2)), "2 may yet be chosen");
    world.activate_all();
    assert!(world.pg(pg).forgot.is_empty(), "it may not any more");
}

#[test]
fn who_has_everything_but_its_memory_is_chosen_last_and_under_another_id() {
    for (proven, expected) in [(true, (vec![(1, 2)], Some(1), 2)), (false, (vec![(2, 1)], None, 1))] {
        let (mut world, pg) = unanswered();
        world.ok(register_sds(1, 11, 2));
        assert_eq!(present(&world, pg), (vec![(2, 1)], Some(2), 1));
        assert_eq!(world.pg(pg).holders, [member(1, 2), member(2, 1)]);
        assert!(world.pg(pg).forgot.contains(&DeviceId(1)), "it lacks what was not flushed");
        world.ok(if proven { proven_dead(2, 2) } else { lost(2, 2) });
        assert_eq!(present(&world, pg), expected, "2 is proven dead: {proven}");
    }
}
