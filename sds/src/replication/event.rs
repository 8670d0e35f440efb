//! What happens to a placement group's replica. The driver turns packets, completions and timers into these, one at a
//! time; it decides nothing.

use pflex_proto::ids::{ChunkId, Epoch, Member, OperationId, Version, VolatilityId};

use super::message::Message;
use super::types::{
    BlockSums, ChunkEntry, ChunkImage, ClientKey, Extent, PgConfig, RequestId, Round, Ticket, VerifiedChunk, WriteKind,
};

/// A write that was admitted: session, token and checksums are already verified, local space is reserved.
#[derive(Clone, Debug)]
pub struct ClientWrite<D> {
    /// The driver's handle for the answer.
    pub request: RequestId,
    /// The epoch the client believes in (S9).
    pub epoch: Epoch,
    /// Whose operation.
    pub client: ClientKey,
    /// The same on every resend (S7).
    pub operation: OperationId,
    /// Below this the client never resends.
    pub low_water: OperationId,
    /// The chunk.
    pub chunk: ChunkId,
    /// Where; whole blocks unless `merge` is set.
    pub extent: Extent,
    /// What.
    pub kind: WriteKind<D>,
    /// The extent does not end on block edges: the primary reads and merges the edge blocks first (S15).
    pub merge: bool,
    /// The local store has no such chunk yet, so every other copy reserves space before the write is ordered (S4).
    pub creates_chunk: bool,
    /// Answered only when it is durable on every in-sync copy, in a writeback pool too (S14).
    pub fua: bool,
}

/// A FLUSH that was admitted: for groups of writeback pools only.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClientFlush {
    /// The driver's handle for the answer.
    pub request: RequestId,
    /// The epoch the client believes in (S9).
    pub epoch: Epoch,
    /// What its writes were acknowledged with (S14).
    pub volatility: VolatilityId,
}

/// A read that was admitted.
#[derive(Clone, Copy, Debug)]
pub struct ClientRead {
    /// The driver's handle for the answer.
    pub request: RequestId,
    /// The epoch the client believes in (S9).
    pub epoch: Epoch,
    /// The chunk.
    pub chunk: ChunkId,
    /// Where.
    pub extent: Extent,
}

/// One input of [`super::Pg::handle`].
#[derive(Clone, Debug)]
pub enum Event<D> {
    /// The MDM's configuration, and which live replicas are not in it (they may join). Sent again with the same epoch
    /// when only the joiners changed; those of one epoch come in the order in which they changed. Older epochs are
    /// ignored.
    Config {
        /// The configuration.
        config: PgConfig,
        /// Live replicas outside `in_sync`, with the incarnation they registered.
        joiners: Vec<Member>,
    },
    /// A client's write.
    Write(ClientWrite<D>),
    /// A client's read.
    Read(ClientRead),
    /// A client's FLUSH.
    Flush(ClientFlush),
    /// Discard a write unless it is ordered already: its session or token is void (S9, S20). Answered `Cancelled`.
    Cancel {
        /// Which.
        request: RequestId,
    },
    /// The answer to `Effect::Merge`: the write, grown to whole blocks.
    Merged {
        /// Which.
        request: RequestId,
        /// Whole blocks; none when the store could not read the edges.
        merged: Option<(Extent, D)>,
    },
    /// Every store effect up to this ticket is applied: reads see it, and only the loss of this process or of its device
    /// can undo it. Cumulative; what is durable is held. Used in writeback pools only (S14); a driver gives it late to
    /// hold back whoever writes faster than the disk.
    Held {
        /// The last one of the prefix.
        through: Ticket,
    },
    /// Every store effect up to this ticket is durable. Cumulative.
    Durable {
        /// The last one of the prefix.
        through: Ticket,
    },
    /// The store could not carry out the effect of this ticket, and carries out none after it for this placement
    /// group until `Effect::ClearFailure` (S4). It never reports the ticket or a later one durable. Of an effect that was not
    /// carried out at all this is the next event there is: what is read of the store from then on lacks it, and a core that
    /// did not know would fill a joiner with that.
    StoreFailed {
        /// The first one that failed.
        ticket: Ticket,
        /// For want of space, and nothing else.
        no_space: bool,
    },
    /// The answer to `Effect::Read`; none: unreadable.
    ReadDone {
        /// Which.
        request: RequestId,
        /// The bytes.
        data: Option<D>,
    },
    /// The answer to `Effect::ListVersions`.
    Listed {
        /// Which.
        round: Round,
        /// The chunks asked for, in any order.
        entries: Vec<ChunkEntry>,
    },
    /// The answer to `Effect::ReadSums`.
    SumsRead {
        /// Which attempt.
        round: Round,
        /// Which chunk.
        chunk: ChunkId,
        /// Its checksums.
        sums: BlockSums,
    },
    /// The answer to `Effect::ReadDifference`.
    DifferenceRead {
        /// Which attempt.
        round: Round,
        /// Which chunk.
        chunk: ChunkId,
        /// The version and the differing blocks; none: unreadable.
        image: Option<ChunkImage<D>>,
    },
    /// The answer to `Effect::FindUnreadable`.
    UnreadableFound {
        /// Which attempt.
        round: Round,
        /// Which chunk.
        chunk: ChunkId,
        /// Its version; none: unsynced, or there is no such chunk.
        version: Option<Version>,
        /// The blocks that cannot be read, in rising order.
        blocks: Vec<u16>,
    },
    /// The answer to `Effect::ReadBlocks`.
    BlocksRead {
        /// Which attempt.
        round: Round,
        /// Which chunk.
        chunk: ChunkId,
        /// Which blocks.
        extent: Extent,
        /// The version of the chunk that the bytes are of.
        version: Option<Version>,
        /// Their bytes; none: unreadable here as well.
        data: Option<D>,
    },
    /// Read this chunk on every copy and compare them; answered by `Effect::Scrubbed`.
    Scrub {
        /// Which chunk.
        chunk: ChunkId,
        /// The copies seemed to differ before (`ScrubOutcome::Suspect`).
        confirmed: bool,
    },
    /// The answer to `Effect::Verify`.
    Verified {
        /// Which attempt.
        round: Round,
        /// Which chunk.
        chunk: ChunkId,
        /// What was found.
        verified: VerifiedChunk,
    },
    /// The answer to `Effect::Reserve`.
    Reserved {
        /// Which chunk.
        chunk: ChunkId,
        /// Whether there is room for it.
        granted: bool,
    },
    /// From another copy. `from` in the message is already checked against the connection it came on.
    Message(Message<D>),
    /// A connection to this life of a peer is up: what is sent from now on arrives in order or the connection breaks.
    PeerConnected(Member),
    /// That connection broke: what was sent on it may be lost. Comes before the next `PeerConnected` of that member.
    PeerDisconnected(Member),
    /// The MDM refused the proposal for good: it can never commit. A proposal that commits shows as a `Config`.
    ProposalRejected {
        /// The epoch it expected.
        expected_epoch: Epoch,
    },
    /// The MDM has committed that the primary of this epoch answers (S11).
    Activated {
        /// The epoch.
        epoch: Epoch,
    },
    /// The device has dropped all it had of the group, because that belongs elsewhere: this copy is empty.
    Emptied,
    /// The primary may copy one chunk more to a joiner, after [`super::Demand::wants`]; void if it has nothing to copy.
    SyncPermit,
    /// Time has passed; at least every `limits::TICK`.
    Tick {
        /// Random: spreads what is tried again.
        jitter: u16,
    },
}
