//! The client against a server in memory, spoken byte by byte from the protocol document.

use std::{net::TcpListener, thread};

use super::*;

const SIZE: usize = 64 << 10;

/// Serves one connection: export `v` of 64 KiB; reads at the last byte end with EIO.
fn server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"NBDMAGICIHAVEOPT\x00\x03").unwrap();
        let hello: [u8; 4 + 16 + 4] = take(&mut stream).unwrap();
        let name: [u8; 1] = take(&mut stream).unwrap();
        let _: [u8; 2] = take(&mut stream).unwrap();
        assert_eq!((&hello[4..12], &hello[12..16]), (&b"IHAVEOPT"[..], &[0, 0, 0, 7][..]));
        let mut reply = |kind: u32, data: &[u8]| {
            let mut bytes = OPTION_REPLY_MAGIC.to_be_bytes().to_vec();
            [OPT_GO, kind, data.len() as u32].iter().for_each(|word| bytes.extend(word.to_be_bytes()));
            bytes.extend(data);
            stream.write_all(&bytes).unwrap();
        };
        if name != *b"v" {
            return reply(REP_ERROR | 6, b"no such export");
        }
        reply(3, &[0; 12]);
        reply(REP_ACK, &[]);
        let mut memory = vec![0_u8; SIZE];
        while let Ok(request) = take::<28>(&mut stream) {
            let (at, length) = (long(&request, 16) as usize, word(&request, 24) as usize);
            if request[7] == COMMAND_WRITE as u8 {
                stream.read_exact(&mut memory[at..at + length]).unwrap();
            }
            let error: u32 = if at == SIZE - 1 { 5 } else { 0 };
            let mut bytes = SIMPLE_REPLY_MAGIC.to_be_bytes().to_vec();
            bytes.extend(error.to_be_bytes());
            bytes.extend(&request[8..16]);
            if request[7] == COMMAND_READ as u8 && error == 0 {
                bytes.extend(&memory[at..at + length]);
            }
            stream.write_all(&bytes).unwrap();
        }
    });
    address
}

#[test]
fn what_was_written_is_read_and_errors_are_told_apart() {
    let mut client = NbdClient::open(server(), "v", HANDSHAKE_TIMEOUT).unwrap();
    client.write(4096, b"seven", true).unwrap();
    client.flush().unwrap();
    let mut data = [0; 6];
    client.read(4095, &mut data).unwrap();
    assert_eq!(&data, b"\0seven");
    assert!(matches!(client.read(SIZE as u64 - 1, &mut data[..1]), Err(NbdError::Request(5))));
    client.read(4096, &mut data[..5]).unwrap();
    assert_eq!(&data, b"sevenn", "an error leaves the connection usable");
}

#[test]
fn an_unknown_export_is_refused() {
    let error = NbdClient::open(server(), "w", HANDSHAKE_TIMEOUT).unwrap_err();
    assert!(matches!(error, NbdError::Refused { kind: 0x8000_0006, .. }), "{error}");
}

#[test]
fn a_closed_connection_is_a_connection_error() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || drop(listener.accept()));
    let error = NbdClient::open(address, "v", HANDSHAKE_TIMEOUT).unwrap_err();
    assert!(matches!(error, NbdError::Connection(_)), "{error}");
}
