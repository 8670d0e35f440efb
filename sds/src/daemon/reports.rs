//! What data threads report: configuration changes for the MDM to decide, token uses, refused tokens, keys they lack.

use std::{sync::Arc, time::Duration};

use pflex_common::mdm::{MdmError, Patience};
use pflex_proto::{
    ids::DeviceId,
    pb::{
        AckTokensRequest, PgProposal, PgProposalResult, ReconfigureReply, ReconfigureRequest, TokenUse,
        placement_client::PlacementClient, tokens_client::TokensClient,
    },
    status::Reason,
};
use tokio::{sync::mpsc, task::JoinHandle};
use tracing::{info, warn};

use super::{
    Server, liveness,
    proposals::{Asked, Proposals},
    refused,
};
use crate::{
    replication::{Proposal, ProposalReason},
    worker::{Command, Report},
};

/// Reports taken at once: proposals among them go to the MDM in one call.
const BATCH: usize = 1024;
/// A proposal is made until it is decided. The MDM may be away for long; this only bounds one exactly-once request.
const PROPOSAL_PATIENCE: Patience = Patience::within(Duration::from_secs(3600));
/// Joins of a server are proposed together, this long after the first (S25): after an outage there are thousands, and each
/// command of the log reaches every watcher of the map. What a stall waits for goes at once, and takes them along.
const JOIN_WINDOW: Duration = Duration::from_millis(200);
/// Between two attempts, doubling: a server that the MDM refuses for good must not fill its log.
const PROPOSAL_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PROPOSAL_PAUSE: Duration = Duration::from_secs(5);
/// After the keys were fetched: who invents key ids must not make this server ask the MDM for each. A client with a token of a
/// key that is newer than that comes again.
const KEYS_PAUSE: Duration = Duration::from_millis(250);
/// Tokens in one ACK: in per-io mode each operation has one. A quarter of what a command may carry.
const ACK_BATCH: usize = 4096;
/// Accounting may be lost, never late.
const ACK_PATIENCE: Patience = Patience::within(Duration::from_secs(10));

/// Until all data threads are gone.
pub(super) async fn run(server: Arc<Server>, mut reports: mpsc::Receiver<Report>) {
    let mut batch = Vec::new();
    let mut acking: Option<JoinHandle<()>> = None;
    let mut asking: Option<JoinHandle<()>> = None;
    let (proposals, queue) = mpsc::channel(BATCH);
    let proposing = tokio::spawn(propose_all(Arc::clone(&server), queue));
    let (bad_tokens, queue) = mpsc::channel(refused::QUEUE);
    tokio::spawn(refused::run(Arc::clone(&server), queue));
    while reports.recv_many(&mut batch, BATCH).await > 0 {
        let mut uses = Vec::new();
        let mut unknown_key = false;
        for report in batch.drain(..) {
            match report {
                Report::Propose { device, proposal } => drop(proposals.send(Asked::Make(device, proposal)).await),
                Report::JoinerGone { device, joiner } => {
                    drop(proposals.send(Asked::Withdraw(device, joiner)).await);
                }
                Report::UnknownKey => unknown_key = true,
                Report::Uses(more) => uses.extend(more),
                // Nobody waits for a count: proposals, which others wait for, come through here.
                Report::BadTokens(more) => {
                    if bad_tokens.try_send(more).is_err() {
                        warn!("refused tokens were not reported: too many reports wait");
                    }
                }
            }
        }
        if unknown_key && asking.as_ref().is_none_or(JoinHandle::is_finished) {
            let server = Arc::clone(&server);
            asking = Some(tokio::spawn(async move {
                liveness::fetch_keys(&server).await;
                tokio::time::sleep(KEYS_PAUSE).await;
            }));
        }
        // One ACK at a time; while it is on its way, uses of one more round are dropped rather than queued.
        if !uses.is_empty() && acking.as_ref().is_none_or(JoinHandle::is_finished) {
            acking = Some(tokio::spawn(ack(Arc::clone(&server), uses)));
        }
    }
    drop(proposals);
    drop(proposing.await);
}

async fn ack(server: Arc<Server>, uses: Vec<TokenUse>) {
    for uses in uses.chunks(ACK_BATCH) {
        let call = |connection, id| {
            let request = AckTokensRequest { request: Some(id), sds_id: server.id.0, uses: uses.to_vec() };
            async move { TokensClient::new(connection).ack(request).await }
        };
        if let Err(error) = server.client.write(ACK_PATIENCE, call).await {
            // The others would wait as long; what is counted next is told next.
            return warn!(%error, "token uses were not reported");
        }
    }
}

async fn propose_all(server: Arc<Server>, mut queue: mpsc::Receiver<Asked>) {
    let mut proposals = Proposals::default();
    let mut batch = Vec::new();
    let mut pause = PROPOSAL_PAUSE;
    let mut window = None;
    loop {
        if proposals.is_empty() && batch.is_empty() && queue.recv_many(&mut batch, BATCH).await == 0 {
            return;
        }
        while let Ok(more) = queue.try_recv() {
            batch.push(more);
        }
        for asked in batch.drain(..) {
            let (Asked::Make(device, _) | Asked::Withdraw(device, _)) = asked;
            for (pg, expected_epoch) in proposals.take(asked) {
                tell(&server, device, Command::ProposalRejected { pg, expected_epoch });
            }
        }
        if proposals.is_empty() {
            window = None;
            continue;
        }
        if proposals.are_joins() {
            let end = *window.get_or_insert_with(|| tokio::time::Instant::now() + JOIN_WINDOW);
            let more = tokio::time::timeout_at(end, queue.recv_many(&mut batch, BATCH)).await;
            if more.is_ok_and(|taken| taken > 0) {
                continue;
            }
        }
        window = None;
        let asked = proposals.put();
        match propose(&server, &asked).await {
            Ok(reply) => {
                pause = PROPOSAL_PAUSE;
                proposals.clear();
                for ((device, proposal), result) in asked.iter().zip(reply.results) {
                    decided(&server, *device, proposal, &result);
                }
            }
            // A command in the log was refused: that is a verdict.
            Err(error) if error.reason() == Some(Reason::StaleEpoch) => {
                return server.takeover.declare(error.to_string());
            }
            Err(error) => {
                warn!(%error, groups = asked.len(), "a configuration change is not decided yet; asking again");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PROPOSAL_PAUSE);
            }
        }
    }
}

/// Tells the core that a proposal can never commit. Only where the epoch still stands: where it has moved on, an earlier
/// attempt of this very proposal may be what moved it, and the configuration that the map brings decides (S3). Of what is
/// accepted only an activation is told (S11): the others come as configurations.
fn decided(server: &Server, device: DeviceId, proposal: &Proposal, result: &PgProposalResult) {
    let (pg, expected_epoch) = (proposal.pg, proposal.expected_epoch);
    if result.accepted {
        if proposal.reason == ProposalReason::Activation {
            tell(server, device, Command::Activated { pg, epoch: expected_epoch });
        }
        return;
    }
    info!(pg = %proposal.pg, epoch = %proposal.expected_epoch, why = result.why, "the MDM refused a configuration");
    let epoch = result.current.as_ref().map(|current| current.epoch);
    if epoch != Some(proposal.expected_epoch.0) {
        return;
    }
    tell(server, device, Command::ProposalRejected { pg, expected_epoch });
}

/// Not waited for: a device that hangs must not hold up the proposals of others. It proposes nothing meanwhile.
fn tell(server: &Server, device: DeviceId, command: Command) {
    if let Some(handle) = server.devices().iter().find(|handle| handle.own.device == device).cloned() {
        tokio::spawn(async move { handle.send(command).await });
    }
}

async fn propose(server: &Server, asked: &[(DeviceId, Proposal)]) -> Result<ReconfigureReply, MdmError> {
    let call = |connection, id| {
        let request = ReconfigureRequest {
            request: Some(id),
            sds_id: server.id.0,
            process_id: server.process.as_bytes().to_vec(),
            proposals: asked.iter().map(|(device, proposal)| message(*device, proposal)).collect(),
        };
        async move { PlacementClient::new(connection).reconfigure(request).await }
    };
    server.client.write(PROPOSAL_PATIENCE, call).await
}

/// The proposer stays primary, unless it proposes to leave.
fn message(device: DeviceId, proposal: &Proposal) -> PgProposal {
    let stays = proposal.in_sync.iter().find(|member| member.device == device);
    let primary = stays.or(proposal.in_sync.first()).map_or(0, |member| member.device.0);
    PgProposal {
        pg: Some(proposal.pg.into()),
        expected_epoch: proposal.expected_epoch.0,
        in_sync: proposal.in_sync.iter().copied().map(Into::into).collect(),
        primary_device_id: primary,
        activate: proposal.reason == ProposalReason::Activation,
    }
}
