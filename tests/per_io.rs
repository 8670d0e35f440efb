//! A volume in per-io mode, in real processes: each operation has a token of its own, and faults are a pause as in lease mode (S21).

mod kit;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use kit::{
    Cluster,
    forger::Forger,
    io::{BLOCK, MIB, block, disk_of, eventually, expect_block, number},
    secrets::Spy,
};
use pflex_proto::{
    data::{IoHeader, OpenSession, ReadRequest, RefusalCode, WithToken},
    geometry::pg_of,
    ids::{
        ByteOffset, ChunkId, ChunkIndex, DeviceId, Epoch, Generation, Incarnation, KeyId, LayerId, LogTime,
        OperationId, PgId, PoolId, ProcessId, SdcId, SessionId, TokenId, VolumeEpoch, VolumeId, VtreeId,
    },
    token::{Plan, Rights, Secret, SessionKey, Token, TokenMode},
};

const VOLUME: &str = "single";

/// Writes each block and reads it back until told to stop.
fn io_until(over: &AtomicBool, done: &AtomicU64, cluster: &Cluster) {
    let mut disk = disk_of(cluster, VOLUME);
    for n in 0_u64.. {
        if over.load(Ordering::Relaxed) {
            return;
        }
        let offset = n % 64 * MIB + n % 256 * BLOCK;
        disk.write(offset, &block(n), false).unwrap_or_else(|error| panic!("write {n}: {error}"));
        expect_block(&mut disk, offset, n);
        done.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn each_operation_of_a_per_io_volume_has_its_own_token_through_faults() {
    let cluster = Cluster::start_of("--mdm 3 --sds 3 --sdc 1");
    cluster.expect(0, "volume create single --size 64MiB --token-mode per-io");
    cluster.expect(0, "volume map single sdc1 --wait");
    let mut first = disk_of(&cluster, VOLUME);
    // Over chunk borders, in parts of blocks, zeros, holes, and what reads only.
    let across: Vec<u8> = (0..3 * MIB).map(|at| (at / 977) as u8).collect();
    first.write(MIB / 2 + 123, &across, true).expect("a write of four chunks");
    let mut read = vec![0; across.len()];
    first.read(MIB / 2 + 123, &mut read).expect("it is read");
    assert!(read == across, "what was written");
    first.flush().expect("a flush needs no token");
    drop(first);

    let of_a_write = |token: &&serde_json::Value| number(token, "operation_id") != 0 && number(token, "writes") <= 1;
    let tokens = cluster.json("token list --volume single -o json");
    let writes = tokens.as_array().expect("a list").iter().filter(of_a_write).count();
    assert!(writes >= 4, "each part of a write had one: {tokens}");

    let (over, done) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let io = scope.spawn(|| io_until(&over, &done, &cluster));
        let goes_on = |what: &str| {
            let before = done.load(Ordering::Relaxed);
            eventually(what, || {
                assert!(!io.is_finished(), "an operation failed");
                (done.load(Ordering::Relaxed) > before + 20).then_some(())
            });
        };
        goes_on("IO");
        cluster.kill("sds1");
        goes_on("IO without a server");
        cluster.up(0);
        goes_on("IO with a server that forgot which tokens it had seen");
        let status = cluster.json("status -o json");
        let leader = status["leader"]["id"].as_u64().or_else(|| status["leader"].as_u64()).unwrap_or(1);
        cluster.kill(&format!("mdm{}", leader.saturating_sub(1)));
        goes_on("IO after the leader died");
        over.store(true, Ordering::Relaxed);
    });
    cluster.up(0);
    let audit = cluster.expect(0, "token audit");
    assert!(audit.contains("holds"), "{audit}");
}

/// A client that signs what it likes, with one session at the device of sds1.
struct Client {
    forger: Forger,
    secret: Secret,
    session: SessionId,
    key: SessionKey,
    sequence: u64,
    token: Token,
    device: DeviceId,
}

impl Client {
    /// `boot` is higher with each.
    fn open(cluster: &Cluster, spy: &Spy, boot: u64) -> Self {
        let (key, bytes) = spy.secrets()[0];
        let secret = Secret::new(KeyId(key), &bytes);
        let (sdc, process) = (SdcId(77), ProcessId::from_bytes([3; 16]));
        let token = Token {
            cluster: spy.cluster,
            key: KeyId(key),
            id: TokenId(1 << 40),
            sdc,
            process,
            volume: VolumeId(2),
            rights: Rights::ReadWrite,
            from: ByteOffset(0),
            to: ByteOffset(64 * MIB),
            volume_epoch: VolumeEpoch(1),
            issued: LogTime(0),
            expires: LogTime(u64::MAX),
            mode: TokenMode::PerIo,
            plan: None,
        };
        let device = number(&cluster.json("device list --sds sds1 -o json")[0], "id");
        let device = DeviceId(device.try_into().expect("small"));
        let mut forger = Forger::greet(cluster.at(9_700), spy.cluster, device, (sdc, process));
        let generation = Generation { boot, counter: 1, process };
        let (signed, token_key) = secret.sign(&token);
        let request = OpenSession { volume: token.volume, generation, token: signed, renews: None };
        let opened = eventually("it has heard of time and volume", || forger.open(&request).ok());
        let key = token_key.session_key(&opened.nonce, &generation, device);
        Self { forger, secret, session: opened.session, key, sequence: 0, token, device }
    }

    /// A token for one read of the first block of a chunk.
    fn sign(&self, id: u64, chunk: u64, incarnation: u64) -> Vec<u8> {
        let plan = Plan { device: self.device, incarnation: Incarnation(incarnation), operation: OperationId(0) };
        let token = Token {
            id: TokenId(id),
            rights: Rights::Read,
            from: ByteOffset(chunk * MIB),
            to: ByteOffset(chunk * MIB + BLOCK),
            plan: Some(plan),
            ..self.token.clone()
        };
        self.secret.sign(&token).0
    }

    fn read(&mut self, groups: &[u64], chunk: u64, token: &[u8]) -> Result<(), RefusalCode> {
        self.sequence += 1;
        let (vtree, index) = (VtreeId(2), ChunkIndex(chunk));
        let pg = PgId { pool: PoolId(1), index: pg_of(vtree, index, groups.len().try_into().expect("few")) };
        let io = IoHeader {
            session: self.session,
            session_sequence: self.sequence,
            volume: self.token.volume,
            pg,
            epoch: Epoch(groups[pg.index.0 as usize]),
            chunk: ChunkId { vtree, layer: LayerId(0), index },
            offset: 0,
            length: BLOCK.try_into().expect("a block"),
        };
        let request = WithToken { token: token.to_vec(), request: ReadRequest { io } };
        self.forger.read_hole(&request, &self.key).map(drop)
    }
}

/// The epoch of each group.
fn epochs(cluster: &Cluster) -> Vec<u64> {
    let groups = cluster.json("pg list -o json");
    groups.as_array().expect("a list").iter().map(|group| number(group, "epoch")).collect()
}

/// What was used before a restart is void after it, so that a server need not remember it (S21).
#[test]
fn a_token_is_taken_once_and_not_by_the_next_life_of_its_device() {
    let cluster = Cluster::start_of("--mdm 3 --sds 3 --sdc 1");
    cluster.expect(0, "volume create single --size 64MiB --token-mode per-io");
    let spy = Spy::register(&cluster);
    let before = cluster.incarnation("sds1");
    let mut client = Client::open(&cluster, &spy, 1);
    let mut ids = 1 << 41..;
    let (chunk, used) = eventually("a chunk that sds1 serves", || {
        let groups = epochs(&cluster);
        (0..64).find_map(|chunk| {
            let token = client.sign(ids.next()?, chunk, before);
            client.read(&groups, chunk, &token).ok().map(|()| (chunk, token))
        })
    });
    let groups = epochs(&cluster);
    assert_eq!(client.read(&groups, chunk, &used), Err(RefusalCode::NotAllowed), "used");
    let spare = client.sign(ids.next().expect("enough"), chunk, before);

    // The process of sds1: those are counted from 0.
    cluster.kill("sds0");
    cluster.up(0);
    let now = eventually("it is back", || Some(cluster.incarnation("sds1")).filter(|now| *now > before));
    let mut client = Client::open(&cluster, &spy, 2);
    for (token, what) in [(&used, "used before"), (&spare, "of before")] {
        assert_eq!(client.read(&groups, chunk, token), Err(RefusalCode::NotReady), "{what}");
    }
    // One for this life is taken, whoever leads the group by now.
    let fresh = client.sign(ids.next().expect("enough"), chunk, now);
    let taken = client.read(&groups, chunk, &fresh);
    assert_ne!(taken, Err(RefusalCode::NotAllowed));
    assert_eq!(client.read(&groups, chunk, &fresh), Err(RefusalCode::NotAllowed), "used");
}
