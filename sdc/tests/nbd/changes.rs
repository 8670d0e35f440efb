//! WRITE, TRIM, WRITE_ZEROES, FLUSH: flags, rights, errors, several connections.

use crate::client::*;
use crate::device::{SIZE, Server};

#[tokio::test]
async fn fua_reaches_the_device_with_every_command_that_writes() {
    let server = Server::with_defaults().await;
    let mut client = server.open(Form::Structured).await;
    client.send(WRITE, FUA, 0, 4, b"data").await;
    assert_eq!(client.answer().await.1.error, 0);
    assert_eq!(client.ask(TRIM, FUA, 0, 4096).await.error, 0);
    assert_eq!(client.ask(WRITE_ZEROES, FUA, 0, 4096).await.error, 0);
    assert_eq!(server.asked(), ["write 0+4 Stable", "trim 0+4096 Stable", "zero 0+4096 Stable"]);
    for kind in [READ, CACHE, BLOCK_STATUS] {
        assert_eq!(client.ask(kind, FUA, 0, 4096).await.error, 0, "FUA is accepted with all commands");
    }
    assert_eq!(client.ask(FLUSH, FUA, 0, 0).await.error, 0);
}

#[tokio::test]
async fn a_write_with_fua_is_not_answered_before_the_device_has() {
    let server = Server::with_defaults().await;
    let mut client = server.open(Form::Simple).await;
    server.hold();
    client.send(WRITE, FUA, 0, 4, b"data").await;
    while server.asked().is_empty() {
        tokio::task::yield_now().await;
    }
    let early = tokio::time::timeout(std::time::Duration::from_millis(50), client.answer()).await;
    assert!(early.is_err());
}

#[tokio::test]
async fn write_zeroes_reads_back_as_zeroes_and_no_hole_stays_provisioned() {
    let server = Server::with_defaults().await;
    for form in [Form::Simple, Form::Structured, Form::Extended] {
        let mut client = server.open(form).await;
        assert_eq!(client.write(0, &[9; 16384]).await, 0);
        assert_eq!(client.ask(WRITE_ZEROES, 0, 100, 8192).await.error, 0);
        let data = client.read(0, 16384).await;
        assert!(data.iter().enumerate().all(|(at, byte)| *byte == if (100..8292).contains(&at) { 0 } else { 9 }));
    }
    let mut client = server.open(Form::Structured).await;
    assert_eq!(client.ask(WRITE_ZEROES, NO_HOLE, 0, 16384).await.error, 0);
    assert_eq!(client.ask(BLOCK_STATUS, 0, 0, 16384).await.extents(), [(16384, 0)]);
    assert_eq!(client.ask(WRITE_ZEROES, 0, 0, 16384).await.error, 0);
    assert_eq!(client.ask(BLOCK_STATUS, 0, 0, 16384).await.extents(), [(16384, HOLE)]);
}

#[tokio::test]
async fn fast_zero_fails_with_enotsup_where_it_would_not_be_fast_and_changes_nothing() {
    let server = Server::with_defaults().await;
    let mut client = server.open(Form::Structured).await;
    assert!(client.flags & (1 << 11) != 0);
    assert_eq!(client.write(0, &[9; 4096]).await, 0);
    assert_eq!(client.ask(WRITE_ZEROES, FAST_ZERO | NO_HOLE, 0, 4096).await.error, ENOTSUP);
    assert_eq!(client.read(0, 4096).await, [9; 4096]);
    assert_eq!(client.ask(WRITE_ZEROES, NO_HOLE, 0, 4096).await.error, 0, "without the flag never ENOTSUP");
    assert_eq!(client.ask(WRITE_ZEROES, FAST_ZERO, 0, 4096).await.error, 0);
}

#[tokio::test]
async fn changes_of_a_read_only_export_are_eperm_and_nothing_reaches_the_device() {
    let server = Server::with_defaults().await;
    for form in [Form::Simple, Form::Structured, Form::Extended] {
        let mut client = server.open_named("frozen", form).await;
        assert!(client.flags & 2 != 0, "READ_ONLY is set");
        assert_eq!(client.write(0, b"no").await, EPERM);
        for kind in [TRIM, WRITE_ZEROES] {
            assert_eq!(client.ask(kind, 0, 0, 512).await.error, EPERM);
        }
        assert_eq!(client.ask(FLUSH, 0, 0, 0).await.error, 0);
    }
    assert_eq!(server.asked(), ["flush", "flush", "flush"]);
}

#[tokio::test]
async fn requests_past_the_end_are_enospc_for_writes_and_einval_for_others() {
    let server = Server::with_defaults().await;
    for form in [Form::Simple, Form::Structured, Form::Extended] {
        let mut client = server.open(form).await;
        for offset in [SIZE, SIZE - 1, u64::MAX - 1] {
            assert_eq!(client.write(offset, b"12").await, ENOSPC);
            assert_eq!(client.ask(WRITE_ZEROES, 0, offset, 2).await.error, ENOSPC);
            for kind in [READ, TRIM, CACHE] {
                assert_eq!(client.ask(kind, 0, offset, 2).await.error, EINVAL);
            }
        }
        assert_eq!(client.write(SIZE - 2, b"12").await, 0);
    }
}

#[tokio::test]
async fn unknown_commands_and_flags_are_einval_and_nobody_is_disconnected() {
    let server = Server::with_defaults().await;
    for form in [Form::Simple, Form::Structured, Form::Extended] {
        let mut client = server.open(form).await;
        for kind in [8, 9, 255, u16::MAX] {
            assert_eq!(client.ask(kind, 0, 0, 512).await.error, EINVAL);
        }
        for (kind, flags) in [(TRIM, NO_HOLE), (FLUSH, DF), (WRITE_ZEROES, DF), (READ, FAST_ZERO), (TRIM, 1 << 15)] {
            assert_eq!(client.ask(kind, flags, 0, 512).await.error, EINVAL, "{kind} {flags:#x}");
        }
        client.send(WRITE, NO_HOLE, 0, 4, b"data").await;
        assert_eq!(client.answer().await.1.error, EINVAL, "and its payload is consumed");
        assert_eq!(client.read(0, 4).await, [0; 4]);
    }
}

#[tokio::test]
async fn flush_covers_what_other_connections_were_answered() {
    let server = Server::with_defaults().await;
    let (mut writing, mut flushing) = (server.open(Form::Structured).await, server.open(Form::Simple).await);
    assert!(writing.flags & (1 << 8) != 0, "CAN_MULTI_CONN");
    assert_eq!(writing.write(0, b"data").await, 0);
    assert_eq!(flushing.ask(FLUSH, 0, 0, 0).await.error, 0);
    assert_eq!(server.asked(), ["write 0+4 Policy", "flush"], "one device for both, without a cache between");
    assert_eq!(flushing.read(0, 4).await, b"data");
}

#[tokio::test]
async fn a_flush_with_offset_or_length_is_einval() {
    let server = Server::with_defaults().await;
    let mut client = server.open(Form::Structured).await;
    assert_eq!(client.ask(FLUSH, 0, 512, 0).await.error, EINVAL);
    assert_eq!(client.ask(FLUSH, 0, 0, 512).await.error, EINVAL);
}

#[tokio::test]
async fn requests_without_payload_may_be_longer_than_the_maximum_payload() {
    let server = Server::with_defaults().await;
    let mut client = server.open(Form::Simple).await;
    for kind in [TRIM, WRITE_ZEROES, CACHE] {
        assert_eq!(client.ask(kind, 0, 0, SIZE).await.error, 0);
    }
}

#[tokio::test]
async fn a_payload_that_was_not_expected_is_consumed_and_einval() {
    let server = Server::with_defaults().await;
    let mut client = server.open(Form::Extended).await;
    for kind in [READ, TRIM, FLUSH, BLOCK_STATUS] {
        client.send(kind, 0, 0, 16, &[0x25; 16]).await;
        assert_eq!(client.answer().await.1.error, EINVAL);
    }
    let (_, without_flag) = client.request(WRITE, 0, 0, 4, b"data");
    tokio::io::AsyncWriteExt::write_all(&mut client.stream, &without_flag).await.unwrap();
    assert_eq!(client.answer().await.1.error, 0, "a write always has its payload");
    assert_eq!(client.read(0, 4).await, b"data");
    assert_eq!(client.write(0, b"still in step").await, 0);
}
