//! Making a store, and running a member on it from start to clean end.

use std::time::Duration;

use futures::future::BoxFuture;
use pflex_common::{
    net::{ConnectionLimits, Endpoint, ListenError, incoming_within, listen},
    shutdown::Shutdown,
};

use super::{
    MdmConfig,
    announce::{Announcement, announce},
    join,
};
use crate::{
    api::{self, Api, MapFeed},
    liveness::{self, Liveness},
    raft::{GroupConfig, MembershipError, OpenError, RaftGroup, StoreError, StoreIdentity},
};

/// What requests under way get at the end.
const DRAIN: Duration = Duration::from_secs(1);
/// HTTP/2 pings find a client that vanished without a FIN, and end its streams.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(3);
/// Streams of one client connection: a process has a handful.
const MAX_STREAMS: u32 = 1_024;
/// A dozen short headers.
const MAX_HEADER_BYTES: u32 = 16 << 10;

/// Why a member does not run.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The store cannot be made.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Raft does not start.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The store is not the one that the configuration names (S18).
    #[error("{dir} is store {found}, the configuration says {expected}; a lost store is replaced, never recreated")]
    OtherStore {
        /// The directory.
        dir: String,
        /// What is there.
        found: pflex_proto::ids::StoreUuid,
        /// What should be.
        expected: pflex_proto::ids::StoreUuid,
    },
    /// A member that joins has no store, and its id is a member's already.
    #[error(
        "mdm {id} is a member with another store, and {dir} has none; a node that lost its store comes back only under a new id: `pflex cluster replace-node {id} NEW`"
    )]
    IdTaken {
        /// The id.
        id: pflex_proto::ids::MdmId,
        /// The directory.
        dir: String,
    },
    /// The API port.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The first members were refused.
    #[error("cannot begin the cluster")]
    Bootstrap(#[from] MembershipError),
    /// The API's own description does not parse; a bug.
    #[error("cannot describe the API")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// The API port failed while it ran.
    #[error("the API port failed")]
    Serve(#[from] tonic::transport::Error),
}

/// Makes the member's empty store; once in its life, before the first [`run`].
///
/// # Errors
/// When there is a store already, or the directory cannot be written.
///
/// A member that joins makes its store itself at its first start.
pub fn init(config: &MdmConfig) -> Result<(), DaemonError> {
    let Some(store) = config.store else { return Ok(()) };
    let identity = StoreIdentity { cluster: config.cluster, node: config.id, store };
    Ok(RaftGroup::create_store(&config.dir, identity)?)
}

/// Runs the member until `shutdown`, then ends it cleanly.
///
/// # Errors
/// When it cannot start, or its API port fails.
///
/// Boxed, so that the whole process is compiled with its own crate and not again with whoever runs it.
pub fn run(config: MdmConfig, shutdown: Shutdown) -> BoxFuture<'static, Result<(), DaemonError>> {
    Box::pin(run_member(config, shutdown))
}

async fn run_member(config: MdmConfig, shutdown: Shutdown) -> Result<(), DaemonError> {
    let group = open(&config).await?;
    let served = serve(&config, &group, shutdown).await;
    group.shutdown().await;
    served
}

async fn open(config: &MdmConfig) -> Result<RaftGroup, DaemonError> {
    let open = || {
        let proposals = config.limits.proposals;
        let group = GroupConfig { proposals, ..GroupConfig::new(config.cluster, config.id, config.listen_raft) };
        RaftGroup::open(&config.dir, group)
    };
    let group = match open().await {
        Err(OpenError::Store(StoreError::Missing { .. })) if config.store.is_none() => {
            join::make_store(config).await?;
            open().await?
        }
        other => other?,
    };
    let found = group.identity().store;
    if let Some(expected) = config.store.filter(|expected| *expected != found) {
        group.stop().await;
        let dir = config.dir.display().to_string();
        return Err(DaemonError::OtherStore { dir, found, expected });
    }
    Ok(group)
}

async fn serve(config: &MdmConfig, group: &RaftGroup, shutdown: Shutdown) -> Result<(), DaemonError> {
    let listener = listen("client API", &endpoint(config.listen_api)).await?;
    begin(config, group).await?;

    // Ends after leadership is handed over, so that clients are served without a gap.
    let serving = Shutdown::new();
    let feed = MapFeed::start(group.clone(), serving.clone());
    let liveness = Liveness::default();
    let api = Api::new(
        (config.cluster, config.addresses.clone()),
        group.clone(),
        feed,
        liveness.clone(),
        config.limits,
        serving.clone(),
    );
    let routes = api::routes(&api).await?;
    let upkeep = liveness::run(config.cluster, group.clone(), liveness, api.reports().clone(), serving.clone());
    tokio::spawn(upkeep);
    tokio::spawn(announce(announcement(config), group.clone(), serving.clone()));

    let connections = ConnectionLimits::of(config.limits.connections);
    let server = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .max_concurrent_streams(MAX_STREAMS)
        // A member that was frozen finds what its clients gave up meanwhile; h2 takes more than 20 such for an attack.
        .http2_max_pending_accept_reset_streams(Some(MAX_STREAMS as usize))
        .http2_max_header_list_size(MAX_HEADER_BYTES)
        .add_routes(routes)
        .serve_with_incoming_shutdown(incoming_within(listener, connections), serving.clone().cancelled_owned());
    tracing::info!(mdm = %config.id, api = %config.listen_api, raft = %config.listen_raft, "serving");
    let mut server = tokio::spawn(server);
    tokio::select! {
        ended = &mut server => return ended.map_or(Ok(()), |served| Ok(served?)),
        () = shutdown.cancelled() => {}
    }
    group.hand_over().await;
    serving.cancel();
    // Requests under way get a moment; a client that holds its connection open does not hold this process.
    match tokio::time::timeout(DRAIN, &mut server).await {
        Ok(ended) => ended.map_or(Ok(()), |served| Ok(served?)),
        Err(_) => {
            server.abort();
            Ok(())
        }
    }
}

/// The first member begins the cluster's life, if nobody did.
async fn begin(config: &MdmConfig, group: &RaftGroup) -> Result<(), DaemonError> {
    if !config.bootstraps() || group.is_bootstrapped().await? {
        return Ok(());
    }
    tracing::info!(cluster = %config.cluster, members = config.first.len(), "beginning a new cluster");
    match group.bootstrap(config.first.clone()).await {
        Ok(()) => Ok(()),
        // Begun while this looked: another start of the same member, say.
        Err(MembershipError::Refused { .. }) if group.is_bootstrapped().await? => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn announcement(config: &MdmConfig) -> Announcement {
    Announcement {
        cluster: config.cluster,
        name: format!("mdm{}", config.id),
        addresses: config.addresses.clone(),
        members: config.apis.clone(),
    }
}

/// An IPv6 address needs brackets beside a port.
fn endpoint(address: std::net::SocketAddr) -> Endpoint {
    match address.ip() {
        std::net::IpAddr::V4(ip) => Endpoint::new(ip.to_string(), address.port()),
        std::net::IpAddr::V6(ip) => Endpoint::new(format!("[{ip}]"), address.port()),
    }
}
