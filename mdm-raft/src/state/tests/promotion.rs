//! Conversations about forced promotion (S12).

use pflex_proto::ids::{DeviceId, PgId, PgIndex, VolatilityId};

use super::world::{
    GIB, POOL, World, create_sdc, create_volume, lost, map, member, register_sdc, register_sds, returned,
};
use crate::{
    command::{Answer, Body, ErrorCode, proto},
    state::{PgState, model::Severity},
};

pub(super) fn freeze(index: u32, device_id: u32) -> Body {
    Body::FreezePg(proto::FreezePg { pool: "p".into(), index, device_id })
}

pub(super) fn unfreeze(index: u32) -> Body {
    Body::UnfreezePg(proto::UnfreezePg { pool: "p".into(), index })
}

pub(super) fn promote(world: &World, index: u32, device_id: u32) -> Body {
    let freeze = world.state.freeze_of(PgId { pool: POOL, index: PgIndex(index) });
    let frozen_at = freeze.map_or(0, |freeze| freeze.at.get());
    Body::PromotePg(proto::PromotePg { pool: "p".into(), index, device_id, frozen_at, why_safe: "waited".into() })
}

fn tokens() -> Body {
    Body::IssueTokens(proto::IssueTokens { sdc_id: 1, process_id: vec![1; 16], volume_ids: vec![1], plans: vec![] })
}

/// A group whose in-sync copy, on 1, is away; the copy on 2 is alive and misses writes.
pub(super) fn away() -> (World, u32) {
    let mut world = World::with_sds(3);
    world.ok(create_volume("v", GIB));
    world.ok(create_sdc("c"));
    world.ok(register_sdc("c", 1));
    world.ok(map("v", "c"));
    let pg = world.pg_between(1, 2);
    world.ok(lost(2, 2));
    world.ok(lost(1, 1));
    world.ok(returned(2, 2, 1));
    assert_eq!(world.pg(pg).config.in_sync, [member(1, 1)]);
    assert_eq!(world.state.pg_state(world.pg(pg)), PgState::Unavailable);
    (world, pg)
}

#[test]
fn a_stale_copy_is_promoted_only_through_a_freeze_and_the_loss_is_named() {
    let (mut world, pg) = away();
    assert_eq!(world.refused(promote(&world, pg, 2)), ErrorCode::Precondition, "it is not frozen");
    world.ok(freeze(pg, 2));
    assert_eq!(world.pg(pg).config.primary, None);
    let Answer::TokensIssued(issued) = world.ok(tokens()) else { panic!() };
    assert!(issued.token_ids.is_empty() && issued.refused[0].why.contains("frozen"), "{issued:?}");
    assert!(world.state.why("cluster")[0].causes.iter().any(|cause| cause.what.contains("frozen")));

    let epoch = world.pg(pg).config.epoch;
    world.ok(promote(&world, pg, 2));
    let config = &world.pg(pg).config;
    assert_eq!((config.primary, config.in_sync.clone()), (Some(DeviceId(2)), vec![member(2, 1)]));
    assert_eq!((config.epoch, config.volatility), (epoch.next(), VolatilityId(2)), "nobody kept its memory (S14)");
    assert!(world.pg(pg).forced);
    let event = world.state.event(world.state.revision()).unwrap().clone();
    assert_eq!((event.severity, event.kind.as_str()), (Severity::Critical, "pg.promote"));
    assert!(event.what.contains("whatever only device 1 of sds s1 had is lost"), "{}", event.what);
    let Answer::TokensIssued(issued) = world.ok(tokens()) else { panic!() };
    assert_eq!(issued.token_ids.len(), 1, "the pool is in use again");

    // The old copy comes back, even as the same process, and is stale.
    world.ok(returned(1, 1, 1));
    assert_eq!(world.pg(pg).config.in_sync, [member(2, 1)]);
    assert_eq!(world.pg(pg).config.primary, Some(DeviceId(2)));
    assert_eq!(world.state.joiners(world.pg(pg)).map(|d| d.id).collect::<Vec<_>>(), [DeviceId(1)]);
    let accepted = world.propose(
        2,
        2,
        proto::Proposal {
            pool_id: 1,
            index: pg,
            expected_epoch: world.pg(pg).config.epoch.get(),
            in_sync: vec![super::world::member_message(2, 1), super::world::member_message(1, 1)],
            primary_device_id: 0,
            activate: false,
        },
    );
    assert!(accepted.accepted, "{}", accepted.why);
    assert!(!world.pg(pg).forced, "its primary serves: it has one state");
    assert!(world.reloaded() == world.state);
}

#[test]
fn an_in_sync_copy_that_comes_back_in_time_ends_it() {
    let (mut world, pg) = away();
    world.ok(freeze(pg, 2));
    let late = promote(&world, pg, 2);
    world.ok(returned(1, 1, 1));
    assert_eq!(world.pg(pg).config.primary, Some(DeviceId(1)), "nothing need be lost");
    assert_eq!(world.refused(late), ErrorCode::Precondition, "the leader's word comes too late");
    let Answer::TokensIssued(issued) = world.ok(tokens()) else { panic!() };
    assert_eq!(issued.token_ids.len(), 1);
}

#[test]
fn a_freeze_that_was_given_up_and_made_anew_is_waited_for_anew() {
    let (mut world, pg) = away();
    world.ok(freeze(pg, 2));
    let of_the_first = promote(&world, pg, 2);
    world.ok(freeze(pg, 2));
    assert_eq!(promote(&world, pg, 2), of_the_first, "said twice, it is one freeze");
    world.ok(unfreeze(pg));
    let Answer::TokensIssued(issued) = world.ok(tokens()) else { panic!() };
    assert_eq!(issued.token_ids.len(), 1, "tokens are issued again");
    assert_eq!(world.refused(unfreeze(pg)), ErrorCode::Precondition);
    world.ok(freeze(pg, 2));
    assert_eq!(
        world.refused(of_the_first),
        ErrorCode::Precondition,
        "tokens were issued since the freeze it waited for"
    );
}

#[test]
fn what_need_not_or_cannot_be_promoted_is_refused() {
    let (mut world, pg) = away();
    assert_eq!(world.refused(freeze(pg, 3)), ErrorCode::Precondition, "no copy there");
    assert_eq!(world.refused(freeze(pg, 1)), ErrorCode::Precondition, "not in service");
    assert_eq!(world.refused(freeze(999, 2)), ErrorCode::NotFound);
    let healthy = world.state.all_pgs().find(|pg| pg.config.primary.is_some()).unwrap();
    let (index, device) = (healthy.id.index.get(), healthy.replicas[0].get());
    assert_eq!(world.refused(freeze(index, device)), ErrorCode::Precondition, "nothing need be lost");
    world.ok(freeze(pg, 2));
    assert!(!world.state.old_copies_are_dead(world.pg(pg)), "nobody knows what the old process does");
}

#[test]
fn an_emptied_device_proves_that_its_old_copy_is_dead() {
    let (mut world, pg) = away();
    let Body::RegisterComponent(mut emptied) = register_sds(1, 11, 2) else { unreachable!() };
    emptied.devices[0].empty = true;
    world.ok(Body::RegisterComponent(emptied));
    assert_eq!(world.state.pg_state(world.pg(pg)), PgState::Unavailable);
    assert!(world.state.old_copies_are_dead(world.pg(pg)));
    world.ok(freeze(pg, 2));
    world.ok(promote(&world, pg, 2));
    assert_eq!(world.pg(pg).config.in_sync, [member(2, 1)]);
}
