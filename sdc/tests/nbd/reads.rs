//! READ in all forms: chunks, holes, DF, errors.

use crate::client::*;
use crate::device::{SIZE, Server};

const MIB: u64 = 1 << 20;

/// Data in [1 MiB, 2 MiB), holes around it.
async fn sparse(server: &Server, form: Form) -> Client<tokio::net::TcpStream> {
    let mut client = server.open(form).await;
    assert_eq!(client.write(MIB, &vec![7; MIB as usize]).await, 0);
    client
}

#[tokio::test]
async fn holes_are_offset_hole_chunks_and_data_offset_data_chunks() {
    let server = Server::with_defaults().await;
    for form in [Form::Structured, Form::Extended] {
        let mut client = sparse(&server, form).await;
        let answer = client.ask(READ, 0, 0, 4 * MIB).await;
        let expected = [Chunk::Hole(0, MIB), Chunk::Data(MIB, vec![7; MIB as usize]), Chunk::Hole(2 * MIB, 2 * MIB)];
        assert!(answer.chunks == expected, "{form:?}");
    }
}

#[tokio::test]
async fn df_sends_one_content_chunk_with_the_zeroes_explicitly_present() {
    let server = Server::with_defaults().await;
    for form in [Form::Structured, Form::Extended] {
        let mut client = sparse(&server, form).await;
        let answer = client.ask(READ, DF, 0, 4 * MIB).await;
        let [Chunk::Data(0, data)] = &answer.chunks[..] else { panic!("one chunk of data") };
        let inside = MIB as usize..2 * MIB as usize;
        assert!(data.len() == 4 * MIB as usize);
        assert!(data.iter().enumerate().all(|(at, byte)| *byte == if inside.contains(&at) { 7 } else { 0 }));
    }
}

#[tokio::test]
async fn df_is_supported_for_64_kib_at_least() {
    let server = Server::with_defaults().await;
    let mut client = server.open(Form::Structured).await;
    assert_eq!(client.ask(READ, DF, 12345, 65536).await.error, 0);
}

#[tokio::test]
async fn without_negotiation_only_simple_replies_are_used_and_holes_are_zeroes() {
    let server = Server::with_defaults().await;
    let mut client = sparse(&server, Form::Simple).await;
    let data = client.read(MIB - 10, 20).await;
    assert_eq!(data, [[0; 10], [7; 10]].concat());
    let answer = client.ask(READ, 0, SIZE, 1).await;
    assert_eq!((answer.error, answer.chunks.len()), (EINVAL, 0), "an error has no payload");
    assert_eq!(client.read(0, 4096).await, vec![0; 4096], "and the stream is in step after it");
}

#[tokio::test]
async fn chunks_of_aligned_reads_have_multiples_of_512_bytes() {
    let server = Server::with_defaults().await;
    let mut client = sparse(&server, Form::Structured).await;
    let answer = client.ask(READ, 0, MIB - 777, 2 * MIB).await;
    let last = answer.chunks.len() - 1;
    for (nth, chunk) in answer.chunks.iter().enumerate() {
        let (at, length) = match chunk {
            Chunk::Data(at, data) => (*at, data.len() as u64),
            Chunk::Hole(at, length) => (*at, *length),
            Chunk::Status(..) => unreachable!("the client has checked"),
        };
        assert!(nth == 0 || at % 512 == 0);
        assert!(nth == last || (at + length) % 512 == 0);
    }
}

#[tokio::test]
async fn every_error_of_a_read_is_structured_even_of_bad_flags() {
    let server = Server::with_defaults().await;
    for form in [Form::Structured, Form::Extended] {
        let mut client = server.open(form).await;
        let cases =
            [(NO_HOLE, 0, 512, EINVAL), (1 << 14, 0, 512, EINVAL), (0, SIZE, 1, EINVAL), (0, u64::MAX, 512, EINVAL)];
        for (flags, offset, length, error) in cases {
            let answer = client.ask(READ, flags, offset, length).await;
            assert_eq!((answer.error, answer.chunks.len()), (error, 0), "{form:?} {flags:#x} {offset}+{length}");
            assert!(!answer.why.is_empty(), "an error is said in words too");
        }
    }
}

#[tokio::test]
async fn an_error_of_the_device_is_eio_with_its_reason_and_the_connection_goes_on() {
    let server = Server::with_defaults().await;
    let mut client = server.open(Form::Structured).await;
    let broken = pflex_sdc::block::IoError::Failed("the cable is out".into());
    *server.offer.device.broken.lock().unwrap() = Some(broken);
    let answer = client.ask(READ, 0, 0, 512).await;
    assert_eq!((answer.error, &*answer.why), (EIO, "the cable is out"));
    assert_eq!(client.ask(WRITE_ZEROES, 0, 0, 512).await.error, EIO);
    *server.offer.device.broken.lock().unwrap() = None;
    assert_eq!(client.ask(READ, 0, 0, 512).await.error, 0);
}

#[tokio::test]
async fn a_read_longer_than_the_maximum_payload_is_refused_and_nobody_is_disconnected() {
    let server = Server::with_defaults().await;
    for (form, error) in [(Form::Simple, EINVAL), (Form::Structured, EOVERFLOW), (Form::Extended, EOVERFLOW)] {
        let mut client = server.open(form).await;
        assert_eq!(client.ask(READ, 0, 0, (32 << 20) + 1).await.error, error, "{form:?}");
        assert_eq!(client.read(5, 5).await, [0; 5]);
    }
}

#[tokio::test]
async fn requests_of_no_length_succeed_and_nobody_is_disconnected() {
    let server = Server::with_defaults().await;
    for form in [Form::Simple, Form::Structured, Form::Extended] {
        let mut client = server.open(form).await;
        for kind in [READ, TRIM, WRITE_ZEROES, CACHE] {
            assert_eq!(client.ask(kind, 0, 0, 0).await.error, 0, "{form:?} {kind}");
        }
    }
    assert!(server.asked().is_empty());
}

#[tokio::test]
async fn cache_is_passed_on_and_rejects_flags_it_does_not_know() {
    let server = Server::with_defaults().await;
    let mut client = server.open(Form::Structured).await;
    assert!(client.flags & (1 << 10) != 0);
    assert_eq!(client.ask(CACHE, 0, 0, 4096).await.error, 0);
    assert_eq!(server.asked(), ["cache 0+4096"]);
    assert_eq!(client.ask(CACHE, DF, 0, 4096).await.error, EINVAL);
}

#[tokio::test]
async fn replies_bear_the_cookie_of_their_request_in_any_order() {
    let server = Server::with_defaults().await;
    for form in [Form::Simple, Form::Structured, Form::Extended] {
        let mut client = server.open(form).await;
        let mut cookies = Vec::new();
        for nth in 0..100 {
            cookies.push(client.send(READ, 0, nth * 4096, 4096, &[]).await);
        }
        let mut answered = Vec::new();
        for _ in 0..100 {
            answered.push(client.answer().await.0);
        }
        answered.sort_unstable();
        assert_eq!(answered, cookies);
    }
}
