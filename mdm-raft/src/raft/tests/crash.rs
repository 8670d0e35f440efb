//! Crashes of the log: a process killed while it appends, and a power cut that keeps only what was synced.

use std::{
    collections::HashMap,
    fs,
    io::{self, BufRead as _, Write as _},
    path::Path,
    process::{Command, Stdio},
    sync::{Arc, Mutex},
};

use openraft::{RaftLogReader as _, Vote, storage::RaftLogStorage as _};
use pflex_proto::ids::MdmId;
use rand::RngExt as _;

use super::kit::{Cluster, Synced, append, entry, has, identity, no_failure};
use crate::{
    raft::{
        StoreError,
        log_store::{LogStore, WalSync},
    },
    testing::{self, Seeds},
};

const CHILD_DIRECTORY: &str = "PFLEX_TEST_CRASH_DIR";

/// Not a test: what the next one runs in a process of its own and kills.
#[test]
#[ignore = "run by killed_while_appending"]
fn child_appends_until_killed() {
    let Ok(dir) = std::env::var(CHILD_DIRECTORY) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let mut store = LogStore::open(Path::new(&dir), identity(1), no_failure()).unwrap();
        let mut next = store.get_log_state().await.unwrap().last_log_id.map_or(0, |id| id.index + 1);
        loop {
            let batch: Vec<Synced> = vec![
                append(&mut store, [entry(1, next)]).await.unwrap(),
                append(&mut store, [entry(1, next + 1), entry(1, next + 2)]).await.unwrap(),
            ];
            next += 3;
            for synced in batch {
                synced.await.unwrap().unwrap();
            }
            println!("acknowledged {}", next - 1);
            io::stdout().flush().unwrap();
        }
    });
}

#[test]
fn killed_while_appending_it_has_all_it_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    LogStore::create(dir.path(), identity(1)).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut acknowledged = 0;
    for lines in [5, 20, 60] {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "raft::tests::crash::child_appends_until_killed", "--ignored", "--nocapture"])
            .env(CHILD_DIRECTORY, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = io::BufReader::new(child.stdout.take().unwrap()).lines();
        let said = output.map_while(Result::ok);
        let indexes = said.filter_map(|line| line.split_once("acknowledged ")?.1.trim().parse::<u64>().ok());
        acknowledged = indexes.take(lines).last().expect("the child appends");
        child.kill().unwrap();
        child.wait().unwrap();

        let mut store = LogStore::open(dir.path(), identity(1), no_failure()).unwrap();
        let entries = runtime.block_on(store.try_get_log_entries(0..=acknowledged)).unwrap();
        assert!(entries.iter().cloned().eq((0..=acknowledged).map(|index| entry(1, index))));
    }
    assert!(acknowledged > 0);
}

/// What a power cut leaves at least.
#[derive(Clone, Default)]
struct Kept {
    /// How long each write-ahead log was before the last sync.
    lengths: HashMap<String, u64>,
    /// The mark as it was then: it tells of the sync before, which those lengths cover.
    mark: Vec<u8>,
}

/// Notes it at each sync.
struct Noting {
    real: Box<dyn WalSync>,
    lies: bool,
    dir: std::path::PathBuf,
    synced: Arc<Mutex<Kept>>,
}

impl WalSync for Noting {
    fn sync(&mut self) -> io::Result<()> {
        if self.lies {
            return Ok(());
        }
        self.real.hand_over()?;
        let (lengths, mark) = (wal_lengths(&self.dir), fs::read(self.dir.join("synced-up-to"))?);
        self.real.sync()?;
        let mut synced = self.synced.lock().unwrap();
        synced.lengths.extend(lengths);
        synced.mark = mark;
        Ok(())
    }
}

fn wal_lengths(dir: &Path) -> HashMap<String, u64> {
    let files = fs::read_dir(dir).unwrap().map(Result::unwrap);
    let named = files.map(|file| (file.file_name().into_string().unwrap(), file.path()));
    // A file may go between listing and asking.
    named
        .filter(|(name, _)| name.ends_with(".log"))
        .filter_map(|(n, p)| Some((n, fs::metadata(p).ok()?.len())))
        .collect()
}

fn now(dir: &Path) -> Kept {
    Kept { lengths: wal_lengths(dir), mark: fs::read(dir.join("synced-up-to")).unwrap() }
}

/// Copies the directory as a power cut at this moment may leave it: of each write-ahead log what was synced, and any
/// part of the rest.
fn power_cut(from: &Path, to: &Path, synced: &Kept, rng: &mut impl rand::Rng) {
    fs::create_dir_all(to).unwrap();
    for file in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let name = file.file_name().into_string().unwrap();
        let mut bytes = fs::read(file.path()).unwrap();
        if name.ends_with(".log") {
            let kept = synced.lengths.get(&name).copied().unwrap_or(0);
            bytes.truncate(rng.random_range(kept..=bytes.len() as u64) as usize);
        }
        if name == "synced-up-to" {
            bytes.clone_from(&synced.mark);
        }
        if name != "LOCK" {
            fs::write(to.join(name), bytes).unwrap();
        }
    }
}

/// Appends and votes at random, cuts the power, and says what is wrong with what is left.
async fn one_power_cut(seed: u64, lies: bool) -> Result<(), String> {
    let mut rng = testing::rng(seed);
    let (dir, after) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    LogStore::create(dir.path(), identity(1)).unwrap();
    // What the creation synced counts too.
    let database = dir.path().join("raft.db");
    let synced = Arc::new(Mutex::new(now(&database)));
    let wrap =
        |real| Box::new(Noting { real, lies, dir: database.clone(), synced: synced.clone() }) as Box<dyn WalSync>;
    let mut store = LogStore::open_with(dir.path(), identity(1), no_failure(), wrap).unwrap();
    let (mut next, mut acknowledged, mut voted) = (0, None, 0);
    let mut waiting: Vec<(u64, Synced)> = Vec::new();
    for _ in 0..rng.random_range(1..60) {
        if rng.random_bool(0.1) {
            voted += 1;
            store.save_vote(&Vote::new(voted, MdmId(1))).await.unwrap();
        }
        let count = rng.random_range(1..5);
        let entries = (next..next + count).map(|index| entry(1, index));
        next += count;
        waiting.push((next - 1, append(&mut store, entries).await.unwrap()));
        if rng.random_bool(0.5) {
            for (last, synced) in waiting.drain(..) {
                synced.await.unwrap().unwrap();
                acknowledged = Some(last);
            }
        }
    }
    // What was synced by now is at least what was acknowledged; the rest may or may not be there.
    let kept = synced.lock().unwrap().clone();
    power_cut(&database, &after.path().join("raft.db"), &kept, &mut rng);
    drop(store);

    let mut store = LogStore::open(after.path(), identity(1), no_failure()).map_err(|error| error.to_string())?;
    let last = store.get_log_state().await.unwrap().last_log_id.map(|id| id.index);
    if last < acknowledged {
        return Err(format!("acknowledged up to {acknowledged:?}, left with {last:?}"));
    }
    let entries = store.try_get_log_entries(..).await.unwrap();
    if !entries.iter().cloned().eq((0..entries.len() as u64).map(|index| entry(1, index))) {
        return Err("entries differ from what was appended".into());
    }
    match store.read_vote().await.unwrap().map_or(0, |vote| vote.leader_id.term) {
        found if found < voted => Err(format!("voted in term {voted}, left with {found}")),
        _ => Ok(()),
    }
}

#[tokio::test]
async fn a_power_cut_takes_nothing_acknowledged() {
    for seed in Seeds::new(25) {
        one_power_cut(seed, false).await.unwrap_or_else(|what| panic!("seed {seed}: {what}"));
    }
}

#[tokio::test]
async fn the_power_cut_test_sees_a_sync_that_does_nothing() {
    let mut found = 0;
    for seed in 0..10 {
        found += usize::from(one_power_cut(seed, true).await.is_err());
    }
    assert!(found > 0, "a disk that never syncs went unnoticed");
}

/// The write-ahead log is cut back only at its tail: damage before it means acknowledged entries would go unnoticed.
#[tokio::test]
async fn damage_in_the_middle_of_the_write_ahead_log_is_refused() {
    for seed in Seeds::new(10) {
        let mut rng = testing::rng(seed);
        let dir = tempfile::tempdir().unwrap();
        LogStore::create(dir.path(), identity(1)).unwrap();
        let mut store = LogStore::open(dir.path(), identity(1), no_failure()).unwrap();
        for index in 0..50 {
            append(&mut store, [entry(1, index)]).await.unwrap().await.unwrap().unwrap();
        }
        // Killed: a clean close may flush the memtable and leave nothing in the write-ahead log.
        let (database, after) = (dir.path().join("raft.db"), tempfile::tempdir().unwrap());
        let all = now(&database);
        power_cut(&database, &after.path().join("raft.db"), &all, &mut rng);
        drop(store);

        let (name, length) = all.lengths.iter().max_by_key(|(_, length)| **length).unwrap();
        let path = after.path().join("raft.db").join(name);
        let mut bytes = fs::read(&path).unwrap();
        bytes[rng.random_range(*length / 4..*length / 2) as usize] ^= 1 << rng.random_range(0..8);
        fs::write(&path, bytes).unwrap();
        match LogStore::open(after.path(), identity(1), no_failure()) {
            Err(StoreError::Damaged { .. }) => {}
            Err(other) => panic!("seed {seed}: {other}"),
            Ok(mut store) => {
                let last = store.get_log_state().await.unwrap().last_log_id;
                panic!("seed {seed}: opened with {last:?} of 50 acknowledged entries");
            }
        }
    }
}

/// `state.db` is never synced between snapshots; the log has what a power cut takes from it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_state_lost_is_replayed_from_the_log() {
    for seed in Seeds::new(3) {
        let mut rng = testing::rng(seed);
        let mut cluster = Cluster::start(1, 30).await;
        let commands = rng.random_range(1..80);
        cluster.propose_domains(0..commands).await;
        let member = &mut cluster.0[0];
        member.kill().await;
        for state in fs::read_dir(member.dir.path()).unwrap().map(Result::unwrap) {
            if state.file_name().to_string_lossy().starts_with("state-") {
                // Only the newest: RocksDB syncs a closed one before it flushes what the next ones go on from.
                if let Some((name, length)) = wal_lengths(&state.path()).into_iter().max() {
                    let file = fs::OpenOptions::new().write(true).open(state.path().join(name)).unwrap();
                    file.set_len(rng.random_range(0..=length)).unwrap();
                }
            }
        }
        member.start().await;
        let lost = |name: &u64| !has(member.group(), &format!("d{name}"));
        let lost: Vec<u64> = (0..commands).filter(lost).collect();
        assert!(lost.is_empty(), "seed {seed}: lost {lost:?} of {commands}");
        cluster.stop().await;
    }
}
