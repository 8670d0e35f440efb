//! A server comes and gets its share, and another one is drained and removed, under IO: no operation fails, no block is
//! other than it was written, and no group ever has fewer copies than it should have.

mod kit;

use kit::{
    ByHand, Cluster,
    io::{disk, expect_kept, keep, number, under_io, until},
};
use serde_json::Value;

const KEPT: u64 = 64;
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
    keep(&mut reader, KEPT);
    let _fourth = under_io(&cluster, || {
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
    expect_kept(&mut reader, KEPT);
    until(&cluster, "pg list", all_whole);
    for event in cluster.json("event list --limit 4096 -o json").as_array().expect("a list") {
        println!("{} {} {}: {}", event["at"], event["kind"], event["object"], event["what"]);
    }
    let jobs = cluster.json("rebuild list -o json");
    let kinds: Vec<&str> = jobs.as_array().expect("a list").iter().filter_map(|job| job["kind"].as_str()).collect();
    assert!(kinds.contains(&"rebalance") && kinds.contains(&"drain"), "{kinds:?}");
    assert!(!kinds.contains(&"rebuild"), "a copy was missing: {jobs}");
}

#[test]
fn a_server_is_stopped_in_protected_maintenance_and_no_group_ever_lacks_a_copy() {
    let cluster = Cluster::start_of("--mdm 1 --sds 3 --sdc 1");
    cluster.expect(0, "settings set lead.return_ms=1000");
    let mut reader = disk(&cluster);
    keep(&mut reader, KEPT);
    let _again = under_io(&cluster, || {
        cluster.expect(0, "sds maintenance enter sds1 --protected --wait --timeout 120s");
        until(&cluster, "sds show sds1", |row| row["maintenance"] == true && number(row, "pgs_in_sync") == 0);
        assert!(all_whole(&cluster.json("pg list -o json")));
        cluster.kill("sds0");
        until(&cluster, "sds show sds1", |row| row["alive"] == false);
        assert!(all_whole(&cluster.json("pg list -o json")), "all copies are elsewhere");
        let again = cluster.by_hand("sds0");
        cluster.expect(0, "sds maintenance exit sds1 --wait --timeout 120s");
        // Every group has a copy on two of three servers: 128 copies.
        until(&cluster, "sds show sds1", |row| number(row, "pgs_in_sync") >= 40 && row["draining"] == false);
        until(&cluster, "rebuild list --unfinished", |rows| rows.as_array().is_some_and(Vec::is_empty));
        again
    });
    expect_kept(&mut reader, KEPT);
    until(&cluster, "pg list", all_whole);
    let jobs = cluster.json("rebuild list -o json");
    let kinds: Vec<&str> = jobs.as_array().expect("a list").iter().filter_map(|job| job["kind"].as_str()).collect();
    assert!(!kinds.contains(&"rebuild"), "a copy was missing: {jobs}");
    // Two servers cannot keep two copies apart without one of them.
    cluster.expect(0, "sds maintenance enter sds2");
    cluster.expect(4, "sds maintenance enter sds1 --protected");
}
