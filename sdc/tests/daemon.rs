//! The whole SDC process against a fake MDM and fake SDSs: from its configuration to bytes read back over NBD.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "engine/fake_sds.rs"]
mod fake_sds;
#[path = "nbd/client.rs"]
mod nbd;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fake_sds::{FakeCluster, PG_COUNT, POOL, Shared};
use pflex_common::net::{Endpoint, incoming};
use pflex_proto::ids::{ByteOffset, ClusterId, KeyId, LogTime, ProcessId, SdcId, TokenId, VolumeEpoch, VolumeId};
use pflex_proto::pb;
use pflex_proto::status::{Reason, status};
use pflex_proto::token::{Rights, Token, TokenMode};
use pflex_sdc::daemon::{ConfigFile, SdcError, run};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;
use tokio_stream::{Stream, StreamExt as _};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

const CLUSTER: [u8; 16] = [9; 16];
const SDC: u32 = 3;

/// An MDM that knows one client and hands out what it is given.
#[derive(Clone)]
struct FakeMdm {
    map: watch::Sender<pb::ClusterMap>,
    shared: Arc<Mutex<Shared>>,
    tokens: Arc<AtomicU64>,
    registered: watch::Sender<Option<pb::RegisterRequest>>,
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
        let issue = |volume: u64| {
            let token = Token {
                cluster: ClusterId::from_bytes(CLUSTER),
                key: KeyId(1),
                id,
                sdc: SdcId(request.sdc_id),
                process: ProcessId::from_slice(&request.process_id).unwrap(),
                volume: VolumeId(volume),
                rights: Rights::ReadWrite,
                from: ByteOffset(0),
                to: ByteOffset(u64::MAX),
                volume_epoch: VolumeEpoch(1),
                issued: LogTime(0),
                expires: LogTime(u64::MAX),
                mode: TokenMode::Lease,
            };
            let (token, key) = self.shared.lock().unwrap().secret.sign(&token);
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
}

fn volume(id: u64, name: &str, pool: u32) -> pb::Volume {
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
fn cluster_map(cluster: &FakeCluster) -> pb::ClusterMap {
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
async fn start_mdm(cluster: &FakeCluster) -> (FakeMdm, Endpoint) {
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

fn config(mdm: &Endpoint, dir: &std::path::Path) -> pflex_sdc::daemon::SdcConfig {
    let anywhere = Endpoint::new("127.0.0.1", 0);
    let file = ConfigFile {
        name: "sdc1".into(),
        mdm: vec![mdm.clone()],
        data_dir: dir.join("data"),
        nbd: anywhere.clone(),
        nbd_socket: Some(dir.join("nbd.sock")),
        control: anywhere.clone(),
        management: anywhere,
        io_deadline_s: 20,
        data_threads: 1,
    };
    file.validate().unwrap()
}

async fn client(program: &str, arguments: &[&str]) -> Result<String, String> {
    let started = tokio::process::Command::new(program).args(arguments).kill_on_drop(true).output().await;
    let output = started.unwrap_or_else(|error| panic!("{program} cannot be run ({error}): `make deps` installs it"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let printed = text(&output.stdout);
    if output.status.success() { Ok(printed) } else { Err(printed + &text(&output.stderr)) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_registration_to_bytes_over_nbd_and_a_clean_end() {
    let cluster = FakeCluster::start(2, 1).await;
    let (mdm, endpoint) = start_mdm(&cluster).await;
    let dir = tempfile::tempdir().unwrap();
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(run(config(&endpoint, dir.path()), shutdown.clone()));
    let mut registered = mdm.registered.subscribe();
    let request = registered.wait_for(Option::is_some).await.unwrap().clone().unwrap();
    let addresses = request.addresses.unwrap();
    assert_eq!((request.name.as_str(), request.kind), ("sdc1", pb::ComponentKind::Sdc as i32));

    let nbd = format!("nbd://{}", addresses.nbd);
    let listed = client("nbdinfo", &["--list", "--json", &nbd]).await.unwrap();
    assert!(listed.contains("\"demo\""), "{listed}");
    let demo = format!("{nbd}/demo");
    let written = client("qemu-io", &["-f", "raw", "-c", "write -P 5 1000k 3M", "-c", "flush", &demo]).await.unwrap();
    assert!(!written.contains("failed"), "{written}");
    let unix = format!("nbd+unix:///demo?socket={}", dir.path().join("nbd.sock").display());
    let read =
        client("qemu-io", &["-f", "raw", "-c", "read -P 5 1000k 3M", "-c", "read -P 0 0 1000k", &unix]).await.unwrap();
    assert!(!read.contains("failed"), "{read}");
    assert!(client("nbdinfo", &[&format!("{nbd}/slow")]).await.is_err(), "a writeback pool is refused");

    let management: Endpoint = addresses.management.parse().unwrap();
    let mut stats = pb::sdc_management_client::SdcManagementClient::new(management.channel());
    let mut held = tokio::net::TcpStream::connect(&addresses.nbd).await.unwrap();
    // Greeted, so it is being served.
    tokio::io::AsyncReadExt::read_exact(&mut held, &mut [0; 8]).await.unwrap();
    let stats = stats.stats(pb::SdcStatsRequest {}).await.unwrap().into_inner();
    drop(held);
    assert!(stats.connections >= 1, "the connection that is open");
    assert_eq!((stats.sdc_id, stats.volumes[0].name.as_str()), (SDC, "demo"));
    assert!(stats.volumes[0].written_bytes == 3 << 20 && stats.volumes[0].errors == 0);

    // A new volume appears, and one that is unmapped goes.
    let mut map = cluster_map(&cluster);
    map.revision = 2;
    map.volumes = vec![volume(11, "fresh", POOL.0)];
    mdm.map.send_replace(map);
    client("nbdinfo", &[&format!("{nbd}/fresh")]).await.unwrap();
    assert!(client("nbdinfo", &[&demo]).await.is_err());

    shutdown.cancel();
    tokio::time::timeout(Duration::from_secs(10), running).await.unwrap().unwrap().unwrap();
    assert!(!dir.path().join("nbd.sock").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn growth_is_seen_on_reconnect_and_an_unmapped_volume_ends_its_connections() {
    let cluster = FakeCluster::start(2, 1).await;
    let (mdm, endpoint) = start_mdm(&cluster).await;
    let dir = tempfile::tempdir().unwrap();
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(run(config(&endpoint, dir.path()), shutdown.clone()));
    let mut registered = mdm.registered.subscribe();
    let request = registered.wait_for(Option::is_some).await.unwrap().clone().unwrap();
    let address = request.addresses.unwrap().nbd;
    let open = async || {
        let stream = tokio::net::TcpStream::connect(&address).await.unwrap();
        nbd::Client::open(stream, "demo", nbd::Form::Structured).await
    };
    let mut before = open().await;
    assert_eq!(before.write(0, b"data").await, 0);
    let status = before.ask(nbd::BLOCK_STATUS, 0, 0, before.size).await.extents();
    assert_eq!(status, [(4096, 0), (before.size - 4096, nbd::HOLE)], "allocation as the SDSs know it");

    let tokens = mdm.tokens.load(Ordering::Relaxed);
    let mut map = cluster_map(&cluster);
    map.revision = 2;
    map.volumes[0].size_bytes *= 2;
    mdm.map.send_replace(map);
    let ended = tokio::time::Instant::now() + Duration::from_secs(20);
    while mdm.tokens.load(Ordering::Relaxed) == tokens {
        assert!(tokio::time::Instant::now() < ended, "no newer token: the old one ends where the volume did");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let mut after = open().await;
    assert_eq!(after.size, 2 * before.size);
    assert_eq!(after.write(before.size, b"beyond").await, 0);
    assert_eq!(before.ask(nbd::READ, 0, before.size, 1).await.error, nbd::EINVAL, "its size is what it was told");

    let mut map = cluster_map(&cluster);
    map.revision = 3;
    map.volumes.clear();
    mdm.map.send_replace(map);
    for mut client in [before, after] {
        let ended = tokio::time::timeout(Duration::from_secs(20), client.try_answer()).await;
        assert!(ended.unwrap().is_none(), "closed, with nothing left to answer");
    }
    shutdown.cancel();
    tokio::time::timeout(Duration::from_secs(10), running).await.unwrap().unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_another_process_took_over_ends_by_itself() {
    let cluster = FakeCluster::start(1, 1).await;
    let (mdm, endpoint) = start_mdm(&cluster).await;
    let dir = tempfile::tempdir().unwrap();
    let running = tokio::spawn(run(config(&endpoint, dir.path()), CancellationToken::new()));
    let mut registered = mdm.registered.subscribe();
    let request = registered.wait_for(Option::is_some).await.unwrap().clone().unwrap();
    mdm.registered.send_replace(Some(pb::RegisterRequest { process_id: vec![7; 16], ..request }));
    // Another epoch of the volume makes the client ask for a token.
    let mut map = cluster_map(&cluster);
    map.revision = 2;
    map.volumes[0].epoch = 2;
    mdm.map.send_replace(map);
    let error = tokio::time::timeout(Duration::from_secs(20), running).await.unwrap().unwrap().unwrap_err();
    assert!(matches!(error, SdcError::Superseded { .. }), "{error}");
    assert!(error.to_string().starts_with("SDC sdc1 runs elsewhere"), "{error}");
}

#[tokio::test]
async fn a_directory_of_another_cluster_is_refused() {
    let cluster = FakeCluster::start(1, 1).await;
    let (_mdm, endpoint) = start_mdm(&cluster).await;
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("data")).unwrap();
    let other = serde_json::json!({"version": 1, "cluster": ClusterId::from_bytes([1; 16]), "boot": 4});
    std::fs::write(dir.path().join("data/sdc.json"), other.to_string()).unwrap();
    let error = run(config(&endpoint, dir.path()), CancellationToken::new()).await.unwrap_err();
    assert!(matches!(error, SdcError::OtherCluster { .. }), "{error}");
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(&Endpoint::new("127.0.0.1", 1), dir.path());
    config.nbd = Endpoint::new("127.0.0.1", listener.local_addr().unwrap().port());
    let error = run(config, CancellationToken::new()).await.unwrap_err();
    assert!(error.to_string().starts_with("NBD port"), "{error}");
}
