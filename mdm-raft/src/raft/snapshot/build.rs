//! Building a snapshot: a checkpoint, synced, measured, sealed. Runs beside apply.

use std::{io, path::Path, sync::Arc, time::Instant};

use openraft::RaftSnapshotBuilder;

use super::{FORMAT, INCOMING, SnapshotHandle, SnapshotStore, measure};
use crate::{
    pb::pflex::mdm::raft::v1 as pb,
    raft::{codec, durable, error::StoreError, fatal::FatalHook, state_store, types::TypeConfig},
};

type Copy = Arc<dyn Fn(&Path) -> Result<(), StoreError> + Send + Sync>;
type Snapshot = openraft::alias::SnapshotOf<TypeConfig, SnapshotHandle>;

/// Builds one snapshot of the state as it is when the copy is taken.
pub struct SnapshotBuilder {
    store: Arc<SnapshotStore>,
    copy: Copy,
    fatal: FatalHook,
}

impl SnapshotBuilder {
    pub(in crate::raft) fn new(store: Arc<SnapshotStore>, copy: Copy, fatal: FatalHook) -> Self {
        Self { store, copy, fatal }
    }
}

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    type SnapshotData = SnapshotHandle;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let (store, copy) = (self.store.clone(), self.copy.clone());
        let built = tokio::task::spawn_blocking(move || build(&store, &*copy)).await;
        let built = built.map_err(io::Error::other).and_then(|built| built.map_err(io::Error::from));
        // openraft stops on a failed snapshot; a full disk should be said plainly.
        let handle = built.inspect_err(|error| self.fatal.call(&format!("cannot build a snapshot: {error}")))?;
        Ok(Snapshot { meta: handle.meta(), snapshot: handle })
    }
}

pub(in crate::raft) fn build(
    store: &SnapshotStore,
    copy: &(dyn Fn(&Path) -> Result<(), StoreError> + Send + Sync),
) -> Result<SnapshotHandle, StoreError> {
    let started = Instant::now();
    let path = store.unused(INCOMING);
    copy(&path)?;
    // The copy itself says how far it is: apply went on meanwhile.
    let mark = state_store::read_checkpoint(&path, store.cluster)?;
    durable::sync_files(&path).map_err(StoreError::io("sync", &path))?;
    let manifest = pb::SnapshotManifest {
        format: FORMAT,
        cluster: store.cluster.as_bytes().to_vec(),
        last_log: mark.last_applied.as_ref().map(codec::log_id_to_pb),
        membership: Some(codec::stored_membership_to_pb(&mark.membership)),
        files: list_files(&path)?,
    };
    let bytes: u64 = manifest.files.iter().map(|file| file.size).sum();
    let handle = SnapshotHandle::seal(path, manifest)?;
    store.adopt(&handle)?;
    tracing::info!(last_log = ?handle.last_log(), bytes, took = ?started.elapsed(), "built a snapshot");
    // A newer one may have been installed meanwhile.
    Ok(store.current().unwrap_or(handle))
}

/// Everything but RocksDB's text logs and its lock, which opening the copy left there.
fn list_files(path: &Path) -> Result<Vec<pb::SnapshotFile>, StoreError> {
    let mut files = Vec::new();
    for name in durable::names(path, "").map_err(StoreError::io("list", path))? {
        if name.starts_with("LOG") || name == "LOCK" {
            continue;
        }
        let (size, crc32c) = measure(&path.join(&name)).map_err(StoreError::io("read", path.join(&name)))?;
        files.push(pb::SnapshotFile { name, size, crc32c });
    }
    Ok(files)
}
