//! Log time after an outage of all MDMs: SDSs have counted on (S20).

use std::time::Duration;

use pflex_common::mdm::MdmError;
use pflex_proto::pb::{
    ComponentKind, IssueTokensReply, IssueTokensRequest, RegisterRequest, discovery_client::DiscoveryClient,
    tokens_client::TokensClient,
};

use crate::{
    cluster::{Cluster, GIB, PATIENCE},
    sds::FakeSds,
};

/// Far above what a test takes, so that only the beat explains it.
const OUTAGE_MS: u64 = 600_000;

async fn issue(cluster: &Cluster, sdc: u32, volume: u64) -> Result<IssueTokensReply, MdmError> {
    let issued = cluster.client.write(PATIENCE, |connection, request| async move {
        let message = IssueTokensRequest {
            request: Some(request),
            sdc_id: sdc,
            process_id: vec![9; 16],
            volume_ids: vec![volume],
            plans: Vec::new(),
        };
        TokensClient::new(connection).issue(message).await
    });
    issued.await
}

#[tokio::test(flavor = "multi_thread")]
async fn new_tokens_are_not_expired_where_log_time_ran_on() {
    let cluster = Cluster::start(3).await;
    cluster.create_pool("p", 8).await;
    let one = FakeSds::create(&cluster, 1).await;
    let _two = FakeSds::create(&cluster, 2).await;
    let volume = cluster.create_volume("v", GIB).await.unwrap().id;
    let sdc = cluster.create_sdc("c").await;
    cluster.map_volume("v", "c").await;
    let registered = cluster.client.read(PATIENCE, |connection| async move {
        let message = RegisterRequest {
            kind: ComponentKind::Sdc.into(),
            name: "c".into(),
            process_id: vec![9; 16],
            ..Default::default()
        };
        DiscoveryClient::new(connection).register(message).await
    });
    registered.await.unwrap();

    let mut stamp = one.stamp.clone();
    let ahead = stamp.wait_for(|stamp| stamp.0 > 0).await.unwrap().0 + OUTAGE_MS;
    one.says.send_modify(|says| says.log_time_ms = ahead);
    let caught_up = tokio::time::timeout(Duration::from_secs(20), stamp.wait_for(|stamp| stamp.0 >= ahead)).await;
    caught_up.expect("a beat is answered with a time that is not behind it").unwrap();
    let tokens = issue(&cluster, sdc, volume).await.unwrap().tokens;
    assert!(tokens[0].expires_log_ms > ahead, "{} is expired at {ahead}", tokens[0].expires_log_ms);

    // Nor is it lost with the leader: an entry has carried it to the others.
    cluster.stop_leader().await;
    one.says.send_modify(|says| says.log_time_ms = 0);
    let tokens = issue(&cluster, sdc, volume).await.unwrap().tokens;
    assert!(tokens[0].expires_log_ms > ahead);

    // A number that no outage explains changes nothing.
    one.says.send_modify(|says| says.log_time_ms = u64::MAX);
    stamp.changed().await.unwrap();
    stamp.changed().await.unwrap();
    assert!(stamp.borrow_and_update().0 < ahead + OUTAGE_MS);
    cluster.stop().await;
}
