//! Watching the map from any member, across members and leaders.

use std::time::Duration;

use pflex_proto::{
    pb::{MapUpdate, WatchRequest, map_client::MapClient, watch_reply::Event},
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
        let reply = stream.message().await.unwrap().unwrap();
        assert!(!matches!(reply.event, Some(Event::Full(_))), "a second full map");
        let is_it = |update: &MapUpdate| update.domains.iter().any(|domain| domain.name == "e");
        if let Some(update) = reply.updates.into_iter().find(is_it) {
            break update;
        }
    };
    assert!(update.revision > full.revision);

    // From where it was: the missed updates, no full map.
    let mut resumed = watch(full.revision).await.unwrap();
    let again = loop {
        let reply = resumed.message().await.unwrap().unwrap();
        assert!(!matches!(reply.event, Some(Event::Full(_))), "the ring still had the updates");
        if let Some(last) = reply.updates.last().filter(|last| last.revision >= update.revision) {
            break last.clone();
        }
    };
    assert_eq!(again, update);
    let ahead = watch(u64::MAX).await.unwrap_err();
    assert_eq!(status::reason(&ahead), Some(Reason::Behind), "never back in time (S18)");
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

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_ends_where_no_quorum_is_heard_of_and_not_before() {
    let cluster = Cluster::start(3).await;
    let leader = usize::try_from(cluster.status().await.leader).unwrap() - 1;
    let mut streams = Vec::new();
    for member in [leader, (leader + 1) % 3] {
        let api = cluster.members.lock().unwrap()[member].api();
        streams.push(MapClient::new(api.channel()).watch(WatchRequest::default()).await.unwrap().into_inner());
    }
    // A quiet but whole group: five progress messages are more than four seconds.
    for stream in &mut streams {
        let mut progress = 0;
        while progress < 5 {
            if let Some(Event::Progress(_)) = stream.message().await.unwrap().unwrap().event {
                progress += 1;
            }
        }
    }
    // The leader goes: a follower is left with one other, then alone.
    let mut members = std::mem::take(&mut *cluster.members.lock().unwrap());
    members[(leader + 2) % 3].stop().await;
    members[leader].stop().await;
    let mut alone = streams.pop().unwrap();
    let end = tokio::time::timeout(Duration::from_secs(10), async {
        loop {
            if let Err(end) = alone.message().await {
                return end;
            }
        }
    });
    let end = end.await.expect("it ends");
    assert_eq!((status::reason(&end), end.code()), (Some(Reason::NoQuorum), tonic::Code::Unavailable));
    let api = members[(leader + 1) % 3].api();
    let again = MapClient::new(api.channel()).watch(WatchRequest::default()).await.unwrap_err();
    assert_eq!(status::reason(&again), Some(Reason::NoQuorum));
    members[(leader + 1) % 3].stop().await;
}
