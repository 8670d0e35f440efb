//! Adding, removing and replacing members while everything runs.
//!
//! A change takes longer than one request may: a new member first gets the log, as a learner, and only then votes. So each
//! call takes the next step and says how far the change is; the caller calls again until it is done. All that must
//! outlive a leader is in the membership itself, so any leader can go on from there, and a lost answer does no harm.
//!
//! A member that leads is never removed as it stands: it hands leadership over first, and the next call finds the
//! successor.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use pflex_common::net::Endpoint;
use pflex_proto::{
    ids::{MdmId, StoreUuid},
    pb::{self, AddNodeRequest, ChangeMembersReply, cluster_client::ClusterClient},
    status::{self, Reason},
};
use tokio::{net::TcpStream, sync::MutexGuard};
use tonic::{Request, Status};

use super::{Api, cluster};
use crate::{
    command::{Body, proto},
    raft::{MdmNode, group::GroupStatus},
};

/// A voter more costs each write an answer more; nobody needs to survive the loss of four members.
const MOST_VOTERS: usize = 7;
/// A learner this near to the leader has everything a moment later; under load nobody is ever nearer.
const CAUGHT_UP: u64 = 64;
/// Below the 1.5 s that clients give one attempt.
const ONE_STEP: Duration = Duration::from_millis(700);
/// For a node to say who it is.
const IDENTIFY: Duration = Duration::from_secs(1);
/// A member's Raft port that answers at all answers within this.
const PROBE: Duration = Duration::from_millis(300);
const HAND_OVER: Duration = Duration::from_secs(1);

impl Api {
    /// Makes a node a voter, or takes the next step towards it.
    pub(super) async fn add_member(&self, request: AddNodeRequest) -> Result<ChangeMembersReply, Status> {
        let _one = self.begin_change().await?;
        let id = new_id(request.id)?;
        let group = self.group().status();
        if votes(&group, id) {
            self.same_node(&group, &request).await?;
            return Ok(done(&group, format!("mdm {id} votes")));
        }
        if let Some(waiting) = self.bring_up(&group, &request).await? {
            return Ok(waiting);
        }
        let mut voters = voters(&group);
        voters.insert(id);
        if voters.len() > MOST_VOTERS {
            return Err(refused(format!(
                "mdm {id}: a cluster has at most {MOST_VOTERS} voting MDMs; remove one first"
            )));
        }
        self.group().change_voters(voters).await.map_err(cluster::membership_error)?;
        Ok(done(&self.group().status(), format!("mdm {id} votes")))
    }

    /// Takes a member out, or takes the next step towards it. One that is none is out already.
    pub(super) async fn remove_member(&self, request: pb::RemoveNodeRequest) -> Result<ChangeMembersReply, Status> {
        let _one = self.begin_change().await?;
        let id = MdmId(request.id);
        let group = self.group().status();
        if !group.members.contains_key(&id) {
            return Ok(done(&group, format!("mdm {id} is no member")));
        }
        if !votes(&group, id) {
            self.group().remove_learners([id].into()).await.map_err(cluster::membership_error)?;
            self.record(&group, None, Some(id), format!("mdm {id} was removed before it voted")).await?;
            return Ok(done(&self.group().status(), format!("mdm {id} is removed")));
        }
        let mut left = voters(&group);
        left.remove(&id);
        if left.is_empty() {
            return Err(refused(format!("mdm {id}: it is the only one; add another before you remove it")));
        }
        if !request.force {
            majority_listens(&group, &left, &format!("remove mdm {id}")).await?;
        }
        if id == group.id {
            return Err(self.step_down(&group, &left).await);
        }
        self.group().change_voters(left).await.map_err(cluster::membership_error)?;
        self.record(&group, None, Some(id), format!("mdm {id} was removed")).await?;
        Ok(done(&self.group().status(), format!("mdm {id} is removed")))
    }

    /// Puts a new node in the place of a member, in one change of voters: there is never one less or one more.
    pub(super) async fn replace_member(&self, request: pb::ReplaceNodeRequest) -> Result<ChangeMembersReply, Status> {
        let _one = self.begin_change().await?;
        let old = MdmId(request.old);
        let new = request.new.ok_or_else(|| status::status(Reason::Invalid, "the request names no new node"))?;
        let id = new_id(new.id)?;
        if id == old {
            let what = format!("mdm {id}: a node comes back only under a new id; `cluster replace-node {old} NEW`");
            return Err(status::status(Reason::Invalid, what));
        }
        let group = self.group().status();
        if !votes(&group, old) && !votes(&group, id) {
            let what = format!("mdm {old}: it is not a voting member; `cluster status` shows those there are");
            return Err(status::status(Reason::NotFound, what));
        }
        if votes(&group, id) {
            self.same_node(&group, &new).await?;
        } else if let Some(waiting) = self.bring_up(&group, &new).await? {
            return Ok(waiting);
        }
        let mut goal = voters(&group);
        goal.insert(id);
        goal.remove(&old);
        if old == group.id {
            // Leads: somebody who stays takes over, if need be the new one, which then must vote first.
            let mut stay = voters(&group);
            stay.remove(&old);
            if stay.is_empty() {
                let both = [old, id].into();
                self.group().change_voters(both).await.map_err(cluster::membership_error)?;
                return Ok(step(&group, format!("mdm {id} votes beside mdm {old}"), 0));
            }
            return Err(self.step_down(&group, &stay).await);
        }
        if goal != voters(&group) {
            majority_listens(&group, &goal, &format!("replace mdm {old}")).await?;
            self.group().change_voters(goal).await.map_err(cluster::membership_error)?;
            self.record(&group, None, Some(old), format!("mdm {id} took the place of mdm {old}")).await?;
        }
        Ok(done(&self.group().status(), format!("mdm {id} has taken the place of mdm {old}")))
    }

    /// One change at a time, on the leader, and an unfinished one of an earlier leader first.
    async fn begin_change(&self) -> Result<MutexGuard<'_, ()>, Status> {
        self.leading()?;
        let busy = || status::overloaded("another change of the members is being made", cluster::BUSY_RETRY_MS);
        let one = self.changing().try_lock().map_err(|_| busy())?;
        self.group().settle().await.map_err(cluster::membership_error)?;
        Ok(one)
    }

    /// Makes the node a learner and waits a little while for it to catch up. None once it has.
    async fn bring_up(
        &self,
        group: &GroupStatus,
        request: &AddNodeRequest,
    ) -> Result<Option<ChangeMembersReply>, Status> {
        let id = MdmId(request.id);
        if group.members.contains_key(&id) {
            self.same_node(group, request).await?;
        } else {
            if let Some((other, _)) = group.members.iter().find(|(other, _)| !votes(group, **other)) {
                let what = format!("mdm {other} is being added; finish that with the same command, or remove it first");
                return Err(refused(format!("mdm {id}: {what}")));
            }
            let node = self.identified(request).await?;
            if let Some((other, _)) = group.members.iter().find(|(_, member)| shares(member, &node)) {
                return Err(refused(format!("mdm {id}: mdm {other} has its address or its store")));
            }
            let what = format!("mdm {id} is being added, at {}", node.api_address);
            self.record(group, Some((id, node.store)), None, what).await?;
            self.group().add_learner(id, node, None).await.map_err(cluster::membership_error)?;
        }
        let lag = self.group().wait_for_log(id, CAUGHT_UP, ONE_STEP).await;
        let what = format!("mdm {id} gets the log, {lag} entries are missing");
        Ok((lag > CAUGHT_UP).then(|| step(&self.group().status(), what, lag)))
    }

    /// Asks the node who it is, and refuses a stranger.
    async fn identified(&self, request: &AddNodeRequest) -> Result<MdmNode, Status> {
        let id = MdmId(request.id);
        let endpoint: Endpoint = request
            .api_address
            .parse()
            .map_err(|error| status::status(Reason::Invalid, format!("mdm {id}: {error}")))?;
        let mut client = ClusterClient::new(endpoint.channel());
        let asked = client.identify(Request::new(pb::IdentifyRequest {}));
        let identity = match tokio::time::timeout(IDENTIFY, asked).await.unwrap_or_else(|_| Err(silent())) {
            Ok(identity) => identity.into_inner(),
            Err(error) => {
                let what = format!("nobody answers as an MDM at {endpoint} ({})", error.message());
                let what = format!("mdm {id}: {what}; start it with `pflex mdm --config FILE` and a `join` section");
                return Err(refused(what));
            }
        };
        if identity.cluster_id != self.cluster().as_bytes() {
            let what = format!("mdm {id}: the MDM at {endpoint} belongs to another cluster");
            return Err(status::status(Reason::WrongCluster, what));
        }
        if identity.id != id.get() {
            return Err(refused(format!("mdm {id}: the MDM at {endpoint} is mdm {}", identity.id)));
        }
        let store = StoreUuid::from_slice(&identity.store)
            .map_err(|why| status::status(Reason::Internal, format!("mdm {id}: its store: {why}")))?;
        let told = identity.addresses.unwrap_or_default().raft;
        let raft_address = if request.raft_address.is_empty() { told } else { request.raft_address.clone() };
        if !listens(&raft_address).await {
            let what = format!("mdm {id}: this leader cannot reach its Raft port at {raft_address}");
            return Err(refused(format!("{what}; check the address and the firewall")));
        }
        Ok(MdmNode { raft_address, api_address: endpoint.to_string(), store })
    }

    /// Who is a member under this id must be the node that answers there now (S18). A member that does not answer is
    /// taken as it is: its store was checked when it was added, and its peers check it all the time.
    async fn same_node(&self, group: &GroupStatus, request: &AddNodeRequest) -> Result<(), Status> {
        let Some(member) = group.members.get(&MdmId(request.id)) else { return Ok(()) };
        let found = match self.identified(request).await {
            Ok(found) => found,
            Err(error) if status::reason(&error) == Some(Reason::Precondition) => return Ok(()),
            Err(error) => return Err(error),
        };
        if found.store != member.store {
            return Err(store_lost(MdmId(request.id)));
        }
        if found.api_address != member.api_address || found.raft_address != member.raft_address {
            let what = format!("mdm {} is a member at {} and {}", request.id, member.api_address, member.raft_address);
            return Err(status::status(Reason::AlreadyExists, what));
        }
        Ok(())
    }

    /// Hands leadership to one of `stay` and sends the caller there.
    async fn step_down(&self, group: &GroupStatus, stay: &BTreeSet<MdmId>) -> Status {
        let mut best: Vec<_> = stay.iter().map(|id| (group.matched.get(id).copied().flatten(), *id)).collect();
        best.sort_unstable();
        for (_, id) in best.into_iter().rev() {
            let Some(node) = group.members.get(&id) else { continue };
            if !listens(&node.raft_address).await {
                continue;
            }
            let mut leader = self.group().leader();
            if let Err(error) = self.group().transfer_leader(id).await {
                return cluster::membership_error(error);
            }
            let taken = leader.wait_for(|view| !view.leading && view.leader.is_some());
            drop(tokio::time::timeout(HAND_OVER, taken).await);
            return self.not_leader();
        }
        refused(format!("mdm {}: it leads, and no other member can be reached to take over", group.id))
    }

    /// Has the state remember which ids belong to which stores, and `new` among them; refused when that id belonged to
    /// another store. Of `removed` only that it was there is remembered.
    async fn record(
        &self,
        group: &GroupStatus,
        new: Option<(MdmId, StoreUuid)>,
        removed: Option<MdmId>,
        what: String,
    ) -> Result<(), Status> {
        let stores = group.members.iter().map(|(id, node)| (*id, node.store)).chain(new);
        let stores = stores.map(|(id, store)| proto::MdmStore { id: id.get(), store: store.as_bytes().to_vec() });
        let removed = removed.into_iter().map(MdmId::get).collect();
        let record = proto::RecordMdms { stores: stores.collect(), removed, what };
        self.propose(None, Body::RecordMdms(record)).await.map(drop)
    }
}

fn voters(group: &GroupStatus) -> BTreeSet<MdmId> {
    group.voters.last().cloned().unwrap_or_default()
}

fn votes(group: &GroupStatus, id: MdmId) -> bool {
    group.voters.iter().any(|voters| voters.contains(&id))
}

fn shares(member: &MdmNode, node: &MdmNode) -> bool {
    member.raft_address == node.raft_address || member.api_address == node.api_address || member.store == node.store
}

fn new_id(id: u64) -> Result<MdmId, Status> {
    match id {
        0 => Err(status::status(Reason::Invalid, "mdm 0: ids begin at 1")),
        id => Ok(MdmId(id)),
    }
}

/// Refuses a change after which the voters could not decide anything.
async fn majority_listens(group: &GroupStatus, voters: &BTreeSet<MdmId>, what: &str) -> Result<(), Status> {
    let listening = listening(group.members.iter().filter(|(id, _)| voters.contains(id)), group.id).await;
    let up = listening.values().filter(|up| **up).count();
    if up > voters.len() / 2 {
        return Ok(());
    }
    let down: Vec<String> = listening.iter().filter(|(_, up)| !**up).map(|(id, _)| format!("mdm {id}")).collect();
    let why = format!("of the {} that would be left only {up} can be reached", voters.len());
    Err(refused(format!("{what}: {why}; bring back {} first, or replace it", down.join(", "))))
}

/// Which members' Raft ports take a connection now; this member's own does.
pub(super) async fn listening<'a>(
    members: impl Iterator<Item = (&'a MdmId, &'a MdmNode)>,
    own: MdmId,
) -> BTreeMap<MdmId, bool> {
    let tries = members.map(|(id, node)| async { (*id, *id == own || listens(&node.raft_address).await) });
    futures::future::join_all(tries).await.into_iter().collect()
}

async fn listens(address: &str) -> bool {
    matches!(tokio::time::timeout(PROBE, TcpStream::connect(address)).await, Ok(Ok(_)))
}

fn silent() -> Status {
    Status::deadline_exceeded(format!("no answer within {} s", IDENTIFY.as_secs()))
}

fn refused(what: String) -> Status {
    status::status(Reason::Precondition, what)
}

/// The directory of a member was lost and made anew (S18).
fn store_lost(id: MdmId) -> Status {
    let what = format!("mdm {id}: the id belongs to another store; a node that lost its store comes back only under a");
    status::status(Reason::AlreadyExists, format!("{what} new id: `cluster replace-node {id} NEW`"))
}

fn done(group: &GroupStatus, what: String) -> ChangeMembersReply {
    ChangeMembersReply { done: true, ..step(group, what, 0) }
}

fn step(group: &GroupStatus, what: String, lag: u64) -> ChangeMembersReply {
    let voters = voters(group).into_iter().map(MdmId::get).collect();
    ChangeMembersReply { done: false, step: what, lag, voters }
}
