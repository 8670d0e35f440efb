//! Who leads, as a value to wait on. Copied out of openraft's metrics, whose borrow would block its core.

use openraft::{Raft, async_runtime::watch::WatchReceiver as _, vote::RaftLeaderId as _};
use pflex_proto::ids::MdmId;
use tokio::{runtime::Handle, sync::watch};
use tokio_util::sync::CancellationToken;

use crate::raft::{fatal::FatalHook, state_store::StateStore, types::TypeConfig};

/// A leader and where its clients go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LeaderInfo {
    /// The member.
    pub id: MdmId,
    /// Its client API, `host:port`.
    pub api_address: String,
}

/// Who leads, as one member knows it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LeaderView {
    /// The newest term heard of.
    pub term: u64,
    /// Its leader, once known.
    pub leader: Option<LeaderInfo>,
    /// Whether that is this member.
    pub leading: bool,
}

/// Keeps a view up to date on the Raft runtime until Raft ends. If nobody asked it to end, the process must: openraft
/// stops its core on any storage error, and a member without one only looks alive.
pub(super) fn watch(
    raft: &Raft<TypeConfig, StateStore>,
    runtime: &Handle,
    stop: CancellationToken,
    fatal: FatalHook,
) -> watch::Receiver<LeaderView> {
    let mut metrics = raft.server_metrics();
    let all = raft.metrics();
    let (sender, receiver) = watch::channel(LeaderView::default());
    runtime.spawn(async move {
        loop {
            let seen = metrics.borrow_watched().clone();
            let leader = seen.current_leader.and_then(|id| {
                let node = seen.membership_config.get_node(&id)?;
                Some(LeaderInfo { id, api_address: node.api_address.clone() })
            });
            let view = LeaderView { term: seen.vote.leader_id().term(), leading: seen.state.is_leader(), leader };
            sender.send_if_modified(|current| {
                let changed = *current != view;
                *current = view;
                changed
            });
            if metrics.changed().await.is_err() {
                // Raft ended: nobody leads here any more.
                sender.send_modify(|current| *current = LeaderView { leader: None, leading: false, ..*current });
                let end = all.borrow_watched().running_state.clone();
                if !stop.is_cancelled() {
                    fatal.call(&format!("raft ended: {}", end.err().map_or("no reason".into(), |end| end.to_string())));
                }
                return;
            }
        }
    });
    receiver
}
