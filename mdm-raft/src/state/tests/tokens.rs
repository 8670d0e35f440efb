//! Conversations about tokens.

use pflex_proto::ids::{LogTime, TokenId};

use super::world::{GIB, World, create_sdc, create_volume, map, register_sdc, unmap};
use crate::{
    command::{Answer, Body, ErrorCode, proto},
    state::limits::{TOKEN_LIFE_MS, TOKEN_RETENTION_MS},
};

fn issue(process: u8, volumes: &[u64]) -> Body {
    Body::IssueTokens(proto::IssueTokens { sdc_id: 1, process_id: vec![process; 16], volume_ids: volumes.to_vec() })
}

fn mapped() -> World {
    let mut world = World::with_sds(2);
    world.ok(create_volume("v", GIB));
    world.ok(create_volume("w", GIB));
    world.ok(create_sdc("c"));
    world.ok(register_sdc("c", 1));
    world.ok(map("v", "c"));
    world
}

fn issued(answer: Answer) -> proto::TokensIssued {
    let Answer::TokensIssued(issued) = answer else { panic!("{answer:?}") };
    issued
}

#[test]
fn a_token_is_issued_for_what_is_mapped_and_for_60_seconds() {
    let mut world = mapped();
    let answer = issued(world.ok(issue(1, &[1, 2, 3])));
    assert_eq!(answer.token_ids, [1]);
    assert_eq!(answer.refused.iter().map(|r| r.volume_id).collect::<Vec<_>>(), [2, 3]);
    let token = world.state.token(TokenId(1)).unwrap();
    assert_eq!((token.issued, token.expires), (LogTime(world.now), LogTime(world.now + TOKEN_LIFE_MS)));
    assert_eq!((token.length.get(), token.volume_epoch.get()), (GIB, 1));
    world.ok(unmap("v", "c"));
    assert_eq!(issued(world.ok(issue(1, &[1]))).refused.len(), 1);
}

#[test]
fn tokens_go_to_one_process_per_sdc() {
    let mut world = mapped();
    assert_eq!(world.refused(issue(2, &[1])), ErrorCode::Stale);
    world.ok(register_sdc("c", 2));
    assert_eq!(world.refused(issue(1, &[1])), ErrorCode::Stale, "the newer process has taken over (S9)");
    assert_eq!(issued(world.ok(issue(2, &[1]))).token_ids.len(), 1);
}

#[test]
fn uses_add_up_and_the_chain_holds_through_pruning() {
    let mut world = mapped();
    for _ in 0..5 {
        world.now += 15_000;
        world.ok(issue(1, &[1]));
    }
    let ack = Body::AckTokens(proto::AckTokens {
        sds_id: 1,
        uses: vec![
            proto::TokenUse { token_id: 1, reads: 2, writes: 1, read_bytes: 8192, written_bytes: 4096 },
            proto::TokenUse { token_id: 999, reads: 1, ..Default::default() },
        ],
    });
    world.ok(ack.clone());
    world.ok(ack);
    assert_eq!(world.state.token(TokenId(1)).unwrap().used.reads, 4);
    assert_eq!(world.state.verify_token_chain(), Ok(()));

    world.now += TOKEN_LIFE_MS + TOKEN_RETENTION_MS - 30_000;
    world.ok(issue(1, &[1]));
    assert!(world.state.token(TokenId(1)).is_none(), "old records go");
    assert!(world.state.token(TokenId(5)).is_some());
    assert_eq!(world.state.verify_token_chain(), Ok(()));
    assert_eq!(world.reloaded().verify_token_chain(), Ok(()));
}

#[test]
fn a_changed_record_breaks_the_chain() {
    let mut world = mapped();
    for _ in 0..3 {
        world.ok(issue(1, &[1]));
    }
    world.state.tokens.update(TokenId(2), |token| token.expires = LogTime(u64::MAX));
    assert_eq!(world.state.verify_token_chain(), Err(TokenId(2)));
}
