//! An MDM that knows one client and hands out what it is given: a map, tokens signed with the secret of the fake SDSs.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use pflex_common::net::{Endpoint, incoming};
use pflex_proto::ids::{ClusterId, ProcessId, SdcId, TokenId, VolumeId};
use pflex_proto::pb;
use pflex_proto::status::{Reason, status};
use pflex_sdc::daemon::{ConfigFile, SdcConfig};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status};

use crate::fake_sds::{FakeCluster, PG_COUNT, POOL, Shared};

pub(crate) const CLUSTER: [u8; 16] = [9; 16];
pub(crate) const SDC: u32 = 3;

/// See the module.
#[derive(Clone)]
pub(crate) struct FakeMdm {
    pub(crate) map: watch::Sender<pb::ClusterMap>,
    shared: Arc<Mutex<Shared>>,
    pub(crate) tokens: Arc<AtomicU64>,
    pub(crate) registered: watch::Sender<Option<pb::RegisterRequest>>,
}

#[tonic::async_trait]
impl pb::sessions_server::Sessions for FakeMdm {
    async fn open_client(
        &self,
        _request: Request<pb::OpenClientRequest>,
    ) -> Result<Response<pb::OpenClientReply>, Status> {
        Ok(Response::new(pb::OpenClientReply { client_id: 1, idle_timeout_ms: 60_000 }))
    }
}

#[tonic::async_trait]
impl pb::discovery_server::Discovery for FakeMdm {
    async fn register(&self, request: Request<pb::RegisterRequest>) -> Result<Response<pb::RegisterReply>, Status> {
        self.registered.send_replace(Some(request.into_inner()));
        Ok(Response::new(pb::RegisterReply { cluster_id: CLUSTER.to_vec(), id: SDC, ..Default::default() }))
    }

    async fn topology(&self, _request: Request<pb::TopologyRequest>) -> Result<Response<pb::TopologyReply>, Status> {
        Err(Status::unimplemented("not asked for"))
    }
}

#[tonic::async_trait]
impl pb::map_server::Map for FakeMdm {
    type WatchStream = std::pin::Pin<Box<dyn Stream<Item = Result<pb::WatchReply, Status>> + Send>>;

    async fn watch(&self, _request: Request<pb::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let maps = WatchStream::new(self.map.subscribe());
        let replies =
            maps.map(|map| Ok(pb::WatchReply { event: Some(pb::watch_reply::Event::Full(map)), ..Default::default() }));
        Ok(Response::new(Box::pin(replies)))
    }
}

#[tonic::async_trait]
impl pb::tokens_server::Tokens for FakeMdm {
    async fn issue(&self, request: Request<pb::IssueTokensRequest>) -> Result<Response<pb::IssueTokensReply>, Status> {
        let request = request.into_inner();
        let newest = self.registered.borrow().as_ref().map(|registered| registered.process_id.clone());
        if newest.as_ref() != Some(&request.process_id) {
            return Err(status(Reason::StaleEpoch, "sdc 3: this process is not the one that registered last"));
        }
        let id = TokenId(self.tokens.fetch_add(1, Ordering::Relaxed));
        let process = ProcessId::from_slice(&request.process_id).unwrap();
        let owner = (ClusterId::from_bytes(CLUSTER), SdcId(request.sdc_id), process);
        let issue = |volume: u64| {
            let (token, key) = self.shared.lock().unwrap().token(owner, id, VolumeId(volume));
            let token_key = key.as_bytes().to_vec();
            pb::IssuedToken { volume_id: volume, token, token_key, expires_log_ms: u64::MAX }
        };
        let tokens = request.volume_ids.iter().map(|volume| issue(*volume)).collect();
        Ok(Response::new(pb::IssueTokensReply { tokens, ..Default::default() }))
    }

    async fn ack(&self, _request: Request<pb::AckTokensRequest>) -> Result<Response<pb::AckTokensReply>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn keys(&self, _request: Request<pb::KeysRequest>) -> Result<Response<pb::KeysReply>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn list(&self, _request: Request<pb::ListTokensRequest>) -> Result<Response<pb::ListTokensReply>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn audit(&self, _request: Request<pb::AuditTokensRequest>) -> Result<Response<pb::AuditTokensReply>, Status> {
        Err(Status::unimplemented("not asked for"))
    }
}

pub(crate) fn volume(id: u64, name: &str, pool: u32) -> pb::Volume {
    let mapping = pb::Mapping { sdc_id: SDC, access: pb::Access::ReadWrite.into(), ..Default::default() };
    pb::Volume {
        id,
        name: name.into(),
        pool_id: pool,
        size_bytes: 32 << 20,
        vtree_id: id,
        epoch: 1,
        mappings: vec![mapping],
        ..Default::default()
    }
}

/// The map of a fake cluster with volume `demo`, and `slow` in a writeback pool.
pub(crate) fn cluster_map(cluster: &FakeCluster) -> pb::ClusterMap {
    let pool = |id, policy: pb::WritePolicy| pb::Pool {
        id,
        name: format!("pool{id}"),
        pg_count: PG_COUNT,
        copies: 2,
        write_policy: policy.into(),
        ..Default::default()
    };
    let endpoints = cluster.endpoints();
    let sds = endpoints.iter().map(|(device, endpoint)| pb::Sds {
        id: device.0,
        addresses: Some(pb::Addresses { data: endpoint.to_string(), ..Default::default() }),
        alive: true,
        ..Default::default()
    });
    let devices = endpoints.iter().map(|(device, _)| pb::Device {
        id: device.0,
        sds_id: device.0,
        uuid: vec![1; 16],
        incarnation: 1,
        ..Default::default()
    });
    pb::ClusterMap {
        cluster_id: CLUSTER.to_vec(),
        revision: 1,
        pools: vec![pool(POOL.0, pb::WritePolicy::Sync), pool(2, pb::WritePolicy::Writeback)],
        sds: sds.collect(),
        devices: devices.collect(),
        pgs: cluster.shared().configs.values().map(Into::into).collect(),
        volumes: vec![volume(9, "demo", POOL.0), volume(10, "slow", 2)],
        ..Default::default()
    }
}

/// Starts a fake MDM; its endpoint.
pub(crate) async fn start_mdm(cluster: &FakeCluster) -> (FakeMdm, Endpoint) {
    let mdm = FakeMdm {
        map: watch::Sender::new(cluster_map(cluster)),
        shared: Arc::clone(&cluster.shared),
        tokens: Arc::new(AtomicU64::new(1)),
        registered: watch::Sender::new(None),
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = Endpoint::new("127.0.0.1", listener.local_addr().unwrap().port());
    let server = tonic::transport::Server::builder()
        .add_service(pb::sessions_server::SessionsServer::new(mdm.clone()))
        .add_service(pb::discovery_server::DiscoveryServer::new(mdm.clone()))
        .add_service(pb::map_server::MapServer::new(mdm.clone()))
        .add_service(pb::tokens_server::TokensServer::new(mdm.clone()));
    tokio::spawn(server.serve_with_incoming(incoming(listener)));
    (mdm, endpoint)
}

pub(crate) fn config(mdm: &Endpoint, dir: &std::path::Path) -> SdcConfig {
    let anywhere = Endpoint::new("127.0.0.1", 0);
    let file = ConfigFile {
        name: "sdc1".into(),
        mdm: vec![mdm.clone()],
        data_dir: dir.join("data"),
        nbd: anywhere.clone(),
        nbd_socket: Some(dir.join("nbd.sock")),
        nbd_tls: None,
        control: anywhere.clone(),
        management: anywhere,
        io_deadline_s: 20,
        data_threads: 1,
        busy_poll_us: 100,
    };
    file.validate().unwrap()
}
