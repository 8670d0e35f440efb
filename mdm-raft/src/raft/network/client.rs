//! Asking a peer: openraft's messages over tonic, each with a deadline.

use std::{collections::HashMap, fs::File, future::Future, io::Read as _, time::Duration};

use futures::Stream;
use openraft::{
    OptionalSend, RPCTypes,
    base::{BoxFuture, BoxStream},
    errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable},
    network::{RPCOption, RaftNetworkFactory, RaftNetworkV2},
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult, TransferLeaderError,
        TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
    },
};
use pflex_proto::ids::MdmId;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code, Response, Status,
    transport::{Channel, Endpoint},
};

use super::{
    APPEND_DEADLINE, CONNECT_DEADLINE, MESSAGE_BYTES, SNAPSHOT_PART_BYTES, links::Links, standing::Told, stream,
};
use crate::{
    pb::pflex::mdm::raft::v1::{self as pb, raft_peer_client::RaftPeerClient},
    raft::{
        codec,
        identity::StoreIdentity,
        snapshot::SnapshotHandle,
        types::{MdmNode, TypeConfig, Vote},
    },
};

type Snapshot = openraft::alias::SnapshotOf<TypeConfig, SnapshotHandle>;
pub(super) type RpcResult<T> = Result<T, RPCError<TypeConfig>>;

/// Parts of a snapshot read ahead of the network.
const SNAPSHOT_READ_AHEAD: usize = 2;

/// What a connection is for; each has its own.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Purpose {
    Replication,
    Heartbeat,
    Snapshot,
}

/// Makes clients for peers and keeps their connections.
pub(in crate::raft) struct PeerFactory {
    identity: StoreIdentity,
    links: Links,
    told: Told,
    // Votes ask for a new client each; at most one connection a purpose and address lives.
    channels: HashMap<(String, Purpose), Channel>,
}

impl PeerFactory {
    pub(in crate::raft) fn new(identity: StoreIdentity, links: Links, told: Told) -> Self {
        Self { identity, links, told, channels: HashMap::new() }
    }

    fn peer(&mut self, target: MdmId, node: &MdmNode, purpose: Purpose) -> Peer {
        let ends = pb::Ends {
            cluster: self.identity.cluster.as_bytes().to_vec(),
            from: self.identity.node.get(),
            from_store: self.identity.store.as_bytes().to_vec(),
            to: target.get(),
            to_store: node.store.as_bytes().to_vec(),
        };
        let channel = self.channel(&node.raft_address, purpose);
        let client = channel.map(|channel| {
            RaftPeerClient::new(channel)
                .max_decoding_message_size(MESSAGE_BYTES)
                .max_encoding_message_size(MESSAGE_BYTES)
        });
        let (links, told) = (self.links.clone(), self.told.clone());
        Peer { me: self.identity.node, target, ends, client, purpose, links, told }
    }

    /// Connects when first used, and again whenever the connection broke.
    fn channel(&mut self, address: &str, purpose: Purpose) -> Result<Channel, String> {
        if let Some(channel) = self.channels.get(&(address.to_owned(), purpose)) {
            return Ok(channel.clone());
        }
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|error| format!("{address} is no address: {error}"))?
            .connect_timeout(CONNECT_DEADLINE)
            .tcp_nodelay(true)
            // A peer that vanished without a word is noticed, also on an idle connection.
            .http2_keep_alive_interval(Duration::from_secs(5))
            .keep_alive_timeout(Duration::from_secs(5))
            .keep_alive_while_idle(true);
        let channel = endpoint.connect_lazy();
        self.channels.insert((address.to_owned(), purpose), channel.clone());
        Ok(channel)
    }
}

impl RaftNetworkFactory<TypeConfig> for PeerFactory {
    type Network = Peer;

    async fn new_client(&mut self, target: MdmId, node: &MdmNode) -> Peer {
        self.peer(target, node, Purpose::Replication)
    }

    async fn new_heartbeat_client(&mut self, target: MdmId, node: &MdmNode) -> Peer {
        self.peer(target, node, Purpose::Heartbeat)
    }

    async fn new_snapshot_client(&mut self, target: MdmId, node: &MdmNode) -> Peer {
        self.peer(target, node, Purpose::Snapshot)
    }
}

pub(super) type Client = RaftPeerClient<Channel>;

/// One peer, for one purpose.
pub(in crate::raft) struct Peer {
    me: MdmId,
    target: MdmId,
    ends: pb::Ends,
    client: Result<Client, String>,
    purpose: Purpose,
    links: Links,
    told: Told,
}

impl Peer {
    pub(super) const fn ends(&self) -> &pb::Ends {
        &self.ends
    }

    pub(super) const fn links(&self) -> &Links {
        &self.links
    }

    /// One call with a deadline. Any error is an error: silence is never a granted vote.
    pub(super) async fn call<T, F>(
        &self,
        action: RPCTypes,
        deadline: Duration,
        call: impl FnOnce(Client) -> F,
    ) -> RpcResult<T>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        if self.links.are_cut() {
            return Err(Self::cut());
        }
        let client = self.client.clone();
        let client = client.map_err(|reason| RPCError::Unreachable(Unreachable::from_string(reason)))?;
        match tokio::time::timeout(deadline, call(client)).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(self.failed(&status)),
            Err(_) => Err(self.timed_out(action, deadline)),
        }
    }

    pub(super) fn cut() -> RPCError<TypeConfig> {
        RPCError::Unreachable(Unreachable::from_string("the links of this member are cut"))
    }

    pub(super) fn timed_out(&self, action: RPCTypes, timeout: Duration) -> RPCError<TypeConfig> {
        RPCError::Timeout(Timeout { action, id: self.me, target: self.target, timeout })
    }

    /// Refused or not there: wait before the next try. Anything else: try again.
    pub(super) fn failed(&self, status: &Status) -> RPCError<TypeConfig> {
        if status.code() == Code::FailedPrecondition {
            tracing::warn!(peer = %self.target, "refused by a peer: {}", status.message());
        }
        match status.code() {
            Code::Unavailable | Code::FailedPrecondition | Code::ResourceExhausted => {
                RPCError::Unreachable(Unreachable::new(status))
            }
            _ => RPCError::Network(NetworkError::new(status)),
        }
    }

    pub(super) fn malformed(&self, what: &str) -> RPCError<TypeConfig> {
        RPCError::Network(NetworkError::from_string(format!("MDM {} answered without {what}", self.target)))
    }

    fn vote_request(&self, rpc: &VoteRequest<TypeConfig>) -> pb::VoteRequest {
        pb::VoteRequest {
            ends: Some(self.ends.clone()),
            vote: Some(codec::vote_to_pb(&rpc.vote)),
            last_log: rpc.last_log_id.as_ref().map(codec::log_id_to_pb),
            leadership_transfer: rpc.leadership_transfer,
        }
    }

    fn vote_reply(&self, reply: pb::VoteReply) -> RpcResult<VoteResponse<TypeConfig>> {
        if let Some(at) = reply.excluded_by {
            self.told.removed(codec::log_id_from_pb(at));
        }
        let vote = reply.vote.map(codec::vote_from_pb).ok_or_else(|| self.malformed("a vote"))?;
        Ok(VoteResponse::new(vote, reply.last_log.map(codec::log_id_from_pb), reply.granted))
    }

    fn append_deadline(&self, option: &RPCOption) -> Duration {
        match self.purpose {
            // openraft itself gives up a heartbeat at this moment.
            Purpose::Heartbeat => option.hard_ttl(),
            Purpose::Replication | Purpose::Snapshot => APPEND_DEADLINE.max(option.soft_ttl()),
        }
    }
}

impl RaftNetworkV2<TypeConfig> for Peer {
    type SnapshotData = SnapshotHandle;

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, RpcResult<BoxStream<'s, RpcResult<StreamAppendResult<TypeConfig>>>>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        let deadline = self.append_deadline(&option);
        Box::pin(stream::append(self, input, deadline))
    }

    /// A heartbeat: entries go by stream.
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> RpcResult<AppendEntriesResponse<TypeConfig>> {
        let request = stream::request(Some(self.ends.clone()), &rpc);
        let deadline = self.append_deadline(&option);
        let call = |mut client: Client| async move { client.append(request).await };
        let reply = self.call(RPCTypes::AppendEntries, deadline, call).await?;
        Ok(match reply.result.ok_or_else(|| self.malformed("a result"))? {
            pb::append_reply::Result::Success(_) => AppendEntriesResponse::Success,
            pb::append_reply::Result::Partial(id) => {
                AppendEntriesResponse::PartialSuccess(Some(codec::log_id_from_pb(id)))
            }
            pb::append_reply::Result::Conflict(_) => AppendEntriesResponse::Conflict,
            pb::append_reply::Result::HigherVote(vote) => AppendEntriesResponse::HigherVote(codec::vote_from_pb(vote)),
        })
    }

    async fn vote(&mut self, rpc: VoteRequest<TypeConfig>, option: RPCOption) -> RpcResult<VoteResponse<TypeConfig>> {
        let request = self.vote_request(&rpc);
        let call = |mut client: Client| async move { client.vote(request).await };
        let reply = self.call(RPCTypes::Vote, option.soft_ttl(), call).await?;
        self.vote_reply(reply)
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> RpcResult<VoteResponse<TypeConfig>> {
        let request = self.vote_request(&rpc);
        let call = |mut client: Client| async move { client.pre_vote(request).await };
        let reply = self.call(RPCTypes::Vote, option.soft_ttl(), call).await?;
        self.vote_reply(reply)
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let head = pb::SnapshotHead {
            ends: Some(self.ends.clone()),
            vote: Some(codec::vote_to_pb(&vote)),
            manifest: Some(snapshot.snapshot.manifest().clone()),
        };
        let parts = ReceiverStream::new(send_parts(head, snapshot.snapshot));
        let call = |mut client: Client| async move { client.install_snapshot(parts).await };
        let reply = tokio::select! {
            reply = self.call(RPCTypes::InstallSnapshot, option.soft_ttl(), call) => reply?,
            closed = cancel => return Err(StreamingError::Closed(closed)),
        };
        let vote = reply.vote.map(codec::vote_from_pb).ok_or_else(|| self.malformed("a vote"))?;
        Ok(SnapshotResponse::new(vote))
    }

    async fn transfer_leader(
        &mut self,
        rpc: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> RpcResult<TransferLeaderResponse<TypeConfig>> {
        let request = pb::TransferLeaderRequest {
            ends: Some(self.ends.clone()),
            from_leader: Some(codec::vote_to_pb(rpc.from_leader())),
            to_node: rpc.to_node_id().get(),
            last_log: rpc.last_log_id().map(codec::log_id_to_pb),
        };
        let call = |mut client: Client| async move { client.transfer_leader(request).await };
        let reply = self.call(RPCTypes::TransferLeader, option.soft_ttl(), call).await?;
        self.transfer_reply(reply)
    }
}

impl Peer {
    fn transfer_reply(&self, reply: pb::TransferLeaderReply) -> RpcResult<TransferLeaderResponse<TypeConfig>> {
        use pb::transfer_leader_reply::{LogNotFlushed, Result as Reply, VoteChanged};
        let vote = |vote: Option<pb::VoteValue>| vote.map(codec::vote_from_pb).ok_or_else(|| self.malformed("a vote"));
        let id = |id: Option<pb::LogId>| id.map(codec::log_id_from_pb);
        Ok(match reply.result.ok_or_else(|| self.malformed("a result"))? {
            Reply::Accepted(_) => Ok(()),
            Reply::VoteChanged(VoteChanged { expected, actual }) => {
                Err(TransferLeaderError::VoteChanged { expected: vote(expected)?, actual: vote(actual)? })
            }
            Reply::LogNotFlushed(LogNotFlushed { expected, actual }) => {
                Err(TransferLeaderError::LogNotFlushed { expected: id(expected), actual: id(actual) })
            }
        })
    }
}

/// Reads the files on a thread of its own, a little ahead of the network. An unreadable file ends the stream early, which
/// the receiver notices.
fn send_parts(head: pb::SnapshotHead, snapshot: SnapshotHandle) -> mpsc::Receiver<pb::SnapshotPart> {
    let (sender, receiver) = mpsc::channel(SNAPSHOT_READ_AHEAD);
    tokio::task::spawn_blocking(move || {
        let head = pb::SnapshotPart { part: Some(pb::snapshot_part::Part::Head(head)) };
        if sender.blocking_send(head).is_err() {
            return;
        }
        for (number, name) in (0..).zip(snapshot.file_names()) {
            let path = snapshot.path().join(name);
            if let Err(error) = send_file(&path, number, &sender) {
                tracing::error!(path = %path.display(), "cannot send a snapshot: {error}");
                return;
            }
        }
    });
    receiver
}

fn send_file(path: &std::path::Path, number: u32, sender: &mpsc::Sender<pb::SnapshotPart>) -> std::io::Result<()> {
    let mut file = File::open(path)?;
    let mut offset = 0;
    loop {
        let mut data = Vec::with_capacity(SNAPSHOT_PART_BYTES);
        let read = file.by_ref().take(SNAPSHOT_PART_BYTES as u64).read_to_end(&mut data)?;
        if read == 0 {
            return Ok(());
        }
        let bytes = pb::FileBytes { file: number, offset, data };
        offset += read as u64;
        let part = pb::SnapshotPart { part: Some(pb::snapshot_part::Part::Bytes(bytes)) };
        if sender.blocking_send(part).is_err() {
            // The call ended; it says why.
            return Ok(());
        }
    }
}
