//! The log store alone: group commit, a failing disk, damage, strangers.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
};

use openraft::{RaftLogReader as _, Vote, storage::RaftLogStorage as _};
use pflex_proto::ids::{MdmId, StoreUuid};
use rocksdb::{DB, Options};
use uuid::Uuid;

use super::kit::{append, entry, identity, no_failure};
use crate::raft::{
    FatalHook, StoreError, StoreIdentity,
    log_store::{LogStore, WalSync},
};

/// A disk whose syncs wait for the test, and fail when it says so.
struct Gate {
    real: Box<dyn WalSync>,
    verdicts: mpsc::Receiver<bool>,
}

impl WalSync for Gate {
    fn sync(&mut self) -> io::Result<()> {
        // The sender gone: the test is over, anything goes.
        if self.verdicts.recv().unwrap_or(true) { self.real.sync() } else { Err(io::Error::other("planted")) }
    }
}

fn gated(dir: &std::path::Path, fatal: FatalHook) -> (LogStore, mpsc::Sender<bool>) {
    LogStore::create(dir, identity(1)).unwrap();
    let (sender, verdicts) = mpsc::channel();
    let wrap = |real| Box::new(Gate { real, verdicts }) as Box<dyn WalSync>;
    (LogStore::open_with(dir, identity(1), fatal, wrap).unwrap(), sender)
}

#[tokio::test]
async fn all_that_waits_shares_one_sync() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, verdicts) = gated(dir.path(), no_failure());
    let mut waiting = Vec::new();
    for index in 0..100 {
        waiting.push(append(&mut store, [entry(1, index)]).await.unwrap());
        // Readable at once, though nothing is synced yet.
        assert_eq!(store.try_get_log_entries(index..=index).await.unwrap().len(), 1);
    }
    assert_eq!(store.counter().get().writes, 0);
    // The first sync began with whatever was queued then, the second takes all the rest.
    verdicts.send(true).unwrap();
    verdicts.send(true).unwrap();
    for synced in waiting {
        synced.await.unwrap().unwrap();
    }
    let count = store.counter().get();
    assert_eq!(count.writes, 100);
    assert!(count.syncs <= 2, "{} syncs", count.syncs);
}

#[tokio::test]
async fn a_vote_waits_for_its_sync_in_turn() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, verdicts) = gated(dir.path(), no_failure());
    let appended = append(&mut store, [entry(1, 0)]).await.unwrap();
    let mut voter = store.clone();
    let voting = tokio::spawn(async move { voter.save_vote(&Vote::new(2, MdmId(1))).await });
    tokio::task::yield_now().await;
    assert!(!voting.is_finished());
    verdicts.send(true).unwrap();
    verdicts.send(true).unwrap();
    voting.await.unwrap().unwrap();
    appended.await.unwrap().unwrap();
    assert_eq!(store.read_vote().await.unwrap(), Some(Vote::new(2, MdmId(1))));
}

#[tokio::test]
async fn the_first_failed_sync_fails_everything_and_stops_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let stops = Arc::new(AtomicUsize::new(0));
    let (stopped, stopping) = mpsc::channel();
    let hook = FatalHook::new({
        let stops = stops.clone();
        move |_| {
            stops.fetch_add(1, Ordering::Relaxed);
            stopped.send(()).unwrap();
        }
    });
    let (mut store, verdicts) = gated(dir.path(), hook);
    let first = append(&mut store, [entry(1, 0)]).await.unwrap();
    let second = append(&mut store, [entry(1, 1)]).await.unwrap();
    verdicts.send(false).unwrap();
    assert!(first.await.unwrap().is_err());
    assert!(second.await.unwrap().is_err());
    // Whatever the disk would say now, the store does not ask again.
    assert!(append(&mut store, [entry(1, 2)]).await.is_err());
    assert!(store.save_vote(&Vote::new(2, MdmId(1))).await.is_err());
    stopping.recv().unwrap();
    assert_eq!(stops.load(Ordering::Relaxed), 1);
}

async fn ten_entries(dir: &std::path::Path) {
    LogStore::create(dir, identity(1)).unwrap();
    let mut store = LogStore::open(dir, identity(1), no_failure()).unwrap();
    append(&mut store, (0..10).map(|index| entry(1, index))).await.unwrap().await.unwrap().unwrap();
}

/// Changes the database behind the store's back.
fn tamper(dir: &std::path::Path, change: impl FnOnce(&DB)) {
    let db = DB::open_cf(&Options::default(), dir.join("raft.db"), ["default", "log", "meta"]).unwrap();
    change(&db);
}

#[tokio::test]
async fn a_damaged_entry_in_the_middle_is_refused_with_advice() {
    let dir = tempfile::tempdir().unwrap();
    ten_entries(dir.path()).await;
    tamper(dir.path(), |db| {
        let log = db.cf_handle("log").unwrap();
        let mut value = db.get_cf(log, 5_u64.to_be_bytes()).unwrap().unwrap();
        *value.last_mut().unwrap() ^= 1;
        db.put_cf(log, 5_u64.to_be_bytes(), value).unwrap();
    });
    let error = LogStore::open(dir.path(), identity(1), no_failure()).err().unwrap().to_string();
    assert!(error.contains("log entry 5") && error.contains("cluster replace-node"), "{error}");
}

#[tokio::test]
async fn a_missing_or_moved_entry_is_refused() {
    for moved in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        ten_entries(dir.path()).await;
        tamper(dir.path(), |db| {
            let log = db.cf_handle("log").unwrap();
            if moved {
                let other = db.get_cf(log, 4_u64.to_be_bytes()).unwrap().unwrap();
                db.put_cf(log, 5_u64.to_be_bytes(), other).unwrap();
            } else {
                db.delete_cf(log, 5_u64.to_be_bytes()).unwrap();
            }
        });
        let error = LogStore::open(dir.path(), identity(1), no_failure()).err().unwrap();
        assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
    }
}

#[tokio::test]
async fn another_store_of_the_same_member_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    ten_entries(dir.path()).await;
    let stranger = StoreIdentity { store: StoreUuid(Uuid::from_u128(99)), ..identity(1) };
    let error = LogStore::open(dir.path(), stranger, no_failure()).err().unwrap();
    assert!(matches!(error, StoreError::Mixed { .. }), "{error}");
    let error = LogStore::open(dir.path(), identity(2), no_failure()).err().unwrap();
    assert!(matches!(error, StoreError::OtherNode { .. }), "{error}");
}

#[tokio::test]
async fn a_store_in_use_is_said_to_be() {
    let dir = tempfile::tempdir().unwrap();
    LogStore::create(dir.path(), identity(1)).unwrap();
    let _open = LogStore::open(dir.path(), identity(1), no_failure()).unwrap();
    let error = LogStore::open(dir.path(), identity(1), no_failure()).err().unwrap();
    assert!(matches!(error, StoreError::InUse { .. }), "{error}");
}

#[tokio::test]
async fn cut_and_purged_entries_stay_away_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    ten_entries(dir.path()).await;
    {
        let mut store = LogStore::open(dir.path(), identity(1), no_failure()).unwrap();
        store.truncate_after(Some(entry(1, 6).log_id)).await.unwrap();
        append(&mut store, [entry(2, 7)]).await.unwrap().await.unwrap().unwrap();
        store.purge(entry(1, 3).log_id).await.unwrap();
        store.save_committed(Some(entry(2, 7).log_id)).await.unwrap();
    }
    let mut store = LogStore::open(dir.path(), identity(1), no_failure()).unwrap();
    let state = store.get_log_state().await.unwrap();
    assert_eq!(state.last_purged_log_id, Some(entry(1, 3).log_id));
    assert_eq!(state.last_log_id, Some(entry(2, 7).log_id));
    assert_eq!(store.read_committed().await.unwrap(), Some(entry(2, 7).log_id));
    let entries = store.try_get_log_entries(..).await.unwrap();
    assert_eq!(entries, [entry(1, 4), entry(1, 5), entry(1, 6), entry(2, 7)]);
}
