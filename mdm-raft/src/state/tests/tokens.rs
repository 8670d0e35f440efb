//! Conversations about tokens.

use pflex_proto::ids::{LogTime, TokenId, VolumeId};

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

fn approve(name: &str, approved: bool) -> Body {
    Body::ApproveSdc(proto::ApproveSdc { name: name.into(), approved })
}

#[test]
fn an_approval_taken_back_ends_every_token_of_that_client_and_waits_for_all_servers() {
    let mut world = mapped();
    world.ok(create_sdc("d"));
    world.ok(map("w", "d"));
    let epochs = |world: &World| [1, 2].map(|id| world.state.volume(VolumeId(id)).unwrap().epoch.get());
    assert_eq!(epochs(&world), [1, 1]);
    let Answer::Unmapped(waits) = world.ok(approve("c", false)) else { panic!("it waits as an unmapping does") };
    assert_eq!((waits.volume_id, epochs(&world)), (0, [2, 1]), "only what it used");
    assert_eq!(world.refused(issue(1, &[1])), ErrorCode::Precondition);
    let Answer::Unmapped(_) = world.ok(approve("c", false)) else { panic!("said again, it waits again") };
    assert_eq!(epochs(&world), [2, 1], "and troubles nobody");
    assert!(matches!(world.ok(approve("c", true)), Answer::Done(_)));
    assert_eq!(issued(world.ok(issue(1, &[1]))).token_ids.len(), 1);
    assert_eq!(world.refused(approve("nobody", true)), ErrorCode::NotFound);
}

#[test]
fn where_clients_need_an_approval_new_ones_wait_for_it() {
    let mut world = mapped();
    let restrict = proto::Setting { key: "sdc.approval".into(), value: 1, to_default: false };
    world.ok(Body::ChangeSettings(proto::ChangeSettings { entries: vec![restrict] }));
    assert_eq!(issued(world.ok(issue(1, &[1]))).token_ids.len(), 1, "who was there keeps what it has");
    world.ok(create_sdc("d"));
    assert!(!world.state.sdc_by_name("d").unwrap().approved);
    world.ok(approve("d", true));
    assert!(world.state.sdc_by_name("d").unwrap().approved);
    assert!(world.reloaded().sdc_by_name("d").unwrap().approved);
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

#[test]
fn a_record_taken_from_either_end_or_the_middle_breaks_the_chain() {
    let mut world = mapped();
    for _ in 0..4 {
        world.ok(issue(1, &[1]));
    }
    let (chain, records) = world.state.token_records();
    assert_eq!(chain.verify(&records), Ok(()));
    for (taken, found) in [(0, 2), (1, 3), (3, 4)] {
        let mut records = records.clone();
        records.remove(taken);
        assert_eq!(chain.verify(&records), Err(TokenId(found)), "without record {taken}");
    }
}
