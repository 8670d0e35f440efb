//! The store's tests: crash simulation, the ordinary cases by name, and refusals at open.

mod crash;
mod open;
mod paths;
mod power_cut;
mod sort;
mod space;

use std::{
    cell::Cell,
    future::Future,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use pflex_proto::{
    geometry::{BLOCK_SIZE, CHUNK_SIZE},
    ids::*,
};

use super::*;
use crate::device::MemoryDevice;

/// Bugs that can be planted into the store of the test's own thread, to show that the checkers find them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Bug {
    PersistVisibleOperations,
    OverwriteReferenced,
    SkipQuarantine,
    SortBesideCheckpoint,
    SortCountAlone,
}

thread_local! {
    static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
}

pub(super) fn is_planted(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}

const CLUSTER: ClusterId = ClusterId::from_bytes([1; 16]);
const CONFIG: StoreConfig = StoreConfig { cluster: CLUSTER, sds: SdsId(7) };
const FORMAT: FormatConfig =
    FormatConfig { cluster: CLUSTER, sds: SdsId(7), uuid: DeviceUuid::from_bytes([2; 16]), journal_bytes: Some(0) };

fn geometry(units: u32) -> Geometry {
    let smallest = Geometry::divide(1 << 30, 0).unwrap();
    Geometry { units, ..smallest }
}

fn formatted(units: u32) -> (Arc<MemoryDevice>, Arc<MemoryMeta>) {
    let geometry = geometry(units);
    let (device, meta) = (MemoryDevice::new(geometry.total_bytes()), MemoryMeta::new());
    Store::format(device.as_ref(), geometry, meta.as_ref(), &FORMAT).unwrap();
    (device, meta)
}

fn pg(index: u32) -> PgId {
    PgId { pool: PoolId(1), index: PgIndex(index) }
}

fn chunk(index: u64) -> ChunkId {
    ChunkId { vtree: VtreeId(9), layer: LayerId(0), index: ChunkIndex(index) }
}

fn version(sequence: u64) -> Version {
    Version { epoch: Epoch(1), sequence: Sequence(sequence) }
}

const CLIENT: Client = Client { sdc: SdcId(3), volume: VolumeId(4) };

fn range(first: u16, count: u16) -> BlockRange {
    BlockRange::new(first, count).unwrap()
}

/// A run whose every 4 bytes are `tag`; tag 0 is zeros.
fn run(first: u16, count: u16, tag: u32) -> Run {
    let blocks = range(first, count);
    if tag == 0 {
        return Run::zeros(blocks);
    }
    Run::data(blocks, Bytes::from(tag.to_le_bytes().repeat(blocks.bytes() / 4)))
}

fn write(pg: PgId, chunk: ChunkId, sequence: u64, run: Run) -> OrderedWrite {
    OrderedWrite {
        pg,
        chunk,
        version: version(sequence),
        run,
        origin: Origin { client: CLIENT, operation: OperationId(sequence), low_water: OperationId(0) },
        watermark: Sequence(sequence.saturating_sub(3)),
        volatility: VolatilityId(1),
        lane: Lane::Client,
    }
}

/// The tag of each block; panics if a block is not one tag all over.
fn tags(data: &[u8]) -> Vec<u32> {
    let tag = |block: &[u8]| {
        let tag = u32::from_le_bytes(block[..4].try_into().unwrap());
        assert!(block[4..] == block[..block.len() - 4], "a torn block");
        tag
    };
    data.chunks_exact(BLOCK_SIZE as usize).map(tag).collect()
}

fn poll_durable(store: &mut Store) -> Result<Vec<Durable>, Poison> {
    match store.poll_durable(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => result,
        Poll::Pending => Ok(Vec::new()),
    }
}

/// Until nothing is pending; for devices that complete at once.
fn settle(store: &mut Store) {
    while store.stats().pending_changes > 0 {
        assert!(!poll_durable(store).unwrap().is_empty(), "progress");
    }
}

fn read_now(store: &mut Store, chunk: ChunkId, range: BlockRange) -> Result<ReadData, ReadError> {
    let mut read = store.read(chunk, range);
    match std::pin::Pin::new(&mut read).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => result,
        Poll::Pending => panic!("the device completes at once"),
    }
}

fn close(store: Store) -> Result<(), Poison> {
    let mut closing = Box::pin(store.close());
    match closing.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => result,
        Poll::Pending => panic!("the device completes at once"),
    }
}

const WHOLE: u16 = (CHUNK_SIZE / BLOCK_SIZE) as u16;
