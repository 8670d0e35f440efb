//! A store that cannot be trusted is refused, and what is said tells an operator what to do.

use std::path::Path;

use pflex_proto::ids::{ClusterId, MdmId};
use rocksdb::{DB, Options};
use tempfile::TempDir;
use uuid::Uuid;

use super::kit::{CLUSTER, append, domain, entry, identity, no_failure};
use crate::raft::{GroupConfig, MdmNode, RaftGroup, log_store::LogStore};

const ADVICE: &str = "cluster replace-node";

fn config(cluster: ClusterId, node: u64) -> GroupConfig {
    GroupConfig::new(cluster, MdmId(node), "127.0.0.1:0".parse().unwrap())
}

/// Why a member does not start, with all causes, as its last line says it.
async fn refusal(dir: &Path, config: GroupConfig) -> String {
    match RaftGroup::open(dir, config).await {
        Ok(group) => {
            group.stop().await;
            panic!("it started");
        }
        Err(error) => error.to_string(),
    }
}

/// A store of one member with a few commands in it.
async fn store() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    RaftGroup::create_store(dir.path(), identity(1)).unwrap();
    let group = RaftGroup::open(dir.path(), config(CLUSTER, 1)).await.unwrap();
    let node = MdmNode {
        raft_address: group.raft_address().to_string(),
        api_address: "127.0.0.1:1".into(),
        store: identity(1).store,
    };
    group.bootstrap([(MdmId(1), node)].into()).await.unwrap();
    let mut leader = group.leader();
    leader.wait_for(|view| view.leading).await.unwrap();
    group.propose(super::kit::bootstrap()).await.unwrap();
    for name in ["a", "b", "c"] {
        group.propose(domain(name)).await.unwrap();
    }
    group.stop().await;
    dir
}

fn tamper(database: &Path, change: impl FnOnce(&DB)) {
    let columns = DB::list_cf(&Options::default(), database).unwrap();
    let db = DB::open_cf(&Options::default(), database, columns).unwrap();
    change(&db);
    db.flush_wal(true).unwrap();
}

fn state_dir(dir: &Path) -> std::path::PathBuf {
    let all = std::fs::read_dir(dir).unwrap().flatten().map(|entry| entry.path());
    let mut state =
        all.filter(|path| path.is_dir() && path.file_name().unwrap().to_string_lossy().starts_with("state-"));
    state.next().expect("a state")
}

#[tokio::test]
async fn a_missing_log_entry_names_itself_and_the_way_out() {
    let dir = tempfile::tempdir().unwrap();
    RaftGroup::create_store(dir.path(), identity(1)).unwrap();
    let mut log = LogStore::open(dir.path(), identity(1), no_failure()).unwrap();
    append(&mut log, (0..10).map(|index| entry(1, index))).await.unwrap().await.unwrap().unwrap();
    drop(log);
    tamper(&dir.path().join("raft.db"), |db| {
        db.delete_cf(db.cf_handle("log").unwrap(), 6_u64.to_be_bytes()).unwrap();
    });
    let said = refusal(dir.path(), config(CLUSTER, 1)).await;
    assert!(said.contains("log entry 6 is missing") && said.contains(ADVICE), "{said}");
}

#[tokio::test]
async fn a_strangers_store_is_named_and_left_alone() {
    let dir = store().await;
    let other = ClusterId(Uuid::from_u128(0x07e4));
    let said = refusal(dir.path(), config(other, 1)).await;
    assert!(said.contains(&CLUSTER.to_string()) && said.contains(&other.to_string()), "{said}");
    assert!(said.contains("point the MDM at its own data directory"), "{said}");
    let said = refusal(dir.path(), config(CLUSTER, 2)).await;
    assert!(said.contains("belongs to MDM 1") && said.contains("its own data directory"), "{said}");
    // Refusing changed nothing.
    RaftGroup::open(dir.path(), config(CLUSTER, 1)).await.unwrap().stop().await;
}

#[tokio::test]
async fn a_newer_format_asks_for_the_newer_version() {
    let dir = store().await;
    let file = dir.path().join("STORE");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("format 1", "format 2")).unwrap();
    let said = refusal(dir.path(), config(CLUSTER, 1)).await;
    assert!(said.contains("format 2") && said.contains("start the version that wrote it"), "{said}");
    std::fs::write(&file, text).unwrap();

    // A table that this version does not know.
    let state = state_dir(dir.path());
    let columns = DB::list_cf(&Options::default(), &state).unwrap();
    let mut db = DB::open_cf(&Options::default(), &state, columns).unwrap();
    db.create_cf("of_tomorrow", &Options::default()).unwrap();
    drop(db);
    let said = refusal(dir.path(), config(CLUSTER, 1)).await;
    assert!(said.contains("start the version that wrote it"), "{said}");
}

#[tokio::test]
async fn a_lost_store_is_never_made_anew() {
    let dir = store().await;
    let empty = tempfile::tempdir().unwrap();
    let said = refusal(empty.path(), config(CLUSTER, 1)).await;
    assert!(said.contains("holds no MDM store") && said.contains(ADVICE), "{said}");
    std::fs::remove_file(dir.path().join("STORE")).unwrap();
    let said = refusal(dir.path(), config(CLUSTER, 1)).await;
    assert!(said.contains(ADVICE), "{said}");
    std::fs::remove_dir_all(dir.path().join("raft.db")).unwrap();
    assert!(RaftGroup::create_store(dir.path(), identity(1)).is_err(), "what is left is never emptied to make room");
}

/// RocksDB reads for ever in a log with one bit of a record's type changed.
#[tokio::test]
async fn a_damaged_record_of_either_database_is_refused_and_hangs_nobody() {
    for part in ["raft.db", "state"] {
        let dir = store().await;
        let database = if part == "state" { state_dir(dir.path()) } else { dir.path().join(part) };
        let files: Vec<_> = std::fs::read_dir(&database).unwrap().flatten().map(|entry| entry.path()).collect();
        let log = files.iter().filter(|path| path.extension().is_some_and(|extension| extension == "log"));
        let log = log.max_by_key(|path| path.metadata().unwrap().len()).expect("a write-ahead log");
        let mut bytes = std::fs::read(log).unwrap();
        assert!((1..=4).contains(&bytes[6]), "{part}: the type of the first record");
        bytes[6] |= 4;
        bytes[6] = bytes[6].clamp(5, 8);
        std::fs::write(log, bytes).unwrap();
        let said = refusal(dir.path(), config(CLUSTER, 1)).await;
        assert!(said.contains("impossible type") && said.contains(ADVICE), "{part}: {said}");
    }
}
