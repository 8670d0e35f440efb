//! Conversations about placement groups: who serves after what.

use pflex_proto::ids::{DeviceId, Epoch, VolatilityId};

use super::world::{GIB, World, create_volume, lost, member, member_message, opened, register_sds, returned};
use crate::{
    command::{Answer, Body, ErrorCode, proto},
    state::PgState,
};

fn proposal(index: u32, epoch: u64, in_sync: &[(u32, u64)], primary: u32) -> proto::Proposal {
    proto::Proposal {
        pool_id: 1,
        index,
        expected_epoch: epoch,
        in_sync: in_sync.iter().map(|(n, life)| member_message(*n, *life)).collect(),
        primary_device_id: primary,
        activate: false,
    }
}

/// Three SDSs, a volume (so that nothing is placed anew), and a group whose primary is on 1 and backup on 2.
fn three() -> (World, u32, u64) {
    let mut world = World::with_sds(3);
    world.ok(create_volume("v", GIB));
    let pg = world.pg_between(1, 2);
    let epoch = world.pg(pg).config.epoch.get();
    (world, pg, epoch)
}

#[test]
fn a_pool_is_placed_when_enough_sdss_have_come_and_anew_until_its_first_volume() {
    let mut world = World::with_sds(1);
    assert_eq!(world.state.all_pgs().len(), 0, "one SDS cannot hold two copies");
    assert_eq!(world.refused(create_volume("v", GIB)), ErrorCode::Precondition);

    let mut world = World::with_sds(2);
    assert!(world.state.all_pgs().all(|pg| pg.config.epoch == Epoch(1) && pg.config.in_sync.len() == 2));

    world.ok(super::world::create_sds("s3"));
    world.ok(register_sds(3, 3, 1));
    assert!(world.state.all_pgs().any(|pg| pg.replicas.contains(&DeviceId(3))), "the third gets its share");

    world.ok(create_volume("v", GIB));
    world.ok(super::world::create_sds("s4"));
    world.ok(register_sds(4, 4, 1));
    assert!(!world.state.all_pgs().any(|pg| pg.replicas.contains(&DeviceId(4))), "now data may be there: no move");
}

#[test]
fn losing_an_sds_moves_all_its_groups_in_one_command() {
    let (mut world, pg, epoch) = three();
    world.ok(lost(1, 1));
    for pg in world.state.all_pgs() {
        assert_eq!(pg.config.member(DeviceId(1)), None, "no group keeps it");
        assert_ne!(pg.config.primary, None, "every group serves on");
        let degraded = pg.replicas.contains(&DeviceId(1));
        assert_eq!(world.state.pg_state(pg), if degraded { PgState::Degraded } else { PgState::Active });
    }
    assert_eq!(world.pg(pg).config.epoch, Epoch(epoch + 1));
    assert_eq!(world.pg(pg).config.primary, Some(DeviceId(2)));

    let before = world.state.clone();
    world.ok(lost(1, 1));
    assert_eq!(world.pg(pg), before.pg(world.pg(pg).id).unwrap(), "said twice, it changes nothing");
}

#[test]
fn the_last_copy_stays_named_and_unavailable_until_it_returns() {
    let (mut world, pg, epoch) = three();
    world.ok(lost(1, 1));
    world.ok(lost(2, 2));
    assert_eq!(world.pg(pg).config.in_sync, [member(2, 1)], "1 misses writes of 2 and is not promoted");
    assert_eq!(world.pg(pg).config.primary, None);
    assert_eq!(world.state.pg_state(world.pg(pg)), PgState::Unavailable);

    world.ok(returned(1, 1, 1));
    assert_eq!(world.pg(pg).config.primary, None, "1 returns and is stale");

    world.ok(returned(2, 2, 1));
    assert_eq!(world.pg(pg).config.primary, Some(DeviceId(2)));
    assert_eq!(world.pg(pg).config.epoch, Epoch(epoch + 3));
    assert_eq!(world.state.joiners(world.pg(pg)).map(|d| d.id).collect::<Vec<_>>(), [DeviceId(1)]);
}

#[test]
fn a_restarted_copy_stays_in_sync_under_its_new_life() {
    let (mut world, pg, epoch) = three();
    world.ok(register_sds(1, 11, 2));
    let config = &world.pg(pg).config;
    assert_eq!(config.in_sync, [member(1, 2), member(2, 1)]);
    assert_eq!(config.primary, Some(DeviceId(1)), "its data is durable: it goes on as primary (S2)");
    assert_eq!((config.epoch, config.volatility), (Epoch(epoch + 1), VolatilityId(1)));
}

#[test]
fn when_every_copy_restarts_memory_is_gone_and_the_volatility_id_says_so() {
    let (mut world, pg, _) = three();
    world.ok(lost(2, 2));
    world.ok(register_sds(1, 11, 2));
    assert_eq!(world.pg(pg).config.in_sync, [member(1, 2)]);
    assert_eq!(world.pg(pg).config.volatility, VolatilityId(2));
}

#[test]
fn a_copy_that_lost_its_data_leaves_and_is_never_promoted() {
    let (mut world, pg, _) = three();
    let Body::RegisterComponent(mut restart) = register_sds(1, 11, 2) else { unreachable!() };
    restart.devices[0].empty = true;
    world.ok(Body::RegisterComponent(restart));
    assert_eq!(world.pg(pg).config.in_sync, [member(2, 1)], "it joins again from the other copy");

    let Body::RegisterComponent(mut restart) = register_sds(2, 12, 2) else { unreachable!() };
    restart.devices[0].empty = true;
    world.ok(Body::RegisterComponent(restart));
    assert_eq!(world.pg(pg).config.in_sync, [member(2, 1)], "the life that had the data stays named");
    assert_eq!(world.pg(pg).config.primary, None, "an empty copy never serves as if it had everything");
}

#[test]
fn only_the_primary_changes_its_group_and_only_from_the_epoch_it_knows() {
    let (mut world, pg, epoch) = three();
    let by_backup = world.propose(2, 2, proposal(pg, epoch, &[(2, 1)], 2));
    assert!(!by_backup.accepted, "{}", by_backup.why);

    let accepted = world.propose(1, 1, proposal(pg, epoch, &[(1, 1)], 0));
    assert!(accepted.accepted, "{}", accepted.why);
    assert_eq!(accepted.current.unwrap().epoch, epoch + 1);

    let stale = world.propose(1, 1, proposal(pg, epoch, &[(1, 1)], 0));
    assert!(!stale.accepted && stale.why.contains("epoch"), "{}", stale.why);
    assert_eq!(stale.current.unwrap().epoch, epoch + 1, "it learns the present configuration");
}

#[test]
fn a_joiner_counts_only_in_the_life_that_was_synced() {
    let (mut world, pg, epoch) = three();
    world.ok(lost(2, 2));
    world.ok(register_sds(2, 12, 2));
    let old_life = world.propose(1, 1, proposal(pg, epoch + 1, &[(1, 1), (2, 1)], 0));
    assert!(!old_life.accepted, "{}", old_life.why);
    let no_replica = world.propose(1, 1, proposal(pg, epoch + 1, &[(1, 1), (3, 1)], 0));
    assert!(!no_replica.accepted, "{}", no_replica.why);
    let twice = world.propose(1, 1, proposal(pg, epoch + 1, &[(1, 1), (1, 1)], 0));
    assert!(!twice.accepted, "{}", twice.why);
    let nobody = world.propose(1, 1, proposal(pg, epoch + 1, &[], 0));
    assert!(!nobody.accepted, "{}", nobody.why);
    let synced = world.propose(1, 1, proposal(pg, epoch + 1, &[(1, 1), (2, 2)], 0));
    assert!(synced.accepted, "{}", synced.why);
    assert_eq!(world.state.pg_state(world.pg(pg)), PgState::Active);
}

#[test]
fn a_primary_may_step_out() {
    let (mut world, pg, epoch) = three();
    let handed = world.propose(1, 1, proposal(pg, epoch, &[(2, 1)], 2));
    assert!(handed.accepted, "{}", handed.why);
    assert_eq!(world.pg(pg).config.primary, Some(DeviceId(2)));
}

#[test]
fn words_of_an_older_process_are_refused() {
    let (mut world, pg, epoch) = three();
    world.ok(register_sds(1, 11, 2));
    assert_eq!(world.refused(lost(1, 1)), ErrorCode::Stale, "the verdict was on the process before");
    assert_eq!(world.refused(returned(1, 1, 1)), ErrorCode::Stale);
    let old = Body::ReconfigurePgs(proto::ReconfigurePgs {
        sds_id: 1,
        process_id: vec![1; 16],
        proposals: vec![proposal(pg, epoch + 1, &[(1, 1)], 0)],
    });
    assert_eq!(world.refused(old), ErrorCode::Stale);
    assert_eq!(world.refused(register_sds(1, 1, 1)), ErrorCode::Stale, "an old life cannot come back (S2)");
    assert_eq!(world.refused(register_sds(1, 13, 2)), ErrorCode::Stale, "nor be shared by two processes");
}

#[test]
fn one_lost_device_leaves_the_others_of_its_sds_alone() {
    let mut world = World::with_sds(2);
    let Body::RegisterComponent(mut two) = register_sds(1, 11, 2) else { unreachable!() };
    two.devices.push(opened(50, 1));
    let Answer::Registered(registered) = world.ok(Body::RegisterComponent(two)) else { panic!() };
    world.ok(create_volume("v", GIB));
    world.ok(Body::SdsLost(proto::SdsLost {
        sds_id: 1,
        devices: vec![proto::DeviceLife { device_id: registered.device_ids[1], incarnation: 1 }],
        process_id: vec![11; 16],
        ..Default::default()
    }));
    assert!(world.state.sds_by_name("s1").unwrap().alive);
    assert!(world.state.device(DeviceId(1)).unwrap().alive);
    assert!(!world.state.device(DeviceId(registered.device_ids[1])).unwrap().alive);
}

#[test]
fn fault_sets_keep_copies_apart() {
    let mut world = World::with_sds(0);
    for (n, set) in [(1, "rack1"), (2, "rack1"), (3, "rack2")] {
        world.ok(Body::CreateSds(proto::CreateSds {
            name: format!("s{n}"),
            fault_set: set.into(),
            ..Default::default()
        }));
        world.ok(register_sds(n, n, 1));
        assert_eq!(world.state.all_pgs().len() == 8, n == 3, "two SDSs of one rack are one place");
    }
    assert!(world.state.all_pgs().all(|pg| pg.replicas.contains(&DeviceId(3))));
}
