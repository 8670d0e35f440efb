//! One simulated server or client: what it does for ever.

use std::{
    sync::atomic::Ordering,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use pflex_common::{
    mdm::{MdmClient, Patience},
    net::Endpoint,
};
use pflex_proto::pb::{
    self, Access, Addresses, Beat, ComponentKind, CreateSdcRequest, CreateSdsRequest, CreateVolumeRequest, DeviceBeat,
    HealthReport, IssueTokensRequest, MapVolumeRequest, RegisterRequest, RegisteredDevice, WatchRequest,
    admin_client::AdminClient, discovery_client::DiscoveryClient, liveness_client::LivenessClient,
    map_client::MapClient, tokens_client::TokensClient,
};
use rand::RngExt as _;
use tokio::{
    sync::{mpsc, watch},
    time::MissedTickBehavior,
};
use tokio_stream::wrappers::ReceiverStream;
use uuid::Uuid;

use super::{
    PATIENCE, SPREAD,
    streams::{Counts, Streams},
};

/// Bytes of each simulated device: enough for any number of volumes.
const DEVICE_BYTES: u64 = 1 << 50;
const BEAT: Duration = Duration::from_secs(1);
const REPORT: Duration = Duration::from_secs(10);
const RENEWAL: Duration = Duration::from_secs(15);
/// To be created and registered, however busy a small machine is with all the others: attempts that are given up and sent
/// again only add to it.
const ARRIVAL: Patience = Patience { deadline: Duration::from_secs(600), attempt: Duration::from_secs(20) };
/// Members say something each second; one that is silent longer is stuck.
const SILENCE: Duration = Duration::from_secs(3);
const STEPS: u32 = 128;

/// One simulated process.
pub(super) struct Component {
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
    pub(super) async fn arrive(
        kind: ComponentKind,
        n: u32,
        at: Vec<Endpoint>,
        control: String,
    ) -> anyhow::Result<Self> {
        let noun = if kind == ComponentKind::Sds { "sds" } else { "sdc" };
        let name = format!("bench-{noun}-{n}");
        let client = MdmClient::new(name.clone(), at);
        let process = Uuid::new_v4().as_bytes().to_vec();
        let (c, p) = (client.clone(), ARRIVAL);
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
            follows_doubling: true,
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
    pub(super) async fn live(&self, counts: &Counts, streams: &Streams, mut whole: watch::Receiver<bool>) {
        let later = async {
            if whole.wait_for(|whole| *whole).await.is_ok() {
                tokio::time::sleep(SPREAD.mul_f64(f64::from(self.n % STEPS) / f64::from(STEPS))).await;
                tokio::join!(self.report(counts), self.renew(counts), self.watch(counts, streams));
            }
        };
        tokio::join!(self.beat(counts, streams), later);
    }

    async fn beat(&self, counts: &Counts, streams: &Streams) {
        if self.kind != ComponentKind::Sds {
            return;
        }
        let mut pause = Pause::default();
        loop {
            let (endpoint, connection) = self.client.leader_guess();
            if let Err(error) = self.beat_at(connection, counts, streams, &mut pause).await {
                counts.failed(&self.name, "beats", &error.message());
                streams.broke();
                self.client.not_here(&endpoint, &error);
            }
            pause.take().await;
        }
    }

    async fn beat_at(
        &self,
        connection: pflex_common::mdm::Connection,
        counts: &Counts,
        streams: &Streams,
        pause: &mut Pause,
    ) -> Result<(), tonic::Status> {
        let (sender, receiver) = mpsc::channel(1);
        let beat = Beat {
            sds_id: self.id,
            process_id: self.process.clone(),
            devices: vec![DeviceBeat { device_id: self.device, incarnation: self.incarnation, ..Default::default() }],
            ..Default::default()
        };
        let closed = |_| tonic::Status::unavailable("the stream ended");
        let silent = |_| tonic::Status::deadline_exceeded("the leader is silent");
        sender.send(beat.clone()).await.map_err(closed)?;
        let mut client = LivenessClient::new(connection);
        let opening = client.beats(ReceiverStream::new(receiver)).timed();
        let mut replies = opening.await.map_err(silent)??.into_inner();
        let mut tick = paced(BEAT);
        while let Some(reply) = replies.message().timed().await.map_err(silent)?? {
            counts.beats.fetch_add(1, Ordering::Relaxed);
            streams.beats_with(self.n, reply.term);
            pause.reset();
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
                wall_ms: 0,
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
                    plans: Vec::new(),
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
    async fn watch(&self, counts: &Counts, streams: &Streams) {
        let (mut from_revision, mut pause) = (0, Pause::default());
        loop {
            if let Err(error) = self.watch_one(&mut from_revision, counts, streams, &mut pause).await {
                counts.failed(&self.name, "the watch", &error.message());
                streams.watches(self.kind, self.n, false);
            }
            pause.take().await;
        }
    }

    async fn watch_one(
        &self,
        from_revision: &mut u64,
        counts: &Counts,
        streams: &Streams,
        pause: &mut Pause,
    ) -> Result<(), tonic::Status> {
        let (_, connection) = self.client.any_member();
        let mut client = MapClient::new(connection).max_decoding_message_size(1 << 30);
        let request =
            WatchRequest { from_revision: *from_revision, kind: self.kind.into(), id: self.id, ..Default::default() };
        let silent = |_| tonic::Status::deadline_exceeded("the member is silent");
        let mut stream = client.watch(request).timed().await.map_err(silent)??.into_inner();
        while let Some(reply) = stream.message().timed().await.map_err(silent)?? {
            if let Some(pb::watch_reply::Event::Full(map)) = reply.event {
                *from_revision = map.revision;
                counts.full_maps.fetch_add(1, Ordering::Relaxed);
            }
            if let Some(newest) = reply.updates.last() {
                *from_revision = newest.revision;
                counts.messages.fetch_add(1, Ordering::Relaxed);
                counts.updates.fetch_add(reply.updates.len() as u64, Ordering::Relaxed);
            }
            streams.watches(self.kind, self.n, true);
            pause.reset();
        }
        Err(tonic::Status::unavailable("it ended"))
    }
}

/// What is awaited no longer than servers and clients do.
trait Timed: Future + Sized {
    fn timed(self) -> tokio::time::Timeout<Self> {
        tokio::time::timeout(SILENCE, self)
    }
}

impl<F: Future> Timed for F {}

/// Between two tries, longer each time and never the same for two: thousands that lost one member come back spread out.
struct Pause(Duration);

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(300);

impl Default for Pause {
    fn default() -> Self {
        Self(FIRST_PAUSE)
    }
}

impl Pause {
    async fn take(&mut self) {
        let jittered = self.0.mul_f64(rand::rng().random_range(0.5..1.5));
        tokio::time::sleep(jittered).await;
        self.0 = (self.0 * 2).min(LONGEST_PAUSE);
    }

    fn reset(&mut self) {
        *self = Self::default();
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
        .write(ARRIVAL, |connection, request| {
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
        .write(ARRIVAL, |connection, request| {
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
    Ok(mapped.volume.unwrap_or_default().id)
}
