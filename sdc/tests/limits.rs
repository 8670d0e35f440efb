//! The limits of a mapping in the whole SDC process: set and changed by the map, counted at the management port.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "engine/fake_mdm.rs"]
mod fake_mdm;
#[path = "engine/fake_sds.rs"]
mod fake_sds;
#[path = "nbd/client.rs"]
mod nbd;

use std::time::{Duration, Instant};

use fake_mdm::{cluster_map, config, start_mdm};
use fake_sds::FakeCluster;
use pflex_common::net::Endpoint;
use pflex_proto::pb;
use pflex_sdc::daemon::run;
use tokio_util::sync::CancellationToken;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_hold_are_counted_and_change_with_the_map_while_requests_wait() {
    let cluster = FakeCluster::start(1, 1).await;
    let (mdm, endpoint) = start_mdm(&cluster).await;
    let limit = |revision, iops| {
        let mut map = cluster_map(&cluster);
        map.revision = revision;
        map.volumes[0].mappings[0].iops_limit = iops;
        mdm.map.send_replace(map);
    };
    limit(1, 20);
    let dir = tempfile::tempdir().unwrap();
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(run(config(&endpoint, dir.path()), shutdown.clone()));
    let registered = mdm.registered.subscribe().wait_for(Option::is_some).await.unwrap().clone().unwrap();
    let addresses = registered.addresses.unwrap();
    let stream = tokio::net::TcpStream::connect(&addresses.nbd).await.unwrap();
    let mut client = nbd::Client::open(stream, "demo", nbd::Form::Structured).await;
    let management: Endpoint = addresses.management.parse().unwrap();
    let stats = async || {
        let mut client = pb::sdc_management_client::SdcManagementClient::new(management.channel());
        let stats = client.stats(pb::SdcStatsRequest {}).await.unwrap().into_inner();
        stats.volumes.into_iter().find(|volume| volume.name == "demo").unwrap()
    };

    let began = Instant::now();
    for nth in 0..22 {
        assert_eq!(client.write(nth * 4096, &[1; 4096]).await, 0);
    }
    // Three at once, then one each 50 ms.
    assert!(began.elapsed() > Duration::from_millis(850), "{:?}", began.elapsed());
    let seen = stats().await;
    assert_eq!((seen.iops_limit, seen.bandwidth_limit, seen.writes, seen.errors), (20, 0, 22, 0));
    assert!(seen.throttled >= 15 && seen.throttled_us > 500_000, "{seen:?}");
    let writes = seen.latencies.iter().find(|latency| latency.of == "write").unwrap();
    assert_eq!(writes.buckets.iter().map(|bucket| bucket.count).sum::<u64>(), 22);
    assert!(writes.sum_us >= seen.throttled_us, "with the time they were held back");

    // One a second for a thousand requests; lifted, they are done at once.
    limit(2, 1);
    while stats().await.iops_limit != 1 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    for nth in 0..200 {
        client.send(nbd::READ, 0, nth * 4096, 4096, &[]).await;
    }
    while stats().await.waiting < 190 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    limit(3, 0);
    for _ in 0..200 {
        let answer = tokio::time::timeout(Duration::from_secs(60), client.try_answer()).await.unwrap();
        assert_eq!(answer.unwrap().1.error, 0);
    }
    let seen = stats().await;
    assert_eq!((seen.waiting, seen.iops_limit, seen.reads), (0, 0, 200));

    // What is held back when the volume is unmapped ends with the mapping.
    limit(4, 1);
    while stats().await.iops_limit != 1 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    for nth in 0..50 {
        client.send(nbd::READ, 0, nth * 4096, 4096, &[]).await;
    }
    let mut map = cluster_map(&cluster);
    map.revision = 5;
    map.volumes.clear();
    mdm.map.send_replace(map);
    let ended = async { while client.try_answer().await.is_some() {} };
    tokio::time::timeout(Duration::from_secs(20), ended).await.unwrap();
    shutdown.cancel();
    running.await.unwrap().unwrap();
}
