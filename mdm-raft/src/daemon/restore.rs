//! `pflex cluster restore`: a backup becomes the store of one MDM, which then is a cluster of its own, to be grown with
//! `add-node` (rule S19).
//!
//! One member only: two stores made of two backups would be one group with two pasts.

use std::{
    fs::File,
    io::BufReader,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use pflex_proto::ids::{ClusterGeneration, ClusterId, Revision, StoreUuid};
use ring::rand::{SecureRandom as _, SystemRandom};
use uuid::Uuid;

use super::MdmConfig;
use crate::{
    backup::{BackupError, BackupReader},
    raft::{MdmNode, RaftGroup, StoreError, StoreIdentity},
    state::{RestoreError as StateError, State},
};

/// Why nothing was restored; nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The file cannot be opened.
    #[error("backup {}: {source}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The file is not whole.
    #[error("backup {}: {source}", path.display())]
    Backup {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        source: BackupError,
    },
    /// It is whole and yet no state.
    #[error("backup {}: {source}", path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: StateError,
    },
    /// The configuration is another cluster's.
    #[error("backup {} is of cluster {found}, the configuration of {expected}; set `cluster` to the backup's", path.display())]
    OtherCluster {
        /// The file.
        path: PathBuf,
        /// The file's cluster.
        found: ClusterId,
        /// The configuration's.
        expected: ClusterId,
    },
    /// No secret could be made.
    #[error("the system gives no randomness for a new cluster secret")]
    Randomness,
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What was restored.
#[derive(Debug)]
pub struct Restored {
    /// The cluster.
    pub cluster: ClusterId,
    /// Its new generation.
    pub generation: ClusterGeneration,
    /// The revision the backup was made at.
    pub backup_revision: Revision,
    /// The store that was made.
    pub store: StoreUuid,
}

/// Makes the member's store from a backup. The whole file is checked first.
///
/// # Errors
/// See [`RestoreError`]; then there is no store that would start.
pub fn restore(config: &MdmConfig, path: &Path) -> Result<Restored, RestoreError> {
    let file = File::open(path).map_err(|source| RestoreError::Open { path: path.into(), source })?;
    let damaged = |source| RestoreError::Backup { path: path.into(), source };
    let mut reader = BackupReader::new(BufReader::new(file)).map_err(damaged)?;
    let mut rows = Vec::new();
    while let Some(item) = reader.next_rows().map_err(damaged)? {
        let table = item.table;
        rows.extend(
            item.rows.into_iter().map(|(key, value)| (table, key.into_boxed_slice(), value.into_boxed_slice())),
        );
    }
    let head = reader.head();
    let found = ClusterId::from_slice(&head.cluster).unwrap_or_default();
    if found != config.cluster {
        return Err(RestoreError::OtherCluster { path: path.into(), found, expected: config.cluster });
    }
    let mut secret = [0; 32];
    SystemRandom::new().fill(&mut secret).map_err(|_| RestoreError::Randomness)?;
    let wall_seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs());
    let restored = State::restored(rows.into_iter(), wall_seconds, secret)
        .map_err(|source| RestoreError::State { path: path.into(), source })?;

    let store = config.store.unwrap_or_else(|| StoreUuid(Uuid::new_v4()));
    let identity = StoreIdentity { cluster: config.cluster, node: config.id, store };
    let node =
        MdmNode { raft_address: config.addresses.raft.clone(), api_address: config.addresses.api.clone(), store };
    RaftGroup::restore_store(&config.dir, identity, node, &restored, (head.term, head.index))?;
    let backup_revision = Revision(head.revision);
    Ok(Restored { cluster: config.cluster, generation: restored.generation, backup_revision, store })
}
