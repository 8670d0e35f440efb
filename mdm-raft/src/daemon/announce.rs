//! An MDM is a component too: while it is a member it registers with the leader, whoever that is, and reports its health.

use std::{collections::BTreeSet, time::Duration};

use pflex_common::{
    clock::wall_ms,
    host,
    mdm::{MdmClient, Patience},
    net::Endpoint,
    shutdown::Shutdown,
};
use pflex_proto::{
    ids::{ClusterId, ProcessId},
    pb::{
        Addresses, ComponentKind, HealthReport, RegisterRequest, discovery_client::DiscoveryClient,
        liveness_client::LivenessClient,
    },
};
use uuid::Uuid;

use crate::raft::{RaftGroup, Standing};

/// Between two health reports (ARCHITECTURE section 6).
const REPORT_EVERY: Duration = Duration::from_secs(10);
/// Before another try.
const RETRY: Duration = Duration::from_secs(1);

/// Who to announce, and to whom.
pub(super) struct Announcement {
    pub(super) cluster: ClusterId,
    pub(super) name: String,
    pub(super) addresses: Addresses,
    pub(super) members: Vec<Endpoint>,
}

/// Registers, then reports, until `shutdown`. Failures are only logged: an MDM works without being listed.
pub(super) async fn announce(announcement: Announcement, group: RaftGroup, shutdown: Shutdown) {
    let members: BTreeSet<Endpoint> = announcement.members.into_iter().collect();
    let client = MdmClient::new(announcement.name.clone(), members.into_iter().collect());
    client.set_cluster(announcement.cluster);
    let process_id = ProcessId(Uuid::new_v4()).as_bytes().to_vec();
    let register = RegisterRequest {
        kind: ComponentKind::Mdm.into(),
        name: announcement.name.clone(),
        process_id: process_id.clone(),
        addresses: Some(announcement.addresses),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        host: Some(host::info()),
        cluster_id: announcement.cluster.as_bytes().to_vec(),
        ..RegisterRequest::default()
    };
    let report = HealthReport {
        kind: ComponentKind::Mdm.into(),
        name: announcement.name,
        process_id,
        ..HealthReport::default()
    };
    let patience = Patience::within(Duration::from_secs(5));
    let work = async {
        member(&group, &client).await;
        // Registering again is harmless, so this needs no exactly-once session.
        while let Err(error) = client
            .read(patience, |connection| {
                let register = register.clone();
                async move { DiscoveryClient::new(connection).register(register).await }
            })
            .await
        {
            tracing::debug!(%error, "not registered yet");
            tokio::time::sleep(RETRY).await;
        }
        loop {
            member(&group, &client).await;
            let sent = client.read(patience, |connection| {
                let report = HealthReport { metrics: host::process_metrics(), wall_ms: wall_ms(), ..report.clone() };
                async move { LivenessClient::new(connection).report(report).await }
            });
            if let Err(error) = sent.await {
                tracing::debug!(%error, "health report not delivered");
            }
            tokio::time::sleep(REPORT_EVERY).await;
        }
    };
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = work => {}
    }
}

/// Waits until this is a member, and tells the client who the others are.
async fn member(group: &RaftGroup, client: &MdmClient) {
    while group.standing() != Standing::Member {
        tokio::time::sleep(RETRY).await;
    }
    let members = group.members().borrow().clone();
    client.learn_members(members.as_of, members.apis.iter().filter_map(|api| api.parse().ok()).collect()).await;
}
