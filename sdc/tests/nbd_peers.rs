//! One script against three servers: this one over memory, `qemu-nbd` over a file, and `nbdkit memory`.
//!
//! Every answer is put into a few words. Where a peer's words differ from ours, the difference must be in [`DIFFERENCES`]
//! with its reason, and each of these must still be there; docs/nbd.md has the same table. `scripts/nbd-peers.sh` prints
//! all answers beside each other. A missing peer fails the test where `CI` is set, and is skipped aloud elsewhere.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "nbd/client.rs"]
mod client;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use client::*;
use pflex_proto::ids::ByteCount;
use pflex_sdc::block::MemoryExports;
use pflex_sdc::nbd::{NbdServer, ServerLimits};
use tokio::net::{UnixListener, UnixStream};
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

const SIZE: u64 = 64 << 20;

/// (peer, step, what the peer says, why that is no fault of either).
const DIFFERENCES: &[(&str, &str, &str, &str)] = &include!("nbd/differences.in");

type Steps = BTreeMap<String, String>;
/// Name, options that come first, the option and its data.
type Haggled<'a> = (&'a str, Vec<(u32, Vec<u8>)>, u32, Vec<u8>);
/// Name, command, flags, offset, length, payload.
type Asked<'a> = (&'a str, u16, u16, u64, u64, &'a [u8]);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_give_the_same_answers_but_for_those_that_are_listed() {
    let dir = tempfile::tempdir().unwrap();
    let socket = |name: &str| dir.path().join(name);
    let stop = CancellationToken::new();
    let exports = Arc::new(MemoryExports::default().with("demo", ByteCount(SIZE), false));
    let listener = UnixListener::bind(socket("ours")).unwrap();
    tokio::spawn(NbdServer::new(exports, ServerLimits::default()).serve_unix(listener, stop.clone()));
    let ours = script(&socket("ours")).await;

    let file = dir.path().join("file");
    std::fs::File::create(&file).unwrap().set_len(SIZE).unwrap();
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let qemu = ["-f", "raw", "-t", "-e", "16", "-x", "demo", "--discard=unmap", "-k"].map(str::to_owned).to_vec();
    let nbdkit = ["-f", "-U"].map(str::to_owned).to_vec();
    let peers = [
        ("qemu-nbd", [qemu, vec![text(&socket("qemu-nbd")), text(&file)]].concat()),
        ("nbdkit", [nbdkit, vec![text(&socket("nbdkit")), "memory".into(), SIZE.to_string()]].concat()),
    ];
    let mut found = Vec::new();
    let mut compared = Vec::new();
    for (peer, arguments) in peers {
        let Some(_running) = start(peer, &arguments, &socket(peer)).await else { continue };
        let theirs = script(&socket(peer)).await;
        for (step, answer) in &ours {
            let their_answer = theirs.get(step).map_or("(not reached)", |answer| answer);
            if their_answer != answer {
                println!("{peer} | {step} | ours: {answer} | theirs: {their_answer}");
                found.push((peer, step.clone(), their_answer.to_owned()));
            }
        }
        compared.push(peer);
    }
    println!("{} steps, compared with {compared:?}, {} differences", ours.len(), found.len());
    let listed = DIFFERENCES.iter().filter(|(peer, ..)| compared.contains(peer));
    let listed: Vec<_> =
        listed.map(|(peer, step, answer, _)| (*peer, (*step).to_owned(), (*answer).to_owned())).collect();
    for difference in &found {
        assert!(listed.contains(difference), "not listed: {difference:?}, ours is {:?}", ours[&difference.1]);
    }
    for difference in &listed {
        assert!(found.contains(difference), "listed and not found: {difference:?}");
    }
}

async fn start(peer: &str, arguments: &[String], socket: &PathBuf) -> Option<Child> {
    let mut command = Command::new(peer);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            assert!(std::env::var_os("CI").is_none(), "{peer} cannot be run ({error}): scripts/setup.sh all");
            println!("SKIPPED: {peer} cannot be run ({error}); scripts/setup.sh all installs it");
            return None;
        }
    };
    for _ in 0..500 {
        if UnixStream::connect(socket).await.is_ok() {
            return Some(child);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{peer} does not listen")
}

async fn greeted(socket: &Path) -> Client<UnixStream> {
    Client::greet(UnixStream::connect(socket).await.unwrap(), 3).await
}

async fn script(socket: &Path) -> Steps {
    let mut steps = Steps::new();
    options(socket, &mut steps).await;
    for form in [Form::Simple, Form::Structured] {
        requests(socket, form, &mut steps).await;
    }
    extended(socket, &mut steps).await;
    steps
}

/// An option on a fresh connection, after others that are not looked at.
async fn option(socket: &Path, before: &[(u32, Vec<u8>)], kind: u32, data: &[u8]) -> String {
    let mut client = greeted(socket).await;
    for (kind, data) in before {
        if client.try_option(*kind, data).await.is_none() {
            return "closed before".to_owned();
        }
    }
    match client.try_option(kind, data).await {
        None => "closed".to_owned(),
        Some(replies) => replies.iter().map(word).collect::<Vec<_>>().join(" "),
    }
}

/// A reply in a word.
fn word((kind, data): &(u32, Vec<u8>)) -> String {
    let error = |kind: u32| match kind & 0xffff {
        1 => "UNSUP",
        2 => "POLICY",
        3 => "INVALID",
        6 => "UNKNOWN",
        9 => "TOO_BIG",
        10 => "EXT_HEADER_REQD",
        _ => "another error",
    };
    match kind {
        1 => "ACK".to_owned(),
        2 => format!("SERVER({})", String::from_utf8_lossy(&data[4..4 + data[3] as usize])),
        3 if data[1] == 3 => {
            let size = |at: usize| u32::from_be_bytes(data[at..at + 4].try_into().unwrap());
            format!("BLOCK_SIZE({},{},{})", size(2), size(6), size(10))
        }
        3 if data[1] == 0 => "EXPORT".to_owned(),
        3 => format!("INFO{}", data[1]),
        4 => format!("CONTEXT({})", String::from_utf8_lossy(&data[4..])),
        other => error(*other).to_owned(),
    }
}

async fn options(socket: &Path, steps: &mut Steps) {
    let structured = || vec![(OPT_STRUCTURED_REPLY, vec![])];
    let go = export("demo", &[3]);
    let cases: Vec<Haggled<'_>> = vec![
        ("LIST", vec![], OPT_LIST, vec![]),
        ("LIST with data", vec![], OPT_LIST, b"x".to_vec()),
        ("ABORT", vec![], OPT_ABORT, vec![]),
        ("an unknown option", vec![], 99, b"x".to_vec()),
        ("STARTTLS without TLS", vec![], OPT_STARTTLS, vec![]),
        ("an option of 70,000 bytes", vec![], OPT_INFO, vec![0; 70_000]),
        ("STRUCTURED_REPLY with data", vec![], OPT_STRUCTURED_REPLY, b"x".to_vec()),
        ("STRUCTURED_REPLY twice", structured(), OPT_STRUCTURED_REPLY, vec![]),
        ("EXTENDED_HEADERS", vec![], OPT_EXTENDED_HEADERS, vec![]),
        ("STRUCTURED_REPLY after EXTENDED_HEADERS", vec![(OPT_EXTENDED_HEADERS, vec![])], OPT_STRUCTURED_REPLY, vec![]),
        ("INFO", vec![], OPT_INFO, go.clone()),
        ("INFO cut short", vec![], OPT_INFO, go[..go.len() - 1].to_vec()),
        ("INFO of another export", vec![], OPT_INFO, export("nothing", &[])),
        ("LIST_META_CONTEXT before structured replies", vec![], OPT_LIST_META_CONTEXT, meta("demo", &[])),
        (
            "SET_META_CONTEXT before structured replies",
            vec![],
            OPT_SET_META_CONTEXT,
            meta("demo", &["base:allocation"]),
        ),
        ("LIST_META_CONTEXT of all", structured(), OPT_LIST_META_CONTEXT, meta("demo", &[])),
        ("LIST_META_CONTEXT base:", structured(), OPT_LIST_META_CONTEXT, meta("demo", &["base:"])),
        ("LIST_META_CONTEXT x-no:thing", structured(), OPT_LIST_META_CONTEXT, meta("demo", &["x-no:thing"])),
        ("SET_META_CONTEXT base:", structured(), OPT_SET_META_CONTEXT, meta("demo", &["base:"])),
        ("SET_META_CONTEXT base:allocation", structured(), OPT_SET_META_CONTEXT, meta("demo", &["base:allocation"])),
        ("SET_META_CONTEXT of none", structured(), OPT_SET_META_CONTEXT, meta("demo", &[])),
        ("SET_META_CONTEXT without a colon", structured(), OPT_SET_META_CONTEXT, meta("demo", &["base"])),
        (
            "SET_META_CONTEXT of another export",
            structured(),
            OPT_SET_META_CONTEXT,
            meta("nothing", &["base:allocation"]),
        ),
        ("SET_META_CONTEXT cut short", structured(), OPT_SET_META_CONTEXT, meta("demo", &["base:"])[..9].to_vec()),
    ];
    for (name, before, kind, data) in cases {
        steps.insert(format!("option: {name}"), option(socket, &before, kind, &data).await);
    }
}

/// What an answer says, in a few words.
fn told(answer: Option<(u64, Answer)>) -> String {
    let Some((_, answer)) = answer else { return "closed".to_owned() };
    let error = match answer.error {
        0 => "ok",
        EPERM => "EPERM",
        EIO => "EIO",
        EINVAL => "EINVAL",
        ENOSPC => "ENOSPC",
        EOVERFLOW => "EOVERFLOW",
        ENOTSUP => "ENOTSUP",
        ESHUTDOWN => "ESHUTDOWN",
        _ => "another error",
    };
    let chunk = |chunk: &Chunk| match chunk {
        Chunk::Data(at, data) => format!(" data {at}+{}", data.len()),
        Chunk::Hole(at, length) => format!(" hole {at}+{length}"),
        Chunk::Status(_, extents) => format!(" status {extents:?}"),
    };
    error.to_owned() + &answer.chunks.iter().map(chunk).collect::<String>()
}

async fn ask(client: &mut Client<UnixStream>, kind: u16, flags: u16, offset: u64, length: u64, data: &[u8]) -> String {
    client.send(kind, flags, offset, length, data).await;
    told(client.try_answer().await)
}

async fn requests(socket: &Path, form: Form, steps: &mut Steps) {
    let mut client = Client::open(UnixStream::connect(socket).await.unwrap(), "demo", form).await;
    // Not every peer advertises a maximum.
    client.longest_chunk = 64 << 20;
    // Both forms begin with the same device: all holes.
    ask(&mut client, TRIM, 0, 0, SIZE, &[]).await;
    let data = vec![7; 65536];
    let mib = 1_u64 << 20;
    let cases: Vec<Asked<'_>> = vec![
        ("READ of a hole", READ, 0, 0, 65536, &[]),
        ("READ of a hole, DF", READ, DF, 0, 65536, &[]),
        ("BLOCK_STATUS of a hole", BLOCK_STATUS, 0, 0, mib, &[]),
        ("WRITE", WRITE, 0, mib, 65536, &data),
        ("WRITE with FUA", WRITE, FUA, mib, 65536, &data),
        ("READ of data", READ, 0, mib, 65536, &[]),
        ("READ at odd bytes", READ, 0, mib + 1, 3, &[]),
        ("BLOCK_STATUS of data and holes", BLOCK_STATUS, 0, 0, 2 * mib, &[]),
        ("BLOCK_STATUS, REQ_ONE", BLOCK_STATUS, REQ_ONE, 0, 2 * mib, &[]),
        ("BLOCK_STATUS past the end", BLOCK_STATUS, 0, SIZE, 512, &[]),
        ("FLUSH", FLUSH, 0, 0, 0, &[]),
        ("CACHE", CACHE, 0, 0, 4096, &[]),
        ("TRIM with FUA", TRIM, FUA, mib, 4096, &[]),
        ("WRITE_ZEROES", WRITE_ZEROES, 0, mib, 8192, &[]),
        ("WRITE_ZEROES, NO_HOLE", WRITE_ZEROES, NO_HOLE, mib, 8192, &[]),
        ("WRITE_ZEROES, FAST_ZERO", WRITE_ZEROES, FAST_ZERO, mib, 8192, &[]),
        ("READ past the end", READ, 0, SIZE, 512, &[]),
        ("WRITE past the end", WRITE, 0, SIZE - 512, 1024, &data[..1024]),
        ("WRITE_ZEROES past the end", WRITE_ZEROES, 0, SIZE, 512, &[]),
        ("TRIM past the end", TRIM, 0, SIZE, 512, &[]),
        ("an unknown command", 77, 0, 0, 512, &[]),
        ("READ with an unknown flag", READ, 1 << 14, 0, 512, &[]),
        ("TRIM with NO_HOLE", TRIM, NO_HOLE, 0, 512, &[]),
        ("READ of nothing", READ, 0, 0, 0, &[]),
        ("TRIM of nothing", TRIM, 0, 0, 0, &[]),
        ("READ longer than the maximum payload", READ, 0, 0, (32 << 20) + 512, &[]),
        ("FLUSH with a length", FLUSH, 0, 0, 512, &[]),
    ];
    for (name, kind, flags, offset, length, data) in cases {
        if form == Form::Simple && (kind == BLOCK_STATUS || flags == DF) {
            continue;
        }
        let mut answer = ask(&mut client, kind, flags, offset, length, data).await;
        if answer == "closed" {
            client = Client::open(UnixStream::connect(socket).await.unwrap(), "demo", form).await;
            answer = "closes the connection".to_owned();
        }
        steps.insert(format!("{form:?}: {name}"), answer);
    }
    let zeros = client.read(mib, 8192).await == vec![0; 8192];
    steps.insert(format!("{form:?}: zeroed bytes read as zeros"), zeros.to_string());
}

async fn extended(socket: &Path, steps: &mut Steps) {
    if option(socket, &[], OPT_EXTENDED_HEADERS, &[]).await != "ACK" {
        return;
    }
    let mut client = Client::open(UnixStream::connect(socket).await.unwrap(), "demo", Form::Extended).await;
    ask(&mut client, TRIM, 0, 0, SIZE, &[]).await;
    let cases: Vec<Asked<'_>> = vec![
        ("WRITE", WRITE, 0, 4096, 4096, &[7; 4096]),
        ("READ of data", READ, 0, 4096, 4096, &[]),
        ("BLOCK_STATUS", BLOCK_STATUS, 0, 0, SIZE, &[]),
        ("BLOCK_STATUS, REQ_ONE", BLOCK_STATUS, REQ_ONE, 0, SIZE, &[]),
        ("TRIM with a payload", TRIM, 0, 0, 8, &[1; 8]),
        ("TRIM of 2^40 bytes", TRIM, 0, 0, 1 << 40, &[]),
        ("FLUSH", FLUSH, 0, 0, 0, &[]),
    ];
    for (name, kind, flags, offset, length, data) in cases {
        steps.insert(format!("Extended: {name}"), ask(&mut client, kind, flags, offset, length, data).await);
    }
}
