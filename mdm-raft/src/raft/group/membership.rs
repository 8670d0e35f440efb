//! The members: the first ones, changes online, handing leadership over, and how they all do.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use openraft::{
    ChangeMembers, Instant as _, ServerState,
    async_runtime::watch::WatchReceiver as _,
    errors::{ChangeMembershipError, ClientWriteError, Fatal, RaftError},
    vote::RaftLeaderId as _,
};
use pflex_proto::ids::MdmId;

use super::{Group, LeaderInfo};
use crate::raft::types::{LogId, MdmNode, TypeConfig};

/// Two entries through a quorum; without one the caller should know soon.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(10);

/// Why the membership was not changed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MembershipError {
    /// Ask the leader.
    #[error("this MDM does not lead (term {term})")]
    NotLeader {
        /// Who does, if known.
        leader: Option<LeaderInfo>,
        /// The newest term heard of.
        term: u64,
    },
    /// An earlier change, perhaps of an earlier leader, is not committed yet: ask again in a moment.
    #[error("an earlier change of the membership is not committed yet")]
    Busy,
    /// Cannot be, now or at all.
    #[error("the membership was not changed: {reason}")]
    Refused {
        /// Why.
        reason: String,
    },
    /// May have been changed.
    #[error("the outcome is unknown: {reason}")]
    Unknown {
        /// What happened.
        reason: String,
    },
}

/// What a member is to the group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Gets the log, does not vote.
    Learner,
    /// Votes and follows.
    Follower,
    /// Asks to be elected.
    Candidate,
    /// Leads.
    Leader,
    /// Stopped.
    Stopped,
}

/// How a member and, as far as it knows, the group does.
#[derive(Clone, Debug)]
pub struct GroupStatus {
    /// This member.
    pub id: MdmId,
    /// What it is now.
    pub role: Role,
    /// The newest term it heard of.
    pub term: u64,
    /// Who leads.
    pub leader: Option<MdmId>,
    /// Index of its last log entry.
    pub last_log: Option<u64>,
    /// The last entry it knows committed.
    pub committed: Option<LogId>,
    /// The last entry it applied.
    pub applied: Option<LogId>,
    /// The last entry its snapshot covers.
    pub snapshot: Option<LogId>,
    /// The last entry cut from its log.
    pub purged: Option<LogId>,
    /// Who votes; two sets during a change.
    pub voters: Vec<BTreeSet<MdmId>>,
    /// All members, voting or not.
    pub members: BTreeMap<MdmId, MdmNode>,
    /// On the leader: how far each member's log is.
    pub matched: BTreeMap<MdmId, Option<LogId>>,
    /// Why it does not run any more.
    pub failed: Option<String>,
}

impl Group {
    /// Makes the first members, once in a cluster's life and on one member only.
    ///
    /// # Errors
    /// When the group has members already, or this one is not among them.
    pub async fn bootstrap(&self, members: BTreeMap<MdmId, MdmNode>) -> Result<(), MembershipError> {
        let made = within(CHANGE_TIMEOUT, self.0.raft.initialize(members)).await?;
        made.map_err(|error| match error {
            RaftError::APIError(refused) => MembershipError::Refused { reason: refused.to_string() },
            RaftError::Fatal(fatal) => ended(&fatal),
        })
    }

    /// Whether the group ever got members, as this store knows.
    ///
    /// # Errors
    /// When Raft stopped.
    pub async fn is_bootstrapped(&self) -> Result<bool, MembershipError> {
        self.0.raft.is_initialized().await.map_err(|fatal| ended(&fatal))
    }

    /// Adds a member that gets the log but does not vote. With `catch_up`, returns once it has almost all of the log, or
    /// after that time with `Unknown`; it stays a learner then and goes on catching up.
    ///
    /// # Errors
    /// See [`MembershipError`].
    pub async fn add_learner(
        &self,
        id: MdmId,
        node: MdmNode,
        catch_up: Option<Duration>,
    ) -> Result<(), MembershipError> {
        let added = self.0.raft.add_learner(id, node, catch_up.is_some());
        let added = within(catch_up.unwrap_or(CHANGE_TIMEOUT), added).await?;
        added.map(drop).map_err(|error| self.unchanged(error))
    }

    /// Makes exactly these members the voters; they must be learners or voters now. Others leave the group.
    ///
    /// # Errors
    /// See [`MembershipError`].
    pub async fn change_voters(&self, voters: BTreeSet<MdmId>) -> Result<(), MembershipError> {
        let _changing = Changing::begin(&self.0.changes);
        let changed = within(CHANGE_TIMEOUT, self.0.raft.change_membership(voters, false)).await?;
        changed.map(drop).map_err(|error| self.unchanged(error))
    }

    /// Takes learners out of the group.
    ///
    /// # Errors
    /// See [`MembershipError`].
    pub async fn remove_learners(&self, ids: BTreeSet<MdmId>) -> Result<(), MembershipError> {
        let change = ChangeMembers::RemoveNodes(ids);
        let changed = within(CHANGE_TIMEOUT, self.0.raft.change_membership(change, false)).await?;
        changed.map(drop).map_err(|error| self.unchanged(error))
    }

    /// Whether the voters are being changed by a call to this member.
    pub(super) fn is_changing(&self) -> bool {
        self.0.changes.load(Ordering::Relaxed) > 0
    }

    /// Finishes a change that an earlier leader left half done: between two sets of voters both are needed. Does nothing
    /// when there is none. A leader does it by itself after a while (`group/settle.rs`).
    ///
    /// # Errors
    /// See [`MembershipError`].
    pub async fn settle(&self) -> Result<(), MembershipError> {
        match self.status().voters.as_slice() {
            [_, .., goal] => self.change_voters(goal.clone()).await,
            [] | [_] => Ok(()),
        }
    }

    /// Waits until a member has all but `lag` of the entries, or until the time is over; returns how many it lacks.
    pub async fn wait_for_log(&self, id: MdmId, lag: u64, most: Duration) -> u64 {
        let mut metrics = self.0.raft.metrics();
        let lacks = |group: &Self| {
            let status = group.status();
            let has = status.matched.get(&id).and_then(|matched| matched.map(|id| id.index)).unwrap_or(0);
            status.last_log.unwrap_or(0).saturating_sub(has)
        };
        let caught_up = async {
            while lacks(self) > lag {
                if metrics.changed().await.is_err() {
                    return;
                }
            }
        };
        drop(tokio::time::timeout(most, caught_up).await);
        lacks(self)
    }

    /// Asks `to` to take over. It did once [`leader`](Self::leader) says so.
    ///
    /// # Errors
    /// When Raft stopped.
    pub async fn transfer_leader(&self, to: MdmId) -> Result<(), MembershipError> {
        self.0.raft.trigger().transfer_leader(to).await.map_err(|fatal| ended(&fatal))
    }

    /// Builds a snapshot now, beside the ones the log's growth causes.
    ///
    /// # Errors
    /// When Raft stopped.
    pub async fn build_snapshot(&self) -> Result<(), MembershipError> {
        self.0.raft.trigger().snapshot().await.map_err(|fatal| ended(&fatal))
    }

    /// How this member does.
    pub fn status(&self) -> GroupStatus {
        // Copied in one statement: openraft's core waits for whoever borrows.
        let seen = self.0.raft.metrics().borrow_watched().clone();
        let membership = seen.membership_config.membership();
        GroupStatus {
            id: seen.id,
            role: role(seen.state),
            term: seen.vote.leader_id().term(),
            leader: seen.current_leader,
            last_log: seen.last_log_index,
            committed: seen.local_committed,
            applied: seen.last_applied,
            snapshot: seen.snapshot,
            purged: seen.purged,
            voters: membership.get_joint_config().clone(),
            members: membership.nodes().map(|(id, node)| (*id, node.clone())).collect(),
            matched: seen.replication.unwrap_or_default(),
            failed: seen.running_state.err().map(|fatal| fatal.to_string()),
        }
    }

    /// How long this member has known nothing of a working quorum: no leader's message, or, on a leader, no answers of a
    /// majority. What it has applied may be as old.
    pub fn silence(&self) -> Duration {
        let now = Instant::now();
        let seen = self.0.raft.metrics().borrow_watched().clone();
        if seen.state.is_leader() {
            let voters = seen.membership_config.membership().get_joint_config();
            if voters.iter().all(|voters| voters.iter().eq([&seen.id])) {
                // Alone it is its own majority.
                self.0.heard.note(now);
            } else if let Some(at) = seen.last_quorum_acked.and_then(|acked| now.checked_sub(acked.elapsed())) {
                self.0.heard.note(at);
            }
        }
        self.0.heard.silence(now)
    }

    fn unchanged(&self, error: RaftError<TypeConfig, ClientWriteError<TypeConfig>>) -> MembershipError {
        match error {
            RaftError::APIError(ClientWriteError::ForwardToLeader(forward)) => {
                let (leader, term) = self.forward(forward);
                MembershipError::NotLeader { leader, term }
            }
            RaftError::APIError(ClientWriteError::ChangeMembershipError(ChangeMembershipError::InProgress(_))) => {
                MembershipError::Busy
            }
            RaftError::APIError(ClientWriteError::ChangeMembershipError(refused)) => {
                MembershipError::Refused { reason: refused.to_string() }
            }
            RaftError::APIError(error) => MembershipError::Unknown { reason: error.to_string() },
            RaftError::Fatal(fatal) => ended(&fatal),
        }
    }
}

/// A change being carried out, until it is dropped.
struct Changing<'a>(&'a AtomicUsize);

impl<'a> Changing<'a> {
    fn begin(changes: &'a AtomicUsize) -> Self {
        changes.fetch_add(1, Ordering::Relaxed);
        Self(changes)
    }
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn within<T>(deadline: Duration, change: impl Future<Output = T>) -> Result<T, MembershipError> {
    let done = tokio::time::timeout(deadline, change).await;
    done.map_err(|_| MembershipError::Unknown { reason: format!("not done within {} s", deadline.as_secs()) })
}

fn ended(fatal: &Fatal<TypeConfig>) -> MembershipError {
    MembershipError::Unknown { reason: fatal.to_string() }
}

const fn role(state: ServerState) -> Role {
    match state {
        ServerState::Learner => Role::Learner,
        ServerState::Follower => Role::Follower,
        ServerState::Candidate => Role::Candidate,
        ServerState::Leader => Role::Leader,
        ServerState::Shutdown => Role::Stopped,
    }
}
