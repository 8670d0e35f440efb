//! One volume at two clients: parts of a block that both write at the same time are all kept, while a primary stands still
//! and wakes up late, and while one is killed. A read-only mapping writes nothing.

mod kit;

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use kit::Cluster;
use pflex_jepsen::nbd::{NbdClient, NbdError};
use rustix::process::{Pid, Signal, kill_process};

const PATIENCE: Duration = Duration::from_secs(150);
/// Of each writer, all in one block of 4 KiB: the writers of a block are its eight sectors'.
const SECTOR: usize = 512;
const WRITERS: usize = 8;
const EPERM: u32 = 1;

fn open(cluster: &Cluster, sdc: usize, volume: &str) -> NbdClient {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match NbdClient::open(cluster.at(8005 + 10 * sdc as u16), volume, PATIENCE) {
            Ok(client) => return client,
            Err(error) => assert!(Instant::now() < deadline, "sdc{}: {error}", sdc + 1),
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// What a writer's sector holds after its write of this number. The first byte tells the writer.
fn sector(writer: usize, n: u64) -> Vec<u8> {
    let word = (writer as u64) << 56 | n;
    word.to_be_bytes().repeat(SECTOR / 8)
}

/// What is in a block, by sector: the number of the write of its writer, or what is wrong with it.
fn numbers(block: &[u8]) -> Result<Vec<u64>, String> {
    let number = |(writer, bytes): (usize, &[u8])| {
        let word = u64::from_be_bytes(bytes[..8].try_into().expect("eight bytes"));
        let n = word & (u64::MAX >> 8);
        let is_whole = bytes == sector(writer, n) || (word == 0 && bytes.iter().all(|byte| *byte == 0));
        if is_whole { Ok(n) } else { Err(format!("sector {writer} is torn or another's: {:?}", &bytes[..16])) }
    };
    block.chunks(SECTOR).enumerate().map(number).collect()
}

#[test]
fn the_check_of_a_block_finds_what_is_torn_misplaced_or_lost() {
    let whole: Vec<_> = (0..WRITERS).flat_map(|writer| sector(writer, 7 + writer as u64)).collect();
    assert_eq!(numbers(&whole).expect("it is whole")[3], 10);
    let mut torn = whole.clone();
    torn[SECTOR..SECTOR + 256].copy_from_slice(&sector(1, 99)[..256]);
    assert!(numbers(&torn).is_err());
    let mut misplaced = whole.clone();
    misplaced[..SECTOR].copy_from_slice(&sector(5, 9));
    assert!(numbers(&misplaced).is_err());
    // A client that read the block, changed its sector and wrote the block would put back what another had replaced.
    let mut lost = whole;
    lost[2 * SECTOR..3 * SECTOR].copy_from_slice(&sector(2, 8));
    assert_ne!(numbers(&lost).expect("nothing is torn")[2], 9);
}

#[test]
fn parts_of_a_block_that_two_clients_write_are_all_kept_and_a_read_only_mapping_writes_nothing() {
    let cluster = Cluster::start_of("--mdm 1 --sds 3 --sdc 2");
    cluster.expect(0, "volume create shared --size 4MiB");
    cluster.expect(0, "volume map shared sdc1 --wait");
    cluster.expect(0, "volume map shared sdc2 --wait");
    let over = AtomicBool::new(false);
    let signal = |process: &str, signal| {
        let pid = cluster.pid(process).and_then(Pid::from_raw).expect("it runs");
        kill_process(pid, signal).expect("it is ours");
    };
    let written = std::thread::scope(|scope| {
        let write = |writer: usize| {
            let (cluster, over) = (&cluster, &over);
            move || {
                let mut disk = open(cluster, writer % 2, "shared");
                let mut n = 0;
                while !over.load(Ordering::Relaxed) {
                    n += 1;
                    let at = (writer * SECTOR) as u64;
                    disk.write(at, &sector(writer, n), n % 7 == 0).unwrap_or_else(|error| panic!("write {n}: {error}"));
                    let mut block = vec![0; WRITERS * SECTOR];
                    disk.read(0, &mut block).unwrap_or_else(|error| panic!("read {n}: {error}"));
                    let seen = numbers(&block).unwrap_or_else(|wrong| panic!("after write {n} of {writer}: {wrong}"));
                    assert_eq!(seen[writer], n, "a write of writer {writer} was undone");
                }
                n
            }
        };
        let writers: Vec<_> = (0..WRITERS).map(|writer| scope.spawn(write(writer))).collect();
        // Whoever leads the group, it stands still longer than it takes to be replaced, and wakes up late.
        for process in ["sds0", "sds1", "sds2", "sdc1"] {
            std::thread::sleep(Duration::from_millis(500));
            signal(process, Signal::STOP);
            std::thread::sleep(Duration::from_millis(4_500));
            signal(process, Signal::CONT);
            let deadline = Instant::now() + PATIENCE;
            while !cluster.run("status --check", &[]).status.success() {
                assert!(Instant::now() < deadline, "it is healthy again after {process}");
                std::thread::sleep(Duration::from_millis(100));
            }
        }
        cluster.kill("sds0");
        std::thread::sleep(Duration::from_secs(2));
        over.store(true, Ordering::Relaxed);
        writers.into_iter().map(|writer| writer.join().expect("no writer failed")).collect::<Vec<_>>()
    });
    println!("writes by writer: {written:?}");
    for sdc in [0, 1] {
        let mut block = vec![0; WRITERS * SECTOR];
        open(&cluster, sdc, "shared").read(0, &mut block).expect("it is served");
        assert_eq!(numbers(&block).expect("whole"), written, "at sdc{}", sdc + 1);
    }

    let mut before = open(&cluster, 1, "shared");
    cluster.expect(0, "volume map shared sdc2 --access ro --wait");
    let refused = |disk: &mut NbdClient| matches!(disk.write(0, &[0; 4096], false), Err(NbdError::Request(EPERM)));
    assert!(refused(&mut before), "also on a connection from before");
    assert!(refused(&mut open(&cluster, 1, "shared")));
    let mut block = vec![0; WRITERS * SECTOR];
    open(&cluster, 1, "shared").read(0, &mut block).expect("reading is allowed");
    assert_eq!(numbers(&block).expect("whole"), written);
    open(&cluster, 0, "shared").write(0, &[0; SECTOR], false).expect("the other one writes on");
}
