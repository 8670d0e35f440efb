//! Disks and servers are lost for good, one after the other, under IO: full redundancy comes back by itself each time, and
//! nothing is lost.

mod kit;

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use kit::{Cluster, stderr};
use pflex_jepsen::nbd::NbdClient;
use serde_json::Value;

/// For a state that is waited for: a slow machine makes a test longer, not red.
const PATIENCE: Duration = Duration::from_secs(120);
const BLOCK: u64 = 4_096;
const MIB: u64 = 1 << 20;
/// The writer's part of the volume; behind it is what is written once.
const WRITTEN: u64 = 64 * MIB;
const KEPT: u64 = 96;

fn disk(cluster: &Cluster) -> NbdClient {
    NbdClient::open(cluster.at(8005), "demo", PATIENCE).expect("the volume is exported")
}

fn block(stamp: u64) -> Vec<u8> {
    stamp.to_le_bytes().repeat(BLOCK as usize / 8)
}

fn expect_block(disk: &mut NbdClient, offset: u64, stamp: u64) {
    let mut read = vec![0; BLOCK as usize];
    disk.read(offset, &mut read).unwrap_or_else(|error| panic!("read at {offset}: {error}"));
    assert!(read == block(stamp), "the block at {offset} is not as it was written");
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

/// The numbers of a server's devices that are in service, or not.
fn devices(cluster: &Cluster, sds: &str, in_service: bool) -> Vec<u64> {
    let rows = cluster.json(&format!("device list --sds {sds} -o json"));
    let of = rows.as_array().expect("a list").iter().filter(|row| row["in_service"] == in_service);
    of.map(|row| row["id"].as_u64().expect("a number")).collect()
}

/// Every group has two copies in sync, none of them on these devices.
fn whole_without(rows: &Value, gone: &[u64]) -> bool {
    let device = |copy: &Value| copy.as_str().and_then(|copy| copy.split('/').nth(1)?.parse().ok()).unwrap_or(0);
    rows.as_array().is_some_and(|rows| {
        !rows.is_empty()
            && rows.iter().all(|row| {
                let copies = row["in_sync"].as_array().map(Vec::as_slice).unwrap_or_default();
                row["state"] == "active" && copies.len() == 2 && copies.iter().all(|copy| !gone.contains(&device(copy)))
            })
    })
}

fn until(cluster: &Cluster, words: &str, wanted: impl Fn(&Value) -> bool) {
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

#[test]
fn lost_disks_and_servers_are_replaced_by_those_that_are_left() {
    let cluster = Cluster::start_of("--mdm 1 --sds 4 --sdc 1 --devices 2");
    cluster.expect(0, "settings set rebuild.delay_ms=1000");
    let mut reader = disk(&cluster);
    for n in 0..KEPT {
        reader.write(WRITTEN + n * MIB, &block(n + 1), false).expect("all is well");
    }
    let (over, done) = (AtomicBool::new(false), AtomicU64::new(0));
    let _again = std::thread::scope(|scope| {
        let writer = scope.spawn(|| write_until(&over, &done, &cluster));
        // Whatever fails below, the writer ends.
        let faults = scope.spawn(|| {
            let mut gone = Vec::new();
            // One disk of two: its server serves on with the other.
            cluster.kill("sds0");
            std::fs::write(cluster.dir().join("sds0/device1"), vec![7; 1 << 20]).expect("its process is dead");
            let again = cluster.by_hand("sds0");
            let one_serves = |rows: &Value| {
                let serves = |path: &str, serves: bool| {
                    let is_it = |row: &&Value| row["path"].as_str().is_some_and(|of| of.ends_with(path));
                    rows.as_array()
                        .and_then(|rows| rows.iter().find(is_it))
                        .is_some_and(|row| row["in_service"] == serves)
                };
                serves("device0", true) && serves("device1", false)
            };
            until(&cluster, "device list --sds sds1", one_serves);
            gone.extend(devices(&cluster, "sds1", false));
            until(&cluster, "pg list", |rows| whole_without(rows, &gone));
            // A server for good, and another one once all is whole again.
            for (process, name) in [("sds1", "sds2"), ("sds2", "sds3")] {
                gone.extend(devices(&cluster, name, true));
                cluster.kill(process);
                until(&cluster, "pg list", |rows| whole_without(rows, &gone));
                until(&cluster, "rebuild list --unfinished", |rows| rows.as_array().is_some_and(Vec::is_empty));
            }
            again
        });
        let faults = faults.join();
        over.store(true, Ordering::Relaxed);
        let writer = writer.join();
        match (faults, writer) {
            (Ok(again), Ok(())) => again,
            (Err(panic), _) | (_, Err(panic)) => std::panic::resume_unwind(panic),
        }
    });
    println!("{} writes meanwhile", done.load(Ordering::Relaxed));
    assert!(done.load(Ordering::Relaxed) > 0);
    for n in 0..KEPT {
        expect_block(&mut reader, WRITTEN + n * MIB, n + 1);
    }

    // Both servers come back to groups that do without them, and the cluster is whole.
    let _others = [cluster.by_hand("sds1"), cluster.by_hand("sds2")];
    until(&cluster, "sds list", |rows| rows.as_array().is_some_and(|rows| rows.iter().all(|row| row["alive"] == true)));
    for n in 0..KEPT {
        expect_block(&mut reader, WRITTEN + n * MIB, n + 1);
    }
}
