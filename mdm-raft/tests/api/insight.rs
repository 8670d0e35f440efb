//! What people ask: what happened, why, how close the limits are, what is tuned; and the brake that shows in it.

use pflex_proto::pb::{
    ChangeSettingsRequest, Event, LimitsRequest, ListEventsRequest, SettingChange, SettingsReply, WhyReply, WhyRequest,
    insight_client::InsightClient,
};
use pflex_proto::status::Reason;

use crate::{
    cluster::{Cluster, GIB, PATIENCE},
    sds::FakeSds,
};

async fn events(cluster: &Cluster, object: &str, least_severity: &str) -> Vec<Event> {
    let message = ListEventsRequest {
        object: object.to_owned(),
        least_severity: least_severity.to_owned(),
        ..ListEventsRequest::default()
    };
    let asked = cluster.client.read(PATIENCE, |connection| {
        let message = message.clone();
        async move { InsightClient::new(connection).events(message).await }
    });
    asked.await.unwrap().events
}

async fn why(cluster: &Cluster, object: &str) -> Result<WhyReply, pflex_common::mdm::MdmError> {
    let message = WhyRequest { object: object.to_owned(), ..WhyRequest::default() };
    let asked = cluster.client.read(PATIENCE, |connection| {
        let message = message.clone();
        async move { InsightClient::new(connection).why(message).await }
    });
    asked.await
}

async fn set(cluster: &Cluster, key: &str, value: u64) -> Result<SettingsReply, pflex_common::mdm::MdmError> {
    let change = SettingChange { key: key.to_owned(), value, to_default: false };
    let changed = cluster.client.write(PATIENCE, |connection, request| {
        let message = ChangeSettingsRequest { request: Some(request), changes: vec![change.clone()] };
        async move { InsightClient::new(connection).change_settings(message).await }
    });
    changed.await
}

#[tokio::test(flavor = "multi_thread")]
async fn events_reasons_limits_and_settings_are_there_to_ask() {
    let cluster = Cluster::start(1).await;
    cluster.create_pool("p", 8).await;
    let (_one, _two) = (FakeSds::create(&cluster, 1).await, FakeSds::create(&cluster, 2).await);
    cluster.create_volume("v", GIB).await.unwrap();

    let [created] = events(&cluster, "volume v", "").await.try_into().unwrap();
    assert_eq!((created.kind.as_str(), created.who.as_str()), ("volume.create", "test"));
    assert!(created.revision > 0 && created.at_ms > 0);
    assert!(events(&cluster, "volume v", "critical").await.is_empty());

    let [explained] = why(&cluster, "volume v").await.unwrap().explanations.try_into().unwrap();
    assert_eq!(explained.state, "ok");
    assert!(explained.causes.iter().any(|cause| cause.revision == created.revision && cause.who == "test"));
    assert_eq!(why(&cluster, "volume nobody").await.unwrap_err().reason(), Some(Reason::NotFound));
    assert_eq!(why(&cluster, &"x".repeat(10_000)).await.unwrap_err().reason(), Some(Reason::Invalid));

    let limits = cluster.client.read(PATIENCE, |connection| async move {
        InsightClient::new(connection).limits(LimitsRequest { stale: false }).await
    });
    let limits = limits.await.unwrap().limits;
    let of = |name: &str| limits.iter().find(|limit| limit.name == name).unwrap();
    assert_eq!((of("volumes").used, of("sds").used), (1, 2));
    assert!(limits.iter().all(|limit| limit.used <= limit.limit));
    assert_eq!(of("bytes of a pool's volumes").object, "pool p");

    let settings = set(&cluster, "liveness.silence_ms", 4_000).await.unwrap().settings;
    assert!(settings.iter().any(|row| row.key == "liveness.silence_ms" && row.value == 4_000));
    assert_eq!(set(&cluster, "liveness.silence_ms", 0).await.unwrap_err().reason(), Some(Reason::Invalid));
    assert_eq!(events(&cluster, "settings", "").await.len(), 1, "the refused one did not happen");
    cluster.stop().await;
}

/// S23: a leader that hears one SDS of three may be deaf itself. Another one looks, finds the same, and acts.
#[tokio::test(flavor = "multi_thread")]
async fn silence_of_most_sdss_is_believed_only_after_another_leader_has_looked() {
    let cluster = Cluster::start(3).await;
    cluster.create_pool("p", 8).await;
    let sds =
        [FakeSds::create(&cluster, 1).await, FakeSds::create(&cluster, 2).await, FakeSds::create(&cluster, 3).await];
    let [one, two, three] = &sds;
    three.sees(|map| map.sds.len() == 3 && map.sds.values().all(|sds| sds.alive)).await;
    let before = cluster.status().await;
    for sds in [one, two] {
        sds.says.send_modify(|says| says.silent = true);
    }
    three.sees(|map| map.sds.values().filter(|sds| !sds.alive).count() == 2).await;
    let after = cluster.status().await;
    assert!(after.term > before.term && after.leader != before.leader, "{} led on", before.leader);
    let warnings = events(&cluster, "", "warning").await;
    let first = warnings.first().map(|event| (event.kind.as_str(), event.object.clone()));
    assert_eq!(first, Some(("eviction.hold", format!("mdm {}", before.leader))), "{warnings:#?}");

    for sds in [one, two] {
        sds.says.send_modify(|says| says.silent = false);
    }
    three.sees(|map| map.sds.values().all(|sds| sds.alive)).await;
    cluster.stop().await;
}

/// With nobody to hand over to, the only leader believes what it goes on hearing.
#[tokio::test(flavor = "multi_thread")]
async fn the_only_mdm_waits_and_then_believes_silence() {
    let cluster = Cluster::start(1).await;
    cluster.create_pool("p", 8).await;
    let sds = [FakeSds::create(&cluster, 1).await, FakeSds::create(&cluster, 2).await];
    sds[1].sees(|map| map.sds.len() == 2 && map.sds.values().all(|sds| sds.alive)).await;
    sds.iter().for_each(|sds| sds.says.send_modify(|says| says.silent = true));
    sds[1].sees(|map| map.sds.values().all(|sds| !sds.alive)).await;
    assert!(events(&cluster, "", "warning").await.iter().any(|event| event.kind == "eviction.hold"));
    cluster.stop().await;
}
