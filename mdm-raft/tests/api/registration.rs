//! Registering, and only asking who one is.

use pflex_common::mdm::MdmError;
use pflex_proto::{
    pb::{
        ClusterMap, ComponentKind, MapUpdate, RegisterReply, RegisterRequest, WatchRequest,
        discovery_client::DiscoveryClient, map_client::MapClient, watch_reply::Event,
    },
    status::Reason,
};
use uuid::Uuid;

use crate::{
    cluster::{Cluster, PATIENCE},
    sds::FakeSds,
};

async fn register(
    cluster: &Cluster,
    kind: ComponentKind,
    name: &str,
    introduce: bool,
) -> Result<RegisterReply, MdmError> {
    let message = RegisterRequest {
        kind: kind.into(),
        name: name.to_owned(),
        process_id: Uuid::new_v4().as_bytes().to_vec(),
        cluster_id: cluster.id.as_bytes().to_vec(),
        introduce,
        ..Default::default()
    };
    let registered = cluster.client.read(PATIENCE, |connection| {
        let message = message.clone();
        async move { DiscoveryClient::new(connection).register(message).await }
    });
    registered.await
}

/// The whole map of the only member as of a revision: the full map and what follows it, without their revisions.
async fn map_of(cluster: &Cluster, at_least: u64) -> Vec<String> {
    let api = cluster.members.lock().unwrap()[0].api();
    let mut stream = MapClient::new(api.channel()).watch(WatchRequest::default()).await.unwrap().into_inner();
    let (mut told, mut revision) = (Vec::new(), 0);
    loop {
        let reply = stream.message().await.unwrap().unwrap();
        for update in reply.updates {
            revision = update.revision;
            told.push(format!("{:?}", MapUpdate { revision: 0, ..update }));
        }
        match reply.event {
            Some(Event::Full(map)) => {
                revision = map.revision;
                told.push(format!("{:?}", ClusterMap { revision: 0, ..map }));
            }
            Some(Event::Progress(_)) if revision >= at_least => return told,
            Some(Event::Progress(_)) | None => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_introduction_changes_nothing_and_a_registration_without_devices_does() {
    let cluster = Cluster::start(1).await;
    cluster.create_pool("p", 8).await;
    let one = FakeSds::create(&cluster, 1).await;
    let _two = FakeSds::create(&cluster, 2).await;
    one.sees(|map| map.pgs.len() == 8 && map.pgs.values().all(|pg| pg.in_sync.len() == 2)).await;
    let seen = one.sees(|map| map.pgs.len() == 8).await.revision.get();
    let before = map_of(&cluster, seen).await;

    let me = register(&cluster, ComponentKind::Sds, "s1", true).await.unwrap();
    assert_eq!((me.id, me.cluster_id.as_slice()), (one.id, cluster.id.as_bytes().as_slice()));
    assert_eq!(me.registrations, 1, "the one that was there before");
    assert_eq!(map_of(&cluster, seen).await, before);

    let unknown = register(&cluster, ComponentKind::Sds, "nobody", true).await.unwrap_err();
    assert_eq!(unknown.reason(), Some(Reason::NotFound));

    // What the introduction must not be.
    let registered = register(&cluster, ComponentKind::Sds, "s1", false).await.unwrap();
    assert_eq!(registered.registrations, 2);
    assert_ne!(map_of(&cluster, registered.revision).await, before, "its devices are out of service");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_process_of_an_sdc_is_told_a_higher_count() {
    let cluster = Cluster::start(1).await;
    cluster.create_sdc("c").await;
    for count in 1..=3 {
        assert_eq!(register(&cluster, ComponentKind::Sdc, "c", false).await.unwrap().registrations, count);
    }
    cluster.stop().await;
}
