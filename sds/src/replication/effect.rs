//! What a placement group's replica wants done. The driver carries effects out in the order they are emitted.
//!
//! Persist-before-send: a `Send` or `Reply` may always go at once, because the core emits it only after the durability
//! it depends on was reported. Effects with a [`Ticket`] change the store and are answered by `Event::Durable`.
//! A store read sees every change emitted before it.

use pflex_proto::ids::{ChunkId, Epoch, PgId, Sequence, Version};

use super::message::Message;
use super::types::{
    BlockRun, BlockSums, ChunkImage, Extent, OperationEntry, OperationSnapshot, OrderedWrite, Outcome, Proposal,
    RequestId, Round, ScrubOutcome, Ticket,
};

/// One output of [`super::Pg::handle`].
#[derive(Clone, Debug, PartialEq)]
pub enum Effect<D> {
    /// Apply a write: data, chunk version and operation record in one atomic step. After a crash each chunk holds
    /// exactly a prefix of its writes, with the operation records of exactly that prefix (S4, S7).
    Apply {
        /// Its place.
        ticket: Ticket,
        /// The write.
        write: OrderedWrite<D>,
        /// Persist along with it: nothing at or below this differs between in-sync copies (S1). A hint that may be
        /// written later or never.
        watermark: Sequence,
    },
    /// Make a chunk of an in-sync copy equal to the primary's: blocks, version and the chunk's operation records
    /// (which replace all that this chunk had) in one atomic step; a crash leaves all of it or nothing (S1, S7).
    FixChunk {
        /// Its place.
        ticket: Ticket,
        /// The chunk; created when missing.
        chunk: ChunkId,
        /// Version none: remove the chunk.
        image: ChunkImage<D>,
        /// All operation records of this chunk.
        operations: Vec<OperationEntry>,
    },
    /// Mark a joiner's chunk unsynced: it lists without a version until `SetVersion` (S10). Created when missing.
    MarkUnsynced {
        /// Its place.
        ticket: Ticket,
        /// The chunk.
        chunk: ChunkId,
    },
    /// Change blocks of an unsynced chunk. Need not be atomic.
    WriteBlocks {
        /// Its place.
        ticket: Ticket,
        /// The chunk.
        chunk: ChunkId,
        /// The blocks.
        runs: Vec<BlockRun<D>>,
    },
    /// The chunk now equals the primary's at this version; it is no longer unsynced.
    SetVersion {
        /// Its place.
        ticket: Ticket,
        /// The chunk.
        chunk: ChunkId,
        /// None: remove the chunk.
        version: Option<Version>,
    },
    /// Replace this placement group's operation table and its watermark (which may fall), atomically.
    ReplaceOperations {
        /// Its place.
        ticket: Ticket,
        /// The new table.
        operations: OperationSnapshot,
        /// The new watermark, of the present configuration's lineage (S25).
        watermark: Sequence,
        /// Sequences up to this one may have been given: a life to come begins above it (S4, S25).
        last: Sequence,
    },
    /// Accept changes again after a `StoreFailed`: everything emitted before this and not yet done is dropped.
    ClearFailure {
        /// Its place.
        ticket: Ticket,
    },
    /// Read for a client; answered by `ReadDone`.
    Read {
        /// Which.
        request: RequestId,
        /// The chunk.
        chunk: ChunkId,
        /// Where.
        extent: Extent,
    },
    /// Read the edge blocks of an unaligned write and merge its bytes in; answered by `Merged` (S15). The driver still
    /// has the request's own bytes. The core lets no other write to this chunk in meanwhile.
    Merge {
        /// Which.
        request: RequestId,
        /// The chunk.
        chunk: ChunkId,
        /// As the client sent it.
        extent: Extent,
        /// What the client sent.
        data: D,
    },
    /// List this placement group's chunks with a version above the sequence, or all of them, and in both cases all
    /// unsynced ones; answered by `Listed`.
    ListVersions {
        /// Which.
        round: Round,
        /// None: all.
        above: Option<Sequence>,
    },
    /// Read a chunk's block checksums; answered by `SumsRead`.
    ReadSums {
        /// Which attempt.
        round: Round,
        /// The chunk.
        chunk: ChunkId,
    },
    /// Read the chunk's version and those blocks whose checksums differ from these; answered by `DifferenceRead`.
    /// A driver that limits resync memory delays these.
    ReadDifference {
        /// Which attempt.
        round: Round,
        /// The chunk.
        chunk: ChunkId,
        /// The other copy's.
        theirs: BlockSums,
    },
    /// Look which blocks cannot be read; answered by `UnreadableFound`.
    FindUnreadable {
        /// Which attempt.
        round: Round,
        /// The chunk.
        chunk: ChunkId,
        /// Whole blocks of it.
        extent: Extent,
    },
    /// Read blocks for another copy; answered by `BlocksRead`.
    ReadBlocks {
        /// Which attempt.
        round: Round,
        /// The chunk.
        chunk: ChunkId,
        /// Whole blocks of it.
        extent: Extent,
    },
    /// Put blocks back that could not be read. Nothing happens, and that is no failure, if the chunk has another version
    /// by now, or if these are not the bytes whose checksums this copy has (S13).
    Repair {
        /// Its place.
        ticket: Ticket,
        /// The chunk.
        chunk: ChunkId,
        /// The chunk's version, here and at the copy that the bytes are from.
        version: Version,
        /// Whole blocks of it.
        extent: Extent,
        /// Their bytes.
        data: D,
    },
    /// Read a whole chunk, each block against its checksum; answered by `Verified`.
    Verify {
        /// Which attempt.
        round: Round,
        /// The chunk.
        chunk: ChunkId,
    },
    /// The answer to `Event::Scrub`.
    Scrubbed {
        /// The chunk.
        chunk: ChunkId,
        /// How it ended.
        outcome: ScrubOutcome,
    },
    /// For a person: these bytes cannot be read here, and no other in-sync copy has them.
    Unreadable {
        /// The chunk.
        chunk: ChunkId,
        /// Which bytes of it.
        extent: Extent,
    },
    /// Set space aside for a chunk until it is created or `ReleaseReservations`; answered by `Reserved` (S4).
    Reserve {
        /// The chunk.
        chunk: ChunkId,
    },
    /// Free what `Reserve` set aside for this chunk, if it was not used.
    Unreserve {
        /// The chunk.
        chunk: ChunkId,
    },
    /// Free what `Reserve` set aside for this placement group and was not used.
    ReleaseReservations,
    /// Send to `message.to`. Dropped when no connection to that member is up.
    Send(Message<D>),
    /// Answer a client.
    Reply {
        /// Which.
        request: RequestId,
        /// With what.
        outcome: Outcome<D>,
    },
    /// Ask the MDM; the driver retries until it is committed or refused for good, under one exactly-once sequence.
    /// Several groups' proposals go in one call.
    Propose(Proposal),
    /// A newer epoch was seen: get the configuration.
    FetchConfig {
        /// The placement group.
        pg: PgId,
        /// At least this one.
        at_least: Epoch,
    },
    /// The epoch changed while leases are needed: ask the peers for fresh grants now instead of at the next second.
    RenewLeases,
}
