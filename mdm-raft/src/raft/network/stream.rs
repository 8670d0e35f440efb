//! Replication to a peer: one call for as long as it goes well, requests one way, answers the other.
//!
//! A call a request would cost each of them a stream of its own, with headers, timers and tasks; and the next request, or
//! the news of a commit, would wait for the answer to the one before, which waits for the peer's disk. A few requests are
//! under way at a time, not many: what waits for its turn is gathered into the next.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{Stream, StreamExt as _, stream};
use openraft::{
    RPCTypes,
    base::BoxStream,
    raft::{AppendEntriesRequest, StreamAppendError, StreamAppendResult},
};
use tokio::{
    sync::Semaphore,
    time::{Instant, Interval, MissedTickBehavior},
};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::Streaming;

use super::{
    client::{Client, Peer, RpcResult},
    links::Links,
};
use crate::{
    pb::pflex::mdm::raft::v1 as pb,
    raft::{codec, types::TypeConfig},
};

/// Requests under way: one at the peer's disk, one on its way there, one being gathered, and the news of a commit.
const UNDER_WAY: usize = 4;
/// How often the oldest answer is looked for, in its deadline. A timer for each request would cost more than the request.
const LOOKS: u32 = 4;

type Answer = RpcResult<StreamAppendResult<TypeConfig>>;

/// The requests that are not answered yet, by when they were sent.
struct UnderWay {
    sent: Mutex<VecDeque<Instant>>,
    places: Semaphore,
    /// Nobody waits for answers any more. HTTP/2 lets requests go on then, and openraft begins the next stream only when
    /// this one has let go of the log's reader.
    over: CancellationToken,
}

impl UnderWay {
    fn new() -> Arc<Self> {
        Arc::new(Self { sent: Mutex::default(), places: Semaphore::new(UNDER_WAY), over: CancellationToken::new() })
    }

    /// Waits until one more request may be sent.
    async fn place(&self) {
        if let Ok(place) = self.places.acquire().await {
            place.forget();
        }
    }

    fn sent(&self) {
        self.queue().push_back(Instant::now());
    }

    fn answered(&self) {
        if self.queue().pop_front().is_some() {
            self.places.add_permits(1);
        }
    }

    /// How long the oldest has been waited for.
    fn oldest(&self) -> Option<Duration> {
        self.queue().front().map(Instant::elapsed)
    }

    fn queue(&self) -> MutexGuard<'_, VecDeque<Instant>> {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends `input` to the peer; its answers, in order. Ends after an error, a conflict or a higher vote.
pub(super) async fn append<S>(peer: &Peer, mut input: S, deadline: Duration) -> RpcResult<BoxStream<'_, Answer>>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + Unpin + 'static,
{
    // openraft pauses after a failure where it makes the next request. A peer that refuses connections never takes one, so
    // it is taken here first: else a dead peer would be tried thousands of times a second.
    let Some(first) = input.next().await else { return Ok(stream::empty().boxed()) };
    let input = stream::iter([first]).chain(input);
    let under_way = UnderWay::new();
    let over = under_way.over.clone().drop_guard();
    let requests = requests(peer.ends().clone(), input, under_way.clone(), peer.links().clone());
    let call = |mut client: Client| async move { client.append_stream(requests).await };
    let replies = peer.call(RPCTypes::AppendEntries, deadline, call).await?;
    let mut looks = tokio::time::interval(deadline / LOOKS);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let answers = Answers { peer, replies, under_way, looks, deadline, _over: over };
    Ok(Box::pin(stream::unfold(Some(answers), |answers| async move {
        let mut answers = answers?;
        let answer = answers.next().await?;
        let goes_on = matches!(answer, Ok(Ok(_)));
        Some((answer, goes_on.then_some(answers)))
    })))
}

/// What goes out: the first names both ends.
fn requests<S>(
    ends: pb::Ends,
    input: S,
    under_way: Arc<UnderWay>,
    links: Links,
) -> impl Stream<Item = pb::AppendRequest> + Send + 'static
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + Unpin + 'static,
{
    stream::unfold((Some(ends), input), move |(ends, mut input)| {
        let (under_way, links) = (under_way.clone(), links.clone());
        async move {
            let next = async {
                under_way.place().await;
                input.next().await
            };
            let rpc = under_way.over.run_until_cancelled(next).await??;
            if links.are_cut() {
                return None;
            }
            under_way.sent();
            Some((request(ends, &rpc), (None, input)))
        }
    })
}

/// `ends` is for a request that begins a call. A message carries all entries: the log is read in such portions.
pub(super) fn request(ends: Option<pb::Ends>, rpc: &AppendEntriesRequest<TypeConfig>) -> pb::AppendRequest {
    pb::AppendRequest {
        ends,
        vote: Some(codec::vote_to_pb(&rpc.vote)),
        previous: rpc.prev_log_id.as_ref().map(codec::log_id_to_pb),
        entries: rpc.entries.iter().map(codec::entry_to_pb).collect(),
        leader_commit: rpc.leader_commit.as_ref().map(codec::log_id_to_pb),
    }
}

struct Answers<'a> {
    peer: &'a Peer,
    replies: Streaming<pb::AppendStreamReply>,
    under_way: Arc<UnderWay>,
    looks: Interval,
    deadline: Duration,
    _over: DropGuard,
}

impl Answers<'_> {
    async fn next(&mut self) -> Option<Answer> {
        loop {
            tokio::select! {
                biased;
                reply = self.replies.message() => return match reply {
                    Ok(Some(reply)) => {
                        self.under_way.answered();
                        Some(if self.peer.links().are_cut() { Err(Peer::cut()) } else { self.answer(reply) })
                    }
                    Ok(None) => None,
                    Err(status) => Some(Err(self.peer.failed(&status))),
                },
                _ = self.looks.tick() => {
                    if self.peer.links().are_cut() {
                        return Some(Err(Peer::cut()));
                    }
                    if self.under_way.oldest().is_some_and(|waited| waited > self.deadline) {
                        return Some(Err(self.peer.timed_out(RPCTypes::AppendEntries, self.deadline)));
                    }
                }
            }
        }
    }

    fn answer(&self, reply: pb::AppendStreamReply) -> Answer {
        use pb::append_stream_reply::Result as Reply;
        Ok(match reply.result.ok_or_else(|| self.peer.malformed("a result"))? {
            Reply::Matches(id) => Ok(Some(codec::log_id_from_pb(id))),
            Reply::Empty(pb::Blank {}) => Ok(None),
            Reply::Conflict(at) => Err(StreamAppendError::Conflict(codec::log_id_from_pb(at))),
            Reply::HigherVote(vote) => Err(StreamAppendError::HigherVote(codec::vote_from_pb(vote))),
        })
    }
}

#[cfg(test)]
mod tests {
    use openraft::{
        errors::RPCError,
        network::{RPCOption, RaftNetworkFactory as _, RaftNetworkV2 as _},
        vote::RaftLeaderId as _,
    };
    use pflex_common::net::{ConnectionLimits, incoming_within};
    use pflex_proto::ids::MdmId;
    use tokio::{net::TcpListener, sync::oneshot};
    use tonic::{Request, Response, Status};

    use super::*;
    use crate::{
        pb::pflex::mdm::raft::v1::raft_peer_server::{RaftPeer, RaftPeerServer},
        raft::{
            network::{PeerFactory, standing::Told},
            tests::kit::{entry, identity},
            types::{LeaderId, MdmNode, Vote, log_id},
        },
    };

    /// Takes streams and answers the first so many requests.
    struct Answering(usize);

    #[tonic::async_trait]
    impl RaftPeer for Answering {
        type AppendStreamStream = futures::stream::BoxStream<'static, Result<pb::AppendStreamReply, Status>>;

        async fn append_stream(
            &self,
            requests: Request<Streaming<pb::AppendRequest>>,
        ) -> Result<Response<Self::AppendStreamStream>, Status> {
            let answered = self.0;
            let replies = requests.into_inner().enumerate().filter_map(move |(number, request)| async move {
                let last = request.ok()?.entries.last()?.log_id?;
                let result = Some(pb::append_stream_reply::Result::Matches(last));
                (number < answered).then_some(Ok(pb::AppendStreamReply { result }))
            });
            Ok(Response::new(replies.boxed()))
        }

        async fn append(&self, _: Request<pb::AppendRequest>) -> Result<Response<pb::AppendReply>, Status> {
            Err(Status::unimplemented(""))
        }

        async fn vote(&self, _: Request<pb::VoteRequest>) -> Result<Response<pb::VoteReply>, Status> {
            Err(Status::unimplemented(""))
        }

        async fn pre_vote(&self, _: Request<pb::VoteRequest>) -> Result<Response<pb::VoteReply>, Status> {
            Err(Status::unimplemented(""))
        }

        async fn install_snapshot(
            &self,
            _: Request<Streaming<pb::SnapshotPart>>,
        ) -> Result<Response<pb::SnapshotReply>, Status> {
            Err(Status::unimplemented(""))
        }

        async fn transfer_leader(
            &self,
            _: Request<pb::TransferLeaderRequest>,
        ) -> Result<Response<pb::TransferLeaderReply>, Status> {
            Err(Status::unimplemented(""))
        }
    }

    fn appending(index: u64) -> AppendEntriesRequest<TypeConfig> {
        AppendEntriesRequest {
            vote: Vote { leader_id: LeaderId::new(1, MdmId(1)), committed: true },
            prev_log_id: Some(log_id(1, index - 1)),
            entries: vec![entry(1, index)],
            leader_commit: None,
        }
    }

    /// A log that has these entries and then waits for more; tells when it is let go.
    fn log(
        entries: u64,
    ) -> (impl Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + Unpin, oneshot::Receiver<()>) {
        let (held, let_go) = oneshot::channel();
        let waiting = stream::once(async move {
            let _held: oneshot::Sender<()> = held;
            std::future::pending().await
        });
        (Box::pin(stream::iter((1..=entries).map(appending)).chain(waiting)), let_go)
    }

    async fn peer(answers: usize) -> Peer {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let raft_address = listener.local_addr().unwrap().to_string();
        let server = tonic::transport::Server::builder().add_service(RaftPeerServer::new(Answering(answers)));
        tokio::spawn(server.serve_with_incoming(incoming_within(listener, ConnectionLimits::of(9))));
        let mut factory = PeerFactory::new(identity(1), Links::default(), Told::default());
        factory.new_client(MdmId(2), &MdmNode { raft_address, ..MdmNode::default() }).await
    }

    fn option() -> RPCOption {
        RPCOption::new(Duration::from_millis(100))
    }

    #[tokio::test]
    async fn answers_come_in_order_and_an_idle_stream_lasts() {
        let mut peer = peer(usize::MAX).await;
        let (input, let_go) = log(9);
        let mut answers = peer.stream_append(input, option()).await.unwrap();
        for index in 1..=9 {
            assert_eq!(answers.next().await.unwrap().unwrap().unwrap(), Some(log_id(1, index)));
        }
        // Longer than a request may take.
        assert!(tokio::time::timeout(super::super::APPEND_DEADLINE * 2, answers.next()).await.is_err());
        drop(answers);
        assert!(let_go.await.is_err(), "the log is let go of, though the peer would take more");
    }

    #[tokio::test]
    async fn a_peer_that_stops_answering_is_given_up_and_the_log_let_go_of() {
        let mut peer = peer(2).await;
        let (input, let_go) = log(3);
        let mut answers = peer.stream_append(input, option()).await.unwrap();
        assert!(answers.next().await.unwrap().is_ok() && answers.next().await.unwrap().is_ok());
        assert!(matches!(answers.next().await, Some(Err(RPCError::Timeout(_)))));
        assert!(answers.next().await.is_none());
        drop(answers);
        assert!(let_go.await.is_err());
    }

    #[tokio::test]
    async fn no_more_than_a_few_are_under_way() {
        let mut peer = peer(0).await;
        let taken = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let counted = taken.clone();
        let (input, _let_go) = log(100);
        let input = input.inspect(move |_| {
            counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        });
        let mut answers = peer.stream_append(input, option()).await.unwrap();
        assert!(matches!(answers.next().await, Some(Err(RPCError::Timeout(_)))));
        assert_eq!(taken.load(std::sync::atomic::Ordering::Relaxed), UNDER_WAY);
    }

    #[tokio::test]
    async fn the_first_request_is_taken_before_an_absent_peer_is_tried() {
        // openraft pauses there after a failure; without that it would try a dead peer ten thousand times a second.
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
        let mut factory = PeerFactory::new(identity(1), Links::default(), Told::default());
        let node = MdmNode { raft_address: free, ..MdmNode::default() };
        let mut peer = factory.new_client(MdmId(2), &node).await;
        let (taken, was_taken) = oneshot::channel();
        let input = Box::pin(stream::once(async move {
            taken.send(()).unwrap();
            appending(1)
        }));
        assert!(matches!(peer.stream_append(input, option()).await, Err(RPCError::Unreachable(_))));
        assert!(was_taken.await.is_ok(), "it was tried at once");
    }
}
