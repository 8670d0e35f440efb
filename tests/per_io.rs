//! A volume in per-io mode, in real processes: each operation has a token of its own, and faults are a pause as in lease mode (S21).

mod kit;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use kit::{
    Cluster,
    io::{BLOCK, MIB, block, disk_of, eventually, expect_block, number},
};

const VOLUME: &str = "single";

/// Writes each block and reads it back until told to stop.
fn io_until(over: &AtomicBool, done: &AtomicU64, cluster: &Cluster) {
    let mut disk = disk_of(cluster, VOLUME);
    for n in 0_u64.. {
        if over.load(Ordering::Relaxed) {
            return;
        }
        let offset = n % 64 * MIB + n % 256 * BLOCK;
        disk.write(offset, &block(n), false).unwrap_or_else(|error| panic!("write {n}: {error}"));
        expect_block(&mut disk, offset, n);
        done.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn each_operation_of_a_per_io_volume_has_its_own_token_through_faults() {
    let cluster = Cluster::start_of("--mdm 3 --sds 3 --sdc 1");
    cluster.expect(0, "volume create single --size 64MiB --token-mode per-io");
    cluster.expect(0, "volume map single sdc1 --wait");
    let mut first = disk_of(&cluster, VOLUME);
    // Over chunk borders, in parts of blocks, zeros, holes, and what reads only.
    let across: Vec<u8> = (0..3 * MIB).map(|at| (at / 977) as u8).collect();
    first.write(MIB / 2 + 123, &across, true).expect("a write of four chunks");
    let mut read = vec![0; across.len()];
    first.read(MIB / 2 + 123, &mut read).expect("it is read");
    assert!(read == across, "what was written");
    first.flush().expect("a flush needs no token");
    drop(first);

    let of_a_write = |token: &&serde_json::Value| number(token, "operation_id") != 0 && number(token, "writes") <= 1;
    let tokens = cluster.json("token list --volume single -o json");
    let writes = tokens.as_array().expect("a list").iter().filter(of_a_write).count();
    assert!(writes >= 4, "each part of a write had one: {tokens}");

    let (over, done) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let io = scope.spawn(|| io_until(&over, &done, &cluster));
        let goes_on = |what: &str| {
            let before = done.load(Ordering::Relaxed);
            eventually(what, || {
                assert!(!io.is_finished(), "an operation failed");
                (done.load(Ordering::Relaxed) > before + 20).then_some(())
            });
        };
        goes_on("IO");
        cluster.kill("sds1");
        goes_on("IO without a server");
        cluster.up(0);
        goes_on("IO with a server that forgot which tokens it had seen");
        let status = cluster.json("status -o json");
        let leader = status["leader"]["id"].as_u64().or_else(|| status["leader"].as_u64()).unwrap_or(1);
        cluster.kill(&format!("mdm{}", leader.saturating_sub(1)));
        goes_on("IO after the leader died");
        over.store(true, Ordering::Relaxed);
    });
    cluster.up(0);
    let audit = cluster.expect(0, "token audit");
    assert!(audit.contains("holds"), "{audit}");
}
