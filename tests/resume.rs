//! A client whose MDMs are all gone: IO goes on, also when the client itself is killed and starts again; a copy of its
//! directory serves nobody; and when the MDMs are back it registers and goes on.

mod kit;

use std::{
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use kit::{
    Cluster,
    io::{PATIENCE, eventually},
};
use pflex_jepsen::nbd::NbdClient;

/// How long the quorum is away; a token lives for 60 s, of which 45 are left in the worst case.
const AWAY: Duration = Duration::from_secs(30);
const BLOCK: usize = 4096;

fn write(disk: &mut NbdClient, stamp: u64) {
    let block = stamp.to_le_bytes().repeat(BLOCK / 8);
    disk.write(stamp % 1000 * BLOCK as u64, &block, false).unwrap_or_else(|error| panic!("write {stamp}: {error}"));
}

fn is_there(disk: &mut NbdClient, stamp: u64) {
    let mut read = vec![0; BLOCK];
    disk.read(stamp % 1000 * BLOCK as u64, &mut read).unwrap_or_else(|error| panic!("read {stamp}: {error}"));
    assert!(read == stamp.to_le_bytes().repeat(BLOCK / 8), "block {stamp} is not as it was written");
}

/// A client with another configuration, its log in a file.
struct Copied(Child);

impl Drop for Copied {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn kill_mdms(cluster: &Cluster) {
    (0..3).for_each(|n| cluster.kill(&format!("mdm{n}")));
}

#[test]
fn a_client_without_mdms_goes_on_also_when_it_is_killed_and_a_copy_of_it_does_not() {
    let cluster = Cluster::start_of("--mdm 3 --sds 2 --sdc 1");
    let open = || NbdClient::open(cluster.at(8005), "demo", PATIENCE).ok();
    let mut disk = eventually("the volume is exported", open);
    (0..50).for_each(|stamp| write(&mut disk, stamp));
    let stats = || cluster.json("sdc stats sdc1 -o json")[0].clone();
    let before = stats();

    // Without the quorum, and while it returns with a new leader whose tokens the servers cannot place at first, IO goes on.
    let kept = cluster.dir().join("sdc0/data/kept-tokens");
    let modified = || std::fs::metadata(&kept).and_then(|file| file.modified()).expect("it keeps its tokens");
    kill_mdms(&cluster);
    let away = Instant::now();
    let mut written = 50;
    let mut use_it = || {
        write(&mut disk, written);
        is_there(&mut disk, written);
        written += 1;
        std::thread::sleep(Duration::from_millis(5));
    };
    while away.elapsed() < AWAY {
        use_it();
    }
    let mdms: Vec<_> = (0..3).map(|n| cluster.by_hand(&format!("mdm{n}"))).collect();
    let old = modified();
    eventually("a newer token is kept", || {
        use_it();
        (modified() > old).then_some(())
    });
    (0..200).for_each(|_| use_it());
    eventually("the MDMs are back", || cluster.run("status --check", &[]).status.success().then_some(()));
    let after = stats();
    println!("{written} writes; before {before}, after {after}");
    assert_eq!(after["errors"], before["errors"]);

    drop(mdms);
    std::thread::scope(|scope| {
        // A copy, made while it runs, in another directory with ports of its own.
        let copy = cluster.dir().join("copy");
        let copied = Command::new("cp").arg("-a").arg(cluster.dir().join("sdc0")).arg(&copy).status();
        assert!(copied.expect("cp runs").success());
        drop(disk);
        cluster.kill("sdc0");
        // Its last thread gives the lock and the ports back.
        let lock = std::fs::File::open(cluster.dir().join("sdc0/pid")).expect("it wrote its pid");
        eventually("the killed client is gone", || lock.try_lock().is_ok().then_some(()));
        drop(lock);
        let config = std::fs::read_to_string(copy.join("config.toml")).expect("it was copied");
        let mut config: toml::Table = config.parse().expect("TOML");
        config.remove("nbd_socket");
        let data = copy.join("data").display().to_string();
        config.insert("data_dir".into(), data.into());
        // Each process is to be alone with its pid file.
        config.insert("pid_file".into(), copy.join("pid").display().to_string().into());
        for (port, value) in [("nbd", 8305), ("control", 8303), ("management", 8304)] {
            config.insert(port.into(), cluster.at(value).to_string().into());
        }
        std::fs::write(copy.join("config.toml"), config.to_string()).expect("it is ours");
        let log = std::fs::File::create(copy.join("log")).expect("it is ours");
        let mut command = Command::new(env!("CARGO_BIN_EXE_pflex"));
        command.args(["sdc", "--config"]).arg(copy.join("config.toml")).env_clear().stdin(Stdio::null());
        let _copied = Copied(command.stderr(log).spawn().expect("the binary runs"));
        let refused = scope.spawn(move || {
            eventually("the copy says why it waits", || {
                let log = std::fs::read_to_string(copy.join("log")).unwrap_or_default();
                log.contains("these files were copied").then_some(())
            });
        });

        let log = std::fs::File::create(cluster.dir().join("sdc0/log-again")).expect("it is ours");
        let mut command = Command::new(env!("CARGO_BIN_EXE_pflex"));
        command.args(["sdc", "--config"]).arg(cluster.dir().join("sdc0/config.toml")).env_clear().stdin(Stdio::null());
        let _client = Copied(command.stderr(log).spawn().expect("the binary runs"));
        let mut disk = eventually("the killed client serves again", open);
        let mut read: Vec<_> = (written.saturating_sub(900)..written).collect();
        read.retain(|stamp| *stamp > 0);
        read.iter().for_each(|stamp| is_there(&mut disk, *stamp));
        let resumed = written + 10_000;
        for stamp in resumed..resumed + 100 {
            write(&mut disk, stamp);
            is_there(&mut disk, stamp);
        }
        refused.join().expect("the copy was refused");
        let nobody = NbdClient::open(cluster.at(8305), "demo", Duration::from_secs(1));
        assert!(nobody.is_err(), "the copy serves nobody");
        drop(_copied);

        // The MDMs return: it registers, and IO goes on over it, on the same connection, long after its first tokens.
        let _mdms: Vec<_> = (0..3).map(|n| cluster.by_hand(&format!("mdm{n}"))).collect();
        eventually("the MDMs are back", || cluster.run("cluster status", &[]).status.success().then_some(()));
        let asked = modified();
        eventually("it has newer tokens", || (modified() > asked).then_some(()));
        for stamp in resumed..resumed + 200 {
            write(&mut disk, stamp);
            is_there(&mut disk, stamp);
        }
        let stats = stats();
        assert_eq!(stats["errors"], 0);
    });
}
