//! What operators do and strangers try while real processes serve IO.

mod kit;

use std::{
    io::Write as _,
    net::TcpStream,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use kit::Cluster;
use pflex_jepsen::nbd::NbdClient;

const PATIENCE: Duration = Duration::from_secs(30);
const BLOCK: u64 = 4_096;
const BLOCKS: u64 = 1_024;

/// Writes and reads back until told to stop; every operation must succeed and every block be as it was written.
fn io_until(over: &AtomicBool, done: &AtomicU64, cluster: &Cluster) {
    let mut disk = NbdClient::open(cluster.at(8005), "demo", PATIENCE).expect("the volume is exported");
    let mut block = vec![0; BLOCK as usize];
    for n in 0_u64.. {
        if over.load(Ordering::Relaxed) {
            return;
        }
        let stamp = n.to_le_bytes();
        block.chunks_exact_mut(8).for_each(|part| part.copy_from_slice(&stamp));
        let offset = n % BLOCKS * BLOCK;
        disk.write(offset, &block, false).unwrap_or_else(|error| panic!("write {n}: {error}"));
        let mut read = vec![0; BLOCK as usize];
        disk.read(offset, &mut read).unwrap_or_else(|error| panic!("read {n}: {error}"));
        assert!(read == block, "block {n} is not as it was written");
        done.fetch_add(1, Ordering::Relaxed);
    }
}

/// The generations of the secret: number and state.
fn keys(cluster: &Cluster) -> Vec<(u64, String)> {
    let status = cluster.json("cluster status");
    let keys = status["keys"].as_array().expect("a list");
    let number = |key: &serde_json::Value| key["key_id"].as_u64().expect("a number");
    let state = |key: &serde_json::Value| key["state"].as_str().expect("a word").to_owned();
    keys.iter().map(|key| (number(key), state(key))).collect()
}

/// The whole way: made, signing, the old one gone a token's life later; a minute and some seconds.
#[test]
fn the_secret_is_rotated_under_io_and_no_operation_fails() {
    let cluster = Cluster::start_of("--mdm 3 --sds 2 --sdc 1");
    let (over, done) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let io = scope.spawn(|| io_until(&over, &done, &cluster));
        assert_eq!(cluster.json("cluster rotate-secret -o json")["key_id"].as_u64(), Some(2));
        cluster.expect(4, "cluster rotate-secret");
        let wait = |wanted: &[(u64, &str)]| {
            let deadline = Instant::now() + Duration::from_secs(120);
            loop {
                let keys = keys(&cluster);
                if keys.iter().map(|(key, state)| (*key, state.as_str())).eq(wanted.iter().copied()) {
                    return;
                }
                assert!(!io.is_finished(), "an operation failed");
                assert!(Instant::now() < deadline, "{keys:?}, expected {wanted:?}");
                std::thread::sleep(Duration::from_millis(200));
            }
        };
        let began = Instant::now();
        wait(&[(1, "retiring"), (2, "signing")]);
        println!("signing after {} ms", began.elapsed().as_millis());
        wait(&[(2, "signing")]);
        println!("the old one is gone after {} ms", began.elapsed().as_millis());
        // Tokens of the new generation are what IO runs on now.
        let before = done.load(Ordering::Relaxed);
        let tokens = cluster.json("token list -o json");
        assert_eq!(tokens[0]["key_id"].as_u64(), Some(2), "{tokens}");
        while done.load(Ordering::Relaxed) < before + 100 {
            assert!(!io.is_finished(), "an operation failed");
            std::thread::sleep(Duration::from_millis(10));
        }
        over.store(true, Ordering::Relaxed);
    });
    println!("{} writes and reads", done.load(Ordering::Relaxed));
    let events = cluster.expect(0, "event list -o json");
    assert_eq!(events.matches("cluster.rotate-secret").count(), 3, "{events}");
    cluster.expect(0, "status --check");
    let audit = cluster.json("token audit -o json");
    assert_eq!((audit["chain"].as_str(), audit["broken_at"].as_u64()), (Some("holds"), Some(0)), "{audit}");
    let newest = audit["newest_id"].as_u64().expect("a number");
    assert!(audit["records"].as_u64().is_some_and(|records| records > 2), "{audit}");
    assert_eq!(cluster.json(&format!("token show {newest} -o json"))["id"].as_u64(), Some(newest));
    cluster.expect(3, "token show 999999999");
}

/// Nothing of a client is executed once its approval is gone, and it goes on by itself when it is back.
#[test]
fn a_client_without_approval_has_no_io() {
    let cluster = Cluster::start_of("--mdm 1 --sds 2 --sdc 1");
    let (over, done) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let io = scope.spawn(|| io_until(&over, &done, &cluster));
        let more_than = |count: u64| {
            let deadline = Instant::now() + Duration::from_secs(60);
            while done.load(Ordering::Relaxed) < count {
                assert!(!io.is_finished() && Instant::now() < deadline, "no IO");
                std::thread::sleep(Duration::from_millis(10));
            }
        };
        more_than(20);
        cluster.expect(0, "sdc revoke sdc1");
        let before = done.load(Ordering::Relaxed);
        std::thread::sleep(Duration::from_secs(2));
        assert!(done.load(Ordering::Relaxed) <= before + 1, "what was executed before may have been answered since");
        assert_eq!(cluster.json("sdc show sdc1 -o json")["approved"].as_bool(), Some(false));
        cluster.expect(0, "sdc approve sdc1");
        more_than(before + 50);
        over.store(true, Ordering::Relaxed);
    });
    cluster.expect(0, "settings set sdc.approval=1");
    cluster.expect(0, "sdc add web");
    assert_eq!(cluster.json("sdc show web -o json")["approved"].as_bool(), Some(false));
    let events = cluster.expect(0, "event list -o json");
    assert_eq!(events.matches("\"sdc.approve\"").count(), 2, "{events}");
}

#[test]
fn garbage_on_every_port_disturbs_nobody() {
    let cluster = Cluster::start();
    let (over, done) = (AtomicBool::new(false), AtomicU64::new(0));
    let processes = ["mdm0", "sds0", "sds1", "sdc0"];
    let pids: Vec<_> = processes.iter().map(|process| cluster.pid(process)).collect();
    std::thread::scope(|scope| {
        let io = scope.spawn(|| io_until(&over, &done, &cluster));
        let mut held = Vec::new();
        for port in [8001, 8002, 9700, 9701, 9100, 9101, 9200, 9201, 8003, 8004, 8005] {
            for n in 0..12_u64 {
                let mut garbage = match n % 4 {
                    0 => b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
                    1 => vec![0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 0x03, 0x03],
                    2 => b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec(),
                    _ => vec![0xff; 64],
                };
                garbage.extend((0..2_048_u64).map(|byte| (byte.wrapping_mul(0x9e37_79b9 + n) >> 7) as u8));
                let Ok(mut connection) = TcpStream::connect(cluster.at(port)) else { panic!("port {port} refuses") };
                // It may be cut off before it has said everything.
                drop(connection.write_all(&garbage));
                held.push(connection);
            }
        }
        let before = done.load(Ordering::Relaxed);
        while done.load(Ordering::Relaxed) < before + 200 {
            assert!(!io.is_finished(), "an operation failed");
            std::thread::sleep(Duration::from_millis(10));
        }
        drop(held);
        over.store(true, Ordering::Relaxed);
    });
    let now: Vec<_> = processes.iter().map(|process| cluster.pid(process)).collect();
    assert_eq!(now, pids, "nobody started anew");
    cluster.expect(0, "status --check");
}

#[test]
fn five_mdms_lose_two_by_sigkill_and_tell_the_truth() {
    let cluster = Cluster::start_of("--mdm 5 --sds 2 --sdc 1");
    let members = || -> Vec<(u64, String, String)> {
        let status = cluster.json("cluster status");
        let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
        let row = |row: &serde_json::Value| (row["id"].as_u64().unwrap(), text(&row["role"]), text(&row["state"]));
        status["members"].as_array().unwrap().iter().map(row).collect()
    };
    assert!(members().iter().all(|(_, _, state)| state == "up"));
    let leader = cluster.json("cluster status")["leader"].as_u64().unwrap();
    for other in 1..3 {
        cluster.expect(0, &format!("domain create before-{other}"));
    }
    let gone = [leader, leader % 5 + 1];
    for id in gone {
        cluster.kill(&format!("mdm{}", id - 1));
    }
    cluster.expect(0, "domain create meanwhile");
    let names = cluster.expect(0, "domain list -o name");
    for name in ["before-1", "before-2", "meanwhile"] {
        assert!(names.lines().any(|line| line == name), "{name} is lost: {names}");
    }
    for (id, role, state) in members() {
        let dead = gone.contains(&id);
        assert_eq!(state, if dead { "unreachable" } else { "up" }, "mdm {id}");
        assert!(!dead || role != "leader", "mdm {id} is dead and does not lead");
    }
    let status = cluster.json("cluster status");
    assert_eq!(status["health"].as_str(), Some("degraded"));
    cluster.expect(8, "status --check");
    cluster.up(0);
    cluster.expect(0, "status --check");
    assert!(members().iter().all(|(_, _, state)| state == "up"));
}

/// Announced, stopped, started, and back: nothing is moved, no operation fails, and a second one may not go meanwhile.
#[test]
fn a_server_is_down_for_maintenance_and_io_goes_on() {
    let cluster = Cluster::start();
    let (over, done) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let io = scope.spawn(|| io_until(&over, &done, &cluster));
        let go_on = || {
            let before = done.load(Ordering::Relaxed);
            while done.load(Ordering::Relaxed) < before + 100 {
                assert!(!io.is_finished(), "an operation failed");
                std::thread::sleep(Duration::from_millis(10));
            }
        };
        go_on();
        cluster.expect(0, "sds maintenance enter sds1 --wait");
        let resting = cluster.json("sds show sds1 -o json");
        assert_eq!((&resting["maintenance"], &resting["pgs_primary"]), (&true.into(), &0.into()), "{resting}");
        cluster.expect(4, "sds maintenance enter sds2");
        go_on();
        cluster.kill("sds0");
        let began = Instant::now();
        while cluster.json("rebuild list --unfinished -o json")[0]["waits_for"]
            != serde_json::json!(["sds1 is in maintenance"])
        {
            assert!(began.elapsed() < PATIENCE, "its copies are not missed");
            std::thread::sleep(Duration::from_millis(100));
        }
        go_on();
        cluster.up(0);
        cluster.expect(0, "sds maintenance exit sds1 --wait");
        let back = cluster.json("sds show sds1 -o json");
        assert_eq!((&back["maintenance"], &back["pgs_joining"]), (&false.into(), &0.into()), "{back}");
        go_on();
        over.store(true, Ordering::Relaxed);
    });
    cluster.expect(0, "status --check");
    cluster.expect(4, "sds maintenance exit sds1");
}

/// Whether a port speaks HTTP/2: the first frame of a server is its settings.
fn greets(address: std::net::SocketAddr) -> std::io::Result<bool> {
    use std::io::Read as _;
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(kit::io::PATIENCE))?;
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")?;
    let mut frame = [0; 9];
    stream.read_exact(&mut frame)?;
    Ok(frame[3] == 4)
}

#[test]
fn a_flood_of_the_management_port_disturbs_neither_the_control_port_nor_io() {
    const FLOOD: usize = 700;
    let cluster = Cluster::start();
    let (control, management) = (cluster.at(9_100), cluster.at(9_200));
    kit::io::under_io(&cluster, || {
        let mut held = Vec::new();
        for _ in 0..FLOOD {
            held.push(TcpStream::connect(management).expect("it listens"));
        }
        // Those beyond its places are closed at once, and the others when they have not greeted.
        for _ in 0..20 {
            assert!(greets(control).expect("the control port answers"));
        }
        let rows = cluster.json("sds list -o json");
        assert!(rows.as_array().is_some_and(|rows| rows.iter().all(|row| row["alive"] == true)), "{rows}");
    });
    // And the port itself is well when it is over.
    let deadline = Instant::now() + kit::io::PATIENCE;
    while !greets(management).unwrap_or(false) {
        assert!(Instant::now() < deadline, "the management port never came back");
        std::thread::sleep(Duration::from_millis(100));
    }
    cluster.expect(0, "status --check");
}
