//! What the death of a leader costs: the longest time in which no write was acknowledged, whoever asked.
//!
//! The script kills the leader while this runs. Clients start at different members; each has its own connections and
//! finds its own way to the new leader, as a cluster's components would. They pause between their writes: a machine at its
//! limit has gaps of its own.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use pflex_common::net::Endpoint;
use serde_json::json;
use tokio::task::JoinSet;

use crate::{LoadArgs, target::Client};

/// Between two writes of a client; far below any gap that matters.
const PAUSE: Duration = Duration::from_millis(5);

/// Acknowledged writes of all clients together.
struct Acknowledged {
    last: Instant,
    longest: Duration,
    count: u64,
}

impl Acknowledged {
    fn one(&mut self) {
        let now = Instant::now();
        self.longest = self.longest.max(now - self.last);
        self.last = now;
        self.count += 1;
    }
}

pub(crate) async fn run(args: &LoadArgs, at: Vec<Endpoint>) -> anyhow::Result<String> {
    let mut opened = Vec::new();
    for n in 0..args.clients {
        opened.push(Client::open(args.system, &at, n).await.with_context(|| format!("client {n}"))?);
    }
    let acknowledged = Arc::new(Mutex::new(Acknowledged { last: Instant::now(), longest: Duration::ZERO, count: 0 }));
    let end = Instant::now() + args.duration();
    let mut clients = JoinSet::new();
    for mut client in opened {
        let acknowledged = acknowledged.clone();
        clients.spawn(async move {
            while Instant::now() < end {
                client.write().await?;
                acknowledged.lock().expect("no code panics while it holds this lock").one();
                tokio::time::sleep(PAUSE).await;
            }
            anyhow::Ok(())
        });
    }
    while let Some(client) = clients.join_next().await {
        client.context("a client ended")??;
    }
    let all = acknowledged.lock().expect("no code panics while it holds this lock");
    Ok(json!({ "writes": all.count, "longest_gap_ms": all.longest.as_millis() }).to_string())
}
