//! A fleet of simulated storage servers and clients that does to the metadata managers what a real one does when nothing
//! happens: a beat a second of each server, a health report every 10 s and a token renewal every 15 s of each, and a
//! watched map everywhere. No data is served.
//!
//! Prints how much processor time each member used meanwhile.

use std::{
    fmt, fs,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use pflex_common::{
    mdm::{MdmClient, Patience},
    net::{Endpoint, listen},
};
use pflex_proto::pb::{
    self, Access, Addresses, Beat, ComponentKind, CreateSdcRequest, CreateSdsRequest, CreateVolumeRequest, DeviceBeat,
    HealthReport, IssueTokensRequest, MapVolumeRequest, RegisterRequest, RegisteredDevice, WatchRequest,
    admin_client::AdminClient, discovery_client::DiscoveryClient, liveness_client::LivenessClient,
    map_client::MapClient, tokens_client::TokensClient,
};
use serde_json::{Value, json};
use tokio::{
    sync::{Semaphore, mpsc, watch},
    task::JoinSet,
    time::MissedTickBehavior,
};
use tokio_stream::wrappers::ReceiverStream;
use uuid::Uuid;

const PATIENCE: Patience = Patience::within(Duration::from_secs(60));
/// Bytes of each simulated device: enough for any number of volumes.
const DEVICE_BYTES: u64 = 1 << 50;
const BEAT: Duration = Duration::from_secs(1);
const REPORT: Duration = Duration::from_secs(10);
const RENEWAL: Duration = Duration::from_secs(15);
/// Failures that are said; the others are counted.
const SAID: u64 = 8;
/// Components that introduce themselves at the same time.
const AT_ONCE: usize = 64;
/// Everybody begins within the longest period, so that no two moments are busier than others.
const SPREAD: Duration = RENEWAL;
const STEPS: u32 = 128;
/// Until everybody has had the map and settled.
const SETTLE: Duration = Duration::from_secs(5);

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
}

/// What the fleet did while it was steady.
#[derive(Default)]
struct Counts {
    beats: AtomicU64,
    reports: AtomicU64,
    renewals: AtomicU64,
    messages: AtomicU64,
    updates: AtomicU64,
    failures: AtomicU64,
}

pub(crate) async fn run(args: &FleetArgs, at: Vec<Endpoint>) -> anyhow::Result<String> {
    let counts = Arc::new(Counts::default());
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
            let (counts, whole) = (counts.clone(), whole.clone());
            fleet.spawn(async move { component.live(&counts, whole).await });
        }
    }
    let arrival = started.elapsed();
    eprintln!("{} servers and {} clients are there after {arrival:.1?}", args.sds, args.sdc);
    all_there.send_replace(true);
    tokio::time::sleep(SPREAD + SETTLE).await;
    let before = (snapshot(&counts), processor_times(&args.pids)?, Instant::now());
    tokio::time::sleep(Duration::from_secs(args.seconds)).await;
    let (did, used, wall) = (snapshot(&counts), processor_times(&args.pids)?, before.2.elapsed());
    let cores: Vec<f64> = used.iter().zip(&before.1).map(|(now, then)| (now - then) / wall.as_secs_f64()).collect();
    let done: Vec<u64> = did.iter().zip(before.0).map(|(now, then)| now - then).collect();
    fleet.abort_all();
    Ok(json!({
        "sds": args.sds, "sdc": args.sdc,
        "arrival_ms": arrival.as_millis(),
        "beats": done[0], "reports": done[1], "renewals": done[2], "map_updates": done[3], "map_messages": done[5], "failures": done[4],
        "cores": cores.iter().map(|cores| json!((cores * 1000.0).round() / 1000.0)).collect::<Vec<Value>>(),
    })
    .to_string())
}

impl Counts {
    /// One more failure; the first few are said.
    fn failed(&self, who: &str, doing: &str, why: &dyn fmt::Display) {
        if self.failures.fetch_add(1, Ordering::Relaxed) < SAID {
            eprintln!("{who}: {doing}: {why}");
        }
    }
}

fn snapshot(counts: &Counts) -> [u64; 6] {
    let Counts { beats, reports, renewals, messages, updates, failures } = counts;
    [beats, reports, renewals, updates, failures, messages].map(|count| count.load(Ordering::Relaxed))
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

/// One simulated process.
struct Component {
    kind: ComponentKind,
    n: u32,
    id: u32,
    name: String,
    process: Vec<u8>,
    client: MdmClient,
    /// Of a server.
    device: u32,
    incarnation: u64,
    /// Of a client.
    volume: u64,
}

impl Component {
    /// Is created, registers, and a client gets a volume.
    async fn arrive(kind: ComponentKind, n: u32, at: Vec<Endpoint>, control: String) -> anyhow::Result<Self> {
        let noun = if kind == ComponentKind::Sds { "sds" } else { "sdc" };
        let name = format!("bench-{noun}-{n}");
        let client = MdmClient::new(name.clone(), at);
        let process = Uuid::new_v4().as_bytes().to_vec();
        let (c, p) = (client.clone(), PATIENCE);
        if kind == ComponentKind::Sds {
            c.write(p, |connection, request| {
                let name = name.clone();
                let create =
                    CreateSdsRequest { request: Some(request), name, if_not_exists: true, ..Default::default() };
                async move { AdminClient::new(connection).create_sds(create).await }
            })
            .await
            .context("create")?;
        } else {
            c.write(p, |connection, request| {
                let create = CreateSdcRequest { request: Some(request), name: name.clone(), if_not_exists: true };
                async move { AdminClient::new(connection).create_sdc(create).await }
            })
            .await
            .context("create")?;
        }
        // Rises from run to run, as a device's does with each open.
        let incarnation = u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?;
        let device = RegisteredDevice {
            // The same in every run, so that a second run is the same servers again.
            uuid: Uuid::from_u128(0xbe7c_0000 + u128::from(n)).as_bytes().to_vec(),
            incarnation,
            capacity_bytes: DEVICE_BYTES,
            path: "/simulated".into(),
            empty: true,
            ..Default::default()
        };
        let register = RegisterRequest {
            kind: kind.into(),
            name: name.clone(),
            process_id: process.clone(),
            // A leader probes it when a stream breaks; a refused connect would be half a proof of death (S8).
            addresses: Some(Addresses { control: control.clone(), data: control, ..Default::default() }),
            version: env!("CARGO_PKG_VERSION").into(),
            devices: if kind == ComponentKind::Sds { vec![device] } else { Vec::new() },
            ..Default::default()
        };
        let reply = c
            .write(p, |connection, request| {
                let register = RegisterRequest { request: Some(request), ..register.clone() };
                async move { DiscoveryClient::new(connection).register(register).await }
            })
            .await
            .context("register")?;
        let volume = if kind == ComponentKind::Sdc { map_volume(&client, &name).await? } else { 0 };
        let device = reply.device_ids.first().copied().unwrap_or_default();
        Ok(Self { kind, n, id: reply.id, name, process, client, device, incarnation, volume })
    }

    /// Does what it does for ever. Servers beat at once, or they would be taken for lost; the rest begins when everybody
    /// has come, each at its own moment: what is measured is the steady state.
    async fn live(&self, counts: &Counts, mut whole: watch::Receiver<bool>) {
        let later = async {
            if whole.wait_for(|whole| *whole).await.is_ok() {
                tokio::time::sleep(SPREAD.mul_f64(f64::from(self.n % STEPS) / f64::from(STEPS))).await;
                tokio::join!(self.report(counts), self.renew(counts), self.watch(counts));
            }
        };
        tokio::join!(self.beat(counts), later);
    }

    async fn beat(&self, counts: &Counts) {
        if self.kind != ComponentKind::Sds {
            return;
        }
        loop {
            let (endpoint, connection) = self.client.leader_guess();
            if let Err(error) = self.beat_at(connection, counts).await {
                counts.failed(&self.name, "beats", &error.message());
                self.client.not_here(&endpoint, &error);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn beat_at(&self, connection: pflex_common::mdm::Connection, counts: &Counts) -> Result<(), tonic::Status> {
        let (sender, receiver) = mpsc::channel(1);
        let beat = Beat {
            sds_id: self.id,
            process_id: self.process.clone(),
            devices: vec![DeviceBeat { device_id: self.device, incarnation: self.incarnation, ..Default::default() }],
            ..Default::default()
        };
        let closed = |_| tonic::Status::unavailable("the stream ended");
        sender.send(beat.clone()).await.map_err(closed)?;
        let mut replies = LivenessClient::new(connection).beats(ReceiverStream::new(receiver)).await?.into_inner();
        let mut tick = paced(BEAT);
        while let Some(reply) = replies.message().await? {
            counts.beats.fetch_add(1, Ordering::Relaxed);
            tick.tick().await;
            let beat = Beat { applied_revision: reply.revision, log_time_ms: reply.log_time_ms, ..beat.clone() };
            sender.send(beat).await.map_err(closed)?;
        }
        Ok(())
    }

    async fn report(&self, counts: &Counts) {
        let mut tick = paced(REPORT);
        loop {
            tick.tick().await;
            let metrics = ["reads", "writes", "read_bytes", "written_bytes", "uptime_ms"];
            let report = HealthReport {
                kind: self.kind.into(),
                id: self.id,
                name: self.name.clone(),
                process_id: self.process.clone(),
                metrics: metrics.map(|name| pb::Metric { name: name.into(), value: 1.0 }).to_vec(),
            };
            let call = |connection| {
                let report = report.clone();
                async move { LivenessClient::new(connection).report(report).await }
            };
            match self.client.read(PATIENCE, call).await {
                Ok(_) => drop(counts.reports.fetch_add(1, Ordering::Relaxed)),
                Err(error) => counts.failed(&self.name, "a report", &error),
            }
        }
    }

    async fn renew(&self, counts: &Counts) {
        if self.kind != ComponentKind::Sdc {
            return;
        }
        let mut tick = paced(RENEWAL);
        loop {
            tick.tick().await;
            let call = |connection, request| {
                let issue = IssueTokensRequest {
                    request: Some(request),
                    sdc_id: self.id,
                    process_id: self.process.clone(),
                    volume_ids: vec![self.volume],
                };
                async move { TokensClient::new(connection).issue(issue).await }
            };
            match self.client.write(PATIENCE, call).await {
                Ok(reply) if reply.tokens.len() == 1 => drop(counts.renewals.fetch_add(1, Ordering::Relaxed)),
                Ok(_) => counts.failed(&self.name, "a renewal", &"no token came"),
                Err(error) => counts.failed(&self.name, "a renewal", &error),
            }
        }
    }

    /// Takes what comes and keeps nothing but how far it is.
    async fn watch(&self, counts: &Counts) {
        let mut from_revision = 0;
        loop {
            if let Err(error) = self.watch_one(&mut from_revision, counts).await {
                counts.failed(&self.name, "the watch", &error.message());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn watch_one(&self, from_revision: &mut u64, counts: &Counts) -> Result<(), tonic::Status> {
        let (_, connection) = self.client.any_member();
        let mut client = MapClient::new(connection).max_decoding_message_size(1 << 30);
        let request =
            WatchRequest { from_revision: *from_revision, kind: self.kind.into(), id: self.id, ..Default::default() };
        let mut stream = client.watch(request).await?.into_inner();
        while let Some(reply) = stream.message().await? {
            if let Some(pb::watch_reply::Event::Full(map)) = reply.event {
                *from_revision = map.revision;
            }
            if let Some(newest) = reply.updates.last() {
                *from_revision = newest.revision;
                counts.messages.fetch_add(1, Ordering::Relaxed);
                counts.updates.fetch_add(reply.updates.len() as u64, Ordering::Relaxed);
            }
        }
        Err(tonic::Status::unavailable("it ended"))
    }
}

/// Ticks that keep to their pace and do not all fall on the same instant: components come one after the other.
fn paced(period: Duration) -> tokio::time::Interval {
    let mut tick = tokio::time::interval(period);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tick
}

/// Makes the volume of this client, if it is not there from an earlier run, and maps it.
async fn map_volume(client: &MdmClient, sdc: &str) -> anyhow::Result<u64> {
    let volume = format!("{sdc}-volume");
    client
        .write(PATIENCE, |connection, request| {
            let create = CreateVolumeRequest {
                request: Some(request),
                name: volume.clone(),
                size_bytes: 1 << 20,
                if_not_exists: true,
                ..Default::default()
            };
            async move { AdminClient::new(connection).create_volume(create).await }
        })
        .await
        .context("create its volume")?;
    let mapped = client
        .write(PATIENCE, |connection, request| {
            let map = MapVolumeRequest {
                request: Some(request),
                volume: volume.clone(),
                sdc: sdc.to_owned(),
                access: Access::ReadWrite.into(),
                ..Default::default()
            };
            async move { AdminClient::new(connection).map_volume(map).await }
        })
        .await
        .context("map its volume")?;
    Ok(mapped.id)
}
