//! Disks and servers are lost for good, one after the other, under IO: full redundancy comes back by itself each time, and
//! nothing is lost.

mod kit;

use std::time::{Duration, Instant};

use kit::{
    Cluster,
    io::{BLOCK, MIB, PATIENCE, block, disk, expect_block, expect_kept, keep, under_io, until},
    stderr,
};
use serde_json::Value;

const KEPT: u64 = 96;
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

#[test]
fn lost_disks_and_servers_are_replaced_by_those_that_are_left() {
    let cluster = Cluster::start_of("--mdm 1 --sds 4 --sdc 1 --devices 2");
    cluster.expect(0, "settings set rebuild.delay_ms=1000");
    let mut reader = disk(&cluster);
    keep(&mut reader, KEPT);
    let _again = under_io(&cluster, || {
        let mut gone = Vec::new();
        // One disk of two: its server serves on with the other.
        cluster.kill("sds0");
        std::fs::write(cluster.dir().join("sds0/device1"), vec![7; 1 << 20]).expect("its process is dead");
        let again = cluster.by_hand("sds0");
        let one_serves = |rows: &Value| {
            let serves = |path: &str, serves: bool| {
                let is_it = |row: &&Value| row["path"].as_str().is_some_and(|of| of.ends_with(path));
                rows.as_array().and_then(|rows| rows.iter().find(is_it)).is_some_and(|row| row["in_service"] == serves)
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
    expect_kept(&mut reader, KEPT);

    // Both servers come back to groups that do without them, and the cluster is whole.
    let _others = [cluster.by_hand("sds1"), cluster.by_hand("sds2")];
    until(&cluster, "sds list", |rows| rows.as_array().is_some_and(|rows| rows.iter().all(|row| row["alive"] == true)));
    expect_kept(&mut reader, KEPT);
}

/// Adds an entry to the configuration of a running server, and tells it.
fn add_device(cluster: &Cluster, process: &str, path: &std::path::Path) {
    let file = cluster.dir().join(process).join("config.toml");
    let mut config = std::fs::read_to_string(&file).expect("up wrote it");
    config.push_str(&format!("\n[[device]]\npath = \"{}\"\nsize_bytes = {}\n", path.display(), 1 << 30));
    std::fs::write(&file, config).expect("it is ours");
    cluster.signal(process, rustix::process::Signal::HUP);
}

#[test]
fn a_running_server_takes_another_device_in_and_refuses_a_bad_one() {
    let cluster = Cluster::start_of("--mdm 1 --sds 2 --sdc 1");
    cluster.expect(0, "settings set lead.return_ms=1000");
    let mut reader = disk(&cluster);
    keep(&mut reader, KEPT);
    let (pid, life) = (cluster.pid("sds0"), cluster.registrations("sds1"));
    under_io(&cluster, || {
        let (good, bad) = (cluster.dir().join("sds0/another"), cluster.dir().join("sds0/bad"));
        std::fs::write(&bad, vec![7; 64 << 20]).expect("a file");
        add_device(&cluster, "sds0", &bad);
        let deadline = Instant::now() + PATIENCE;
        let said = format!("sds sds1: {} is refused", bad.display());
        loop {
            let told = stderr(&cluster.run("device stats --sds sds1", &[]));
            if told.contains(&said) {
                break;
            }
            assert!(Instant::now() < deadline, "it is not said that the device is refused: {told}");
            std::thread::sleep(Duration::from_millis(200));
        }
        add_device(&cluster, "sds0", &good);
        until(&cluster, "device list --sds sds1", |rows| {
            rows.as_array().is_some_and(|rows| rows.len() == 2 && rows.iter().all(|row| row["in_service"] == true))
        });
        // It gets its share, beside the other one of its server: half of 64.
        let id = devices(&cluster, "sds1", true)[1];
        until(&cluster, "pg list", |rows| {
            let on = format!("sds1/{id}");
            let has =
                |row: &Value| row["in_sync"].as_array().is_some_and(|copies| copies.iter().any(|copy| copy == &on));
            rows.as_array().is_some_and(|rows| rows.iter().filter(|row| has(row)).count() >= 24)
        });
        until(&cluster, "rebuild list --unfinished", |rows| rows.as_array().is_some_and(Vec::is_empty));
    });
    assert_eq!((cluster.pid("sds0"), cluster.registrations("sds1")), (pid, life), "it is the same process");
    expect_kept(&mut reader, KEPT);
    // It is there after a restart, too, and what was bad is bad still.
    cluster.kill("sds0");
    let _again = cluster.by_hand("sds0");
    // First that it has registered anew: until then the MDM may not know of its end.
    until(&cluster, "health", |_| cluster.registrations("sds1") > life);
    until(&cluster, "device list --sds sds1", |rows| {
        rows.as_array().is_some_and(|rows| rows.len() == 2 && rows.iter().all(|row| row["in_service"] == true))
    });
    until(&cluster, "pg list", |rows| whole_without(rows, &[]));
    expect_kept(&mut reader, KEPT);
}

/// The bytes of block `n`, to find it on a disk.
fn place_of(file: &[u8], wanted: &[u8]) -> Option<usize> {
    file.chunks_exact(BLOCK as usize).position(|found| found == wanted)
}

#[test]
fn a_block_that_rots_on_one_copy_is_found_by_a_scrub_and_put_back() {
    let cluster = Cluster::start_of("--mdm 1 --sds 3 --sdc 1");
    cluster.expect(0, "settings set scrub.rate_mib_s=0");
    let mut writer = disk(&cluster);
    for n in 0..16 {
        // Whole chunks go to the data area at once.
        writer.write(n * MIB, &block(1_000 + n).repeat((MIB / BLOCK) as usize), false).expect("all is well");
    }
    // One copy of each of two blocks rots.
    let deadline = Instant::now() + PATIENCE;
    let mut rotten: Vec<(std::path::PathBuf, u64)> = Vec::new();
    while rotten.len() < 2 {
        assert!(Instant::now() < deadline, "the blocks never came to the data areas: {rotten:?}");
        rotten.clear();
        for stamp in [1_003, 1_011] {
            let mut copies = (0..3).filter_map(|n| {
                let path = cluster.dir().join(format!("sds{n}/device0"));
                let place = last_place(&path, &block(stamp))?;
                Some((path, place))
            });
            rotten.extend(copies.next_back());
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    for (path, place) in &rotten {
        let file = std::fs::OpenOptions::new().write(true).open(path).expect("a device is a file");
        std::os::unix::fs::FileExt::write_all_at(&file, &[0xa5; 512], place + 512).expect("it is ours");
    }
    let deadline = Instant::now() + PATIENCE;
    let mut found = 0;
    // What is in memory still is found when it is read from the disk.
    while found < 2 {
        cluster.expect(0, "pool scrub default --wait");
        let pool = cluster.json("pool show default -o json");
        assert_eq!((&pool["scrub"], &pool["scrub_mismatches"]), (&"done".into(), &0.into()), "{pool}");
        assert!(pool["scrubbed_chunks"].as_u64() > Some(0), "{pool}");
        found += pool["scrub_bad_blocks"].as_u64().expect("a number");
        assert!(Instant::now() < deadline, "{pool}");
    }
    until(&cluster, "event list", |events| {
        let said = |event: &Value, what: &str| event["what"].as_str().is_some_and(|said| said.contains(what));
        events.as_array().is_some_and(|events| {
            events.iter().any(|event| event["kind"] == "device.faults" && said(event, "put back from another copy"))
                && events.iter().any(|event| event["kind"] == "pool.scrub" && said(event, "unreadable blocks found"))
        })
    });
    // The bytes are back, on both copies: nothing more is found.
    cluster.expect(0, "pool scrub default --wait");
    assert_eq!(cluster.json("pool show default -o json")["scrub_bad_blocks"], 0);
    for n in 0..16 {
        expect_block(&mut writer, n * MIB, 1_000 + n);
    }
    cluster.expect(0, "status --check");
}

/// Where such a block is in the data area of a device: behind everything else that holds it.
fn last_place(path: &std::path::Path, wanted: &[u8]) -> Option<u64> {
    let file = std::fs::File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    let mut piece = vec![0; MIB as usize];
    // A mebibyte at a time: the file is sparse, and large.
    (0..length / MIB).rev().find_map(|n| {
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut piece, n * MIB).ok()?;
        place_of(&piece, wanted).map(|block| n * MIB + block as u64 * BLOCK)
    })
}
