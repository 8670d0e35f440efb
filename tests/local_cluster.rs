//! `up` and `down` with real processes: a small cluster is made, used, hurt, continued and wiped, by commands only.

mod kit;

use std::{
    path::Path,
    time::{Duration, Instant},
};

use pflex_jepsen::nbd::NbdClient;

/// For a state that is waited for: a slow machine makes a test longer, not red.
const PATIENCE: Duration = Duration::from_secs(60);

use kit::{Cluster, stderr};

fn is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none())
}

#[test]
fn a_cluster_is_made_used_hurt_continued_and_wiped() {
    let cluster = Cluster::start();

    // Made: healthy, with the objects of the contract, reachable through context `local` alone.
    cluster.expect(0, "status --check");
    let json: serde_json::Value = serde_json::from_str(&cluster.expect(0, "cluster status")).expect("JSON");
    assert_eq!((json["leader"].as_u64(), json["health"].as_str()), (Some(1), Some("ok")));
    let volume: serde_json::Value = serde_json::from_str(&cluster.expect(0, "volume show demo -o json")).expect("JSON");
    assert_eq!((volume["size_bytes"].as_u64(), volume["mapped_to"][0].as_str()), (Some(1 << 30), Some("sdc1")));

    // Used: each refusal with its status, and nothing changed by it.
    assert_eq!(cluster.expect(0, "volume create db --size 64MiB -o name"), "db\n");
    cluster.expect(4, "volume create db --size 64MiB");
    cluster.expect(0, "volume create db --size 64MiB --if-not-exists");
    cluster.expect(4, "volume create db --size 128MiB --if-not-exists");
    cluster.expect(3, "volume map db nobody");
    cluster.expect(0, "volume map db sdc1 --wait");
    cluster.expect(0, "sdc add absent");
    cluster.expect(7, "volume map db absent --access ro --wait --timeout 300ms");
    cluster.expect(0, "volume unmap db absent --wait");
    cluster.expect(0, "sdc remove absent --yes");
    cluster.expect(4, "volume delete db --yes");
    cluster.expect(0, "volume unmap db sdc1");
    cluster.expect(2, "volume delete db");
    cluster.expect(0, "volume delete db --yes");
    assert_eq!(cluster.expect(0, "volume list -o name"), "demo\n");
    assert_eq!(cluster.expect(0, "volume chunks demo --count 3 -o csv").lines().count(), 4);

    // Every list and show in every format; JSON and CSV of the same rows.
    for words in
        ["domain list", "pool list", "sds list", "sdc list", "device list", "volume list", "token list", "health"]
    {
        for format in ["table", "wide", "yaml", "name"] {
            cluster.expect(0, &format!("{words} -o {format}"));
        }
        let json: serde_json::Value =
            serde_json::from_str(&cluster.expect(0, &format!("{words} -o json"))).expect("JSON");
        let rows = json.as_array().expect("a list is a list").len();
        assert!(rows > 0 || words == "token list", "{words}");
        let header = usize::from(rows > 0);
        assert_eq!(cluster.expect(0, &format!("{words} -o csv")).lines().count(), rows + header, "{words}");
    }
    for words in ["domain show default", "pool show default", "sds show sds1", "sdc show sdc1", "volume show demo"] {
        let name = words.rsplit(' ').next().expect("it has words");
        assert_eq!(cluster.expect(0, &format!("{words} -o name")), format!("{name}\n"));
    }
    cluster.expect(0, "sds add sds9 --domain default");
    cluster.expect(0, "sds add sds9 --domain default --if-not-exists");
    cluster.expect(4, "sds add sds9 --domain default");
    cluster.expect(0, "sds remove sds9 --dry-run");
    cluster.expect(0, "sds remove sds9 --yes");
    cluster.expect(3, "sds remove sds9 --yes");

    // Completed: names of live objects, and nothing at all when nobody answers.
    assert_eq!(cluster.complete(&["volume", "show", ""]), ["demo"]);
    assert_eq!(cluster.complete(&["volume", "map", "demo", ""]), ["sdc1"]);
    assert_eq!(cluster.complete(&["volume", "create", "x", "--pool", ""]), ["default"]);
    assert_eq!(cluster.complete(&["sds", "show", "sds"]), ["sds1", "sds2"]);
    assert_eq!(cluster.complete(&["volume", "--mdm", "127.0.0.1:9", "show", ""]), [""; 0]);

    // Hurt: a death is seen at once, before the MDM notices it. `up` starts what was killed and nothing else, and is not
    // content with what the MDM remembers of the previous life.
    let untouched = cluster.pid("sds1");
    let (incarnation, registrations) = (cluster.incarnation("sds1"), cluster.registrations("sdc1"));
    cluster.kill("sds0");
    cluster.kill("sdc0");
    let screen = cluster.expect(8, "status --check");
    assert!(screen.starts_with("health:    degraded\n"), "{screen}");
    let output = cluster.up(0);
    assert!(stderr(&output).contains("starting sds0, sdc0\n"), "{}", stderr(&output));
    assert_eq!(cluster.pid("sds1"), untouched);
    assert!(cluster.incarnation("sds1") > incarnation, "`up` ended before the server was back");
    assert!(cluster.registrations("sdc1") > registrations, "`up` ended before the client was back");
    cluster.expect(0, "status --check");

    // Hurt for longer: what it held is to be filled again, and that waits for it. No command made the rebuild.
    assert_eq!(cluster.json("rebuild list --unfinished -o json").as_array().map(Vec::len), Some(0));
    cluster.kill("sds0");
    let waits = cluster.until("rebuild list --unfinished", |rows| rows[0]["state"] == "waiting");
    let words = format!(
        "sds1 is DOWN; no other fault domain has a device in service for {} copies",
        waits[0]["copies_left"].as_u64().expect("a count")
    );
    assert_eq!(waits[0]["waits_for"], serde_json::json!([words]), "{waits}");
    assert!(cluster.run("status", &[]).stdout.windows(8).any(|part| part == b"rebuild:"));
    cluster.up(0);
    let done = cluster.until("rebuild show default", |row| row["state"] == "done");
    assert_eq!((&done["id"], &done["groups_left"]), (&waits[0]["id"], &serde_json::json!(0)), "{done}");
    assert_eq!(done["groups_done"], waits[0]["groups_left"], "{done}");
    cluster.expect(3, "rebuild list --pool nowhere");
    cluster.expect(0, "status --check");

    // Started by hand at the same moment: whichever comes first runs, and `up` is content with it.
    cluster.kill("sds0");
    let by_hand = cluster.by_hand("sds0");
    cluster.up(0);
    // Its end may be seen before its return or not; either way all is well by itself.
    cluster.until_well("status --check");
    drop(by_hand);
    cluster.up(0);

    // The MDM dead: no leader, and it says so in time. Its store lost: never made again (S18).
    cluster.kill("mdm0");
    cluster.expect(6, "volume create x --size 4KiB --timeout 1s");
    let (data, aside) = (cluster.dir().join("mdm0/data"), cluster.dir().join("mdm0/aside"));
    std::fs::rename(&data, &aside).expect("its process is dead");
    let output = cluster.run("up --timeout 3s --dir", &[&cluster.dir().display().to_string()]);
    assert_eq!(output.status.code(), Some(4), "{}", stderr(&output));
    assert!(stderr(&output).contains("replace-node"), "{}", stderr(&output));
    assert!(!data.exists(), "a lost store stays lost");
    std::fs::rename(&aside, &data).expect("the directory is as before");

    // Continued: all of it down and up again.
    cluster.expect(0, &format!("down --dir {}", cluster.dir().display()));
    assert_eq!(cluster.pid("sds0"), None, "a clean end leaves no pid");
    cluster.up(0);
    assert_eq!(cluster.expect(0, "volume list -o name"), "demo\n");

    // Wiped: asked first, then gone, and the context with it.
    cluster.expect(2, &format!("down --wipe --dir {}", cluster.dir().display()));
    cluster.expect(0, "status --check");
    cluster.expect(0, &format!("down --wipe --yes --dir {}", cluster.dir().display()));
    assert!(!cluster.dir().exists() || is_empty(&cluster.dir()));
    cluster.expect(2, "volume list");
}

impl Cluster {
    /// Waits until what a command prints as JSON is as `wanted`; a command that fails is asked again.
    fn until(&self, words: &str, wanted: impl Fn(&serde_json::Value) -> bool) -> serde_json::Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let output = self.run(words, &["-o", "json"]);
            let json = serde_json::from_slice(&output.stdout).unwrap_or_default();
            if output.status.success() && wanted(&json) {
                return json;
            }
            assert!(Instant::now() < deadline, "pflex {words}: {} {}", json, stderr(&output));
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Waits until a command ends well.
    fn until_well(&self, words: &str) {
        let deadline = Instant::now() + PATIENCE;
        while self.run(words, &[]).status.code() != Some(0) {
            assert!(Instant::now() < deadline, "pflex {words}: {}", stderr(&self.run(words, &[])));
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn nbd(&self) -> NbdClient {
        let config = std::fs::read_to_string(self.dir().join("sdc0/config.toml")).expect("`up` made it");
        let config: toml::Table = config.parse().expect("TOML");
        let address = config["nbd"].as_str().expect("an address").parse().expect("an address");
        NbdClient::open(address, "demo", PATIENCE).expect("the volume is there")
    }

    fn read(&self) -> u8 {
        let mut block = vec![0; 4096];
        self.nbd().read(0, &mut block).expect("it is served");
        assert!(block.iter().all(|byte| *byte == block[0]), "a block is never torn");
        block[0]
    }

    fn write(&self, byte: u8) {
        self.nbd().write(0, &[byte; 4096], true).expect("it is served");
    }
}

fn all_groups(rows: &serde_json::Value, wanted: impl Fn(&serde_json::Value) -> bool) -> bool {
    rows.as_array().is_some_and(|rows| !rows.is_empty() && rows.iter().all(wanted))
}

/// S19: a copy that left its groups after the backup counts as in sync in the backup. What was written since must not be
/// lost by that. S12: and what is lost for good is given up by name only.
#[test]
fn what_was_written_after_a_backup_survives_a_restore_and_a_loss_is_named() {
    let cluster = Cluster::start();
    let backup = cluster.dir().join("backup").display().to_string();
    cluster.write(1);
    cluster.expect(0, &format!("cluster backup {backup}"));
    let generation = cluster.json("cluster status -o json")["generation"].as_u64();

    // sds2 dies and leaves every group; then something is acknowledged that it does not have.
    cluster.kill("sds1");
    cluster.until("pg list", |rows| all_groups(rows, |pg| pg["in_sync"].as_array().is_some_and(|m| m.len() == 1)));
    cluster.write(2);

    // The MDM is lost, and begins again from the backup, in which sds2 is in sync. sds1 and the client run on.
    cluster.kill("mdm0");
    std::fs::rename(cluster.dir().join("mdm0/data"), cluster.dir().join("mdm0/lost")).expect("its process is dead");
    let config = cluster.dir().join("mdm0/config.toml").display().to_string();
    cluster.expect(2, &format!("cluster restore {backup} --config {config}"));
    cluster.expect(0, &format!("cluster restore {backup} --config {config} --yes"));
    let stale = cluster.by_hand("sds1");
    let _mdm = cluster.by_hand("mdm0");
    let status = cluster.until("cluster status", |status| status["recovering"] == true);
    assert!(status["generation"].as_u64() > generation);
    cluster.until("cluster status", |status| status["awaited_sds"].as_array().is_some_and(Vec::is_empty));
    assert!(cluster.expect(0, "why cluster").contains("recovering"));
    cluster.expect(4, "cluster end-recovery --without sds2 --yes");
    cluster.expect(0, "cluster end-recovery");
    assert_eq!(cluster.read(), 2, "the stale copy was served");
    cluster.until_well("status --check");
    assert_eq!(cluster.read(), 2);

    // Both copies are equal again: the other one serves the same.
    cluster.kill("sds0");
    assert_eq!(cluster.read(), 2);
    cluster.write(3);

    // Now the server with the only in-sync copy dies, and comes back without its data.
    drop(stale);
    cluster.until("pg list", |rows| all_groups(rows, |pg| pg["state"] == "unavailable"));
    let old = cluster.by_hand("sds0");
    cluster.until("sds show sds1", |sds| sds["status"] == "ACTIVE");
    cluster.expect(4, "pg force-promote default.0 --copy sds2 --yes");
    let chunk = cluster.json("volume chunks demo --count 1 -o json");
    let pg = chunk[0]["pg"].as_str().expect("a chunk is in a group").to_owned();
    std::fs::remove_dir_all(cluster.dir().join("sds1/data/sds_local.db")).expect("its process is dead");
    let _emptied = cluster.by_hand("sds1");
    cluster.until("sds show sds2", |sds| sds["status"] == "ACTIVE");
    assert!(cluster.expect(0, &format!("why pg {pg}")).contains("unavailable"));
    cluster.expect(2, &format!("pg force-promote {pg} --copy sds1"));
    cluster.expect(3, &format!("pg force-promote {pg} --copy sds9 --yes"));
    cluster.expect(0, &format!("pg force-promote {pg} --copy sds1 --yes"));
    assert_eq!(cluster.read(), 2, "what only the lost copy had is lost, the rest is there");
    let events = cluster.expect(0, "event list --severity critical");
    assert!(events.contains("promoted by force"), "{events}");
    cluster.write(4);
    cluster.until(&format!("pg show {pg}"), |pg| pg["state"] == "active");
    drop(old);
    assert_eq!(cluster.read(), 4, "the copy that lost its data was filled from the one that was promoted");
}
