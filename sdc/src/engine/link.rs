//! The link to one device: at most one connection, made when something is to be sent, and the sessions on it.
//!
//! One task owns everything ([`task`]); requests come to it through a bounded channel, and each is answered exactly once,
//! by a reply or by an [`AttemptError`]. The decisions are in [`core`], which does no I/O. The link never sends
//! anything twice: resending is its caller's choice, who knows what else has changed.

mod core;
mod task;

use std::sync::Arc;

use bytes::Bytes;
use pflex_proto::data::{AllocationReply, Checksums, Refusal, WriteKind};
use pflex_proto::ids::{ClusterId, DeviceId, Epoch, OperationId, ProcessId, SdcId, VolatilityId};
use tokio::sync::{mpsc, oneshot};

use super::plan::Part;
use super::routes::Routes;
use super::tokens::VolumeAuth;
use super::{Generations, Patience};

/// Requests that wait for the task: it drains the channel at every wake, so this only bounds a burst.
const WAITING_REQUESTS: usize = 1024;

/// What the first frame of every connection says.
#[derive(Clone, Copy, Debug)]
pub struct Greeting {
    /// The cluster.
    pub cluster: ClusterId,
    /// This client.
    pub sdc: SdcId,
    /// This process.
    pub process: ProcessId,
    /// The device the connection is for.
    pub device: DeviceId,
}

/// What is asked of a device.
#[derive(Debug)]
pub enum Operation {
    /// Read the part.
    Read,
    /// Tell which blocks of the part hold data.
    Allocation,
    /// Write the part.
    Write(Write),
    /// Make durable what the placement group acknowledged with this memory (S14); of the part only the group matters.
    Flush(VolatilityId),
    /// Open a newer session, so that nothing sent before runs any more unless it was ordered already (S9).
    Fence,
}

/// A write of one part.
#[derive(Clone, Debug)]
pub struct Write {
    /// The same on every resend.
    pub operation: OperationId,
    /// Every operation of the volume below this is over.
    pub low_water: OperationId,
    /// What it does.
    pub kind: WriteKind,
    /// Whether it must be durable everywhere.
    pub fua: bool,
    /// Of the data.
    pub checksums: Checksums,
    /// The payload; empty for zeros.
    pub data: Bytes,
}

/// A request to a device.
#[derive(Debug)]
pub struct Request {
    /// Volume and token.
    pub auth: Arc<VolumeAuth>,
    /// Where; for a fence only the placement group matters.
    pub part: Part,
    /// The configuration the caller believes in.
    pub epoch: Epoch,
    /// What.
    pub operation: Operation,
    /// In per-io mode the token for this operation alone (S21).
    pub own_token: Option<Vec<u8>>,
}

/// A request was done.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// What a read found; no data for a hole.
    Read(Option<(Checksums, Bytes)>),
    /// Which blocks hold data.
    Allocation(AllocationReply),
    /// The write is in place, in this memory if the pool is a writeback one.
    Written(VolatilityId),
    /// What was acknowledged with this memory is durable.
    Flushed(VolatilityId),
    /// The fence is up.
    Done,
}

/// A request was not done, or it is not known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttemptError {
    /// Nothing was sent: there is no connection.
    #[error("not reachable: {0}")]
    Unreachable(String),
    /// The connection broke after sending.
    #[error("the connection was lost")]
    Lost,
    /// A newer session was opened after no answer came in time.
    #[error("no answer in time")]
    Retired,
    /// The placement group has another primary by now.
    #[error("the primary moved")]
    Moved,
    /// No token to open a session with.
    #[error("there is no token")]
    NoToken,
    /// None for the operation, in per-io mode.
    #[error("no token for the operation: {0}")]
    NoOperationToken(String),
    /// The device said no.
    #[error("refused: {}", .0.why)]
    Refused(Refusal),
    /// The answer does not fit the request.
    #[error("a reply that does not fit: {0}")]
    BadReply(&'static str),
}

impl AttemptError {
    /// Whether the request may run after all, now or later.
    pub fn may_have_run(&self) -> bool {
        match self {
            Self::Lost | Self::Retired | Self::Moved | Self::BadReply(_) => true,
            Self::Unreachable(_) | Self::NoToken | Self::NoOperationToken(_) => false,
            Self::Refused(refusal) => refusal.code.may_have_run(),
        }
    }
}

/// A request and where its outcome goes.
#[derive(Debug)]
struct Submission {
    request: Request,
    outcome: oneshot::Sender<Result<Answer, AttemptError>>,
}

impl Submission {
    fn answer(self, outcome: Result<Answer, AttemptError>) {
        // Who asked may have gone; a write it left behind is fenced by its guard.
        let _ = self.outcome.send(outcome);
    }
}

/// A handle on the link; the link ends with its last handle.
#[derive(Clone, Debug)]
pub struct Link {
    submissions: mpsc::Sender<Submission>,
}

impl Link {
    /// Starts the task of a link.
    pub fn start(
        runtime: &tokio::runtime::Handle,
        greeting: Greeting,
        patience: Patience,
        routes: Arc<Routes>,
        generations: Arc<Generations>,
    ) -> Self {
        let (submissions, receiver) = mpsc::channel(WAITING_REQUESTS);
        runtime.spawn(task::run(receiver, greeting, patience, routes, generations));
        Self { submissions }
    }

    /// Sends a request and waits for its outcome.
    ///
    /// # Errors
    /// See [`AttemptError`]; always within the patience of the engine. Dropping the future abandons the wait only.
    pub async fn send(&self, request: Request) -> Result<Answer, AttemptError> {
        let (outcome, answered) = oneshot::channel();
        let gone = || AttemptError::Unreachable("the link has ended".to_owned());
        self.submissions.send(Submission { request, outcome }).await.map_err(|_closed| gone())?;
        // A task that ends drops what it holds: then nobody knows whether it was sent.
        answered.await.unwrap_or(Err(AttemptError::Lost))
    }
}
