//! Copies of a lost server get new homes by themselves, also when the leader changes on the way.

use std::collections::BTreeSet;

use pflex_common::map::ClusterMap;
use pflex_proto::{
    ids::DeviceId,
    pb::{
        ChangeSettingsRequest, ListRebuildsRequest, Member, PgId, PgProposal, RebuildRow, SettingChange,
        insight_client::InsightClient, work_client::WorkClient,
    },
};

use crate::{
    cluster::{Cluster, GIB, PATIENCE},
    sds::FakeSds,
};

const HOUR_MS: u64 = 3_600_000;

async fn four(members: u64) -> (Cluster, Vec<FakeSds>) {
    let cluster = Cluster::start(members).await;
    // Leads that even out, and copies, begin once devices have stayed for a while, and raise epochs: not while a test that
    // counts them and proposes for those that it has seen takes its time.
    set(&cluster, "lead.return_ms", HOUR_MS).await;
    cluster.create_pool("p", 16).await;
    let mut sds = Vec::new();
    for n in 1..=4 {
        sds.push(FakeSds::create(&cluster, n).await);
    }
    cluster.create_volume("v", GIB).await.unwrap();
    (cluster, sds)
}

async fn set_delay(cluster: &Cluster, value: u64) {
    set(cluster, "rebuild.delay_ms", value).await;
}

async fn set(cluster: &Cluster, key: &str, value: u64) {
    let changed = cluster.client.write(PATIENCE, |connection, request| {
        let changes = vec![SettingChange { key: key.into(), value, to_default: false }];
        let message = ChangeSettingsRequest { request: Some(request), changes };
        async move { InsightClient::new(connection).change_settings(message).await }
    });
    changed.await.unwrap();
}

async fn rebuilds(cluster: &Cluster) -> Vec<RebuildRow> {
    let asked = cluster.client.read(PATIENCE, |connection| async move {
        WorkClient::new(connection).list_rebuilds(ListRebuildsRequest::default()).await
    });
    asked.await.unwrap().rebuilds
}

/// The primaries among `sds` say that their joiners have everything; how many groups did.
async fn filled(cluster: &Cluster, sds: &[FakeSds], map: &ClusterMap) -> usize {
    let mut done = 0;
    for server in sds {
        server.activate(cluster, map).await;
        let mut proposals = Vec::new();
        for pg in map.pgs.values() {
            let leads = pg.primary.is_some_and(|device| map.devices[&device].sds.get() == server.id);
            let joiners: Vec<&DeviceId> =
                pg.replicas.iter().filter(|device| pg.in_sync.iter().all(|member| member.device != **device)).collect();
            if !leads || joiners.is_empty() || !joiners.iter().all(|device| map.devices[*device].alive) {
                continue;
            }
            let mut in_sync: Vec<Member> =
                pg.in_sync.iter().map(|m| member(m.device.get(), m.sds.get(), m.incarnation.get())).collect();
            in_sync.extend(joiners.iter().map(|device| {
                let device = &map.devices[*device];
                member(device.id.get(), device.sds.get(), device.incarnation.get())
            }));
            proposals.push(PgProposal {
                pg: Some(PgId { pool_id: pg.pg.pool.get(), index: pg.pg.index.get() }),
                expected_epoch: pg.epoch.get(),
                in_sync,
                primary_device_id: 0,
                activate: false,
            });
        }
        done += proposals.len();
        server.propose(cluster, proposals).await;
    }
    done
}

fn member(device_id: u32, sds_id: u32, incarnation: u64) -> Member {
    Member { device_id, sds_id, incarnation }
}

fn holds(map: &ClusterMap, sds: u32) -> bool {
    map.pgs.values().any(|pg| pg.replicas.iter().any(|device| map.devices[device].sds.get() == sds))
}

/// The last server dies, and nothing moves for an hour; its number, and the rebuild that waits.
async fn one_dies(cluster: &Cluster, sds: &mut Vec<FakeSds>) -> (u32, RebuildRow) {
    set_delay(cluster, HOUR_MS).await;
    let dead = sds.remove(3);
    let gone = dead.id;
    dead.die();
    let map = sds[0].sees(|map| map.pgs.values().any(|pg| pg.in_sync.len() == 1)).await;
    let [row] = rebuilds(cluster).await.try_into().unwrap();
    // S11: until its primary answers without them, a copy on the dead server keeps its place.
    for server in sds.iter() {
        server.activate(cluster, &map).await;
    }
    (gone, row)
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_of_a_dead_server_are_filled_elsewhere_and_the_rebuild_is_done() {
    let (cluster, mut sds) = four(1).await;
    let (gone, row) = one_dies(&cluster, &mut sds).await;
    assert_eq!(row.state, "waiting");
    assert!(row.waits_for[0].starts_with("s4 is DOWN; new homes once rebuild.delay_ms has passed ("), "{row:?}");

    set_delay(&cluster, 200).await;
    let map = sds[0].sees(|map| !holds(map, gone)).await;
    for pg in map.pgs.values() {
        assert_eq!(pg.replicas.iter().collect::<BTreeSet<_>>().len(), 2, "{pg:?}");
        assert!(pg.primary.is_some());
    }
    let [running] = rebuilds(&cluster).await.try_into().unwrap();
    assert_eq!((running.id, running.state.as_str(), running.groups_left), (row.id, "running", row.groups_left));
    assert_eq!(filled(&cluster, &sds, &map).await as u64, row.groups_left);
    let [done] = rebuilds(&cluster).await.try_into().unwrap();
    assert_eq!((done.id, done.state.as_str(), done.groups_done), (row.id, "done", row.groups_left));

    // It is back, and has no part in anything.
    let back = FakeSds::start(&cluster, 4, 2).await;
    // A watcher may first be told of a map from before its registration.
    let here = |map: &ClusterMap| map.devices.values().any(|device| device.alive && device.incarnation.get() == 2);
    let map = back.sees(here).await;
    assert!(!holds(&map, gone) && map.pgs.values().all(|pg| pg.in_sync.len() == 2), "{:?}", map.pgs);
    assert_eq!(rebuilds(&cluster).await.len(), 1, "nothing is missing");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_leader_goes_on_where_the_last_one_stopped() {
    let (cluster, mut sds) = four(3).await;
    let (gone, row) = one_dies(&cluster, &mut sds).await;

    // Lost under one leader, moved by the next, filled under a third.
    let stopped = cluster.stop_leader().await;
    set_delay(&cluster, 200).await;
    let map = sds[0].sees(|map| !holds(map, gone)).await;
    cluster.restart(stopped);
    cluster.stop_leader().await;
    let epochs: Vec<_> = map.pgs.values().map(|pg| pg.epoch).collect();
    assert_eq!(filled(&cluster, &sds, &map).await as u64, row.groups_left);
    let map = sds[0].sees(|map| !map.pgs.is_empty() && map.pgs.values().all(|pg| pg.in_sync.len() == 2)).await;
    let raised = map.pgs.values().zip(epochs).filter(|(pg, before)| pg.epoch > *before).count();
    assert_eq!(raised as u64, row.groups_left, "nothing moved twice");
    let [done] = rebuilds(&cluster).await.try_into().unwrap();
    assert_eq!((done.id, done.state.as_str()), (row.id, "done"));
    cluster.stop().await;
}
