//! Conversations about the generations of the secret that signs tokens (S21).

use pflex_proto::ids::{KeyId, TokenId};

use super::world::{GIB, World, create_sdc, create_volume, map, register_sdc};
use crate::{
    command::{Body, ErrorCode, proto},
    state::limits::TOKEN_LIFE_MS,
};

pub(super) fn rotate() -> Body {
    Body::RotateSecret(proto::RotateSecret { secret: vec![0xAB; 32] })
}

pub(super) fn sign(key_id: u32) -> Body {
    Body::SignWithSecret(proto::SignWithSecret { key_id })
}

pub(super) fn drop_old(key_id: u32) -> Body {
    Body::DropSecret(proto::DropSecret { key_id })
}

fn issue() -> Body {
    Body::IssueTokens(proto::IssueTokens { sdc_id: 1, process_id: vec![1; 16], volume_ids: vec![1], plans: vec![] })
}

fn mapped() -> World {
    let mut world = World::with_sds(2);
    world.ok(create_volume("v", GIB));
    world.ok(create_sdc("c"));
    world.ok(register_sdc("c", 1));
    world.ok(map("v", "c"));
    world
}

fn key_of(world: &World, token: u64) -> KeyId {
    world.state.token(TokenId(token)).unwrap().key
}

#[test]
fn a_generation_is_made_then_signs_and_the_old_one_goes_with_its_last_token() {
    let mut world = mapped();
    assert_eq!(world.refused(sign(2)), ErrorCode::Stale, "there is no next one");
    assert_eq!(world.refused(drop_old(1)), ErrorCode::Stale, "it signs");
    world.ok(rotate());
    assert_eq!(world.state.next_key(), Some(KeyId(2)));
    world.ok(issue());
    assert_eq!(key_of(&world, 1), KeyId(1), "the next one does not sign yet");
    assert_eq!(world.refused(rotate()), ErrorCode::Precondition, "one at a time");
    assert_eq!(world.refused(sign(1)), ErrorCode::Stale);

    world.now += 5_000;
    world.ok(sign(2));
    world.ok(issue());
    assert_eq!((key_of(&world, 1), key_of(&world, 2)), (KeyId(1), KeyId(2)));
    assert_eq!(world.state.all_secrets().len(), 2, "tokens of the old one still verify");
    assert_eq!(world.refused(rotate()), ErrorCode::Precondition, "one at a time");
    assert_eq!(world.refused(sign(2)), ErrorCode::Stale, "it signs already");
    world.now += TOKEN_LIFE_MS;
    assert_eq!(world.refused(drop_old(1)), ErrorCode::Precondition, "a token could expire just now");
    assert_eq!(world.refused(drop_old(2)), ErrorCode::Stale);
    world.now += 1;
    assert!(world.state.token(TokenId(1)).unwrap().expires.get() < world.now);
    world.ok(drop_old(1));
    assert!(world.state.secret(KeyId(1)).is_none());
    world.ok(rotate());
    assert_eq!(world.state.next_key(), Some(KeyId(3)), "numbers are never used again");
    assert!(world.reloaded() == world.state);
}

#[test]
fn each_step_leaves_an_event_and_none_shows_the_secret() {
    let mut world = mapped();
    world.ok(rotate());
    world.ok(sign(2));
    world.now += TOKEN_LIFE_MS + 1;
    world.ok(drop_old(1));
    let said: Vec<String> = world
        .state
        .events_after(pflex_proto::ids::Revision(0))
        .filter(|event| event.kind == "cluster.rotate-secret")
        .map(|event| format!("{event:?}"))
        .collect();
    assert_eq!(said.len(), 3, "{said:?}");
    let shown = format!("{said:?} {:?} {:?} {:?}", world.state, world.last, rotate());
    assert!(!shown.contains("171, 171") && !shown.contains("ABAB"), "{shown}");
    let short = Body::RotateSecret(proto::RotateSecret { secret: vec![1; 31] });
    assert_eq!(world.refused(short), ErrorCode::Invalid);
}
