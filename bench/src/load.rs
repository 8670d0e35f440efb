//! A closed loop: so many clients, each with one operation in flight, for so long.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use pflex_common::net::Endpoint;
use serde_json::json;
use tokio::{sync::Barrier, task::JoinSet};

use crate::{LoadArgs, latency::Latencies, target::Client};

/// Not measured: connections, sessions and caches come up.
const WARM_UP: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    Write,
    Read,
}

pub(crate) async fn run(kind: Kind, args: &LoadArgs, at: Vec<Endpoint>) -> anyhow::Result<String> {
    let ready = Arc::new(Barrier::new(args.clients as usize));
    let mut clients = JoinSet::new();
    for n in 0..args.clients {
        let (system, at, ready, duration) = (args.system, at.clone(), ready.clone(), args.duration());
        clients.spawn(async move {
            let client = Client::open(system, &at, n).await.with_context(|| format!("client {n}"));
            ready.wait().await;
            measure(client?, kind, duration).await.with_context(|| format!("client {n}"))
        });
    }
    let mut all = Latencies::default();
    while let Some(client) = clients.join_next().await {
        all.merge(client.context("a client ended")??);
    }
    let mut line = all.summary(args.duration());
    line["clients"] = json!(args.clients);
    Ok(line.to_string())
}

/// One client's measured operations: those that began and ended within `duration`.
async fn measure(mut client: Client, kind: Kind, duration: Duration) -> anyhow::Result<Latencies> {
    let begin = Instant::now() + WARM_UP;
    let end = begin + duration;
    let mut latencies = Latencies::default();
    loop {
        let started = Instant::now();
        match kind {
            Kind::Write => client.write().await?,
            Kind::Read => client.read().await?,
        }
        let now = Instant::now();
        if now >= end {
            return Ok(latencies);
        }
        if started >= begin {
            latencies.note(now - started);
        }
    }
}
