//! Who leads and who belongs to the group, as values to wait on. Copied out of openraft's metrics, whose borrow would block its core.

use openraft::{Raft, async_runtime::watch::WatchReceiver as _, vote::RaftLeaderId as _};
use pflex_proto::ids::MdmId;
use tokio::{runtime::Handle, sync::watch};
use tokio_util::sync::CancellationToken;

use crate::raft::{fatal::FatalHook, state_store::StateStore, types::TypeConfig};

type StoredMembership = openraft::type_config::alias::StoredMembershipOf<TypeConfig>;

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

/// Where clients find the voters, as one member knows it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Members {
    /// Index of the log entry that made them so: a later membership has a higher one.
    pub as_of: u64,
    /// The client API of every voter; of both sets during a change.
    pub apis: Vec<String>,
}

/// Keeps both views up to date on the Raft runtime until Raft ends. If nobody asked it to end, the process must: openraft
/// stops its core on any storage error, and a member without one only looks alive.
pub(super) fn watch(
    raft: &Raft<TypeConfig, StateStore>,
    runtime: &Handle,
    stop: CancellationToken,
    fatal: FatalHook,
) -> (watch::Receiver<LeaderView>, watch::Receiver<Members>) {
    let mut metrics = raft.server_metrics();
    let all = raft.metrics();
    let (sender, receiver) = watch::channel(LeaderView::default());
    let (members, members_receiver) = watch::channel(members_of(&metrics.borrow_watched().membership_config.clone()));
    runtime.spawn(async move {
        loop {
            let seen = metrics.borrow_watched().clone();
            let known = members_of(&seen.membership_config);
            members.send_if_modified(|current| {
                let changed = *current != known;
                *current = known;
                changed
            });
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
    (receiver, members_receiver)
}

fn members_of(stored: &StoredMembership) -> Members {
    let membership = stored.membership();
    let votes = |id: &MdmId| membership.get_joint_config().iter().any(|voters| voters.contains(id));
    let voters = membership.nodes().filter(|(id, _)| votes(id));
    Members {
        as_of: stored.log_id().as_ref().map_or(0, |made| made.index),
        apis: voters.map(|(_, node)| node.api_address.clone()).collect(),
    }
}
