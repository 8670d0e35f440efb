//! What the rest of the process tells a data thread, and what it hears from it.

use std::sync::Arc;

use bytes::BytesMut;
use pflex_common::{clock::MonotonicTime, map::ClusterMap};
use pflex_proto::{
    data::Hello,
    ids::{DeviceId, Epoch, LogTime, Member, PgId},
    pb::{BadTokens, TokenUse},
    token::Secret,
};
use tokio::sync::oneshot;

use super::scrub::ScrubOrder;
use crate::replication::Proposal;

/// A connection whose greeting named this device. It is not answered yet.
#[derive(Debug)]
pub(crate) struct Accepted {
    pub(crate) stream: std::net::TcpStream,
    pub(crate) hello: Hello,
    pub(crate) request_id: u64,
    /// What came after the greeting.
    pub(crate) leftover: BytesMut,
}

/// To a data thread.
#[derive(Debug)]
pub(crate) enum Command {
    /// Someone connected.
    Accepted(Accepted),
    /// The cluster map changed.
    Map(Arc<ClusterMap>),
    /// A leader's log time (S20).
    Stamp { term: u64, log_time: LogTime, at: MonotonicTime },
    /// The secrets to verify tokens with.
    Secrets(Vec<Secret>),
    /// This device's part in a scrub; none: there is nothing to do.
    Scrub(Option<ScrubOrder>),
    /// The MDM refused a proposal for good.
    ProposalRejected { pg: PgId, expected_epoch: Epoch },
    /// The MDM has committed that this primary answers in this epoch (S11).
    Activated { pg: PgId, epoch: Epoch },
    /// Blocks the thread until the sender sends or is gone, to prove that this is noticed.
    #[cfg(test)]
    Hang { begun: oneshot::Sender<()>, until: std::sync::mpsc::Receiver<()> },
    /// Finish: carry everything to disk and end.
    Stop(oneshot::Sender<()>),
}

/// From a data thread.
#[derive(Debug)]
pub(crate) enum Report {
    /// A configuration change for the MDM to decide.
    Propose { device: DeviceId, proposal: Proposal },
    /// A copy that this device fills, or has filled, is gone: what was not proposed for it yet is not proposed.
    JoinerGone { device: DeviceId, joiner: Member },
    /// A token named a key that this process does not have (S21).
    UnknownKey,
    /// Uses of tokens since the last report.
    Uses(Vec<TokenUse>),
    /// Tokens refused since the last report, by source; at most one for each.
    BadTokens(Vec<BadTokens>),
}
