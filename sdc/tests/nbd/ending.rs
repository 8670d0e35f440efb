//! How connections end, and what a reconnect sees.

use std::sync::atomic::Ordering;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::client::*;
use crate::device::{SIZE, Server, is_closed};

#[tokio::test]
async fn an_export_that_disappears_answers_what_runs_refuses_what_follows_and_closes() {
    let server = Server::with_defaults().await;
    for form in [Form::Simple, Form::Structured, Form::Extended] {
        let mut client = Client::open(server.stream().await, "demo", form).await;
        if form == Form::Simple {
            server.asked();
        }
        server.hold();
        let running = client.send(WRITE, 0, 0, 4, b"data").await;
        while server.asked().is_empty() {
            tokio::task::yield_now().await;
        }
        if form == Form::Extended {
            server.offer.ended.cancel();
            let refused = client.send(READ, 0, 0, 512, &[]).await;
            let (cookie, answer) = client.answer().await;
            assert_eq!((cookie, answer.error), (refused, ESHUTDOWN));
        }
        server.let_go();
        let (cookie, answer) = client.answer().await;
        assert_eq!((cookie, answer.error), (running, 0), "what ran is answered as it went");
        if form == Form::Extended {
            assert!(is_closed(&mut client.stream).await);
        }
    }
    let mut late = Client::greet(server.stream().await, 3).await;
    assert_eq!(late.go("demo").await, Err(0x8000_0006), "ERR_UNKNOWN");
}

#[tokio::test]
async fn a_device_that_is_unmapped_under_a_request_is_eshutdown() {
    let server = Server::with_defaults().await;
    let mut client = server.open(Form::Structured).await;
    *server.offer.device.broken.lock().unwrap() = Some(pflex_sdc::block::IoError::Unmapped("volume demo".into()));
    for kind in [READ, TRIM, BLOCK_STATUS] {
        assert_eq!(client.ask(kind, 0, 0, 4096).await.error, ESHUTDOWN);
    }
}

#[tokio::test]
async fn a_server_shutdown_services_what_runs_and_refuses_the_rest_with_eshutdown() {
    let server = Server::with_defaults().await;
    let mut client = server.open(Form::Structured).await;
    server.hold();
    let running = client.send(READ, 0, 0, 512, &[]).await;
    while server.asked().is_empty() {
        tokio::task::yield_now().await;
    }
    server.shutdown.cancel();
    let refused = client.send(READ, 0, 0, 512, &[]).await;
    let (cookie, answer) = client.answer().await;
    assert_eq!((cookie, answer.error), (refused, ESHUTDOWN));
    server.let_go();
    assert_eq!(client.answer().await.0, running);
    assert!(is_closed(&mut client.stream).await);
    server.task.await.unwrap();
}

#[tokio::test]
async fn a_resize_is_seen_on_reconnect_and_an_open_connection_keeps_its_size() {
    let server = Server::with_defaults().await;
    server.offer.size.store(SIZE / 2, Ordering::Relaxed);
    let mut before = server.open(Form::Structured).await;
    server.offer.size.store(SIZE, Ordering::Relaxed);
    let mut after = server.open(Form::Structured).await;
    assert_eq!((before.size, after.size), (SIZE / 2, SIZE));
    assert_eq!(before.ask(READ, 0, SIZE / 2, 512).await.error, EINVAL);
    assert_eq!(after.ask(READ, 0, SIZE / 2, 512).await.error, 0);
}

#[tokio::test]
async fn disc_handles_outstanding_requests_and_has_no_reply() {
    let server = Server::with_defaults().await;
    let mut client = server.open(Form::Extended).await;
    for nth in 0..50 {
        client.send(READ, 0, nth * 4096, 4096, &[]).await;
    }
    client.send(DISC, 0, 0, 0, &[]).await;
    for _ in 0..50 {
        assert_eq!(client.answer().await.1.error, 0);
    }
    assert!(is_closed(&mut client.stream).await);
}

#[tokio::test]
async fn an_abrupt_disconnect_does_not_undo_or_disturb() {
    let server = Server::with_defaults().await;
    let mut other = server.open(Form::Simple).await;
    let mut client = server.open(Form::Simple).await;
    assert_eq!(client.write(0, b"kept").await, 0);
    client.send(WRITE, 0, 4096, 4096, &[1; 100]).await;
    drop(client);
    assert_eq!(other.read(0, 4).await, b"kept");
    assert_eq!(other.read(4096, 4096).await, vec![0; 4096], "half a request is no request");
}

#[tokio::test]
async fn abort_is_answered_with_ack_even_with_data() {
    let server = Server::with_defaults().await;
    for data in [&b""[..], b"bye"] {
        let mut client = Client::greet(server.stream().await, 3).await;
        assert_eq!(client.option(OPT_ABORT, data).await, [(1, vec![])]);
        assert!(is_closed(&mut client.stream).await);
    }
    // A client that does not wait for the answer harms nobody.
    let mut client = Client::greet(server.stream().await, 3).await;
    client.send_option(OPT_ABORT, &[]).await;
    drop(client);
    server.open(Form::Simple).await;
}

#[tokio::test]
async fn export_name_of_an_unknown_export_terminates_the_session() {
    let server = Server::with_defaults().await;
    let mut client = Client::greet(server.stream().await, 3).await;
    client.send_option(OPT_EXPORT_NAME, b"nothing").await;
    assert!(is_closed(&mut client.stream).await);
}

#[tokio::test]
async fn export_name_sends_124_zeroes_unless_they_were_agreed_away() {
    let server = Server::with_defaults().await;
    for (flags, rest) in [(1, 10 + 124), (3, 10)] {
        let mut client = Client::greet(server.stream().await, flags).await;
        client.send_option(OPT_EXPORT_NAME, b"demo").await;
        let mut told = vec![0; rest];
        client.stream.read_exact(&mut told).await.unwrap();
        assert!(told[..8] == SIZE.to_be_bytes() && told[10..].iter().all(|byte| *byte == 0));
        assert_eq!(client.read(0, 512).await, vec![0; 512], "nothing lies between");
    }
}

#[tokio::test]
async fn unknown_client_flags_drop_the_connection() {
    let server = Server::with_defaults().await;
    let mut client = Client::greet(server.stream().await, 3 | 1 << 7).await;
    assert!(is_closed(&mut client.stream).await);
}

#[tokio::test]
async fn list_names_all_exports_with_descriptions() {
    let server = Server::with_defaults().await;
    let mut client = Client::greet(server.stream().await, 3).await;
    let listed = client.option(OPT_LIST, &[]).await;
    let texts: Vec<_> = listed.iter().map(|(_, data)| String::from_utf8_lossy(data).into_owned()).collect();
    assert_eq!(texts, ["\0\0\0\u{4}demowhat demo is", "\0\0\0\u{6}frozenwhat frozen is", ""]);
}

#[tokio::test]
async fn starttls_is_refused_and_no_option_says_tls_is_required() {
    let server = Server::with_defaults().await;
    let mut client = Client::greet(server.stream().await, 3).await;
    assert_eq!(client.option(OPT_STARTTLS, &[]).await.last().unwrap().0, 0x8000_0001);
    for kind in [OPT_LIST, OPT_INFO, OPT_STRUCTURED_REPLY, OPT_LIST_META_CONTEXT, 99] {
        assert!(client.option(kind, &export("demo", &[])).await.iter().all(|(reply, _)| *reply != 0x8000_0005));
    }
}

#[tokio::test]
async fn half_a_handshake_and_a_close_are_the_end_of_it() {
    let server = Server::with_defaults().await;
    for half in [&b""[..], &[0, 0], b"\0\0\0\x03IHAVEOPT\0\0\0\x07\0\0\0\x20abc"] {
        let mut stream = server.stream().await;
        stream.write_all(half).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest.len(), 18, "the greeting only");
    }
    server.open(Form::Simple).await;
}
