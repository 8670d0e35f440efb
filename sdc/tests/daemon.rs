//! The whole SDC process against a fake MDM and fake SDSs: from its configuration to bytes read back over NBD.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "engine/fake_mdm.rs"]
mod fake_mdm;
#[path = "engine/fake_sds.rs"]
mod fake_sds;
#[path = "nbd/client.rs"]
mod nbd;

use std::sync::atomic::Ordering;
use std::time::Duration;

use fake_mdm::{SDC, cluster_map, config, start_mdm, volume};
use fake_sds::{FakeCluster, POOL};
use pflex_common::net::Endpoint;
use pflex_proto::ids::ClusterId;
use pflex_proto::pb;
use pflex_sdc::daemon::{SdcError, run};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

async fn client(program: &str, arguments: &[&str]) -> Result<String, String> {
    let started = tokio::process::Command::new(program).args(arguments).kill_on_drop(true).output().await;
    let output = started.unwrap_or_else(|error| panic!("{program} cannot be run ({error}): `make deps` installs it"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let printed = text(&output.stdout);
    if output.status.success() { Ok(printed) } else { Err(printed + &text(&output.stderr)) }
}

/// An SDC that has registered, and the MDM it has registered with.
struct Started {
    mdm: fake_mdm::FakeMdm,
    dir: tempfile::TempDir,
    registered: pb::RegisterRequest,
    shutdown: CancellationToken,
    running: tokio::task::JoinHandle<Result<(), SdcError>>,
}

impl Started {
    async fn on(cluster: &FakeCluster) -> Self {
        let (mdm, endpoint) = start_mdm(cluster).await;
        let dir = tempfile::tempdir().unwrap();
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(run(config(&endpoint, dir.path()), shutdown.clone()));
        let mut registrations = mdm.registered.subscribe();
        let registered = registrations.wait_for(Option::is_some).await.unwrap().clone().unwrap();
        Self { mdm, dir, registered, shutdown, running }
    }

    /// Where it serves.
    fn nbd(&self) -> String {
        self.registered.addresses.clone().unwrap().nbd
    }

    /// It ends in good order; what is left of its directory.
    async fn end(self) -> tempfile::TempDir {
        self.shutdown.cancel();
        tokio::time::timeout(Duration::from_secs(10), self.running).await.unwrap().unwrap().unwrap();
        self.dir
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_registration_to_bytes_over_nbd_and_a_clean_end() {
    let cluster = FakeCluster::start(2, 1).await;
    let sdc = Started::on(&cluster).await;
    let (request, dir, mdm) = (&sdc.registered, &sdc.dir, &sdc.mdm);
    let addresses = request.addresses.clone().unwrap();
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
    client("nbdinfo", &[&format!("{nbd}/slow")]).await.expect("a volume of a writeback pool is served like any");

    let management: Endpoint = addresses.management.parse().unwrap();
    let mut stats = pb::sdc_management_client::SdcManagementClient::new(management.channel());
    let mut held = tokio::net::TcpStream::connect(&addresses.nbd).await.unwrap();
    // Greeted, so it is being served.
    tokio::io::AsyncReadExt::read_exact(&mut held, &mut [0; 8]).await.unwrap();
    let stats = stats.stats(pb::SdcStatsRequest {}).await.unwrap().into_inner();
    drop(held);
    assert!(stats.connections >= 1, "the connection that is open");
    assert_eq!(stats.sdc_id, SDC);
    // In no order.
    let row = stats.volumes.iter().find(|row| row.name == "demo").expect("it is mapped");
    assert!(row.written_bytes == 3 << 20 && row.errors == 0);

    // A new volume appears, and one that is unmapped goes.
    let mut map = cluster_map(&cluster);
    map.revision = 2;
    map.volumes = vec![volume(11, "fresh", POOL.0)];
    mdm.map.send_replace(map);
    client("nbdinfo", &[&format!("{nbd}/fresh")]).await.unwrap();
    assert!(client("nbdinfo", &[&demo]).await.is_err());

    let dir = sdc.end().await;
    assert!(!dir.path().join("nbd.sock").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn growth_is_seen_on_reconnect_and_an_unmapped_volume_ends_its_connections() {
    let cluster = FakeCluster::start(2, 1).await;
    let sdc = Started::on(&cluster).await;
    let (mdm, address) = (&sdc.mdm, sdc.nbd());
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
    sdc.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_snapshot_of_a_volume_is_err_unknown_with_its_reason_and_haggling_goes_on() {
    let cluster = FakeCluster::start(1, 1).await;
    let sdc = Started::on(&cluster).await;
    let address = sdc.nbd();
    let stream = async || tokio::net::TcpStream::connect(&address).await.unwrap();
    let mut client = nbd::Client::greet(stream().await, 3).await;
    for (name, why) in [
        ("demo@monday", "volume demo has no snapshot \"monday\""),
        ("demo@", "volume demo has no snapshot \"\""),
        ("demo@a@b", "volume demo has no snapshot \"a@b\""),
        ("nothing@monday", "no export is named \"nothing@monday\""),
        ("@monday", "no export is named \"@monday\""),
    ] {
        for kind in [nbd::OPT_INFO, nbd::OPT_GO] {
            let told = client.option(kind, &nbd::export(name, &[])).await;
            assert_eq!(told, [(0x8000_0006, why.as_bytes().to_vec())], "ERR_UNKNOWN for {name}");
        }
        let told = client.option(nbd::OPT_LIST_META_CONTEXT, &nbd::meta(name, &[])).await;
        assert_eq!(told, [(0x8000_0006, why.as_bytes().to_vec())]);
    }
    client.go("demo").await.unwrap();
    assert_eq!(client.write(0, b"the volume itself is served").await, 0);
    // The old way to open an export has no error reply.
    let mut old = nbd::Client::greet(stream().await, 3).await;
    old.send_option(nbd::OPT_EXPORT_NAME, b"demo@monday").await;
    assert!(tokio::io::AsyncReadExt::read_u8(&mut old.stream).await.is_err(), "closed");
    drop((client, old));
    sdc.end().await;
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
