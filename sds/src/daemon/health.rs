//! Health: what this process reports every 10 s, and what its management port answers.

use std::{sync::Arc, sync::atomic::Ordering::Relaxed, time::Duration};

use pflex_common::{
    clock::{MonotonicTime, wall_ms},
    histogram::Snapshot,
    host,
    mdm::Patience,
};
use pflex_proto::pb::{
    ComponentKind, DeviceStats, HealthReport, Latency, LatencyBucket, Metric, RefusedDevice, SdsStats, SdsStatsRequest,
    liveness_client::LivenessClient, sds_management_server::SdsManagement,
};
use tonic::{Request, Response, Status};
use tracing::debug;

use super::Server;
use crate::{admission::HEARD_WITHIN, worker::DeviceHandle};

/// Between two reports.
const INTERVAL: Duration = Duration::from_secs(10);
/// Between two looks at the counters.
const RATES_INTERVAL: Duration = Duration::from_secs(1);
/// For one report.
const PATIENCE: Patience = Patience::within(Duration::from_secs(5));

/// Until the process ends.
pub(super) async fn report(server: Arc<Server>) {
    loop {
        let request = HealthReport {
            kind: ComponentKind::Sds.into(),
            id: server.id.0,
            name: server.name.clone(),
            process_id: server.process.as_bytes().to_vec(),
            metrics: metrics(&server),
            wall_ms: 0,
        };
        let call = |connection| {
            // When it is sent: it may wait for a leader before.
            let request = HealthReport { wall_ms: wall_ms(), ..request.clone() };
            async move { LivenessClient::new(connection).report(request).await }
        };
        if let Err(error) = server.client.read(PATIENCE, call).await {
            debug!(%error, "health was not reported");
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Until the process ends.
pub(super) async fn sample_rates(server: Arc<Server>) {
    loop {
        server.devices().iter().for_each(|device| device.counters.look_at_rates());
        tokio::time::sleep(RATES_INTERVAL).await;
    }
}

fn metrics(server: &Server) -> Vec<Metric> {
    let sum =
        |of: fn(&DeviceStats) -> u64| server.devices().iter().map(stats).map(|stats| of(&stats)).sum::<u64>() as f64;
    let metric = |name: &str, value| Metric { name: name.into(), value };
    let own = vec![
        metric("pflex.sds.devices.refused", server.refused().len() as f64),
        metric("pflex.sds.capacity", sum(|stats| stats.capacity_bytes)),
        metric("pflex.sds.used", sum(|stats| stats.used_bytes)),
        metric("pflex.sds.reads", sum(|stats| stats.reads)),
        metric("pflex.sds.read.bytes", sum(|stats| stats.read_bytes)),
        metric("pflex.sds.writes", sum(|stats| stats.writes)),
        metric("pflex.sds.written.bytes", sum(|stats| stats.written_bytes)),
        metric("pflex.sds.tokens.refused", sum(|stats| stats.bad_tokens)),
    ];
    own.into_iter().chain(host::process_metrics()).collect()
}

fn stats(device: &DeviceHandle) -> DeviceStats {
    let counters = &device.counters;
    let sick = counters.sick(MonotonicTime::now());
    DeviceStats {
        device_id: device.own.device.0,
        incarnation: device.own.incarnation.0,
        capacity_bytes: counters.capacity_bytes.load(Relaxed),
        used_bytes: counters.used_bytes.load(Relaxed),
        journal_bytes: counters.journal_bytes.load(Relaxed),
        journal_used_bytes: counters.journal_used_bytes.load(Relaxed),
        reads: counters.reads.load(Relaxed),
        read_bytes: counters.read_bytes.load(Relaxed),
        writes: counters.writes.load(Relaxed),
        written_bytes: counters.written_bytes.load(Relaxed),
        pgs_primary: counters.pgs_primary.load(Relaxed),
        pgs_backup: counters.pgs_backup.load(Relaxed),
        pgs_joining: counters.pgs_joining.load(Relaxed),
        failed: sick.is_some(),
        repaired_blocks: counters.repaired_blocks.load(Relaxed),
        unreadable_blocks: counters.unreadable_blocks.load(Relaxed),
        why: sick.or_else(|| limited(device)).unwrap_or_default(),
        rates: Some(counters.rates_now()),
        bad_tokens: counters.bad_tokens.load(Relaxed),
        latencies: [
            ("client.read", &counters.read_latency),
            ("client.write", &counters.write_latency),
            ("disk.read", &counters.meter.reads),
            ("disk.write", &counters.meter.writes),
            ("disk.journal", &counters.meter.durable_writes),
            ("disk.sync", &counters.meter.syncs),
        ]
        .map(|(of, histogram)| latency(of, &histogram.snapshot()))
        .into(),
    }
}

fn latency(of: &str, taken: &Snapshot) -> Latency {
    let bucket = |(most_us, count): &(u64, u64)| LatencyBucket { most_us: *most_us, count: *count };
    Latency { of: of.into(), sum_us: taken.sum_us, buckets: taken.buckets.iter().map(bucket).collect() }
}

/// What keeps a device that works from doing all it could.
fn limited(device: &DeviceHandle) -> Option<String> {
    let counters = &device.counters;
    if counters.confirmed().0 == 0 {
        return Some("it has no cluster map yet, so it serves nothing".to_owned());
    }
    if counters.starved.load(Relaxed) {
        return Some("what it is on has no space left: writes to new chunks are refused".to_owned());
    }
    if counters.full.load(Relaxed) {
        return Some("it is full: writes to new chunks are refused".to_owned());
    }
    counters.trouble()
}

/// What follows from how long ago a leader was heard.
fn unheard(age: Option<Duration>) -> Option<String> {
    match age {
        None => Some("no MDM leader was heard since this process started, so no IO is admitted".to_owned()),
        Some(age) if age > HEARD_WITHIN => {
            Some(format!("no MDM leader was heard for {} s, so no session is opened", age.as_secs()))
        }
        Some(_) => None,
    }
}

/// What the management port answers.
pub(super) struct Management(pub(super) Arc<Server>);

#[tonic::async_trait]
impl SdsManagement for Management {
    async fn stats(&self, _: Request<SdsStatsRequest>) -> Result<Response<SdsStats>, Status> {
        let uptime_ms = u64::try_from(self.0.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let now = MonotonicTime::now();
        let unheard = unheard(self.0.log_time.age(now));
        let mut devices: Vec<_> = self.0.devices().iter().map(stats).collect();
        for device in devices.iter_mut().filter(|device| device.why.is_empty()) {
            device.why = unheard.clone().unwrap_or_default();
        }
        let log_time_ms = self.0.log_time.now_ms(now);
        let row = |device: super::devices::RefusedDevice| RefusedDevice {
            path: device.path.display().to_string(),
            why: device.why,
        };
        let refused = self.0.refused().into_iter().map(row).collect();
        Ok(Response::new(SdsStats { sds_id: self.0.id.0, devices, uptime_ms, log_time_ms, refused }))
    }
}
