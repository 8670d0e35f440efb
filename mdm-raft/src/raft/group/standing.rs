//! Whether this member belongs to the group, as far as it knows, and what follows: who was removed asks for no votes.

use std::time::Duration;

use openraft::{Raft, async_runtime::watch::WatchReceiver as _};
use tokio_util::sync::CancellationToken;

use super::Group;
use crate::raft::{network::standing::Told, state_store::StateStore, types::TypeConfig};

/// A leader is heard ten times a second; a store that catches up has not read of its own addition yet.
const CATCHING_UP: Duration = Duration::from_secs(3);

/// What this member is to the group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// Its store is new, or has not heard yet that it was added.
    Waiting,
    /// It is in the membership, as a voter or a learner.
    Member,
    /// It is not, any more.
    Removed,
}

impl Standing {
    /// The word for it.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Member => "member",
            Self::Removed => "removed",
        }
    }
}

impl Group {
    /// Whether this member belongs to the group, as far as it knows.
    pub fn standing(&self) -> Standing {
        let seen = self.0.raft.metrics().borrow_watched().clone();
        let membership = seen.membership_config;
        if self.0.told.removed_at().is_some() {
            Standing::Removed
        } else if membership.get_node(&self.0.identity.node).is_some() {
            Standing::Member
        } else if membership.log_id().is_none() || self.silence() < CATCHING_UP {
            Standing::Waiting
        } else {
            Standing::Removed
        }
    }
}

/// Stops this member's elections while it is removed. Pre-vote keeps it from disturbing the others even so; this keeps
/// it from asking.
pub(super) async fn follow(raft: Raft<TypeConfig, StateStore>, told: Told, stop: CancellationToken) {
    let mut told = told.watch();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            changed = told.changed() => if changed.is_err() { return },
        }
        let removed_at = *told.borrow_and_update();
        raft.runtime_config().elect(removed_at.is_none());
        match removed_at {
            Some(at) => tracing::warn!(
                "this MDM was removed from the cluster (log entry {}); it asks for no votes any more and can be stopped",
                at.index
            ),
            None => tracing::info!("this MDM belongs to the cluster again"),
        }
    }
}
