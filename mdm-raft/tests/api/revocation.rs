//! Unmapping, and mapping read-only what was read-write, returns when every live SDS has confirmed (S20).

use pflex_proto::pb::{Access, MapVolumeRequest, MappingReply, UnmapVolumeRequest, admin_client::AdminClient};

use crate::{
    cluster::{Cluster, GIB, PATIENCE},
    sds::FakeSds,
};

async fn unmap(cluster: &Cluster) -> MappingReply {
    let unmapped = cluster.client.write(PATIENCE, |connection, request| async move {
        let message = UnmapVolumeRequest { request: Some(request), volume: "v".into(), sdc: "c".into() };
        AdminClient::new(connection).unmap_volume(message).await
    });
    unmapped.await.unwrap()
}

async fn map(cluster: &Cluster, access: Access) -> MappingReply {
    let mapped = cluster.client.write(PATIENCE, |connection, request| async move {
        let access = access.into();
        let (volume, sdc) = ("v".into(), "c".into());
        let message = MapVolumeRequest { request: Some(request), volume, sdc, access, ..Default::default() };
        AdminClient::new(connection).map_volume(message).await
    });
    mapped.await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn unmapping_waits_for_live_sdss_and_names_those_that_do_not_confirm() {
    let cluster = Cluster::start(1).await;
    cluster.create_pool("p", 8).await;
    let one = FakeSds::create(&cluster, 1).await;
    let two = FakeSds::create(&cluster, 2).await;
    cluster.create_volume("v", GIB).await.unwrap();
    cluster.create_sdc("c").await;
    let mapped = cluster.map_volume("v", "c").await;
    one.sees(|map| map.volume_named("v").is_some()).await;
    two.sees(|map| map.volume_named("v").is_some()).await;

    let reply = unmap(&cluster).await;
    assert_eq!((reply.pending_until_log_ms, reply.waiting_for.len()), (0, 0), "all confirmed");
    assert!(reply.volume.unwrap().epoch > mapped.epoch);

    let writer = map(&cluster, Access::ReadWrite).await;
    two.says.send_modify(|says| says.stuck = true);
    let reply = unmap(&cluster).await;
    assert_eq!(reply.waiting_for, ["s2"]);
    assert!(reply.pending_until_log_ms > reply.log_time_ms, "its tokens end by then at the latest");

    assert_eq!(writer.waiting_for.len(), 0, "nothing is revoked by a new mapping");
    map(&cluster, Access::ReadWrite).await;
    let reader = map(&cluster, Access::ReadOnly).await;
    assert_eq!(reader.waiting_for, ["s2"], "it may still admit writes");
    assert!(reader.pending_until_log_ms > reader.log_time_ms);
    two.says.send_modify(|says| says.stuck = false);
    map(&cluster, Access::ReadWrite).await;
    let reader = map(&cluster, Access::ReadOnly).await;
    assert_eq!((reader.pending_until_log_ms, reader.waiting_for.len()), (0, 0), "all confirmed");
    assert_eq!(map(&cluster, Access::ReadWrite).await.pending_until_log_ms, 0);
    cluster.stop().await;
}
