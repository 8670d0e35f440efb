//! Whatever bytes come: no panic, no lost connection of others, the server goes on.
//!
//! Random bytes, and honest conversations with damage in them. The seed is printed and taken from `PFLEX_SEED`.

use std::time::Duration;

use pflex_sdc::nbd::ServerLimits;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::client::*;
use crate::device::Server;

/// An honest conversation, as bytes.
fn conversation(random: &mut ChaCha8Rng) -> Vec<u8> {
    let mut bytes = b"\0\0\0\x03".to_vec();
    let mut option = |kind: u32, data: &[u8]| {
        bytes.extend(b"IHAVEOPT");
        bytes.extend(kind.to_be_bytes());
        bytes.extend((data.len() as u32).to_be_bytes());
        bytes.extend(data);
    };
    for _ in 0..random.random_range(0..6) {
        match random.random_range(0..7) {
            0 => option(OPT_LIST, &[]),
            1 => option(OPT_STRUCTURED_REPLY, &[]),
            2 => option(OPT_LIST_META_CONTEXT, &meta("demo", &["base:", "x-y:z"])),
            3 => option(OPT_SET_META_CONTEXT, &meta("demo", &["base:allocation"])),
            4 => option(OPT_INFO, &export("demo", &[0, 1, 2, 3])),
            5 => option(OPT_STARTTLS, &[]),
            _ => option(random.random_range(0..20), b"whatever"),
        }
    }
    if random.random() {
        option(OPT_EXTENDED_HEADERS, &[]);
    }
    option(OPT_GO, &export("demo", &[3]));
    for _ in 0..random.random_range(0..8) {
        let length: u32 = random.random_range(0..5000);
        bytes.extend(if random.random() { 0x2560_9513_u32 } else { 0x21e4_1c71 }.to_be_bytes());
        bytes.extend(random.random_range(0..64_u16).to_be_bytes());
        bytes.extend(random.random_range(0..10_u16).to_be_bytes());
        bytes.extend(random.random::<[u8; 8]>());
        bytes.extend(random.random_range(0..1_u64 << 21).to_be_bytes());
        bytes.extend(length.to_be_bytes());
        bytes.extend(vec![0x25; length as usize]);
    }
    bytes
}

#[tokio::test]
async fn no_bytes_a_client_can_send_disturb_another_one() {
    let seed: u64 = std::env::var("PFLEX_SEED")
        .map_or_else(|_| rand::rng().random(), |text| text.parse().expect("PFLEX_SEED is a number"));
    println!("PFLEX_SEED={seed}");
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let server = Server::start(ServerLimits::default(), 10).await;
    let mut honest = server.open(Form::Structured).await;
    assert_eq!(honest.write(32 << 20, b"untouched").await, 0);
    for round in 0..400 {
        let mut bytes = match random.random_range(0..4) {
            0 => (0..random.random_range(1..3000)).map(|_| random.random()).collect(),
            _ => conversation(&mut random),
        };
        for _ in 0..random.random_range(0..4) {
            let at = random.random_range(0..bytes.len());
            bytes[at] = random.random();
        }
        bytes.truncate(random.random_range(0..=bytes.len()));
        let mut stream = server.stream().await;
        // Both ways at once: a server that waits for its reader must not hang this writer.
        let (mut from, mut to) = stream.split();
        let writing = async {
            // It may have closed already.
            let _ = to.write_all(&bytes).await;
            let _ = to.shutdown().await;
        };
        let reading = async {
            let mut rest = Vec::new();
            let _ = from.read_to_end(&mut rest).await;
        };
        let both = async { tokio::join!(writing, reading) };
        tokio::time::timeout(Duration::from_secs(30), both).await.expect("a connection hangs");
        if round % 50 == 0 {
            assert_eq!(honest.read(32 << 20, 9).await, b"untouched");
        }
    }
    assert_eq!(honest.read(32 << 20, 9).await, b"untouched");
    let mut new = server.open(Form::Extended).await;
    assert_eq!(new.read(32 << 20, 9).await, b"untouched");
}
