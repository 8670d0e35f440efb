//! A writeback pool of real processes: FLUSH and FUA, and what is said when the memory of every copy is gone (S14).
//!
//! Killing a process with SIGKILL takes its memory and leaves the kernel's page cache, so this does not show that flushed data
//! survives a power cut: the simulator (`sds/src/replication/sim`) and the store's crash tests do. What it shows is that the
//! whole chain, from NBD to the MDM's volatility ids and back, tells the truth: a FLUSH that covers writes acknowledged in
//! memory that is gone fails and closes the export, and every other one succeeds with the data there.

mod kit;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use kit::{ByHand, Cluster, stderr};
use pflex_jepsen::nbd::NbdClient;
use serde_json::Value;

/// For a state that is waited for: a slow machine makes a test longer, not red.
const PATIENCE: Duration = Duration::from_secs(120);
const BLOCK: usize = 4_096;
const MIB: u64 = 1 << 20;
/// Over all groups of the pool.
const CHUNKS: u64 = 64;

/// A new connection, once the client serves.
fn disk(cluster: &Cluster) -> NbdClient {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match NbdClient::open(cluster.at(8005), "fast", PATIENCE) {
            Ok(disk) => return disk,
            Err(error) => assert!(Instant::now() < deadline, "the volume is not exported: {error}"),
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// One block in each chunk.
fn write(disk: &mut NbdClient, stamp: u8, fua: bool) {
    for chunk in 0..CHUNKS {
        disk.write(chunk * MIB, &[stamp; BLOCK], fua).unwrap_or_else(|error| panic!("write of {stamp}: {error}"));
    }
}

fn expect(disk: &mut NbdClient, stamp: u8) {
    for chunk in 0..CHUNKS {
        let mut read = [0; BLOCK];
        disk.read(chunk * MIB, &mut read).unwrap_or_else(|error| panic!("read of {stamp}: {error}"));
        assert_eq!(read, [stamp; BLOCK], "chunk {chunk}");
    }
}

/// Every group has two copies in sync.
fn whole(cluster: &Cluster) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let output = cluster.run("pg list -o json", &[]);
        let rows: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let is_whole =
            |row: &Value| row["state"] == "active" && row["in_sync"].as_array().is_some_and(|c| c.len() == 2);
        if rows.as_array().is_some_and(|rows| !rows.is_empty() && rows.iter().all(is_whole)) {
            return;
        }
        assert!(Instant::now() < deadline, "{rows} {}", stderr(&output));
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Two servers whose devices are in a writeback pool, with volume `fast` mapped to the client.
fn start() -> Cluster {
    let cluster = Cluster::start();
    let client = cluster.json("sdc list -o json")[0]["name"].as_str().expect("it has a name").to_owned();
    cluster.expect(0, &format!("volume unmap demo {client}"));
    cluster.expect(0, "volume delete demo --yes");
    cluster.expect(0, "pool delete default --yes");
    cluster.expect(0, "pool create quick --domain default --pgs 8 --write-policy writeback");
    for device in cluster.json("device list -o json").as_array().expect("a list") {
        // One that was without a pool may be there by itself already.
        let output = cluster.run(&format!("device add {} --pool quick", device["id"]), &[]);
        assert!(output.status.success() || stderr(&output).contains("it is in pool quick already"), "{output:?}");
    }
    cluster.expect(0, "volume create fast --pool quick --size 1GiB");
    cluster.expect(0, &format!("volume map fast {client}"));
    whole(&cluster);
    cluster
}

/// The processes that were started again, by name.
#[derive(Default)]
struct Again(BTreeMap<&'static str, ByHand>);

impl Again {
    /// Kills these, all before the first is started again.
    fn restart(&mut self, cluster: &Cluster, processes: &[&'static str]) {
        for process in processes {
            let pid = cluster.pid(process).expect("it runs");
            cluster.kill(process);
            // Reaps those that this test started; of the others the end is waited for.
            self.0.remove(process);
            while is_alive(pid) {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        for process in processes {
            self.0.insert(process, cluster.by_hand(process));
        }
    }
}

/// A process that nobody has reaped yet is dead, too.
fn is_alive(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z"))
}

#[test]
fn flush_and_fua_tell_the_truth_whatever_dies() {
    let cluster = start();
    let mut again = Again::default();
    let mut writer = disk(&cluster);
    write(&mut writer, 1, false);
    writer.flush().expect("both copies have it on disk");

    // One copy at a time: the other one remembers, and nobody notices.
    for process in ["sds0", "sds1"] {
        write(&mut writer, 2, false);
        again.restart(&cluster, &[process]);
        write(&mut writer, 3, false);
        whole(&cluster);
        writer.flush().unwrap_or_else(|error| panic!("{process} died, the other copy had all of it: {error}"));
        expect(&mut writer, 3);
    }

    // Both at once, with nothing owed: what was flushed, or written with FUA, is there.
    write(&mut writer, 4, true);
    again.restart(&cluster, &["sds0", "sds1"]);
    whole(&cluster);
    writer.flush().expect("FUA writes owe nothing");
    expect(&mut writer, 4);

    // Both at once, with writes that were not flushed: perhaps they are there, and nobody says that they surely are.
    write(&mut writer, 5, false);
    again.restart(&cluster, &["sds0", "sds1"]);
    whole(&cluster);
    let said = writer.flush().expect_err("no copy kept the memory these writes were acknowledged in");
    assert!(writer.read(0, &mut [0; BLOCK]).is_err(), "after {said} the export is closed for this connection");

    // Whoever connects anew begins with nothing owed.
    let mut writer = disk(&cluster);
    write(&mut writer, 6, false);
    writer.flush().expect("the present memory is made durable");
    expect(&mut writer, 6);

    // The client dies, too: what was acknowledged before is owed by its next life, which knows in whose memory it was.
    write(&mut writer, 7, false);
    again.restart(&cluster, &["sdc0"]);
    let mut writer = disk(&cluster);
    writer.flush().expect("the servers kept their memory");
    expect(&mut writer, 7);
    write(&mut writer, 8, false);
    again.restart(&cluster, &["sdc0", "sds0", "sds1"]);
    whole(&cluster);
    disk(&cluster).flush().expect_err("the client's earlier life acknowledged writes in memory that is gone");
    disk(&cluster).flush().expect("and that was said once");
}
