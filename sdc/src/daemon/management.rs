//! The control and management planes: health on both, counters on the second. Read only.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use pflex_common::histogram::{Histogram, Snapshot};
use pflex_common::net::incoming;
use pflex_common::shutdown::Shutdown;
use pflex_proto::ids::SdcId;
use pflex_proto::pb::sdc_management_server::{SdcManagement, SdcManagementServer};
use pflex_proto::pb::{DESCRIPTORS, Latency, LatencyBucket, SdcStats, SdcStatsRequest, VolumeStats};
use tokio::net::TcpListener;
use tonic::transport::Server;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::server::HealthReporter;
use tracing::error;

use super::MappedVolumes;
use super::rates::Rates;
use crate::engine::Volume;
use crate::engine::metered::Usage;
use crate::nbd::NbdServer;

/// A reporter that says "not serving" until told otherwise, and its service.
pub(super) async fn health() -> (HealthReporter, HealthServer<impl Health>) {
    let (reporter, service) = tonic_health::server::health_reporter();
    reporter.set_service_status("", tonic_health::ServingStatus::NotServing).await;
    (reporter, service)
}

/// From now on clients are served.
pub(super) async fn serving(reporter: &HealthReporter) {
    reporter.set_service_status("", tonic_health::ServingStatus::Serving).await;
}

/// Serves health alone, on the control plane.
pub(super) async fn serve_health(listener: TcpListener, health: HealthServer<impl Health>, shutdown: Shutdown) {
    let served = Server::builder()
        .add_service(health)
        .serve_with_incoming_shutdown(incoming(listener), shutdown.cancelled_owned());
    if let Err(error) = served.await {
        error!(%error, "the control plane stopped");
    }
}

/// Serves health, counters and reflection, on the management plane.
pub(super) async fn serve(
    listener: TcpListener,
    health: HealthServer<impl Health>,
    management: Management,
    shutdown: Shutdown,
) {
    let management = SdcManagementServer::new(management);
    let reflection = tonic_reflection::server::Builder::configure().register_encoded_file_descriptor_set(DESCRIPTORS);
    let reflection = reflection.build_v1().expect("the descriptors were made by our own build");
    let served = Server::builder()
        .add_service(health)
        .add_service(management)
        .add_service(reflection)
        .serve_with_incoming_shutdown(incoming(listener), shutdown.cancelled_owned());
    if let Err(error) = served.await {
        error!(%error, "the management plane stopped");
    }
}

/// What is told.
pub(super) struct Management {
    pub(super) volumes: Arc<MappedVolumes>,
    pub(super) nbd: NbdServer<MappedVolumes>,
    pub(super) sdc: SdcId,
    pub(super) rates: Rates,
    pub(super) resumed: Arc<AtomicBool>,
    pub(super) started: Instant,
}

impl Management {
    fn volume(&self, volume: &Volume, usage: Option<&(Arc<Usage>, bool)>) -> VolumeStats {
        let (spec, statistics) = (volume.spec(), volume.statistics());
        let counters @ [reads, writes, read_bytes, written_bytes] = statistics.counters();
        let [reads_per_second, writes_per_second, read_bytes_per_second, written_bytes_per_second] =
            self.rates.of(spec.id, counters, tokio::time::Instant::now());
        let stats = VolumeStats {
            volume_id: spec.id.0,
            name: spec.name.clone(),
            reads,
            read_bytes,
            writes,
            written_bytes,
            retries: statistics.retries.load(Ordering::Relaxed),
            errors: statistics.errors.load(Ordering::Relaxed),
            in_flight: volume.writes_in_flight() as u32,
            longest_stall_us: statistics.longest_stall_us.load(Ordering::Relaxed),
            reads_per_second,
            writes_per_second,
            read_bytes_per_second,
            written_bytes_per_second,
            ..Default::default()
        };
        let Some((usage, read_only)) = usage else { return stats };
        let (throttle, limits) = (&usage.throttle, usage.throttle.limits());
        VolumeStats {
            latencies: vec![
                latency("read", &usage.reads),
                latency("write", &usage.writes),
                latency("flush", &usage.flushes),
            ],
            throttled: throttle.held_back(),
            throttled_us: throttle.held_back_for().as_micros() as u64,
            waiting: throttle.waiting() as u64,
            iops_limit: limits.iops,
            bandwidth_limit: limits.bandwidth,
            read_only: *read_only,
            ..stats
        }
    }
}

fn latency(of: &str, histogram: &Histogram) -> Latency {
    let Snapshot { sum_us, buckets } = histogram.snapshot();
    let buckets = buckets.into_iter().map(|(most_us, count)| LatencyBucket { most_us, count }).collect();
    Latency { of: of.to_owned(), sum_us, buckets }
}

#[tonic::async_trait]
impl SdcManagement for Management {
    async fn stats(&self, _request: Request<SdcStatsRequest>) -> Result<Response<SdcStats>, Status> {
        let usage = self.volumes.usage();
        let volumes = self.volumes.engine().volumes();
        let volumes = volumes.iter().map(|volume| self.volume(volume, usage.get(&volume.id()))).collect();
        let uptime_ms = self.started.elapsed().as_millis() as u64;
        let connections = self.nbd.connections() as u64;
        let resumed = self.resumed.load(Ordering::Relaxed);
        Ok(Response::new(SdcStats { sdc_id: self.sdc.0, volumes, uptime_ms, connections, resumed }))
    }
}
