//! The placement groups of a pool double under IO (S25), one time with a server away: no operation fails, no block is other than
//! it was written, and a server that comes back follows.

mod kit;

use kit::{
    Cluster,
    io::{disk, expect_kept, keep, number, under_io, until},
};
use serde_json::Value;

const KEPT: u64 = 64;

fn all_whole(rows: &Value) -> bool {
    let whole = |row: &Value| row["state"] == "active" && row["in_sync"].as_array().is_some_and(|on| on.len() == 2);
    rows.as_array().is_some_and(|rows| !rows.is_empty() && rows.iter().all(whole))
}

/// Of a new pool.
const GROUPS: usize = 64;

#[test]
fn groups_double_under_io_and_while_a_server_is_away() {
    let cluster = Cluster::start_of("--mdm 3 --sds 3 --sdc 1 --devices 2");
    let mut reader = disk(&cluster);
    keep(&mut reader, KEPT);
    let _again = under_io(&cluster, || {
        cluster.expect(0, &format!("pool set-pgs default {}", 2 * GROUPS));
        let rows = cluster.json("pg list -o json");
        assert_eq!(rows.as_array().map(Vec::len), Some(2 * GROUPS));
        until(&cluster, "pg list", all_whole);
        // Nothing is copied for it.
        assert_eq!(cluster.json("rebuild list -o json").as_array().map(Vec::len), Some(0));
        // The next one misses a server, which comes back with its chunks in the groups of before.
        cluster.kill("sds1");
        until(&cluster, "sds show sds2", |row| row["alive"] == false);
        cluster.expect(0, &format!("pool set-pgs default {}", 4 * GROUPS));
        let again = cluster.by_hand("sds1");
        until(&cluster, "pg list", all_whole);
        // A killed server finds its chunks where they were sorted to.
        drop(again);
        let again = cluster.by_hand("sds1");
        until(&cluster, "pg list", all_whole);
        again
    });
    expect_kept(&mut reader, KEPT);
    // The shares even out by themselves; what is asked for twice is done once.
    until(&cluster, "rebuild list --unfinished", |rows| rows.as_array().is_some_and(Vec::is_empty));
    cluster.expect(0, &format!("pool set-pgs default {}", 4 * GROUPS));
    let shown: Value = cluster.json("pool show default -o json");
    assert_eq!(number(&shown, "pgs"), 4 * GROUPS as u64);
    // Every chunk is where the map says: all copies are compared.
    cluster.expect(0, "pool scrub default --wait");
    // Several steps in one command: each waits until all devices have followed the one before.
    cluster.expect(0, &format!("pool set-pgs default {}", 16 * GROUPS));
    until(&cluster, "pool show default", |row| row["devices_to_follow"] == 0 && row["pgs"] == 16 * GROUPS);
    until(&cluster, "pg list", all_whole);
    expect_kept(&mut reader, KEPT);
    for refused in [4 * GROUPS as u64 - 1, 2 * GROUPS as u64, 1 << 20] {
        let said = cluster.run(&format!("pool set-pgs default {refused}"), &[]);
        assert_ne!(said.status.code(), Some(0), "{refused} groups");
    }
}
