//! Unmapping returns when every live SDS has confirmed (S20).

use pflex_proto::pb::{UnmapVolumeReply, UnmapVolumeRequest, admin_client::AdminClient};

use crate::{
    cluster::{Cluster, GIB, PATIENCE},
    sds::FakeSds,
};

async fn unmap(cluster: &Cluster) -> UnmapVolumeReply {
    let unmapped = cluster.client.write(PATIENCE, |connection, request| async move {
        let message = UnmapVolumeRequest { request: Some(request), volume: "v".into(), sdc: "c".into() };
        AdminClient::new(connection).unmap_volume(message).await
    });
    unmapped.await.unwrap()
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

    cluster.map_volume("v", "c").await;
    two.says.send_modify(|says| says.stuck = true);
    let reply = unmap(&cluster).await;
    assert_eq!(reply.waiting_for, ["s2"]);
    assert!(reply.pending_until_log_ms > reply.log_time_ms, "its tokens end by then at the latest");
    cluster.stop().await;
}
