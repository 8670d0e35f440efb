//! The engine against fake SDSs that break, hold, refuse, damage, move and die.
//!
//! Random tests print their seed and take one from `PFLEX_SEED`.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fake_sds;
mod fence;
mod flush;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use fake_sds::{FakeCluster, Faults, PG_COUNT, POOL, Shared};
use pflex_common::map::Limits;
use pflex_proto::ids::{ByteOffset, ClusterId, DeviceId, LayerId, ProcessId, SdcId, TokenId, VolumeId, VtreeId};
use pflex_sdc::block::{BlockBackend, ByteRange, Durability, Extent, ExtentState, IoError, ZeroOptions};
use pflex_sdc::engine::metered::{MeteredBackend, Usage};
use pflex_sdc::engine::operation_tokens::{Plan, Planned};
use pflex_sdc::engine::plan::Layout;
use pflex_sdc::engine::tokens::Issued;
use pflex_sdc::engine::volume::{Open, VolumeBackend};
use pflex_sdc::engine::{Engine, Identity, Marks, Patience, TokenKeeper, TokenSource, VolumeSpec};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio_util::sync::{CancellationToken, DropGuard};

const PROCESS: [u8; 16] = [5; 16];
const VOLUME: VolumeId = VolumeId(9);
const BLOCK: u64 = 4096;

/// Tokens signed with the fake cluster's secret.
struct Issuer {
    shared: Arc<Mutex<Shared>>,
    next: AtomicU64,
}

impl TokenSource for Issuer {
    async fn issue(&self, volumes: &[VolumeId]) -> anyhow::Result<Vec<Issued>> {
        let id = TokenId(self.next.fetch_add(1, Ordering::Relaxed));
        let owner = (ClusterId::default(), SdcId(1), ProcessId::from_bytes(PROCESS));
        let issue = |volume: &VolumeId| {
            let (signed, key) = self.shared.lock().unwrap().token(owner, id, *volume);
            Issued { volume: *volume, signed, key }
        };
        Ok(volumes.iter().map(issue).collect())
    }

    async fn issue_for(&self, plans: &[Plan]) -> anyhow::Result<Vec<Planned>> {
        Ok(plans.iter().map(|_plan| Err("the fake cluster has no volume in per-io mode".to_owned())).collect())
    }
}

struct Client {
    volume: VolumeBackend,
    engine: Arc<Engine>,
    keeper: Arc<TokenKeeper>,
    _tokens: DropGuard,
}

fn client(cluster: &FakeCluster, patience: Patience) -> Client {
    client_of(cluster, patience, Marks::forgotten(), false)
}

fn client_of(cluster: &FakeCluster, patience: Patience, marks: Marks, writeback: bool) -> Client {
    client_of_boot(cluster, patience, marks, writeback, 1)
}

fn client_of_boot(cluster: &FakeCluster, patience: Patience, marks: Marks, writeback: bool, boot: u64) -> Client {
    let process = ProcessId::from_bytes(PROCESS);
    let identity = Identity { cluster: ClusterId::default(), sdc: SdcId(1), process, boot };
    let engine = Engine::new(identity, patience, Arc::clone(&cluster.routes), marks);
    let (keeper, shutdown) = (Arc::new(TokenKeeper::default()), CancellationToken::new());
    let auth = keeper.auth(VOLUME);
    let issuer = Issuer { shared: Arc::clone(&cluster.shared), next: AtomicU64::new(1) };
    let stop = shutdown.clone();
    let running = Arc::clone(&keeper);
    tokio::spawn(async move { running.run(issuer, stop).await });
    let layout = Layout { pool: POOL, pg_count: PG_COUNT, vtree: VtreeId(9), layer: LayerId(0) };
    let volume = engine.volume(VolumeSpec { id: VOLUME, name: "demo".into(), layout, writeback, per_io: false }, &auth);
    let session = volume.session(&CancellationToken::new());
    Client { volume: VolumeBackend::new(volume, session, Open), engine, keeper, _tokens: shutdown.drop_guard() }
}

/// Short enough for tests, long enough for a busy machine.
fn patience() -> Patience {
    Patience {
        io_deadline: Duration::from_secs(30),
        request_timeout: Duration::from_millis(300),
        connect_timeout: Duration::from_secs(2),
    }
}

impl Client {
    /// The map says how many placement groups there are.
    fn told(&self, pg_count: u32) {
        let spec = self.volume.volume().spec();
        let layout = Layout { pg_count, ..spec.layout };
        self.engine.volume(VolumeSpec { layout, ..(*spec).clone() }, &self.keeper.auth(VOLUME));
    }

    async fn write(&self, offset: u64, data: Vec<u8>) -> Result<(), IoError> {
        self.volume.write(ByteOffset(offset), data.into(), Durability::Policy).await
    }

    fn retries(&self) -> u64 {
        self.volume.volume().statistics().retries.load(Ordering::Relaxed)
    }

    async fn read(&self, offset: u64, length: u64) -> Result<Vec<u8>, IoError> {
        let payload = self.volume.read(ByteRange::new(offset, length)).await?;
        Ok(payload.pieces().flat_map(|piece: Bytes| piece.to_vec()).collect())
    }
}

fn pattern(length: usize, salt: u8) -> Vec<u8> {
    (0..length).map(|i| (i % 241) as u8 ^ salt).collect()
}

#[tokio::test]
async fn without_a_token_for_the_operation_nothing_is_sent_and_the_deadline_counts_from_the_start() {
    let cluster = FakeCluster::start(1, 1).await;
    let patience = Patience { io_deadline: Duration::from_millis(300), ..Patience::default() };
    let client = client(&cluster, patience);
    let per_io = VolumeSpec { per_io: true, ..(*client.volume.volume().spec()).clone() };
    client.engine.volume(per_io, &client.keeper.auth(VOLUME));
    let started = Instant::now();
    let error = client.volume.write(ByteOffset(0), Bytes::from(vec![1; 4096]), Durability::Stable).await.unwrap_err();
    assert!(error.to_string().contains("no token for the operation"), "{error}");
    assert!(started.elapsed() >= patience.io_deadline);
    assert_eq!(client.volume.volume().writes_in_flight(), 0, "it was never sent, so nothing has to be fenced");
    client.volume.flush().await.expect("a flush needs none");
}

#[tokio::test]
async fn what_is_written_over_several_chunks_at_any_byte_is_read_back() {
    let cluster = FakeCluster::start(1, 1).await;
    let client = client(&cluster, patience());
    let (offset, data) = ((1 << 20) - 777, pattern(3 << 20, 3));
    client.write(offset, data.clone()).await.unwrap();
    assert_eq!(client.read(offset, data.len() as u64).await.unwrap(), data);
    assert_eq!(client.read(offset - 10, 20).await.unwrap(), [&[0; 10][..], &data[..10]].concat());
    assert!(client.read(100 << 20, 2 << 20).await.unwrap().iter().all(|byte| *byte == 0), "holes are zeros");
    client.volume.flush().await.unwrap();
}

#[tokio::test]
async fn trim_drops_whole_blocks_only_and_zeroes_are_exact() {
    let cluster = FakeCluster::start(1, 1).await;
    let client = client(&cluster, patience());
    client.write(0, vec![1; 8 * 4096]).await.unwrap();
    client.volume.trim(ByteRange::new(100, 3 * BLOCK), Durability::Policy).await.unwrap();
    let data = client.read(0, 8 * BLOCK).await.unwrap();
    let zeros =
        |data: &[u8]| data.iter().enumerate().filter(|(_, byte)| **byte == 0).map(|(at, _)| at).collect::<Vec<_>>();
    assert_eq!(zeros(&data), (4096..3 * 4096).collect::<Vec<_>>());
    let options = ZeroOptions { durability: Durability::Stable, keep_provisioned: true, only_if_fast: false };
    client.volume.write_zeroes(ByteRange::new(5 * BLOCK + 7, 11), options).await.unwrap();
    let data = client.read(5 * BLOCK, BLOCK).await.unwrap();
    assert_eq!(zeros(&data), (7..18).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_dead_primary_is_waited_for_and_its_successor_found() {
    let mut cluster = FakeCluster::start(2, 1).await;
    let client = client(&cluster, patience());
    client.write(0, pattern(4096, 1)).await.unwrap();
    cluster.kill_device(DeviceId(1)).await;
    let writing = client.write(0, pattern(4096, 2));
    let promoting = async {
        tokio::time::sleep(Duration::from_millis(150)).await;
        cluster.promote(Some(DeviceId(2)));
        cluster.publish();
        Instant::now()
    };
    let (written, promoted) = tokio::join!(writing, promoting);
    written.unwrap();
    assert!(promoted.elapsed() < Duration::from_secs(1), "the map wakes what waits");
    assert_eq!(client.read(0, 4096).await.unwrap(), pattern(4096, 2));
}

#[tokio::test]
async fn a_refusal_brings_the_configuration_before_the_map_does() {
    let cluster = FakeCluster::start(2, 1).await;
    let client = client(&cluster, patience());
    client.write(0, pattern(4096, 1)).await.unwrap();
    cluster.promote(Some(DeviceId(2)));
    client.write(0, pattern(4096, 2)).await.unwrap();
    assert_eq!(client.read(0, 4096).await.unwrap(), pattern(4096, 2));
}

#[tokio::test]
async fn without_any_copy_io_waits_and_the_deadline_ends_it() {
    let cluster = FakeCluster::start(1, 1).await;
    let client = client(&cluster, Patience { io_deadline: Duration::from_millis(300), ..patience() });
    client.write(0, pattern(4096, 1)).await.unwrap();
    cluster.promote(None);
    cluster.publish();
    let started = Instant::now();
    let error = client.write(0, pattern(4096, 2)).await.unwrap_err();
    assert!(matches!(&error, IoError::Failed(why) if why.contains("no copy")), "{error}");
    assert!(started.elapsed() >= Duration::from_millis(300));
    cluster.promote(Some(DeviceId(1)));
    cluster.publish();
    assert_eq!(client.read(0, 4096).await.unwrap(), pattern(4096, 1));
}

#[tokio::test]
async fn an_expired_token_is_replaced_and_the_session_renewed() {
    let cluster = FakeCluster::start(1, 1).await;
    let client = client(&cluster, patience());
    client.write(0, pattern(4096, 1)).await.unwrap();
    cluster.shared().oldest_token = TokenId(3);
    cluster.shared().faults.break_before = 1000;
    let writing = client.write(0, pattern(4096, 2));
    let mending = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        cluster.shared().faults.break_before = 0;
    };
    let (written, ()) = tokio::join!(writing, mending);
    written.unwrap();
}

/// After an outage of the MDMs the first tokens of the new leader are newer than what an SDS has heard.
#[tokio::test]
async fn a_newer_token_that_a_device_cannot_take_yet_holds_up_nothing() {
    let cluster = FakeCluster::start(1, 1).await;
    let client = client(&cluster, patience());
    client.write(0, pattern(4096, 1)).await.unwrap();
    // It may have waited for its first token.
    let retries = client.retries();
    cluster.shared().faults.behind = true;
    let auth = client.keeper.auth(VOLUME);
    auth.want_newer(auth.version()).changed().await.unwrap();
    let mut salt = 0_u8;
    while cluster.shared().renewals_refused < 3 {
        salt = salt.wrapping_add(1);
        client.write(0, pattern(4096, salt)).await.unwrap();
        assert_eq!(client.read(0, 4096).await.unwrap(), pattern(4096, salt));
    }
    assert_eq!((cluster.shared().sessions, client.retries()), (1, retries), "in the session there was, each once");
    // Now it has heard: the session is renewed.
    cluster.shared().faults.behind = false;
    while cluster.shared().sessions == 1 {
        client.write(0, pattern(4096, 7)).await.unwrap();
    }
    assert_eq!(client.retries(), retries);
    assert_eq!(client.read(0, 4096).await.unwrap(), pattern(4096, 7));
}

#[tokio::test]
async fn a_volume_that_is_no_longer_mapped_fails_at_once() {
    let cluster = FakeCluster::start(1, 1).await;
    let client = client(&cluster, patience());
    client.volume.volume().close();
    assert!(
        matches!(client.write(0, vec![1]).await, Err(error @ IoError::Unmapped(_)) if error.to_string().contains("no longer mapped"))
    );
}

#[tokio::test]
async fn damage_on_the_way_is_noticed_and_read_again() {
    let cluster = FakeCluster::start(1, 1).await;
    let client = client(&cluster, patience());
    client.write(3, pattern(9000, 1)).await.unwrap();
    cluster.shared().faults.damage = 500;
    for _ in 0..20 {
        assert_eq!(client.read(3, 9000).await.unwrap(), pattern(9000, 1));
        assert_eq!(client.read(4096, 4096).await.unwrap(), pattern(9000, 1)[4093..4093 + 4096]);
    }
    assert!(client.retries() > 0);
}

#[tokio::test]
async fn allocation_is_told_as_the_primaries_know_it() {
    let cluster = FakeCluster::start(1, 1).await;
    let client = client(&cluster, patience());
    client.write((1 << 20) - BLOCK, vec![1; 2 * BLOCK as usize]).await.unwrap();
    let range = ByteRange::new(100, (40 << 20) + 5);
    let told = |extents: Vec<Extent>| extents.into_iter().map(|e| (e.state, e.length.0)).collect::<Vec<_>>();
    let extents = told(client.volume.extents(range, 100).await.unwrap());
    let before = (1 << 20) - BLOCK - 100;
    let after = range.length.0 - before - 2 * BLOCK;
    let (data, hole) = (ExtentState::Data, ExtentState::Hole);
    assert_eq!(extents, [(hole, before), (data, 2 * BLOCK), (hole, after)], "neighbours in two chunks are one extent");
    assert_eq!(told(client.volume.extents(range, 1).await.unwrap()), [(hole, before)]);
    let long = told(client.volume.extents(ByteRange::new(0, 1 << 50), 100).await.unwrap());
    assert!(long.iter().map(|(_, length)| length).sum::<u64>() >= 1 << 30, "a part of a long range, and in time");
}

#[tokio::test]
async fn allocation_survives_a_move_and_what_cannot_be_known_is_data() {
    let cluster = FakeCluster::start(2, 1).await;
    let client = client(&cluster, Patience { io_deadline: Duration::from_millis(300), ..patience() });
    client.write(0, vec![1; BLOCK as usize]).await.unwrap();
    cluster.promote(Some(DeviceId(2)));
    let range = ByteRange::new(0, 2 * BLOCK);
    let states = |extents: Vec<Extent>| extents.into_iter().map(|extent| extent.state).collect::<Vec<_>>();
    let moved = states(client.volume.extents(range, 9).await.unwrap());
    assert_eq!(moved, [ExtentState::Data, ExtentState::Hole], "asked again at the new primary");
    cluster.promote(None);
    cluster.publish();
    assert_eq!(states(client.volume.extents(range, 9).await.unwrap()), [ExtentState::Data], "never a hole by guess");
    client.volume.volume().close();
    assert!(matches!(client.volume.extents(range, 9).await, Err(IoError::Unmapped(_))));
}

/// 1,024 questions, 32 at a time: each with a deadline of its own would be 32 deadlines. The clock is the test's.
#[tokio::test(start_paused = true)]
async fn a_question_about_many_chunks_that_nobody_answers_ends_at_one_deadline() {
    let cluster = FakeCluster::start(1, 1).await;
    let client = client(&cluster, patience());
    cluster.promote(None);
    cluster.publish();
    let started = tokio::time::Instant::now();
    let told = client.volume.extents(ByteRange::new(5, 1 << 30), 100).await.unwrap();
    let took = started.elapsed();
    assert!(took >= patience().io_deadline && took < patience().io_deadline + Duration::from_secs(1), "{took:?}");
    assert!(
        matches!(told[..], [Extent { state: ExtentState::Data, length }] if length.0 + 1 >= (1 << 30) - 5),
        "{told:?}"
    );
}

#[tokio::test]
async fn zeros_become_holes_in_whole_blocks_unless_they_keep_their_space() {
    let cluster = FakeCluster::start(1, 1).await;
    let client = client(&cluster, patience());
    let zero = async |offset, length, keep_provisioned, only_if_fast| {
        let options = ZeroOptions { durability: Durability::Stable, keep_provisioned, only_if_fast };
        let outcome = client.volume.write_zeroes(ByteRange::new(offset, length), options).await;
        let mut writes = std::mem::take(&mut cluster.shared().writes);
        writes.sort_unstable_by_key(|(_, length, _)| *length);
        (outcome, writes)
    };
    use pflex_proto::data::WriteKind::{Zero, ZeroNoHole};
    let (done, writes) = zero(100, 3 * BLOCK, false, true).await;
    done.unwrap();
    let expected = [(Zero, 100, true), (Zero, 3996, true), (Zero, 8192, true)];
    assert_eq!(writes, expected, "the whole blocks by themselves, FUA on each part");
    let (done, writes) = zero(100, 3 * BLOCK, true, false).await;
    done.unwrap();
    assert_eq!(writes, [(ZeroNoHole, 3 * 4096, true)]);
    for (offset, length, keep) in [(0, BLOCK, true), (100, 200, false)] {
        let (refused, writes) = zero(offset, length, keep, true).await;
        assert!(matches!(refused, Err(IoError::NotSupported(_))) && writes.is_empty(), "it would not be fast");
    }
}

#[tokio::test]
async fn overlapping_writes_of_this_client_over_a_chunk_border_are_not_mixed() {
    let cluster = FakeCluster::start(1, 1).await;
    let client = Arc::new(client(&cluster, patience()));
    cluster.shared().faults.hold = 300;
    let at = (1 << 20) - 100;
    for round in 0..20_u8 {
        let writers: Vec<_> = (0..4)
            .map(|writer| {
                let client = Arc::clone(&client);
                tokio::spawn(async move { client.write(at, vec![round * 4 + writer + 1; 200]).await.unwrap() })
            })
            .collect();
        for writer in writers {
            writer.await.unwrap();
        }
        let data = client.read(at, 200).await.unwrap();
        assert!(data.iter().all(|byte| *byte == data[0]), "one whole write, although it is two parts");
    }
}

/// A client whose writes are held back is gone; another one writes the same bytes and is answered.
#[tokio::test]
async fn a_write_that_was_held_back_never_comes_after_a_later_one_of_the_same_bytes() {
    for hangs_up in [false, true] {
        let cluster = FakeCluster::start(1, 1).await;
        let client = client(&cluster, patience());
        let usage = Usage::new();
        let connection = || {
            let volume = client.volume.volume();
            let session = volume.session(&CancellationToken::new());
            Arc::new(MeteredBackend::new(Arc::clone(volume), session, Arc::clone(&usage)))
        };
        let (first, second) = (connection(), connection());
        usage.throttle.set(Limits { iops: 20, bandwidth: 0 });
        let write = |of: &Arc<MeteredBackend>, offset: u64, fill: u8| {
            let of = Arc::clone(of);
            async move { of.write(ByteOffset(offset), vec![fill; 4096].into(), Durability::Policy).await }
        };
        let held: Vec<_> = (0..12).map(|nth| tokio::spawn(write(&first, nth * 4096, 1))).collect();
        while usage.throttle.waiting() < 5 {
            tokio::task::yield_now().await;
        }
        if hangs_up {
            first.hang_up();
        }
        write(&second, 11 * 4096, 2).await.unwrap();
        let ends: Vec<_> = futures::future::join_all(held).await.into_iter().map(Result::unwrap).collect();
        assert_eq!(ends[11].is_err(), hangs_up, "{:?}", ends[11]);
        assert!(client.read(11 * 4096, 4096).await.unwrap().iter().all(|byte| *byte == 2), "hangs up: {hangs_up}");
    }
}

#[tokio::test]
async fn an_open_volume_follows_its_name_and_place_and_its_requests_keep_theirs() {
    let cluster = FakeCluster::start(1, 1).await;
    let client = client(&cluster, patience());
    client.write(0, pattern(4096, 1)).await.unwrap();
    let volume = client.volume.volume();
    let other = Layout { vtree: VtreeId(10), ..volume.spec().layout };
    let renamed = VolumeSpec { name: "renamed".into(), layout: other, ..(*volume.spec()).clone() };
    let engine = client.engine.clone();
    let same = engine.volume(renamed, &client.keeper.auth(VOLUME));
    assert!(Arc::ptr_eq(&same, volume), "one volume for all, so that there is one order of writes");
    assert_eq!(volume.spec().name, "renamed");
    assert_eq!(client.read(0, 4096).await.unwrap(), vec![0; 4096], "the chunks of its new tree");
}

/// What random workers found wrong.
#[derive(Debug, Default, PartialEq, Eq)]
struct Findings {
    executed_twice: usize,
    below_low_water: usize,
    stale_reads: usize,
}

/// Workers, each alone on some blocks, write, abandon writes, read and compare, while everything goes wrong.
///
/// An abandoned write may or may not be executed, but never after a later write of the same block was acknowledged: from
/// then on reads return the later one.
async fn torture(seed: u64, faults: Faults, moves: bool) -> Findings {
    println!("PFLEX_SEED={seed}");
    let mut cluster = FakeCluster::start(2, seed).await;
    let client = Arc::new(client(&cluster, patience()));
    cluster.shared().faults = faults;
    let mut workers = tokio::task::JoinSet::new();
    for worker in 0..6 {
        workers.spawn(work(Arc::clone(&client), worker, ChaCha8Rng::seed_from_u64(seed ^ (worker << 32))));
    }
    let mut random = ChaCha8Rng::seed_from_u64(!seed);
    let mut stale_reads = 0;
    let mut ticks = tokio::time::interval(Duration::from_millis(30));
    loop {
        tokio::select! {
            joined = workers.join_next() => match joined {
                Some(found) => stale_reads += found.unwrap(),
                None => break,
            },
            _ = ticks.tick() => {
                if moves && random.random_range(0..3) == 0 {
                    let half = random.random_range(0..3);
                    let device = DeviceId(random.random_range(1..3));
                    // Of the halves of groups that doubled one gets ahead of the other.
                    cluster.promote_some(device, |pg| half == 2 || pg.index.0 / PG_COUNT % 2 == half);
                }
                if moves && random.random_range(0..15) == 0 && cluster.shared().pg_count < 4 * PG_COUNT {
                    cluster.double();
                }
                if random.random_range(0..3) == 0 {
                    cluster.publish();
                    client.told(cluster.shared().pg_count);
                }
                if moves && random.random_range(0..10) == 0 {
                    let device = DeviceId(random.random_range(1..3));
                    cluster.kill_device(device).await;
                    cluster.start_device(device).await;
                }
            }
        }
    }
    let shared = cluster.shared();
    println!("{} requests, {} sessions, {} groups", shared.requests, shared.sessions, shared.pg_count);
    Findings { executed_twice: shared.twice.len(), below_low_water: shared.below_low_water.len(), stale_reads }
}

async fn work(client: Arc<Client>, worker: u64, mut random: ChaCha8Rng) -> usize {
    let mut stale = 0;
    for round in 0..60_u64 {
        // Two blocks of its own, in two chunks, so that a write of both has two parts.
        let offset = (worker + 1) * (1 << 20) * 2 - BLOCK;
        let value =
            |version: u64| (worker * 1000 + round * 10 + version).to_le_bytes().repeat((2 * BLOCK / 8) as usize);
        if random.random() {
            // Abandoned: dropped somewhere on its way.
            let patience = Duration::from_micros(random.random_range(0..5_000));
            let _ = tokio::time::timeout(patience, client.write(offset, value(1))).await;
        }
        client.write(offset, value(2)).await.unwrap();
        for _ in 0..random.random_range(1..4) {
            stale += usize::from(client.read(offset, 2 * BLOCK).await.unwrap() != value(2));
            tokio::time::sleep(Duration::from_millis(random.random_range(0..15))).await;
        }
    }
    stale
}

fn seed() -> u64 {
    std::env::var("PFLEX_SEED")
        .map_or_else(|_| rand::rng().random(), |text| text.parse().expect("PFLEX_SEED is a number"))
}

fn everything() -> Faults {
    Faults {
        break_before: 10,
        break_after: 10,
        hold: 150,
        mute: 4,
        refuse: 30,
        unknown: 20,
        damage: 10,
        ..Faults::default()
    }
}

#[tokio::test]
async fn under_all_faults_nothing_runs_twice_and_no_old_write_comes_back() {
    assert_eq!(torture(seed(), everything(), true).await, Findings::default());
}

#[tokio::test]
async fn under_all_faults_on_several_threads_too() {
    let seed = seed();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let found = runtime.spawn(torture(seed, everything(), true)).await.unwrap();
    runtime.shutdown_background();
    assert_eq!(found, Findings::default());
}

#[tokio::test]
async fn planted_bug_an_sds_that_forgets_operation_ids_is_found() {
    let faults = Faults { forgetful: true, break_after: 100, ..everything() };
    assert!(torture(seed(), faults, false).await.executed_twice > 0);
}

#[tokio::test]
async fn planted_bug_an_sds_that_executes_what_a_newer_session_fenced_is_found() {
    let faults = Faults { ghosts: true, hold: 400, break_before: 40, ..everything() };
    assert!(torture(seed(), faults, false).await.stale_reads > 0);
}
