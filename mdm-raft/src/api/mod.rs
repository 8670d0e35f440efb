//! The client API: gRPC services that validate, make a command, have the group order it, and say what came of it.
//!
//! Reading order: `context` (what every service shares: propose, read, refuse), `error` (how failures travel), `convert`
//! (state to messages), then one file per service of `proto/pflex/mdm.proto`.
//!
//! Invariants: a service decides nothing that `state::apply` decides; a mutating call is proposed at most once per
//! request id by this member, and whatever it could not learn is said to be unknown.

mod admin;
mod backup;
mod cluster;
pub(crate) mod context;
pub(crate) mod convert;
mod discovery;
mod error;
mod gate;
mod insight;
mod liveness;
mod map;
mod membership;
mod placement;
mod promotion;
mod recovery;
mod refused;
mod sessions;
mod tokens;
mod topology;
mod vitals;
mod work;

pub use context::{Api, Limits};
pub(crate) use convert::used_of;
pub use map::MapFeed;
use map::MapService;

use pflex_proto::pb::{
    admin_server::AdminServer, cluster_server::ClusterServer, discovery_server::DiscoveryServer,
    insight_server::InsightServer, liveness_server::LivenessServer, placement_server::PlacementServer,
    recovery_server::RecoveryServer, refused_tokens_server::RefusedTokensServer, sessions_server::SessionsServer,
    tokens_server::TokensServer, topology_server::TopologyServer, vitals_server::VitalsServer, work_server::WorkServer,
};
use tonic::service::{Routes, RoutesBuilder, interceptor::InterceptedService};

use gate::Gate;

/// Most bytes of a request to a service that takes no lists: names, numbers and a few addresses.
const SMALL_BYTES: usize = 64 << 10;
/// Of one that takes lists: a batch of 16,384 PG proposals with four members each is under 2 MiB.
const LIST_BYTES: usize = 4 << 20;

/// Every service of the client port, with health and reflection.
pub async fn routes(api: &Api) -> Result<Routes, tonic_reflection::server::Error> {
    let (reporter, health) = tonic_health::server::health_reporter();
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(pflex_proto::pb::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?;
    let mut routes = RoutesBuilder::default();
    /// Adds a service behind the cluster check, and says that it serves.
    macro_rules! serve {
        ($($server:ident: $bytes:ident),*) => {$(
            reporter.set_serving::<$server<Api>>().await;
            let server = $server::new(api.clone()).max_decoding_message_size($bytes);
            routes.add_service(InterceptedService::new(Gate::new(server), api.guard()));
        )*};
    }
    serve!(
        SessionsServer: SMALL_BYTES,
        DiscoveryServer: LIST_BYTES,
        LivenessServer: LIST_BYTES,
        PlacementServer: LIST_BYTES,
        TokensServer: LIST_BYTES,
        RefusedTokensServer: LIST_BYTES,
        AdminServer: SMALL_BYTES,
        TopologyServer: SMALL_BYTES,
        VitalsServer: SMALL_BYTES,
        InsightServer: SMALL_BYTES,
        WorkServer: SMALL_BYTES,
        RecoveryServer: LIST_BYTES,
        ClusterServer: SMALL_BYTES
    );
    reporter.set_serving::<MapService>().await;
    routes.add_service(InterceptedService::new(Gate::new(MapService(api.clone())), api.guard()));
    routes.add_service(health);
    routes.add_service(reflection);
    Ok(routes.routes())
}
