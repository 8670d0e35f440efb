//! A server comes and gets its share, and another one is drained and removed, under IO: no operation fails, no block is
//! other than it was written, and no group ever has fewer copies than it should have.

mod kit;

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use kit::{ByHand, Cluster, stderr};
use pflex_jepsen::nbd::NbdClient;
use serde_json::Value;

/// For a state that is waited for: a slow machine makes a test longer, not red.
const PATIENCE: Duration = Duration::from_secs(120);
const BLOCK: u64 = 4_096;
const MIB: u64 = 1 << 20;
/// The writer's part of the volume; behind it is what is written once.
const WRITTEN: u64 = 64 * MIB;
const KEPT: u64 = 64;

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
        let offset = n.wrapping_mul(7_919) % (WRITTEN / BLOCK) * BLOCK;
        disk.write(offset, &block(n), false).unwrap_or_else(|error| panic!("write {n}: {error}"));
        expect_block(&mut disk, offset, n);
        done.fetch_add(1, Ordering::Relaxed);
    }
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

fn number(row: &Value, key: &str) -> u64 {
    row[key].as_u64().unwrap_or_default()
}

/// Groups that device `from` led and that `to` has a copy of in its stead.
fn led_and_moved(before: &Value, after: &Value, from: &str, to: &str) -> usize {
    let has = |row: &Value, device: &str| row["in_sync"].as_array().is_some_and(|on| on.iter().any(|on| on == device));
    let (before, after) = (before.as_array().expect("a list"), after.as_array().expect("a list"));
    let moved = before.iter().filter(|row| row["primary_device"] == from && !has(row, to));
    moved.filter(|row| after.iter().any(|now| now["id"] == row["id"] && has(now, to) && !has(now, from))).count()
}

fn all_whole(rows: &Value) -> bool {
    let whole = |row: &Value| row["state"] == "active" && row["in_sync"].as_array().is_some_and(|on| on.len() == 2);
    rows.as_array().is_some_and(|rows| !rows.is_empty() && rows.iter().all(whole))
}

/// Starts a server beside those of `up`: its configuration is that of the third, under the next name and ports.
fn add_server(cluster: &Cluster) -> ByHand {
    cluster.expect(0, "sds add sds4 --domain default");
    let dir = cluster.dir();
    let mut config = std::fs::read_to_string(dir.join("sds2/config.toml")).expect("up wrote it");
    config = config.replace("\"sds3\"", "\"sds4\"").replace("/sds2", "/sds3");
    for port in [9_702, 9_102, 9_202] {
        config = config.replace(&cluster.at(port).to_string(), &cluster.at(port + 1).to_string());
    }
    std::fs::create_dir_all(dir.join("sds3")).expect("a directory");
    std::fs::write(dir.join("sds3/config.toml"), config).expect("a file");
    cluster.by_hand("sds3")
}

#[test]
fn a_server_comes_and_another_one_goes_and_nothing_is_ever_missing() {
    let cluster = Cluster::start_of("--mdm 1 --sds 3 --sdc 1 --devices 2");
    cluster.expect(0, "settings set lead.return_ms=1000");
    let mut reader = disk(&cluster);
    for n in 0..KEPT {
        reader.write(WRITTEN + n * MIB, &block(n + 1), false).expect("all is well");
    }
    let (over, done) = (AtomicBool::new(false), AtomicU64::new(0));
    let _fourth = std::thread::scope(|scope| {
        let writer = scope.spawn(|| write_until(&over, &done, &cluster));
        // Whatever fails below, the writer ends.
        let changes = scope.spawn(|| {
            let fourth = add_server(&cluster);
            // 128 copies and 64 leads for four servers.
            let has_its_share = |row: &Value| number(row, "pgs_in_sync") >= 30 && number(row, "pgs_primary") >= 12;
            until(&cluster, "sds show sds4", has_its_share);
            until(&cluster, "rebuild list --unfinished", |rows| rows.as_array().is_some_and(Vec::is_empty));
            cluster.expect(0, "sds drain sds1 --wait --timeout 120s");
            until(&cluster, "sds show sds1", |row| number(row, "pgs_in_sync") == 0 && row["draining"] == true);
            cluster.expect(0, "sds remove sds1 --yes");
            // One device of a server goes to the other one there, among others.
            let rows = cluster.json("device list --sds sds2 -o json");
            let (device, sibling) = (number(&rows[0], "id"), number(&rows[1], "id"));
            let before = cluster.json("pg list -o json");
            cluster.expect(0, &format!("device drain {device} --wait --timeout 120s"));
            let after = cluster.json("pg list -o json");
            let within = led_and_moved(&before, &after, &format!("sds2/{device}"), &format!("sds2/{sibling}"));
            // Filled over a connection of the server to its own address.
            assert!(within > 0, "no copy that its device led moved to the other device of its server");
            cluster.expect(0, &format!("device remove {device} --yes"));
            fourth
        });
        let changes = changes.join();
        over.store(true, Ordering::Relaxed);
        let writer = writer.join();
        match (changes, writer) {
            (Ok(fourth), Ok(())) => fourth,
            (Err(panic), _) | (_, Err(panic)) => std::panic::resume_unwind(panic),
        }
    });
    println!("{} writes meanwhile", done.load(Ordering::Relaxed));
    assert!(done.load(Ordering::Relaxed) > 0);
    for n in 0..KEPT {
        expect_block(&mut reader, WRITTEN + n * MIB, n + 1);
    }
    until(&cluster, "pg list", all_whole);
    for event in cluster.json("event list --limit 4096 -o json").as_array().expect("a list") {
        println!("{} {} {}: {}", event["at"], event["kind"], event["object"], event["what"]);
    }
    let jobs = cluster.json("rebuild list -o json");
    let kinds: Vec<&str> = jobs.as_array().expect("a list").iter().filter_map(|job| job["kind"].as_str()).collect();
    assert!(kinds.contains(&"rebalance") && kinds.contains(&"drain"), "{kinds:?}");
    assert!(!kinds.contains(&"rebuild"), "a copy was missing: {jobs}");
}
