//! The workload, the history and the judges together, against an NBD server in memory that lies in one way or none: whoever
//! breaks any of them so that lies pass unnoticed breaks this test. Each lie is told once, at a chosen write or read.

use std::{
    io::{Read as _, Result, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use pflex_jepsen::{
    checker::{self, Finding},
    history::{ProcessId, Recorder},
    workload::{BLOCK_BYTES, Load, Workload, read_all},
};

/// The server lies at the write (or read) with this number: late enough that blocks have values by then.
const LIE_AT: u64 = 300;
/// The workload goes on until so many writes were served.
const WRITES: u64 = 600;
const BLOCKS: u64 = 4;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Lie {
    None,
    /// Acknowledges a write and drops it.
    Lost,
    /// Answers a read with what the block held before its last write.
    Stale,
    /// Executes the first half of a write only.
    Torn,
    /// Executes a write at the neighbouring block.
    Misplaced,
    /// Executes a write a second time, later, over whatever is there by then.
    Twice,
}

struct Disk {
    lie: Lie,
    data: Vec<u8>,
    /// As `data`, one write of the block earlier.
    before: Vec<u8>,
    reads: u64,
    writes: u64,
    /// A write to be executed again.
    again: Option<(usize, Vec<u8>)>,
}

impl Disk {
    fn read(&mut self, at: usize) -> Vec<u8> {
        self.reads += 1;
        let stale = self.lie == Lie::Stale && self.reads == LIE_AT;
        let from = if stale { &self.before } else { &self.data };
        from[at..at + BLOCK_BYTES].to_vec()
    }

    fn write(&mut self, at: usize, data: &[u8]) {
        self.writes += 1;
        if self.writes == LIE_AT + 100
            && let Some((at, data)) = self.again.take()
        {
            self.data[at..at + BLOCK_BYTES].copy_from_slice(&data);
        }
        let now = self.writes == LIE_AT;
        let (at, length) = match self.lie {
            Lie::Lost if now => return,
            Lie::Torn if now => (at, BLOCK_BYTES / 2),
            // Blocks lie in pairs: the other one of this pair.
            Lie::Misplaced if now => (at ^ BLOCK_BYTES, BLOCK_BYTES),
            Lie::Twice if now => {
                self.again = Some((at, data.to_vec()));
                (at, BLOCK_BYTES)
            }
            Lie::None | Lie::Lost | Lie::Stale | Lie::Torn | Lie::Misplaced | Lie::Twice => (at, BLOCK_BYTES),
        };
        let whole = at..at + BLOCK_BYTES;
        self.before[whole.clone()].copy_from_slice(&self.data[whole]);
        self.data[at..at + length].copy_from_slice(&data[..length]);
    }
}

fn serve(disk: Arc<Mutex<Disk>>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let disk = Arc::clone(&disk);
            thread::spawn(move || drop(serve_one(stream, &disk)));
        }
    });
    address
}

/// Fixed newstyle with any export name, then simple replies (NBD protocol document).
fn serve_one(mut stream: TcpStream, disk: &Mutex<Disk>) -> Result<()> {
    stream.set_nodelay(true)?;
    stream.write_all(b"NBDMAGICIHAVEOPT\x00\x03")?;
    let mut hello = [0; 16];
    stream.read_exact(&mut hello)?;
    let option = take_data(&mut stream)?;
    assert!(!option.is_empty(), "an export is named");
    stream.write_all(&[0x00, 0x03, 0xe8, 0x89, 0x04, 0x55, 0x65, 0xa9, 0, 0, 0, 7, 0, 0, 0, 1, 0, 0, 0, 0])?;
    loop {
        let mut request = [0; 28];
        stream.read_exact(&mut request)?;
        let at = u64::from_be_bytes(request[16..24].try_into().expect("eight bytes")) as usize;
        let mut reply = vec![0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0];
        reply.extend(&request[8..16]);
        match request[7] {
            0 => reply.extend(disk.lock().expect("no panic").read(at)),
            1 => {
                let mut data = [0; BLOCK_BYTES];
                stream.read_exact(&mut data)?;
                disk.lock().expect("no panic").write(at, &data);
            }
            _ => {}
        }
        stream.write_all(&reply)?;
    }
}

fn take_data(stream: &mut TcpStream) -> Result<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let mut data = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut data)?;
    Ok(data)
}

/// What the judges say of a server that lies so.
fn findings(lie: Lie) -> Vec<Finding> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let recorder = Arc::new(Recorder::create(&dir.path().join("history.jsonl")).expect("a file"));
    let mut load = Load {
        servers: Vec::new(),
        export: "v".into(),
        clients: 3,
        blocks: BLOCKS,
        seed: 1,
        patience: Duration::from_secs(60),
        most_think_time: Duration::ZERO,
    };
    let size = load.volume_bytes() as usize;
    let disk = Disk { lie, data: vec![0; size], before: vec![0; size], reads: 0, writes: 0, again: None };
    let disk = Arc::new(Mutex::new(disk));
    load.servers = vec![serve(Arc::clone(&disk))];
    let workload = Workload::start(&load, &recorder);
    while disk.lock().expect("no panic").writes < WRITES || disk.lock().expect("no panic").reads < LIE_AT {
        thread::yield_now();
    }
    workload.stop();
    read_all(&load, load.servers[0], ProcessId(9), &recorder).expect("it serves");
    let report = checker::check(&recorder.events().expect("a disk")).expect("a history");
    assert!(report.writes >= WRITES as usize && report.unknown == 0, "{report:?}");
    report.findings
}

#[test]
fn an_honest_server_is_not_accused() {
    assert_eq!(findings(Lie::None), []);
}

/// Whether a lie is seen depends on who looks before the block is written again: with this few blocks nearly always, so it
/// must be within a few runs.
fn is_caught(lie: Lie, how: impl Fn(&Finding) -> bool) {
    let caught = (0..20).any(|_| findings(lie).iter().any(&how));
    assert!(caught, "{lie:?} passed unnoticed 20 times");
}

#[test]
fn a_lost_write_is_caught() {
    is_caught(Lie::Lost, |finding| matches!(finding, Finding::NotLinearizable { .. }));
    is_caught(Lie::Lost, |finding| matches!(finding, Finding::Stale { .. }));
}

#[test]
fn a_stale_read_is_caught() {
    is_caught(Lie::Stale, |finding| matches!(finding, Finding::Stale { .. }));
}

#[test]
fn a_torn_write_is_caught() {
    is_caught(Lie::Torn, |finding| matches!(finding, Finding::Broken { what, .. } if what.starts_with("torn")));
}

#[test]
fn a_misplaced_write_is_caught() {
    is_caught(Lie::Misplaced, |finding| matches!(finding, Finding::Broken { what, .. } if what.contains("of block")));
}

#[test]
fn a_write_executed_twice_is_caught() {
    is_caught(Lie::Twice, |finding| matches!(finding, Finding::Stale { .. }));
}
