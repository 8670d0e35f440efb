//! What a caller of the MDM can be told.

use std::time::Duration;

use pflex_proto::status::{self, Reason};
use tonic::Status;

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub enum MdmError {
    /// No member answered as leader in time. Nothing was executed.
    #[error("no MDM leader among {members} after {waited:.1?}; check that a majority of the MDMs runs")]
    NoLeader {
        /// Who was asked.
        members: String,
        /// For how long.
        waited: Duration,
        /// What the last one asked said.
        #[source]
        last: Option<Box<Status>>,
    },
    /// The call was sent, and no answer came: it may have been, or still be, executed.
    #[error("no answer after {waited:.1?}; the request may or may not have been carried out")]
    Unknown {
        /// For how long.
        waited: Duration,
        /// What the last attempt met.
        #[source]
        last: Box<Status>,
    },
    /// The leader's definite answer.
    #[error("{}", .0.message())]
    Refused(Box<Status>),
}

impl MdmError {
    /// The machine-readable reason of a definite answer.
    pub fn reason(&self) -> Option<Reason> {
        match self {
            Self::Refused(status) => status::reason(status),
            Self::NoLeader { .. } | Self::Unknown { .. } => None,
        }
    }

    /// The gRPC code of a definite answer.
    pub fn code(&self) -> Option<tonic::Code> {
        match self {
            Self::Refused(status) => Some(status.code()),
            Self::NoLeader { .. } | Self::Unknown { .. } => None,
        }
    }
}
