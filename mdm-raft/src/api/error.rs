//! How failures travel: the state's refusals and the group's errors as `pflex_proto::status`.

use pflex_proto::status::{self, LeaderHint, Reason};
use tonic::Status;

use crate::{
    command::{ErrorCode, proto},
    raft::{ProposeError, ReadError, group::LeaderInfo},
};

/// What a client waits before it asks again when too much is in flight: a few log syncs.
const BUSY_RETRY_MS: u64 = 50;
/// What a client waits for the first command of a new cluster.
const BOOTSTRAP_RETRY_MS: u64 = 200;

/// A refused command.
pub(super) fn from_refusal(error: &proto::Error) -> Status {
    let message = error.to_string();
    let reason = match error.code() {
        ErrorCode::Invalid => Reason::Invalid,
        ErrorCode::NotFound => Reason::NotFound,
        ErrorCode::AlreadyExists => Reason::AlreadyExists,
        ErrorCode::InUse => Reason::InUse,
        ErrorCode::Precondition => Reason::Precondition,
        ErrorCode::Stale => Reason::StaleEpoch,
        ErrorCode::Limit => Reason::LimitReached,
        ErrorCode::SessionExpired => Reason::SessionExpired,
        ErrorCode::OutcomeForgotten => Reason::OutcomeForgotten,
        ErrorCode::NoCapacity => Reason::NoCapacity,
        ErrorCode::ReportFirst => Reason::ReportFirst,
        ErrorCode::NotBootstrapped => return status::overloaded(message, BOOTSTRAP_RETRY_MS),
        ErrorCode::Unspecified => Reason::Internal,
    };
    status::status(reason, message)
}

pub(super) fn from_propose(error: ProposeError) -> Status {
    let message = error.to_string();
    match error {
        ProposeError::NotLeader { leader, term } => not_leader(leader, term),
        ProposeError::Busy => status::overloaded(message, BUSY_RETRY_MS),
        ProposeError::TooLarge { .. } => status::status(Reason::Invalid, message),
        ProposeError::Unknown { .. } => status::status(Reason::UnknownOutcome, message),
    }
}

pub(super) fn from_read(error: ReadError) -> Status {
    let message = error.to_string();
    match error {
        ReadError::NotLeader { leader, term } => not_leader(leader, term),
        ReadError::Unconfirmed { .. } => status::status(Reason::NoQuorum, message),
    }
}

fn not_leader(leader: Option<LeaderInfo>, term: u64) -> Status {
    let (id, address) = leader.map(|leader| (leader.id, leader.api_address)).unzip();
    status::not_leader(&LeaderHint { id, address, term })
}

/// As many reads as this member takes are under way.
pub(super) fn busy_reading() -> Status {
    status::overloaded("as many reads as this member takes are under way; retry later", BUSY_RETRY_MS)
}

/// What the state has no answer to before its first command.
pub(super) fn not_bootstrapped() -> Status {
    status::overloaded("the cluster is not bootstrapped yet", BOOTSTRAP_RETRY_MS)
}

/// A lookup by name that found nothing.
pub(super) fn not_found(kind: &str, name: &str) -> Status {
    status::status(
        Reason::NotFound,
        format!("{kind} {name}: there is no {kind} of this name; `pflex {kind} list` shows those there are"),
    )
}

/// An answer that does not fit the command: a bug.
pub(super) fn odd_answer() -> Status {
    status::status(Reason::Internal, "the command was answered with another command's result")
}
