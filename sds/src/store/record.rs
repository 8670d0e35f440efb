//! Journal records: one change each, of one chunk or one placement group, whole.
//!
//! The same value is what waits in memory until it is durable, what is encoded into a group, and what replay applies
//! again. A record after its length (u32), little-endian: kind u8, placed u8, pg 8, chunk 20, version 16, unit u32,
//! watermark u64, volatility u64; then u32 counts followed by: runs (first u16, count u16, has data u8, checksums),
//! operations, low-water marks; then the bytes of all runs with data unless `placed`.

use bytes::Bytes;
use pflex_proto::{
    codec::{CodecError, Reader, Wire},
    geometry::BLOCKS_PER_CHUNK,
    ids::{ChunkId, PgId, Sequence, Version, VolatilityId},
};

use super::types::{BlockRange, Client, Operation, OperationSnapshot, Run};

/// A 1 MiB piece of the data area.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct UnitId(pub(super) u32);

const NO_UNIT: u32 = u32::MAX;
/// Operations in one record: 2,048 clients with 32 in flight each.
pub(super) const MAX_OPERATIONS: usize = 1 << 16;

/// What a record does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// Runs, version, operation (S4, S7).
    Write = 1,
    /// Runs, version, and all operations of the chunk (S1).
    Fix = 2,
    /// Runs only: an unsynced chunk's blocks, or a repair.
    Blocks = 3,
    /// The chunk equals nothing until `SetVersion` (S10).
    MarkUnsynced = 4,
    /// The chunk is synced, at this version.
    SetVersion = 5,
    /// The chunk and its operations are forgotten, without a tombstone.
    Remove = 6,
    /// The operation table and the watermark are replaced; its version says which sequences were given (S25).
    ReplaceOperations = 7,
    /// What is left of the placement group after its chunks were removed is forgotten.
    DropPg = 8,
}

impl Kind {
    const ALL: [Self; 8] = [
        Self::Write,
        Self::Fix,
        Self::Blocks,
        Self::MarkUnsynced,
        Self::SetVersion,
        Self::Remove,
        Self::ReplaceOperations,
        Self::DropPg,
    ];

    /// Whether it changes one chunk; the others change a placement group.
    pub(super) const fn is_of_chunk(self) -> bool {
        !matches!(self, Self::ReplaceOperations | Self::DropPg)
    }
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) kind: Kind,
    pub(super) pg: PgId,
    pub(super) chunk: ChunkId,
    pub(super) version: Version,
    /// The unit the chunk gets if it has none when this is applied.
    pub(super) unit: Option<UnitId>,
    pub(super) watermark: Sequence,
    pub(super) volatility: VolatilityId,
    pub(super) runs: Vec<Run>,
    pub(super) operations: OperationSnapshot,
}

impl Record {
    /// One with nothing in it, to be filled in.
    pub(super) fn new(kind: Kind, pg: PgId, chunk: ChunkId) -> Self {
        Self {
            kind,
            pg,
            chunk,
            version: Version::ZERO,
            unit: None,
            watermark: Sequence(0),
            volatility: VolatilityId(0),
            runs: Vec::new(),
            operations: OperationSnapshot::default(),
        }
    }

    /// Whether it makes the whole chunk zeros and so frees its unit.
    pub(super) fn empties_chunk(&self) -> bool {
        self.kind == Kind::Remove || self.runs.iter().any(|run| run.blocks.is_whole() && run.data.is_none())
    }

    /// Whether the chunk needs a unit for it.
    pub(super) fn has_data(&self) -> bool {
        self.runs.iter().any(|run| run.data.is_some())
    }

    /// Bytes of the encoding, with the runs' bytes unless they are elsewhere.
    pub(super) fn encoded_bytes(&self, placed: bool) -> usize {
        let data: usize = if placed { 0 } else { self.data().map(Bytes::len).sum() };
        let runs: usize = self.runs.iter().map(|run| 2 + 2 + 1 + 4 + 4 * run.checksums.len()).sum();
        FIXED_BYTES
            + data
            + runs
            + OPERATION_BYTES * self.operations.entries.len()
            + 20 * self.operations.low_waters.len()
    }

    /// Appends everything but the runs' bytes; the caller appends those unless `placed`.
    pub(super) fn encode_head(&self, placed: Option<UnitId>, out: &mut Vec<u8>) {
        let start = out.len();
        0_u32.encode(out);
        out.push(self.kind as u8);
        out.push(u8::from(placed.is_some()));
        self.pg.encode(out);
        self.chunk.encode(out);
        self.version.encode(out);
        placed.or(self.unit).map_or(NO_UNIT, |unit| unit.0).encode(out);
        self.watermark.encode(out);
        self.volatility.encode(out);
        (self.runs.len() as u32).encode(out);
        for run in &self.runs {
            run.blocks.first().encode(out);
            run.blocks.count().encode(out);
            out.push(u8::from(run.data.is_some()));
            run.checksums.encode(out);
        }
        (self.operations.entries.len() as u32).encode(out);
        self.operations.entries.iter().for_each(|operation| operation.encode(out));
        (self.operations.low_waters.len() as u32).encode(out);
        for (client, id) in &self.operations.low_waters {
            client.encode(out);
            id.encode(out);
        }
        let inline: usize = if placed.is_some() { 0 } else { self.data().map(Bytes::len).sum() };
        let length = (out.len() - start + inline) as u32;
        out[start..start + 4].copy_from_slice(&length.to_le_bytes());
    }

    /// The bytes of all runs that have any.
    pub(super) fn data(&self) -> impl Iterator<Item = &Bytes> {
        self.runs.iter().filter_map(|run| run.data.as_ref())
    }

    /// Takes one record off the front of `payload`, sharing its memory; with the unit its data was placed in, if so.
    pub(super) fn decode(payload: &mut Bytes) -> Result<(Self, Option<UnitId>), CodecError> {
        let length = Reader::new(payload).get::<u32>()? as usize;
        if length < 4 || length > payload.len() {
            return Err(CodecError::Truncated { at: 0, missing: length.saturating_sub(payload.len()) });
        }
        let body = payload.split_to(length).slice(4..);
        let mut reader = Reader::new(&body);
        let (tag, placed): (u8, u8) = (reader.get()?, reader.get()?);
        let bad = || CodecError::BadTag { what: "journal record", value: tag.into() };
        let kind = Kind::ALL.into_iter().find(|kind| *kind as u8 == tag).ok_or_else(bad)?;
        let mut record = Self::new(kind, reader.get()?, reader.get()?);
        record.version = reader.get()?;
        let unit: u32 = reader.get()?;
        record.unit = (unit != NO_UNIT).then_some(UnitId(unit));
        record.watermark = reader.get()?;
        record.volatility = reader.get()?;
        let mut has_data = Vec::new();
        for _ in 0..bounded(&mut reader, BLOCKS_PER_CHUNK as usize)? {
            let (first, count, data): (u16, u16, u8) = (reader.get()?, reader.get()?, reader.get()?);
            let range = BlockRange::new(first, count)
                .ok_or(CodecError::BadTag { what: "block range", value: u64::from(first) << 16 | u64::from(count) })?;
            record.runs.push(Run { blocks: range, data: None, checksums: reader.list(BLOCKS_PER_CHUNK as usize)? });
            has_data.push(data == 1);
        }
        for _ in 0..bounded(&mut reader, MAX_OPERATIONS)? {
            record.operations.entries.push(reader.get()?);
        }
        for _ in 0..bounded(&mut reader, MAX_OPERATIONS)? {
            record.operations.low_waters.push((reader.get()?, reader.get()?));
        }
        let mut at = body.len() - reader.remaining();
        for (run, has_data) in record.runs.iter_mut().zip(has_data) {
            if !has_data {
                continue;
            }
            // Of placed data only the checksums are here; the marker below keeps "zeros" and "elsewhere" apart.
            let length = if placed == 1 { 0 } else { run.blocks.bytes() };
            if body.len() - at < length {
                return Err(CodecError::Truncated { at, missing: length - (body.len() - at) });
            }
            run.data = Some(body.slice(at..at + length));
            at += length;
        }
        if at != body.len() {
            return Err(CodecError::TrailingBytes { extra: body.len() - at });
        }
        let placed = if placed == 1 { record.unit } else { None };
        Ok((record, placed))
    }
}

fn bounded(reader: &mut Reader<'_>, limit: usize) -> Result<usize, CodecError> {
    let count = reader.get::<u32>()? as usize;
    if count > limit {
        return Err(CodecError::TooLong { count, limit });
    }
    Ok(count)
}

impl Wire for Client {
    fn encode(&self, out: &mut Vec<u8>) {
        self.sdc.encode(out);
        self.volume.encode(out);
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        Ok(Self { sdc: reader.get()?, volume: reader.get()? })
    }
}

impl Wire for Operation {
    fn encode(&self, out: &mut Vec<u8>) {
        self.client.encode(out);
        self.id.encode(out);
        self.version.encode(out);
        self.chunk.encode(out);
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        Ok(Self { client: reader.get()?, id: reader.get()?, version: reader.get()?, chunk: reader.get()? })
    }
}

const OPERATION_BYTES: usize = 12 + 8 + 16 + 20;
const FIXED_BYTES: usize = 4 + 2 + 8 + 20 + 16 + 4 + 8 + 8 + 3 * 4;
const _: () = assert!(FIXED_BYTES == 82 && OPERATION_BYTES == 56, "sizes are part of the format");
