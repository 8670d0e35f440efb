//! Linearizable reads by ReadIndex: a quorum confirms that this member leads, then the state catches up, then it is read.
//!
//! openraft coalesces: reads that arrive while a heartbeat round is on its way share the next one.

use openraft::{
    ReadPolicy,
    errors::{LinearizableReadError, RaftError},
};
use pflex_proto::ids::Revision;

use super::{Group, LeaderInfo};
use crate::state::State;

/// Why a linearizable read was not served.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ReadError {
    /// Ask the leader.
    #[error("this MDM does not lead (term {term})")]
    NotLeader {
        /// Who does, if known.
        leader: Option<LeaderInfo>,
        /// The newest term heard of.
        term: u64,
    },
    /// No quorum confirmed in time that this member leads, or it stopped.
    #[error("no quorum of MDMs confirmed the read: {reason}")]
    Unconfirmed {
        /// What happened.
        reason: String,
    },
}

impl Group {
    /// Waits until the state here holds everything that was acknowledged before the call.
    ///
    /// # Errors
    /// When this member does not lead or cannot prove that it does.
    pub async fn read_barrier(&self) -> Result<(), ReadError> {
        let timeout = self.0.config.read_timeout;
        let unconfirmed = |reason: String| ReadError::Unconfirmed { reason };
        let confirmed = tokio::time::timeout(timeout, self.0.raft.get_read_linearizer(ReadPolicy::ReadIndex)).await;
        let linearizer = match confirmed.map_err(|_| unconfirmed("no answer in time".into()))? {
            Ok(linearizer) => linearizer,
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward))) => {
                let (leader, term) = self.forward(forward);
                return Err(ReadError::NotLeader { leader, term });
            }
            Err(error) => return Err(unconfirmed(error.to_string())),
        };
        match linearizer.try_await_ready(&self.0.raft, Some(timeout)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(behind)) => Err(unconfirmed(format!("the state lags: {behind}"))),
            Err(fatal) => Err(unconfirmed(fatal.to_string())),
        }
    }

    /// Runs `f` on a state that holds everything acknowledged before the call. Keep `f` short: applying waits for it.
    ///
    /// # Errors
    /// As [`read_barrier`](Self::read_barrier).
    pub async fn read<T>(&self, f: impl FnOnce(&State) -> T) -> Result<(Revision, T), ReadError> {
        self.read_barrier().await?;
        Ok(self.read_stale(f))
    }
}
