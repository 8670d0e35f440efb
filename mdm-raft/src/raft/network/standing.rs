//! Whether this member still belongs to the group. Who was removed may not have got the entry that says so: the leader
//! stops replicating to it. It would ask for votes for ever, so whoever it asks tells it.

use std::sync::Arc;

use tokio::sync::watch;

use crate::raft::types::LogId;

/// What others have told this member of itself. Clones share it.
#[derive(Clone, Debug)]
pub(in crate::raft) struct Told(Arc<watch::Sender<Option<LogId>>>);

impl Default for Told {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(None)))
    }
}

impl Told {
    /// A peer has applied a membership without this member, at a place this member's log has not reached.
    pub(in crate::raft) fn removed(&self, at: LogId) {
        self.0.send_if_modified(|told| told.replace(at).is_none());
    }

    /// A leader replicates to this member, so it belongs to the group (again).
    pub(in crate::raft) fn belongs(&self) {
        self.0.send_if_modified(|told| told.take().is_some());
    }

    /// The membership that excludes this member, if it was told of one.
    pub(in crate::raft) fn removed_at(&self) -> Option<LogId> {
        *self.0.borrow()
    }

    /// Changes whenever the answer does.
    pub(in crate::raft) fn watch(&self) -> watch::Receiver<Option<LogId>> {
        self.0.subscribe()
    }
}
