//! The nouns of the store's interface: plain data, nothing here decides.

use bytes::Bytes;
use pflex_proto::{
    geometry::{BLOCK_SIZE, BLOCKS_PER_CHUNK},
    ids::{ChunkId, OperationId, PgId, SdcId, Sequence, Version, VolatilityId, VolumeId},
};

use super::blocks::zero_crc;

/// The place of a change in the order of changes of this store.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Ticket(pub u64);

/// Every change of `pg` up to `through` is durable, those between two tickets of other groups aside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Durable {
    /// The placement group.
    pub pg: PgId,
    /// The last ticket of the durable prefix.
    pub through: Ticket,
}

/// Which journal reserve a change may use (S24): a full client share leaves room for other copies' traffic.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lane {
    /// Ordered here, for a client.
    Client,
    /// Ordered elsewhere: replication and resync.
    Replication,
}

/// Neighbouring whole blocks of a chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockRange {
    first: u16,
    count: u16,
}

impl BlockRange {
    /// All blocks of a chunk.
    pub const WHOLE: Self = Self { first: 0, count: BLOCKS_PER_CHUNK as u16 };

    /// None unless it holds at least one block and ends inside the chunk.
    pub const fn new(first: u16, count: u16) -> Option<Self> {
        if count == 0 || first as u32 + count as u32 > BLOCKS_PER_CHUNK {
            return None;
        }
        Some(Self { first, count })
    }

    /// From bytes of the chunk; none unless they are whole blocks inside it.
    pub const fn from_bytes(offset: u32, length: u32) -> Option<Self> {
        if !offset.is_multiple_of(BLOCK_SIZE) || !length.is_multiple_of(BLOCK_SIZE) {
            return None;
        }
        let (first, count) = (offset / BLOCK_SIZE, length / BLOCK_SIZE);
        if first >= BLOCKS_PER_CHUNK || count > BLOCKS_PER_CHUNK {
            return None;
        }
        Self::new(first as u16, count as u16)
    }

    /// The smallest range that holds these bytes, for read-modify-write (S15); none if they leave the chunk.
    pub const fn around(offset: u32, length: u32) -> Option<Self> {
        let Some(end) = offset.checked_add(length) else { return None };
        let start = offset - offset % BLOCK_SIZE;
        Self::from_bytes(start, end.next_multiple_of(BLOCK_SIZE) - start)
    }

    /// The first block.
    pub const fn first(self) -> u16 {
        self.first
    }

    /// How many blocks.
    pub const fn count(self) -> u16 {
        self.count
    }

    /// The block numbers.
    pub fn blocks(self) -> std::ops::Range<u16> {
        self.first..self.first + self.count
    }

    /// How many bytes.
    pub const fn bytes(self) -> usize {
        self.count as usize * BLOCK_SIZE as usize
    }

    /// Whether it is the whole chunk.
    pub const fn is_whole(self) -> bool {
        self.count as u32 == BLOCKS_PER_CHUNK
    }
}

/// Neighbouring blocks and what they hold from now on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Run {
    /// Which blocks.
    pub blocks: BlockRange,
    /// Their bytes; none means zeros.
    pub data: Option<Bytes>,
    /// CRC32C of each block of `data`; empty for zeros.
    pub checksums: Vec<u32>,
}

impl Run {
    /// Blocks that become zeros: TRIM and WRITE_ZEROES (S13).
    pub const fn zeros(blocks: BlockRange) -> Self {
        Self { blocks, data: None, checksums: Vec::new() }
    }

    /// Blocks with these bytes, whose checksums are computed here.
    pub fn data(blocks: BlockRange, data: Bytes) -> Self {
        let checksums = data.chunks(BLOCK_SIZE as usize).map(crc32c::crc32c).collect();
        Self { blocks, data: Some(data), checksums }
    }

    /// Whether lengths agree; the store refuses others.
    pub(crate) fn is_sound(&self) -> bool {
        match &self.data {
            None => self.checksums.is_empty(),
            Some(data) => data.len() == self.blocks.bytes() && self.checksums.len() == usize::from(self.blocks.count()),
        }
    }
}

/// Whose operation ids these are: ids are unique per (SDC, volume) (S7).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Client {
    /// The client host.
    pub sdc: SdcId,
    /// The volume it writes.
    pub volume: VolumeId,
}

/// That an operation was executed, by which write (S7).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Operation {
    /// Whose.
    pub client: Client,
    /// Which.
    pub id: OperationId,
    /// The write that executed it.
    pub version: Version,
    /// The chunk it wrote: undoing a chunk's writes undoes their ids.
    pub chunk: ChunkId,
}

/// A placement group's operation ids, whole.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct OperationSnapshot {
    /// Executed and not yet below their client's low-water mark.
    pub entries: Vec<Operation>,
    /// Each client's low-water mark.
    pub low_waters: Vec<(Client, OperationId)>,
}

/// Who caused a write (S7).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Origin {
    /// The client.
    pub client: Client,
    /// The same on every resend.
    pub operation: OperationId,
    /// The client will never resend an operation below this one; their records go.
    pub low_water: OperationId,
}

/// A write with its place in the order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OrderedWrite {
    /// The placement group.
    pub pg: PgId,
    /// The chunk.
    pub chunk: ChunkId,
    /// It becomes the chunk's version; newer than the present one.
    pub version: Version,
    /// What changes, in whole blocks.
    pub run: Run,
    /// Whose operation.
    pub origin: Origin,
    /// Persisted along with it: nothing at or below differs between in-sync copies (S1).
    pub watermark: Sequence,
    /// Persisted along with it (S14).
    pub volatility: VolatilityId,
    /// Which journal reserve it may use.
    pub lane: Lane,
}

/// Makes a chunk of an in-sync copy equal to the primary's in one atomic step (S1).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fix {
    /// The placement group.
    pub pg: PgId,
    /// The chunk; created when missing.
    pub chunk: ChunkId,
    /// The primary's version, which may be the lower one; none removes the chunk.
    pub version: Option<Version>,
    /// The blocks that differ, in rising order.
    pub runs: Vec<Run>,
    /// All operations of this chunk; they replace those that are here.
    pub operations: Vec<Operation>,
}

/// A chunk in a version list.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ChunkEntry {
    /// The chunk.
    pub chunk: ChunkId,
    /// Its version; none is *unsynced*, which equals nothing (S10).
    pub version: Option<Version>,
}

/// What a read returns.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReadData {
    /// The bytes.
    pub data: Bytes,
    /// CRC32C of each block, that of zeros for holes.
    pub checksums: Vec<u32>,
    /// The chunk's version when the read was asked for; none: unsynced or no such chunk.
    pub version: Option<Version>,
}

/// All checksums of a chunk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Checksums {
    /// None: unsynced.
    pub version: Option<Version>,
    /// CRC32C of each of the chunk's blocks, that of zeros for holes.
    pub blocks: Vec<u32>,
}

/// What was found of a placement group when the device was opened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PgReport {
    /// The placement group.
    pub pg: PgId,
    /// The last watermark persisted: possibly old, never too high.
    pub watermark: Sequence,
    /// The last volatility id persisted.
    pub volatility: VolatilityId,
    /// The highest version ever applied here, so that none is used twice (S4).
    pub highest: Version,
    /// The operation table.
    pub operations: OperationSnapshot,
    /// Chunks known, tombstones included.
    pub chunks: u64,
    /// Of them unsynced.
    pub unsynced: u64,
}

/// Merges bytes into a block for read-modify-write (S15) and returns it with its checksum; none if they do not fit.
pub fn patch_blocks(old: &[u8], offset: usize, bytes: &[u8]) -> Option<(Bytes, Vec<u32>)> {
    let mut new = old.to_vec();
    new.get_mut(offset..offset.checked_add(bytes.len())?)?.copy_from_slice(bytes);
    let checksums = new.chunks(BLOCK_SIZE as usize).map(crc32c::crc32c).collect();
    Some((Bytes::from(new), checksums))
}

/// Checksums of `count` blocks of zeros.
pub fn zero_checksums(count: usize) -> Vec<u32> {
    vec![zero_crc(); count]
}
