//! openraft's own storage suite on the real stores.

use openraft::{
    StorageError,
    testing::log::{StoreBuilder, Suite},
};
use tempfile::TempDir;

use super::kit::{identity, no_failure};
use crate::raft::{RaftGroup, log_store::LogStore, state_store::StateStore, types::TypeConfig};

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, StateStore, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, StateStore), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        RaftGroup::create_store(dir.path(), identity(0)).unwrap();
        let log = LogStore::open(dir.path(), identity(0), no_failure()).unwrap();
        let state = StateStore::open(dir.path(), identity(0), no_failure()).unwrap();
        Ok((dir, log, state))
    }
}

#[tokio::test]
async fn openrafts_suite_passes() {
    Suite::test_all(Builder).await.unwrap();
}
