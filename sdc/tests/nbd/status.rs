//! BLOCK_STATUS: 32 and 64 bits, REQ_ONE, what errors become.

use crate::client::*;
use crate::device::{SIZE, Server};

#[tokio::test]
async fn block_status_shows_what_was_written_and_trimmed() {
    let server = Server::with_defaults().await;
    for form in [Form::Structured, Form::Extended] {
        let mut client = server.open(form).await;
        assert_eq!(client.ask(BLOCK_STATUS, 0, 0, SIZE).await.extents(), [(SIZE, HOLE)]);
        assert_eq!(client.write(8192, &[1; 8192]).await, 0);
        let extents = client.ask(BLOCK_STATUS, 0, 0, SIZE).await.extents();
        assert_eq!(extents, [(8192, HOLE), (8192, 0), (SIZE - 16384, HOLE)], "{form:?}");
        assert_eq!(client.ask(BLOCK_STATUS, 0, 9000, 100).await.extents(), [(100, 0)]);
        assert_eq!(client.ask(TRIM, 0, 8192, 8192).await.error, 0);
        assert_eq!(client.ask(BLOCK_STATUS, 0, 0, SIZE).await.extents(), [(SIZE, HOLE)]);
    }
}

#[tokio::test]
async fn req_one_returns_exactly_one_extent_inside_the_request() {
    let server = Server::with_defaults().await;
    let mut client = server.open(Form::Structured).await;
    assert_eq!(client.write(8192, &[1; 8192]).await, 0);
    assert_eq!(client.ask(BLOCK_STATUS, REQ_ONE, 0, SIZE).await.extents(), [(8192, HOLE)]);
    assert_eq!(client.ask(BLOCK_STATUS, REQ_ONE, 8192, 512).await.extents(), [(512, 0)]);
}

#[tokio::test]
async fn a_reply_has_a_bounded_number_of_extents_and_makes_progress() {
    let server = Server::with_defaults().await;
    let mut client = server.open(Form::Extended).await;
    // Every other block of the whole device: 8,192 extents of each state.
    for block in (0..SIZE / 4096).step_by(2) {
        assert_eq!(client.write(block * 4096, &[1; 4096]).await, 0);
    }
    let (mut at, mut asked) = (0, 0);
    while at < SIZE {
        let extents = client.ask(BLOCK_STATUS, 0, at, SIZE - at).await.extents();
        assert!(extents.len() <= 1 << 20);
        at += extents.iter().map(|(length, _)| length).sum::<u64>();
        asked += 1;
    }
    assert!(asked >= 1 && at == SIZE);
}

#[tokio::test]
async fn block_status_without_a_selected_context_is_einval() {
    let server = Server::with_defaults().await;
    let mut client = Client::greet(server.stream().await, 3).await;
    client.option(OPT_STRUCTURED_REPLY, &[]).await;
    client.option(OPT_SET_META_CONTEXT, &meta("frozen", &["base:allocation"])).await;
    client.form = Form::Structured;
    client.go("demo").await.unwrap();
    assert_eq!(client.ask(BLOCK_STATUS, 0, 0, 512).await.error, EINVAL, "selected for another export");
    let mut simple = server.open(Form::Simple).await;
    assert_eq!(simple.ask(BLOCK_STATUS, 0, 0, 512).await.error, EINVAL);
}

#[tokio::test]
async fn block_status_past_the_end_is_einval() {
    let server = Server::with_defaults().await;
    let mut client = server.open(Form::Structured).await;
    assert_eq!(client.ask(BLOCK_STATUS, 0, SIZE, 1).await.error, EINVAL);
    assert_eq!(client.ask(BLOCK_STATUS, 0, SIZE - 1, 2).await.error, EINVAL);
}

#[tokio::test]
async fn allocation_that_cannot_be_known_is_data_and_never_a_hole() {
    let server = Server::with_defaults().await;
    let mut client = server.open(Form::Structured).await;
    *server.offer.device.broken.lock().unwrap() = Some(pflex_sdc::block::IoError::Failed("no primary".into()));
    assert_eq!(client.ask(BLOCK_STATUS, 0, 4096, 65536).await.extents(), [(65536, 0)]);
}
