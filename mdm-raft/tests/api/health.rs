//! Health from reports to transitions, samples and the view of them, through the client port.

use std::time::Duration;

use pflex_common::{clock::wall_ms, mdm::MdmError};
use pflex_proto::{
    pb::{
        ChangeSettingsRequest, ClusterStatusRequest, Component, ComponentKind, HealthReport, HostInfo, Metric,
        RegisterRequest, RegistrationsRequest, SamplesRequest, SettingChange, TopologyRequest,
        cluster_client::ClusterClient, discovery_client::DiscoveryClient, insight_client::InsightClient,
        liveness_client::LivenessClient, vitals_client::VitalsClient,
    },
    status::Reason,
};

use crate::cluster::{Cluster, PATIENCE};

const STALE_MS: u64 = 10_000;

async fn sdc(cluster: &Cluster) -> Component {
    let asked = cluster.client.read(PATIENCE, |connection| async move {
        DiscoveryClient::new(connection).topology(TopologyRequest { stale: false }).await
    });
    let components = asked.await.unwrap().components;
    components.into_iter().find(|component| component.kind() == ComponentKind::Sdc).unwrap()
}

async fn until(cluster: &Cluster, status: &str) -> Component {
    let waited = async {
        loop {
            let found = sdc(cluster).await;
            if found.status == status {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waited).await.expect("the status changes in time")
}

async fn report(cluster: &Cluster, process: u8) -> Result<(), MdmError> {
    report_at(cluster, process, 0).await
}

/// By a wall clock that shows this; 0: it does not say.
async fn report_at(cluster: &Cluster, process: u8, wall_ms: u64) -> Result<(), MdmError> {
    let sent = cluster.client.read(PATIENCE, |connection| async move {
        let report = HealthReport {
            kind: ComponentKind::Sdc.into(),
            id: 1,
            process_id: vec![process; 16],
            metrics: vec![Metric { name: "pflex.sdc.reads".into(), value: 7.0 }],
            wall_ms,
            ..HealthReport::default()
        };
        LivenessClient::new(connection).report(report).await
    });
    sent.await.map(drop)
}

/// The SDC `c`, as process 1.
async fn register(cluster: &Cluster) {
    let registered = cluster.client.read(PATIENCE, |connection| async move {
        let host = HostInfo { host_name: "box7".into(), cores: 2, ..HostInfo::default() };
        let message = RegisterRequest {
            kind: ComponentKind::Sdc.into(),
            name: "c".into(),
            process_id: vec![1; 16],
            host: Some(host),
            version: "9".into(),
            ..RegisterRequest::default()
        };
        DiscoveryClient::new(connection).register(message).await
    });
    registered.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_component_becomes_stale_and_returns_with_its_next_report() {
    let cluster = Cluster::start(1).await;
    let changed = cluster.client.write(PATIENCE, |connection, request| async move {
        let key = "health.stale_ms".to_owned();
        let changes = vec![SettingChange { key, value: STALE_MS, to_default: false }];
        let message = ChangeSettingsRequest { request: Some(request), changes };
        InsightClient::new(connection).change_settings(message).await
    });
    changed.await.unwrap();
    cluster.create_sdc("c").await;
    register(&cluster).await;
    let fresh = sdc(&cluster).await;
    assert_eq!((fresh.status.as_str(), fresh.heard_ms_ago), ("ACTIVE", None), "it has not reported yet");
    assert_eq!(fresh.host.as_ref().unwrap().host_name, "box7");

    let stale = until(&cluster, "STALE").await;
    assert_eq!(stale.why, "its health reports are late");
    assert_eq!(stale.oscillation.unwrap().minute, 1);
    assert_eq!(report(&cluster, 2).await.unwrap_err().reason(), Some(Reason::StaleEpoch), "not the process it was");
    report(&cluster, 1).await.unwrap();
    let back = until(&cluster, "ACTIVE").await;
    assert!(back.heard_ms_ago.is_some_and(|ms| ms < STALE_MS) && back.since_log_ms > stale.since_log_ms);

    // The first sample is taken at once, the next a minute later.
    let samples = cluster.client.read(PATIENCE, |connection| async move {
        let message = SamplesRequest { kind: ComponentKind::Mdm.into(), name: "mdm1".into(), ..Default::default() };
        VitalsClient::new(connection).samples(message).await
    });
    let samples = samples.await.unwrap().samples;
    assert_eq!(samples.len(), 1);
    assert!(samples[0].metrics.iter().any(|metric| metric.name.starts_with("cluster.")), "{samples:?}");

    let starts = cluster.client.read(PATIENCE, |connection| async move {
        let message = RegistrationsRequest { kind: ComponentKind::Sdc.into(), name: "c".into(), stale: false };
        VitalsClient::new(connection).registrations(message).await
    });
    let starts = starts.await.unwrap().registrations;
    assert_eq!((starts.len(), starts[0].version.as_str(), starts[0].host_name.as_str()), (1, "9", "box7"));
    cluster.stop().await;
}

/// Why the cluster is not well, of the SDC.
async fn reasons(cluster: &Cluster) -> Vec<String> {
    let asked = cluster.client.read(PATIENCE, |connection| async move {
        ClusterClient::new(connection).status(ClusterStatusRequest::default()).await
    });
    let reasons = asked.await.unwrap().reasons;
    reasons.into_iter().filter(|reason| reason.object == "sdc c").map(|reason| reason.why).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_component_whose_clock_is_off_is_told_of_until_it_is_right() {
    let cluster = Cluster::start(1).await;
    cluster.create_sdc("c").await;
    register(&cluster).await;
    let reported_until = async |ahead_ms: i64, wanted: &str| {
        let waited = async {
            loop {
                let wall = wall_ms().checked_add_signed(ahead_ms).unwrap();
                report_at(&cluster, 1, wall).await.unwrap();
                let reasons = reasons(&cluster).await;
                if reasons.iter().any(|why| why.contains(wanted)) || (wanted.is_empty() && reasons.is_empty()) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), waited)
            .await
            .unwrap_or_else(|_| panic!("{wanted} at {ahead_ms}"));
    };
    reported_until(3_600_000, "s ahead of the leader's").await;
    reported_until(0, "").await;
    reported_until(-3_600_000, "s behind the leader's").await;
    assert_eq!(sdc(&cluster).await.status, "ACTIVE", "it is well all the same");
    cluster.stop().await;
}
