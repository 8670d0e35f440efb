//! The clients people use, against the NBD server over memory. A missing client fails its test: `make` installs all.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;

use pflex_proto::ids::ByteCount;
use pflex_sdc::block::MemoryExports;
use pflex_sdc::nbd::{NbdServer, ServerLimits};
use tokio::net::{TcpListener, UnixListener};
use tokio::process::Command;
use tokio_util::sync::{CancellationToken, DropGuard};

const SIZE: u64 = 64 << 20;

fn exports() -> Arc<MemoryExports> {
    let exports = MemoryExports::default().with("demo", ByteCount(SIZE), false);
    Arc::new(exports.with("frozen", ByteCount(1 << 20), true))
}

/// A server on a free port: its URI without the export's name, and what stops it when dropped.
async fn start() -> (String, DropGuard) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("nbd://{}", listener.local_addr().unwrap());
    let shutdown = CancellationToken::new();
    tokio::spawn(NbdServer::new(exports(), ServerLimits::default()).serve_tcp(listener, shutdown.clone()));
    (uri, shutdown.drop_guard())
}

/// Runs a client and returns what it printed.
async fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let started = Command::new(program).args(arguments).stdin(Stdio::null()).kill_on_drop(true).output().await;
    let output =
        started.unwrap_or_else(|error| panic!("{program} cannot be run ({error}): install it with `make deps`"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

/// A file with a pattern, a hole and another pattern.
fn sample(path: &Path) {
    let mut data: Vec<u8> = (0..SIZE as usize).map(|i| (i / 7 % 253) as u8).collect();
    data[5 << 20..40 << 20].fill(0);
    std::fs::write(path, data).unwrap();
}

#[tokio::test]
async fn nbdinfo_reads_size_flags_and_list() {
    let (uri, _server) = start().await;
    let info = run("nbdinfo", &["--json", &format!("{uri}/demo")]).await.unwrap();
    let info: serde_json::Value = serde_json::from_str(&info).unwrap();
    assert_eq!((&info["protocol"], &info["structured"]), (&"newstyle-fixed".into(), &true.into()));
    let export = &info["exports"][0];
    assert_eq!((&export["export-size"], &export["is_read_only"]), (&SIZE.into(), &false.into()));
    for can in
        ["can_flush", "can_fua", "can_trim", "can_zero", "can_fast_zero", "can_cache", "can_multi_conn", "can_df"]
    {
        assert_eq!(export[can], true, "{can}");
    }
    assert_eq!((&export["block_size_preferred"], &export["block_size_maximum"]), (&4096.into(), &(32 << 20).into()));
    let listed = run("nbdinfo", &["--list", &uri]).await.unwrap();
    assert!(listed.contains("export=\"demo\"") && listed.contains("export=\"frozen\""), "{listed}");
    assert!(run("nbdinfo", &[&format!("{uri}/missing")]).await.is_err());
}

#[tokio::test]
async fn nbdcopy_copies_in_and_out() {
    let (uri, _server) = start().await;
    let dir = tempfile::tempdir().unwrap();
    let (source, back) = (dir.path().join("source"), dir.path().join("back"));
    sample(&source);
    let export = format!("{uri}/demo");
    run("nbdcopy", &["--flush", source.to_str().unwrap(), &export]).await.unwrap();
    run("nbdcopy", &[&export, back.to_str().unwrap()]).await.unwrap();
    assert!(std::fs::read(source).unwrap() == std::fs::read(back).unwrap());
}

#[tokio::test]
async fn qemu_img_converts_and_compares_over_a_unix_socket() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("nbd.sock");
    let shutdown = CancellationToken::new();
    let server = NbdServer::new(exports(), ServerLimits::default());
    tokio::spawn(server.serve_unix(UnixListener::bind(&socket).unwrap(), shutdown.clone()));
    let _server = shutdown.drop_guard();
    let source = dir.path().join("source");
    sample(&source);
    let (source, export) = (source.to_str().unwrap(), format!("nbd+unix:///demo?socket={}", socket.display()));
    run("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", source, &export]).await.unwrap();
    let compared = run("qemu-img", &["compare", "-f", "raw", "-F", "raw", source, &export]).await.unwrap();
    assert!(compared.contains("identical"), "{compared}");
    let frozen = format!("nbd+unix:///frozen?socket={}", socket.display());
    assert!(run("qemu-io", &["-f", "raw", "-c", "write 0 4k", &frozen]).await.is_err(), "read-only");
    // Sub-block, FUA, zeroes with and without unmapping, discard.
    let commands = [
        "write -P 7 4001 777",
        "write -f -P 8 8192 4k",
        "write -z 8193 511",
        "write -zu 12k 4k",
        "discard 16k 4k",
        "flush",
        "read -P 7 4001 777",
        "read -P 0 8193 511",
        "read -P 8 8704 3584",
        "read -P 0 12k 8k",
    ];
    let mut arguments = vec!["-f", "raw"];
    commands.iter().for_each(|command| arguments.extend(["-c", command]));
    let printed = run("qemu-io", &[&arguments[..], &[&export]].concat()).await.unwrap();
    assert!(!printed.contains("failed") && !printed.contains("error"), "{printed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fio_verifies_random_writes() {
    let (uri, _server) = start().await;
    let uri = format!("--uri={uri}/demo");
    let common = [
        "--name=verify",
        "--ioengine=nbd",
        &uri,
        "--rw=randwrite",
        "--size=32m",
        "--verify=crc32c",
        "--iodepth=32",
        "--verify_state_save=0",
    ];
    run("fio", &[&common[..], &["--bs=4k"]].concat()).await.unwrap();
    run("fio", &[&common[..], &["--bsrange=512-256k", "--bs_unaligned=1"]].concat()).await.unwrap();
}
