//! `pflex pool scrub`: every chunk of a pool is read on every copy, and the copies are compared.

use std::time::{Duration, Instant};

use pflex_proto::pb::{PoolScrub, StartScrubRequest, admin_client::AdminClient, topology_client::TopologyClient};

use super::{
    Tool,
    names::{one, only},
};
use crate::{
    client::{Freshness, Session, ask, change},
    error::{Exit, Failure},
    output::{Record, Value},
    units::format_duration,
};

/// With `--wait`: a pool that is not small takes days at the usual rate, so who waits knows that it is.
const LONG: Duration = Duration::from_secs(3600);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(500);

/// Starts one, or with `wait` joins the one that is under way and returns when it is over.
pub(super) async fn run(tool: &Tool, session: &Session, name: &str, wait: bool) -> Result<(), Failure> {
    let what = format!("scrub pool {name}");
    let request = StartScrubRequest { request: None, pool: name.to_owned() };
    match change!(session, &what, TopologyClient.start_scrub(request)) {
        Err(refusal) if wait && refusal.exit() == Exit::Conflict => eprintln!("waiting: {refusal}"),
        started => {
            started?;
        }
    }
    if !wait {
        return Ok(());
    }
    let deadline = Instant::now() + tool.options.timeout.unwrap_or(LONG);
    loop {
        let fresh = Freshness::Linearizable;
        let row = only(ask!(session, &what, fresh, AdminClient.list_pools(one(fresh, name)))?.pools, "pool", name)?;
        if let Some(scrub) = row.scrub.filter(|scrub| scrub.ended_at_ms.is_some()) {
            return match scrub.unreadable_chunks {
                0 => Ok(()),
                chunks => Err(Failure::new(
                    Exit::Failed,
                    format!("{what}: it is over, and {chunks} chunks have data that no copy can read"),
                )
                .remedy("`pflex events` and the logs of the servers name them; write that data again from a backup")),
            };
        }
        if Instant::now() >= deadline {
            let limit = format_duration(tool.options.timeout.unwrap_or(LONG));
            return Err(Failure::new(Exit::TimedOut, format!("{what}: it still goes on after {limit}"))
                .remedy("`pflex pool show` has its progress; the setting scrub.rate_mib_s makes it faster"));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// What a pool's record says of its last scrub.
pub(super) fn columns(record: Record, scrub: Option<&PoolScrub>) -> Record {
    let state = match scrub {
        None => "never",
        Some(scrub) if scrub.ended_at_ms.is_none() => "running",
        Some(_) => "done",
    };
    let time = |ms: Option<u64>| ms.map_or(Value::Null, Value::Time);
    let count = |of: fn(&PoolScrub) -> u64| scrub.map(of);
    record
        .wide("scrub", "SCRUB", state)
        .detail("scrub_pass", "SCRUB PASS", count(|scrub| scrub.pass))
        .detail("scrub_started_at", "SCRUB BEGAN", time(scrub.map(|scrub| scrub.started_at_ms)))
        .detail("scrub_ended_at", "SCRUB DONE", time(scrub.and_then(|scrub| scrub.ended_at_ms)))
        .detail("scrubbed_chunks", "CHUNKS COMPARED", count(|scrub| scrub.chunks))
        .detail("scrub_bad_blocks", "BAD BLOCKS FOUND", count(|scrub| scrub.bad_blocks))
        .detail("scrub_mismatches", "COPIES THAT DIFFERED", count(|scrub| scrub.mismatches))
        .detail("unreadable_chunks", "UNREADABLE CHUNKS", count(|scrub| scrub.unreadable_chunks))
}
