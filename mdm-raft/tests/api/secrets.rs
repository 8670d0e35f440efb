//! Rotating the secret that signs tokens, while SDSs come late with their word and leaders change (S21).

use std::time::{Duration, Instant};

use pflex_common::mdm::MdmError;
use pflex_proto::{
    pb::{
        ClusterStatus, KeysRequest, RotateSecretReply, RotateSecretRequest, cluster_client::ClusterClient,
        tokens_client::TokensClient,
    },
    status::Reason,
};

use crate::{
    cluster::{Cluster, PATIENCE},
    sds::FakeSds,
};

impl Cluster {
    async fn rotate_secret(&self) -> Result<RotateSecretReply, MdmError> {
        let rotated = self.client.write(PATIENCE, |connection, request| async move {
            ClusterClient::new(connection).rotate_secret(RotateSecretRequest { request: Some(request) }).await
        });
        rotated.await
    }

    /// The keys of an SDS, as it is told them.
    async fn keys_of(&self, sds: &FakeSds) -> Vec<u32> {
        let asked = self.client.read(PATIENCE, |connection| {
            let request = KeysRequest { sds_id: sds.id, process_id: sds.process.clone() };
            async move { TokensClient::new(connection).keys(request).await }
        });
        asked.await.unwrap().keys.iter().map(|key| key.key_id).collect()
    }

    async fn until_keys(&self, wanted: &[(u32, &str)]) -> ClusterStatus {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let status = self.status().await;
            let keys: Vec<(u32, &str)> = status.keys.iter().map(|key| (key.key_id, key.state.as_str())).collect();
            if keys == wanted {
                return status;
            }
            assert!(Instant::now() < deadline, "{:?}, expected {wanted:?}", status.keys);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_generation_signs_once_every_live_sds_has_it_and_the_old_one_goes_later() {
    let cluster = Cluster::start(3).await;
    cluster.create_pool("p", 8).await;
    let one = FakeSds::create(&cluster, 1).await;
    let two = FakeSds::create(&cluster, 2).await;
    one.sees(|map| map.pgs.len() == 8).await;
    cluster.until_keys(&[(1, "signing")]).await;

    two.says.send_modify(|says| says.no_keys = true);
    assert_eq!(cluster.rotate_secret().await.unwrap().key_id, 2);
    let status = cluster.until_keys(&[(1, "signing"), (2, "next")]).await;
    assert!(status.keys[1].waiting_for.contains(&"s2".to_owned()), "{:?}", status.keys);
    assert_eq!(cluster.keys_of(&one).await, [1, 2], "both verify");
    assert_eq!(cluster.rotate_secret().await.unwrap_err().reason(), Some(Reason::Precondition));

    // What one leader was told, its successor was not: it does not take s1's word for s2's.
    let at = cluster.stop_leader().await;
    cluster.restart(at);
    let deadline = Instant::now() + Duration::from_secs(20);
    while cluster.status().await.keys[1].waiting_for != ["s2"] {
        assert!(Instant::now() < deadline, "s1 says again that it has it");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    two.says.send_modify(|says| says.no_keys = false);
    let status = cluster.until_keys(&[(1, "retiring"), (2, "signing")]).await;
    let until = status.keys[0].until_log_ms;
    assert!(until > status.log_time_ms, "its last token is still good");
    assert_eq!(cluster.rotate_secret().await.unwrap_err().reason(), Some(Reason::Precondition));

    // Log time moves on past the last token.
    one.says.send_modify(|says| says.log_time_ms = until + 1);
    cluster.until_keys(&[(2, "signing")]).await;
    assert_eq!(cluster.keys_of(&two).await, [2]);
    assert_eq!(cluster.rotate_secret().await.unwrap().key_id, 3);
    cluster.until_keys(&[(2, "retiring"), (3, "signing")]).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_sds_is_not_waited_for() {
    let cluster = Cluster::start(1).await;
    cluster.create_pool("p", 8).await;
    let one = FakeSds::create(&cluster, 1).await;
    let two = FakeSds::create(&cluster, 2).await;
    one.sees(|map| map.pgs.len() == 8).await;
    two.says.send_modify(|says| says.no_keys = true);
    cluster.rotate_secret().await.unwrap();
    cluster.until_keys(&[(1, "signing"), (2, "next")]).await;
    two.die();
    cluster.until_keys(&[(1, "retiring"), (2, "signing")]).await;
    cluster.stop().await;
}
