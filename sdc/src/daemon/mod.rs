//! The SDC process: registers with the MDM, follows the map, keeps tokens, and serves NBD.
//!
//! Block IO has a runtime of its own, so that nothing the control plane does delays it. Order at the start: the boot
//! counter is raised and synced before anything else (S9), ports are taken before the cluster is asked for anything, and
//! clients are served once the first map is there.

mod config;
mod exports;
mod kept;
mod management;
mod mdm;
mod rates;
mod state;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use pflex_common::clock::MonotonicTime;
use pflex_common::map;
use pflex_common::mdm::MdmClient;
use pflex_common::net::{self, Endpoint};
use pflex_common::registration::Takeover;
use pflex_common::shutdown::Shutdown;
use pflex_common::tls::{self, Clients, TlsError};
use pflex_proto::ids::{ClusterId, ProcessId, SdcId};
use pflex_proto::pb::ComponentKind;
use tokio::net::{TcpListener, UnixListener};
use tracing::{info, warn};

pub use config::{ConfigError, ConfigFile, NbdTls, SdcConfig};
pub use exports::MappedVolumes;
pub use state::StateError;

use crate::engine::{Engine, Identity, Marks, Patience, Routes, TokenKeeper};
use crate::nbd::{NbdServer, ServerLimits};

/// How long running requests may take to finish at shutdown.
const DRAIN: Duration = Duration::from_secs(5);
/// How long an MDM has to answer a process that could go on without. Longer than most elections.
const RESUME_AFTER: Duration = Duration::from_secs(1);

/// Why the SDC does not run.
#[derive(Debug, thiserror::Error)]
pub enum SdcError {
    /// Its own files.
    #[error(transparent)]
    State(#[from] StateError),
    /// A port.
    #[error(transparent)]
    Listen(#[from] net::ListenError),
    /// The unix socket.
    #[error("cannot listen on unix socket {path}")]
    Socket {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Its certificates.
    #[error("no TLS for NBD: {0}")]
    Tls(#[from] TlsError),
    /// The runtime of the data plane.
    #[error("cannot start the data-plane threads")]
    Threads(#[source] io::Error),
    /// The MDMs belong to another cluster than this client's data directory.
    #[error(
        "{dir} belongs to cluster {ours}, the MDMs at {members} to {theirs}; use another data directory or list of MDMs"
    )]
    OtherCluster {
        /// The data directory.
        dir: PathBuf,
        /// Its cluster.
        ours: ClusterId,
        /// The configured MDMs.
        members: String,
        /// Their cluster, or what they say.
        theirs: String,
    },
    /// The MDM refuses this client for good.
    #[error("the MDM refuses SDC {name}: {why}")]
    Refused {
        /// Its name.
        name: String,
        /// What the MDM says.
        why: String,
    },
    /// Another process of this SDC has registered, and tokens go to that one (S9).
    #[error("SDC {name} runs elsewhere: {why}; this process ends")]
    Superseded {
        /// Its name.
        name: String,
        /// What the MDM says.
        why: String,
    },
}

/// Runs an SDC until `shutdown`.
///
/// # Errors
/// See [`SdcError`]; the process should end with its message.
///
/// Boxed, so that the whole process is compiled with its own crate and not again with whoever runs it.
pub fn run(config: SdcConfig, shutdown: Shutdown) -> BoxFuture<'static, Result<(), SdcError>> {
    Box::pin(serve(config, shutdown))
}

async fn serve(config: SdcConfig, shutdown: Shutdown) -> Result<(), SdcError> {
    // Its own, because a process that is superseded stops by itself.
    let shutdown = shutdown.child_token();
    let mut state = state::State::open(&config.data_dir)?;
    let certificates = config.nbd_tls.as_ref().map(|NbdTls { certificates, verify_clients }| {
        tls::server(certificates, if *verify_clients { Clients::Verified } else { Clients::Anyone })
    });
    let certificates = certificates.transpose()?;
    let data = DataPlane::start(config.data_threads)?;
    let nbd = data.listen(config.nbd.clone()).await?;
    let unix = config.nbd_socket.clone().map(|path| data.listen_unix(path)).transpose()?;
    let management = net::listen("SDC management", &config.management).await?;
    let control = net::listen("SDC control", &config.control).await?;
    let addresses = mdm::Addresses::bound(&config, &nbd, &control, &management);

    // Remembers the members: the configured ones may all have been replaced when this process starts again.
    let memory = config.data_dir.join("mdms");
    let client = MdmClient::with_memory(format!("sdc {}", config.name), config.mdm.clone(), memory);
    let (health, health_service) = management::health().await;
    let management_task = tokio::spawn(management::serve_health(control, health_service.clone(), shutdown.clone()));

    // One that may go on without the MDMs does so as the process that its tokens name; every other start is a new process.
    let kept = tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        kept = kept_if_nobody_answers(&client, &config, &state) => kept,
    };
    let process = kept.as_ref().map_or_else(|| ProcessId(uuid::Uuid::new_v4()), |kept| kept.owner.process);
    let (cluster, sdc) = match &kept {
        Some(kept) => (kept.owner.cluster, SdcId(kept.owner.sdc)),
        None => {
            // Of a process that this one replaces: nobody goes on as that one any more.
            kept::remove(&config.data_dir);
            let registered = tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                registered = mdm::register(&client, &config, &mut state, process, &addresses) => registered?,
            };
            (registered.cluster, registered.sdc)
        }
    };
    let identity = Identity { cluster, sdc, process, boot: state.boot() };
    let Identity { sdc, boot, .. } = identity;
    if kept.is_some() {
        client.set_cluster(cluster);
        client.set_generation(state.generation());
        warn!(%sdc, %cluster, boot, nbd = %addresses.nbd, "no MDM answers; going on with the map and tokens that were kept");
    } else {
        info!(%sdc, %cluster, boot, nbd = %addresses.nbd, "SDC registered");
    }

    let map = kept.as_ref().map(|kept| kept.map.clone());
    let mut watcher = map::watch_from(map, client.clone(), ComponentKind::Sdc, identity.sdc.0, shutdown.clone());
    tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        first = watcher.wait_for(Option::is_some) => if first.is_err() { return Ok(()) },
    }
    let patience = Patience { io_deadline: config.io_deadline, ..Patience::default() };
    let engine = data
        .enter(|| Engine::new(identity, patience, Arc::new(Routes::default()), Marks::in_dir(config.data_dir.clone())));
    let keeper = Arc::new(TokenKeeper::default());
    let volumes = Arc::new(MappedVolumes::new(engine, Arc::clone(&keeper), identity.sdc));
    if let Some(kept) = &kept {
        kept.tokens().for_each(|token| keeper.resume(token));
    }
    volumes.follow(watcher.borrow_and_update().as_deref());
    let owner = kept::Owner::new(&state, cluster, sdc, process);
    let keeping = kept::Keeping::new(config.data_dir.clone(), owner, kept.as_ref());
    let resumed = Arc::new(AtomicBool::new(kept.is_some()));

    let takeover = Takeover::default();
    let ended = tokio::spawn({
        let (takeover, shutdown) = (takeover.clone(), shutdown.clone());
        async move {
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = takeover.declared() => shutdown.cancel(),
            }
        }
    });
    let source = mdm::LeaderTokens::new(client.clone(), identity, takeover.clone(), Arc::clone(&keeping));
    let tokens = data.runtime().spawn({
        let (keeper, shutdown) = (Arc::clone(&keeper), shutdown.clone());
        async move { keeper.run(source, shutdown).await }
    });
    let registrations = mdm::Registrations {
        client: client.clone(),
        config: config.clone(),
        state,
        process,
        addresses,
        engine: Arc::clone(volumes.engine()),
        keeping: Arc::clone(&keeping),
        resumed: Arc::clone(&resumed),
    };
    let generations = tokio::spawn(registrations.follow(watcher.clone(), shutdown.clone()));
    let keeping = tokio::spawn(keeping.run(watcher.clone(), shutdown.clone()));
    let following = tokio::spawn(exports::follow(Arc::clone(&volumes), watcher, shutdown.clone()));
    let reports =
        tokio::spawn(mdm::report(client, identity, config.name.clone(), Arc::clone(&volumes), shutdown.clone()));
    let limits = ServerLimits { drain_timeout: DRAIN, busy_poll: config.busy_poll, ..ServerLimits::default() };
    let server = NbdServer::new(Arc::clone(&volumes), limits);
    let server = match certificates {
        Some(certificates) => server.with_tls(certificates),
        None => server,
    };
    let rates = rates::Rates::default();
    let looking = tokio::spawn(rates.clone().follow(Arc::clone(&volumes), shutdown.clone()));
    let told = management::Management {
        volumes: Arc::clone(&volumes),
        nbd: server.clone(),
        sdc,
        rates,
        resumed,
        started: Instant::now(),
    };
    let stats = management::serve(management, health_service, told, shutdown.clone());
    let stats = tokio::spawn(stats);

    let mut serving = vec![data.runtime().spawn(server.clone().serve_tcp(nbd, shutdown.clone()))];
    if let Some(unix) = unix {
        serving.push(data.runtime().spawn(server.serve_unix(unix, shutdown.clone())));
    }
    management::serving(&health).await;
    for task in serving.into_iter().chain([
        tokens,
        following,
        generations,
        reports,
        stats,
        looking,
        keeping,
        management_task,
        ended,
    ]) {
        // A task that panicked has said so; the others still end in order.
        let _ = task.await;
    }
    // Nobody writes any more. What cannot be flushed now is owed by the next process (S14).
    let engine = Arc::clone(volumes.engine());
    let settled = data.runtime().spawn(async move { tokio::time::timeout(DRAIN, engine.settle()).await });
    let _ = settled.await;
    if let Some(path) = &config.nbd_socket {
        let _ = std::fs::remove_file(path);
    }
    if let Some(why) = takeover.why() {
        kept::remove(&config.data_dir);
        return Err(SdcError::Superseded { name: config.name, why: why.to_owned() });
    }
    info!("SDC stopped");
    Ok(())
}

/// What was kept, if it can be gone on with and no MDM answers.
async fn kept_if_nobody_answers(client: &MdmClient, config: &SdcConfig, state: &state::State) -> Option<kept::Kept> {
    match kept::Kept::load(state, MonotonicTime::now()) {
        Ok(kept) => {
            let answered = tokio::time::timeout(RESUME_AFTER, mdm::introduce(client, config, state)).await.is_ok();
            (!answered).then_some(kept)
        }
        Err(kept::Unusable::Nothing) => None,
        Err(why) => {
            info!(%why, "what was kept for a start without an MDM is of no use");
            None
        }
    }
}

/// The runtime of block IO.
struct DataPlane(Option<tokio::runtime::Runtime>);

impl DataPlane {
    fn start(threads: usize) -> Result<Self, SdcError> {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(threads).thread_name("sdc-data").enable_all().build();
        runtime.map(|runtime| Self(Some(runtime))).map_err(SdcError::Threads)
    }

    fn runtime(&self) -> &tokio::runtime::Runtime {
        self.0.as_ref().expect("taken only by drop")
    }

    fn enter<T>(&self, work: impl FnOnce() -> T) -> T {
        let _inside = self.runtime().enter();
        work()
    }

    /// Listens with the data plane's own reactor.
    async fn listen(&self, endpoint: Endpoint) -> Result<TcpListener, SdcError> {
        let listening = self.runtime().spawn(async move { net::listen("NBD", &endpoint).await });
        Ok(listening.await.expect("binding does not panic")?)
    }

    /// A socket file that nobody listens on is left from a crash and replaced.
    fn listen_unix(&self, path: PathBuf) -> Result<UnixListener, SdcError> {
        if std::os::unix::net::UnixStream::connect(&path)
            .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
        {
            let _ = std::fs::remove_file(&path);
        }
        self.enter(|| UnixListener::bind(&path)).map_err(|source| SdcError::Socket { path, source })
    }
}

impl Drop for DataPlane {
    fn drop(&mut self) {
        // Requests were drained; what still runs waits for a cluster that may never answer.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}
