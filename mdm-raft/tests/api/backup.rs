//! A backup of a cluster that serves, and a cluster made from it.

use std::path::Path;

use pflex_common::{mdm::MdmClient, net::Endpoint, shutdown::Shutdown};
use pflex_mdm::{
    backup::{BackupError, BackupReader},
    daemon::{self, MdmConfig, RestoreError},
};
use pflex_proto::{
    pb::{
        BackupRequest, ClusterStatus, ClusterStatusRequest, EndRecoveryRequest, ListRequest, SnapshotRequest,
        admin_client::AdminClient, cluster_client::ClusterClient,
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_is_restored_from_a_backup() {
    let cluster = Cluster::start(3).await;
    cluster.create_pool("p", 8).await;
    let first = FakeSds::create(&cluster, 1).await;
    let second = FakeSds::create(&cluster, 2).await;
    let volume = cluster.create_volume("v", GIB).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("backup");
    back_up(&cluster, &path).await;
    assert!(rows(&path).unwrap() > 10);
    cluster.create_domain("lost").await.unwrap();
    let before = status(&cluster.client).await;
    first.die();
    second.die();
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
    assert_eq!(after.health, "critical");
    assert!(after.reasons.iter().any(|reason| reason.why.contains("end-recovery")), "{:?}", after.reasons);
    assert_eq!(after.pgs_unavailable, 8, "nothing is served");
    assert_eq!(domains(&client).await.iter().map(|(_, name)| name.as_str()).collect::<Vec<_>>(), ["d"]);

    // Not while its SDSs are missing, unless that is said.
    let end = |force| {
        let client = client.clone();
        async move {
            let ended = client.write(PATIENCE, |connection, request| {
                let request = EndRecoveryRequest { request: Some(request), force };
                async move { ClusterClient::new(connection).end_recovery(request).await }
            });
            ended.await.map(drop)
        }
    };
    assert_eq!(end(false).await.unwrap_err().reason(), Some(Reason::Precondition));
    end(true).await.unwrap();
    assert_eq!(end(true).await.unwrap_err().reason(), Some(Reason::Precondition), "it is over");

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
    match made.await {
        Ok(made) => assert!(made.id > volume.id + (1 << 40) - 1),
        Err(error) => assert_eq!(error.reason(), Some(Reason::NoCapacity), "{error}"),
    }
    shutdown.cancel();
    running.await.unwrap().unwrap();
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
