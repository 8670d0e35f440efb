//! How the cluster does, with reasons, and handing leadership over.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use pflex_proto::{
    ids::{MdmId, SdsId},
    pb::{
        self, AddNodeRequest, BackupRequest, ChangeMembersReply, ClusterMember, ClusterStatus, ClusterStatusRequest,
        EndRecoveryReply, EndRecoveryRequest, IdentifyRequest, Identity, Reason as HealthReason, RemoveNodeRequest,
        ReplaceNodeRequest, RotateSecretReply, RotateSecretRequest, SnapshotReply, SnapshotRequest,
        TransferLeaderReply, TransferLeaderRequest, cluster_server::Cluster,
    },
    status::{self, Reason},
};
use tonic::{Request, Response, Status};

use super::{Api, backup, convert, membership};
use crate::{
    command::{Body, proto},
    raft::group::{GroupStatus, MembershipError, Role, Standing},
    state::{
        State,
        model::{JobState, clock_words},
    },
};

/// A member without a sign of a majority for longer says so. Above the second that an election takes.
const MAX_SILENCE: Duration = Duration::from_millis(2_500);
/// What a client waits for an earlier change of the members.
pub(super) const BUSY_RETRY_MS: u64 = 100;
/// One message and one election.
const HAND_OVER: Duration = Duration::from_secs(3);

#[tonic::async_trait]
impl Cluster for Api {
    async fn status(&self, request: Request<ClusterStatusRequest>) -> Result<Response<ClusterStatus>, Status> {
        let (used, heard) = (self.reports().used_bytes(), self.heard());
        let (revision, mut answer) = self
            .read(request.into_inner().stale, |state| ClusterStatus {
                keys: self.key_states(state),
                ..totals(state, &used, &heard)
            })
            .await?;
        let group = self.group().status();
        answer.cluster_id = self.cluster().as_bytes().to_vec();
        answer.revision = revision.get();
        answer.leader = group.leader.map_or(0, MdmId::get);
        answer.term = group.term;
        answer.log_time_ms = self.log_time().get();
        answer.members = members(&group).await;
        for member in answer.members.iter().filter(|member| member.state != UP) {
            answer.reasons.push(warning(
                format!("mdm {}", member.id),
                format!("it cannot be reached; {} members are left", count_up(&answer.members)),
            ));
        }
        if let [old, .., new] = group.voters.as_slice() {
            answer.reasons.push(warning("mdm".to_owned(), between(old, new)));
        }
        let me = format!("mdm {}", group.id);
        let silence = self.group().silence();
        match self.group().standing() {
            Standing::Member if silence < MAX_SILENCE => {}
            Standing::Member => {
                // It remembers who led last; whether anybody does now it cannot know.
                answer.leader = 0;
                let why =
                    format!("it has known of no working majority for {} s; all it shows may be old", silence.as_secs());
                answer.reasons.push(critical(me, why));
            }
            Standing::Waiting => {
                let why = "it waits to be added: `pflex cluster add-node` or `replace-node`, sent to the other MDMs";
                answer.reasons.push(critical(me, why.to_owned()));
            }
            Standing::Removed => {
                answer.leader = 0;
                let why = "it was removed from the cluster and can be stopped; all it shows is old";
                answer.reasons.push(critical(me, why.to_owned()));
            }
        }
        if answer.leader == 0 {
            answer.reasons.push(critical("mdm".to_owned(), "there is no leader: nothing can be decided".to_owned()));
        }
        answer.health = verdict(&answer.reasons).to_owned();
        Ok(Response::new(answer))
    }

    async fn transfer_leader(
        &self,
        request: Request<TransferLeaderRequest>,
    ) -> Result<Response<TransferLeaderReply>, Status> {
        self.leading()?;
        let group = self.group().status();
        let to = match request.into_inner().to {
            0 => most_advanced(&group)
                .ok_or_else(|| status::status(Reason::Precondition, "there is no other member that could lead"))?,
            id if group.voters.iter().any(|voters| voters.contains(&MdmId(id))) => MdmId(id),
            id if group.members.contains_key(&MdmId(id)) => {
                let what = format!("mdm {id}: it is still being added and cannot lead yet");
                return Err(status::status(Reason::Precondition, what));
            }
            id => return Err(status::status(Reason::NotFound, format!("mdm {id}: it is not a member"))),
        };
        // A leader that asks somebody who is not there takes no writes until the next election.
        if !membership::listening(group.members.iter().filter(|(id, _)| **id == to), group.id).await[&to] {
            let what = format!("mdm {to}: it cannot be reached; `cluster status` shows who can");
            return Err(status::status(Reason::Precondition, what));
        }
        let mut leader = self.group().leader();
        self.group().transfer_leader(to).await.map_err(membership_error)?;
        let taken = leader.wait_for(|view| view.leader.as_ref().is_some_and(|leader| leader.id == to));
        match tokio::time::timeout(HAND_OVER, taken).await {
            Ok(Ok(view)) => Ok(Response::new(TransferLeaderReply { leader: to.get(), term: view.term })),
            Ok(Err(_)) | Err(_) => {
                let what =
                    format!("mdm {to} did not take over within {} s; the leader may have changed", HAND_OVER.as_secs());
                Err(status::status(Reason::UnknownOutcome, what))
            }
        }
    }

    async fn identify(&self, _: Request<IdentifyRequest>) -> Result<Response<Identity>, Status> {
        let identity = self.group().identity();
        Ok(Response::new(Identity {
            cluster_id: identity.cluster.as_bytes().to_vec(),
            id: identity.node.get(),
            store: identity.store.as_bytes().to_vec(),
            addresses: Some(self.addresses().clone()),
            standing: self.group().standing().text().to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }))
    }

    async fn add_node(&self, request: Request<AddNodeRequest>) -> Result<Response<ChangeMembersReply>, Status> {
        let (api, request) = (self.clone(), request.into_inner());
        to_the_end(async move { api.add_member(request).await }).await
    }

    async fn remove_node(&self, request: Request<RemoveNodeRequest>) -> Result<Response<ChangeMembersReply>, Status> {
        let (api, request) = (self.clone(), request.into_inner());
        to_the_end(async move { api.remove_member(request).await }).await
    }

    async fn replace_node(&self, request: Request<ReplaceNodeRequest>) -> Result<Response<ChangeMembersReply>, Status> {
        let (api, request) = (self.clone(), request.into_inner());
        to_the_end(async move { api.replace_member(request).await }).await
    }

    async fn snapshot(&self, _: Request<SnapshotRequest>) -> Result<Response<SnapshotReply>, Status> {
        let api = self.clone();
        to_the_end(async move { api.build_snapshot().await }).await
    }

    async fn end_recovery(&self, request: Request<EndRecoveryRequest>) -> Result<Response<EndRecoveryReply>, Status> {
        let EndRecoveryRequest { request, without } = request.into_inner();
        self.propose_once(request, Body::EndRecovery(proto::EndRecovery { without })).await?;
        Ok(Response::new(EndRecoveryReply {}))
    }

    async fn rotate_secret(
        &self,
        request: Request<RotateSecretRequest>,
    ) -> Result<Response<RotateSecretReply>, Status> {
        self.make_secret(request.into_inner()).await.map(Response::new)
    }

    type BackupStream = backup::Parts;

    async fn backup(&self, _: Request<BackupRequest>) -> Result<Response<Self::BackupStream>, Status> {
        self.back_up().await.map(Response::new)
    }
}

/// A change goes on when its caller does not wait any more: half-way it would leave the group between two sets of voters.
async fn to_the_end<T: Send + 'static>(
    change: impl Future<Output = Result<T, Status>> + Send + 'static,
) -> Result<Response<T>, Status> {
    let made = tokio::spawn(change).await;
    made.map_err(|error| status::status(Reason::Internal, error.to_string()))?.map(Response::new)
}

pub(super) fn membership_error(error: MembershipError) -> Status {
    let message = error.to_string();
    match error {
        MembershipError::NotLeader { leader, term } => {
            let (id, address) = leader.map(|leader| (leader.id, leader.api_address)).unzip();
            status::not_leader(&status::LeaderHint { id, address, term })
        }
        MembershipError::Busy => status::overloaded(message, BUSY_RETRY_MS),
        MembershipError::Refused { .. } => status::status(Reason::Precondition, message),
        MembershipError::Unknown { .. } => status::status(Reason::UnknownOutcome, message),
    }
}

/// What it means that a change of the voters is half done.
fn between(old: &BTreeSet<MdmId>, new: &BTreeSet<MdmId>) -> String {
    let list = |voters: &BTreeSet<MdmId>| voters.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    format!(
        "a change of its members is half done: a majority of {} and one of {} are both needed until the leader has finished it",
        list(old),
        list(new)
    )
}

fn most_advanced(group: &GroupStatus) -> Option<MdmId> {
    let votes = |id: &MdmId| group.voters.iter().any(|voters| voters.contains(id));
    let others = group.matched.iter().filter(|(id, _)| **id != group.id && votes(id));
    others.max_by_key(|(_, matched)| matched.map(|log| log.index)).map(|(id, _)| *id)
}

const UP: &str = "up";

/// Every member, its port tried now.
async fn members(group: &GroupStatus) -> Vec<ClusterMember> {
    let listening = membership::listening(group.members.iter(), group.id).await;
    let votes = |id: &MdmId| group.voters.iter().any(|voters| voters.contains(id));
    let newest = group.last_log.unwrap_or(0);
    group
        .members
        .iter()
        .map(|(id, node)| {
            let role = match () {
                () if group.leader == Some(*id) => "leader",
                () if votes(id) => "follower",
                () => "learner",
            };
            // Only the leader knows how far the others are.
            let matched =
                if *id == group.id { Some(newest) } else { group.matched.get(id).map(|m| m.map_or(0, |l| l.index)) };
            let addresses = pb::Addresses {
                raft: node.raft_address.clone(),
                api: node.api_address.clone(),
                ..pb::Addresses::default()
            };
            ClusterMember {
                id: id.get(),
                addresses: Some(addresses),
                role: role.to_owned(),
                state: if listening[id] { UP } else { "unreachable" }.to_owned(),
                lag: if group.role == Role::Leader { newest.saturating_sub(matched.unwrap_or(0)) } else { 0 },
            }
        })
        .collect()
}

fn count_up(members: &[ClusterMember]) -> usize {
    members.iter().filter(|member| member.state == UP).count()
}

fn warning(object: String, why: String) -> HealthReason {
    HealthReason { object, severity: "warning".to_owned(), why }
}

fn critical(object: String, why: String) -> HealthReason {
    HealthReason { object, severity: "critical".to_owned(), why }
}

fn verdict(reasons: &[HealthReason]) -> &'static str {
    if reasons.iter().any(|reason| reason.severity == "critical") {
        "critical"
    } else if reasons.is_empty() {
        "ok"
    } else {
        "degraded"
    }
}

/// The part of the status that is in the state.
fn totals(state: &State, used: &BTreeMap<SdsId, u64>, heard: &convert::Heard<'_>) -> ClusterStatus {
    let mut answer = ClusterStatus { components: convert::components(state, heard), ..ClusterStatus::default() };
    if let Some(cluster) = state.cluster() {
        answer.cluster_generation = cluster.generation.get();
        answer.recovering = cluster.recovering;
    }
    recovery(state, &mut answer);
    for sds in state.all_sds() {
        let object = format!("sds {}", sds.name);
        match (&sds.registration, sds.alive) {
            (None, _) => answer.reasons.push(warning(object, "it was created and never started".to_owned())),
            (Some(_), false) => {
                let component =
                    crate::state::model::Component { kind: crate::state::model::Kind::Sds, id: sds.id.get() };
                let why = state.health_of(component).map_or_else(|| "it is lost".to_owned(), |h| h.why.clone());
                let kept_out = state.sds_kept_out(sds.id, heard.now).map(|until| {
                    let times = state.oscillation_of(component, heard.now)[1];
                    let wait = until.get().saturating_sub(heard.now.get()).div_ceil(1_000);
                    format!(
                        "; it flaps: lost {times} times within an hour, and is taken back in {wait} s at the earliest"
                    )
                });
                let planned = sds.maintenance.map_or("", |_| "in maintenance: ");
                let why = format!("{planned}{why}{}", kept_out.unwrap_or_default());
                answer.reasons.push(warning(object, why));
            }
            (Some(_), true) => {
                for device in state.devices_of(sds.id).filter(|device| !device.alive) {
                    let object = format!("device {} of sds {}", device.id, sds.name);
                    answer.reasons.push(warning(object, format!("{} is out of service", device.path)));
                }
                for (device, why) in state.devices_of(sds.id).filter_map(|device| Some((device, device.slow.as_ref()?)))
                {
                    let object = format!("device {} of sds {}", device.id, sds.name);
                    answer.reasons.push(warning(object, format!("{} is slow: {why}", device.path)));
                }
            }
        }
    }
    for (component, ahead) in state.clocks_off() {
        let Some(object) = state.component_label(component) else { continue };
        answer.reasons.push(warning(object, clock_words(ahead)));
    }
    for (id, (_, scrub)) in heard.liveness.faults() {
        let Some(device) = state.device(id).filter(|_| scrub.found.unreadable_chunks > 0) else { continue };
        let sds = state.sds(device.sds).map_or_else(String::new, |sds| sds.name.clone());
        let why = format!(
            "{} chunks of groups that it leads have data that no copy can read (`pflex why device {id}`, `pflex events`)",
            scrub.found.unreadable_chunks
        );
        answer.reasons.push(critical(format!("device {id} of sds {sds}"), why));
    }
    for job in state.all_rebuilds().filter(|job| !job.is_finished()) {
        match job.state {
            JobState::Running => answer.rebuilds_running += 1,
            JobState::Waiting | JobState::Done => answer.rebuilds_waiting += 1,
        }
        answer.rebuild_groups_left += u64::from(job.groups_left);
        answer.rebuild_groups_done += job.groups_done;
    }
    for pool in state.all_pools() {
        let usage = state.usage_of(pool);
        let object = format!("pool {}", pool.name);
        answer.capacity_bytes += usage.capacity.get();
        answer.provisioned_bytes += usage.provisioned.get();
        answer.used_bytes += convert::used_of(state, pool, used);
        answer.pgs += pool.pg_count;
        answer.pgs_degraded += usage.degraded;
        answer.pgs_unavailable += usage.unavailable;
        for (index, freeze) in &pool.frozen {
            let what = format!(
                "its copy on device {} is being promoted by force; pool {} gets no tokens meanwhile (`pflex pg unfreeze`)",
                freeze.device, pool.name
            );
            answer.reasons.push(critical(format!("pg {}.{index}", pool.id), what));
        }
        if usage.unavailable > 0 {
            let why = format!("{} of {} placement groups have no live in-sync copy", usage.unavailable, pool.pg_count);
            answer.reasons.push(critical(object.clone(), why));
        }
        if usage.degraded > 0 {
            let why = format!("{} of {} placement groups serve with fewer copies", usage.degraded, pool.pg_count);
            answer.reasons.push(warning(object.clone(), why));
        }
        if usage.unassigned > 0 {
            let why = format!("its {} copies need as many SDSs (or fault sets) with a device in service", pool.copies);
            answer.reasons.push(warning(object, why));
        }
    }
    answer
}

/// Groups named in one reason.
const NAMED: usize = 8;

/// S19: what a restored cluster waits for, and what it cannot place.
fn recovery(state: &State, answer: &mut ClusterStatus) {
    let awaited = state.awaited_sds();
    let names = awaited.iter().filter_map(|sds| Some(state.sds(*sds)?.name.clone()));
    answer.awaited_sds = names.collect();
    if !answer.recovering {
        return;
    }
    let closed = "no group is served until `pflex cluster end-recovery`";
    let why = if awaited.is_empty() {
        format!("restored from a backup; every SDS and device has reported what it knew; {closed}")
    } else {
        let all = state.all_sds().len();
        let reported = all - awaited.len();
        format!("restored from a backup; {reported} of {all} SDSs have reported what they knew; {closed}")
    };
    answer.reasons.push(critical("cluster".to_owned(), why));
    for sds in &awaited {
        let object = state.sds(*sds).map_or_else(|| format!("sds #{sds}"), |sds| format!("sds {}", sds.name));
        answer.reasons.push(warning(object, format!("{} not reported since the restore", state.what_is_awaited(*sds))));
    }
    let unknown: Vec<String> = state.unknown_groups().map(|row| row.pg.to_string()).collect();
    if !unknown.is_empty() {
        let named = unknown.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
        let why = format!(
            "{} placement groups are on devices and not in the backup: {named}; their pools came after it and are lost",
            unknown.len()
        );
        answer.reasons.push(warning("cluster".to_owned(), why));
    }
}
