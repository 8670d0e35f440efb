//! openraft's own storage suite on the real stores.

use openraft::{
    EntryPayload, StorageError,
    storage::RaftStateMachine as _,
    testing::log::{StoreBuilder, Suite},
};
use tempfile::TempDir;

use super::kit::{entry, identity, no_failure};
use crate::{
    command::Command,
    raft::{FatalHook, RaftGroup, log_store::LogStore, state_store::StateStore, types::TypeConfig},
};

/// As members run.
struct Builder;
/// With a log that reads everything from the database.
struct Forgetful;

impl StoreBuilder<TypeConfig, LogStore, StateStore, TempDir> for Forgetful {
    async fn build(&self) -> Result<(TempDir, LogStore, StateStore), StorageError<TypeConfig>> {
        let (dir, log, state) = Builder.build().await?;
        Ok((dir, log.forget(), state))
    }
}

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
    Suite::test_all(Forgetful).await.unwrap();
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
        let newer = Command { version: u32::MAX, ..Command::clone(&proposal.command) };
        proposal.command = newer.into();
    }
    let entries = futures::stream::iter([Ok((entry, None))]);
    assert!(state.apply(entries).await.is_err());
    assert!(stopping.recv().unwrap().contains("version"));
}
