//! What an SDC says to the MDM: registration, tokens, health.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context as _;
use pflex_common::mdm::{MdmClient, MdmError, Patience};
use pflex_common::net::Endpoint;
use pflex_common::shutdown::Shutdown;
use pflex_proto::ids::{ClusterId, ProcessId, SdcId, VolumeId};
use pflex_proto::pb::discovery_client::DiscoveryClient;
use pflex_proto::pb::liveness_client::LivenessClient;
use pflex_proto::pb::tokens_client::TokensClient;
use pflex_proto::pb::{self, ComponentKind, HealthReport, IssueTokensRequest, Metric, RegisterRequest};
use pflex_proto::status::Reason;
use pflex_proto::token::{KEY_SIZE, TokenKey};
use tokio::net::TcpListener;
use tracing::{debug, warn};

use super::state::State;
use super::{MappedVolumes, SdcConfig, SdcError};
use crate::engine::Identity;
use crate::engine::tokens::{Issued, TokenSource};

/// For one try to register; there is another one after it.
const REGISTER_PATIENCE: Patience = Patience::within(Duration::from_secs(10));
/// Between two tries.
const REGISTER_PAUSE: Duration = Duration::from_millis(500);
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
        let real = |configured: &Endpoint, listener: &TcpListener| {
            let port = listener.local_addr().map_or(configured.port(), |address| address.port());
            Endpoint::new(configured.host(), port)
        };
        Self {
            nbd: real(&config.nbd, nbd),
            control: real(&config.control, control),
            management: real(&config.management, management),
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
    if let Some(cluster) = state.cluster() {
        client.set_cluster(cluster);
    }
    let request = RegisterRequest {
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
        cluster_id: state.cluster().map(|cluster| cluster.as_bytes().to_vec()).unwrap_or_default(),
        introduce: false,
    };
    let other_cluster = |state: &State, theirs: String| SdcError::OtherCluster {
        dir: state.dir(),
        ours: state.cluster().unwrap_or_default(),
        members: config.mdm.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        theirs,
    };
    let mut told = String::new();
    loop {
        let call = |connection, id| {
            let request = RegisterRequest { request: Some(id), ..request.clone() };
            async move { DiscoveryClient::new(connection).register(request).await }
        };
        let error = match client.write(REGISTER_PATIENCE, call).await {
            Ok(reply) => {
                let cluster = ClusterId::from_slice(&reply.cluster_id)
                    .map_err(|error| SdcError::Refused { name: config.name.clone(), why: error.to_string() })?;
                if state.cluster().is_some_and(|ours| ours != cluster) {
                    return Err(other_cluster(state, cluster.to_string()));
                }
                state.set_cluster(cluster)?;
                state.start_above(reply.registrations)?;
                client.set_cluster(cluster);
                return Ok(Registered { cluster, sdc: SdcId(reply.id) });
            }
            Err(error) => error,
        };
        match error.reason() {
            Some(Reason::WrongCluster) => return Err(other_cluster(state, error.to_string())),
            Some(Reason::Invalid | Reason::NotAllowed) => {
                return Err(SdcError::Refused { name: config.name.clone(), why: error.to_string() });
            }
            _may_change => {}
        }
        // Each reason is said once, not at every try.
        let why = error.to_string();
        if why != told {
            warn!(error = why, "cannot register yet; trying until it works");
            told = why;
        }
        tokio::time::sleep(REGISTER_PAUSE).await;
    }
}

/// Tokens from the MDM leader.
#[derive(Debug)]
pub(super) struct LeaderTokens {
    client: MdmClient,
    identity: Identity,
}

impl LeaderTokens {
    pub(super) const fn new(client: MdmClient, identity: Identity) -> Self {
        Self { client, identity }
    }
}

impl TokenSource for LeaderTokens {
    async fn issue(&self, volumes: &[VolumeId]) -> anyhow::Result<Vec<Issued>> {
        let call = |connection, id| {
            let request = IssueTokensRequest {
                request: Some(id),
                sdc_id: self.identity.sdc.0,
                process_id: self.identity.process.as_bytes().to_vec(),
                volume_ids: volumes.iter().map(|volume| volume.0).collect(),
            };
            async move { TokensClient::new(connection).issue(request).await }
        };
        let reply = self.client.write(TOKEN_PATIENCE, call).await.context("asking the MDM for tokens")?;
        for refusal in &reply.refused {
            warn!(volume = refusal.volume_id, why = refusal.why, "no token");
        }
        let issued = reply.tokens.into_iter().map(|token| {
            let key = <[u8; KEY_SIZE]>::try_from(&token.token_key[..]).context("a token key has 32 bytes")?;
            Ok(Issued { volume: VolumeId(token.volume_id), signed: token.token, key: TokenKey::from_bytes(key) })
        });
        issued.collect()
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
        };
        let call = |connection| {
            let report = report.clone();
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
    vec![
        metric("pflex.sdc.reads", reads),
        metric("pflex.sdc.writes", writes),
        metric("pflex.sdc.retries", retries),
        metric("pflex.sdc.errors", errors),
    ]
}
