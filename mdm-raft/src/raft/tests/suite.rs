//! openraft's own storage suite on the real stores.

use openraft::{
    EntryPayload, StorageError,
    storage::RaftStateMachine as _,
    testing::log::{StoreBuilder, Suite},
};
use tempfile::TempDir;

use super::kit::{entry, identity, no_failure};
use crate::raft::{FatalHook, RaftGroup, log_store::LogStore, state_store::StateStore, types::TypeConfig};

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

/// A command this version does not know: applying less than the others would make the copies differ.
#[tokio::test]
async fn a_command_of_a_newer_version_stops_the_process() {
    let (dir, _log, state) = Builder.build().await.unwrap();
    drop(state);
    let (stopped, stopping) = std::sync::mpsc::channel();
    let hook = FatalHook::new(move |reason| stopped.send(reason.to_owned()).unwrap());
    let mut state = StateStore::open(dir.path(), identity(0), hook).unwrap();
    let mut entry = entry(1, 1);
    if let EntryPayload::Normal(proposal) = &mut entry.payload {
        proposal.command.version = u32::MAX;
    }
    let entries = futures::stream::iter([Ok((entry, None))]);
    assert!(state.apply(entries).await.is_err());
    assert!(stopping.recv().unwrap().contains("version"));
}
