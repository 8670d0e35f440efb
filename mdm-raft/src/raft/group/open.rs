//! Making a store, and starting a member on it.

use std::{
    io,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex, atomic::AtomicUsize},
    time::{Duration, Instant},
};

use openraft::Raft;
use pflex_common::net::{ConnectionLimits, incoming_within};
use tokio::{net::TcpListener, runtime::Runtime, sync::Semaphore, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use super::{Group, GroupConfig, Inner, leader, settle, standing};
use crate::raft::{
    durable,
    error::StoreError,
    identity::{self, Phase, StoreIdentity},
    log_store::LogStore,
    network::{PeerFactory, PeerService, heard::Heard, standing::Told},
    state_store::StateStore,
};

/// Raft does little work of its own; disk waits are on the flush thread, and what takes long gives the thread away
/// (`state_store::machine`). With two, the steps of one write wake one another across threads: half as many context
/// switches again and a sixth more CPU for a single write.
const RAFT_THREADS: usize = 1;
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// openraft has one append, a vote and a hand-over under way with each peer.
const REQUESTS_PER_CONNECTION: usize = 16;
/// Requests that a peer gave up while this process was frozen, found when it thaws; h2 takes more than 20 such for an
/// attack and ends the connection. Peers end a connection after seconds of silence, long before they get this far.
const GIVEN_UP_WHILE_FROZEN: usize = 1_024;

/// Each of six others has a handful: far more than that, so that peers find a place beside whoever else knocks.
const PEERS: ConnectionLimits = ConnectionLimits::of(1_024);

/// Why a member does not start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The Raft port.
    #[error("cannot listen on {address} for Raft peers; is another process using the port?")]
    Listen {
        /// The address asked for.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// Settings that contradict one another.
    #[error("the Raft settings contradict one another")]
    Config(#[from] openraft::ConfigError),
    /// No runtime.
    #[error("cannot start the Raft threads")]
    Runtime(#[source] io::Error),
    /// openraft refused the stores.
    #[error("cannot start Raft: {0}")]
    Raft(String),
}

pub(super) fn create_store(dir: &Path, identity: StoreIdentity) -> Result<(), StoreError> {
    refuse_existing(dir)?;
    durable::make_dir(dir).map_err(StoreError::io("create", dir))?;
    // Until the second write nothing of this store was ever heard of, so a crash in between starts over.
    identity::write(dir, identity, Phase::Creating)?;
    LogStore::create(dir, identity)?;
    StateStore::create(dir, identity)?;
    identity::write(dir, identity, Phase::Ready)
}

/// A directory with a store in it is never emptied to make room.
pub(super) fn refuse_existing(dir: &Path) -> Result<(), StoreError> {
    if let Some((_, Phase::Ready)) = identity::read(dir)? {
        return Err(StoreError::Exists { dir: dir.into() });
    }
    let without_header =
        identity::read(dir)?.is_none() && ["raft.db", "CURRENT_STATE"].iter().any(|part| dir.join(part).exists());
    if without_header {
        // Never emptied to make room: it may be the store of a member whose header was lost.
        let what = "it holds a store whose STORE file is gone".to_owned();
        return Err(StoreError::Damaged { path: dir.into(), what });
    }
    Ok(())
}

pub(super) async fn open(dir: &Path, config: GroupConfig) -> Result<Group, OpenError> {
    let settings = Arc::new(config.openraft()?);
    let identity = identity::check(dir, config.cluster, config.node)?;
    let runtime = Starting(Some(build_runtime().map_err(OpenError::Runtime)?));

    let address = config.listen;
    let bind = runtime.handle().spawn(async move { TcpListener::bind(address).await });
    let listener = joined(bind).await?.map_err(|source| OpenError::Listen { address, source })?;
    let listening = listener.local_addr().map_err(|source| OpenError::Listen { address, source })?;

    let (log, state) = joined(runtime.handle().spawn_blocking({
        let (dir, fatal, links) = (dir.to_path_buf(), config.fatal.clone(), config.links.clone());
        move || -> Result<_, StoreError> {
            let log = LogStore::open(&dir, identity, fatal.clone())?;
            Ok((log, StateStore::open(&dir, identity, fatal)?.with_links(links)))
        }
    }))
    .await??;
    let (shared, snapshots, syncs) = (state.shared(), state.snapshots(), log.counter());

    let told = Told::default();
    let network = PeerFactory::new(identity, config.links.clone(), told.clone());
    let start = runtime.handle().spawn(Raft::new(config.node, settings, network, log, state));
    let raft = joined(start).await?.map_err(|error| OpenError::Raft(error.to_string()))?;

    let stop = CancellationToken::new();
    let heard = Heard::new(Instant::now());
    let service = PeerService::new(
        identity,
        raft.clone(),
        snapshots.clone(),
        config.links.clone(),
        (heard.clone(), told.clone()),
    );
    let serve = tonic::transport::Server::builder()
        // A peer that vanished without a word does not keep its connection, nor a flood of requests the memory.
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE))
        .concurrency_limit_per_connection(REQUESTS_PER_CONNECTION)
        .http2_max_pending_accept_reset_streams(Some(GIVEN_UP_WHILE_FROZEN))
        .add_service(service)
        // Sets TCP_NODELAY, which the builder does only for listeners of its own: a reply held back by Nagle for the
        // peer's delayed acknowledgement costs 40 ms of every other round.
        .serve_with_incoming_shutdown(incoming_within(listener, PEERS), stop.clone().cancelled_owned());
    let server = runtime.handle().spawn(async move {
        if let Err(error) = serve.await {
            tracing::error!("the Raft port failed: {error}");
        }
    });
    let (leader, members) = leader::watch(&raft, runtime.handle(), stop.clone(), config.fatal.clone());
    runtime.handle().spawn(standing::follow(raft.clone(), told.clone(), stop.clone()));
    let proposals = config.proposals;
    let tasks = runtime.handle().clone();
    let group = Arc::new(Inner {
        config,
        identity,
        listening,
        raft,
        shared,
        snapshots,
        leader,
        members,
        heard,
        told,
        syncs,
        proposals: Semaphore::new(proposals),
        changes: AtomicUsize::new(0),
        server: Mutex::new(Some(server)),
        stop: stop.clone(),
        runtime: Mutex::new(runtime.started()),
    });
    tasks.spawn(settle::run(Arc::downgrade(&group), stop));
    Ok(Group(group))
}

fn build_runtime() -> io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(RAFT_THREADS).thread_name("raft").enable_all().build()
}

async fn joined<T>(task: JoinHandle<T>) -> Result<T, OpenError> {
    task.await.map_err(|error| OpenError::Raft(error.to_string()))
}

/// A runtime that may be dropped from async code when opening fails half-way.
struct Starting(Option<Runtime>);

impl Starting {
    fn handle(&self) -> &tokio::runtime::Handle {
        self.0.as_ref().expect("taken only at the end").handle()
    }

    fn started(mut self) -> Option<Runtime> {
        self.0.take()
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}
