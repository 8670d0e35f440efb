//! Snapshots: directories of RocksDB files with a manifest, on disk before anybody is told of them.
//!
//! ```text
//! snapshots/snap-00000000000000010000-<random>/   a copy of state.db and `SNAPSHOT`, the sealed manifest
//! snapshots/incoming-<random>/                    being received, or received and not yet installed
//! ```
//!
//! A directory without `SNAPSHOT` is no snapshot: the file is written last, after the others are synced. One is kept; an
//! older one goes when its last user (a transfer) is done with it.

mod build;
mod receive;

use std::{
    collections::HashSet,
    fmt,
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

pub use build::SnapshotBuilder;
pub(in crate::raft) use build::build as build_now;
use pflex_proto::ids::ClusterId;
pub(in crate::raft) use receive::Incoming;

use super::{
    codec, durable,
    error::StoreError,
    types::{LogId, SnapshotMeta},
};
use crate::pb::pflex::mdm::raft::v1 as pb;

const DIRECTORY: &str = "snapshots";
const MANIFEST: &str = "SNAPSHOT";
const KEPT: &str = "snap-";
const INCOMING: &str = "incoming-";
const FORMAT: u32 = 1;
const READ_BYTES: usize = 1 << 20;

/// The snapshots of one store.
pub struct SnapshotStore {
    root: PathBuf,
    cluster: ClusterId,
    current: Mutex<Option<SnapshotHandle>>,
}

/// A complete snapshot on disk. Clones share it; the directory stays as long as one is held.
#[derive(Clone)]
pub struct SnapshotHandle(Arc<Directory>);

struct Directory {
    // Changes once, when a received snapshot is kept.
    path: Mutex<PathBuf>,
    manifest: pb::SnapshotManifest,
    meta: SnapshotMeta,
    kept: AtomicBool,
}

impl SnapshotStore {
    pub(super) fn create(dir: &Path) -> Result<(), StoreError> {
        let root = dir.join(DIRECTORY);
        durable::remove_dir(&root).map_err(StoreError::io("clear", &root))?;
        durable::make_dir(&root).map_err(StoreError::io("create", root))
    }

    /// Finds the newest complete snapshot and removes what is left of others.
    pub(super) fn open(dir: &Path, cluster: ClusterId) -> Result<Self, StoreError> {
        let root = dir.join(DIRECTORY);
        durable::make_dir(&root).map_err(StoreError::io("create", root.clone()))?;
        let mut current: Option<SnapshotHandle> = None;
        for name in durable::names(&root, "").map_err(StoreError::io("list", root.clone()))? {
            let path = root.join(&name);
            let found = if name.starts_with(KEPT) { SnapshotHandle::open(&path, cluster)? } else { None };
            match found {
                // The older of two goes when its handle is dropped here.
                Some(found) if current.as_ref().is_none_or(|current| current.last_log() < found.last_log()) => {
                    if let Some(older) = current.replace(found) {
                        older.forget();
                    }
                }
                Some(older) => older.forget(),
                None => durable::remove_dir(&path).map_err(StoreError::io("remove", path))?,
            }
        }
        Ok(Self { root, cluster, current: Mutex::new(current) })
    }

    /// The newest complete snapshot.
    pub fn current(&self) -> Option<SnapshotHandle> {
        self.lock().clone()
    }

    /// Makes `handle` the current one, unless a newer is. Durable when it returns.
    pub(super) fn adopt(&self, handle: &SnapshotHandle) -> Result<(), StoreError> {
        let mut current = self.lock();
        match &*current {
            Some(current) if Arc::ptr_eq(&current.0, &handle.0) => return Ok(()),
            Some(current) if current.last_log() > handle.last_log() => return Ok(()),
            Some(_) | None => {}
        }
        handle.keep(&self.root)?;
        if let Some(older) = current.replace(handle.clone()) {
            older.forget();
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Option<SnapshotHandle>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A path nobody has.
    fn unused(&self, prefix: &str) -> PathBuf {
        self.root.join(format!("{prefix}{}", uuid::Uuid::new_v4().simple()))
    }
}

impl SnapshotHandle {
    /// Takes a directory whose files are synced, writes the manifest into it and so makes it a snapshot.
    fn seal(path: PathBuf, manifest: pb::SnapshotManifest) -> Result<Self, StoreError> {
        let record = codec::seal(MANIFEST.as_bytes(), &manifest);
        durable::write_file(&path.join(MANIFEST), &record).map_err(StoreError::io("write", path.join(MANIFEST)))?;
        Self::new(path, manifest, false)
    }

    /// `None` when the directory was never finished.
    fn open(path: &Path, cluster: ClusterId) -> Result<Option<Self>, StoreError> {
        let file = path.join(MANIFEST);
        let record = match fs::read(&file) {
            Ok(record) => record,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StoreError::io("read", file)(error)),
        };
        let manifest: pb::SnapshotManifest = codec::unseal(MANIFEST.as_bytes(), &record)
            .map_err(|error| StoreError::Damaged { path: file.clone(), what: error.to_string() })?;
        if manifest.format > FORMAT {
            return Err(StoreError::NewerFormat { path: file, found: manifest.format, known: FORMAT });
        }
        if let Ok(found) = ClusterId::from_slice(&manifest.cluster)
            && found != cluster
        {
            return Err(StoreError::OtherCluster { dir: path.into(), expected: cluster, found });
        }
        Self::new(path.into(), manifest, true).map(Some)
    }

    fn new(path: PathBuf, manifest: pb::SnapshotManifest, kept: bool) -> Result<Self, StoreError> {
        let membership = codec::stored_membership_from_pb(manifest.membership.clone().unwrap_or_default())
            .map_err(|error| StoreError::Damaged { path: path.join(MANIFEST), what: error.to_string() })?;
        let last_log_id = manifest.last_log.map(codec::log_id_from_pb);
        let meta = SnapshotMeta { last_log_id, last_membership: membership };
        Ok(Self(Arc::new(Directory { path: Mutex::new(path), manifest, meta, kept: AtomicBool::new(kept) })))
    }

    /// What it covers.
    pub fn meta(&self) -> SnapshotMeta {
        self.0.meta.clone()
    }

    /// The last entry it covers.
    pub fn last_log(&self) -> Option<LogId> {
        self.0.meta.last_log_id
    }

    /// Where it is.
    pub fn path(&self) -> PathBuf {
        self.0.path.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn manifest(&self) -> &pb::SnapshotManifest {
        &self.0.manifest
    }

    pub(super) fn file_names(&self) -> Vec<String> {
        self.0.manifest.files.iter().map(|file| file.name.clone()).collect()
    }

    /// Gives it its lasting name.
    fn keep(&self, root: &Path) -> Result<(), StoreError> {
        let mut path = self.0.path.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.0.kept.load(Ordering::Relaxed) {
            let index = self.last_log().map_or(0, |id| id.index);
            let kept = root.join(format!("{KEPT}{index:020}-{}", uuid::Uuid::new_v4().simple()));
            durable::rename_dir(&path, &kept).map_err(StoreError::io("rename", path.clone()))?;
            *path = kept;
            self.0.kept.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Lets the directory go with its last user.
    fn forget(&self) {
        self.0.kept.store(false, Ordering::Relaxed);
    }
}

impl fmt::Debug for SnapshotHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "snapshot {}", self.path().display())
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let path = self.path.get_mut().unwrap_or_else(PoisonError::into_inner);
        if !self.kept.load(Ordering::Relaxed)
            && let Err(error) = durable::remove_dir(path)
        {
            // The next open removes it.
            tracing::warn!(path = %path.display(), "cannot remove a snapshot: {error}");
        }
    }
}

/// Whether RocksDB never changes a file of this name.
pub(super) fn is_table_file(name: &str) -> bool {
    name.ends_with(".sst")
}

/// Whether a name in a manifest is a plain file name. A peer sends these.
fn is_plain_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    !name.is_empty() && name.len() < 256 && !name.starts_with('.') && name != MANIFEST && name.bytes().all(plain)
}

/// A manifest a directory can be made from: plain names, none twice, of this cluster.
fn check_manifest(manifest: &pb::SnapshotManifest, cluster: ClusterId) -> Result<(), &'static str> {
    let mut names = HashSet::new();
    if manifest.format != FORMAT {
        return Err("its format is not known");
    }
    if manifest.cluster != cluster.as_bytes() {
        return Err("it is of another cluster");
    }
    if !manifest.files.iter().all(|file| is_plain_name(&file.name) && names.insert(file.name.as_str())) {
        return Err("it has a file name that cannot be");
    }
    Ok(())
}

/// Size and CRC32C of a file.
fn measure(path: &Path) -> io::Result<(u64, u32)> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; READ_BYTES];
    let (mut size, mut crc) = (0, 0);
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok((size, crc));
        }
        size += read as u64;
        crc = crc32c::crc32c_append(crc, &buffer[..read]);
    }
}
