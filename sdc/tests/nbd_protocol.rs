//! The NBD server over real sockets, spoken to byte by byte.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::Duration;

use pflex_proto::ids::{ByteCount, ByteOffset};
use pflex_sdc::block::MemoryExports;
use pflex_sdc::nbd::request::{Cookie, encode_header};
use pflex_sdc::nbd::wire::{
    ErrorCode, OPTION_MAGIC, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, chunk, command, option,
};
use pflex_sdc::nbd::{NbdServer, ServerLimits};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

const SIZE: u64 = 128 << 20;

struct Server {
    address: std::net::SocketAddr,
    shutdown: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

async fn start(limits: ServerLimits) -> Server {
    let exports = MemoryExports::default().with("demo", ByteCount(SIZE), false);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(NbdServer::new(Arc::new(exports), limits).serve_tcp(listener, shutdown.clone()));
    Server { address, shutdown, task }
}

/// A client that is just past EXPORT_NAME, with structured replies if wanted.
async fn connect(server: &Server, structured: bool) -> TcpStream {
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.read_exact(&mut [0; 18]).await.unwrap();
    stream.write_u32(3).await.unwrap();
    if structured {
        send_option(&mut stream, option::STRUCTURED_REPLY, &[]).await;
        stream.read_exact(&mut [0; 20]).await.unwrap();
    }
    send_option(&mut stream, option::EXPORT_NAME, b"demo").await;
    assert_eq!(stream.read_u64().await.unwrap(), SIZE);
    stream.read_u16().await.unwrap();
    stream
}

async fn send_option(stream: &mut TcpStream, kind: u32, data: &[u8]) {
    let bytes =
        [&OPTION_MAGIC.to_be_bytes()[..], &kind.to_be_bytes(), &(data.len() as u32).to_be_bytes(), data].concat();
    stream.write_all(&bytes).await.unwrap();
}

fn request(kind: u16, cookie: u64, offset: u64, length: u64) -> [u8; 28] {
    encode_header(kind, 0, Cookie(cookie), ByteOffset(offset), ByteCount(length))
}

/// Reads a simple reply's header: (error, cookie).
async fn simple(stream: &mut TcpStream) -> (u32, u64) {
    assert_eq!(stream.read_u32().await.unwrap(), SIMPLE_REPLY_MAGIC);
    (stream.read_u32().await.unwrap(), stream.read_u64().await.unwrap())
}

async fn is_closed(stream: &mut TcpStream) -> bool {
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut rest)).await;
    ended.is_ok() && rest.is_empty()
}

#[tokio::test]
async fn what_is_written_is_read_at_any_byte() {
    let server = start(ServerLimits::default()).await;
    let mut stream = connect(&server, false).await;
    let data: Vec<u8> = (0..70_001).map(|i| (i % 251) as u8).collect();
    let offset = (1 << 20) - 13;
    stream.write_all(&request(command::WRITE, 1, offset, data.len() as u64)).await.unwrap();
    stream.write_all(&data).await.unwrap();
    assert_eq!(simple(&mut stream).await, (0, 1));
    stream.write_all(&request(command::READ, 2, offset + 1, 70_000)).await.unwrap();
    assert_eq!(simple(&mut stream).await, (0, 2));
    let mut back = vec![0; 70_000];
    stream.read_exact(&mut back).await.unwrap();
    assert_eq!(back, data[1..]);
}

#[tokio::test]
async fn many_requests_in_one_segment_are_all_answered() {
    let server = start(ServerLimits::default()).await;
    let mut stream = connect(&server, false).await;
    let mut bytes = Vec::new();
    for cookie in 0..2_000 {
        bytes.extend(request(command::WRITE, cookie, cookie * 4096, 8));
        bytes.extend(cookie.to_be_bytes());
    }
    stream.write_all(&bytes).await.unwrap();
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..2_000 {
        let (error, cookie) = simple(&mut stream).await;
        assert!(error == 0 && seen.insert(cookie));
    }
}

#[tokio::test]
async fn reads_are_structured_once_agreed_on_also_their_errors() {
    let server = start(ServerLimits::default()).await;
    let mut stream = connect(&server, true).await;
    stream.write_all(&request(command::WRITE, 4, 4096, 512)).await.unwrap();
    stream.write_all(&[1; 512]).await.unwrap();
    assert_eq!(simple(&mut stream).await, (0, 4));
    stream.write_all(&request(command::READ, 5, 4096, 512)).await.unwrap();
    let header = (stream.read_u32().await.unwrap(), stream.read_u16().await.unwrap(), stream.read_u16().await.unwrap());
    assert_eq!(header, (STRUCTURED_REPLY_MAGIC, chunk::FLAG_DONE, chunk::OFFSET_DATA));
    assert_eq!((stream.read_u64().await.unwrap(), stream.read_u32().await.unwrap()), (5, 8 + 512));
    assert_eq!(stream.read_u64().await.unwrap(), 4096);
    stream.read_exact(&mut [0; 512]).await.unwrap();

    stream.write_all(&request(command::READ, 6, SIZE, 1)).await.unwrap();
    let header = (stream.read_u32().await.unwrap(), stream.read_u16().await.unwrap(), stream.read_u16().await.unwrap());
    assert_eq!(header, (STRUCTURED_REPLY_MAGIC, chunk::FLAG_DONE, chunk::ERROR));
    assert_eq!(stream.read_u64().await.unwrap(), 6);
    let length = stream.read_u32().await.unwrap();
    let (code, text_length) = (stream.read_u32().await.unwrap(), stream.read_u16().await.unwrap());
    assert_eq!((code, u32::from(text_length)), (ErrorCode::Einval as u32, length - 6));
    let mut text = vec![0; text_length.into()];
    stream.read_exact(&mut text).await.unwrap();
    assert_eq!(String::from_utf8(text).unwrap(), ErrorCode::Einval.text());
}

#[tokio::test]
async fn more_bytes_than_may_be_in_flight_make_the_client_wait_and_nothing_is_lost() {
    let server = start(ServerLimits::default()).await;
    let stream = connect(&server, false).await;
    let (mut from, mut to) = stream.into_split();
    // 40 reads of 32 MiB: 20 times what one connection may hold. Nothing is read back until all are sent.
    for cookie in 0..40 {
        to.write_all(&request(command::READ, cookie, cookie << 20, 32 << 20)).await.unwrap();
    }
    let mut data = vec![0; 32 << 20];
    for _ in 0..40 {
        assert_eq!((from.read_u32().await.unwrap(), from.read_u32().await.unwrap()), (SIMPLE_REPLY_MAGIC, 0));
        from.read_u64().await.unwrap();
        from.read_exact(&mut data).await.unwrap();
    }
}

#[tokio::test]
async fn a_disconnect_finishes_what_runs_and_closes() {
    let server = start(ServerLimits::default()).await;
    let mut stream = connect(&server, false).await;
    let bytes =
        [request(command::FLUSH, 1, 0, 0), request(command::DISC, 2, 0, 0), request(command::FLUSH, 3, 0, 0)].concat();
    stream.write_all(&bytes).await.unwrap();
    assert_eq!(simple(&mut stream).await, (0, 1));
    assert!(is_closed(&mut stream).await);
}

#[tokio::test]
async fn a_breach_closes_that_connection_only() {
    let server = start(ServerLimits::default()).await;
    let mut good = connect(&server, false).await;
    let too_large = request(command::WRITE, 1, 0, (32 << 20) + 1);
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n0123456789"[..], &too_large] {
        let mut bad = connect(&server, false).await;
        bad.write_all(garbage).await.unwrap();
        assert!(is_closed(&mut bad).await);
    }
    let mut truncated = connect(&server, false).await;
    truncated.write_all(&request(command::WRITE, 1, 0, 100)).await.unwrap();
    truncated.shutdown().await.unwrap();
    assert!(is_closed(&mut truncated).await);
    good.write_all(&request(command::FLUSH, 9, 0, 0)).await.unwrap();
    assert_eq!(simple(&mut good).await, (0, 9));
}

#[tokio::test]
async fn a_handshake_that_takes_too_long_is_closed() {
    let server = start(ServerLimits { handshake_timeout: Duration::from_millis(50), ..ServerLimits::default() }).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.read_exact(&mut [0; 18]).await.unwrap();
    assert!(is_closed(&mut stream).await);
}

#[tokio::test]
async fn connections_above_the_limit_are_closed_at_once_and_a_free_place_is_taken_again() {
    let server = start(ServerLimits { max_connections: 1, ..ServerLimits::default() }).await;
    let mut first = connect(&server, false).await;
    let mut second = TcpStream::connect(server.address).await.unwrap();
    assert!(is_closed(&mut second).await);
    first.write_all(&request(command::DISC, 1, 0, 0)).await.unwrap();
    assert!(is_closed(&mut first).await);
    // The place is free a moment after the first client sees its end.
    loop {
        let mut third = TcpStream::connect(server.address).await.unwrap();
        if third.read_exact(&mut [0; 18]).await.is_ok() {
            break;
        }
    }
}

#[tokio::test]
async fn shutdown_closes_idle_connections_and_ends_the_server() {
    let server = start(ServerLimits::default()).await;
    let mut stream = connect(&server, false).await;
    server.shutdown.cancel();
    assert!(is_closed(&mut stream).await);
    server.task.await.unwrap();
}
