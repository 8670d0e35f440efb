//! A fleet of simulated storage servers and clients that does to the metadata managers what a real one does when nothing
//! happens: a beat a second of each server, a health report every 10 s and a token renewal every 15 s of each, and a
//! watched map everywhere. No data is served.
//!
//! Prints how much processor time each member used meanwhile, and then what changes of the leader cost.
//!
//! Reading order: `component` (one of the fleet), `streams` (what is counted), `change` (another leader).

mod change;
mod component;
mod streams;

use std::{
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use pflex_common::{
    mdm::{MdmClient, Patience},
    net::{Endpoint, listen},
};
use pflex_proto::pb::ComponentKind;
use serde_json::{Value, json};
use tokio::{
    sync::{Semaphore, watch},
    task::JoinSet,
};

use self::{
    change::How,
    component::Component,
    streams::{Counts, Did, Streams},
};

const PATIENCE: Patience = Patience::within(Duration::from_secs(60));
/// Components that introduce themselves at the same time.
const AT_ONCE: usize = 64;
/// Everybody begins within this, so that no two moments are busier than others: each watch begins with a whole map, and this
/// one process has to take them all.
const SPREAD: Duration = Duration::from_secs(60);
/// Until everybody has had the map and settled.
const SETTLE: Duration = Duration::from_secs(5);
/// More is a group that does not serve.
const LONGEST_SETTLE: Duration = Duration::from_secs(120);

#[derive(clap::Args, Clone, Debug)]
pub(crate) struct FleetArgs {
    /// Storage servers, one device each.
    #[arg(long, default_value_t = 512)]
    sds: u32,
    /// Storage clients, one mapped volume each.
    #[arg(long, default_value_t = 2_048)]
    sdc: u32,
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Processes whose time is counted while the fleet is steady.
    #[arg(long, value_delimiter = ',')]
    pids: Vec<u32>,
    /// After that the leader hands over this often.
    #[arg(long, default_value_t = 0)]
    transfers: u32,
    /// After that the leader is to be killed this often: each time when `kill the leader` is said on stderr.
    #[arg(long, default_value_t = 0)]
    kills: u32,
}

pub(crate) async fn run(args: &FleetArgs, at: Vec<Endpoint>) -> anyhow::Result<String> {
    let counts = Arc::new(Counts::default());
    let streams = Arc::new(Streams::new(args.sds, args.sdc));
    let started = Instant::now();
    let mut fleet = JoinSet::new();
    let mut arriving = JoinSet::new();
    let turn = Arc::new(Semaphore::new(AT_ONCE));
    let (all_there, whole) = watch::channel(false);
    // The control port of all servers: takes probes and says nothing.
    let listener = listen("control", &Endpoint::new("127.0.0.1", 0)).await?;
    let control = listener.local_addr()?.to_string();
    fleet.spawn(async move { while listener.accept().await.is_ok() {} });
    for (kind, count) in [(ComponentKind::Sds, args.sds), (ComponentKind::Sdc, args.sdc)] {
        for n in 0..count {
            let (at, turn, control) = (at.clone(), turn.clone(), control.clone());
            arriving.spawn(async move {
                let _turn = turn.acquire().await?;
                Component::arrive(kind, n, at, control).await.with_context(|| format!("{kind:?} {n}"))
            });
        }
        while let Some(component) = arriving.join_next().await {
            let component = component.context("an arrival ended")??;
            let (counts, streams, whole) = (counts.clone(), streams.clone(), whole.clone());
            fleet.spawn(async move { component.live(&counts, &streams, whole).await });
        }
    }
    let arrival = started.elapsed();
    eprintln!("{} servers and {} clients are there after {arrival:.1?}", args.sds, args.sdc);
    all_there.send_replace(true);
    settle(&streams).await?;
    let (begin, used_before, term) = (Instant::now(), processor_times(&args.pids)?, streams.term());
    let before = counts.since(&Did::default());
    tokio::time::sleep(Duration::from_secs(args.seconds)).await;
    let (did, used, wall) = (counts.since(&before), processor_times(&args.pids)?, begin.elapsed());
    let cores: Vec<f64> = used.iter().zip(&used_before).map(|(now, then)| (now - then) / wall.as_secs_f64()).collect();
    let same_leader = streams.term() == term;
    let client = MdmClient::new("bench-fleet", at);
    let hows = (0..args.transfers).map(|_| How::Transfer).chain((0..args.kills).map(|_| How::Kill));
    let mut changes = Vec::new();
    for how in hows {
        changes.push(change::observe(how, &client, &counts, &streams).await?);
    }
    fleet.abort_all();
    Ok(json!({
        "sds": args.sds, "sdc": args.sdc,
        "arrival_ms": arrival.as_millis(), "same_leader": same_leader,
        "beats": did.beats, "reports": did.reports, "renewals": did.renewals,
        "map_updates": did.updates, "map_messages": did.messages, "failures": did.failures,
        "cores": cores.iter().map(|cores| json!((cores * 1000.0).round() / 1000.0)).collect::<Vec<Value>>(),
        "changes": changes,
    })
    .to_string())
}

/// Until every stream stands and the busy time after it is over.
async fn settle(streams: &Streams) -> anyhow::Result<()> {
    tokio::time::sleep(SPREAD).await;
    let begun = Instant::now();
    while streams.unwatched() > 0 || streams.unheard_after(0) > 0 {
        anyhow::ensure!(
            begun.elapsed() < LONGEST_SETTLE,
            "{} servers are unheard and {} streams of the map are missing",
            streams.unheard_after(0),
            streams.unwatched()
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    tokio::time::sleep(SETTLE).await;
    Ok(())
}

/// Seconds of processor time of each process so far.
fn processor_times(pids: &[u32]) -> anyhow::Result<Vec<f64>> {
    pids.iter()
        .map(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("process {pid}"))?;
            // The name, in brackets, may hold blanks; utime and stime are the 12th and 13th fields after it, in
            // hundredths of a second on every Linux.
            let fields = stat.rsplit_once(") ").context("a stat line has a name in brackets")?.1;
            let ticks: f64 =
                fields.split(' ').skip(11).take(2).map(|field| field.parse::<f64>().unwrap_or_default()).sum();
            Ok(ticks / 100.0)
        })
        .collect()
}
