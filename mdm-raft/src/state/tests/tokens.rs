//! Conversations about tokens.

use pflex_proto::{
    ids::{ByteOffset, LogTime, OperationId, ProcessId, TokenId, VolumeId},
    token::Plan,
};

use super::world::{GIB, World, create_sdc, create_sds, create_volume, map, register_sdc, register_sds, unmap};
use crate::{
    command::{Answer, Body, ErrorCode, proto},
    state::{
        Table,
        limits::{TOKEN_LIFE_MS, TOKEN_RETENTION_MS},
        model::{Access, IoToken},
        rows::Row as _,
    },
};

fn issue(process: u8, volumes: &[u64]) -> Body {
    Body::IssueTokens(proto::IssueTokens {
        sdc_id: 1,
        process_id: vec![process; 16],
        volume_ids: volumes.to_vec(),
        plans: vec![],
    })
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
    assert_eq!((token.to.0, token.volume_epoch.get()), (GIB, 1));
    world.ok(unmap("v", "c"));
    assert_eq!(issued(world.ok(issue(1, &[1]))).refused.len(), 1);
}

fn planned(plan: proto::IoPlan) -> Body {
    let process_id = vec![1; 16];
    Body::IssueTokens(proto::IssueTokens { sdc_id: 1, process_id, volume_ids: Vec::new(), plans: vec![plan] })
}

#[test]
fn in_per_io_mode_each_operation_has_a_token_that_names_it() {
    let mut world = mapped();
    world.ok(Body::CreateVolume(proto::CreateVolume {
        token_mode: proto::TokenMode::PerIo.into(),
        ..match create_volume("p", GIB) {
            Body::CreateVolume(create) => create,
            other => panic!("{other:?}"),
        }
    }));
    world.ok(map("p", "c"));
    let write = proto::IoPlan {
        volume_id: 3,
        device_id: 1,
        operation_id: 77,
        write: true,
        from_byte: 1 << 20,
        to_byte: (1 << 20) + 4096,
    };
    let one = |world: &mut World, plan: &proto::IoPlan| issued(world.ok(planned(*plan))).planned.remove(0);
    let id = TokenId(one(&mut world, &write).token_id);
    let token = world.state.token(id).unwrap();
    let plan = token.plan.unwrap();
    assert_eq!((plan.device.get(), plan.operation.get(), token.access), (1, 77, Access::ReadWrite));
    assert_eq!(plan.incarnation, world.state.device(plan.device).unwrap().incarnation);
    assert_eq!((token.from.0, token.to.0), (1 << 20, (1 << 20) + 4096));
    let read = one(&mut world, &proto::IoPlan { write: false, ..write });
    let token = world.state.token(TokenId(read.token_id)).unwrap();
    assert_eq!((token.plan.unwrap().operation.get(), token.access), (0, Access::ReadOnly));
    let Body::IssueTokens(mut many) = planned(write) else { panic!("it asks for tokens") };
    many.plans = vec![write; 513];
    assert_eq!(world.refused(Body::IssueTokens(many)), ErrorCode::Limit, "records of others would have to go for it");
    // A device of the pool that no group has a copy on yet.
    world.ok(create_sds("s3"));
    world.ok(register_sds(3, 3, 1));
    for (wrong, why) in [
        (proto::IoPlan { volume_id: 1, ..write }, "lease mode"),
        (proto::IoPlan { volume_id: 9, ..write }, "no such volume"),
        (proto::IoPlan { device_id: 99, ..write }, "no device"),
        (proto::IoPlan { device_id: 3, ..write }, "no copy of the chunk"),
        (proto::IoPlan { from_byte: write.to_byte, ..write }, "not within one chunk"),
        (proto::IoPlan { to_byte: 3 << 20, ..write }, "not within one chunk"),
        (proto::IoPlan { from_byte: GIB, to_byte: GIB + 1, ..write }, "not within one chunk"),
    ] {
        let refused = one(&mut world, &wrong);
        assert!(refused.token_id == 0 && refused.why.contains(why), "{wrong:?}: {}", refused.why);
    }
    let (chain, records) = world.state.token_records();
    assert_eq!(chain.verify(&records), Ok(()));
    let mut altered = records.clone();
    altered[0].plan = altered[0].plan.map(|plan| Plan { operation: OperationId(78), ..plan });
    assert_eq!(chain.verify(&altered), Err(id), "what a token was for is in the chain");
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

/// What `token audit` reads is what was loaded from the store.
#[test]
fn a_record_that_was_altered_taken_or_swapped_in_the_store_is_found_by_the_audit() {
    let mut world = mapped();
    for _ in 0..4 {
        world.now += 15_000;
        world.ok(issue(1, &[1]));
    }
    assert_eq!(world.reloaded().verify_token_chain(), Ok(()));
    let good = world.store.clone();
    let at = |id| (Table::IoTokens, IoToken::encode_key(TokenId(id)));
    for id in 1..=4 {
        let row = IoToken::decode(&at(id).1, &good[&at(id)]).unwrap();
        for altered in [
            IoToken { volume: VolumeId(2), ..row.clone() },
            IoToken { expires: LogTime(row.expires.get() + 1), ..row.clone() },
            IoToken { access: Access::ReadOnly, ..row.clone() },
            IoToken { process: ProcessId::from_bytes([9; 16]), ..row.clone() },
            IoToken { from: ByteOffset(4096), ..row.clone() },
            IoToken { to: ByteOffset(4096), ..row.clone() },
        ] {
            world.store.insert(at(id), altered.encode());
            assert_eq!(world.reloaded().verify_token_chain(), Err(TokenId(id)), "{altered:?}");
        }
        // Taken out: the next one does not fit the one before, or the end is not the chain's.
        world.store = good.clone();
        world.store.remove(&at(id));
        assert!(world.reloaded().verify_token_chain().is_err(), "without {id}");
        world.store = good.clone();
    }
    world.store.insert(at(2), good[&at(3)].clone());
    assert_eq!(world.reloaded().verify_token_chain(), Err(TokenId(2)));
    // What it was used for grows, and is no part of what was issued.
    world.store = good.clone();
    let mut used = IoToken::decode(&at(2).1, &good[&at(2)]).unwrap();
    used.used.reads = 7;
    world.store.insert(at(2), used.encode());
    assert_eq!(world.reloaded().verify_token_chain(), Ok(()));
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
