//! The SDS process: learns its cluster, opens its devices, registers, and serves.
//!
//! Order at the start: ports are taken first; then the cluster is asked who it is, because a device of another cluster
//! must be refused before it is opened; a device is opened (its incarnation raised and synced, S2) before it is
//! registered; a data thread starts with the id that the MDM gave its device. MDMs may come up later than this process:
//! it waits for them.

mod acceptor;
mod config;
mod devices;
mod health;
mod identity;
mod liveness;
mod planes;
mod proposals;
mod recovery;
mod refused;
mod registration;
mod reload;
mod reopen;
mod reports;
mod roster;
mod watchdog;

use std::{
    io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::future::BoxFuture;
use pflex_common::{
    clock::MonotonicTime,
    durable::DurableError,
    map,
    mdm::MdmClient,
    net,
    registration::{Takeover, reachable_at},
    shutdown::Shutdown,
};
use pflex_proto::{
    ids::{ClusterGeneration, ClusterId, Member, ProcessId, SdsId},
    pb::ComponentKind,
};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

pub use config::{ConfigError, ConfigFile, DeviceFile, SdsConfig};
pub use reload::Reload;

use crate::{
    store::{MetaError, OpenError},
    worker::{self, Command, DeviceHandle, WorkerConfig},
};

/// Reports that may wait for the MDM: proposals of all groups of all devices fit.
const MAX_REPORTS: usize = 4096;

/// What devices get to close cleanly, when others wait for it or nobody does any more.
const BOUNDED_STOP: Duration = Duration::from_secs(5);

/// Why the SDS does not run.
#[derive(Debug, thiserror::Error)]
pub enum SdsError {
    /// A port.
    #[error(transparent)]
    Listen(#[from] net::ListenError),
    /// Its own small files.
    #[error(transparent)]
    File(#[from] DurableError),
    /// Its identity file is not one.
    #[error("{path} is damaged or of a newer release: {why}; restore it, or use an empty data directory")]
    Identity {
        /// Which.
        path: PathBuf,
        /// How.
        why: String,
    },
    /// `sds_local.db`.
    #[error("cannot open {path}; is another process using it?")]
    Meta {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: MetaError,
    },
    /// A device is refused. It was left untouched.
    #[error("device {path} is refused: {source}")]
    Device {
        /// Which.
        path: PathBuf,
        /// Why.
        source: OpenError,
    },
    /// The MDMs belong to another cluster than the data directory.
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
    /// The MDM refuses this server for good.
    #[error("the MDM refuses SDS {name}: {why}")]
    Refused {
        /// Its name.
        name: String,
        /// What the MDM says.
        why: String,
    },
    /// Another process of this SDS has registered, so this one must not go on (S2).
    #[error("SDS {name} runs elsewhere: {why}; this process ends")]
    Superseded {
        /// Its name.
        name: String,
        /// What the MDM says.
        why: String,
    },
    /// Its devices are to be opened anew, and one of them cannot be closed.
    #[error(
        "SDS {name} cannot close a device that hangs, so it cannot open it anew; this process ends: start it again"
    )]
    Hangs {
        /// Its name.
        name: String,
    },
    /// No thread for a device, or for a port.
    #[error("cannot start the data thread of a device or that of a port")]
    Threads(#[source] io::Error),
}

/// What the tasks of this process share.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) name: String,
    pub(crate) id: SdsId,
    pub(crate) process: ProcessId,
    pub(crate) client: MdmClient,
    pub(crate) roster: roster::Roster,
    pub(crate) started: Instant,
    /// Whether a newer process of this SDS has registered.
    pub(crate) takeover: Takeover,
    /// Log time as the MDM leaders stamped it.
    pub(crate) log_time: liveness::Counted,
    /// The generation of the cluster that it registered with.
    pub(crate) generation: ClusterGeneration,
    /// Cancelled when the cluster is of a newer one.
    pub(crate) restored: CancellationToken,
}

impl Server {
    /// The devices that serve now.
    pub(crate) fn devices(&self) -> Arc<[DeviceHandle]> {
        self.roster.open()
    }

    /// Those that are configured and out of service.
    pub(crate) fn refused(&self) -> Vec<devices::RefusedDevice> {
        self.roster.refused()
    }
}

/// Why serving ended well.
enum Ended {
    /// It was told to.
    Stopped,
    /// The cluster was restored from a backup.
    Restored,
    /// Groups cannot be served before their device is opened anew.
    Stuck(String),
}

/// Runs an SDS until `shutdown`. Whenever `reload` is asked for, devices that are new in the configuration are taken in.
///
/// # Errors
/// See [`SdsError`]; the process should end with its message.
///
/// Boxed, so that the whole process is compiled with its own crate and not again with whoever runs it.
pub fn run(mut config: SdsConfig, mut reload: Reload, shutdown: Shutdown) -> BoxFuture<'static, Result<(), SdsError>> {
    if !pflex_proto::token::IS_CHECKED {
        warn!("a build for benchmarks: nothing is authorised, anybody may read and write every volume");
    }
    Box::pin(async move {
        let mut pause = reopen::Pause::default();
        let mut entries = config.devices.clone();
        loop {
            config.devices.clone_from(&entries);
            match serve(config.clone(), (&mut reload, &mut entries), shutdown.clone(), &mut pause).await? {
                Ended::Stopped => return Ok(()),
                Ended::Stuck(why) => error!(sds = %config.name, why, "opening all devices anew"),
                // As after a restart of the process: everything is closed, and nothing that it held counts any more.
                Ended::Restored => warn!(
                    sds = %config.name,
                    "the cluster was restored from a backup; starting again to say what was known before"
                ),
            }
        }
    })
}

async fn serve(
    config: SdsConfig,
    (reload, entries): (&mut Reload, &mut Vec<DeviceFile>),
    shutdown: Shutdown,
    pause: &mut reopen::Pause,
) -> Result<Ended, SdsError> {
    let process = ProcessId(uuid::Uuid::new_v4());
    let data = net::listen("SDS data", &config.data).await?;
    let control = net::listen("SDS control", &config.control).await?;
    let management = net::listen("SDS management", &config.management).await?;
    let addresses = pflex_proto::pb::Addresses {
        data: reachable_at(&config.data, &data).to_string(),
        control: reachable_at(&config.control, &control).to_string(),
        management: reachable_at(&config.management, &management).to_string(),
        ..Default::default()
    };
    let mut identity = identity::Identity::open(&config.data_dir)?;
    // Remembers the members: the configured ones may all have been replaced when this process starts again.
    let memory = config.data_dir.join("mdms");
    let client = MdmClient::with_memory(format!("sds {}", config.name), config.mdm.clone(), memory);
    let registration = registration::Registration { config: &config, client: &client, process, addresses };

    let opened_at = MonotonicTime::now();
    let opening = async {
        let (cluster, id) = registration.introduce(&mut identity).await?;
        let devices = devices::open_all(&config, cluster, id).await?;
        let known = registration.devices(&mut identity, &devices.open).await?;
        Ok::<_, SdsError>((cluster, id, devices, known))
    };
    let (cluster, id, devices::Devices { open, refused, meta }, known) = tokio::select! {
        () = shutdown.cancelled() => return Ok(Ended::Stopped),
        opened = opening => opened?,
    };
    let registration::Devices { ids, registered, generation, rows } = known;
    let (reports, report_queue) = mpsc::channel(MAX_REPORTS);
    let mut handles = Vec::new();
    for (device, devices::OpenDevice { file, mut store, opened }) in ids.into_iter().zip(open) {
        store.registered(device).map_err(|source| SdsError::Device { path: file.path, source })?;
        let own = Member { device, sds: id, incarnation: opened.superblock.incarnation };
        info!(sds = %config.name, %device, incarnation = %own.incarnation, emptied = opened.emptied, replayed = opened.replayed_groups, "device in service");
        let worker = WorkerConfig {
            cluster,
            own,
            store,
            opened,
            opened_at,
            registered,
            departed_grace: worker::DEPARTED_GRACE,
            reports: reports.clone(),
        };
        handles.push(worker::spawn(worker).map_err(SdsError::Threads)?);
    }
    let name = config.name.clone();
    let server = Arc::new(Server {
        name,
        id,
        process,
        client: client.clone(),
        roster: roster::Roster::new(handles, refused),
        started: Instant::now(),
        takeover: Takeover::default(),
        log_time: liveness::Counted::default(),
        generation,
        restored: CancellationToken::new(),
    });

    let watching = shutdown.child_token();
    let watcher = map::watch(server.client.clone(), ComponentKind::Sds, id.0, watching.clone());
    let mut tasks = JoinSet::new();
    for device in server.devices().iter() {
        tasks.spawn(feed_maps(Arc::clone(&server), device.clone(), watcher.clone()));
    }
    let newcomers = reload::Newcomers {
        server: &server,
        config: &config,
        cluster,
        meta,
        registration,
        identity: &mut identity,
        rows,
        reports,
        watcher,
        entries,
    };
    tasks.spawn(watchdog::run(Arc::clone(&server)));
    tasks.spawn(health::sample_rates(Arc::clone(&server)));
    tasks.spawn(acceptor::run(Arc::clone(&server), data));
    tasks.spawn(liveness::run(Arc::clone(&server)));
    tasks.spawn(health::report(Arc::clone(&server)));
    tasks.spawn(reports::run(Arc::clone(&server), report_queue));
    let planes = planes::serve(Arc::clone(&server), control, management).await.map_err(SdsError::Threads)?;
    let mut stuck = None;
    let superseded = tokio::select! {
        () = shutdown.cancelled() => None,
        why = reopen::needed(&server, pause) => {
            stuck = Some(why);
            None
        }
        () = server.takeover.declared() => server.takeover.why().map(ToOwned::to_owned),
        () = server.restored.cancelled() => None,
        () = newcomers.run(reload) => None,
    };
    watching.cancel();
    // Listeners close by process exit only (S8), so the data threads finish first.
    let reopens = (stuck.is_some() || server.restored.is_cancelled()) && !shutdown.is_cancelled();
    let stopping = async {
        let devices = server.devices();
        for device in devices.iter() {
            device.stop().await;
        }
        for device in devices.iter().filter(|_| reopens) {
            device.join().await;
        }
    };
    let ended = match superseded.is_some() || reopens {
        false => {
            stopping.await;
            true
        }
        // A device that hangs must not keep alive a process of which nothing counts any more, nor the other devices closed.
        true => tokio::time::timeout(BOUNDED_STOP, stopping).await.is_ok(),
    };
    tasks.shutdown().await;
    for plane in planes {
        plane.end().await;
    }
    if let Some(why) = superseded {
        return Err(SdsError::Superseded { name: server.name.clone(), why });
    }
    let again = stuck.map(Ended::Stuck).or_else(|| server.restored.is_cancelled().then_some(Ended::Restored));
    if let Some(again) = again.filter(|_| !shutdown.is_cancelled()) {
        return if ended { Ok(again) } else { Err(SdsError::Hangs { name: server.name.clone() }) };
    }
    info!(sds = %server.name, "SDS stopped");
    Ok(Ended::Stopped)
}

/// One task for each device: one that hangs must not keep the map from the others.
async fn feed_maps(server: Arc<Server>, device: DeviceHandle, mut watcher: map::Watcher) {
    while watcher.changed().await.is_ok() {
        let Some(map) = watcher.borrow_and_update().clone() else { continue };
        if map.generation != server.generation {
            // S19: no device acts on it before the cluster has heard what this server knows.
            return server.restored.cancel();
        }
        device.send(Command::Map(map)).await;
    }
}
