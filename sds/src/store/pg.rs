//! A placement group's operation ids, watermark and version index (S1, S7, S25).
//!
//! Operation ids are kept twice: as visible (every change asked for) and as durable (every change folded). Only the
//! durable ones are persisted: an id whose write was lost must not be found after a restart.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use pflex_proto::{
    codec::{CodecError, Reader, Wire},
    ids::{ChunkId, Epoch, OperationId, PgId, Sequence, Version, VolatilityId},
};

use super::{
    record::{Kind, MAX_OPERATIONS, Record},
    types::{Client, Lane, Operation, OperationSnapshot, Ticket},
};

/// The table itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Operations {
    entries: BTreeMap<(Client, OperationId), (Version, ChunkId)>,
    low_waters: BTreeMap<Client, OperationId>,
    watermark: Sequence,
    volatility: VolatilityId,
    highest: Version,
}

impl Operations {
    /// What a record does to the table, visible and durable alike.
    pub(super) fn apply(&mut self, record: &Record) {
        match record.kind {
            Kind::Fix | Kind::Remove => self.entries.retain(|_, (_, chunk)| *chunk != record.chunk),
            Kind::ReplaceOperations => {
                self.entries.clear();
                self.low_waters.clear();
                (self.watermark, self.volatility) = (record.watermark, record.volatility);
                self.highest = highest(self.highest, record.version);
            }
            Kind::Write | Kind::Blocks | Kind::MarkUnsynced | Kind::SetVersion | Kind::DropPg => {}
        }
        for operation in &record.operations.entries {
            self.entries.insert((operation.client, operation.id), (operation.version, operation.chunk));
            self.highest = highest(self.highest, operation.version);
        }
        for (client, low_water) in &record.operations.low_waters {
            self.trim(*client, *low_water);
        }
        if record.kind.is_of_chunk() {
            self.highest = highest(self.highest, record.version);
        }
        if record.kind == Kind::Write {
            self.note(record.watermark, record.volatility);
        }
    }

    /// The client will never resend anything below.
    fn trim(&mut self, client: Client, low_water: OperationId) {
        let mark = self.low_waters.entry(client).or_default();
        *mark = low_water.max(*mark);
        let low_water = *mark;
        while let Some((key, _)) = self.entries.range((client, OperationId(0))..(client, low_water)).next() {
            let key = *key;
            self.entries.remove(&key);
        }
    }

    /// Forgets clients; whether there were any.
    pub(super) fn forget(&mut self, gone: &impl Fn(Client) -> bool) -> bool {
        let before = self.entries.len() + self.low_waters.len();
        self.entries.retain(|(client, _), _| !gone(*client));
        self.low_waters.retain(|client, _| !gone(*client));
        self.entries.len() + self.low_waters.len() < before
    }

    /// Forgets the operations on other chunks.
    pub(super) fn retain_chunks(&mut self, here: impl Fn(ChunkId) -> bool) {
        self.entries.retain(|_, (_, chunk)| here(*chunk));
    }

    /// A watermark only grows, but for [`Kind::ReplaceOperations`].
    pub(super) fn note(&mut self, watermark: Sequence, volatility: VolatilityId) {
        if watermark >= self.watermark {
            self.watermark = watermark;
            self.volatility = volatility;
        }
    }

    pub(super) fn find(&self, client: Client, id: OperationId) -> Option<(Version, ChunkId)> {
        self.entries.get(&(client, id)).copied()
    }

    pub(super) const fn watermark(&self) -> (Sequence, VolatilityId) {
        (self.watermark, self.volatility)
    }

    pub(super) const fn highest(&self) -> Version {
        self.highest
    }

    pub(super) fn snapshot(&self) -> OperationSnapshot {
        let entry = |(&(client, id), &(version, chunk)): (&(Client, OperationId), &(Version, ChunkId))| Operation {
            client,
            id,
            version,
            chunk,
        };
        OperationSnapshot {
            entries: self.entries.iter().map(entry).collect(),
            low_waters: self.low_waters.iter().map(|(client, id)| (*client, *id)).collect(),
        }
    }

    /// The row of `sds_local.db`: format u8, last record u64, watermark u64, volatility u64, highest version 16, then the
    /// operations and the low-water marks, each after a u32 count.
    pub(super) fn encode_row(&self, record: u64) -> Vec<u8> {
        let mut out = vec![ROW_FORMAT];
        record.encode(&mut out);
        self.watermark.encode(&mut out);
        self.volatility.encode(&mut out);
        self.highest.encode(&mut out);
        let snapshot = self.snapshot();
        (snapshot.entries.len() as u32).encode(&mut out);
        snapshot.entries.iter().for_each(|operation| operation.encode(&mut out));
        (snapshot.low_waters.len() as u32).encode(&mut out);
        for (client, id) in &snapshot.low_waters {
            client.encode(&mut out);
            id.encode(&mut out);
        }
        out
    }

    pub(super) fn decode_row(row: &[u8]) -> Result<(u64, Self), CodecError> {
        let mut reader = Reader::new(row);
        let format: u8 = reader.get()?;
        if format != ROW_FORMAT {
            return Err(CodecError::BadTag { what: "placement group row format", value: format.into() });
        }
        let record = reader.get()?;
        let (watermark, volatility, highest) = (reader.get()?, reader.get()?, reader.get()?);
        let mut table = Self { watermark, volatility, highest, ..Self::default() };
        for operation in reader.list::<Operation>(MAX_OPERATIONS)? {
            table.entries.insert((operation.client, operation.id), (operation.version, operation.chunk));
        }
        for _ in 0..reader.get::<u32>()? {
            table.low_waters.insert(reader.get()?, reader.get()?);
        }
        reader.finish()?;
        Ok((record, table))
    }
}

const ROW_FORMAT: u8 = 1;

/// Sequences go on across epochs, so the sequence decides and the epoch only breaks ties.
fn highest(a: Version, b: Version) -> Version {
    if (b.sequence, b.epoch) > (a.sequence, a.epoch) { b } else { a }
}

/// A placement group in memory.
#[derive(Debug, Default)]
pub(super) struct Pg {
    pub(super) visible: Operations,
    pub(super) durable: Operations,
    /// The last record folded into `durable`.
    pub(super) record: u64,
    /// Synced chunks by (sequence, epoch), for lists above a watermark.
    by_version: BTreeSet<(Sequence, Epoch, ChunkId)>,
    unsynced: BTreeSet<ChunkId>,
    /// Changes not reported durable yet, in order, each with whether it is.
    outstanding: VecDeque<(Ticket, bool)>,
    /// Where the changes before the ring are; later ones go the same way so that order holds.
    pub(super) queued: usize,
    pub(super) lane: Option<Lane>,
    /// Being dropped: takes no more changes.
    pub(super) dropping: bool,
}

impl Pg {
    pub(super) fn new(record: u64, table: Operations) -> Self {
        Self { visible: table.clone(), durable: table, record, ..Self::default() }
    }

    /// Keeps the index in step with a chunk's visible state.
    pub(super) fn reindex(&mut self, chunk: ChunkId, old: Option<Option<Version>>, new: Option<Option<Version>>) {
        match old {
            Some(Some(version)) => drop(self.by_version.remove(&(version.sequence, version.epoch, chunk))),
            Some(None) => drop(self.unsynced.remove(&chunk)),
            None => {}
        }
        match new {
            Some(Some(version)) => drop(self.by_version.insert((version.sequence, version.epoch, chunk))),
            Some(None) => drop(self.unsynced.insert(chunk)),
            None => {}
        }
    }

    /// Synced chunks above a sequence, or all.
    pub(super) fn above(&self, above: Option<Sequence>) -> impl Iterator<Item = (ChunkId, Version)> {
        let from = above.map_or(Sequence(0), |above| Sequence(above.0.saturating_add(1)));
        self.by_version
            .range((from, Epoch(0), ChunkId::default())..)
            .map(|(sequence, epoch, chunk)| (*chunk, Version { epoch: *epoch, sequence: *sequence }))
    }

    pub(super) const fn unsynced(&self) -> &BTreeSet<ChunkId> {
        &self.unsynced
    }

    pub(super) fn chunks(&self) -> usize {
        self.by_version.len() + self.unsynced.len()
    }

    pub(super) fn begin(&mut self, ticket: Ticket) {
        self.outstanding.push_back((ticket, false));
    }

    /// The oldest change that is not durable.
    pub(super) fn oldest(&self) -> Option<Ticket> {
        self.outstanding.front().map(|(ticket, _)| *ticket)
    }

    /// Notes that a change is durable; the end of the durable prefix if that moved.
    pub(super) fn finish(&mut self, ticket: Ticket) -> Option<Ticket> {
        if let Ok(index) = self.outstanding.binary_search_by_key(&ticket, |(other, _)| *other) {
            self.outstanding[index].1 = true;
        }
        let mut through = None;
        while let Some((ticket, true)) = self.outstanding.front().copied() {
            through = Some(ticket);
            self.outstanding.pop_front();
        }
        through
    }
}

/// A placement group's key in rows.
pub(super) fn row_key(pg: PgId) -> Vec<u8> {
    [pg.pool.0.to_be_bytes(), pg.index.0.to_be_bytes()].concat()
}
