//! The Raft log on `raft.db`: entries, vote, committed and purged, with group commit.
//!
//! Writes go to RocksDB's write-ahead log unsynced, on openraft's core task, in the order openraft issues them; so an
//! entry can be read when `append` returns. One flusher thread (`flusher`) then syncs the write-ahead log for all that
//! wait: the running sync is the batching window, there is no timer.
//!
//! Column family `log`: index as u64 big-endian -> sealed `Entry`. Column family `meta`: `header`, `vote`, `committed`,
//! `purged`, sealed.
//!
//! Invariants:
//! - what is on disk is a prefix of what was written: votes, entries, truncations share one write-ahead log;
//! - a database that lacks something that was synced is refused (`mark`);
//! - the entries from `purged + 1` to the last have no gap, checked at open and at every read;
//! - after a failed sync nothing is written or acknowledged.

mod flusher;
mod mark;
mod open;
mod reader;
mod recent;
mod reclaim;
mod storage;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rocksdb::{BoundColumnFamily, DBWithThreadMode, MultiThreaded};

use flusher::Flusher;
pub use flusher::{SyncCount, SyncCounter, WalSync};

use super::{
    error::StoreError,
    fatal::FatalHook,
    identity::StoreIdentity,
    types::{LogId, Vote},
};

type Database = DBWithThreadMode<MultiThreaded>;

const LOG: &str = "log";
const META: &str = "meta";

/// A handle on `raft.db`; clones share it. Also the reader openraft's replication uses.
#[derive(Clone)]
pub struct LogStore(Arc<Inner>);

struct Inner {
    reclaimer: reclaim::Reclaimer,
    db: Arc<Database>,
    path: PathBuf,
    flusher: Flusher,
    fatal: FatalHook,
    cached: Mutex<Cached>,
}

/// What openraft asks for all the time, as it was written to the database.
#[derive(Default)]
struct Cached {
    vote: Option<Vote>,
    purged: Option<LogId>,
    last: Option<LogId>,
    committed: Option<LogId>,
    recent: recent::Recent,
}

impl LogStore {
    /// Makes an empty `raft.db` in `dir` that belongs to `identity`; whatever is there goes.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub fn create(dir: &Path, identity: StoreIdentity) -> Result<(), StoreError> {
        open::create(&dir.join(open::NAME), identity)
    }

    /// As [`create`](Self::create), of a log whose entries up to `purged` are cut and covered by a snapshot.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub(super) fn create_behind(
        dir: &Path,
        identity: StoreIdentity,
        purged: LogId,
        vote: Vote,
    ) -> Result<(), StoreError> {
        let path = dir.join(open::NAME);
        open::create(&path, identity)?;
        open::begin_behind(&path, purged, vote)
    }

    /// Opens `raft.db` in `dir`, checks whose it is and every record of it.
    ///
    /// # Errors
    /// When it belongs to another store, is damaged, of a newer format, or in use.
    pub fn open(dir: &Path, identity: StoreIdentity, fatal: FatalHook) -> Result<Self, StoreError> {
        Self::open_with(dir, identity, fatal, |sync| sync)
    }

    /// As [`open`](Self::open); `wrap` may put its own sync around the real one, which is how tests fail one.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with(
        dir: &Path,
        identity: StoreIdentity,
        fatal: FatalHook,
        wrap: impl FnOnce(Box<dyn WalSync>) -> Box<dyn WalSync>,
    ) -> Result<Self, StoreError> {
        let path = dir.join(open::NAME);
        let db = Arc::new(open::database(&path, false)?);
        open::check_header(&db, &path, dir, identity)?;
        let cached = open::read_all(&db, &path)?;
        let mark = mark::Mark::open(&path, db.latest_sequence_number())?;
        let sync = wrap(Box::new(flusher::RocksSync { db: db.clone(), mark }));
        let flusher = Flusher::start(sync, fatal.clone())?;
        Ok(Self(Arc::new(Inner {
            reclaimer: reclaim::Reclaimer::default(),
            db,
            path,
            flusher,
            fatal,
            cached: Mutex::new(cached),
        })))
    }

    /// From now on everything is read from the database.
    #[cfg(test)]
    pub(super) fn forget(self) -> Self {
        self.0.cached().recent = recent::Recent::of(0);
        self
    }

    /// How many records were made durable by how many syncs.
    pub fn counter(&self) -> SyncCounter {
        self.0.flusher.counter()
    }
}

impl Inner {
    fn cached(&self) -> MutexGuard<'_, Cached> {
        // Every change under the lock is one assignment; a panic elsewhere leaves it whole.
        self.cached.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn column(&self, name: &str) -> Arc<BoundColumnFamily<'_>> {
        self.db.cf_handle(name).expect("opened with this column family")
    }
}
