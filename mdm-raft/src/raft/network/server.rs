//! Answering peers: checks who asks whom, translates, hands to openraft.

use std::{
    future::Future,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use futures::{Stream, StreamExt as _, stream::BoxStream};
use openraft::{
    Raft,
    async_runtime::watch::WatchReceiver as _,
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, StreamAppendError, TransferLeaderError, TransferLeaderRequest,
        VoteRequest,
    },
};
use pflex_proto::ids::MdmId;
use tonic::{Request, Response, Status, Streaming};

use super::{MESSAGE_BYTES, SERVE_DEADLINE, SNAPSHOT_IDLE, heard::Heard, links::Links, standing::Told};
use crate::{
    pb::pflex::mdm::raft::v1::{
        self as pb,
        raft_peer_server::{RaftPeer, RaftPeerServer},
    },
    raft::{
        codec,
        identity::StoreIdentity,
        snapshot::{Incoming, SnapshotHandle, SnapshotStore},
        state_store::StateStore,
        types::{TypeConfig, Vote},
    },
};

type Snapshot = openraft::alias::SnapshotOf<TypeConfig, SnapshotHandle>;

/// Who may speak, and what is noted of it. Clones share it.
#[derive(Clone)]
struct Gate {
    identity: StoreIdentity,
    raft: Raft<TypeConfig, StateStore>,
    links: Links,
    heard: Heard,
    told: Told,
}

/// The Raft port of one member.
pub(in crate::raft) struct PeerService {
    gate: Gate,
    raft: Raft<TypeConfig, StateStore>,
    snapshots: Arc<SnapshotStore>,
    // One snapshot is taken in at a time: two would only fight for the disk.
    receiving: tokio::sync::Mutex<()>,
}

impl Gate {
    /// Refuses a request that is not between the two stores it should be between (S18).
    fn check(&self, ends: Option<&pb::Ends>) -> Result<(), Status> {
        if self.links.are_cut() {
            return Err(Status::unavailable("the links of this member are cut"));
        }
        let refuse = |what: String| Err(Status::failed_precondition(what));
        let ends = ends.ok_or_else(|| Status::invalid_argument("the request does not say between whom"))?;
        let mine = &self.identity;
        if ends.cluster != mine.cluster.as_bytes() {
            return refuse(format!("this is MDM {} of cluster {}, not of the caller's", mine.node, mine.cluster));
        }
        if ends.to != mine.node.get() {
            return refuse(format!("this is MDM {}, not MDM {}", mine.node, ends.to));
        }
        if ends.to_store != mine.store.as_bytes() {
            return refuse(format!("MDM {} has store {}, not the one of the membership", mine.node, mine.store));
        }
        // A member that is new here knows nobody yet and takes the caller's word; the caller named this store.
        let metrics = self.raft.metrics();
        match metrics.borrow_watched().membership_config.get_node(&MdmId(ends.from)) {
            Some(node) if ends.from_store != node.store.as_bytes() => {
                refuse(format!("MDM {} is a member with store {}, not with the caller's", ends.from, node.store))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// A leader's append was taken, or refused for what its log lacks.
    fn led(&self) {
        self.heard.note(Instant::now());
        self.told.belongs();
    }

    /// The requests of a stream, until one is refused; `refused` is then why.
    fn admit(
        self,
        requests: Streaming<pb::AppendRequest>,
        refused: Arc<OnceLock<Status>>,
    ) -> impl Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + 'static {
        futures::stream::unfold((self, requests, None), move |(gate, mut requests, mut ends)| {
            let refused = refused.clone();
            async move {
                let rpc = async {
                    let Some(mut request) = requests.message().await? else { return Ok(None) };
                    if let Some(named) = request.ends.take() {
                        ends = Some(named);
                    }
                    // Each of them: the caller may have been removed or cut off since the first.
                    gate.check(ends.as_ref())?;
                    append_request(request).map(Some)
                };
                match rpc.await {
                    Ok(rpc) => rpc.map(|rpc| (rpc, (gate, requests, ends))),
                    Err(status) => {
                        // The only one that sets it, and the last thing it does.
                        drop(refused.set(status));
                        None
                    }
                }
            }
        })
    }
}

impl PeerService {
    pub(in crate::raft) fn new(
        identity: StoreIdentity,
        raft: Raft<TypeConfig, StateStore>,
        snapshots: Arc<SnapshotStore>,
        links: Links,
        (heard, told): (Heard, Told),
    ) -> RaftPeerServer<Self> {
        let gate = Gate { identity, raft: raft.clone(), links, heard, told };
        let service = Self { gate, raft, snapshots, receiving: tokio::sync::Mutex::new(()) };
        RaftPeerServer::new(service).max_decoding_message_size(MESSAGE_BYTES).max_encoding_message_size(MESSAGE_BYTES)
    }
    /// The membership this member has applied, if the caller is not in it and cannot win this member's vote: its log
    /// does not reach that far. A caller whose log does may have been added again by an entry not seen here; refusing it
    /// could leave a group of members that lag without any leader.
    fn excludes(&self, request: &pb::VoteRequest) -> Option<pb::LogId> {
        let seen = self.raft.metrics().borrow_watched().clone();
        let membership = seen.membership_config;
        let caller = MdmId(request.ends.as_ref()?.from);
        let made = (*membership.log_id())?;
        let theirs = request.last_log.map(codec::log_id_from_pb);
        let excluded = membership.get_node(&caller).is_none() && seen.last_applied >= Some(made) && theirs < Some(made);
        excluded.then(|| codec::log_id_to_pb(&made))
    }

    /// Refuses a vote to a caller that was removed, and tells it so.
    fn refuse_removed(&self, request: &pb::VoteRequest) -> Option<Response<pb::VoteReply>> {
        let excluded_by = self.excludes(request)?;
        let seen = self.raft.metrics().borrow_watched().clone();
        let vote = Some(codec::vote_to_pb(&seen.vote));
        let reply = pb::VoteReply { vote, granted: false, last_log: None, excluded_by: Some(excluded_by) };
        Some(Response::new(reply))
    }

    async fn receive(&self, mut parts: Streaming<pb::SnapshotPart>) -> Result<(Vote, SnapshotHandle), Status> {
        let Some(pb::snapshot_part::Part::Head(head)) = next_part(&mut parts).await? else {
            return Err(Status::invalid_argument("a snapshot starts with its head"));
        };
        self.gate.check(head.ends.as_ref())?;
        let vote = vote(head.vote)?;
        let manifest = head.manifest.ok_or_else(|| missing("manifest"))?;
        let snapshots = self.snapshots.clone();
        let mut incoming = blocking(move || Incoming::begin(&snapshots, manifest)).await?;
        while let Some(part) = next_part(&mut parts).await? {
            let pb::snapshot_part::Part::Bytes(bytes) = part else {
                return Err(Status::invalid_argument("a snapshot has one head"));
            };
            incoming = blocking(move || incoming.write(&bytes).map(|()| incoming)).await?;
        }
        let handle = blocking(move || incoming.finish()).await?;
        Ok((vote, handle))
    }
}

#[tonic::async_trait]
impl RaftPeer for PeerService {
    async fn append(&self, request: Request<pb::AppendRequest>) -> Result<Response<pb::AppendReply>, Status> {
        let request = request.into_inner();
        self.gate.check(request.ends.as_ref())?;
        let response = within(SERVE_DEADLINE, self.raft.append_entries(append_request(request)?)).await?;
        if !matches!(response, AppendEntriesResponse::HigherVote(_)) {
            self.gate.led();
        }
        use pb::append_reply::Result as Reply;
        let result = match response {
            AppendEntriesResponse::Success => Reply::Success(pb::Blank {}),
            AppendEntriesResponse::PartialSuccess(Some(id)) => Reply::Partial(codec::log_id_to_pb(&id)),
            // Matching nothing at all is what a success of an empty request says.
            AppendEntriesResponse::PartialSuccess(None) => Reply::Success(pb::Blank {}),
            AppendEntriesResponse::Conflict => Reply::Conflict(pb::Blank {}),
            AppendEntriesResponse::HigherVote(vote) => Reply::HigherVote(codec::vote_to_pb(&vote)),
        };
        Ok(Response::new(pb::AppendReply { result: Some(result) }))
    }

    type AppendStreamStream = BoxStream<'static, Result<pb::AppendStreamReply, Status>>;

    async fn append_stream(
        &self,
        requests: Request<Streaming<pb::AppendRequest>>,
    ) -> Result<Response<Self::AppendStreamStream>, Status> {
        let refused = Arc::new(OnceLock::new());
        let gate = self.gate.clone();
        let taken = self.raft.stream_append(self.gate.clone().admit(requests.into_inner(), refused.clone()));
        let replies = taken.map(move |taken| {
            let taken = taken.map_err(|fatal| Status::internal(fatal.to_string()))?;
            if !matches!(taken, Err(StreamAppendError::HigherVote(_))) {
                gate.led();
            }
            use pb::append_stream_reply::Result as Reply;
            let result = match taken {
                Ok(Some(id)) => Reply::Matches(codec::log_id_to_pb(&id)),
                Ok(None) => Reply::Empty(pb::Blank {}),
                Err(StreamAppendError::Conflict(at)) => Reply::Conflict(codec::log_id_to_pb(&at)),
                Err(StreamAppendError::HigherVote(vote)) => Reply::HigherVote(codec::vote_to_pb(&vote)),
            };
            Ok(pb::AppendStreamReply { result: Some(result) })
        });
        // What came before a refused request is answered first.
        let last = futures::stream::once(async move { refused.get().cloned() });
        let last = last.filter_map(|refused| async move { refused.map(Err) });
        Ok(Response::new(replies.chain(last).boxed()))
    }

    async fn vote(&self, request: Request<pb::VoteRequest>) -> Result<Response<pb::VoteReply>, Status> {
        let request = request.into_inner();
        self.gate.check(request.ends.as_ref())?;
        if let Some(refused) = self.refuse_removed(&request) {
            return Ok(refused);
        }
        let response = within(SERVE_DEADLINE, self.raft.vote(vote_request(request)?)).await?;
        Ok(Response::new(vote_reply(response)))
    }

    async fn pre_vote(&self, request: Request<pb::VoteRequest>) -> Result<Response<pb::VoteReply>, Status> {
        let request = request.into_inner();
        self.gate.check(request.ends.as_ref())?;
        if let Some(refused) = self.refuse_removed(&request) {
            return Ok(refused);
        }
        let response = within(SERVE_DEADLINE, self.raft.pre_vote(vote_request(request)?)).await?;
        Ok(Response::new(vote_reply(response)))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<pb::SnapshotPart>>,
    ) -> Result<Response<pb::SnapshotReply>, Status> {
        let Ok(_receiving) = self.receiving.try_lock() else {
            return Err(Status::resource_exhausted("another snapshot is being received"));
        };
        let (vote, handle) = self.receive(request.into_inner()).await?;
        let snapshot = Snapshot { meta: handle.meta(), snapshot: handle };
        // No deadline of ours: loading may take long, and the caller has one.
        let response = self.raft.install_full_snapshot(vote, snapshot).await;
        let response = response.map_err(|error| Status::internal(error.to_string()))?;
        Ok(Response::new(pb::SnapshotReply { vote: Some(codec::vote_to_pb(&response.vote)) }))
    }

    async fn transfer_leader(
        &self,
        request: Request<pb::TransferLeaderRequest>,
    ) -> Result<Response<pb::TransferLeaderReply>, Status> {
        let request = request.into_inner();
        self.gate.check(request.ends.as_ref())?;
        let last_log = request.last_log.map(codec::log_id_from_pb);
        let rpc = TransferLeaderRequest::new(vote(request.from_leader)?, MdmId(request.to_node), last_log);
        let response = within(SERVE_DEADLINE, self.raft.handle_transfer_leader(rpc)).await?;
        use pb::transfer_leader_reply::{LogNotFlushed, Result as Reply, VoteChanged};
        let result = match response {
            Ok(()) => Reply::Accepted(pb::Blank {}),
            Err(TransferLeaderError::VoteChanged { expected, actual }) => Reply::VoteChanged(VoteChanged {
                expected: Some(codec::vote_to_pb(&expected)),
                actual: Some(codec::vote_to_pb(&actual)),
            }),
            Err(TransferLeaderError::LogNotFlushed { expected, actual }) => Reply::LogNotFlushed(LogNotFlushed {
                expected: expected.as_ref().map(codec::log_id_to_pb),
                actual: actual.as_ref().map(codec::log_id_to_pb),
            }),
        };
        Ok(Response::new(pb::TransferLeaderReply { result: Some(result) }))
    }
}

fn append_request(request: pb::AppendRequest) -> Result<AppendEntriesRequest<TypeConfig>, Status> {
    let entries = request.entries.into_iter().map(codec::entry_from_pb).collect::<Result<_, _>>();
    Ok(AppendEntriesRequest {
        vote: vote(request.vote)?,
        prev_log_id: request.previous.map(codec::log_id_from_pb),
        entries: entries.map_err(|error| Status::invalid_argument(error.to_string()))?,
        leader_commit: request.leader_commit.map(codec::log_id_from_pb),
    })
}

fn vote_request(request: pb::VoteRequest) -> Result<VoteRequest<TypeConfig>, Status> {
    let mut rpc = VoteRequest::new(vote(request.vote)?, request.last_log.map(codec::log_id_from_pb));
    rpc.leadership_transfer = request.leadership_transfer;
    Ok(rpc)
}

fn vote_reply(response: openraft::raft::VoteResponse<TypeConfig>) -> pb::VoteReply {
    pb::VoteReply {
        vote: Some(codec::vote_to_pb(&response.vote)),
        granted: response.vote_granted,
        last_log: response.last_log_id.as_ref().map(codec::log_id_to_pb),
        excluded_by: None,
    }
}

fn vote(vote: Option<pb::VoteValue>) -> Result<Vote, Status> {
    vote.map(codec::vote_from_pb).ok_or_else(|| missing("vote"))
}

fn missing(what: &str) -> Status {
    Status::invalid_argument(format!("the request has no {what}"))
}

async fn within<T, E: std::fmt::Display>(
    deadline: Duration,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, Status> {
    match tokio::time::timeout(deadline, work).await {
        Ok(done) => done.map_err(|error| Status::internal(error.to_string())),
        Err(_) => Err(Status::deadline_exceeded("the member is too slow")),
    }
}

async fn next_part(parts: &mut Streaming<pb::SnapshotPart>) -> Result<Option<pb::snapshot_part::Part>, Status> {
    let next = tokio::time::timeout(SNAPSHOT_IDLE, parts.message()).await;
    let next = next.map_err(|_| Status::deadline_exceeded("the snapshot stopped coming"))??;
    next.map(|part| part.part.ok_or_else(|| missing("part"))).transpose()
}

/// Disk work off the Raft threads.
async fn blocking<T: Send + 'static, E: std::fmt::Display + Send + 'static>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, Status> {
    let done = tokio::task::spawn_blocking(work).await.map_err(|error| Status::internal(error.to_string()))?;
    done.map_err(|error| Status::data_loss(error.to_string()))
}
