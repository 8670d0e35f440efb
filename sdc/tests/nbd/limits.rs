//! Bounds: handshakes, connections, bytes of all connections, clients that do not read.

use std::time::Duration;

use pflex_sdc::nbd::ServerLimits;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::client::*;
use crate::device::{Server, is_closed};

#[tokio::test]
async fn ten_thousand_silent_connections_starve_nobody() {
    let server = Server::start(ServerLimits { max_handshakes: 64, ..ServerLimits::default() }, 0).await;
    let mut working = server.open(Form::Structured).await;
    let mut silent: Vec<TcpStream> = Vec::new();
    for nth in 0..10_000 {
        silent.push(server.stream().await);
        if nth % 500 == 499 {
            assert_eq!(working.write(nth, b"still served").await, 0);
            let mut new = server.open(Form::Structured).await;
            assert_eq!(new.read(nth, 5).await, b"still", "a new client comes in between");
            // Descriptors of this side: those the server has let go are of no use.
            silent.drain(..silent.len() - 100);
        }
    }
    let held: usize = server.nbd.connections();
    assert!(held <= 64 + 25, "{held} connections");
    // The oldest were let go, the newest are still in theirs.
    let mut oldest = silent.remove(0);
    let mut greeting = [0; 18];
    drop(oldest.read_exact(&mut greeting).await);
    assert!(is_closed(&mut oldest).await);
    let mut newest = Client::greet(silent.pop().unwrap(), 3).await;
    newest.go("demo").await.unwrap();
}

#[tokio::test]
async fn a_handshake_byte_by_byte_is_closed_at_its_deadline() {
    let limits = ServerLimits { handshake_timeout: Duration::from_millis(300), ..ServerLimits::default() };
    let server = Server::start(limits, 0).await;
    let mut stream = server.stream().await;
    stream.read_exact(&mut [0; 18]).await.unwrap();
    let started = tokio::time::Instant::now();
    let mut slow = b"\0\0\0\x03IHAVEOPT\0\0\0\x63\0\0\xff\xff".iter().chain(std::iter::repeat(&b'x'));
    loop {
        if stream.write_u8(*slow.next().unwrap()).await.is_err() {
            break;
        }
        assert!(started.elapsed() < Duration::from_secs(20), "not closed");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(started.elapsed() >= Duration::from_millis(250));
}

#[tokio::test]
async fn pipelined_lists_that_nobody_reads_hold_no_memory_and_end_at_the_deadline() {
    let limits = ServerLimits { handshake_timeout: Duration::from_secs(1), ..ServerLimits::default() };
    let server = Server::start(limits, 20_000).await;
    let mut stream = server.stream().await;
    stream.write_all(b"\0\0\0\x03").await.unwrap();
    // 4,000 lists of a MiB each would be 4 GiB; sending stops where TCP stops it.
    let lists = b"IHAVEOPT\0\0\0\x03\0\0\0\0".repeat(4_000);
    let before = resident_bytes();
    let _ = tokio::time::timeout(Duration::from_secs(3), stream.write_all(&lists)).await;
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes for one connection");
    let mut client = server.open(Form::Simple).await;
    assert_eq!(client.read(0, 512).await, vec![0; 512]);
}

#[tokio::test]
async fn a_long_list_is_whole() {
    let server = Server::start(ServerLimits::default(), 3_000).await;
    let mut client = Client::greet(server.stream().await, 3).await;
    assert_eq!(client.option(OPT_LIST, &[]).await.len(), 3_000 + 2 + 1);
}

#[tokio::test]
async fn clients_that_never_read_are_bounded_and_hold_up_nobody() {
    let limits = ServerLimits { max_bytes: 64 << 20, stall_timeout: Duration::from_secs(1), ..ServerLimits::default() };
    let server = Server::start(limits, 0).await;
    let mut writer = server.open(Form::Simple).await;
    for at in 0..64 {
        assert_eq!(writer.write(at << 20, &[5; 1 << 20]).await, 0);
    }
    let before = resident_bytes();
    let mut deaf = Vec::new();
    for _ in 0..10 {
        let mut client = server.open(Form::Simple).await;
        for _ in 0..10 {
            client.send(READ, 0, 0, 32 << 20, &[]).await;
        }
        deaf.push(client);
    }
    // Small requests need nothing of the pool.
    let mut small = server.open(Form::Structured).await;
    for nth in 0..200 {
        assert_eq!(small.read(nth * 4096, 4096).await, [5; 4096]);
    }
    // Large ones get their part when those who keep it without reading are closed.
    let mut large = server.open(Form::Structured).await;
    let served = tokio::time::timeout(Duration::from_secs(60), large.ask(READ, 0, 0, 32 << 20)).await;
    assert_eq!(served.expect("never served").error, 0);
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 400 << 20, "{grown} bytes, the deaf ones asked for {}", 3_200_u64 << 20);
}

#[tokio::test]
async fn a_payload_that_trickles_in_gives_way_to_those_who_wait() {
    let limits =
        ServerLimits { max_bytes: 40 << 20, stall_timeout: Duration::from_millis(500), ..ServerLimits::default() };
    let server = Server::start(limits, 0).await;
    let mut slow = server.open(Form::Simple).await;
    let (_, request) = slow.request(WRITE, 0, 0, 32 << 20, &[1; 10]);
    slow.stream.write_all(&request).await.unwrap();
    let trickle = async {
        while slow.stream.write_u8(1).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let other = async {
        let mut client = server.open(Form::Structured).await;
        assert_eq!(client.ask(READ, 0, 0, 32 << 20).await.error, 0);
    };
    let both = async { tokio::join!(trickle, other) };
    tokio::time::timeout(Duration::from_secs(30), both).await.expect("the slow one is closed, the other served");
}

/// Memory of this process, which is the server's and the client's.
pub(crate) fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap();
    status.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}
