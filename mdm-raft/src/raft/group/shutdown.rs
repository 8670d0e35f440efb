//! Ending a member: leadership goes over first, so that the group has no gap.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use super::{Group, Inner};
use pflex_proto::ids::MdmId;

/// A hand-over takes one message and one election; after this the group elects by itself.
const HAND_OVER: Duration = Duration::from_secs(2);
/// Requests of peers that are under way.
const DRAIN: Duration = Duration::from_secs(1);
/// Tasks and disk work of the Raft runtime.
const RUNTIME_END: Duration = Duration::from_secs(5);

impl Group {
    /// Hands leadership over if this member leads, then ends it and closes its stores. Other clones of the handle only
    /// get errors afterwards.
    pub async fn shutdown(&self) {
        self.hand_over().await;
        self.stop().await;
    }

    /// Ends the member as it stands, without a hand-over, and closes its stores.
    pub async fn stop(&self) {
        self.0.stop.cancel();
        if let Some(server) = take(&self.0.server) {
            // Streams of peers that do not end are cut with the runtime.
            drop(tokio::time::timeout(DRAIN, server).await);
        }
        match tokio::time::timeout(RUNTIME_END, self.0.raft.shutdown()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!("raft did not end well: {error}"),
            Err(_) => tracing::error!("raft did not end within {} s", RUNTIME_END.as_secs()),
        }
        if let Some(runtime) = take(&self.0.runtime) {
            // Waits, so that the databases are closed when this returns.
            drop(tokio::task::spawn_blocking(move || runtime.shutdown_timeout(RUNTIME_END)).await);
        }
    }

    /// Hands leadership over if this member leads.
    pub async fn hand_over(&self) {
        let mut leader = self.leader();
        if !leader.borrow().leading {
            return;
        }
        let Some(successor) = self.successor() else { return };
        tracing::info!(%successor, "handing leadership over before shutdown");
        if self.transfer_leader(successor).await.is_ok() {
            // Until the successor is known here: this member's clients are then told where to go.
            let taken = leader.wait_for(|view| !view.leading && view.leader.is_some());
            drop(tokio::time::timeout(HAND_OVER, taken).await);
        }
    }

    /// The voter whose log is longest: only one with all entries can win.
    fn successor(&self) -> Option<MdmId> {
        let status = self.status();
        let voter = |id: &MdmId| status.voters.iter().any(|voters| voters.contains(id));
        let others = status.matched.iter().filter(|(id, _)| **id != status.id && voter(id));
        others.max_by_key(|(_, matched)| matched.map(|id| id.index)).map(|(id, _)| *id)
    }
}

fn take<T>(slot: &Mutex<Option<T>>) -> Option<T> {
    slot.lock().unwrap_or_else(PoisonError::into_inner).take()
}

impl Drop for Inner {
    /// Without a shutdown: everything of this member just ends.
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(runtime) = take(&self.runtime) {
            // A plain drop would block, which async code must not.
            runtime.shutdown_background();
        }
    }
}
