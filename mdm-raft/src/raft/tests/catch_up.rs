//! A member that was away for long: it gets a snapshot while the leader serves, an install cut short at any step is done
//! again, and the disk space of a log that was cut comes back.

use std::{
    fs,
    path::Path,
    sync::{Arc, Mutex},
    time::Instant,
};

use super::kit::{Cluster, domain, states_differing, until};
use crate::raft::{FatalHook, GroupConfig, RaftGroup, network::links::INSTALL_STEPS};

/// Bytes of all files under a directory.
fn disk_bytes(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).map(|entries| entries.filter_map(Result::ok).collect::<Vec<_>>());
    let sizes = entries.unwrap_or_default().into_iter().map(|entry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => disk_bytes(&entry.path()),
        Ok(meta) => meta.len(),
        // Gone since it was listed.
        Err(_) => 0,
    });
    sizes.sum()
}

/// Commands in flight, as of many clients.
const WINDOW: u64 = 256;

/// Proposes `count` commands that leave the state small and the log long.
async fn propose_many(group: &RaftGroup, count: u64) {
    for first in (0..count).step_by(WINDOW as usize) {
        let window = (first..count.min(first + WINDOW)).map(|number| {
            let group = group.clone();
            async move { group.propose(domain(&format!("d{}", number % 100))).await.unwrap() }
        });
        futures::future::join_all(window).await;
    }
}

/// `away` commands while one member is down, snapshots every `snapshot_after`.
async fn away_for(away: u64, snapshot_after: u64) {
    let mut cluster = Cluster::start(3, snapshot_after).await;
    let leader = cluster.leader().await;
    let lagging = (leader + 1) % 3;
    cluster.propose(domain("before")).await;
    cluster.everybody_has("before").await;
    cluster.0[lagging].kill().await;

    let group = cluster.0[leader].group().clone();
    let dir = cluster.0[leader].dir.path().to_path_buf();
    let began = Instant::now();
    propose_many(&group, away).await;
    let took = began.elapsed();
    let most = disk_bytes(&dir.join("raft.db"));
    println!("{away} commands in {} ms; raft.db has {most} bytes", took.as_millis());
    let kept = || {
        let status = group.status();
        Some(status.last_log? - status.purged?.index).filter(|kept| *kept <= 2 * snapshot_after)
    };
    let kept = until("a cut log", kept).await;

    let began = Instant::now();
    cluster.0[lagging].start().await;
    let mut served = 0;
    // The leader serves all the while.
    while cluster.0[lagging].group().status().applied.map(|id| id.index) < group.status().applied.map(|id| id.index) {
        group.propose(domain("meanwhile")).await.unwrap();
        served += 1;
        assert!(began.elapsed().as_secs() < 60, "it does not catch up");
    }
    println!("caught up in {} ms, {served} commands served meanwhile", began.elapsed().as_millis());
    cluster.propose(domain("after")).await;
    cluster.everybody_has("after").await;
    assert_eq!(states_differing(&cluster).await, 0);
    let left = disk_bytes(&dir.join("raft.db"));
    println!("{kept} entries kept; raft.db {left} bytes, the whole store {}", disk_bytes(&dir));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_away_catches_up_while_the_leader_serves() {
    away_for(3_000, 500).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a minute: the size of the promise, for a person to run"]
async fn who_was_away_for_100_000_commands_catches_up() {
    away_for(100_000, 10_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_install_cut_short_at_any_step_is_done_again() {
    for step in 1..=INSTALL_STEPS {
        let mut cluster = Cluster::start(3, 40).await;
        let leader = cluster.leader().await;
        let lagging = (leader + 1) % 3;
        cluster.propose(domain("before")).await;
        cluster.everybody_has("before").await;
        cluster.0[lagging].kill().await;
        propose_many(cluster.0[leader].group(), 200).await;
        let group = cluster.0[leader].group().clone();
        until("a cut log", || group.status().purged.filter(|id| id.index > 20)).await;

        // It fails at the step and ends, with the disk as it is then.
        let failed = Arc::new(Mutex::new(None));
        let member = &mut cluster.0[lagging];
        let mut config = GroupConfig::new(super::kit::CLUSTER, member.identity.node, member.address);
        config.snapshot_after = 40;
        config.links = member.links.clone();
        config.links.fail_install_at(step);
        config.fatal = FatalHook::new({
            let failed = failed.clone();
            move |reason| {
                failed.lock().unwrap().get_or_insert_with(|| reason.to_owned());
            }
        });
        let doomed = RaftGroup::open(member.dir.path(), config).await.unwrap();
        let reason = until("the install to fail", || failed.lock().unwrap().clone()).await;
        assert!(reason.contains("install"), "step {step}: {reason}");
        doomed.stop().await;
        drop(doomed);

        member.links.fail_install_at(0);
        member.start().await;
        cluster.propose(domain("after")).await;
        cluster.everybody_has("after").await;
        assert_eq!(states_differing(&cluster).await, 0, "step {step}");
        let names = fs::read_dir(cluster.0[lagging].dir.path()).unwrap().filter_map(Result::ok);
        let states = names.filter(|file| file.file_name().to_string_lossy().starts_with("state-")).count();
        assert_eq!(states, 1, "step {step}: what was staged is left over");
        cluster.stop().await;
    }
}

/// Long commands, refused by the state: they fill nothing but the log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_space_of_a_cut_log_comes_back() {
    const BYTES: usize = 64 << 10;
    const COMMANDS: usize = 2_000;
    let mut cluster = Cluster::start(1, 100).await;
    let group = cluster.0[0].group().clone();
    let log = cluster.0[0].dir.path().join("raft.db");
    let mut most = 0;
    // Random: it must not compress.
    let letters: String = (0..2 * BYTES).map(|_| rand::random_range('a'..='z')).collect();
    for _ in 0..COMMANDS / 16 {
        let long = || letters[rand::random_range(0..BYTES)..][..BYTES].to_owned();
        let window = (0..16).map(|_| group.propose(domain(&long())));
        futures::future::join_all(window).await.into_iter().for_each(|outcome| {
            assert!(outcome.unwrap().error().is_some(), "such a name is refused");
        });
        most = most.max(disk_bytes(&log));
    }
    let written = (COMMANDS * BYTES) as u64;
    let kept = || {
        let status = group.status();
        Some(status.last_log? - status.purged?.index).filter(|kept| *kept <= 200)
    };
    let kept = until("a cut log", kept).await;
    // The store reclaims, and RocksDB deletes, in the background: on a busy disk that is later. In the end there are the kept
    // entries (13 MB), and what was appended since the last round began (16 MiB), at most once as a log and once as a table.
    let left = until("its space", || Some(disk_bytes(&log)).filter(|left| *left < written / 2)).await;
    println!("{written} bytes written; raft.db had {most} at most and has {left} with {kept} entries");
    cluster.stop().await;
}
