//! What an SDC says to the MDM: registration, tokens, health.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use pflex_common::clock::{MonotonicTime, wall_ms};
use pflex_common::host;
use pflex_common::map;
use pflex_common::mdm::{MdmClient, MdmError, Patience};
use pflex_common::net::Endpoint;
use pflex_common::registration::{self, RegistrationError, Takeover, reachable_at};
use pflex_common::shutdown::Shutdown;
use pflex_proto::ids::{ClusterGeneration, ClusterId, ProcessId, SdcId, VolumeId};
use pflex_proto::pb::liveness_client::LivenessClient;
use pflex_proto::pb::tokens_client::TokensClient;
use pflex_proto::pb::{
    self, ComponentKind, HealthReport, IoPlan, IssueTokensReply, IssueTokensRequest, Metric, PlannedToken,
    RegisterRequest,
};
use pflex_proto::status::Reason;
use pflex_proto::token::{KEY_SIZE, Rights, TokenKey};
use tokio::net::TcpListener;
use tracing::{debug, info, warn};

use super::kept::Keeping;
use super::state::State;
use super::{MappedVolumes, SdcConfig, SdcError};
use crate::engine::operation_tokens::{Plan, Planned};
use crate::engine::tokens::{Issued, TokenSource};
use crate::engine::{Engine, Identity};

/// For one request for tokens: far below the 45 s that tokens have left when it is made (S21).
const TOKEN_PATIENCE: Patience = Patience::within(Duration::from_secs(5));
/// Between two health reports.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// The addresses this process listens on, with the ports it really got.
#[derive(Clone, Debug)]
pub(super) struct Addresses {
    pub(super) nbd: Endpoint,
    control: Endpoint,
    management: Endpoint,
}

impl Addresses {
    pub(super) fn bound(
        config: &SdcConfig,
        nbd: &TcpListener,
        control: &TcpListener,
        management: &TcpListener,
    ) -> Self {
        Self {
            nbd: reachable_at(&config.nbd, nbd),
            control: reachable_at(&config.control, control),
            management: reachable_at(&config.management, management),
        }
    }
}

/// What registration gives.
#[derive(Clone, Copy, Debug)]
pub(super) struct Registered {
    pub(super) cluster: ClusterId,
    pub(super) sdc: SdcId,
}

/// Registers, for as long as it takes. Only what no waiting can cure is an error.
pub(super) async fn register(
    client: &MdmClient,
    config: &SdcConfig,
    state: &mut State,
    process: ProcessId,
    addresses: &Addresses,
) -> Result<Registered, SdcError> {
    let request = request(config, state, process, addresses);
    let registered = registration::register(client, state.cluster(), state.generation(), request).await;
    let registration::Registered { cluster, reply } =
        registered.map_err(|error| explain(error, config, state.dir()))?;
    state.set_cluster(cluster)?;
    state.follow(ClusterGeneration(reply.cluster_generation))?;
    state.start_above(reply.registrations)?;
    Ok(Registered { cluster, sdc: SdcId(reply.id) })
}

/// Asks the MDMs who this client is, until they answer; nothing is registered by that.
pub(super) async fn introduce(client: &MdmClient, config: &SdcConfig, state: &State) {
    let request = RegisterRequest {
        kind: ComponentKind::Sdc.into(),
        name: config.name.clone(),
        process_id: ProcessId::default().as_bytes().to_vec(),
        introduce: true,
        ..Default::default()
    };
    // A refusal is an answer: the registration will hear it too.
    let _ = registration::register(client, state.cluster(), state.generation(), request).await;
}

fn request(config: &SdcConfig, state: &State, process: ProcessId, addresses: &Addresses) -> RegisterRequest {
    RegisterRequest {
        request: None,
        kind: ComponentKind::Sdc.into(),
        name: config.name.clone(),
        process_id: process.as_bytes().to_vec(),
        addresses: Some(pb::Addresses {
            control: addresses.control.to_string(),
            management: addresses.management.to_string(),
            nbd: addresses.nbd.to_string(),
            ..Default::default()
        }),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        devices: Vec::new(),
        cluster_id: Vec::new(),
        cluster_generation: 0,
        introduce: false,
        host: Some(host::info()),
        registrations_seen: state.registrations(),
        follows_doubling: true,
    }
}

/// Registers again with each newer generation of the cluster: after a restore from backup it gives no tokens to anybody
/// who has not (S19). One that went on without the MDMs (`resumed`) registers first of all. Ends with `shutdown`, and with
/// what no waiting can cure.
pub(super) struct Registrations {
    pub(super) client: MdmClient,
    pub(super) config: SdcConfig,
    pub(super) state: State,
    pub(super) process: ProcessId,
    pub(super) addresses: Addresses,
    pub(super) engine: Arc<Engine>,
    pub(super) keeping: Arc<Keeping>,
    pub(super) resumed: Arc<AtomicBool>,
}

impl Registrations {
    pub(super) async fn follow(mut self, mut watcher: map::Watcher, shutdown: Shutdown) {
        loop {
            if !self.resumed.load(Ordering::Relaxed) {
                let ours = self.state.generation();
                let newer = |map: &Option<Arc<map::ClusterMap>>| map.as_ref().is_some_and(|map| map.generation > ours);
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    seen = watcher.wait_for(newer) => if seen.is_err() { return },
                }
                warn!("the cluster was restored from a backup; registering again");
            }
            let registered = tokio::select! {
                () = shutdown.cancelled() => return,
                registered = register(&self.client, &self.config, &mut self.state, self.process, &self.addresses) => registered,
            };
            match registered {
                Ok(_registered) => {
                    self.engine.raise(self.state.boot());
                    self.keeping.registered(&self.state);
                }
                Err(error) => {
                    tracing::error!(error = &error as &dyn std::error::Error, "cannot register again");
                    return shutdown.cancel();
                }
            }
            if self.resumed.swap(false, Ordering::Relaxed) {
                info!(boot = self.state.boot(), "registered: an MDM has answered");
            }
        }
    }
}

fn explain(error: RegistrationError, config: &SdcConfig, dir: PathBuf) -> SdcError {
    let name = config.name.clone();
    match error {
        RegistrationError::OtherCluster { ours, theirs } => {
            let members = config.mdm.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            SdcError::OtherCluster { dir, ours, members, theirs }
        }
        RegistrationError::Refused { why } | RegistrationError::ReportFirst { why } => SdcError::Refused { name, why },
        RegistrationError::Superseded { why } => SdcError::Superseded { name, why },
    }
}

/// Tokens from the MDM leader.
#[derive(Debug)]
pub(super) struct LeaderTokens {
    client: MdmClient,
    identity: Identity,
    takeover: Takeover,
    keeping: Arc<Keeping>,
}

impl LeaderTokens {
    /// Declares `takeover` when tokens go to another process of this client (S9); what comes is kept.
    pub(super) const fn new(client: MdmClient, identity: Identity, takeover: Takeover, keeping: Arc<Keeping>) -> Self {
        Self { client, identity, takeover, keeping }
    }
}

impl LeaderTokens {
    async fn ask(&self, volume_ids: Vec<u64>, plans: Vec<IoPlan>) -> anyhow::Result<IssueTokensReply> {
        let call = |connection, id| {
            let (volume_ids, plans) = (volume_ids.clone(), plans.clone());
            let request = IssueTokensRequest {
                request: Some(id),
                sdc_id: self.identity.sdc.0,
                process_id: self.identity.process.as_bytes().to_vec(),
                volume_ids,
                plans,
            };
            async move { TokensClient::new(connection).issue(request).await }
        };
        let reply = self.client.write(TOKEN_PATIENCE, call).await.inspect_err(|error| {
            // A command in the log was refused: that is a verdict.
            if error.reason() == Some(Reason::StaleEpoch) {
                self.takeover.declare(error.to_string());
            }
        });
        reply.context("asking the MDM for tokens")
    }
}

impl TokenSource for LeaderTokens {
    async fn issue(&self, volumes: &[VolumeId]) -> anyhow::Result<Vec<Issued>> {
        let asked = MonotonicTime::now();
        let reply = self.ask(volumes.iter().map(|volume| volume.0).collect(), Vec::new()).await?;
        for refusal in &reply.refused {
            warn!(volume = refusal.volume_id, why = refusal.why, "no token");
        }
        let issued = reply.tokens.into_iter().map(|token| {
            let key = <[u8; KEY_SIZE]>::try_from(&token.token_key[..]).context("a token key has 32 bytes")?;
            Ok(Issued { volume: VolumeId(token.volume_id), signed: token.token, key: TokenKey::from_bytes(key) })
        });
        let issued = issued.collect::<anyhow::Result<Vec<_>>>()?;
        self.keeping.note(&issued, asked);
        Ok(issued)
    }

    async fn issue_for(&self, plans: &[Plan]) -> anyhow::Result<Vec<Planned>> {
        let plan = |plan: &Plan| IoPlan {
            volume_id: plan.volume.0,
            device_id: plan.device.0,
            operation_id: plan.operation.0,
            write: plan.rights == Rights::ReadWrite,
            from_byte: plan.from.0,
            to_byte: plan.to.0,
        };
        let reply = self.ask(Vec::new(), plans.iter().map(plan).collect()).await?;
        anyhow::ensure!(reply.planned.len() == plans.len(), "the MDM answered for {} operations", reply.planned.len());
        let planned = reply.planned.into_iter().map(|planned| match planned {
            PlannedToken { token, why } if token.is_empty() => Err(why),
            PlannedToken { token, .. } => Ok(token),
        });
        Ok(planned.collect())
    }
}

/// Reports health until `shutdown`.
pub(super) async fn report(
    client: MdmClient,
    identity: Identity,
    name: String,
    volumes: Arc<MappedVolumes>,
    shutdown: Shutdown,
) {
    let mut interval = tokio::time::interval(REPORT_INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _now = interval.tick() => {}
        }
        let report = HealthReport {
            kind: ComponentKind::Sdc.into(),
            id: identity.sdc.0,
            name: name.clone(),
            process_id: identity.process.as_bytes().to_vec(),
            metrics: metrics(&volumes),
            wall_ms: 0,
        };
        let call = |connection| {
            // When it is sent: it may wait for a leader before.
            let report = HealthReport { wall_ms: wall_ms(), ..report.clone() };
            async move { LivenessClient::new(connection).report(report).await }
        };
        tokio::select! {
            () = shutdown.cancelled() => return,
            outcome = client.read(Patience::within(REPORT_INTERVAL / 2), call) => note(outcome),
        }
    }
}

/// IO does not depend on reports: a lost one is worth no more than a line for those who look.
fn note(outcome: Result<pb::HealthReportReply, MdmError>) {
    if let Err(error) = outcome {
        debug!(%error, "health report not delivered");
    }
}

fn metrics(volumes: &MappedVolumes) -> Vec<Metric> {
    let (mut reads, mut writes, mut retries, mut errors) = (0, 0, 0, 0);
    for volume in volumes.engine().volumes() {
        let statistics = volume.statistics();
        reads += statistics.reads.load(Ordering::Relaxed);
        writes += statistics.writes.load(Ordering::Relaxed);
        retries += statistics.retries.load(Ordering::Relaxed);
        errors += statistics.errors.load(Ordering::Relaxed);
    }
    let metric = |name: &str, value: u64| Metric { name: name.to_owned(), value: value as f64 };
    let own = vec![
        metric("pflex.sdc.reads", reads),
        metric("pflex.sdc.writes", writes),
        metric("pflex.sdc.retries", retries),
        metric("pflex.sdc.errors", errors),
    ];
    own.into_iter().chain(host::process_metrics()).collect()
}
