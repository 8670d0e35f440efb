//! What a change of the leader costs the fleet: how long until every stream stands again, and what the new leader logged.
//!
//! Nobody died but a member, so every verdict on a server would be a wrong one.

use std::{
    collections::BTreeMap,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use pflex_common::mdm::MdmClient;
use pflex_proto::pb::{
    ClusterStatus, ClusterStatusRequest, ListEventsRequest, TransferLeaderRequest, WatchRequest,
    cluster_client::ClusterClient, insight_client::InsightClient, map_client::MapClient, watch_reply::Event,
};
use serde_json::{Value, json};

use super::{
    PATIENCE,
    streams::{Counts, Did, Streams},
};

/// How finely times are taken.
const LOOK: Duration = Duration::from_millis(5);
/// A fleet that is not back after this is not coming back.
const LONGEST: Duration = Duration::from_secs(60);
/// Whoever a new leader has not heard is judged after its grace of 3 s, and reports follow within a second.
const JUDGED: Duration = Duration::from_secs(8);

/// How the leader goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum How {
    /// It hands over.
    Transfer,
    /// Whoever reads the line on stderr kills it.
    Kill,
}

/// Waits for another leader, and for the fleet to be with it; says what it took.
pub(super) async fn observe(how: How, client: &MdmClient, counts: &Counts, streams: &Streams) -> anyhow::Result<Value> {
    let before = counts.since(&Did::default());
    let revision = status(client).await?.revision;
    let term = streams.term();
    streams.forget_breaks();
    let asked = Instant::now();
    match how {
        How::Transfer => transfer(client).await?,
        How::Kill => eprintln!("kill the leader"),
    }
    let (mut heard, mut watched) = (asked, asked);
    loop {
        let now = Instant::now();
        let (unheard, unwatched) = (streams.unheard_after(term), streams.unwatched());
        heard = if unheard > 0 { now } else { heard };
        watched = if unwatched > 0 { now } else { watched };
        if unheard == 0 && unwatched == 0 {
            break;
        }
        anyhow::ensure!(
            now.duration_since(asked) < LONGEST,
            "after {LONGEST:?} {unheard} servers are unheard and {unwatched} streams of the map are missing"
        );
        tokio::time::sleep(LOOK).await;
    }
    let begin = match how {
        How::Transfer => asked,
        How::Kill => streams.first_break().unwrap_or(asked),
    };
    let ms = |at: Instant| at.saturating_duration_since(begin).as_millis();
    let tries = counts.failures.load(Ordering::Relaxed) - before.failures;
    tokio::time::sleep(JUDGED).await;
    let after = status(client).await?;
    let did = counts.since(&before);
    let events = events_after(client, revision).await?;
    Ok(json!({
        "how": format!("{how:?}").to_lowercase(),
        "beats_back_ms": ms(heard), "maps_back_ms": ms(watched), "tries_in_vain": tries,
        "commands": after.revision - revision, "renewals": did.renewals,
        "full_maps": did.full_maps, "map_updates": did.updates, "map_messages": did.messages,
        "events": events, "servers_not_alive": not_alive(client).await?,
        "terms": [term, after.term],
    }))
}

async fn transfer(client: &MdmClient) -> anyhow::Result<()> {
    let call = |connection| async move {
        ClusterClient::new(connection).transfer_leader(TransferLeaderRequest { to: 0 }).await
    };
    client.read(PATIENCE, call).await.context("hand the lead over").map(drop)
}

async fn status(client: &MdmClient) -> anyhow::Result<ClusterStatus> {
    let call = |connection| async move { ClusterClient::new(connection).status(ClusterStatusRequest::default()).await };
    client.read(PATIENCE, call).await.context("status")
}

/// How many commands of each kind left an event.
async fn events_after(client: &MdmClient, revision: u64) -> anyhow::Result<BTreeMap<String, usize>> {
    let call = |connection| async move {
        let request = ListEventsRequest { after_revision: revision, limit: 4_096, ..Default::default() };
        InsightClient::new(connection).events(request).await
    };
    let mut kinds = BTreeMap::new();
    for event in client.read(PATIENCE, call).await.context("events")?.events {
        *kinds.entry(event.kind).or_default() += 1;
    }
    Ok(kinds)
}

async fn not_alive(client: &MdmClient) -> anyhow::Result<usize> {
    let call = |connection| async move {
        MapClient::new(connection).max_decoding_message_size(1 << 30).watch(WatchRequest::default()).await
    };
    let mut stream = client.read(PATIENCE, call).await.context("the map")?;
    let reply = stream.message().await?.context("the stream of the map begins with one")?;
    let Some(Event::Full(map)) = reply.event else { anyhow::bail!("the stream of the map begins with something else") };
    Ok(map.sds.iter().filter(|sds| !sds.alive).count())
}
