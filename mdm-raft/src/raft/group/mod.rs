//! The handle on one member of the group: everything the rest of the MDM needs of Raft.
//!
//! Raft runs on its own small tokio runtime, so that API traffic never delays a heartbeat; the handle may be used from
//! any runtime.

mod backup;
mod config;
mod leader;
mod membership;
mod open;
mod propose;
mod read;
mod settle;
mod shutdown;
mod standing;

use std::{
    path::Path,
    sync::{Arc, Mutex, atomic::AtomicUsize},
};

use openraft::Raft;
use tokio::{
    runtime::Runtime,
    sync::{Semaphore, broadcast, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

pub use config::GroupConfig;
pub use leader::{LeaderInfo, LeaderView, Members};
pub use membership::{GroupStatus, MembershipError, Role};
pub use open::OpenError;
use pflex_proto::ids::{ClusterGeneration, LogTime, Revision};
pub use propose::{PROPOSALS, ProposeError};
pub use read::ReadError;
pub use standing::Standing;

pub use super::clock::TooFarAhead;
pub use super::state_store::Committed;
use super::{
    error::StoreError,
    identity::StoreIdentity,
    log_store::{SyncCount, SyncCounter},
    network::{heard::Heard, standing::Told},
    restore::{self, Beginning},
    snapshot::SnapshotStore,
    state_store::{SharedState, StateStore},
    types::{MdmNode, TypeConfig, log_id},
};
use crate::state::{RestoredState, State};

/// One member of the group. Clones share it.
#[derive(Clone)]
pub struct Group(Arc<Inner>);

struct Inner {
    config: GroupConfig,
    identity: StoreIdentity,
    listening: std::net::SocketAddr,
    raft: Raft<TypeConfig, StateStore>,
    shared: SharedState,
    snapshots: Arc<SnapshotStore>,
    leader: watch::Receiver<LeaderView>,
    members: watch::Receiver<Members>,
    heard: Heard,
    told: Told,
    syncs: SyncCounter,
    proposals: Semaphore,
    /// Changes of the voters that are being carried out here.
    changes: AtomicUsize,
    server: Mutex<Option<JoinHandle<()>>>,
    stop: CancellationToken,
    runtime: Mutex<Option<Runtime>>,
}

impl Group {
    /// Makes an empty store in `dir`, which must hold none. To be done once in a member's life: a member whose store is
    /// lost gets a new id.
    ///
    /// # Errors
    /// When there is a store already, or the directory cannot be written.
    pub fn create_store(dir: &Path, identity: StoreIdentity) -> Result<(), StoreError> {
        open::create_store(dir, identity)
    }

    /// Makes the store of the only member of a group that begins with `state`, restored from a backup (S19). `term` and
    /// `index` are those of the last entry the backup covers.
    ///
    /// # Errors
    /// When there is a store already, or the directory cannot be written.
    pub fn restore_store(
        dir: &Path,
        identity: StoreIdentity,
        node: MdmNode,
        restored: &RestoredState,
        (term, index): (u64, u64),
    ) -> Result<(), StoreError> {
        open::refuse_existing(dir)?;
        let skip = State::RESTORE_SKIP;
        let beginning = Beginning {
            last: log_id(term + skip, (index + skip).max(restored.revision.get())),
            revision: restored.revision,
            log_time: restored.log_time,
        };
        restore::make_store(dir, identity, node, &restored.state, beginning)
    }

    /// Opens the store in `dir`, replays what the state lacks, and takes part in the group.
    ///
    /// # Errors
    /// When the store is missing, another's, damaged or in use, or the Raft port is taken.
    pub async fn open(dir: &Path, config: GroupConfig) -> Result<Self, OpenError> {
        open::open(dir, config).await
    }

    /// Who this member is, and by which store.
    pub fn identity(&self) -> StoreIdentity {
        self.0.identity
    }

    /// Where the Raft port really is, when the configuration left the port to the system.
    pub fn raft_address(&self) -> std::net::SocketAddr {
        self.0.listening
    }

    /// Who leads, as this member knows it; changes with every election.
    pub fn leader(&self) -> watch::Receiver<LeaderView> {
        self.0.leader.clone()
    }

    /// Where clients find the members, as this member knows it; changes with every change of the membership.
    pub fn members(&self) -> watch::Receiver<Members> {
        self.0.members.clone()
    }

    /// The changes of every command applied from now on; a subscriber that falls far behind is told so and lists again.
    pub fn subscribe(&self) -> broadcast::Receiver<Committed> {
        self.0.shared.subscribe()
    }

    /// Runs `f` on the state as applied here, however old that is.
    pub fn read_stale<T>(&self, f: impl FnOnce(&State) -> T) -> (Revision, T) {
        self.0.shared.read(f)
    }

    /// Log time now, as this member would stamp it.
    pub fn log_time(&self) -> LogTime {
        self.0.shared.log_time()
    }

    /// From now on log time is not behind what an SDS has counted.
    ///
    /// # Errors
    /// When that is further ahead than an outage can explain.
    pub fn catch_up(&self, heard: LogTime) -> Result<(), TooFarAhead> {
        self.0.shared.catch_up(heard)
    }

    /// The generation of the cluster as applied here (S19), without waiting for an apply; 0 before the first command.
    pub fn generation(&self) -> ClusterGeneration {
        self.0.shared.generation()
    }

    /// How well the log's group commit groups.
    pub fn sync_count(&self) -> SyncCount {
        self.0.syncs.get()
    }
}
