//! The control and management planes: health on both, counters on the second. Read only.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use pflex_common::net::incoming;
use pflex_common::shutdown::Shutdown;
use pflex_proto::ids::SdcId;
use pflex_proto::pb::sdc_management_server::{SdcManagement, SdcManagementServer};
use pflex_proto::pb::{DESCRIPTORS, SdcStats, SdcStatsRequest, VolumeStats};
use tokio::net::TcpListener;
use tonic::transport::Server;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::server::HealthReporter;
use tracing::error;

use super::MappedVolumes;
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
    volumes: Arc<MappedVolumes>,
    nbd: NbdServer<MappedVolumes>,
    sdc: SdcId,
    shutdown: Shutdown,
) {
    let management = SdcManagementServer::new(Management { volumes, nbd, sdc, started: Instant::now() });
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

struct Management {
    volumes: Arc<MappedVolumes>,
    nbd: NbdServer<MappedVolumes>,
    sdc: SdcId,
    started: Instant,
}

#[tonic::async_trait]
impl SdcManagement for Management {
    async fn stats(&self, _request: Request<SdcStatsRequest>) -> Result<Response<SdcStats>, Status> {
        let volumes = self.volumes.engine().volumes().into_iter().map(|volume| {
            let (spec, statistics) = (volume.spec(), volume.statistics());
            VolumeStats {
                volume_id: spec.id.0,
                name: spec.name.clone(),
                reads: statistics.reads.load(Ordering::Relaxed),
                read_bytes: statistics.read_bytes.load(Ordering::Relaxed),
                writes: statistics.writes.load(Ordering::Relaxed),
                written_bytes: statistics.written_bytes.load(Ordering::Relaxed),
                retries: statistics.retries.load(Ordering::Relaxed),
                errors: statistics.errors.load(Ordering::Relaxed),
                in_flight: volume.writes_in_flight() as u32,
                longest_stall_us: statistics.longest_stall_us.load(Ordering::Relaxed),
            }
        });
        let volumes = volumes.collect();
        let uptime_ms = self.started.elapsed().as_millis() as u64;
        let connections = self.nbd.connections() as u64;
        Ok(Response::new(SdcStats { sdc_id: self.sdc.0, volumes, uptime_ms, connections }))
    }
}
