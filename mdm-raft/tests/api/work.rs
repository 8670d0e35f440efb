//! Rebuilds as people and programs see them: by themselves, from what happens to servers.

use pflex_common::mdm::MdmError;
use pflex_proto::{
    pb::{ListRebuildsRequest, ListSnapshotsRequest, RebuildRow, work_client::WorkClient},
    status::Reason,
};

use crate::{
    cluster::{Cluster, GIB, PATIENCE},
    sds::FakeSds,
};

async fn rebuilds(cluster: &Cluster, pool: &str) -> Result<Vec<RebuildRow>, MdmError> {
    let message = ListRebuildsRequest { pool: pool.to_owned(), ..Default::default() };
    let asked = cluster.client.read(PATIENCE, |connection| {
        let message = message.clone();
        async move { WorkClient::new(connection).list_rebuilds(message).await }
    });
    asked.await.map(|reply| reply.rebuilds)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_begins_with_the_loss_of_a_server_and_knows_what_it_waits_for() {
    let cluster = Cluster::start(3).await;
    cluster.create_pool("p", 8).await;
    let (one, two) = (FakeSds::create(&cluster, 1).await, FakeSds::create(&cluster, 2).await);
    cluster.create_volume("v", GIB).await.unwrap();
    assert!(rebuilds(&cluster, "").await.unwrap().is_empty());
    assert_eq!(rebuilds(&cluster, "q").await.unwrap_err().reason(), Some(Reason::NotFound));

    two.die();
    one.sees(|map| !map.pgs.is_empty() && map.pgs.values().all(|pg| pg.in_sync.len() == 1)).await;
    let [lost] = rebuilds(&cluster, "p").await.unwrap().try_into().unwrap();
    assert_eq!((lost.state.as_str(), lost.groups_left, lost.copies_left), ("waiting", 8, 8));
    assert_eq!(lost.waits_for, ["s2 is DOWN; no other fault domain has a device in service for 8 copies"]);
    assert!(lost.why.starts_with("sds s2: ") && lost.opened_revision > 0 && lost.finished_revision == 0, "{lost:?}");
    assert_eq!((lost.bytes_left, lost.eta_ms), (None, None));
    let status = cluster.status().await;
    assert_eq!((status.rebuilds_waiting, status.rebuilds_running, status.rebuild_groups_left), (1, 0, 8));

    // It is back, empty-handed for what was written meanwhile; the primary says how much it copies.
    let two = FakeSds::start(&cluster, 2, 2).await;
    two.sees(|map| map.devices.values().all(|device| device.alive)).await;
    one.says.send_modify(|says| says.resync = (64 << 20, 1 << 20));
    let mut row = rebuilds(&cluster, "p").await.unwrap().remove(0);
    while row.bytes_left != Some(64 << 20) {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        row = rebuilds(&cluster, "p").await.unwrap().remove(0);
    }
    assert_eq!((row.id, row.state.as_str(), row.waits_for.len()), (lost.id, "running", 0));

    // Another leader knows the rebuild, and after a beat its pace.
    cluster.stop_leader().await;
    let after = rebuilds(&cluster, "p").await.unwrap().remove(0);
    assert_eq!((after.id, after.groups_left, after.opened_at_ms), (lost.id, 8, lost.opened_at_ms));

    let snapshots = cluster.client.read(PATIENCE, |connection| async move {
        WorkClient::new(connection).list_snapshots(ListSnapshotsRequest { volume: "v".into(), stale: false }).await
    });
    assert!(snapshots.await.unwrap().snapshots.is_empty(), "nothing makes one yet");
    cluster.stop().await;
}
