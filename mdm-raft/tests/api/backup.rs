//! A backup of a cluster that serves, and a cluster made from it.

use std::path::Path;

use pflex_common::{
    map::{self, ClusterMap},
    mdm::{MdmClient, MdmError, Patience},
    net::Endpoint,
    shutdown::Shutdown,
};
use pflex_mdm::{
    backup::{BackupError, BackupReader},
    daemon::{self, MdmConfig, RestoreError},
};
use pflex_proto::{
    ids::{ClusterGeneration, DeviceId},
    pb::{
        BackupRequest, ClusterStatus, ClusterStatusRequest, ComponentKind, EndRecoveryRequest, FreezePgRequest,
        GroupReport, ListEventsRequest, ListPgsRequest, ListRequest, PromotePgRequest, RegisterRequest,
        RegisteredDevice, SnapshotRequest, UnfreezePgRequest, admin_client::AdminClient, cluster_client::ClusterClient,
        discovery_client::DiscoveryClient, insight_client::InsightClient, recovery_client::RecoveryClient,
    },
    status::Reason,
};

use super::{
    cluster::{Cluster, GIB, PATIENCE},
    sds::FakeSds,
};

async fn back_up(cluster: &Cluster, path: &Path) {
    let stream = cluster
        .client
        .read(PATIENCE, |connection| async move { ClusterClient::new(connection).backup(BackupRequest {}).await });
    let mut stream = stream.await.unwrap();
    let mut bytes = Vec::new();
    while let Some(part) = stream.message().await.unwrap() {
        bytes.extend(part.data);
    }
    std::fs::write(path, bytes).unwrap();
}

fn rows(path: &Path) -> Result<usize, BackupError> {
    let mut reader = BackupReader::new(std::fs::File::open(path).unwrap())?;
    let mut rows = 0;
    while let Some(item) = reader.next_rows()? {
        rows += item.rows.len();
    }
    Ok(rows)
}

async fn status(client: &MdmClient) -> ClusterStatus {
    let asked = client.read(PATIENCE, |connection| async move {
        ClusterClient::new(connection).status(ClusterStatusRequest { stale: false }).await
    });
    asked.await.unwrap()
}

async fn domains(client: &MdmClient) -> Vec<(u32, String)> {
    let asked = client.read(PATIENCE, |connection| async move {
        AdminClient::new(connection).list_domains(ListRequest::default()).await
    });
    asked.await.unwrap().domains.into_iter().map(|domain| (domain.id, domain.name)).collect()
}

/// What device `n` knows, as the map has it.
fn known(map: &ClusterMap, n: u32) -> Vec<GroupReport> {
    let mine = map.pgs.values().filter(|pg| pg.replicas.contains(&DeviceId(n)));
    mine.map(|pg| GroupReport {
        pg: Some(pg.pg.into()),
        cluster_generation: map.generation.get(),
        epoch: pg.epoch.get(),
        primary_device_id: pg.primary.map_or(0, DeviceId::get),
        in_sync: pg.in_sync.iter().copied().map(Into::into).collect(),
        replica_device_ids: pg.replicas.iter().map(|device| device.get()).collect(),
        volatility: pg.volatility.get(),
        served: false,
    })
    .collect()
}

async fn end_recovery(client: &MdmClient, without: &[&str]) -> Result<(), MdmError> {
    let ended = client.write(PATIENCE, |connection, request| {
        let without = without.iter().map(|name| (*name).to_owned()).collect();
        let request = EndRecoveryRequest { request: Some(request), without };
        async move { ClusterClient::new(connection).end_recovery(request).await }
    });
    ended.await.map(drop)
}

async fn pgs(client: &MdmClient) -> Vec<pflex_proto::pb::Pg> {
    let asked = client.read(PATIENCE, |connection| async move {
        AdminClient::new(connection).list_pgs(ListPgsRequest::default()).await
    });
    asked.await.unwrap().pgs
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_is_restored_from_a_backup_and_what_sdss_know_decides() {
    let cluster = Cluster::start(3).await;
    cluster.create_pool("p", 8).await;
    let first = FakeSds::create(&cluster, 1).await;
    let second = FakeSds::create(&cluster, 2).await;
    let volume = cluster.create_volume("v", GIB).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("backup");
    back_up(&cluster, &path).await;
    assert!(rows(&path).unwrap() > 10);
    // After the backup the second leaves every group, and the first goes on alone.
    let stale = known(&*second.sees(|map| map.pgs.len() == 8).await, 2);
    cluster.create_domain("lost").await.unwrap();
    second.die();
    let alone = first.sees(|map| !map.pgs.is_empty() && map.pgs.values().all(|pg| pg.in_sync.len() == 1)).await;
    let highest = alone.pgs.values().map(|pg| pg.epoch.get()).max().unwrap();
    let newest = known(&alone, 1);
    let before = status(&cluster.client).await;
    first.die();
    let joining = cluster.joining(7, vec![Endpoint::new("127.0.0.1", 1)]);
    let id = cluster.id;
    cluster.stop().await;

    let config = MdmConfig::try_from(joining.file.clone()).unwrap();
    let restored = daemon::restore(&config, &path).unwrap();
    assert_eq!(restored.cluster, id);
    let error = daemon::restore(&config, &path).unwrap_err();
    assert!(matches!(error, RestoreError::Store(_)), "there is a store now: {error}");

    let shutdown = Shutdown::new();
    let running = tokio::spawn(daemon::run(config, shutdown.clone()));
    let client = MdmClient::new("test", vec![joining.api()]);
    let after = status(&client).await;
    assert!(after.term > before.term + (1 << 40) - 1, "a leader of before is older: {}", after.term);
    assert!(after.revision >= before.revision.saturating_sub(100) + (1 << 40), "{}", after.revision);
    assert_eq!((after.health.as_str(), after.recovering), ("critical", true));
    assert!(after.cluster_generation > before.cluster_generation);
    assert_eq!(after.awaited_sds, ["s1", "s2"]);
    assert!(after.reasons.iter().any(|reason| reason.why.contains("0 of 2 SDSs have reported")), "{:?}", after.reasons);
    assert_eq!(after.pgs_unavailable, 8, "nothing is served");
    assert_eq!(domains(&client).await.iter().map(|(_, name)| name.as_str()).collect::<Vec<_>>(), ["d"]);

    // An SDS of before is heard only once it has said what it knew.
    let mute = client.read(PATIENCE, |connection| async move {
        let device = RegisteredDevice { uuid: vec![2; 16], incarnation: 2, capacity_bytes: GIB, ..Default::default() };
        let register = RegisterRequest {
            kind: ComponentKind::Sds.into(),
            name: "s2".into(),
            process_id: vec![5; 16],
            devices: vec![device],
            ..Default::default()
        };
        DiscoveryClient::new(connection).register(register).await
    });
    assert_eq!(mute.await.unwrap_err().reason(), Some(Reason::ReportFirst));
    client.set_generation(ClusterGeneration(after.cluster_generation));
    let second = FakeSds::come_back(&client, 2, 2, stale).await;
    let refused = end_recovery(&client, &[]).await.unwrap_err();
    assert_eq!(refused.reason(), Some(Reason::Precondition));
    assert!(refused.to_string().contains("sds s1 (devices 1) has not reported"), "{refused}");
    let seen = second.sees(|map| map.recovering).await;
    assert!(seen.pgs.values().all(|pg| pg.primary.is_none()), "nobody serves meanwhile");
    let first = FakeSds::come_back(&client, 1, 2, newest).await;
    assert!(status(&client).await.awaited_sds.is_empty());
    end_recovery(&client, &[]).await.unwrap();
    assert_eq!(end_recovery(&client, &[]).await.unwrap_err().reason(), Some(Reason::Precondition), "it is over");
    for pg in pgs(&client).await {
        let in_sync: Vec<_> = pg.in_sync.iter().map(|member| member.device_id).collect();
        assert_eq!((pg.primary_device_id, in_sync), (1, vec![1]), "2 lacks what was acknowledged since: {pg:?}");
        assert!(pg.epoch > highest);
    }
    let seen = first.sees(|map| !map.recovering).await;
    assert!(seen.pgs.values().all(|pg| pg.primary == Some(DeviceId(1))));

    // What is made now has no number that was given out before.
    let made = client.write(PATIENCE, |connection, request| {
        let message = pflex_proto::pb::CreateVolumeRequest {
            request: Some(request),
            name: "w".into(),
            size_bytes: GIB,
            ..Default::default()
        };
        async move { AdminClient::new(connection).create_volume(message).await }
    });
    assert!(made.await.unwrap().id > volume.id + (1 << 40) - 1);

    // Who has seen a later restore follows no MDM of this one.
    let ahead = MdmClient::new("ahead", vec![joining.api()]);
    ahead.set_generation(ClusterGeneration(after.cluster_generation + 1));
    let patience = Patience::within(std::time::Duration::from_millis(500));
    let refused = ahead.read(patience, |connection| async move {
        ClusterClient::new(connection).status(ClusterStatusRequest { stale: true }).await
    });
    let MdmError::NoLeader { last: Some(last), .. } = refused.await.unwrap_err() else { panic!("it was answered") };
    assert_eq!(pflex_proto::status::reason(&last), Some(Reason::OlderGeneration), "{last}");
    let watch = map::watch(ahead, ComponentKind::Sds, 1, shutdown.clone());
    shutdown.cancel();
    running.await.unwrap().unwrap();
    assert!(watch.borrow().is_none(), "no map of an older generation");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_copy_is_given_up_by_force_and_named() {
    let cluster = Cluster::start(1).await;
    cluster.create_pool("p", 8).await;
    let first = FakeSds::create(&cluster, 1).await;
    let second = FakeSds::create(&cluster, 2).await;
    cluster.create_volume("v", GIB).await.unwrap();
    // Each map may still be one of before there were groups.
    let copies = |map: &ClusterMap, copies| map.pgs.len() == 8 && map.pgs.values().all(|pg| pg.in_sync.len() == copies);
    first.sees(|map| copies(map, 2)).await;
    second.die();
    let alone = first.sees(|map| copies(map, 1)).await;
    first.activate(&cluster, &alone).await;
    let second = FakeSds::start(&cluster, 2, 2).await;
    first.die();
    second.sees(|map| !map.pgs.is_empty() && map.pgs.values().all(|pg| pg.primary.is_none())).await;

    let freeze = |device_id| {
        cluster.client.write(PATIENCE, move |connection, request| {
            let message = FreezePgRequest { request: Some(request), pool: "p".into(), index: 3, device_id };
            async move { RecoveryClient::new(connection).freeze_pg(message).await }
        })
    };
    let promote = || {
        cluster.client.write(PATIENCE, |connection, request| {
            let message = PromotePgRequest { request: Some(request), pool: "p".into(), index: 3, device_id: 2 };
            async move { RecoveryClient::new(connection).promote_pg(message).await }
        })
    };
    assert_eq!(promote().await.unwrap_err().reason(), Some(Reason::Precondition), "it is not frozen");
    assert_eq!(freeze(1).await.unwrap_err().reason(), Some(Reason::Precondition), "1 is away");
    let frozen = freeze(2).await.unwrap();
    assert_eq!((frozen.lost, frozen.volumes), (vec!["device 1 of sds s1".to_owned()], vec!["v".to_owned()]));
    let seen = status(&cluster.client).await;
    assert!(seen.reasons.iter().any(|reason| reason.why.contains("promoted by force")), "{:?}", seen.reasons);
    let map = second.sees(|map| map.pools.values().any(|pool| !pool.frozen.is_empty())).await;
    assert!(map.pgs.values().all(|pg| pg.primary.is_none()));
    let waits = promote().await.unwrap();
    assert!(waits.wait_ms > 60_000, "tokens of before live on: {}", waits.wait_ms);

    // The device comes back without its data: the process that had it open is certainly gone.
    let emptied = cluster.client.read(PATIENCE, |connection| async move {
        let device = RegisteredDevice {
            uuid: vec![1; 16],
            incarnation: 2,
            capacity_bytes: 100 * GIB,
            empty: true,
            ..Default::default()
        };
        let register = RegisterRequest {
            kind: ComponentKind::Sds.into(),
            name: "s1".into(),
            process_id: vec![9; 16],
            devices: vec![device],
            ..Default::default()
        };
        DiscoveryClient::new(connection).register(register).await
    });
    emptied.await.unwrap();
    let done = promote().await.unwrap();
    let pg = done.pg.unwrap();
    assert_eq!((done.wait_ms, pg.primary_device_id, pg.forced), (0, 2, true));
    let events = cluster.client.read(PATIENCE, |connection| async move {
        let request = ListEventsRequest { least_severity: "critical".into(), ..Default::default() };
        InsightClient::new(connection).events(request).await
    });
    let events = events.await.unwrap().events;
    let event = events.iter().find(|event| event.kind == "pg.promote").unwrap();
    assert!(event.what.contains("whatever only device 1 of sds s1 had is lost"), "{}", event.what);
    let unfrozen = cluster.client.write(PATIENCE, |connection, request| {
        let message = UnfreezePgRequest { request: Some(request), pool: "p".into(), index: 3 };
        async move { RecoveryClient::new(connection).unfreeze_pg(message).await }
    });
    assert_eq!(unfrozen.await.unwrap_err().reason(), Some(Reason::Precondition), "it is over");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_cluster_grows_again() {
    let cluster = Cluster::start(1).await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("backup");
    back_up(&cluster, &path).await;
    let mut restored = cluster.joining(2, vec![Endpoint::new("127.0.0.1", 1)]);
    cluster.take(1).stop().await;
    daemon::restore(&MdmConfig::try_from(restored.file.clone()).unwrap(), &path).unwrap();
    restored.start();
    cluster.client.learn_members(1 << 40, vec![restored.api()]).await;
    cluster.members.lock().unwrap().push(restored);
    cluster.create_domain("first").await.unwrap();
    for id in [3, 4] {
        let api = cluster.join(id);
        super::membership::until_it_answers(&api).await;
        cluster.add(id, &api).await.unwrap();
    }
    assert_eq!(cluster.voters().await, [2, 3, 4].into());
    cluster.create_domain("second").await.unwrap();
    let snapshot = cluster
        .client
        .read(PATIENCE, |connection| async move { ClusterClient::new(connection).snapshot(SnapshotRequest {}).await });
    let snapshot = snapshot.await.unwrap();
    assert!(snapshot.last_index > 1 << 40 && snapshot.bytes > 0, "{snapshot:?}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_backup_makes_no_store() {
    let cluster = Cluster::start(1).await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("backup");
    back_up(&cluster, &path).await;
    let whole = std::fs::read(&path).unwrap();
    let joining = cluster.joining(2, vec![Endpoint::new("127.0.0.1", 1)]);
    let config = MdmConfig::try_from(joining.file.clone()).unwrap();
    let refused = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        let error = daemon::restore(&config, &path).unwrap_err();
        assert!(!joining.file.dir.exists(), "{error}");
        error.to_string()
    };
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    assert!(refused(&flipped).contains("damaged at byte"));
    assert!(refused(&whole[..whole.len() / 2]).contains("cut short"));
    let mut newer = whole.clone();
    newer[8] = 9;
    assert!(refused(&newer).contains("format 9"));
    std::fs::write(&path, &whole).unwrap();
    let other = pflex_proto::ids::ClusterId(uuid::Uuid::from_u128(5));
    let strange = pflex_mdm::daemon::MdmConfigFile { cluster: other, ..joining.file.clone() };
    let error = daemon::restore(&MdmConfig::try_from(strange).unwrap(), &path).unwrap_err();
    assert!(matches!(error, RestoreError::OtherCluster { .. }), "{error}");
    cluster.stop().await;
}
