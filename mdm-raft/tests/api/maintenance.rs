//! Maintenance of an SDS through the client port, with another leader on the way.

use pflex_common::{map::ClusterMap, mdm::MdmError};
use pflex_proto::{
    pb::{
        ListRebuildsRequest, ListRequest, MaintenanceRequest, Sds, admin_client::AdminClient,
        topology_client::TopologyClient, work_client::WorkClient,
    },
    status::Reason,
};

use crate::{
    cluster::{Cluster, GIB, PATIENCE},
    sds::FakeSds,
};

async fn maintain(cluster: &Cluster, sds: &str, enter: bool) -> Result<(), MdmError> {
    let said = cluster.client.write(PATIENCE, |connection, request| {
        let message = MaintenanceRequest { request: Some(request), sds: sds.to_owned(), protected: false };
        async move {
            let mut client = TopologyClient::new(connection);
            if enter { client.enter_maintenance(message).await } else { client.exit_maintenance(message).await }
        }
    });
    said.await.map(drop)
}

async fn listed(cluster: &Cluster, name: &str) -> Sds {
    let message = ListRequest { name: name.to_owned(), stale: false };
    let asked = cluster.client.read(PATIENCE, |connection| {
        let message = message.clone();
        async move { AdminClient::new(connection).list_sds(message).await }
    });
    asked.await.unwrap().sds.remove(0).sds.unwrap()
}

fn leads(map: &ClusterMap, sds: u32) -> bool {
    map.pgs.values().any(|pg| pg.primary.is_some_and(|device| map.devices[&device].sds.get() == sds))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_stopped_under_one_leader_and_back_under_another() {
    let cluster = Cluster::start(3).await;
    cluster.create_pool("p", 8).await;
    let (one, two) = (FakeSds::create(&cluster, 1).await, FakeSds::create(&cluster, 2).await);
    cluster.create_volume("v", GIB).await.unwrap();
    let id = two.id;
    one.sees(|map| leads(map, id)).await;
    assert_eq!(maintain(&cluster, "s9", true).await.unwrap_err().reason(), Some(Reason::NotFound));
    assert_eq!(maintain(&cluster, "s2", false).await.unwrap_err().reason(), Some(Reason::Precondition));

    maintain(&cluster, "s2", true).await.unwrap();
    let map = one.sees(|map| !leads(map, id)).await;
    assert!(map.pgs.values().all(|pg| pg.in_sync.len() == 2), "its copies stay");
    assert_eq!(maintain(&cluster, "s1", true).await.unwrap_err().reason(), Some(Reason::Precondition));
    assert!(listed(&cluster, "s2").await.maintenance_since_ms.is_some_and(|at| at > 0));
    assert_eq!(cluster.status().await.health, "ok");

    cluster.stop_leader().await;
    two.die();
    one.sees(|map| !map.pgs.is_empty() && map.pgs.values().all(|pg| pg.in_sync.len() == 1)).await;
    let rebuilds = cluster.client.read(PATIENCE, |connection| async move {
        WorkClient::new(connection).list_rebuilds(ListRebuildsRequest::default()).await
    });
    assert_eq!(rebuilds.await.unwrap().rebuilds[0].waits_for, ["s2 is in maintenance"]);
    let status = cluster.status().await;
    assert!(status.reasons.iter().any(|r| r.object == "sds s2" && r.why.starts_with("in maintenance: ")), "{status:?}");

    let two = FakeSds::start(&cluster, 2, 2).await;
    two.sees(|map| map.devices.values().all(|device| device.alive)).await;
    maintain(&cluster, "s2", false).await.unwrap();
    assert_eq!(listed(&cluster, "s2").await.maintenance_since_ms, None);
    cluster.stop().await;
}
