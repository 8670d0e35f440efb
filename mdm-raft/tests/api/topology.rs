//! Fault sets, new names, devices, and the plan of a rebalance, through the client port.

use pflex_common::mdm::MdmError;
use pflex_proto::{
    pb::{
        CreateFaultSetRequest, DeleteRequest, ListRequest, PlanRebalanceReply, PlanRebalanceRequest,
        RemoveDeviceRequest, RenameKind, RenameObjectRequest, topology_client::TopologyClient,
    },
    status::Reason,
};

use crate::{
    cluster::{Cluster, GIB, PATIENCE},
    sds::FakeSds,
};

async fn plan(cluster: &Cluster, pool: &str) -> Result<PlanRebalanceReply, MdmError> {
    let message = PlanRebalanceRequest { stale: false, pool: pool.to_owned() };
    let asked = cluster.client.read(PATIENCE, |connection| {
        let message = message.clone();
        async move { TopologyClient::new(connection).plan_rebalance(message).await }
    });
    asked.await
}

async fn rename(cluster: &Cluster, kind: RenameKind, name: &str, new_name: &str) -> Result<(), MdmError> {
    let renamed = cluster.client.write(PATIENCE, |connection, request| {
        let (name, new_name) = (name.to_owned(), new_name.to_owned());
        let message = RenameObjectRequest { request: Some(request), kind: kind.into(), name, new_name };
        async move { TopologyClient::new(connection).rename(message).await }
    });
    renamed.await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_shows_what_a_new_server_would_take_and_moves_nothing() {
    let cluster = Cluster::start(1).await;
    cluster.create_pool("p", 8).await;
    let two = [FakeSds::create(&cluster, 1).await, FakeSds::create(&cluster, 2).await];
    cluster.create_volume("v", GIB).await.unwrap();
    let even = plan(&cluster, "p").await.unwrap();
    assert_eq!((even.moves.len(), even.least, even.copies), (0, 0, 16));
    let three = FakeSds::create(&cluster, 3).await;
    let grown = plan(&cluster, "p").await.unwrap();
    assert_eq!((grown.moves.len(), grown.least), (5, 5), "16 copies on 3 devices");
    assert_eq!((grown.imbalance_before_permille, grown.imbalance_after_permille), (1_000, 0));
    assert_eq!(grown.bytes_per_copy, None, "nobody has reported yet");
    let map = three.sees(|map| map.sds.len() == 3).await;
    assert!(map.pgs.values().all(|pg| pg.in_sync.iter().all(|member| member.sds.get() != three.id)), "nothing moved");
    assert_eq!(plan(&cluster, "q").await.unwrap_err().reason(), Some(Reason::NotFound));
    drop(two);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fault_sets_names_and_devices_are_changed_or_refused() {
    let cluster = Cluster::start(1).await;
    let created = cluster.client.write(PATIENCE, |connection, request| {
        let message =
            CreateFaultSetRequest { request: Some(request), name: "rack".into(), ..CreateFaultSetRequest::default() };
        async move { TopologyClient::new(connection).create_fault_set(message).await }
    });
    assert_eq!(created.await.unwrap().name, "rack");
    rename(&cluster, RenameKind::FaultSet, "rack", "rack1").await.unwrap();
    let listed = cluster.client.read(PATIENCE, |connection| async move {
        TopologyClient::new(connection).list_fault_sets(ListRequest { name: "rack1".into(), stale: false }).await
    });
    assert_eq!(listed.await.unwrap().fault_sets.len(), 1);
    rename(&cluster, RenameKind::Domain, "d", "e").await.unwrap();
    let deleted = cluster.client.write(PATIENCE, |connection, request| {
        let message = DeleteRequest { request: Some(request), name: "rack1".into() };
        async move { TopologyClient::new(connection).delete_fault_set(message).await }
    });
    deleted.await.unwrap();

    cluster.create_pool("p", 8).await;
    let sds = [FakeSds::create(&cluster, 1).await, FakeSds::create(&cluster, 2).await];
    rename(&cluster, RenameKind::Sds, "s1", "left").await.unwrap();
    let again = FakeSds::start(&cluster, 1, 2).await;
    assert_eq!(again.id, sds[0].id, "its process knows the old name only");
    assert_eq!(
        rename(&cluster, RenameKind::Sds, "s2", "left").await.unwrap_err().reason(),
        Some(Reason::AlreadyExists)
    );
    let removed = cluster.client.write(PATIENCE, |connection, request| {
        let message = RemoveDeviceRequest { request: Some(request), device_id: 1 };
        async move { TopologyClient::new(connection).remove_device(message).await }
    });
    assert_eq!(removed.await.unwrap_err().reason(), Some(Reason::InUse));
    cluster.stop().await;
}
