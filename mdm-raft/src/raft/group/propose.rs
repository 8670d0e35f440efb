//! Proposing a command: from the leader's stamp to the outcome of its apply.

use openraft::errors::{ClientWriteError, ForwardToLeader, RaftError};

use super::{Group, LeaderInfo};
use crate::{
    command::Outcome,
    raft::{
        network::COMMAND_BYTES,
        types::{EncodedCommand, Proposal, TypeConfig},
    },
};

/// Proposals in flight: some hundred a sync, and what a client times out on should not be queued behind more.
pub const PROPOSALS: usize = 4_096;

/// Why a proposal has no outcome. Only `Unknown` may still take effect.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ProposeError {
    /// Not appended: ask the leader.
    #[error("this MDM does not lead (term {term})")]
    NotLeader {
        /// Who does, if known.
        leader: Option<LeaderInfo>,
        /// The newest term heard of.
        term: u64,
    },
    /// Not appended: too many are in flight.
    #[error("as many proposals as this MDM takes are in flight; retry later")]
    Busy,
    /// Not appended: larger than a message between members may be.
    #[error("the command has {bytes} bytes, more than {COMMAND_BYTES}")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// May have been appended and may yet be applied: retry under the same client sequence only.
    #[error("the outcome is unknown: {reason}")]
    Unknown {
        /// What happened.
        reason: String,
    },
}

impl Group {
    /// Has the group order and apply `command`; returns what applying it answered.
    ///
    /// Dropping the future does not take the command back.
    ///
    /// # Errors
    /// See [`ProposeError`]: everything but `Unknown` means that nothing was appended.
    pub async fn propose(&self, command: impl Into<EncodedCommand>) -> Result<Outcome, ProposeError> {
        let _permit = self.0.proposals.try_acquire().map_err(|_| ProposeError::Busy)?;
        let command = command.into();
        let bytes = command.bytes().len();
        if bytes > COMMAND_BYTES {
            return Err(ProposeError::TooLarge { bytes });
        }
        let proposal = Proposal { log_time: self.log_time(), command };
        let written = tokio::time::timeout(self.0.config.propose_timeout, self.0.raft.client_write(proposal)).await;
        let unknown = |reason: &str| ProposeError::Unknown { reason: reason.to_owned() };
        match written {
            Ok(Ok(response)) => response.data.ok_or_else(|| unknown("applied, but without an outcome")),
            Ok(Err(RaftError::APIError(error))) => Err(self.refused(error)),
            Ok(Err(RaftError::Fatal(fatal))) => Err(unknown(&fatal.to_string())),
            Err(_) => Err(unknown("no quorum answered in time")),
        }
    }

    fn refused(&self, error: ClientWriteError<TypeConfig>) -> ProposeError {
        match error {
            ClientWriteError::ForwardToLeader(forward) => {
                let (leader, term) = self.forward(forward);
                ProposeError::NotLeader { leader, term }
            }
            error @ (ClientWriteError::LogEntryDiscarded(_)
            | ClientWriteError::ChangeMembershipError(_)
            | ClientWriteError::PreconditionFailed(_)) => ProposeError::Unknown { reason: error.to_string() },
        }
    }

    /// Where a refused request should go.
    pub(super) fn forward(&self, forward: ForwardToLeader<TypeConfig>) -> (Option<LeaderInfo>, u64) {
        let leader = forward.leader_id.zip(forward.leader_node);
        // A member that lost its quorum names itself; that helps nobody.
        let leader = leader.filter(|(id, _)| *id != self.0.identity.node);
        let leader = leader.map(|(id, node)| LeaderInfo { id, api_address: node.api_address });
        (leader, self.0.leader.borrow().term)
    }
}
