//! The applied state: `State` in memory for reads, the same rows on `state.db` so that a restart need not replay.
//!
//! openraft's state-machine worker owns [`StateStore`] and is the only writer. Each batch of entries becomes one unsynced
//! RocksDB batch: row changes, revision, log time, last applied, membership. What a power cut takes from it the Raft log
//! gives back, because the log is cut only below a snapshot that is on disk.
//!
//! ```text
//! CURRENT_STATE          names the live directory, replaced durably
//! state-0000000001/      RocksDB: one column family a table; the `Applied` record in `default`
//! snapshots/             see `snapshot`
//! ```

mod database;
mod directory;
mod machine;
mod shared;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

pub(super) use database::{Mark, StateDatabase, read_checkpoint};
pub use shared::{Committed, SharedState};

use super::{
    error::StoreError, fatal::FatalHook, identity::StoreIdentity, network::links::Links, snapshot::SnapshotStore,
};
use crate::state::State;

/// The state machine as openraft drives it.
pub struct StateStore {
    dir: PathBuf,
    identity: StoreIdentity,
    database: Arc<StateDatabase>,
    mark: Mark,
    shared: SharedState,
    snapshots: Arc<SnapshotStore>,
    fatal: FatalHook,
    links: Links,
}

impl StateStore {
    /// Makes an empty state in `dir`; whatever is there goes.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub fn create(dir: &Path, identity: StoreIdentity) -> Result<(), StoreError> {
        directory::clear(dir)?;
        SnapshotStore::create(dir)?;
        let path = dir.join(directory::FIRST);
        drop(StateDatabase::create(&path, identity.cluster)?);
        directory::set_current(dir, directory::FIRST)
    }

    /// As [`create`](Self::create), with a state in it; returns its database.
    pub(super) fn create_with(
        dir: &Path,
        identity: StoreIdentity,
        state: &State,
        mark: &Mark,
    ) -> Result<StateDatabase, StoreError> {
        Self::create(dir, identity)?;
        let database = StateDatabase::open(&dir.join(directory::FIRST), identity.cluster)?.0;
        database.fill(state, mark)?;
        Ok(database)
    }

    /// Opens the live state and loads every row.
    ///
    /// # Errors
    /// When it is damaged, of another cluster, of a newer format, or in use.
    pub fn open(dir: &Path, identity: StoreIdentity, fatal: FatalHook) -> Result<Self, StoreError> {
        let name = directory::current(dir)?;
        directory::remove_others(dir, &name)?;
        let snapshots = Arc::new(SnapshotStore::open(dir, identity.cluster)?);
        let (database, mark, state) = StateDatabase::open(&dir.join(name), identity.cluster)?;
        let database = Arc::new(database);
        let shared = SharedState::new(state, &mark, database.clone());
        let dir = dir.to_path_buf();
        Ok(Self { dir, identity, database, mark, shared, snapshots, fatal, links: Links::default() })
    }

    /// Puts in the seam for fault injection.
    #[must_use]
    pub fn with_links(self, links: Links) -> Self {
        Self { links, ..self }
    }

    /// The state for readers.
    pub fn shared(&self) -> SharedState {
        self.shared.clone()
    }

    /// Where received snapshots are staged.
    pub fn snapshots(&self) -> Arc<SnapshotStore> {
        self.snapshots.clone()
    }
}
