//! Watching the map from any member, across members and leaders.

use pflex_proto::{
    pb::{WatchRequest, map_client::MapClient, watch_reply::Event},
    status::{self, Reason},
};

use crate::{
    cluster::{Cluster, GIB},
    sds::FakeSds,
};

#[tokio::test(flavor = "multi_thread")]
async fn watchers_get_a_map_then_each_change_and_go_on_where_they_were() {
    let cluster = Cluster::start(3).await;
    cluster.create_pool("p", 8).await;
    let api = cluster.members.lock().unwrap()[0].api();
    let watch = |from_revision| {
        let mut client = MapClient::new(api.channel());
        let request = WatchRequest { from_revision, ..Default::default() };
        async move { client.watch(request).await.map(tonic::Response::into_inner) }
    };
    let mut stream = watch(0).await.unwrap();
    let Some(Event::Full(full)) = stream.message().await.unwrap().unwrap().event else { panic!("no full map") };
    assert_eq!(full.pools.len(), 1);

    cluster.create_domain("e").await.unwrap();
    let update = loop {
        match stream.message().await.unwrap().unwrap().event.unwrap() {
            Event::Update(update) if update.domains.iter().any(|domain| domain.name == "e") => break update,
            Event::Update(_) | Event::Progress(_) => {}
            Event::Full(_) => panic!("a second full map"),
        }
    };
    assert!(update.revision > full.revision);

    // From where it was: the missed updates, no full map.
    let mut resumed = watch(full.revision).await.unwrap();
    loop {
        match resumed.message().await.unwrap().unwrap().event.unwrap() {
            Event::Update(again) if again == update => break,
            Event::Update(other) => assert!(other.revision < update.revision, "{other:?}"),
            Event::Progress(_) => {}
            Event::Full(_) => panic!("the ring still had the updates"),
        }
    }
    let ahead = watch(u64::MAX).await.unwrap_err();
    assert_eq!(status::reason(&ahead), Some(Reason::Compacted), "never back in time (S18)");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_sds_sees_changes_whoever_leads() {
    let cluster = Cluster::start(3).await;
    cluster.create_pool("p", 8).await;
    let one = FakeSds::create(&cluster, 1).await;
    let _two = FakeSds::create(&cluster, 2).await;
    one.sees(|map| map.pgs.len() == 8).await;
    cluster.stop_leader().await;
    cluster.create_volume("v", GIB).await.unwrap();
    let map = one.sees(|map| map.volume_named("v").is_some()).await;
    assert!(map.pgs.values().all(|pg| pg.in_sync.len() == 2), "nobody was taken for lost because a leader went");
    cluster.stop().await;
}
