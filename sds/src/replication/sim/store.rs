//! A model of one device's store for one placement group: what is applied, what is durable, and what a crash leaves.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use pflex_proto::ids::{ChunkId, Sequence, Version, VolatilityId};

use crate::replication::operations::Operations;
use crate::replication::planted::{Bug, Planted};
use crate::replication::{
    BlockRun, BlockSums, ChunkEntry, ChunkImage, Effect, Extent, OrderedWrite, Recovered, Ticket, WriteKind,
};

use super::rng::Rng;

/// Blocks of a model chunk.
pub(super) const BLOCKS: usize = 4;
/// Bytes of a block.
pub(super) const BLOCK: u32 = 4096;

/// A payload: one value per block.
pub(super) type Data = Vec<u64>;

#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub(super) struct Chunk {
    /// None: unsynced.
    pub(super) version: Option<Version>,
    pub(super) blocks: [u64; BLOCKS],
}

/// What is on the disk, or would be if everything were flushed.
#[derive(Clone, Default)]
pub(super) struct Image {
    pub(super) chunks: BTreeMap<ChunkId, Chunk>,
    pub(super) operations: Operations,
    pub(super) watermark: Sequence,
    lineage: VolatilityId,
    pub(super) floor: Sequence,
    /// Blocks that cannot be read; their checksums are known.
    pub(super) bad: BTreeSet<(ChunkId, usize)>,
}

/// See the module.
#[derive(Default)]
pub(super) struct PgStore {
    pub(super) applied: Image,
    pub(super) durable: Image,
    queue: VecDeque<(Ticket, Effect<Data>, VolatilityId)>,
    /// Chunks that space is set aside for.
    pub(super) reserved: BTreeSet<ChunkId>,
    /// The ticket that failed; nothing from it on is done.
    pub(super) failed: Option<Ticket>,
    /// The row of its configuration is on the disk: it counts as a copy (S19).
    pub(super) row: bool,
    /// Chunks of it that are gone, of a copy on its way out.
    pub(super) dropped: usize,
}

impl Image {
    fn apply(&mut self, effect: &Effect<Data>, volatility: VolatilityId) {
        match effect.clone() {
            Effect::Apply { write, watermark, .. } => {
                if watermark >= self.watermark {
                    (self.watermark, self.lineage) = (watermark, volatility);
                }
                self.write(&write);
            }
            Effect::FixChunk { chunk, image, operations, .. } => {
                self.operations.replace_chunk(chunk, &operations);
                self.blocks(chunk, &image.runs);
                self.version(chunk, image.version);
            }
            Effect::MarkUnsynced { chunk, .. } => self.chunks.entry(chunk).or_default().version = None,
            Effect::WriteBlocks { chunk, runs, .. } => self.blocks(chunk, &runs),
            Effect::SetVersion { chunk, version, .. } => self.version(chunk, version),
            Effect::Repair { chunk, extent, data, .. } => {
                let first_block = (extent.offset / BLOCK) as u16;
                self.blocks(chunk, &[BlockRun { first_block, blocks: data.len() as u16, data: Some(data) }]);
            }
            Effect::ReplaceOperations { operations, watermark, last, .. } => {
                self.operations.replace(&operations);
                self.floor = self.floor.max(last);
                (self.watermark, self.lineage) = (watermark, volatility);
            }
            other => panic!("not a store change: {other:?}"),
        }
    }

    fn write(&mut self, write: &OrderedWrite<Data>) {
        self.operations.record(write);
        let chunk =
            self.chunks.entry(write.chunk).or_insert(Chunk { version: Some(Version::ZERO), ..Chunk::default() });
        let first = (write.extent.offset / BLOCK) as usize;
        for block in 0..(write.extent.length / BLOCK) as usize {
            self.bad.remove(&(write.chunk, first + block));
            chunk.blocks[first + block] = match &write.kind {
                WriteKind::Data(data) => data[block],
                WriteKind::Zeroes => 0,
            };
        }
        // An unsynced chunk stays so: a write says nothing about the rest of it.
        if chunk.version.is_some() {
            chunk.version = Some(write.version);
        }
    }

    fn blocks(&mut self, id: ChunkId, runs: &[BlockRun<Data>]) {
        let chunk = self.chunks.entry(id).or_default();
        for run in runs {
            for block in 0..usize::from(run.blocks) {
                self.bad.remove(&(id, usize::from(run.first_block) + block));
                let value = run.data.as_ref().map_or(0, |data| data[block]);
                chunk.blocks[usize::from(run.first_block) + block] = value;
            }
        }
    }

    fn version(&mut self, chunk: ChunkId, version: Option<Version>) {
        match version {
            Some(version) => self.chunks.entry(chunk).or_default().version = Some(version),
            None => {
                self.chunks.remove(&chunk);
                self.bad.retain(|(of, _)| *of != chunk);
            }
        }
    }

    pub(super) fn recovered(&self) -> Recovered {
        let operations = self.operations.snapshot();
        let chunks = self.chunks.values().filter_map(|chunk| chunk.version);
        let executed = operations.entries.iter().map(|entry| entry.version);
        let highest = chunks.chain(executed).map(|version| version.sequence).max().unwrap_or_default();
        let highest = highest.max(self.floor);
        Recovered { highest, watermark: self.watermark, lineage: self.lineage, operations }
    }
}

/// The chunk a change is of; none: it is of the whole group.
pub(super) fn place(effect: &Effect<Data>) -> Option<ChunkId> {
    match effect {
        Effect::Apply { write, .. } => Some(write.chunk),
        Effect::FixChunk { chunk, .. }
        | Effect::MarkUnsynced { chunk, .. }
        | Effect::WriteBlocks { chunk, .. }
        | Effect::Repair { chunk, .. }
        | Effect::SetVersion { chunk, .. } => Some(*chunk),
        _ => None,
    }
}

impl PgStore {
    /// Takes a change; `fails`: there is no space for it. Whether this is the first to fail.
    pub(super) fn change(
        &mut self,
        ticket: Ticket,
        effect: Effect<Data>,
        volatility: VolatilityId,
        fails: bool,
        planted: Planted,
    ) -> bool {
        if let Effect::Repair { chunk, version, .. } = &effect
            && self.version(*chunk) != Some(*version)
            && !planted.is(Bug::RepairFromOtherVersion)
        {
            return false;
        }
        // What was asked for before the failure is on its way to the disk all the same.
        if let Effect::ClearFailure { .. } = effect {
            self.failed = None;
            return false;
        }
        if self.failed.is_some() {
            return false;
        }
        if fails {
            self.failed = Some(ticket);
            return true;
        }
        if let Effect::Apply { .. } | Effect::WriteBlocks { .. } | Effect::FixChunk { .. } = &effect
            && let Some(chunk) = place(&effect)
        {
            self.reserved.remove(&chunk);
        }
        self.applied.apply(&effect, volatility);
        self.queue.push_back((ticket, effect, volatility));
        false
    }

    /// Nothing that is asked for is done any more.
    pub(super) fn has_failed(&self) -> bool {
        self.failed.is_some()
    }

    /// Everything up to the ticket reaches the disk. None: it failed, or something before it did.
    pub(super) fn flush(&mut self, through: Ticket) -> Option<Ticket> {
        while self.queue.front().is_some_and(|(ticket, ..)| *ticket <= through) {
            let (_, effect, volatility) = self.queue.pop_front().expect("just seen");
            self.durable.apply(&effect, volatility);
        }
        self.failed.is_none_or(|failed| through < failed).then_some(through)
    }

    pub(super) fn flush_all(&mut self) {
        while let Some((_, effect, volatility)) = self.queue.pop_front() {
            self.durable.apply(&effect, volatility);
        }
    }

    /// Power fails. Of each chunk's unflushed changes some prefix made it; a whole-group change only if all before
    /// it did.
    pub(super) fn crash(&mut self, rng: &mut Rng) {
        let mut lost: Vec<ChunkId> = Vec::new();
        let mut all = true;
        for (_, effect, volatility) in std::mem::take(&mut self.queue) {
            match place(&effect) {
                Some(chunk) if lost.contains(&chunk) => {}
                Some(chunk) if rng.percent(30) => {
                    lost.push(chunk);
                    all = false;
                    // Block writes into an unsynced chunk need not be atomic.
                    if let Effect::WriteBlocks { ticket, chunk, mut runs } = effect
                        && rng.percent(50)
                    {
                        runs.truncate(1);
                        self.durable.apply(&Effect::WriteBlocks { ticket, chunk, runs }, volatility);
                    }
                }
                Some(_) => self.durable.apply(&effect, volatility),
                None if all => self.durable.apply(&effect, volatility),
                None => {}
            }
        }
        self.applied = self.durable.clone();
        self.reserved.clear();
        self.failed = None;
    }

    /// None: some of it cannot be read.
    pub(super) fn read(&self, chunk: ChunkId, extent: Extent) -> Option<Data> {
        let first = (extent.offset / BLOCK) as usize;
        let range = first..(first + (extent.length / BLOCK) as usize).min(BLOCKS);
        let sound = self.unreadable(chunk, extent).is_empty();
        sound.then(|| self.blocks(chunk)[range].to_vec())
    }

    pub(super) fn unreadable(&self, chunk: ChunkId, extent: Extent) -> Vec<u16> {
        let first = (extent.offset / BLOCK) as usize;
        let end = first + (extent.length / BLOCK) as usize;
        let bad = self.applied.bad.range((chunk, first)..(chunk, end));
        bad.map(|(_, block)| *block as u16).collect()
    }

    pub(super) fn version(&self, chunk: ChunkId) -> Option<Version> {
        self.applied.chunks.get(&chunk)?.version
    }

    /// Whether this block has data on the disk that a fault could take.
    pub(super) fn can_lose(&self, chunk: ChunkId, block: usize) -> bool {
        let written = self.applied.chunks.get(&chunk).is_some_and(|chunk| chunk.blocks[block] != 0);
        let pending = self.queue.iter().any(|(_, effect, _)| place(effect).is_none_or(|of| of == chunk));
        written && !pending && self.version(chunk).is_some()
    }

    /// The block has other bytes, and a checksum that fits them.
    pub(super) fn falsify(&mut self, chunk: ChunkId, block: usize) {
        for image in [&mut self.applied, &mut self.durable] {
            image.chunks.get_mut(&chunk).expect("it was seen").blocks[block] ^= 1 << 40 | 1;
        }
    }

    /// Something of a group, and no row: half a copy.
    pub(super) fn is_rest(&self) -> bool {
        !self.row && (self.dropped > 0 || !self.applied.chunks.is_empty())
    }

    /// Drops something of a copy that lost its place; whether nothing is left. A flush under way comes first.
    pub(super) fn drop_some(&mut self) -> bool {
        if !self.queue.is_empty() {
            return false;
        }
        if let Some(chunk) = self.applied.chunks.keys().next().copied() {
            self.applied.version(chunk, None);
            self.durable.version(chunk, None);
            self.dropped += 1;
            return false;
        }
        (self.applied, self.durable, self.dropped) = (Image::default(), Image::default(), 0);
        true
    }

    /// The disk cannot read this block any more.
    pub(super) fn spoil(&mut self, chunk: ChunkId, block: usize) {
        self.applied.bad.insert((chunk, block));
        self.durable.bad.insert((chunk, block));
    }

    fn blocks(&self, chunk: ChunkId) -> [u64; BLOCKS] {
        self.applied.chunks.get(&chunk).map(|chunk| chunk.blocks).unwrap_or_default()
    }

    pub(super) fn list(&self, above: Option<Sequence>) -> Vec<ChunkEntry> {
        let listed =
            |chunk: &&Chunk| above.is_none_or(|above| chunk.version.is_none_or(|version| version.sequence > above));
        let chunks = self.applied.chunks.iter().filter(|(_, chunk)| listed(chunk));
        chunks.map(|(chunk, state)| ChunkEntry { chunk: *chunk, version: state.version }).collect()
    }

    pub(super) fn sums(&self, chunk: ChunkId) -> BlockSums {
        match self.applied.chunks.get(&chunk) {
            Some(chunk) => BlockSums(chunk.blocks.iter().map(|value| *value as u32).collect()),
            None => BlockSums::default(),
        }
    }

    /// None: the chunk cannot be read.
    pub(super) fn difference(&self, chunk: ChunkId, theirs: &BlockSums) -> Option<ChunkImage<Data>> {
        if !self.unreadable(chunk, Extent::CHUNK).is_empty() {
            return None;
        }
        let version = self.applied.chunks.get(&chunk).and_then(|chunk| chunk.version);
        let blocks = self.blocks(chunk);
        let differs = |block: &usize| theirs.0.get(*block).copied().unwrap_or(0) != blocks[*block] as u32;
        let run = |block: usize| BlockRun {
            first_block: block as u16,
            blocks: 1,
            data: (blocks[block] != 0).then(|| vec![blocks[block]]),
        };
        Some(ChunkImage { version, runs: (0..BLOCKS).filter(differs).map(run).collect() })
    }
}

#[cfg(test)]
mod tests {
    use pflex_proto::ids::Epoch;

    use super::*;

    /// As in the store itself; seed 5378 of writeback pools had a copy that forgot a write which it had called durable.
    #[test]
    fn what_was_asked_for_before_a_failure_reaches_the_disk() {
        let mut store = PgStore::default();
        let (chunk, version) = (ChunkId::default(), Version { epoch: Epoch(1), sequence: Sequence(1) });
        let change = |n| Effect::SetVersion { ticket: Ticket(n), chunk, version: Some(version) };
        let mut ask = |n, effect, fails| store.change(Ticket(n), effect, VolatilityId(1), fails, Planted::default());
        assert!(!ask(1, change(1), false) && ask(2, change(2), true));
        ask(3, Effect::ClearFailure { ticket: Ticket(3) }, false);
        assert_eq!(store.flush(Ticket(3)), Some(Ticket(3)));
        assert_eq!(store.durable.chunks[&chunk].version, Some(version));
    }
}
