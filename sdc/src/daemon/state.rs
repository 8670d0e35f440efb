//! What an SDC remembers: its cluster, and how often it has started.
//!
//! `DATA_DIR/sdc.json`, replaced whole and synced. The boot counter is the high part of generations and operation
//! ids (S7, S9): it is on disk before the first IO of a start, so that no start ever uses the numbers of an earlier one.
//! A lock on `DATA_DIR/lock` keeps a second process away.

use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use pflex_common::durable::{self, DurableError};
use pflex_proto::ids::{ClusterGeneration, ClusterId};
use serde::{Deserialize, Serialize};

/// The version this code writes, and the only one there is.
const VERSION: u32 = 1;
/// Boot counters fit above the 40 bits of an operation id's counter.
const LAST_BOOT: u64 = (1 << 24) - 1;
/// Numbers of starts for each registration. The MDM gives a registration to one process alone, in the same directory or in
/// another; the first number of its sixteen is for that process, the others for those that start again in the same
/// directory before an MDM answers. So no two processes of one SDC ever have the same number (S7, S9).
const STARTS_PER_REGISTRATION: u64 = 16;

/// Why the files of an SDC cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The disk.
    #[error(transparent)]
    Durable(#[from] DurableError),
    /// Another process runs on the directory.
    #[error("another SDC runs on {0}; stop it or use another data directory")]
    InUse(PathBuf),
    /// The lock file.
    #[error("cannot lock {path}")]
    Lock {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Not what this code writes.
    #[error("{path} is damaged; restore it, or remove the directory: the MDM remembers the client")]
    Damaged {
        /// Which.
        path: PathBuf,
        /// How.
        #[source]
        source: serde_json::Error,
    },
    /// Of a newer release.
    #[error("{path} has version {found}, this release knows {VERSION}; use a newer release")]
    Newer {
        /// Which.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// 2^24 starts.
    #[error("{0} has counted all starts it can; remove the SDC and create one with another name")]
    Exhausted(PathBuf),
}

#[derive(Debug, Deserialize)]
struct Header {
    version: u32,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
struct Stored {
    version: u32,
    cluster: Option<ClusterId>,
    boot: u64,
    /// The newest generation of the cluster that was followed (S19); 0, as in older files: none was noted.
    #[serde(default)]
    generation: ClusterGeneration,
}

/// The state of a running SDC.
#[derive(Debug)]
pub(super) struct State {
    path: PathBuf,
    stored: Stored,
    /// Held as long as the process runs.
    _lock: File,
    lock_id: LockId,
}

/// Which file the lock is: a copy of the directory has another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(super) struct LockId {
    device: u64,
    inode: u64,
}

impl State {
    /// Opens the directory, creating it when it is new, and counts this start.
    pub(super) fn open(dir: &Path) -> Result<Self, StateError> {
        durable::create_dir(dir)?;
        let lock_path = dir.join("lock");
        let wrong_lock = |source| StateError::Lock { path: lock_path.clone(), source };
        let lock = File::create(&lock_path).map_err(wrong_lock)?;
        let metadata = lock.metadata().map_err(wrong_lock)?;
        let lock_id = LockId { device: metadata.dev(), inode: metadata.ino() };
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => StateError::InUse(dir.to_owned()),
            TryLockError::Error(source) => wrong_lock(source),
        })?;
        let path = dir.join("sdc.json");
        let mut stored = match durable::read_if_exists(&path)? {
            Some(content) => parse(&path, &content)?,
            None => Stored { version: VERSION, cluster: None, boot: 0, generation: ClusterGeneration(0) },
        };
        if stored.boot >= LAST_BOOT {
            return Err(StateError::Exhausted(dir.to_owned()));
        }
        stored.boot += 1;
        let state = Self { path, stored, _lock: lock, lock_id };
        state.save()?;
        Ok(state)
    }

    /// How often the client has started, this time included.
    pub(super) const fn boot(&self) -> u64 {
        self.stored.boot
    }

    /// The number of the last registration, as far as this directory knows.
    pub(super) const fn registrations(&self) -> u64 {
        self.stored.boot / STARTS_PER_REGISTRATION
    }

    /// Starts at what the MDM has counted: a client whose directory was lost and made anew keeps its id, and must
    /// not use generations and operation ids a second time (S7, S9).
    pub(super) fn start_above(&mut self, registrations: u64) -> Result<(), StateError> {
        let first = registrations.saturating_mul(STARTS_PER_REGISTRATION);
        if first >= LAST_BOOT {
            return Err(StateError::Exhausted(self.dir()));
        }
        if first > self.stored.boot {
            self.stored.boot = first;
            self.save()?;
        }
        Ok(())
    }

    /// Which file its lock is.
    pub(super) const fn lock_id(&self) -> LockId {
        self.lock_id
    }

    /// The cluster it belongs to, once it has registered.
    pub(super) const fn cluster(&self) -> Option<ClusterId> {
        self.stored.cluster
    }

    /// Joins a cluster for good.
    pub(super) fn set_cluster(&mut self, cluster: ClusterId) -> Result<(), StateError> {
        if self.stored.cluster != Some(cluster) {
            self.stored.cluster = Some(cluster);
            self.save()?;
        }
        Ok(())
    }

    /// The newest generation of the cluster that was followed; 0: none.
    pub(super) const fn generation(&self) -> ClusterGeneration {
        self.stored.generation
    }

    /// Follows this generation from now on, and never an older one (S19).
    pub(super) fn follow(&mut self, generation: ClusterGeneration) -> Result<(), StateError> {
        if generation > self.stored.generation {
            self.stored.generation = generation;
            self.save()?;
        }
        Ok(())
    }

    /// The directory.
    pub(super) fn dir(&self) -> PathBuf {
        self.path.parent().map(Path::to_owned).unwrap_or_default()
    }

    fn save(&self) -> Result<(), StateError> {
        let content = serde_json::to_vec_pretty(&self.stored).expect("plain data is always JSON");
        Ok(durable::replace(&self.path, &content)?)
    }
}

fn parse(path: &Path, content: &[u8]) -> Result<Stored, StateError> {
    let damaged = |source| StateError::Damaged { path: path.to_owned(), source };
    // The version first: a newer file may have any other fields.
    let Header { version } = serde_json::from_slice(content).map_err(damaged)?;
    if version != VERSION {
        return Err(StateError::Newer { path: path.to_owned(), found: version });
    }
    serde_json::from_slice(content).map_err(damaged)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_whose_directory_was_lost_starts_above_what_the_mdm_counted() {
        let dir = tempfile::tempdir().unwrap();
        let mut state = State::open(dir.path()).unwrap();
        state.start_above(9).unwrap();
        assert_eq!((state.boot(), state.registrations()), (144, 9));
        state.start_above(4).unwrap();
        drop(state);
        let mut again = State::open(dir.path()).unwrap();
        assert_eq!(again.boot(), 145, "and that is on disk");
        again.start_above(9).unwrap();
        assert_eq!(again.boot(), 145, "the same process, not counted again, keeps the number of this start");
        assert!(matches!(again.start_above(1 << 20), Err(StateError::Exhausted(_))));
    }

    #[test]
    fn every_start_has_a_higher_boot_counter() {
        let dir = tempfile::tempdir().unwrap();
        for boot in 1..4 {
            let mut state = State::open(dir.path()).unwrap();
            assert_eq!(state.boot(), boot);
            state.set_cluster(ClusterId::from_bytes([3; 16])).unwrap();
        }
        let mut state = State::open(dir.path()).unwrap();
        assert_eq!(state.cluster(), Some(ClusterId::from_bytes([3; 16])));
        state.follow(ClusterGeneration(7)).unwrap();
        state.follow(ClusterGeneration(5)).unwrap();
        drop(state);
        assert_eq!(State::open(dir.path()).unwrap().generation(), ClusterGeneration(7), "never an older one again");
    }

    #[test]
    fn a_directory_in_use_a_damaged_file_and_a_newer_one_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let running = State::open(dir.path()).unwrap();
        assert!(matches!(State::open(dir.path()), Err(StateError::InUse(_))));
        drop(running);
        let path = dir.path().join("sdc.json");
        std::fs::write(&path, "{").unwrap();
        assert!(matches!(State::open(dir.path()), Err(StateError::Damaged { .. })));
        std::fs::write(&path, r#"{"version": 9, "surprise": 1}"#).unwrap();
        assert!(matches!(State::open(dir.path()), Err(StateError::Newer { found: 9, .. })));
    }
}
