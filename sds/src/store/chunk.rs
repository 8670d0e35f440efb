//! A chunk in memory: what is durable (`stable`), and the changes on top that are not durable yet (`pending`).
//!
//! Readers see both; a checkpoint takes only what is durable, so it never writes over referenced bytes anything that
//! the journal could lose (S13). Folding a record into `stable` is the same code when its group became durable and when
//! replay finds it.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use pflex_proto::{
    codec::{CodecError, Reader, Wire},
    geometry::{BLOCK_SIZE, BLOCKS_PER_CHUNK},
    ids::{ChunkId, PgId, Version},
};

use super::{
    blocks::{BlockSet, zero_crc, zeros},
    record::{Kind, Record, UnitId},
    types::{BlockRange, Ticket},
};

/// A durable block whose newest bytes are in the journal and in memory, not in the unit yet.
#[derive(Clone, Debug)]
pub(super) struct Dirty {
    pub(super) data: Bytes,
    /// The record that wrote it; tells a checkpoint whether it wrote the newest bytes.
    pub(super) record: u64,
}

/// What would survive a crash now.
#[derive(Clone, Debug, Default)]
pub(super) struct Stable {
    /// False until the first record, and again after a removal.
    pub(super) exists: bool,
    pub(super) version: Version,
    /// Equals nothing, whatever `version` says (S10).
    pub(super) unsynced: bool,
    pub(super) unit: Option<UnitId>,
    /// Blocks that were written; the others are zeros.
    pub(super) written: BlockSet,
    /// Of the written blocks. None: no block was ever written.
    pub(super) checksums: Option<Box<[u32; BLOCKS_PER_CHUNK as usize]>>,
    pub(super) overlay: BTreeMap<u16, Dirty>,
    /// The last record folded in; replay skips up to it.
    pub(super) record: u64,
}

/// A unit that a chunk let go, and whether its bytes are worth giving back to the file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Freed {
    pub(super) unit: UnitId,
    pub(super) discard: bool,
}

impl Stable {
    /// Applies a durable record. `placed`: its bytes are in that unit already, not in the journal.
    pub(super) fn fold(&mut self, record: &Record, placed: Option<UnitId>, number: u64, freed: &mut Vec<Freed>) {
        self.exists = true;
        self.record = number;
        match record.kind {
            Kind::Write | Kind::Fix | Kind::Blocks => {
                self.fold_runs(record, placed, number, freed);
                if record.kind != Kind::Blocks {
                    (self.version, self.unsynced) = (record.version, false);
                }
            }
            Kind::MarkUnsynced => self.unsynced = true,
            Kind::SetVersion => (self.version, self.unsynced) = (record.version, false),
            Kind::Remove => {
                self.free(freed);
                *self = Self { record: number, ..Self::default() };
            }
            Kind::ReplaceOperations | Kind::DropPg => {}
        }
    }

    fn fold_runs(&mut self, record: &Record, placed: Option<UnitId>, number: u64, freed: &mut Vec<Freed>) {
        if let Some(unit) = placed
            && self.unit != Some(unit)
        {
            // The whole chunk went to a fresh unit. The old one is overwritten soon: not worth a discard.
            freed.extend(self.unit.replace(unit).map(|unit| Freed { unit, discard: false }));
        }
        for run in &record.runs {
            let Some(data) = &run.data else {
                if run.blocks.is_whole() {
                    self.free(freed);
                    continue;
                }
                for block in run.blocks.blocks() {
                    self.written.remove(block);
                    self.overlay.remove(&block);
                }
                continue;
            };
            self.unit = self.unit.or(record.unit);
            let checksums = self.checksums.get_or_insert_with(|| Box::new([0; BLOCKS_PER_CHUNK as usize]));
            for (index, (block, checksum)) in run.blocks.blocks().zip(&run.checksums).enumerate() {
                checksums[usize::from(block)] = *checksum;
                self.written.insert(block);
                if placed.is_some() {
                    self.overlay.remove(&block);
                } else {
                    self.overlay.insert(block, Dirty { data: block_of(data, index), record: number });
                }
            }
        }
    }

    fn free(&mut self, freed: &mut Vec<Freed>) {
        freed.extend(self.unit.take().map(|unit| Freed { unit, discard: true }));
        self.written = BlockSet::default();
        self.checksums = None;
        self.overlay.clear();
    }

    /// The row of `sds_local.db`: format u8, pg 8, version 16, unsynced u8, unit u32, record u64, written 32 bytes, then
    /// the checksums of the written blocks.
    pub(super) fn encode_row(&self, pg: PgId) -> Vec<u8> {
        let mut out = Vec::with_capacity(70 + 4 * BLOCKS_PER_CHUNK as usize);
        out.push(ROW_FORMAT);
        pg.encode(&mut out);
        self.version.encode(&mut out);
        out.push(u8::from(self.unsynced));
        self.unit.map_or(u32::MAX, |unit| unit.0).encode(&mut out);
        self.record.encode(&mut out);
        self.written.0.iter().for_each(|word| word.encode(&mut out));
        if let Some(checksums) = &self.checksums {
            self.written.iter().for_each(|block| checksums[usize::from(block)].encode(&mut out));
        }
        out
    }

    pub(super) fn decode_row(row: &[u8]) -> Result<(PgId, Self), CodecError> {
        let mut reader = Reader::new(row);
        let format: u8 = reader.get()?;
        if format != ROW_FORMAT {
            return Err(CodecError::BadTag { what: "chunk row format", value: format.into() });
        }
        let pg = reader.get()?;
        let version = reader.get()?;
        let unsynced = reader.get::<u8>()? == 1;
        let unit: u32 = reader.get()?;
        let record = reader.get()?;
        let mut written = BlockSet::default();
        for word in &mut written.0 {
            *word = reader.get()?;
        }
        let mut checksums = None;
        if !written.is_empty() {
            let mut all = Box::new([0; BLOCKS_PER_CHUNK as usize]);
            for block in written.iter() {
                all[usize::from(block)] = reader.get()?;
            }
            checksums = Some(all);
        }
        reader.finish()?;
        let unit = (unit != u32::MAX).then_some(UnitId(unit));
        let overlay = BTreeMap::new();
        Ok((pg, Self { exists: true, version, unsynced, unit, written, checksums, overlay, record }))
    }
}

const ROW_FORMAT: u8 = 1;

fn block_of(data: &Bytes, index: usize) -> Bytes {
    let block = BLOCK_SIZE as usize;
    data.slice(index * block..(index + 1) * block)
}

/// A change that readers see and that is not durable yet.
#[derive(Clone, Debug)]
pub(super) struct Pending {
    pub(super) ticket: Ticket,
    pub(super) record: Arc<Record>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) pg: PgId,
    pub(super) stable: Stable,
    /// In order; each becomes part of `stable` in this order.
    pub(super) pending: VecDeque<Pending>,
    /// With everything pending done: does the chunk have a unit?
    pub(super) claimed: bool,
    /// A change whose bytes are on the way to the data area; later ones of this chunk wait in `held`.
    pub(super) placing: Option<Ticket>,
    pub(super) held: VecDeque<super::pipeline::Work>,
}

/// Where a block's bytes are.
#[derive(Clone, Debug)]
pub(super) enum Source {
    /// Never written, or zeroed.
    Hole,
    /// In memory.
    Memory { data: Bytes, checksum: u32 },
    /// In the chunk's unit.
    Disk { checksum: u32 },
}

impl Source {
    pub(super) fn checksum(&self) -> u32 {
        match self {
            Self::Hole => zero_crc(),
            Self::Memory { checksum, .. } | Self::Disk { checksum } => *checksum,
        }
    }
}

impl Chunk {
    pub(super) fn new(pg: PgId, stable: Stable) -> Self {
        let claimed = stable.unit.is_some();
        Self { pg, stable, pending: VecDeque::new(), claimed, placing: None, held: VecDeque::new() }
    }

    /// Whether it exists, and its version (none: unsynced), with everything pending done.
    pub(super) fn state(&self) -> Option<Option<Version>> {
        let (mut exists, mut version, mut unsynced) = (self.stable.exists, self.stable.version, self.stable.unsynced);
        for pending in &self.pending {
            match pending.record.kind {
                Kind::Write | Kind::Fix | Kind::SetVersion => {
                    (exists, version, unsynced) = (true, pending.record.version, false);
                }
                Kind::MarkUnsynced => (exists, unsynced) = (true, true),
                Kind::Remove => {
                    (exists, version, unsynced) = (false, Version::ZERO, false);
                }
                Kind::Blocks | Kind::ReplaceOperations | Kind::DropPg => {}
            }
        }
        exists.then(|| (!unsynced).then_some(version))
    }

    /// Where each block of a range comes from, with everything pending done.
    pub(super) fn sources(&self, range: BlockRange) -> Vec<Source> {
        let stable = &self.stable;
        let checksum = |block: u16| stable.checksums.as_ref().map_or(0, |all| all[usize::from(block)]);
        let mut sources: Vec<_> = range
            .blocks()
            .map(|block| match stable.overlay.get(&block) {
                Some(dirty) => Source::Memory { data: dirty.data.clone(), checksum: checksum(block) },
                None if stable.written.contains(block) => Source::Disk { checksum: checksum(block) },
                None => Source::Hole,
            })
            .collect();
        for pending in &self.pending {
            if pending.record.kind == Kind::Remove {
                sources.fill(Source::Hole);
            }
            for run in &pending.record.runs {
                let overlap =
                    range.blocks().start.max(run.blocks.first())..range.blocks().end.min(run.blocks.blocks().end);
                for block in overlap {
                    let index = usize::from(block - run.blocks.first());
                    sources[usize::from(block - range.first())] = match &run.data {
                        None => Source::Hole,
                        Some(data) => Source::Memory { data: block_of(data, index), checksum: run.checksums[index] },
                    };
                }
            }
        }
        sources
    }

    /// Whether zeros written by this record leave no block with data, with everything pending done before it.
    pub(super) fn is_emptied_by(&self, record: &Record) -> bool {
        if !self.claimed || record.runs.is_empty() || record.has_data() || record.empties_chunk() {
            return false;
        }
        let zeroed = |block: u16| record.runs.iter().any(|run| run.blocks.blocks().contains(&block));
        let sources = self.sources(BlockRange::WHOLE).into_iter();
        (0..).zip(sources).all(|(block, source)| matches!(source, Source::Hole) || zeroed(block))
    }

    /// Gives back what queues and maps keep for more: most of a million chunks are not written to.
    pub(super) fn rest(&mut self) {
        if self.stable.overlay.is_empty() {
            // An emptied map keeps a node: half a kilobyte.
            self.stable.overlay = BTreeMap::new();
        }
        if self.pending.is_empty() && self.held.is_empty() {
            self.pending.shrink_to_fit();
            self.held.shrink_to_fit();
        }
    }

    /// Whether nothing is left of it.
    pub(super) fn is_gone(&self) -> bool {
        !self.stable.exists && self.pending.is_empty()
    }
}

/// The bytes of blocks none of which is on disk.
pub(super) fn assemble(sources: &[Source]) -> Bytes {
    match sources {
        [Source::Memory { data, .. }] => data.clone(),
        all if all.iter().all(|source| matches!(source, Source::Hole)) => zeros(all.len() * BLOCK_SIZE as usize),
        all => {
            let mut out = Vec::with_capacity(all.len() * BLOCK_SIZE as usize);
            for source in all {
                match source {
                    Source::Memory { data, .. } => out.extend_from_slice(data),
                    Source::Hole | Source::Disk { .. } => out.resize(out.len() + BLOCK_SIZE as usize, 0),
                }
            }
            Bytes::from(out)
        }
    }
}

/// A chunk's key in maps and rows: ordered so that a volume tree's chunks are neighbours.
pub(super) fn row_key(chunk: ChunkId) -> Vec<u8> {
    let mut key = Vec::with_capacity(20);
    key.extend_from_slice(&chunk.vtree.0.to_be_bytes());
    key.extend_from_slice(&chunk.layer.0.to_be_bytes());
    key.extend_from_slice(&chunk.index.0.to_be_bytes());
    key
}
