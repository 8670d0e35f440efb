//! What copies of a placement group say to one another. `wire` has the bytes.
//!
//! Every message names both ends with their incarnations and the epoch (S2). A receiver in a newer epoch refuses, one
//! in an older epoch fetches the configuration before it acts.

use pflex_proto::ids::{ChunkId, Epoch, Member, PgId, Sequence, Version};

use super::types::{
    BlockSums, ChunkEntry, ChunkImage, Extent, OperationEntry, OperationSnapshot, OrderedWrite, Round, VerifiedChunk,
};

/// A message with its addresses.
#[derive(Clone, Debug, PartialEq)]
pub struct Message<D> {
    /// The life of the sender.
    pub from: Member,
    /// The life of the receiver it is meant for.
    pub to: Member,
    /// The placement group.
    pub pg: PgId,
    /// The sender's epoch.
    pub epoch: Epoch,
    /// What it says.
    pub body: Body<D>,
}

/// What a message says. P is from the primary, R the reply of a backup or joiner.
#[derive(Clone, Debug, PartialEq)]
pub enum Body<D> {
    /// P: apply this. `previous` is the sequence sent before on this stream; it tells a gap (S4).
    Write {
        /// The round in which this peer was opened or began to join.
        round: Round,
        /// The sequence of the write sent before this one.
        previous: Sequence,
        /// Durable on every in-sync copy up to here (S1).
        committed: Sequence,
        /// The write.
        write: OrderedWrite<D>,
    },
    /// R: durable here up to this sequence; in a writeback pool held here in memory (S14). Cumulative.
    WriteAck {
        /// As in `Write`.
        round: Round,
        /// Everything sent on this stream up to here.
        through: Sequence,
    },
    /// R, in a writeback pool: durable here up to this sequence (S14). Cumulative.
    Durable {
        /// As in `Write`.
        round: Round,
        /// Everything sent on this stream up to here.
        through: Sequence,
    },
    /// R: a write is missing after this one; send from there.
    Gap {
        /// As in `Write`.
        round: Round,
        /// The last one received.
        after: Sequence,
    },
    /// R: this copy cannot apply ordered writes and leaves (S4).
    CannotApply,
    /// P: the watermark, when no write carries it.
    Committed {
        /// As in `Write`.
        round: Round,
        /// Durable on every in-sync copy up to here.
        through: Sequence,
    },
    /// P, new epoch: list what you have above your watermark (S1).
    Collect {
        /// Names this attempt.
        round: Round,
    },
    /// P, to a copy outside the in-sync set: list all you have (S10).
    JoinStart {
        /// Names this attempt.
        round: Round,
    },
    /// R to `Collect` and `JoinStart`, a page of the list; all of it is durable.
    VersionList {
        /// The attempt.
        round: Round,
        /// The highest sequence this copy ever applied or heard of: no new write gets one at or below.
        highest: Sequence,
        /// This copy's watermark.
        watermark: Sequence,
        /// Some of the chunks.
        entries: Vec<ChunkEntry>,
        /// Another page follows.
        more: bool,
    },
    /// P: which blocks of this chunk do you have?
    SumsRequest {
        /// The attempt.
        round: Round,
        /// The chunk.
        chunk: ChunkId,
    },
    /// R: these.
    Sums {
        /// The attempt.
        round: Round,
        /// The chunk.
        chunk: ChunkId,
        /// Its checksums.
        sums: BlockSums,
    },
    /// P to an in-sync copy: make this chunk so, and its operation ids (S1, S7).
    Fix {
        /// The attempt.
        round: Round,
        /// The chunk.
        chunk: ChunkId,
        /// What differs.
        image: ChunkImage<D>,
        /// All operation records of the chunk at the primary.
        operations: Vec<OperationEntry>,
    },
    /// R: the chunk is durably equal.
    Fixed {
        /// The attempt.
        round: Round,
        /// The chunk.
        chunk: ChunkId,
    },
    /// P: all chunks are equal; the epoch begins after `last` with this operation table.
    Open {
        /// The attempt.
        round: Round,
        /// The stream of writes continues after this.
        last: Sequence,
        /// Replaces yours.
        operations: OperationSnapshot,
    },
    /// R: durably so.
    Opened {
        /// The attempt.
        round: Round,
    },
    /// P to a joiner: make this chunk so; unsynced first, version last (S10).
    SyncChunk {
        /// The attempt.
        round: Round,
        /// The chunk.
        chunk: ChunkId,
        /// What differs.
        image: ChunkImage<D>,
    },
    /// R: the chunk is durably equal.
    ChunkSynced {
        /// The attempt.
        round: Round,
        /// The chunk.
        chunk: ChunkId,
    },
    /// P: all chunks are equal; flush everything, then say so.
    JoinEnd {
        /// The attempt.
        round: Round,
        /// Everything ordered up to here is in your chunks or in writes already sent.
        last: Sequence,
        /// Your watermark from now on.
        watermark: Sequence,
        /// Replaces yours.
        operations: OperationSnapshot,
    },
    /// R: all of it is durable.
    JoinReady {
        /// The attempt.
        round: Round,
    },
    /// P: set space aside for a new chunk before I order its first write (S4).
    Reserve {
        /// The attempt this peer was opened in.
        round: Round,
        /// The chunk.
        chunk: ChunkId,
    },
    /// R: done, or there is none.
    Reserved {
        /// As in `Reserve`.
        round: Round,
        /// The chunk.
        chunk: ChunkId,
        /// Whether there is room.
        granted: bool,
    },
    /// R to `SyncChunk`: there is no space for it here; the chunk is as it was (S10).
    ChunkRefused {
        /// The attempt.
        round: Round,
        /// The chunk.
        chunk: ChunkId,
    },
    /// R of a joiner: it cannot apply what it was sent, for want of space.
    NoSpace,
    /// R to a message of an older epoch or to another incarnation: the receiver's own epoch is the message's.
    Refused,
    /// P: what do you have in these blocks? They cannot be read here (S13).
    FetchBlocks {
        /// The attempt this peer was opened in.
        round: Round,
        /// The chunk.
        chunk: ChunkId,
        /// Whole blocks of it.
        extent: Extent,
    },
    /// R: this, under this version. Also P: this is what you cannot read (S13).
    Blocks {
        /// As in `FetchBlocks`.
        round: Round,
        /// The chunk.
        chunk: ChunkId,
        /// As in `FetchBlocks`.
        extent: Extent,
        /// The version of the chunk that the bytes are of.
        version: Option<Version>,
        /// The bytes; none: they cannot be read here either.
        data: Option<D>,
    },
    /// P: what `Reserve` set aside for this chunk is not needed: its write was not ordered.
    Unreserve {
        /// The attempt this peer was opened in.
        round: Round,
        /// The chunk.
        chunk: ChunkId,
    },
    /// P: read this chunk whole, each block against its checksum.
    Verify {
        /// The attempt this peer was opened in.
        round: Round,
        /// Which look at the chunk: there may have been an earlier one, whose answer is under way.
        scrub: Round,
        /// The chunk.
        chunk: ChunkId,
    },
    /// R: this was found.
    Verified {
        /// As in `Verify`.
        round: Round,
        /// As in `Verify`.
        scrub: Round,
        /// The chunk.
        chunk: ChunkId,
        /// What was found.
        verified: VerifiedChunk,
    },
    /// From the primary of an earlier epoch to that of this one: I have left, and answer nothing of before (S6).
    HandBack,
}
