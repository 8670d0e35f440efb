//! The ordinary cases, each by name.

use super::*;
use crate::device::{Fault, FaultyDevice, Injected, OpKind};

fn opened(units: u32) -> (Arc<MemoryDevice>, Store) {
    let (device, meta) = formatted(units);
    let (store, _) = Store::open(device.clone(), meta, CONFIG).unwrap();
    (device, store)
}

#[test]
fn a_full_device_refuses_new_chunks_before_anything_changes_and_takes_overwrites() {
    let (_, mut store) = opened(3);
    for index in 0..3 {
        store.apply(write(pg(0), chunk(index), index + 1, run(0, 256, 1))).unwrap();
    }
    settle(&mut store);
    let error = store.apply(write(pg(0), chunk(3), 9, run(0, 1, 1))).unwrap_err();
    assert!(matches!(error, ApplyError::NoSpace { .. }), "{error}");
    assert_eq!((store.chunk(chunk(3)), store.find_operation(pg(0), CLIENT, OperationId(9))), (None, None));
    assert!(!store.reserve(pg(0), chunk(3), 0));
    assert!(store.reserve(pg(0), chunk(0), 0), "it has its unit");
    for sequence in 10..20 {
        store.apply(write(pg(0), chunk(0), sequence, run(0, 256, sequence as u32))).unwrap();
    }
    settle(&mut store);
    assert_eq!(tags(&read_now(&mut store, chunk(0), BlockRange::WHOLE).unwrap().data), [19; 256]);
    // Zeros need no space and give it back.
    store.apply(write(pg(0), chunk(1), 30, run(0, 256, 0))).unwrap();
    settle(&mut store);
    poll_durable(&mut store).unwrap();
    store.apply(write(pg(0), chunk(3), 31, run(0, 1, 7))).unwrap();
    let tombstone = ChunkEntry { chunk: chunk(1), version: Some(version(30)) };
    assert_eq!(store.chunk(chunk(1)), Some(tombstone));
}

#[test]
fn what_is_kept_is_for_those_who_may_take_it() {
    let (_, mut store) = opened(4);
    assert!(store.reserve(pg(0), chunk(0), 2) && store.reserve(pg(0), chunk(1), 2));
    assert!(!store.reserve(pg(0), chunk(2), 2), "two are left");
    assert!(store.reserve(pg(0), chunk(0), 2), "it has its place");
    assert!(
        store.reserve(pg(1), chunk(2), 0) && store.reserve(pg(1), chunk(3), 0) && !store.reserve(pg(1), chunk(4), 0)
    );
}

#[test]
fn what_holds_data_is_told_by_block_with_every_change_asked_for() {
    let (_, mut store) = opened(3);
    let told = |store: &Store, asked: BlockRange| -> Vec<u16> {
        let written = store.written(chunk(0), asked);
        (0..WHOLE).filter(|block| written[usize::from(*block) / 64] >> (block % 64) & 1 == 1).collect()
    };
    assert!(told(&store, BlockRange::WHOLE).is_empty(), "there is no such chunk");
    store.apply(write(pg(0), chunk(0), 1, run(60, 10, 1))).unwrap();
    let all: Vec<_> = (60..70).collect();
    assert_eq!(told(&store, BlockRange::WHOLE), all, "not durable yet, and data already");
    settle(&mut store);
    assert_eq!(told(&store, BlockRange::WHOLE), all);
    assert_eq!(told(&store, range(65, 100)), (65..70).collect::<Vec<_>>());
    store.apply(write(pg(0), chunk(0), 2, run(60, 4, 0))).unwrap();
    assert_eq!(told(&store, BlockRange::WHOLE), (64..70).collect::<Vec<_>>(), "zeros are holes again");
    store.apply(write(pg(0), chunk(0), 3, run(0, 256, 0))).unwrap();
    settle(&mut store);
    assert!(told(&store, BlockRange::WHOLE).is_empty());
}

#[test]
fn reserved_space_is_kept_for_its_chunk() {
    let (_, mut store) = opened(2);
    assert!(
        store.reserve(pg(0), chunk(0), 0) && store.reserve(pg(0), chunk(0), 0) && store.reserve(pg(1), chunk(1), 0)
    );
    assert!(!store.reserve(pg(0), chunk(2), 0));
    assert!(matches!(store.apply(write(pg(0), chunk(2), 1, run(0, 1, 1))), Err(ApplyError::NoSpace { .. })));
    store.apply(write(pg(0), chunk(0), 2, run(0, 1, 1))).unwrap();
    store.release_reservations(pg(1));
    store.apply(write(pg(0), chunk(2), 3, run(0, 1, 1))).unwrap();
    assert_eq!(store.stats().units_reserved, 0);
}

#[test]
fn a_ring_far_smaller_than_the_work_never_fails_it() {
    let (_, mut store) = opened(8);
    let mut waited = false;
    for sequence in 1..=40_000_u64 {
        let first = (sequence * 7 % 256) as u16;
        store.apply(write(pg(0), chunk(sequence % 8), sequence, run(first, 1, sequence as u32))).unwrap();
        waited |= store.stats().waiting_changes > 0;
        if sequence % 4000 == 0 {
            settle(&mut store);
        }
    }
    settle(&mut store);
    let stats = store.stats();
    assert!(stats.checkpoints > 5 && waited, "{stats:?}");
    let last = read_now(&mut store, chunk(40_000 % 8), range((40_000_u64 * 7 % 256) as u16, 1)).unwrap();
    assert_eq!(tags(&last.data), [40_000]);
    close(store).unwrap();
}

#[test]
fn corruption_is_named_and_never_returned_and_repaired_only_at_its_version() {
    let (device, mut store) = opened(2);
    store.apply(write(pg(0), chunk(0), 1, run(0, 256, 3))).unwrap();
    settle(&mut store);
    device.corrupt(geometry(2).unit_offset(0) + 5 * 4096 + 17);
    let error = read_now(&mut store, chunk(0), range(4, 4)).unwrap_err();
    assert!(matches!(error, ReadError::Corrupt { block: 5, .. }), "{error}");
    assert_eq!(tags(&read_now(&mut store, chunk(0), range(6, 4)).unwrap().data), [3; 4]);
    let stale = store.repair(pg(0), chunk(0), version(9), run(5, 1, 3)).unwrap_err();
    assert!(matches!(stale, ApplyError::WrongState { .. }), "{stale}");
    store.repair(pg(0), chunk(0), version(1), run(5, 1, 3)).unwrap();
    settle(&mut store);
    assert_eq!(tags(&read_now(&mut store, chunk(0), BlockRange::WHOLE).unwrap().data), [3; 256]);
    assert_eq!(store.chunk(chunk(0)).unwrap().version, Some(version(1)));
}

#[test]
fn any_failed_write_or_flush_takes_the_device_out_of_service() {
    let cases = [
        (OpKind::WriteDurable, 0, "a journal write"),
        (OpKind::Write, 0, "a data write"),
        (OpKind::Sync, 0, "a data flush"),
    ];
    for (kind, after, during) in cases {
        let (device, meta) = formatted(2);
        let faulty = FaultyDevice::new(device);
        let (mut store, _) = Store::open(faulty.clone(), meta, CONFIG).unwrap();
        faulty.inject(Fault { kind, after, within: None, injected: Injected::Error });
        store.apply(write(pg(0), chunk(0), 1, run(0, 256, 3))).unwrap();
        let poison = std::iter::repeat_with(|| poll_durable(&mut store)).find_map(Result::err).unwrap();
        assert_eq!(poison.during, during);
        assert!(matches!(store.apply(write(pg(0), chunk(0), 2, run(0, 1, 3))), Err(ApplyError::Poisoned(_))));
        assert!(matches!(read_now(&mut store, chunk(0), range(0, 1)), Err(ReadError::Poisoned(_))));
        assert!(poll_durable(&mut store).unwrap().is_empty(), "told once");
    }
}

#[test]
fn a_failed_read_is_only_that_reads_affair() {
    let (device, meta) = formatted(2);
    let faulty = FaultyDevice::new(device);
    let (mut store, _) = Store::open(faulty.clone(), meta, CONFIG).unwrap();
    store.apply(write(pg(0), chunk(0), 1, run(0, 256, 3))).unwrap();
    settle(&mut store);
    for injected in [Injected::Error, Injected::FlipBit] {
        faulty.inject(Fault { kind: OpKind::Read, after: 0, within: None, injected });
        assert!(read_now(&mut store, chunk(0), range(0, 2)).is_err());
        assert!(read_now(&mut store, chunk(0), range(0, 2)).is_ok());
    }
}

#[test]
fn versions_ids_and_states_are_checked() {
    let (_, mut store) = opened(4);
    store.apply(write(pg(0), chunk(0), 5, run(0, 1, 1))).unwrap();
    assert!(matches!(store.apply(write(pg(0), chunk(0), 5, run(0, 1, 1))), Err(ApplyError::StaleVersion { .. })));
    assert!(matches!(store.apply(write(pg(1), chunk(0), 6, run(0, 1, 1))), Err(ApplyError::WrongPg { .. })));
    let mut crooked = run(0, 2, 1);
    crooked.checksums.pop();
    assert!(matches!(store.apply(write(pg(0), chunk(0), 6, crooked)), Err(ApplyError::BadRun { .. })));
    store.mark_unsynced(pg(0), chunk(0)).unwrap();
    assert!(matches!(store.apply(write(pg(0), chunk(0), 7, run(0, 1, 1))), Err(ApplyError::WrongState { .. })));
    store.apply(write(pg(0), chunk(1), 8, run(0, 1, 1))).unwrap();
    store.apply(write(pg(0), chunk(2), 9, run(0, 1, 1))).unwrap();
    let unsynced = ChunkEntry { chunk: chunk(0), version: None };
    let last = ChunkEntry { chunk: chunk(2), version: Some(version(9)) };
    assert_eq!(store.versions(pg(0), Some(Sequence(8))), [last, unsynced]);
    assert_eq!(store.versions(pg(0), None).len(), 3);
    store.write_blocks(pg(0), chunk(0), vec![run(0, 1, 4), run(2, 1, 5)]).unwrap();
    store.set_version(pg(0), chunk(0), Some(version(2))).unwrap();
    let sums = store.checksums(chunk(0)).unwrap();
    assert_eq!(sums.version, Some(version(2)));
    assert_eq!(sums.blocks[0], run(0, 1, 4).checksums[0]);
    assert_eq!(sums.blocks[1..2], zero_checksums(1));
    settle(&mut store);
    assert_eq!(tags(&read_now(&mut store, chunk(0), range(0, 4)).unwrap().data), [4, 0, 5, 0]);
}

#[test]
fn ids_are_trimmed_replaced_and_survive() {
    let (device, meta) = formatted(4);
    let (mut store, _) = Store::open(device.clone(), meta.clone(), CONFIG).unwrap();
    for sequence in 1..=5 {
        let mut write = write(pg(0), chunk(0), sequence, run(0, 1, 1));
        write.origin.low_water = OperationId(sequence.saturating_sub(2));
        store.apply(write).unwrap();
    }
    let ids = |store: &Store| store.operations(pg(0)).entries.iter().map(|entry| entry.id.0).collect::<Vec<_>>();
    assert_eq!(ids(&store), [3, 4, 5]);
    let other = Operation { client: CLIENT, id: OperationId(40), version: version(4), chunk: chunk(0) };
    let table = OperationSnapshot { entries: vec![other], low_waters: vec![(CLIENT, OperationId(40))] };
    store.replace_operations(pg(0), table.clone(), Sequence(1), VolatilityId(1), Sequence(7)).unwrap();
    assert_eq!(ids(&store), [40]);
    settle(&mut store);
    for _ in 0..2 {
        let opened;
        (store, opened) = Store::open(device.clone(), meta.clone(), CONFIG).unwrap();
        assert_eq!(opened.pgs[0].highest.sequence, Sequence(7), "given once, if only heard of here (S25)");
        assert_eq!((store.operations(pg(0)), store.watermark(pg(0)).unwrap().0), (table.clone(), Sequence(1)));
    }
}

#[test]
fn dropped_groups_and_trimmed_volumes_are_gone_and_their_space_is_free() {
    let (device, meta) = formatted(4);
    let (mut store, _) = Store::open(device.clone(), meta.clone(), CONFIG).unwrap();
    for index in 0..4 {
        store.apply(write(pg(index as u32 % 2), chunk(index), index + 1, run(0, 256, 1))).unwrap();
    }
    store.drop_pg(pg(0)).unwrap();
    assert!(matches!(store.apply(write(pg(0), chunk(0), 9, run(0, 1, 1))), Err(ApplyError::Dropping { .. })));
    settle(&mut store);
    poll_durable(&mut store).unwrap();
    assert_eq!((store.stats().units_available, store.versions(pg(0), None)), (2, vec![]));
    store.apply(write(pg(0), chunk(0), 1, run(0, 1, 8))).unwrap();
    store.trim_volume(pg(1), VtreeId(9)).unwrap().unwrap();
    settle(&mut store);
    poll_durable(&mut store).unwrap();
    assert_eq!(store.stats().units_available, 3);
    for reopen in 0..2 {
        let (mut store, report) = Store::open(device.clone(), meta.clone(), CONFIG).unwrap();
        assert_eq!(report.pgs.iter().map(|pg| pg.chunks).collect::<Vec<_>>(), [1, 0]);
        assert_eq!(tags(&read_now(&mut store, chunk(0), range(0, 2)).unwrap().data), [8, 0]);
        if reopen == 0 {
            close(store).unwrap();
        }
    }
}

/// As `fstrim` of a file system whose free space is in many pieces.
#[test]
fn a_chunk_that_is_trimmed_in_pieces_gives_its_space_back() {
    let (device, meta) = formatted(4);
    let (mut store, _) = Store::open(device.clone(), meta.clone(), CONFIG).unwrap();
    let mut sequence = 0;
    let mut apply = |store: &mut Store, first, count, tag| {
        sequence += 1;
        store.apply(write(pg(0), chunk(0), sequence, run(first, count, tag))).unwrap();
    };
    for reopened in [false, true] {
        apply(&mut store, 3, 10, 1);
        apply(&mut store, 100, 50, 2);
        if reopened {
            settle(&mut store);
            store = Store::open(device.clone(), meta.clone(), CONFIG).unwrap().0;
        }
        apply(&mut store, 0, 120, 0);
        settle(&mut store);
        assert_eq!(store.stats().units_available, 3, "blocks 120 to 149 are data");
        apply(&mut store, 120, 40, 0);
        settle(&mut store);
        poll_durable(&mut store).unwrap();
        assert_eq!(store.stats().units_available, 4, "nothing is left of it");
        assert_eq!(tags(&read_now(&mut store, chunk(0), BlockRange::WHOLE).unwrap().data), [0; 256]);
        assert!(store.chunk(chunk(0)).is_some(), "its version stays");
    }
    let (store, _) = Store::open(device, meta, CONFIG).unwrap();
    assert_eq!(store.stats().units_available, 4);
}

#[test]
fn a_deleted_tree_is_purged_piece_by_piece_and_its_clients_are_forgotten_for_good() {
    let (device, meta) = formatted(8);
    let (mut store, _) = Store::open(device.clone(), meta.clone(), CONFIG).unwrap();
    let other = ChunkId { vtree: VtreeId(12), ..chunk(0) };
    for index in 0..5 {
        store.apply(write(pg(index as u32 % 2), chunk(index), index + 1, run(0, 1, 1))).unwrap();
    }
    let kept = Client { sdc: SdcId(3), volume: VolumeId(12) };
    let origin = Origin { client: kept, operation: OperationId(1), low_water: OperationId(0) };
    store.apply(OrderedWrite { origin, ..write(pg(0), other, 6, run(0, 1, 2)) }).unwrap();
    store.mark_unsynced(pg(1), chunk(7)).unwrap();
    settle(&mut store);
    assert_eq!(store.vtrees(), [VtreeId(9), VtreeId(12)]);
    let mut purged = Vec::new();
    loop {
        let count = store.trim_tree(VtreeId(9), 2).unwrap();
        if count == 0 {
            break;
        }
        purged.push(count);
    }
    store.forget_clients(|client| client == CLIENT);
    settle(&mut store);
    assert_eq!(purged, [2, 2, 1], "and the one that is being filled stays");
    close(store).unwrap();
    let (store, report) = Store::open(device, meta, CONFIG).unwrap();
    assert_eq!(store.versions(pg(1), None).iter().map(|entry| entry.chunk).collect::<Vec<_>>(), [chunk(7)]);
    let clients: Vec<_> =
        report.pgs.iter().flat_map(|pg| &pg.operations.low_waters).map(|(client, _)| *client).collect();
    assert_eq!(clients, [kept], "also after a restart");
    assert_eq!(store.stats().units_available, 7);
}

#[test]
fn tombstones_are_forgotten_only_when_told() {
    let (_, mut store) = opened(2);
    store.apply(write(pg(0), chunk(0), 1, run(0, 256, 3))).unwrap();
    store.apply(write(pg(0), chunk(0), 2, run(0, 256, 0))).unwrap();
    settle(&mut store);
    assert_eq!(store.versions(pg(0), Some(Sequence(1))).len(), 1);
    assert_eq!(store.forget_tombstones(pg(0), Sequence(1)).unwrap(), None);
    assert!(store.forget_tombstones(pg(0), Sequence(2)).unwrap().is_some());
    settle(&mut store);
    assert!(store.versions(pg(0), None).is_empty());
    assert!(store.find_operation(pg(0), CLIENT, OperationId(2)).is_some(), "who did it is still known");
}

#[test]
fn sub_block_writes_are_merged() {
    let range = BlockRange::around(4000, 200).unwrap();
    assert_eq!((range.first(), range.count()), (0, 2));
    let (bytes, checksums) = patch_blocks(&[1; 8192], 4000, &[2; 200]).unwrap();
    assert_eq!((bytes[3999], bytes[4000], bytes[4199], bytes[4200]), (1, 2, 2, 1));
    assert_eq!(checksums, [crc32c::crc32c(&bytes[..4096]), crc32c::crc32c(&bytes[4096..])]);
    assert_eq!(patch_blocks(&[1; 4096], 4000, &[2; 200]), None);
    assert_eq!(BlockRange::around(1 << 20, 1), None);
    assert_eq!(BlockRange::from_bytes(512, 4096), None);
}

/// Of a group of five chunks, one of them unsynced and one a tombstone: chunks that are left, and whether there is a row.
fn reopened(device: &Arc<MemoryDevice>, meta: &Arc<MemoryMeta>) -> (Store, usize, bool) {
    let (store, report) = Store::open(device.clone(), meta.clone(), CONFIG).unwrap();
    let left = store.versions(pg(0), None).len();
    (store, left, report.configs.iter().any(|(group, _)| *group == pg(0)))
}

fn known() -> KnownConfig {
    KnownConfig {
        generation: ClusterGeneration(1),
        epoch: Epoch(3),
        primary: None,
        in_sync: vec![],
        replicas: vec![],
        volatility: VolatilityId(1),
        served: false,
    }
}

/// How a crash after each step of dropping a copy leaves it; `row_last` is the planted bug.
fn drop_with_crashes(row_last: bool) -> Result<usize, String> {
    let mut points = 0;
    for crash_after in 0.. {
        let (device, meta) = formatted(8);
        let (mut store, _) = Store::open(device.clone(), meta.clone(), CONFIG).unwrap();
        for index in 0..4 {
            store.apply(write(pg(0), chunk(index), index + 1, run(0, 256, u32::from(index != 3)))).unwrap();
        }
        store.mark_unsynced(pg(0), chunk(4)).unwrap();
        store.apply(write(pg(1), chunk(9), 1, run(0, 1, 7))).unwrap();
        store.remember(&[(pg(0), known()), (pg(1), known())], Box::new(|result| result.unwrap()));
        settle(&mut store);
        let mut steps = 0;
        let mut crashed = false;
        if !row_last {
            if crash_after == 0 {
                crashed = true;
            } else {
                store.forget_config(pg(0), Box::new(|result| result.unwrap()));
                steps += 1;
            }
        }
        while !crashed {
            if steps == crash_after {
                crashed = true;
                continue;
            }
            steps += 1;
            if store.drop_some(pg(0), 2).unwrap() == Dropped::All {
                break;
            }
            settle(&mut store);
        }
        drop(store);
        let (mut store, left, row) = reopened(&device, &meta);
        if row && left != 5 {
            return Err(format!(
                "after {steps} steps {left} of 5 chunks are left, and a row that says they are a copy"
            ));
        }
        points += 1;
        if !crashed {
            assert_eq!((left, row), (0, false));
            return Ok(points);
        }
        // The next life finishes it.
        store.forget_config(pg(0), Box::new(|result| result.unwrap()));
        while store.drop_some(pg(0), 2).unwrap() != Dropped::All {
            settle(&mut store);
        }
        poll_durable(&mut store).unwrap();
        assert_eq!(store.stats().units_available, 7, "its space is back, the other group's is not");
        drop(store);
        let (_, report) = Store::open(device, meta, CONFIG).unwrap();
        assert_eq!(report.pgs.iter().map(|group| group.pg).collect::<Vec<_>>(), [pg(1)]);
        assert_eq!(report.configs.iter().map(|(group, _)| *group).collect::<Vec<_>>(), [pg(1)]);
    }
    unreachable!()
}

#[test]
fn a_copy_is_dropped_piece_by_piece_and_half_of_it_never_has_a_row() {
    assert!(drop_with_crashes(false).unwrap() >= 5);
    let broken = drop_with_crashes(true).unwrap_err();
    assert!(broken.starts_with("after 1 steps 3 of 5"), "data before the row is noticed: {broken}");
}

/// S25: what travels after a short absence is what was written meanwhile, however much there is.
#[test]
fn after_a_short_absence_lists_are_as_long_as_what_was_written_meanwhile() {
    const CHUNKS: u64 = 10_000;
    let (_, mut store) = opened(4);
    // Zeros need no space: here it is the lists that matter.
    for index in 0..CHUNKS {
        store.apply(write(pg(0), chunk(index), index + 1, run(0, 256, 0))).unwrap();
        if index % 512 == 0 {
            settle(&mut store);
        }
    }
    settle(&mut store);
    let left_at = Sequence(CHUNKS);
    assert!(store.versions(pg(0), Some(left_at)).is_empty());
    for index in 0..37 {
        store.apply(write(pg(0), chunk(index * 100), CHUNKS + 1 + index, run(0, 256, 0))).unwrap();
    }
    settle(&mut store);
    let (short, full) = (store.versions(pg(0), Some(left_at)).len(), store.versions(pg(0), None).len());
    println!("{short} entries of {full} travel");
    assert_eq!((short, full), (37, CHUNKS as usize));
}

#[test]
fn blocks_go_to_their_places_late_and_while_the_device_rests() {
    let (_, mut store) = opened(8);
    let bytes = store.stats().journal_bytes;
    let mut sequence = 0;
    let mut some = |store: &mut Store| {
        sequence += 1;
        // Always the same few blocks: in their places they would be written again and again.
        store.apply(write(pg(0), chunk(sequence % 8), sequence, run(0, 15, sequence as u32))).unwrap();
        settle(store);
    };
    while store.stats().journal_used_bytes < bytes / 2 - (1 << 20) {
        some(&mut store);
    }
    assert_eq!(store.stats().checkpoints, 0, "they may be written again");
    store.use_rest();
    poll_durable(&mut store).unwrap();
    assert_eq!(store.stats().checkpoints, 0, "something was written since the last look");
    store.use_rest();
    poll_durable(&mut store).unwrap();
    assert!(store.stats().checkpoints > 0 && store.stats().journal_used_bytes <= bytes / 64, "it rests");
    let rounds = store.stats().checkpoints;
    while store.stats().checkpoints == rounds {
        some(&mut store);
        assert!(store.stats().journal_used_bytes <= bytes / 2 + (1 << 20), "half a ring is enough");
    }
}

#[test]
fn the_usual_journal_is_a_share_of_the_device_within_bounds() {
    let mib = 1 << 20;
    let usual = [1_u64 << 30, 16 << 30, 1 << 40].map(|total| Geometry::usual_journal(total) / mib);
    assert_eq!(usual, [64, 256, 1024]);
}
