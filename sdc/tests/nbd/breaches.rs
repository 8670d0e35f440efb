//! Clients that break the protocol: told why where that is possible, closed, and nobody else notices.

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::client::*;
use crate::device::{Server, is_closed};
use crate::limits::resident_bytes;

/// A client whom the others must not disturb.
struct Witness(Client<TcpStream>);

impl Witness {
    async fn of(server: &Server) -> Self {
        let mut client = server.open(Form::Structured).await;
        assert_eq!(client.write(0, b"seen").await, 0);
        Self(client)
    }

    async fn looks(&mut self) {
        assert_eq!(self.0.read(0, 4).await, b"seen");
    }
}

#[tokio::test]
async fn wrong_magic_ends_that_connection_alone() {
    let server = Server::with_defaults().await;
    let mut witness = Witness::of(&server).await;
    for bytes in [&b"IHAVEOPS\0\0\0\x03\0\0\0\0"[..], b"NBDMAGIC\0\0\0\x03\0\0\0\0", b"GET / HTTP/1.1\r\n\r\n"] {
        let mut client = Client::greet(server.stream().await, 3).await;
        client.stream.write_all(bytes).await.unwrap();
        assert!(is_closed(&mut client.stream).await, "{bytes:?}");
        witness.looks().await;
    }
    // In the transmission phase, also the magic of the other form.
    for (form, magic) in [
        (Form::Simple, 0x21e4_1c71_u32),
        (Form::Structured, 0x21e4_1c71),
        (Form::Extended, 0x2560_9513),
        (Form::Simple, 0),
        (Form::Extended, u32::MAX),
    ] {
        let mut client = server.open(form).await;
        let (_, mut request) = client.request(READ, 0, 0, 512, &[]);
        request[..4].copy_from_slice(&magic.to_be_bytes());
        client.stream.write_all(&request).await.unwrap();
        assert!(is_closed(&mut client.stream).await, "{form:?} {magic:#x}");
        witness.looks().await;
    }
}

#[tokio::test]
async fn absurd_lengths_are_refused_and_nothing_is_kept_for_them() {
    let server = Server::with_defaults().await;
    let mut witness = Witness::of(&server).await;
    let before = resident_bytes();
    // Inside an option: a name longer than it, more requests or queries than there are.
    let mut client = Client::greet(server.stream().await, 3).await;
    let huge = |mut data: Vec<u8>, at: usize, length: usize| {
        data[at..at + length].fill(0xff);
        data
    };
    let (named, queried) = (export("demo", &[]), meta("demo", &["base:"]));
    for (kind, data) in [
        (OPT_INFO, huge(named.clone(), 0, 4)),
        (OPT_GO, huge(named, 8, 2)),
        (OPT_LIST_META_CONTEXT, huge(queried.clone(), 0, 4)),
        (OPT_LIST_META_CONTEXT, huge(queried.clone(), 8, 4)),
        (OPT_LIST_META_CONTEXT, huge(queried, 12, 4)),
    ] {
        assert_eq!(client.option(kind, &data).await.last().unwrap().0, 0x8000_0003, "ERR_INVALID for {kind}");
    }
    client.go("demo").await.unwrap();
    // An option that will never end.
    for kind in [OPT_GO, OPT_LIST, 99] {
        let mut client = Client::greet(server.stream().await, 3).await;
        client.stream.write_all(&[b"IHAVEOPT", &kind.to_be_bytes()[..], &[0xff; 4]].concat()).await.unwrap();
        assert_eq!(client.option_reply(kind).await, 0x8000_0009, "ERR_TOO_BIG for {kind}");
        assert!(is_closed(&mut client.stream).await);
    }
    // A payload that no server takes: closed before any of it is.
    for (form, length) in
        [(Form::Simple, u64::from(u32::MAX)), (Form::Structured, (32 << 20) + 1), (Form::Extended, u64::MAX)]
    {
        let mut client = server.open(form).await;
        let flags = if form == Form::Extended { PAYLOAD_LEN } else { 0 };
        let (_, request) = client.request(WRITE, flags, 0, length, &[]);
        client.stream.write_all(&request).await.unwrap();
        assert!(is_closed(&mut client.stream).await, "{form:?} {length}");
        witness.looks().await;
    }
    // Without a payload a length is only a number.
    let mut client = server.open(Form::Extended).await;
    for kind in [READ, TRIM, WRITE_ZEROES, CACHE, BLOCK_STATUS] {
        assert_ne!(client.ask(kind, 0, 512, u64::MAX).await.error, 0, "{kind}");
    }
    assert_eq!(client.read(0, 4).await, b"seen");
    witness.looks().await;
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes");
}
