//! Verdicts on SDSs, from their streams to the map.

use std::time::{Duration, Instant};

use pflex_proto::pb::{Member, PgId, PgProposal, ReconfigureRequest, placement_client::PlacementClient};

use crate::{
    cluster::{Cluster, GIB, PATIENCE},
    sds::FakeSds,
};

async fn three(members: u64) -> (Cluster, [FakeSds; 3]) {
    let cluster = Cluster::start(members).await;
    cluster.create_pool("p", 8).await;
    let sds =
        [FakeSds::create(&cluster, 1).await, FakeSds::create(&cluster, 2).await, FakeSds::create(&cluster, 3).await];
    cluster.create_volume("v", GIB).await.unwrap();
    (cluster, sds)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_process_is_proven_dead_and_joins_again_as_a_new_life() {
    let (cluster, [one, two, _three]) = three(3).await;
    let (dead, stamp) = (one.id, *two.stamp.clone().wait_for(|stamp| stamp.0 > 0).await.unwrap());
    let killed = Instant::now();
    one.die();
    let map = two.sees(|map| map.sds.values().any(|sds| sds.id.get() == dead && !sds.alive)).await;
    let took = killed.elapsed();
    assert!(took < Duration::from_millis(2_500), "the port refused, yet it took {took:?}");
    assert!(map.pgs.values().all(|pg| pg.primary.is_some() && pg.in_sync.iter().all(|m| m.sds.get() != dead)));
    assert!(two.stamp.borrow().0 > stamp.0, "log time goes on");
    assert_eq!(cluster.status().await.health, "degraded");

    // It comes back, and the primary of a group it has a copy of takes it in.
    let one = FakeSds::start(&cluster, 1, 2).await;
    let map = two.sees(|map| map.sds.values().all(|sds| sds.alive)).await;
    let pg = map
        .pgs
        .values()
        .find(|pg| pg.in_sync.len() == 1 && pg.in_sync[0].sds.get() == two.id)
        .expect("two serves some of its groups alone");
    two.activate(&cluster, &map).await;
    let mut in_sync: Vec<Member> = pg.in_sync.iter().map(|m| member(m.device.get(), m.sds.get(), 1)).collect();
    in_sync.push(member(1, one.id, 2));
    let proposal = PgProposal {
        pg: Some(PgId { pool_id: pg.pg.pool.get(), index: pg.pg.index.get() }),
        expected_epoch: pg.epoch.get(),
        in_sync,
        primary_device_id: 0,
        activate: false,
    };
    let (process_id, sds_id) = (two.process.clone(), two.id);
    let message = ReconfigureRequest { request: None, sds_id, process_id, proposals: vec![proposal] };
    let reply = cluster.client.read(PATIENCE, |connection| {
        let message = message.clone();
        async move { PlacementClient::new(connection).reconfigure(message).await }
    });
    let results = reply.await.unwrap().results;
    assert!(results[0].accepted, "{}", results[0].why);
    let (id, epoch) = (pg.pg, pg.epoch);
    two.sees(|map| map.pgs[&id].in_sync.len() == 2 && map.pgs[&id].epoch > epoch).await;
    cluster.stop().await;
}

fn member(device_id: u32, sds_id: u32, incarnation: u64) -> Member {
    Member { device_id, sds_id, incarnation }
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_is_believed_after_three_seconds_and_the_same_process_returns() {
    let (cluster, [one, two, _three]) = three(1).await;
    two.sees(|map| map.sds.len() == 3 && map.sds.values().all(|sds| sds.alive)).await;
    let silent = Instant::now();
    one.says.send_modify(|says| says.silent = true);
    two.sees(|map| map.sds.values().any(|sds| sds.id.get() == one.id && !sds.alive)).await;
    let took = silent.elapsed();
    assert!(took > Duration::from_millis(2_500), "a connection that stands proves nothing: {took:?}");
    one.says.send_modify(|says| says.silent = false);
    two.sees(|map| map.sds.values().all(|sds| sds.alive)).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_device_leaves_and_its_sds_stays() {
    let (cluster, [one, two, _three]) = three(1).await;
    one.says.send_modify(|says| says.device_failed = true);
    let map = two
        .sees(|map| !map.pgs.is_empty() && map.pgs.values().all(|pg| pg.in_sync.iter().all(|m| m.sds.get() != one.id)))
        .await;
    assert!(map.sds.values().all(|sds| sds.alive));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_leader_takes_nobody_for_lost() {
    let (cluster, [one, _two, _three]) = three(3).await;
    let epochs = |map: &pflex_common::map::ClusterMap| map.pgs.values().map(|pg| pg.epoch).max();
    // The volume is younger than every placement: an older map may still be from before the third server had come.
    let before = epochs(&*one.sees(|map| map.volumes.len() == 1).await);
    let term = one.stamp.clone().wait_for(|stamp| stamp.1 > 0).await.unwrap().1;
    cluster.stop_leader().await;
    // Well past the grace: a leader that judged by what it had not heard would have judged by then.
    let deadline = Instant::now() + Duration::from_secs(4);
    let mut stamp = one.stamp.clone();
    while Instant::now() < deadline {
        stamp.changed().await.unwrap();
    }
    assert!(stamp.borrow().1 > term, "another leader stamps now");
    assert_eq!(epochs(&*one.sees(|_| true).await), before, "no group was moved");
    cluster.stop().await;
}
