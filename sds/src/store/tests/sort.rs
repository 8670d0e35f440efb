//! Chunks that are sorted into more groups (S25), beside what the crash tests do: several pools, groups that are there already, and
//! the row that says so.

use pflex_proto::{codec::Reader, geometry::pg_of};

use super::*;
use crate::store::{checkpoint::device_row, ring::Position, sort::SortedPools};

fn into(pool: u32, pg_count: u32) -> Sorting {
    Sorting { pool: PoolId(pool), pg_count }
}

fn group(pool: u32, tree: u64, index: u64, count: u32) -> PgId {
    PgId { pool: PoolId(pool), index: pg_of(VtreeId(tree), ChunkIndex(index), count) }
}

/// Each pool has a volume of its own number, with 24 chunks.
fn fill(store: &mut Store, pool: u32, count: u32) {
    for index in 0..24 {
        let chunk = ChunkId { vtree: VtreeId(pool.into()), ..chunk(index) };
        store.apply(write(group(pool, pool.into(), index, count), chunk, index + 1, run(0, 1, 7))).unwrap();
    }
    settle(store);
}

fn sort(store: &mut Store, into: Sorting, from: u32) {
    let mut sorting = Box::pin(store.sort(into, from, &[]));
    match sorting.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => drop(result.unwrap()),
        Poll::Pending => panic!("the device completes at once"),
    }
}

fn all_in_place(store: &Store, pool: u32, count: u32) {
    for index in 0..24 {
        let pg = group(pool, pool.into(), index, count);
        let found = store.versions(pg, None).iter().any(|entry| entry.chunk.index.0 == index);
        assert!(found, "chunk {index} of pool {pool} is in {pg}");
    }
    let listed: usize = (0..count).map(|n| store.versions(PgId { pool: PoolId(pool), ..pg(n) }, None).len()).sum();
    assert_eq!(listed, 24, "and nowhere else");
}

#[test]
fn a_device_that_is_given_to_another_pool_and_back_knows_how_each_ones_chunks_are_sorted() {
    let (device, meta) = formatted(100);
    let (mut store, _) = Store::open(device.clone(), meta.clone(), CONFIG).unwrap();
    fill(&mut store, 1, 2);
    sort(&mut store, into(1, 8), 2);
    fill(&mut store, 2, 4);
    sort(&mut store, into(2, 4), 4);
    close(store).unwrap();
    let (mut store, report) = Store::open(device.clone(), meta.clone(), CONFIG).unwrap();
    assert_eq!((report.sorting, store.sorting_of(PoolId(1))), (Some(into(2, 4)), Some(into(1, 8))));
    all_in_place(&store, 1, 8);
    all_in_place(&store, 2, 4);
    // Back again: nothing moves.
    sort(&mut store, into(1, 8), 8);
    assert_eq!(store.sorting(), Some(into(1, 8)));
    sort(&mut store, into(1, 16), 8);
    all_in_place(&store, 1, 16);
    // What is left of the other pool goes, and with the next sorting what was known of it.
    (0..4).for_each(|n| _ = store.drop_pg(PgId { pool: PoolId(2), ..pg(n) }).unwrap());
    settle(&mut store);
    sort(&mut store, into(1, 32), 16);
    assert_eq!(store.sorting_of(PoolId(2)), None);
    drop(store);
    let (store, _) = Store::open(device, meta, CONFIG).unwrap();
    all_in_place(&store, 1, 32);
    assert_eq!(store.sorting_of(PoolId(2)), None);
}

#[test]
fn a_group_that_is_there_already_keeps_what_it_knows() {
    let (device, meta) = formatted(100);
    let (mut store, _) = Store::open(device.clone(), meta.clone(), CONFIG).unwrap();
    fill(&mut store, 1, 2);
    let there = pg(2);
    let own = (100..).find(|index| group(1, 1, *index, 4) == there).unwrap();
    let own = ChunkId { vtree: VtreeId(1), ..chunk(own) };
    store.apply(write(there, own, 500, run(0, 1, 9))).unwrap();
    settle(&mut store);
    let known = store.report(there).unwrap();
    sort(&mut store, into(1, 4), 2);
    for store in [store, Store::open(device, meta, CONFIG).unwrap().0] {
        let now = store.report(there).unwrap();
        assert_eq!((now.watermark, now.highest, &now.operations), (known.watermark, known.highest, &known.operations));
        let listed = store.versions(there, None);
        assert!(listed.iter().any(|entry| entry.chunk == own), "its own chunk");
        let halves = (0..24).filter(|index| group(1, 1, *index, 4) == there);
        assert_eq!(listed.len(), 1 + halves.count(), "and those that belong to it");
    }
}

#[test]
fn rows_of_before_are_read() {
    let read = |row: &[u8]| SortedPools::decode(row[0], &mut Reader::new(&row[25..])).unwrap();
    let none = device_row(1, Position::START, &SortedPools::default());
    assert_eq!((none[0], read(&none)), (1, SortedPools::default()));
    let mut one = none.clone();
    one[0] = 2;
    one.extend([1, 0, 0, 0, 8, 0, 0, 0, 77, 0, 0, 0, 0, 0, 0, 0]);
    let known = read(&one);
    assert_eq!(known.of(PoolId(1)).map(|sorted| (sorted.into, sorted.before)), Some((into(1, 8), 77)));
    assert_eq!(device_row(1, Position::START, &known), one, "and written the same");
    assert!(SortedPools::decode(4, &mut Reader::new(&[])).is_err());
}
