//! Tokens in a real cluster: what is wrong is refused, counted and told; and no client ever has the secret.

mod kit;

use std::time::Instant;

use kit::{
    Cluster,
    forger::Forger,
    io::{block, disk, eventually, expect_block},
    search::{forms, in_files, in_memory},
    secrets::Spy,
};
use pflex_proto::{
    data::{FlushRequest, IoHeader, OpenSession, RefusalCode},
    ids::{
        ByteOffset, ChunkId, ChunkIndex, DeviceId, Epoch, Generation, KeyId, LayerId, LogTime, PgId, PoolId, ProcessId,
        SdcId, TokenId, VolatilityId, VolumeEpoch, VolumeId, VtreeId,
    },
    token::{Rights, Secret, SessionKey, Token, TokenMode},
};
use serde_json::Value;

/// Nobody has registered under this id.
const SDC: SdcId = SdcId(77);
const VOLUME: VolumeId = VolumeId(1);

fn process() -> ProcessId {
    ProcessId::from_bytes([3; 16])
}

fn open(token: Vec<u8>) -> OpenSession {
    let generation = Generation { boot: 1, counter: 1, process: process() };
    OpenSession { volume: VOLUME, generation, token, renews: None }
}

/// Of the source that the test is, by kind.
fn counts(cluster: &Cluster) -> Option<[u64; 6]> {
    let rows = cluster.json("token refused -o json");
    let row = rows.as_array()?.iter().find(|row| row["sdc"] == "#77" && row["address"] == "127.0.0.1")?.clone();
    let kinds = ["forged", "replayed", "foreign", "unknown_key", "expired", "revoked"];
    Some(kinds.map(|kind| row[kind].as_u64().expect("a number")))
}

fn events(cluster: &Cluster) -> Vec<Value> {
    let events = cluster.json("event list --limit 1000 -o json");
    let of_tokens = |event: &&Value| event["kind"] == "token.refused";
    events.as_array().expect("a list").iter().filter(of_tokens).cloned().collect()
}

#[test]
fn tokens_that_are_forged_replayed_foreign_or_void_are_refused_counted_and_told_once_a_minute() {
    let cluster = Cluster::start();
    let spy = Spy::register(&cluster);
    let (key, bytes) = spy.secrets()[0];
    let secret = Secret::new(KeyId(key), &bytes);
    let token = Token {
        cluster: spy.cluster,
        key: KeyId(key),
        id: TokenId(1 << 40),
        sdc: SDC,
        process: process(),
        volume: VOLUME,
        rights: Rights::ReadWrite,
        from: ByteOffset(0),
        to: ByteOffset(1 << 20),
        volume_epoch: VolumeEpoch(1),
        issued: LogTime(0),
        expires: LogTime(u64::MAX),
        mode: TokenMode::Lease,
        plan: None,
    };
    let started = Instant::now();
    let mut expected = [0; 6];
    for (sds, port) in [("sds1", 9_700), ("sds2", 9_701)] {
        let device =
            cluster.json(&format!("device list --sds {sds} -o json"))[0]["id"].as_u64().expect("it has a device");
        let device = DeviceId(device.try_into().expect("small"));
        let mut forger = Forger::greet(cluster.at(port), spy.cluster, device, (SDC, process()));
        // Right, until it is altered: the first session opens, so what follows is refused for its flaw alone.
        let (signed, token_key) = secret.sign(&token);
        let opened = eventually("it has heard of time and volume", || forger.open(&open(signed.clone())).ok());
        let altered = {
            let mut altered = signed.clone();
            altered[30] ^= 1;
            altered
        };
        let signed_as = |token: &Token| secret.sign(token).0;
        for (bad, code) in [
            (altered, RefusalCode::NotAuthentic),
            (b"no token at all".to_vec(), RefusalCode::NotAuthentic),
            (Secret::new(KeyId(key), &[1; 32]).sign(&token).0, RefusalCode::NotAuthentic),
            (
                Secret::new(KeyId(99), &[1; 32]).sign(&Token { key: KeyId(99), ..token.clone() }).0,
                RefusalCode::NotReady,
            ),
            (signed_as(&Token { sdc: SdcId(1), ..token.clone() }), RefusalCode::NotAllowed),
            (signed_as(&Token { process: ProcessId::from_bytes([4; 16]), ..token.clone() }), RefusalCode::NotAllowed),
            (signed_as(&Token { volume: VolumeId(2), ..token.clone() }), RefusalCode::NotAllowed),
            (signed_as(&Token { expires: LogTime(1), ..token.clone() }), RefusalCode::TokenExpired),
            (signed_as(&Token { volume_epoch: VolumeEpoch(0), ..token.clone() }), RefusalCode::TokenExpired),
        ] {
            assert_eq!(forger.open(&open(bad)), Err(code), "{sds}");
        }
        let generation = open(Vec::new()).generation;
        let key = token_key.session_key(&opened.nonce, &generation, device);
        let stranger = token_key.session_key(&[0; 16], &generation, device);
        let mut flush = |sequence, key: &SessionKey| {
            let io = IoHeader {
                session: opened.session,
                session_sequence: sequence,
                volume: VOLUME,
                pg: PgId { pool: PoolId(1), index: Default::default() },
                epoch: Epoch(1),
                chunk: ChunkId { vtree: VtreeId(1), layer: LayerId(0), index: ChunkIndex(0) },
                offset: 0,
                length: 0,
            };
            forger.flush(&FlushRequest { io, volatility: VolatilityId::default() }, key).map(drop)
        };
        assert_eq!(flush(1, &key), Ok(()));
        assert_eq!(flush(1, &key), Err(RefusalCode::NotAuthentic), "replayed");
        assert_eq!(flush(2, &stranger), Err(RefusalCode::NotAuthentic), "another session's key");
        for (sum, more) in expected.iter_mut().zip([4, 1, 3, 1, 1, 1]) {
            *sum += more;
        }
    }
    eventually("all of them are counted", || (counts(&cluster)? == expected).then_some(()));
    let told = events(&cluster);
    let minutes = usize::try_from(started.elapsed().as_secs() / 60).expect("few");
    assert!((1..=1 + minutes).contains(&told.len()), "once a minute for a source, from whichever server: {told:?}");
    assert_eq!(told[0]["severity"], "warning", "{told:?}");
    assert!(told.iter().any(|event| event["object"] == "sdc #77"), "{told:?}");
    // Whoever is honest notices nothing, and nobody else is accused.
    let mut disk = disk(&cluster);
    disk.write(0, &block(7), false).expect("it may");
    expect_block(&mut disk, 0, 7);
    let rows = cluster.json("token refused -o json");
    let accused = |row: &&Value| ["forged", "replayed", "foreign"].iter().any(|kind| row[kind].as_u64() != Some(0));
    assert_eq!(rows.as_array().expect("a list").iter().filter(accused).count(), 1, "{rows}");
}

#[test]
fn the_search_finds_what_is_there_in_any_form_and_on_any_edge() {
    let secret: Vec<u8> = (1..=32).collect();
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("deep/in/it");
    std::fs::create_dir_all(file.parent().expect("it has one")).expect("a directory");
    for (form, before) in forms(&secret).into_iter().flat_map(|form| [(form.clone(), 0), (form, (1 << 20) - 7)]) {
        std::fs::write(&file, [vec![0xab; before], form, b"tail".to_vec()].concat()).expect("it is written");
        assert!(in_files(dir.path(), &forms(&secret)), "after {before} bytes");
    }
    std::fs::write(&file, &secret[..31]).expect("it is written");
    assert!(!in_files(dir.path(), &forms(&secret)), "a part of it is not it");
}

/// I7. Whoever has a secret can sign what it likes; a client has tokens, and keys that are made from one token.
#[test]
fn a_client_has_no_secret_in_its_memory_or_files() {
    let cluster = Cluster::start();
    // Started by the test, they may be looked into.
    let [mdm, sdc] = ["mdm0", "sdc0"].map(|process| {
        cluster.kill(process);
        cluster.by_hand(process)
    });
    let spy = Spy::register(&cluster);
    let mut disk = disk(&cluster);
    disk.write(0, &block(1), false).expect("it may");
    let mut secrets = spy.secrets();
    let rotated = || cluster.run("cluster rotate-secret", &[]).status.success().then_some(());
    eventually("the secret is rotated", rotated);
    eventually("the client uses a token of the new generation", || {
        disk.write(0, &block(2), false).expect("a rotation stops nothing");
        let tokens = cluster.json("token list -o json");
        tokens.as_array()?.iter().any(|token| token["key_id"] == 2 && token["writes"].as_u64() > Some(0)).then_some(())
    });
    secrets.extend(spy.secrets());
    secrets.sort_unstable();
    secrets.dedup();
    assert_eq!(secrets.iter().map(|(key, _)| *key).collect::<Vec<_>>(), [1, 2]);
    let of_sdc = cluster.dir().join("sdc0");
    for (key, secret) in &secrets {
        assert!(!in_memory(sdc.pid(), &forms(secret)), "the client has secret {key} in its memory");
        assert!(!in_files(&of_sdc, &forms(secret)), "the client has secret {key} in a file");
        // The same search finds it where it is; an SDS keeps only what HMAC makes of it.
        assert!(in_memory(mdm.pid(), &forms(secret)), "the MDM has no secret {key}: the search is blind");
    }
    let known = forms(spy.cluster.as_bytes());
    assert!(in_memory(sdc.pid(), &known), "the client does not know its cluster: the search is blind");
    expect_block(&mut disk, 0, 2);
}
