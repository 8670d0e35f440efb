//! The nouns that events, effects and messages share. All plain data; nothing here decides.

use std::time::Duration;

use pflex_proto::geometry::{BLOCK_SIZE, CHUNK_SIZE};
use pflex_proto::ids::{
    ChunkId, DeviceId, Epoch, Member, OperationId, PgId, SdcId, Sequence, Version, VolatilityId, VolumeId,
};

/// Nanoseconds of this device's CLOCK_BOOTTIME. Never compared with another machine's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Time(pub u64);

impl Time {
    /// The moment `by` later.
    #[must_use]
    pub const fn plus(self, by: Duration) -> Self {
        Self(self.0.saturating_add(by.as_nanos() as u64))
    }

    /// How long ago `earlier` was; zero when it lies ahead.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// The place of a store effect in one placement group's order on this device. The store makes them durable in this
/// order and says so cumulatively.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Ticket(pub u64);

/// One attempt of a primary to bring one peer in line (reconciliation or join). Rises within one life of a primary's
/// device, so what a broken connection delivers late is told from what belongs to the present attempt.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Round(pub u64);

/// The driver's handle of a client request that waits for an answer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct RequestId(pub u64);

/// One configuration of a placement group, as the MDM committed it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PgConfig {
    /// The placement group.
    pub pg: PgId,
    /// Grows by one with every change.
    pub epoch: Epoch,
    /// Who orders and answers; none means unavailable.
    pub primary: Option<DeviceId>,
    /// The copies that hold every acknowledged write.
    pub in_sync: Vec<Member>,
    /// Names the memory that holds what was acknowledged and not flushed; travels with acknowledgements (S14).
    pub volatility: VolatilityId,
    /// The pool acknowledges what every in-sync copy holds in memory (S14); else what is durable on all. Never changes.
    pub writeback: bool,
    /// An operator promoted the primary's copy, which was not in sync (S12): what it has counts, as it is.
    pub forced: bool,
    /// The primary answers nothing before the MDM has committed that it will (S11).
    pub to_activate: bool,
}

impl PgConfig {
    /// The primary with its incarnation: the life of it that this epoch names (S2).
    pub fn primary_member(&self) -> Option<Member> {
        let device = self.primary?;
        self.in_sync.iter().copied().find(|member| member.device == device)
    }
}

/// Whose operation ids these are: ids are unique per (SDC, volume) (S7).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ClientKey {
    /// The client host.
    pub sdc: SdcId,
    /// The volume it writes.
    pub volume: VolumeId,
}

/// A piece of a chunk, in bytes from the chunk's start.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Extent {
    /// First byte.
    pub offset: u32,
    /// Number of bytes, at least one.
    pub length: u32,
}

impl Extent {
    /// Whether the two have a byte in common.
    pub const fn overlaps(self, other: Self) -> bool {
        (self.offset as u64) < other.offset as u64 + other.length as u64
            && (other.offset as u64) < self.offset as u64 + self.length as u64
    }

    /// A whole chunk.
    pub const CHUNK: Self = Self { offset: 0, length: CHUNK_SIZE };

    /// One block.
    pub const fn block(number: u16) -> Self {
        Self { offset: number as u32 * BLOCK_SIZE, length: BLOCK_SIZE }
    }

    /// The blocks that have a byte in it.
    #[must_use]
    pub const fn whole_blocks(self) -> Self {
        let start = self.offset - self.offset % BLOCK_SIZE;
        let end = self.offset.saturating_add(self.length).div_ceil(BLOCK_SIZE).saturating_mul(BLOCK_SIZE);
        Self { offset: start, length: end - start }
    }

    /// The smallest that holds both.
    #[must_use]
    pub fn joined(self, other: Self) -> Self {
        let end = |extent: Self| extent.offset.saturating_add(extent.length);
        let offset = self.offset.min(other.offset);
        Self { offset, length: end(self).max(end(other)) - offset }
    }
}

/// What a write puts into its extent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum WriteKind<D> {
    /// These bytes, with their checksums.
    Data(D),
    /// Zeros: TRIM and WRITE_ZEROES are ordered writes too (S13).
    Zeroes,
}

/// A write with its place in the order: what every copy applies, journals and remembers, all three in one step.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OrderedWrite<D> {
    /// Epoch it was ordered in and place in the order; it becomes the chunk's version.
    pub version: Version,
    /// The chunk.
    pub chunk: ChunkId,
    /// Where in the chunk.
    pub extent: Extent,
    /// What.
    pub kind: WriteKind<D>,
    /// Whose operation (S7).
    pub client: ClientKey,
    /// The same on every resend (S7).
    pub operation: OperationId,
    /// The client will never resend an operation below this one; their records go.
    pub low_water: OperationId,
}

/// That an operation was executed, by which write (S7).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OperationEntry {
    /// Whose.
    pub client: ClientKey,
    /// Which.
    pub operation: OperationId,
    /// The write that executed it.
    pub version: Version,
    /// The chunk it wrote: undoing a chunk's writes undoes their ids.
    pub chunk: ChunkId,
}

/// A placement group's whole operation table as persisted and as sent.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct OperationSnapshot {
    /// Operations executed and not yet below their client's low-water mark.
    pub entries: Vec<OperationEntry>,
    /// Each client's low-water mark.
    pub low_waters: Vec<(ClientKey, OperationId)>,
}

/// What the store found for a placement group when the device was opened.
#[derive(Clone, Debug, Default)]
pub struct Recovered {
    /// The highest sequence of any chunk, operation entry or tombstone.
    pub highest: Sequence,
    /// The last watermark persisted with an effect; a lower bound, so it may be old but never too high.
    pub watermark: Sequence,
    /// The volatility id that the watermark was persisted under: its lineage (S25).
    pub lineage: VolatilityId,
    /// The operation table.
    pub operations: OperationSnapshot,
}

/// A chunk in a version list.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChunkEntry {
    /// The chunk.
    pub chunk: ChunkId,
    /// Its version; none is *unsynced*, which equals nothing (S10).
    pub version: Option<Version>,
}

/// CRC32C of each 4 KiB block of a chunk, a hole's being that of zeros. Empty: the copy has no such chunk, all zeros.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct BlockSums(pub Vec<u32>);

/// What a copy found when it read a whole chunk, each block against its checksum.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct VerifiedChunk {
    /// None: unsynced, or there is no such chunk.
    pub version: Option<Version>,
    /// As they are stored.
    pub sums: BlockSums,
    /// The blocks that cannot be read, in rising order.
    pub bad: Vec<u16>,
}

/// How the scrub of one chunk ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ScrubOutcome {
    /// Every copy was read and compared; what was wrong was put right, as far as it can be.
    Checked(ScrubFindings),
    /// It was written meanwhile: come back later.
    Busy,
    /// Copies seem to differ: ask again, after a while.
    Suspect,
    /// A copy is not there, or this one does not lead any more.
    Interrupted,
}

/// What a scrub found in one chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ScrubFindings {
    /// Blocks that could not be read here.
    pub bad_here: usize,
    /// Blocks that other copies could not read.
    pub bad_elsewhere: usize,
    /// Copies that differed from this one, though they should be equal (I4): critical.
    pub differing: usize,
}

/// Neighbouring blocks of a chunk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BlockRun<D> {
    /// The first block.
    pub first_block: u16,
    /// How many.
    pub blocks: u16,
    /// Their bytes; none means zeros.
    pub data: Option<D>,
}

/// What makes another copy of a chunk equal to the primary's: the version and the blocks that differ.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ChunkImage<D> {
    /// The primary's version; none: the primary has no such chunk, so the other copy removes its own.
    pub version: Option<Version>,
    /// The differing blocks in rising order.
    pub runs: Vec<BlockRun<D>>,
}

/// A configuration change that a primary asks the MDM for, by compare-and-set on the epoch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Proposal {
    /// The placement group.
    pub pg: PgId,
    /// Refused unless this is the present epoch.
    pub expected_epoch: Epoch,
    /// The in-sync set to come.
    pub in_sync: Vec<Member>,
    /// Why, for events and `pflex why`.
    pub reason: ProposalReason,
}

/// Why a configuration should change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProposalReason {
    /// A backup did not answer in time, or its connection is gone.
    BackupSilent(Member),
    /// A backup said that it cannot apply an ordered write (S4).
    BackupCannotApply(Member),
    /// A joiner holds everything (S3).
    JoinerSynced(Member),
    /// The primary itself cannot apply an ordered write and gives the group up (S4).
    PrimaryCannotApply(Member),
    /// Nothing changes: the primary is about to answer (S11). Committed, it is answered by `Event::Activated`.
    Activation,
}

/// Why a request was not executed. Every one but `OldOperation` and `LostMemory` may be sent again, under the same operation id.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// Ask the primary of the present epoch.
    #[error("this copy is not the primary in epoch {epoch}")]
    NotPrimary {
        /// The epoch this copy knows.
        epoch: Epoch,
    },
    /// The request named another epoch than this copy is in.
    #[error("the placement group is in epoch {epoch}")]
    WrongEpoch {
        /// The epoch this copy knows; lower than the request's when this copy is behind.
        epoch: Epoch,
    },
    /// A new epoch is being opened (S1, S6).
    #[error("epoch {epoch} is being opened")]
    Opening {
        /// That epoch.
        epoch: Epoch,
    },
    /// A read needs leases from all in-sync copies, and one has lapsed (S5).
    #[error("no read lease from every in-sync copy in epoch {epoch}")]
    NoLease {
        /// The present epoch.
        epoch: Epoch,
    },
    /// A bound of `limits` is reached.
    #[error("the placement group has as many requests in flight as it may")]
    Busy,
    /// The operation table cannot grow (S7).
    #[error("the placement group remembers operations of as many clients and volumes as it can; delete unused volumes")]
    OperationsFull,
    /// An in-sync copy has no room for a new chunk (S4).
    #[error("device {device} has no space for another chunk")]
    NoSpace {
        /// The device.
        device: DeviceId,
    },
    /// The client promised never to send this operation again.
    #[error("the operation is below the client's low-water mark")]
    OldOperation,
    /// The write was ordered, and then this copy lost its role: it may be executed or undone. Send it again.
    #[error("the outcome is not known here; epoch {epoch} decides it")]
    OutcomeUnknown {
        /// The epoch this copy knows.
        epoch: Epoch,
    },
    /// The store could not read, and no other in-sync copy can.
    #[error("the store cannot read this extent")]
    Unreadable,
    /// The store could not read, but another in-sync copy may (`repairs`).
    #[error("the store cannot read this extent now, and another copy may have it")]
    Unrepaired,
    /// A FLUSH named memory that no copy has any more: what was acknowledged with it and not flushed may be lost (S14).
    #[error("no copy kept the memory that held these writes: they name {named}, this is {present}; some may be lost")]
    LostMemory {
        /// What the writes were acknowledged with.
        named: VolatilityId,
        /// The present one.
        present: VolatilityId,
    },
    /// The write was not ordered yet when its session or token became void (S9, S20).
    #[error("the request was discarded before it was ordered")]
    Cancelled,
    /// This copy failed and waits to be replaced (S4).
    #[error("this copy cannot apply writes and has left the placement group")]
    CopyFailed,
}

/// The answer to a client request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome<D> {
    /// The write is durable on every in-sync copy, or in a writeback pool held by each. Also the answer to every resend.
    Written {
        /// Of the present epoch (S14).
        volatility: VolatilityId,
        /// The place the write was given when it was first executed.
        version: Version,
    },
    /// Everything that was acknowledged in this group with this volatility id is durable on every in-sync copy (S14).
    Flushed {
        /// Of the present epoch, and as the request named it.
        volatility: VolatilityId,
    },
    /// The bytes asked for.
    Read {
        /// The payload.
        data: D,
    },
    /// Not executed in this attempt (but see `OutcomeUnknown`); an earlier attempt of the same operation may have been.
    Refused(Refusal),
}

/// Why a joiner is not filled, although it is there. It is tried again, less and less often.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum JoinTrouble {
    /// The primary cannot read a chunk that it should copy.
    Unreadable {
        /// Which.
        chunk: ChunkId,
    },
    /// The joiner has no space for a chunk.
    NoSpace {
        /// Its device.
        device: DeviceId,
    },
    /// The joiner could not apply a write.
    CannotApply {
        /// Its device.
        device: DeviceId,
    },
}
