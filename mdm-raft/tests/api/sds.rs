//! An SDS as the MDM sees it: a control port, a registration, a watch of the map, and a liveness stream.

use std::{sync::Arc, time::Duration};

use pflex_common::{
    map::{self, ClusterMap, Watcher},
    mdm::MdmClient,
    shutdown::Shutdown,
};
use pflex_proto::{
    pb::{
        Addresses, Beat, ComponentKind, CreateSdsRequest, DeviceBeat, GroupReport, PgProposal, ReconfigureRequest,
        RegisterReply, RegisterRequest, RegisteredDevice, ReportGroupsRequest, admin_client::AdminClient,
        discovery_client::DiscoveryClient, liveness_client::LivenessClient, placement_client::PlacementClient,
        recovery_client::RecoveryClient,
    },
    pg::PgConfig,
    status,
};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};
use uuid::Uuid;

use crate::cluster::{Cluster, GIB, PATIENCE};

/// Shorter than the real second, to keep tests short.
const BEAT: Duration = Duration::from_millis(100);

/// One run of an SDS's process.
pub(crate) struct FakeSds {
    pub(crate) id: u32,
    pub(crate) process: Vec<u8>,
    pub(crate) map: Watcher,
    /// The newest log time the leader stamped, and its term.
    pub(crate) stamp: watch::Receiver<(u64, u64)>,
    /// What it says of itself.
    pub(crate) says: watch::Sender<Says>,
    shutdown: Shutdown,
    control: Option<TcpListener>,
    beats: JoinHandle<()>,
}

#[derive(Clone, Copy, Default)]
pub(crate) struct Says {
    /// Connected, and mute.
    pub(crate) silent: bool,
    /// It does not put new revisions into force.
    pub(crate) stuck: bool,
    pub(crate) device_failed: bool,
    /// It does not fetch new keys.
    pub(crate) no_keys: bool,
    /// How far it has counted log time.
    pub(crate) log_time_ms: u64,
    /// Bytes that new copies still lack, and that were sent to them.
    pub(crate) resync: (u64, u64),
}

impl FakeSds {
    /// Creates the SDS `s{n}` and starts its first process.
    pub(crate) async fn create(cluster: &Cluster, n: u8) -> Self {
        let created = cluster.client.write(PATIENCE, |connection, request| {
            let message = CreateSdsRequest { request: Some(request), name: format!("s{n}"), ..Default::default() };
            async move { AdminClient::new(connection).create_sds(message).await }
        });
        created.await.unwrap();
        Self::start(cluster, n, 1).await
    }

    /// A new process of the SDS, which opened its device for the `incarnation`th time.
    pub(crate) async fn start(cluster: &Cluster, n: u8, incarnation: u64) -> Self {
        Self::begin(&cluster.client, n, incarnation, None).await
    }

    /// The same with a cluster that was restored: it says first what it knew before.
    pub(crate) async fn come_back(client: &MdmClient, n: u8, incarnation: u64, known: Vec<GroupReport>) -> Self {
        Self::begin(client, n, incarnation, Some(known)).await
    }

    async fn begin(client: &MdmClient, n: u8, incarnation: u64, known: Option<Vec<GroupReport>>) -> Self {
        let process = Uuid::new_v4().as_bytes().to_vec();
        if let Some(groups) = known {
            let report = ReportGroupsRequest {
                sds: format!("s{n}"),
                process_id: process.clone(),
                cluster_generation: client.generation().get(),
                device_uuid: vec![n; 16],
                device_id: n.into(),
                incarnation,
                groups,
                last: true,
                ..Default::default()
            };
            let reported = client.read(PATIENCE, |connection| {
                let report = report.clone();
                async move { RecoveryClient::new(connection).report_groups(report).await }
            });
            reported.await.unwrap();
        }
        let control = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addresses = Addresses { control: control.local_addr().unwrap().to_string(), ..Default::default() };
        let registered: RegisterReply = client
            .read(PATIENCE, |connection| {
                let message = RegisterRequest {
                    kind: ComponentKind::Sds.into(),
                    name: format!("s{n}"),
                    process_id: process.clone(),
                    addresses: Some(addresses.clone()),
                    devices: vec![RegisteredDevice {
                        uuid: vec![n; 16],
                        incarnation,
                        capacity_bytes: 100 * GIB,
                        path: format!("/dev/{n}"),
                        ..Default::default()
                    }],
                    follows_doubling: true,
                    ..Default::default()
                };
                async move { DiscoveryClient::new(connection).register(message).await }
            })
            .await
            .unwrap();
        let shutdown = Shutdown::new();
        let map = map::watch(client.clone(), ComponentKind::Sds, registered.id, shutdown.clone());
        let (says, heard) = watch::channel(Says::default());
        let (stamped, stamp) = watch::channel((0, 0));
        let beats = tokio::spawn(beat(Beats {
            client: client.clone(),
            sds: registered.id,
            process: process.clone(),
            device: registered.device_ids[0],
            incarnation,
            map: map.clone(),
            says: heard,
            stamped,
        }));
        Self { id: registered.id, process, map, stamp, says, shutdown, control: Some(control), beats }
    }

    /// The process is gone: its connections close, its port refuses.
    pub(crate) fn die(mut self) {
        self.shutdown.cancel();
        self.control.take();
        self.beats.abort();
    }

    /// It is about to answer in every group that it leads (S11).
    pub(crate) async fn activate(&self, cluster: &Cluster, map: &ClusterMap) {
        let leads = |pg: &PgConfig| pg.primary.is_some_and(|device| map.devices[&device].sds.get() == self.id);
        let activation = |pg: &PgConfig| PgProposal {
            pg: Some(pg.pg.into()),
            expected_epoch: pg.epoch.get(),
            activate: true,
            ..Default::default()
        };
        let ready = map.pgs.values().filter(|pg| pg.to_activate && leads(pg));
        let proposals: Vec<PgProposal> = ready.map(|pg| activation(pg)).collect();
        self.propose(cluster, proposals).await;
    }

    /// Proposes configurations; each must be accepted.
    pub(crate) async fn propose(&self, cluster: &Cluster, proposals: Vec<PgProposal>) {
        let (sds_id, process_id) = (self.id, self.process.clone());
        let message = ReconfigureRequest { request: None, sds_id, process_id, proposals };
        let reply = cluster.client.read(PATIENCE, |connection| {
            let message = message.clone();
            async move { PlacementClient::new(connection).reconfigure(message).await }
        });
        for result in reply.await.unwrap().results {
            assert!(result.accepted, "{}", result.why);
        }
    }

    /// Waits until its map is as `wanted`.
    pub(crate) async fn sees(&self, wanted: impl Fn(&ClusterMap) -> bool) -> Arc<ClusterMap> {
        let mut map = self.map.clone();
        let seen = map.wait_for(|map| map.as_deref().is_some_and(&wanted));
        let seen = tokio::time::timeout(Duration::from_secs(20), seen).await.expect("the map changes in time");
        seen.unwrap().clone().unwrap()
    }
}

struct Beats {
    client: pflex_common::mdm::MdmClient,
    sds: u32,
    process: Vec<u8>,
    device: u32,
    incarnation: u64,
    map: Watcher,
    says: watch::Receiver<Says>,
    stamped: watch::Sender<(u64, u64)>,
}

/// Follows the leader and beats until aborted.
async fn beat(beats: Beats) {
    loop {
        let (endpoint, connection) = beats.client.leader_guess();
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        let outbound = tokio_stream::wrappers::ReceiverStream::new(receiver);
        let mut replies = match LivenessClient::new(connection).beats(outbound).await {
            Ok(replies) => replies.into_inner(),
            Err(error) => {
                beats.client.not_here(&endpoint, &error);
                tokio::time::sleep(BEAT).await;
                continue;
            }
        };
        let mut ticks = tokio::time::interval(BEAT);
        let (mut applied, mut newest_key_id) = (0, 0);
        loop {
            tokio::select! {
                reply = replies.message() => match reply {
                    Ok(Some(reply)) => {
                        newest_key_id = reply.newest_key_id;
                        beats.stamped.send_replace((reply.log_time_ms, reply.term));
                    }
                    Ok(None) => break,
                    Err(error) => {
                        if status::leader_hint(&error).is_some() {
                            beats.client.not_here(&endpoint, &error);
                        }
                        break;
                    }
                },
                _ = ticks.tick() => {
                    let says = *beats.says.borrow();
                    if !says.stuck {
                        applied = beats.map.borrow().as_ref().map_or(0, |map| map.revision.get());
                    }
                    if says.silent {
                        continue;
                    }
                    let device = DeviceBeat {
                        device_id: beats.device,
                        incarnation: beats.incarnation,
                        failed: says.device_failed,
                        resync_left_bytes: says.resync.0,
                        resync_sent_bytes: says.resync.1,
                        ..Default::default()
                    };
                    let beat = Beat {
                        sds_id: beats.sds,
                        process_id: beats.process.clone(),
                        applied_revision: applied,
                        devices: vec![device],
                        log_time_ms: says.log_time_ms,
                        newest_key_id: if says.no_keys { 0 } else { newest_key_id },
                        ..Default::default()
                    };
                    if sender.send(beat).await.is_err() {
                        break;
                    }
                }
            }
        }
        tokio::time::sleep(BEAT).await;
    }
}
