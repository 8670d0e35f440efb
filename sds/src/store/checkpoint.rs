//! The checkpoint: carries what the journal holds to the data area and `sds_local.db`, then frees ring space (S13).
//!
//! Order: capture durable state, oldest first -> write its blocks -> sync -> commit rows and the new tail in one synced
//! batch -> only then forget the blocks in memory and move the tail. A crash anywhere before the commit leaves the old
//! rows and the whole journal; replay then restores every block that was half written.
//!
//! Incremental: each round takes a bounded amount, so a round is short and IO goes on beside it.
//!
//! Late: a block that waits is often written again, or its neighbours are, and then both go in one write. So rounds begin
//! when half of the ring is used and end at three eighths, and what is left goes while the device rests, so that a burst
//! finds an empty ring and a start has little to replay.

use std::{
    collections::{BTreeMap, VecDeque},
    mem,
};

use bytes::Bytes;
use pflex_proto::{codec::Wire, geometry::BLOCK_SIZE, ids::ChunkId};

use super::{
    DirtyKey, MetaTable, Store,
    blocks::BlockSet,
    chunk::{self, Stable},
    meta::Batch,
    pg,
    pipeline::Event,
    record::UnitId,
    ring::Position,
    sort::SortedPools,
};
use crate::device::{Op, Outcome};

/// Blocks of one round: a few milliseconds of writing.
const ROUND_BYTES: usize = 16 << 20;
/// Rows of one round: bounds the batch (1.1 KiB each) and the time the capture takes on the data thread.
const ROUND_KEYS: usize = 2048;
/// Blocks of one write operation: they lie anywhere, and handing each over by itself costs more than writing it.
const WRITE_BLOCKS: usize = 64;
/// Writes in flight: leaves the write threads room for large writes.
const MAX_WRITES: usize = 2;

/// See the module.
#[derive(Default)]
pub(super) struct Checkpoint {
    started: u64,
    completed: u64,
    active: Option<Active>,
    /// None begins, unless a change waits for ring space: it waits for a checkpoint.
    held: bool,
    /// Someone waits for ring space.
    wanted: bool,
    /// Everything goes, however little: the store is being closed.
    forced: bool,
    /// Above the low mark: goes on until below.
    draining: bool,
    /// Nothing was written for a while: goes on until the ring is nearly empty.
    resting: bool,
    /// The next record's number when the owner last looked.
    seen: u64,
}

struct Active {
    writes: VecDeque<BlockWrite>,
    /// All blocks this round writes, until it is over.
    writing: BTreeMap<UnitId, BlockSet>,
    in_flight: usize,
    stage: Stage,
    rows: Batch,
    captured: Vec<(ChunkId, Vec<(u16, u64)>)>,
    tail: Position,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Writing,
    WaitingForSync,
    Syncing,
    Committing,
}

/// Neighbouring blocks of one unit.
struct BlockWrite {
    unit: UnitId,
    first: u16,
    data: Vec<Bytes>,
}

impl Checkpoint {
    pub(super) const fn want(&mut self) {
        self.wanted = true;
    }

    pub(super) const fn hold(&mut self, held: bool) {
        self.held = held;
    }

    pub(super) const fn set_forced(&mut self) {
        self.forced = true;
    }

    pub(super) const fn is_active(&self) -> bool {
        self.active.is_some()
    }

    /// Rounds done.
    pub(super) const fn completed(&self) -> u64 {
        self.completed
    }

    /// Once this many rounds are completed, none that runs now is left.
    pub(super) const fn over_after(&self) -> u64 {
        self.started
    }

    pub(super) fn is_writing(&self, unit: UnitId, blocks: &BlockSet) -> bool {
        self.active.as_ref().and_then(|active| active.writing.get(&unit)).is_some_and(|set| set.intersects(blocks))
    }

    pub(super) const fn written(&mut self) {
        if let Some(active) = &mut self.active {
            active.in_flight -= 1;
        }
    }

    pub(super) fn wants_sync(&self) -> bool {
        self.active.as_ref().is_some_and(|active| active.stage == Stage::WaitingForSync)
    }

    pub(super) const fn sync_started(&mut self) {
        if let Some(active) = &mut self.active {
            active.stage = Stage::Syncing;
        }
    }
}

impl Store {
    /// Empties the ring if nothing was written since the last call. The owner calls it about each second.
    pub fn use_rest(&mut self) {
        let written = self.pipeline.records();
        self.checkpoint.resting = self.checkpoint.seen == written;
        self.checkpoint.seen = written;
        self.settle();
    }

    /// Starts a round if one is due, and moves a running one on.
    pub(super) fn advance_checkpoint(&mut self) {
        if self.checkpoint.active.is_none() {
            self.start_checkpoint();
        }
        let Some(active) = &mut self.checkpoint.active else { return };
        if active.stage != Stage::Writing {
            return;
        }
        while active.in_flight < MAX_WRITES {
            let (mut writes, mut total) = (Vec::new(), 0);
            for _ in 0..active.writes.len() {
                if total >= WRITE_BLOCKS {
                    break;
                }
                let Some(write) = active.writes.pop_front() else { break };
                let mut blocks = BlockSet::default();
                (write.first..).take(write.data.len()).for_each(|block| blocks.insert(block));
                if self.readers.are_reading(write.unit, Some(&blocks), &self.awaits_readers) {
                    // A reader that began before these blocks were in memory; its end is an event.
                    active.writes.push_back(write);
                    continue;
                }
                total += write.data.len();
                let unit = self.superblock.geometry.unit_offset(write.unit.0);
                writes.push((unit + u64::from(write.first) * u64::from(BLOCK_SIZE), write.data));
            }
            if writes.is_empty() {
                break;
            }
            active.in_flight += 1;
            let sender = self.sender.clone();
            let done = move |outcome: Outcome| drop(sender.send(Event::CheckpointWritten(outcome.map(drop))));
            self.device.submit(Op::WriteMany { writes }, Box::new(done));
        }
        if active.writes.is_empty() && active.in_flight == 0 {
            if active.writing.is_empty() {
                self.commit_checkpoint();
            } else {
                active.stage = Stage::WaitingForSync;
            }
        }
    }

    fn start_checkpoint(&mut self) {
        let (used, bytes) = (self.ring.used(), self.ring.bytes());
        let checkpoint = &mut self.checkpoint;
        checkpoint.draining = used > bytes / 2 || (checkpoint.draining && used > bytes / 8 * 3);
        checkpoint.resting &= used > bytes / 64;
        let due = checkpoint.wanted || checkpoint.forced || checkpoint.draining || checkpoint.resting;
        let held = self.checkpoint.held && !self.pipeline.has_waiting();
        if !due || held || self.dirty.is_empty() {
            return;
        }
        self.checkpoint.wanted = false;
        let mut active = Active {
            writes: VecDeque::new(),
            writing: BTreeMap::new(),
            in_flight: 0,
            stage: Stage::Writing,
            rows: Batch::default(),
            captured: Vec::new(),
            tail: self.ring.tail,
        };
        let mut bytes = 0;
        for _ in 0..ROUND_KEYS {
            if bytes >= ROUND_BYTES {
                break;
            }
            match self.dirty.pop_oldest() {
                Some(DirtyKey::Pg(id)) => {
                    let row = self.pgs.get(&id).map(|pg| persisted(pg).encode_row(pg.record));
                    active.rows.rows.push((MetaTable::Pgs, pg::row_key(id), row));
                }
                Some(DirtyKey::Chunk(id)) => {
                    let chunk = self.chunks.get(&id).filter(|chunk| chunk.stable.exists);
                    let row = chunk.map(|chunk| chunk.stable.encode_row(chunk.pg));
                    active.rows.rows.push((MetaTable::Chunks, chunk::row_key(id), row));
                    if let Some(chunk) = chunk {
                        bytes += active.capture(id, &chunk.stable);
                    }
                }
                None => break,
            }
        }
        self.checkpoint.started += 1;
        self.checkpoint.active = Some(active);
    }

    /// Everything captured is in the data area for good: now the rows may say so.
    pub(super) fn commit_checkpoint(&mut self) {
        let Some(active) = &mut self.checkpoint.active else { return };
        active.stage = Stage::Committing;
        // What was not captured, or changed since, keeps its journal groups.
        active.tail = self.dirty.oldest().map_or(self.pipeline.folded, |oldest| oldest.min(self.pipeline.folded));
        let mut rows = mem::take(&mut active.rows);
        let row = device_row(self.superblock.generation, active.tail, &self.sorted);
        rows.rows.push((MetaTable::Devices, Vec::new(), Some(row)));
        let sender = self.sender.clone();
        let done = move |result| drop(sender.send(Event::MetaCommitted(result)));
        self.meta.commit(self.superblock.uuid, rows, Box::new(done));
    }

    pub(super) fn checkpoint_committed(&mut self) {
        let Some(active) = self.checkpoint.active.take() else { return };
        for (id, blocks) in active.captured {
            let Some(chunk) = self.chunks.get_mut(&id) else { continue };
            for (block, record) in blocks {
                // A block that was written again since stays: its newer bytes are not in the unit.
                if chunk.stable.overlay.get(&block).is_some_and(|dirty| dirty.record == record) {
                    chunk.stable.overlay.remove(&block);
                }
            }
            chunk.rest();
        }
        self.ring.tail = active.tail;
        self.checkpoint.completed = self.checkpoint.started;
    }
}

impl Active {
    /// Takes a chunk's journaled blocks; returns how many bytes.
    fn capture(&mut self, id: ChunkId, stable: &Stable) -> usize {
        let Some(unit) = stable.unit else { return 0 };
        if stable.overlay.is_empty() {
            return 0;
        }
        let writing = self.writing.entry(unit).or_default();
        let mut current: Option<BlockWrite> = None;
        for (&block, dirty) in &stable.overlay {
            writing.insert(block);
            match &mut current {
                Some(write) if usize::from(block - write.first) == write.data.len() => {
                    write.data.push(dirty.data.clone())
                }
                _ => {
                    let next = BlockWrite { unit, first: block, data: vec![dirty.data.clone()] };
                    self.writes.extend(current.replace(next));
                }
            }
        }
        self.writes.extend(current);
        self.captured.push((id, stable.overlay.iter().map(|(block, dirty)| (*block, dirty.record)).collect()));
        stable.overlay.len() * BLOCK_SIZE as usize
    }
}

/// The device's row: format u8, generation u64, tail lsn u64, tail sequence u64; in format 2 then one [`super::sort::Sorted`], which is the pool
/// u32, the number of its groups u32, the record u64; in format 3 several after their number u32.
pub(super) fn device_row(generation: u64, tail: Position, sorted: &SortedPools) -> Vec<u8> {
    let mut end = Vec::new();
    let mut out = vec![sorted.encode(&mut end)];
    generation.encode(&mut out);
    tail.lsn.encode(&mut out);
    tail.sequence.encode(&mut out);
    out.extend(end);
    out
}

#[cfg(not(test))]
const fn persisted(pg: &pg::Pg) -> &pg::Operations {
    &pg.durable
}

/// With a planted bug for the crash test to find.
#[cfg(test)]
fn persisted(pg: &pg::Pg) -> &pg::Operations {
    if super::tests::is_planted(super::tests::Bug::PersistVisibleOperations) { &pg.visible } else { &pg.durable }
}
