//! What openraft is parametrised by.
//!
//! Leader ids are those of standard Raft: at most one leader in a term, so a term alone orders leaders (S20 needs
//! that for log time). openraft's default lets a term have several, told apart by node id.

use std::{fmt, ops::Deref, sync::Arc};

use bytes::Bytes;
use openraft::RaftTypeConfig;
use pflex_proto::ids::{LogTime, MdmId, StoreUuid};
use prost::Message as _;

use crate::command::{Command, Outcome};

/// How a member of the group is reached, and which store it must have. Part of the replicated membership.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct MdmNode {
    /// Where its Raft peer service listens, `host:port`.
    pub raft_address: String,
    /// Where its client API listens, `host:port`.
    pub api_address: String,
    /// The directory that may speak under this id (S18).
    pub store: StoreUuid,
}

/// What the log orders: a command and the log time its leader stamped it with.
#[derive(Clone, PartialEq, Debug)]
pub struct Proposal {
    /// The leader's log time when it proposed. Proposals race between the stamp and the log, so apply takes the
    /// larger of this and the time of the entry before.
    pub log_time: LogTime,
    /// What to do.
    pub command: EncodedCommand,
}

/// A command with its bytes. Each member encodes or decodes it once, however often it is written, sent and applied.
/// Clones share both.
#[derive(Clone)]
pub struct EncodedCommand {
    command: Arc<Command>,
    bytes: Bytes,
}

impl EncodedCommand {
    /// From the bytes of [`bytes`](Self::bytes).
    ///
    /// # Errors
    /// When they are not those of a command.
    pub fn decode(bytes: Bytes) -> Result<Self, prost::DecodeError> {
        Ok(Self { command: Arc::new(Command::decode(bytes.clone())?), bytes })
    }

    /// What stands in the log and is sent to peers.
    pub const fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}

impl From<Command> for EncodedCommand {
    fn from(command: Command) -> Self {
        Self { bytes: command.encode_to_vec().into(), command: Arc::new(command) }
    }
}

impl Deref for EncodedCommand {
    type Target = Command;

    fn deref(&self) -> &Command {
        &self.command
    }
}

impl PartialEq for EncodedCommand {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

impl fmt::Debug for EncodedCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The command alone: its own `Debug` leaves secrets out (I7), the bytes would not.
        self.command.fmt(f)
    }
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the command itself: it may hold a secret (I7).
        write!(f, "a command at log time {} ms", self.log_time)
    }
}

/// What applying an entry answers; blank and membership entries answer nothing.
pub type Reply = Option<Outcome>;

openraft::declare_raft_types!(
    /// The type parameters of the MDM's group.
    pub TypeConfig:
        D = Proposal,
        R = Reply,
        NodeId = MdmId,
        Node = MdmNode,
        Term = u64,
        LeaderId = openraft::impls::leader_id_std::LeaderId<u64, MdmId>,
        AsyncRuntime = openraft_rt_tokio::TokioRuntime,
);

/// A candidate's or leader's id.
pub type LeaderId = <TypeConfig as RaftTypeConfig>::LeaderId;
/// The leader part of a log id: the term.
pub type CommittedLeaderId = openraft::alias::CommittedLeaderIdOf<TypeConfig>;
/// Term and index of an entry.
pub type LogId = openraft::alias::LogIdOf<TypeConfig>;
/// A vote: for whom, and whether a quorum granted it.
pub type Vote = openraft::alias::VoteOf<TypeConfig>;
/// A log entry.
pub type Entry = openraft::alias::EntryOf<TypeConfig>;
/// What a log entry carries.
pub type Payload = <TypeConfig as RaftTypeConfig>::Payload;
/// The members and who of them votes.
pub type Membership = openraft::Membership<MdmId, MdmNode>;
/// A membership with the id of the entry that made it.
pub type StoredMembership = openraft::alias::StoredMembershipOf<TypeConfig>;
/// What a snapshot covers.
pub type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;

/// A log id from its two numbers.
pub fn log_id(term: u64, index: u64) -> LogId {
    LogId::new(CommittedLeaderId::new(term), index)
}
