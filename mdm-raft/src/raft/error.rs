//! What can be wrong with a store directory, in words an operator can act on.

use std::{io, path::PathBuf};

use pflex_proto::ids::{ClusterId, MdmId, StoreUuid};

/// Why a store could not be created, opened or written. Each `Display` is one line: what, which, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no store in the directory.
    #[error("{} holds no MDM store; create one with `cluster init`, or with `cluster replace-node` for a member that lost its own", dir.display())]
    Missing {
        /// The directory.
        dir: PathBuf,
    },
    /// There is one already.
    #[error("{} already holds an MDM store; choose an empty directory", dir.display())]
    Exists {
        /// The directory.
        dir: PathBuf,
    },
    /// The directory belongs to another cluster.
    #[error("{} belongs to cluster {found}, not to {expected}; point the MDM at its own data directory", dir.display())]
    OtherCluster {
        /// The directory.
        dir: PathBuf,
        /// The cluster asked for.
        expected: ClusterId,
        /// The cluster it belongs to.
        found: ClusterId,
    },
    /// The directory belongs to another member.
    #[error("{} belongs to MDM {found}, not to MDM {expected}; point the MDM at its own data directory", dir.display())]
    OtherNode {
        /// The directory.
        dir: PathBuf,
        /// The member asked for.
        expected: MdmId,
        /// The member it belongs to.
        found: MdmId,
    },
    /// Parts of the directory come from different stores.
    #[error("{} holds parts of two stores ({header} and {part}); restore the directory whole, or replace the node", dir.display())]
    Mixed {
        /// The directory.
        dir: PathBuf,
        /// The store the header names.
        header: StoreUuid,
        /// The store the part names.
        part: StoreUuid,
    },
    /// A newer version wrote it.
    #[error("{} has format {found}, this version reads up to {known}; start the version that wrote it", path.display())]
    NewerFormat {
        /// The file or database.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The newest this version knows.
        known: u32,
    },
    /// Another process has it open.
    #[error("{} is in use by another process; stop that one first", path.display())]
    InUse {
        /// The database.
        path: PathBuf,
    },
    /// What is there cannot be trusted.
    #[error("{} is damaged: {what}; the other members have the data: remove this node and add a new one (`cluster replace-node`), do not repair it by hand", path.display())]
    Damaged {
        /// The file or database.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The system refused.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// RocksDB refused.
    #[error("cannot {doing} {}", path.display())]
    Database {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        source: rocksdb::Error,
    },
    /// A sync failed before; nothing is written any more.
    #[error("the log store stopped after a failed sync: {0}")]
    Poisoned(String),
}

impl StoreError {
    /// For `map_err`: an I/O error with what was being done to what.
    pub(crate) fn io(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { doing, path, source }
    }

    /// For `map_err`: a RocksDB error, told apart into the cases an operator treats differently.
    pub(crate) fn database(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(rocksdb::Error) -> Self {
        let path = path.into();
        move |source| match source.kind() {
            rocksdb::ErrorKind::Corruption => Self::Damaged { path, what: source.into_string() },
            rocksdb::ErrorKind::IOError if source.as_ref().contains("lock") => Self::InUse { path },
            _ => Self::Database { doing, path, source },
        }
    }
}

impl From<StoreError> for io::Error {
    fn from(error: StoreError) -> Self {
        Self::other(error)
    }
}
