//! A cluster of daemons on loopback ports.

use std::{sync::Mutex, time::Duration};

use pflex_common::{
    mdm::{MdmClient, MdmError, Patience},
    net::Endpoint,
    shutdown::Shutdown,
};
use pflex_mdm::daemon::{self, DaemonError, JoinFile, Limits, MdmConfig, MdmConfigFile, MemberFile};
use pflex_proto::{
    ids::{ClusterId, MdmId, StoreUuid},
    pb::{
        ClusterStatus, ClusterStatusRequest, CreateDomainRequest, CreatePoolRequest, CreateSdcRequest,
        CreateVolumeRequest, ListRequest, MapVolumeRequest, Volume, admin_client::AdminClient,
        cluster_client::ClusterClient,
    },
};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::ports;

pub(crate) const PATIENCE: Patience = Patience::within(Duration::from_secs(20));
pub(crate) const GIB: u64 = 1 << 30;

pub(crate) struct Member {
    pub(crate) file: MdmConfigFile,
    _dir: TempDir,
    running: Option<(Shutdown, JoinHandle<Result<(), DaemonError>>)>,
}

impl Member {
    pub(crate) fn start(&mut self) {
        let shutdown = Shutdown::new();
        let config = MdmConfig::try_from(self.file.clone()).unwrap();
        let task = tokio::spawn(daemon::run(config, shutdown.clone()));
        self.running = Some((shutdown, task));
    }

    /// Stops cleanly: leadership goes over first.
    pub(crate) async fn stop(&mut self) {
        let (shutdown, task) = self.running.take().expect("runs");
        shutdown.cancel();
        task.await.unwrap().unwrap();
    }

    pub(crate) fn api(&self) -> Endpoint {
        if let Some(join) = &self.file.join {
            return join.api.clone();
        }
        self.file.members.iter().find(|member| member.id == self.file.id).unwrap().api.clone()
    }
}

/// The members and a client that knows them all.
pub(crate) struct Cluster {
    pub(crate) id: ClusterId,
    pub(crate) members: Mutex<Vec<Member>>,
    pub(crate) client: MdmClient,
}

impl Cluster {
    /// Starts `n` members and waits until the first command is in.
    pub(crate) async fn start(n: u64) -> Self {
        Self::start_within(n, Limits::default()).await
    }

    /// As [`start`](Self::start), with members that take less at a time.
    pub(crate) async fn start_within(n: u64, limits: Limits) -> Self {
        let id = ClusterId(Uuid::new_v4());
        let ports: Vec<u16> = (0..2 * n).map(|_| ports::claim()).collect();
        let files: Vec<MemberFile> = (1..=n)
            .zip(ports.chunks(2))
            .map(|(id, ports)| MemberFile {
                id: MdmId(id),
                api: Endpoint::new("127.0.0.1", ports[0]),
                raft: Endpoint::new("127.0.0.1", ports[1]),
                store: StoreUuid(Uuid::new_v4()),
            })
            .collect();
        let mut members = Vec::new();
        for member in &files {
            let dir = tempfile::tempdir().unwrap();
            let file = MdmConfigFile {
                cluster: id,
                id: member.id,
                dir: dir.path().join("store"),
                listen_api: None,
                listen_raft: None,
                members: files.clone(),
                join: None,
                limits,
            };
            daemon::init(&MdmConfig::try_from(file.clone()).unwrap()).unwrap();
            let mut member = Member { file, _dir: dir, running: None };
            member.start();
            members.push(member);
        }
        let client = MdmClient::new("test", files.iter().map(|member| member.api.clone()).collect());
        client.set_cluster(id);
        let cluster = Self { id, members: Mutex::new(members), client };
        cluster.create_domain("d").await.unwrap();
        for member in &files {
            until_it_has_a_domain(&member.api).await;
        }
        cluster
    }

    pub(crate) async fn create_domain(&self, name: &str) -> Result<(), MdmError> {
        let created = self.client.write(PATIENCE, |connection, request| {
            let message = CreateDomainRequest { request: Some(request), name: name.to_owned(), if_not_exists: false };
            async move { AdminClient::new(connection).create_domain(message).await }
        });
        created.await.map(drop)
    }

    pub(crate) async fn create_pool(&self, name: &str, pg_count: u32) {
        let created = self.client.write(PATIENCE, |connection, request| {
            let message =
                CreatePoolRequest { request: Some(request), name: name.to_owned(), pg_count, ..Default::default() };
            async move { AdminClient::new(connection).create_pool(message).await }
        });
        created.await.unwrap();
    }

    pub(crate) async fn create_sdc(&self, name: &str) -> u32 {
        let created = self.client.write(PATIENCE, |connection, request| {
            let message = CreateSdcRequest { request: Some(request), name: name.to_owned(), if_not_exists: false };
            async move { AdminClient::new(connection).create_sdc(message).await }
        });
        created.await.unwrap().id
    }

    pub(crate) async fn create_volume(&self, name: &str, size_bytes: u64) -> Result<Volume, MdmError> {
        let created = self.client.write(PATIENCE, |connection, request| {
            let message =
                CreateVolumeRequest { request: Some(request), name: name.to_owned(), size_bytes, ..Default::default() };
            async move { AdminClient::new(connection).create_volume(message).await }
        });
        created.await
    }

    pub(crate) async fn map_volume(&self, volume: &str, sdc: &str) -> Volume {
        let mapped = self.client.write(PATIENCE, |connection, request| {
            let message = MapVolumeRequest {
                request: Some(request),
                volume: volume.to_owned(),
                sdc: sdc.to_owned(),
                ..Default::default()
            };
            async move { AdminClient::new(connection).map_volume(message).await }
        });
        mapped.await.unwrap().volume.unwrap()
    }

    pub(crate) async fn status(&self) -> ClusterStatus {
        let asked = self.client.read(PATIENCE, |connection| async move {
            ClusterClient::new(connection).status(ClusterStatusRequest { stale: false }).await
        });
        asked.await.unwrap()
    }

    /// Stops the member that leads; returns its position in `members`.
    pub(crate) async fn stop_leader(&self) -> usize {
        let leader = self.status().await.leader;
        let at = usize::try_from(leader).unwrap() - 1;
        let mut member = self.members.lock().unwrap().remove(at);
        member.stop().await;
        self.members.lock().unwrap().insert(at, member);
        at
    }

    /// Starts a node that waits to be added; returns where it is to be found.
    pub(crate) fn join(&self, id: u64) -> Endpoint {
        self.start_joining(self.joining(id, self.client.members()))
    }

    /// As [`join`](Self::join), of a node that can ask nobody.
    pub(crate) fn join_blindly(&self, id: u64) -> Endpoint {
        self.start_joining(self.joining(id, vec![Endpoint::new("127.0.0.1", 1)]))
    }

    /// Why a node that should join did not start.
    pub(crate) async fn join_in_vain(&self, id: u64) -> DaemonError {
        let member = self.joining(id, self.client.members());
        let config = MdmConfig::try_from(member.file.clone()).unwrap();
        daemon::run(config, Shutdown::new()).await.unwrap_err()
    }

    pub(crate) fn joining(&self, id: u64, mdm: Vec<Endpoint>) -> Member {
        let [api, raft] = [(); 2].map(|()| Endpoint::new("127.0.0.1", ports::claim()));
        let dir = tempfile::tempdir().unwrap();
        let file = MdmConfigFile {
            cluster: self.id,
            id: MdmId(id),
            dir: dir.path().join("store"),
            listen_api: None,
            listen_raft: None,
            members: vec![],
            join: Some(JoinFile { api, raft, mdm }),
            limits: Limits::default(),
        };
        Member { file, _dir: dir, running: None }
    }

    fn start_joining(&self, mut member: Member) -> Endpoint {
        member.start();
        let api = member.api();
        self.members.lock().unwrap().push(member);
        api
    }

    /// Takes a member out of this list, for the caller to end. Dropped, its directory goes.
    pub(crate) fn take(&self, id: u64) -> Member {
        let at = self.at(id);
        self.members.lock().unwrap().remove(at)
    }

    fn at(&self, id: u64) -> usize {
        self.members.lock().unwrap().iter().position(|member| member.file.id == MdmId(id)).unwrap()
    }

    pub(crate) fn restart(&self, at: usize) {
        self.members.lock().unwrap()[at].start();
    }

    pub(crate) async fn stop(self) {
        let members = std::mem::take(&mut *self.members.lock().unwrap());
        for mut member in members {
            if member.running.is_some() {
                member.stop().await;
            }
        }
    }
}

/// A leader needs only a majority: the last member may still be starting.
async fn until_it_has_a_domain(api: &Endpoint) {
    let mut admin = AdminClient::new(api.channel());
    let stale = ListRequest { stale: true, ..Default::default() };
    while admin.list_domains(stale.clone()).await.map_or(0, |reply| reply.into_inner().domains.len()) == 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
