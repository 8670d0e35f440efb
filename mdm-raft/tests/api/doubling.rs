//! The groups of a pool double: one update has all of it, whoever asks again is told that it is so, and who would not notice
//! is named.

use pflex_common::mdm::MdmError;
use pflex_proto::{
    ids::{PgId, PgIndex},
    pb::{
        ComponentKind, ListRequest, MapUpdate, Pool, RegisterReply, RegisterRequest, SetPgCountRequest,
        admin_client::AdminClient, discovery_client::DiscoveryClient,
    },
    status::Reason,
};
use uuid::Uuid;

use crate::{
    cluster::{Cluster, GIB, PATIENCE},
    sds::FakeSds,
    watch::open_when_there,
};

async fn set(cluster: &Cluster, pool: &str, pg_count: u32) -> Result<Pool, MdmError> {
    let doubled = cluster.client.write(PATIENCE, |connection, request| {
        let message = SetPgCountRequest { request: Some(request), pool: pool.to_owned(), pg_count };
        async move { AdminClient::new(connection).set_pg_count(message).await }
    });
    doubled.await
}

async fn register_sdc(cluster: &Cluster, name: &str, follows_doubling: bool) -> Result<RegisterReply, MdmError> {
    let message = RegisterRequest {
        kind: ComponentKind::Sdc.into(),
        name: name.to_owned(),
        process_id: Uuid::new_v4().as_bytes().to_vec(),
        follows_doubling,
        ..Default::default()
    };
    let registered = cluster.client.read(PATIENCE, |connection| {
        let message = message.clone();
        async move { DiscoveryClient::new(connection).register(message).await }
    });
    registered.await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_gets_the_pool_and_all_of_its_groups_in_one_update() {
    let cluster = Cluster::start(3).await;
    cluster.create_pool("p", 512).await;
    let (one, two) = (FakeSds::create(&cluster, 1).await, FakeSds::create(&cluster, 2).await);
    cluster.create_volume("v", GIB).await.unwrap();
    let before = one.sees(|map| map.pgs.len() == 512 && map.volume_named("v").is_some()).await;
    let api = cluster.members.lock().unwrap()[1].api();
    let mut stream = open_when_there(&api, before.revision.get()).await;

    let pool = set(&cluster, "p", 1_024).await.unwrap();
    assert_eq!((pool.name.as_str(), pool.pg_count, pool.first_pg_count), ("p", 1_024, 512));
    let update: MapUpdate = loop {
        let reply = stream.message().await.unwrap().expect("the watch goes on");
        if let Some(update) = reply.updates.into_iter().find(|update| !update.pools.is_empty()) {
            break update;
        }
    };
    assert_eq!((update.pools[0].pg_count, update.pgs.len()), (1_024, 1_024));
    let map = two.sees(|map| map.revision.get() >= update.revision).await;
    assert_eq!(map.pgs.len(), 1_024);
    for whole in before.pgs.values() {
        let half = PgId { index: PgIndex(whole.pg.index.get() + 512), ..whole.pg };
        for pg in [&map.pgs[&whole.pg], &map.pgs[&half]] {
            assert_eq!(pg.epoch, whole.epoch.next());
            assert_eq!((&pg.in_sync, &pg.replicas, pg.primary), (&whole.in_sync, &whole.replicas, whole.primary));
            assert_eq!((pg.volatility, pg.to_activate), (whole.volatility, false));
        }
    }

    // In another session, as somebody does who does not know how the first try ended.
    assert_eq!(set(&cluster, "p", 1_024).await.unwrap(), pool);
    for (asked, reason) in [(512, Reason::Invalid), (4_096, Reason::Invalid), (8_192, Reason::LimitReached)] {
        assert_eq!(set(&cluster, "p", asked).await.unwrap_err().reason(), Some(reason), "{asked}");
    }
    assert_eq!(set(&cluster, "q", 16).await.unwrap_err().reason(), Some(Reason::NotFound));
    cluster.stop().await;
}

/// What somebody waits for who doubles in steps.
#[tokio::test(flavor = "multi_thread")]
async fn the_pool_says_how_many_devices_have_not_followed() {
    let cluster = Cluster::start(1).await;
    cluster.create_pool("p", 8).await;
    let (_one, two) = (FakeSds::create(&cluster, 1).await, FakeSds::create(&cluster, 2).await);
    cluster.create_volume("v", GIB).await.unwrap();
    until_there_are(&cluster, 0).await;
    two.says.send_modify(|says| says.stuck = true);
    set(&cluster, "p", 16).await.unwrap();
    // The other one is there soon, and this one is not, however long anybody asks.
    until_there_are(&cluster, 1).await;
    assert_eq!(to_follow(&cluster).await, 1);
    two.says.send_modify(|says| says.stuck = false);
    until_there_are(&cluster, 0).await;
    cluster.stop().await;
}

async fn to_follow(cluster: &Cluster) -> u32 {
    let asked = cluster.client.read(PATIENCE, |connection| async move {
        AdminClient::new(connection).list_pools(ListRequest::default()).await
    });
    asked.await.unwrap().pools[0].devices_to_follow
}

async fn until_there_are(cluster: &Cluster, devices: u32) {
    while to_follow(cluster).await != devices {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_follow_is_named_and_later_kept_out() {
    let cluster = Cluster::start(1).await;
    cluster.create_pool("p", 8).await;
    let _two = (FakeSds::create(&cluster, 1).await, FakeSds::create(&cluster, 2).await);
    cluster.create_sdc("c").await;
    cluster.create_volume("v", GIB).await.unwrap();
    cluster.map_volume("v", "c").await;
    register_sdc(&cluster, "c", false).await.unwrap();
    let refused = set(&cluster, "p", 16).await.unwrap_err();
    assert_eq!(refused.reason(), Some(Reason::Precondition));
    assert!(refused.to_string().contains("those of sdc c; upgrade them first"), "{refused}");

    register_sdc(&cluster, "c", true).await.unwrap();
    set(&cluster, "p", 16).await.unwrap();
    let refused = register_sdc(&cluster, "c", false).await.unwrap_err();
    assert_eq!(refused.reason(), Some(Reason::Precondition));
    assert!(refused.to_string().contains("have doubled, from 8 to 16"), "{refused}");
    register_sdc(&cluster, "c", true).await.unwrap();
    cluster.stop().await;
}
