//! What every service shares: the group, the soft state of the leader, and the three ways to answer: propose a command,
//! read with or without a quorum, or refuse.

use std::{sync::Arc, time::Duration};

use pflex_common::{clock::wall_ms, shutdown::Shutdown};
use pflex_proto::{
    ids::{ClientId, ClientSequence, ClusterId, LogTime, Revision},
    pb::{Addresses, RequestId},
    status::{self, LeaderHint, Reason},
};
use serde::{Deserialize, Serialize};
use tokio::{sync::Semaphore, time::Instant};
use tonic::{Status, service::Interceptor};

use super::{convert::Heard, error, gate, map::MapFeed, promotion::Freezes};
use crate::{
    command::{Answer, Body, Command, Request},
    liveness::{Liveness, Reports},
    raft::{EncodedCommand, ProposeError, RaftGroup, ReadError, group::PROPOSALS},
    state::State,
};

/// A hand-over is over in this time; an election after a crash takes longer, and then the client had better ask others.
const HAND_OVER: Duration = Duration::from_millis(300);
/// A new leader takes requests once a majority has answered its first append; the first pause, which doubles.
const FIRST_ANSWERS: Duration = Duration::from_millis(3);

/// How much a member takes at a time. Beyond it requests are refused, with a word on when to come again; Raft has its own
/// port and threads and does not notice.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Limits {
    /// Connections of clients. Every SDS and SDC has one with each member it asks or watches, and needs a file
    /// descriptor for it.
    pub connections: usize,
    /// Commands on their way through the log: some hundred a sync, and what a client times out on should not be queued
    /// behind more.
    pub proposals: usize,
    /// Reads under way.
    pub reads: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: 8_192, proposals: PROPOSALS, reads: 8_192 }
    }
}

/// The services of one member. Clones share everything.
#[derive(Clone)]
pub struct Api(Arc<Inner>);

struct Inner {
    cluster: ClusterId,
    group: RaftGroup,
    feed: MapFeed,
    liveness: Liveness,
    reports: Reports,
    shutdown: Shutdown,
    addresses: Addresses,
    /// Linearizable reads and long lists under way.
    reads: Semaphore,
    /// Held while the members are changed: never two changes at once.
    changing: tokio::sync::Mutex<()>,
    freezes: Freezes,
}

impl Api {
    /// The services of a member of `cluster`, reached by others at `addresses`; its streams end with `shutdown`.
    pub fn new(
        (cluster, addresses): (ClusterId, Addresses),
        group: RaftGroup,
        feed: MapFeed,
        liveness: Liveness,
        limits: Limits,
        shutdown: Shutdown,
    ) -> Self {
        let (reports, changing) = (Reports::default(), tokio::sync::Mutex::default());
        let reads = Semaphore::new(limits.reads);
        let freezes = Freezes::default();
        Self(Arc::new(Inner { cluster, group, feed, liveness, reports, shutdown, addresses, reads, changing, freezes }))
    }

    pub(crate) fn addresses(&self) -> &Addresses {
        &self.0.addresses
    }

    pub(crate) fn changing(&self) -> &tokio::sync::Mutex<()> {
        &self.0.changing
    }

    pub(crate) fn cluster(&self) -> ClusterId {
        self.0.cluster
    }

    pub(crate) fn group(&self) -> &RaftGroup {
        &self.0.group
    }

    pub(crate) fn feed(&self) -> &MapFeed {
        &self.0.feed
    }

    pub(crate) fn liveness(&self) -> &Liveness {
        &self.0.liveness
    }

    /// The health reports this member has had as leader.
    pub fn reports(&self) -> &Reports {
        &self.0.reports
    }

    /// What this member has heard of components, if it leads.
    pub(crate) fn heard(&self) -> Heard<'_> {
        let leading = self.0.group.leader().borrow().leading;
        Heard { reports: &self.0.reports, liveness: &self.0.liveness, now: self.log_time(), leading }
    }

    pub(crate) fn freezes(&self) -> &Freezes {
        &self.0.freezes
    }

    pub(crate) fn shutdown(&self) -> &Shutdown {
        &self.0.shutdown
    }

    /// Log time now, as this member knows it.
    pub(crate) fn log_time(&self) -> LogTime {
        self.0.group.log_time()
    }

    /// Has the group execute `body`: once, when the caller gave a request id of its session; else as often as it is
    /// sent, which only commands that are idempotent or compare-and-set may be.
    pub(crate) async fn propose(&self, request: Option<RequestId>, body: Body) -> Result<(Revision, Answer), Status> {
        let command = match request {
            Some(id) if id.client_id != 0 => Command::once(request_of(id), wall_ms(), body),
            Some(_) | None => Command::internal(wall_ms(), body),
        };
        let command = EncodedCommand::from(command);
        let (patience, mut pause) = (Instant::now() + HAND_OVER, FIRST_ANSWERS);
        let outcome = loop {
            gate::in_time()?;
            match self.0.group.propose(command.clone()).await {
                Ok(outcome) => break outcome,
                // Nothing was appended, so it may be tried again.
                Err(ProposeError::NotLeader { leader: None, .. }) => self.elected_here(patience, &mut pause).await?,
                Err(error) => return Err(error::from_propose(error)),
            }
        };
        let revision = Revision(outcome.revision);
        match outcome.result {
            Some(Answer::Error(refusal)) => Err(error::from_refusal(&refusal)),
            Some(answer) => Ok((revision, answer)),
            None => Err(status::status(Reason::Internal, "the command has an outcome without a result")),
        }
    }

    /// As [`propose`](Self::propose), for what an operator asks: that must be in a session, or a lost answer could make
    /// it happen twice.
    pub(crate) async fn propose_once(
        &self,
        request: Option<RequestId>,
        body: Body,
    ) -> Result<(Revision, Answer), Status> {
        match request {
            Some(id) if id.client_id != 0 => self.propose(Some(id), body).await,
            Some(_) | None => Err(status::status(
                Reason::Invalid,
                "the request names no session; open one with Sessions.OpenClient and number the request in it",
            )),
        }
    }

    /// Reads the state: linearizable, or as it is on this member.
    pub(crate) async fn read<T>(&self, stale: bool, f: impl FnOnce(&State) -> T) -> Result<(Revision, T), Status> {
        let Ok(_place) = self.0.reads.try_acquire() else { return Err(error::busy_reading()) };
        if stale {
            return Ok(self.0.group.read_stale(f));
        }
        let (patience, mut pause) = (Instant::now() + HAND_OVER, FIRST_ANSWERS);
        loop {
            gate::in_time()?;
            match self.0.group.read_barrier().await {
                Ok(()) => return Ok(self.0.group.read_stale(f)),
                Err(ReadError::NotLeader { leader: None, .. }) => self.elected_here(patience, &mut pause).await?,
                Err(error) => return Err(error::from_read(error)),
            }
        }
    }

    /// The state here, right after a command of this member was applied to it.
    pub(crate) fn look<T>(&self, f: impl FnOnce(&State) -> T) -> T {
        self.0.group.read_stale(f).1
    }

    /// Refuses unless this member leads; returns the term.
    pub(crate) fn leading(&self) -> Result<u64, Status> {
        let view = self.0.group.leader().borrow().clone();
        if view.leading { Ok(view.term) } else { Err(self.not_leader()) }
    }

    pub(crate) fn not_leader(&self) -> Status {
        let view = self.0.group.leader().borrow().clone();
        let (id, address) = view.leader.filter(|_| !view.leading).map(|l| (l.id, l.api_address)).unzip();
        status::not_leader(&LeaderHint { id, address, term: view.term })
    }

    /// For a request that found no leader: waits a moment for one, and returns if that is this member, so that the request
    /// is tried here again. A hand-over takes some ten milliseconds, and a client that must look for the leader takes longer
    /// pauses than that.
    async fn elected_here(&self, patience: Instant, pause: &mut Duration) -> Result<(), Status> {
        let me = self.0.group.identity().node;
        let mut leader = self.0.group.leader();
        let named = leader.wait_for(|view| view.leading || view.leader.as_ref().is_some_and(|leader| leader.id != me));
        let leading = matches!(tokio::time::timeout_at(patience, named).await, Ok(Ok(view)) if view.leading);
        if !leading || Instant::now() >= patience {
            return Err(self.not_leader());
        }
        // It leads, but no quorum has answered it yet. If none does, many wait here: ever more seldom, or they would have
        // the Raft thread to themselves.
        tokio::time::sleep(*pause).await;
        *pause *= 2;
        Ok(())
    }

    /// Refuses a caller that has seen a newer generation of the cluster than this member is of: what was restored since
    /// must not be undone by an MDM of before (S19).
    pub(crate) fn is_not_older(&self, theirs: u64) -> Result<(), Status> {
        let ours = self.0.group.generation().get();
        if ours == 0 || theirs <= ours {
            return Ok(());
        }
        let what =
            format!("this MDM is of generation {ours} of the cluster, the caller has followed {theirs}: stop this MDM");
        Err(status::status(Reason::OlderGeneration, what))
    }

    /// What checks that a caller is of this cluster.
    pub(crate) fn guard(&self) -> Guard {
        Guard { cluster: self.0.cluster.to_string(), api: self.clone() }
    }
}

fn request_of(id: RequestId) -> Request {
    Request {
        client: ClientId(id.client_id),
        sequence: ClientSequence(id.sequence),
        low_water: ClientSequence(id.low_water),
    }
}

/// Refuses callers that say they are of another cluster, or of a newer generation of it.
#[derive(Clone)]
pub(crate) struct Guard {
    cluster: String,
    api: Api,
}

impl Interceptor for Guard {
    fn call(&mut self, request: tonic::Request<()>) -> Result<tonic::Request<()>, Status> {
        match request.metadata().get(status::CLUSTER_ID) {
            Some(theirs) if theirs.as_bytes() != self.cluster.as_bytes() => {
                let theirs = String::from_utf8_lossy(theirs.as_bytes()).chars().take(40).collect::<String>();
                let what = format!("this is cluster {}, the caller belongs to {theirs}", self.cluster);
                Err(status::status(Reason::WrongCluster, what))
            }
            Some(_) | None => {
                let generation = request.metadata().get(status::CLUSTER_GENERATION);
                let generation = generation.and_then(|value| value.to_str().ok()?.parse().ok());
                self.api.is_not_older(generation.unwrap_or(0))?;
                Ok(request)
            }
        }
    }
}
