//! Writing to the volume that `up` makes, checking what is read, and waiting for what commands say.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use pflex_jepsen::nbd::NbdClient;
use serde_json::Value;

use super::{Cluster, stderr};

/// For a state that is waited for: a slow machine makes a test longer, not red.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
pub(crate) const BLOCK: u64 = 4_096;
pub(crate) const MIB: u64 = 1 << 20;
/// The writer's part of the volume; behind it is what is written once.
pub(crate) const WRITTEN: u64 = 64 * MIB;

pub(crate) fn disk(cluster: &Cluster) -> NbdClient {
    disk_of(cluster, "demo")
}

pub(crate) fn disk_of(cluster: &Cluster, volume: &str) -> NbdClient {
    NbdClient::open(cluster.at(8005), volume, PATIENCE).expect("the volume is exported")
}

pub(crate) fn block(stamp: u64) -> Vec<u8> {
    stamp.to_le_bytes().repeat(BLOCK as usize / 8)
}

pub(crate) fn expect_block(disk: &mut NbdClient, offset: u64, stamp: u64) {
    let mut read = vec![0; BLOCK as usize];
    disk.read(offset, &mut read).unwrap_or_else(|error| panic!("read at {offset}: {error}"));
    assert!(read == block(stamp), "the block at {offset} is not as it was written");
}

/// One block in each of `chunks` chunks behind the writer's part.
pub(crate) fn keep(disk: &mut NbdClient, chunks: u64) {
    for n in 0..chunks {
        disk.write(WRITTEN + n * MIB, &block(n + 1), false).expect("all is well");
    }
}

/// They are as they were written.
pub(crate) fn expect_kept(disk: &mut NbdClient, chunks: u64) {
    for n in 0..chunks {
        expect_block(disk, WRITTEN + n * MIB, n + 1);
    }
}

/// Writes and reads back until told to stop; every operation must succeed and every block be as it was written.
fn write_until(over: &AtomicBool, done: &AtomicU64, cluster: &Cluster) {
    let mut disk = disk(cluster);
    for n in 1_u64.. {
        if over.load(Ordering::Relaxed) {
            return;
        }
        // Over all chunks of its part, so that no group is left alone.
        let offset = n.wrapping_mul(7_919) % (WRITTEN / BLOCK) * BLOCK;
        disk.write(offset, &block(n), false).unwrap_or_else(|error| panic!("write {n}: {error}"));
        expect_block(&mut disk, offset, n);
        done.fetch_add(1, Ordering::Relaxed);
    }
}

/// Does `what` while a writer is at work, which ends with it, whatever fails.
pub(crate) fn under_io<T: Send>(cluster: &Cluster, what: impl FnOnce() -> T + Send) -> T {
    let (over, done) = (AtomicBool::new(false), AtomicU64::new(0));
    let result = std::thread::scope(|scope| {
        let writer = scope.spawn(|| write_until(&over, &done, cluster));
        let result = scope.spawn(what).join();
        over.store(true, Ordering::Relaxed);
        match (result, writer.join()) {
            (Ok(result), Ok(())) => result,
            (Err(panic), _) | (_, Err(panic)) => std::panic::resume_unwind(panic),
        }
    });
    println!("{} writes meanwhile", done.load(Ordering::Relaxed));
    assert!(done.load(Ordering::Relaxed) > 0);
    result
}

/// Waits until a command says what is wanted.
/// Asks until there is an answer.
pub(crate) fn eventually<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

pub(crate) fn until(cluster: &Cluster, words: &str, wanted: impl Fn(&Value) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let output = cluster.run(words, &["-o", "json"]);
        let json = serde_json::from_slice(&output.stdout).unwrap_or_default();
        if output.status.success() && wanted(&json) {
            return;
        }
        assert!(Instant::now() < deadline, "pflex {words}: {json} {}", stderr(&output));
        std::thread::sleep(Duration::from_millis(200));
    }
}

pub(crate) fn number(row: &Value, key: &str) -> u64 {
    row[key].as_u64().unwrap_or_default()
}
