//! How an error of the MDM travels: a gRPC status, and metadata that programs read.
//!
//! | metadata | meaning |
//! |---|---|
//! | `pflex-reason` | one of [`Reason`], so that clients need not parse messages |
//! | `pflex-leader-id`, `pflex-leader-address`, `pflex-leader-term` | with `not-leader`: where to go, if known |
//! | `pflex-retry-after-ms` | with `overloaded`: when to try again; clients add jitter |
//! | `pflex-oldest-revision` | with `compacted`: the oldest revision from which a watcher could go on here |
//!
//! FAILED_PRECONDITION with `not-leader`, RESOURCE_EXHAUSTED with `overloaded` and DEADLINE_EXCEEDED with
//! `deadline-passed` mean *not appended*: retry freely. Everything after a request was sent and not
//! answered (deadline, transport, `unknown-outcome`) is *unknown*: retry with the same [`crate::pb::RequestId`] only.

use tonic::{Code, Status, metadata::MetadataValue};

use crate::ids::{MdmId, Revision};

const REASON: &str = "pflex-reason";
const LEADER_ID: &str = "pflex-leader-id";
const LEADER_ADDRESS: &str = "pflex-leader-address";
const LEADER_TERM: &str = "pflex-leader-term";
const RETRY_AFTER_MS: &str = "pflex-retry-after-ms";
const OLDEST_REVISION: &str = "pflex-oldest-revision";

/// The metadata key by which a client names its cluster.
pub const CLUSTER_ID: &str = "pflex-cluster-id";
/// The metadata key by which a client says which generation of the cluster it has seen: an older one refuses it (S19).
pub const CLUSTER_GENERATION: &str = "pflex-cluster-generation";

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $text:literal / $code:ident,)*) => {
        /// Why a request failed, for programs.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Reason { $($(#[$doc])* $name,)* }

        impl Reason {
            /// As it stands in the metadata.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text),* }
            }

            /// The gRPC code it goes with.
            pub const fn code(self) -> Code {
                match self { $(Self::$name => Code::$code),* }
            }

            fn parse(text: &str) -> Option<Self> {
                match text { $($text => Some(Self::$name),)* _ => None }
            }
        }
    };
}

reasons! {
    /// This member is not the leader; nothing was appended.
    NotLeader = "not-leader" / FailedPrecondition,
    /// Proposed, and then lost sight of: it may commit or not.
    UnknownOutcome = "unknown-outcome" / Unavailable,
    /// No quorum: nothing can be decided now.
    NoQuorum = "no-quorum" / Unavailable,
    /// The exactly-once session is unknown or expired; the outcome of its unanswered requests is unknown (S17).
    SessionExpired = "session-expired" / FailedPrecondition,
    /// The cluster was restored from a backup: an SDS reports what it knew before, and then registers (S19).
    ReportFirst = "report-first" / FailedPrecondition,
    /// The caller has seen a newer generation of the cluster than this member is of (S19).
    OlderGeneration = "older-generation" / FailedPrecondition,
    /// The request's sequence is below the session's low-water mark; its outcome is forgotten.
    OutcomeForgotten = "outcome-forgotten" / FailedPrecondition,
    /// No such object.
    NotFound = "not-found" / NotFound,
    /// The name is taken by an object with other properties.
    AlreadyExists = "already-exists" / AlreadyExists,
    /// Something still uses the object.
    InUse = "in-use" / FailedPrecondition,
    /// A state forbids it now.
    Precondition = "precondition" / FailedPrecondition,
    /// The compare-and-set names an old epoch.
    StaleEpoch = "stale-epoch" / Aborted,
    /// A value can never be accepted.
    Invalid = "invalid" / InvalidArgument,
    /// A documented limit is reached.
    LimitReached = "limit-reached" / ResourceExhausted,
    /// Not enough capacity.
    NoCapacity = "no-capacity" / FailedPrecondition,
    /// Too much at once; try again later.
    Overloaded = "overloaded" / ResourceExhausted,
    /// The caller is of another cluster.
    WrongCluster = "wrong-cluster" / FailedPrecondition,
    /// The caller may not do this.
    NotAllowed = "not-allowed" / PermissionDenied,
    /// The updates after the watcher's revision are not held any more; list again.
    Compacted = "compacted" / OutOfRange,
    /// This member has not applied yet what the caller has seen; ask another one (S18).
    Behind = "behind" / Unavailable,
    /// This member does not belong to the cluster any more; ask another one.
    Removed = "removed" / Unavailable,
    /// The caller's own deadline had passed before anything was appended.
    DeadlinePassed = "deadline-passed" / DeadlineExceeded,
    /// A bug or a broken store; a person must look.
    Internal = "internal" / Internal,
}

/// Where the leader is, as far as a member knows.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LeaderHint {
    /// Its id.
    pub id: Option<MdmId>,
    /// Its client API, host:port.
    pub address: Option<String>,
    /// The term it leads.
    pub term: u64,
}

/// A status with its reason attached.
pub fn status(reason: Reason, message: impl Into<String>) -> Status {
    let mut status = Status::new(reason.code(), message);
    status.metadata_mut().insert(REASON, MetadataValue::from_static(reason.as_str()));
    status
}

/// The answer of a member that is not the leader.
pub fn not_leader(hint: &LeaderHint) -> Status {
    let message = match (&hint.id, &hint.address) {
        (Some(id), Some(address)) => format!("not the leader; mdm {id} at {address} leads term {}", hint.term),
        _ => format!("not the leader, and none is known in term {}", hint.term),
    };
    let mut status = status(Reason::NotLeader, message);
    let metadata = status.metadata_mut();
    metadata.insert(LEADER_TERM, hint.term.into());
    if let Some(id) = hint.id {
        metadata.insert(LEADER_ID, id.get().into());
    }
    if let Some(address) = hint.address.as_ref().and_then(|address| address.parse().ok()) {
        metadata.insert(LEADER_ADDRESS, address);
    }
    status
}

/// The answer of a member with too much to do.
pub fn overloaded(message: impl Into<String>, retry_after_ms: u64) -> Status {
    let mut status = status(Reason::Overloaded, message);
    status.metadata_mut().insert(RETRY_AFTER_MS, retry_after_ms.into());
    status
}

/// The answer to a watcher whose revision is no longer held; `oldest` is the oldest that is.
pub fn compacted(message: impl Into<String>, oldest: Revision) -> Status {
    let mut status = status(Reason::Compacted, message);
    status.metadata_mut().insert(OLDEST_REVISION, oldest.get().into());
    status
}

/// The reason of a status, if a server of ours made it.
pub fn reason(status: &Status) -> Option<Reason> {
    Reason::parse(status.metadata().get(REASON)?.to_str().ok()?)
}

/// Where a not-leader status says the leader is.
pub fn leader_hint(status: &Status) -> Option<LeaderHint> {
    if reason(status) != Some(Reason::NotLeader) {
        return None;
    }
    let text = |key| status.metadata().get(key).and_then(|value| value.to_str().ok());
    Some(LeaderHint {
        id: text(LEADER_ID).and_then(|id| id.parse().ok()).map(MdmId),
        address: text(LEADER_ADDRESS).map(ToOwned::to_owned),
        term: text(LEADER_TERM).and_then(|term| term.parse().ok()).unwrap_or(0),
    })
}

/// How long an overloaded server asks to wait.
pub fn retry_after_ms(status: &Status) -> Option<u64> {
    status.metadata().get(RETRY_AFTER_MS)?.to_str().ok()?.parse().ok()
}

/// From which revision a member that compacted could still go on.
pub fn oldest_revision(status: &Status) -> Option<Revision> {
    status.metadata().get(OLDEST_REVISION)?.to_str().ok()?.parse().ok().map(Revision)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leader_hint_survives_the_wire() {
        let hint = LeaderHint { id: Some(MdmId(3)), address: Some("127.0.0.1:8021".into()), term: 7 };
        let status = not_leader(&hint);
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert_eq!(leader_hint(&status), Some(hint));
        assert_eq!(leader_hint(&not_leader(&LeaderHint::default())), Some(LeaderHint::default()));
    }

    #[test]
    fn a_foreign_status_has_no_reason() {
        assert_eq!(reason(&Status::not_found("x")), None);
        assert_eq!(reason(&status(Reason::InUse, "volume demo is mapped to sdc1")), Some(Reason::InUse));
        assert_eq!(retry_after_ms(&overloaded("1,024 requests wait", 50)), Some(50));
        assert_eq!(oldest_revision(&compacted("x", Revision(7))), Some(Revision(7)));
    }
}
