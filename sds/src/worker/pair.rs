//! Two copies with what they really run on: store, journal, metadata, replication core and wire format. Power fails for
//! both at any boundary of either disk, with whatever the disks then make of what was not synced. Both start again, one
//! of them leads, and then: every write that was answered is there, each chunk stands where some prefix of its writes put
//! it (I2), and the copies are equal, operation ids included (I4). In a writeback pool what was answered may be gone, but
//! nothing of what a FLUSH or FUA covered (S14).
//!
//! Only sockets, the loop and time are missing; `replication::sim` has those, with a model of the store.
//! `PAIR_SEED` runs one seed. The checks are shown to fail on lying disks and on a copy that is changed on its way.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use pflex_proto::{
    geometry::{BLOCK_SIZE, BLOCKS_PER_CHUNK},
    ids::{
        ChunkId, ChunkIndex, Epoch, Member, OperationId, PgId, PgIndex, PoolId, Revision, SdcId, VolatilityId,
        VolumeId, VtreeId,
    },
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::sync::mpsc;

use super::{command::Report, departed::Departed, effects::Fetched, testing, wire, worker::Worker};
use crate::{
    device::{Lie, MemoryDevice, SECTORS},
    payload::Payload,
    replication::{
        Body, ClientFlush, ClientKey, ClientWrite, Effect, Event, Extent, Message, Outcome, PgConfig, RequestId, Time,
        WriteKind,
    },
    store::{BlockRange, MemoryMeta, OperationSnapshot},
};

const CHUNKS: u64 = 6;
const CLIENT: ClientKey = ClientKey { sdc: SdcId(3), volume: VolumeId(4) };
const BLOCK: usize = BLOCK_SIZE as usize;
/// Boundaries at which power fails, of one life.
const CUTS: usize = 80;

/// What goes wrong on purpose.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Plant {
    /// The second disk does not do what it says.
    Lie(Lie),
    /// One write reaches the second copy with other bytes.
    Altered,
    /// The application takes the answer of a writeback pool for a promise.
    NoFlush,
}

fn chunk(index: u64) -> ChunkId {
    ChunkId { vtree: VtreeId(9), index: ChunkIndex(index), ..ChunkId::default() }
}

/// Two groups: the first copy leads one, the second the other.
fn pg(index: u64) -> PgId {
    PgId { pool: PoolId(1), index: PgIndex((index % 2) as u32) }
}

/// A write of one tag all over; tag 0 is zeros.
struct Write {
    request: RequestId,
    blocks: BlockRange,
    tag: u32,
    fua: bool,
    answered: bool,
    /// It survives a power cut.
    promised: bool,
}

/// One copy, without its loop.
struct Copy {
    worker: Worker,
    device: Arc<MemoryDevice>,
    meta: Arc<MemoryMeta>,
    fetched: mpsc::UnboundedReceiver<Fetched>,
    _reports: mpsc::Receiver<Report>,
}

impl Copy {
    fn open(n: u8, device: Arc<MemoryDevice>, meta: Arc<MemoryMeta>) -> Self {
        let (config, reports) = testing::config_of(n, device.clone(), &meta);
        let (_, commands) = mpsc::channel(1);
        let mut worker = Worker::new(config, Arc::default(), commands);
        let (sender, fetched) = mpsc::unbounded_channel();
        worker.fetched = sender;
        // Which configurations were acted in is the map's affair, and there is none here.
        worker.departed = Departed::new(worker.own.device, Revision(1), Duration::ZERO, Vec::new());
        Self { worker, device, meta, fetched, _reports: reports }
    }

    fn own(&self) -> Member {
        self.worker.own
    }
}

/// See the module.
struct Pair {
    random: ChaCha8Rng,
    copies: [Copy; 2],
    /// To each copy; nothing is lost on the way, power ends them both.
    wires: [VecDeque<Message<Payload>>; 2],
    now: Time,
    epoch: Epoch,
    /// Who leads the first group.
    first: usize,
    operation: u64,
    history: BTreeMap<ChunkId, Vec<Write>>,
    writeback: bool,
    /// FLUSHes under way, with the writes that they cover.
    flushes: BTreeMap<RequestId, Vec<RequestId>>,
    plant: Option<Plant>,
}

impl Pair {
    fn new(seed: u64, writeback: bool) -> Self {
        let copies = [1, 2].map(|n| {
            let (device, meta) = testing::disk_of(n);
            Copy::open(n, device, meta)
        });
        let history = (0..CHUNKS).map(|index| (chunk(index), Vec::new())).collect();
        let random = ChaCha8Rng::seed_from_u64(seed);
        Self { writeback, ..Self::of(random, copies, Epoch(1), 0, 0, history) }
    }

    fn of(
        random: ChaCha8Rng,
        copies: [Copy; 2],
        epoch: Epoch,
        first: usize,
        operation: u64,
        history: BTreeMap<ChunkId, Vec<Write>>,
    ) -> Self {
        // Long after any lease that an earlier life may have granted.
        let now = Time(copies[0].worker.time().0 + u64::try_from(Duration::from_secs(60).as_nanos()).unwrap());
        let (wires, flushes) = Default::default();
        Self { random, copies, wires, now, epoch, first, operation, history, writeback: false, flushes, plant: None }
    }

    fn leader(&self, of: PgId) -> usize {
        (self.first + of.index.get() as usize) % 2
    }

    /// Both lose theirs in each epoch.
    fn memory(&self) -> VolatilityId {
        VolatilityId(self.epoch.0)
    }

    /// Tells both copies who is in sync and goes on until both groups are served.
    async fn serve(&mut self) {
        let members = [self.copies[0].own(), self.copies[1].own()];
        for (copy, peer) in [(0, members[1]), (1, members[0])] {
            for of in [pg(0), pg(1)] {
                let primary = Some(members[self.leader(of)].device);
                let (epoch, in_sync, volatility) = (self.epoch, members.to_vec(), self.memory());
                let (writeback, forced, to_activate) = (self.writeback, false, false);
                let config = PgConfig { pg: of, epoch, primary, in_sync, volatility, writeback, forced, to_activate };
                let worker = &mut self.copies[copy].worker;
                worker.slot(of);
                worker.events.push_back((of, Event::PeerConnected(peer)));
                worker.events.push_back((of, Event::Config { config, joiners: Vec::new() }));
            }
        }
        for turn in 0.. {
            if turn > 1000 {
                let status =
                    |copy: &Copy| copy.worker.slots.values().map(|slot| slot.core.status()).collect::<Vec<_>>();
                panic!("epoch {}: the groups are not opened: {:?}", self.epoch, self.copies.each_ref().map(status));
            }
            self.everything().await;
            let served = |of: PgId| self.copies[self.leader(of)].worker.slots[&of].core.is_serving();
            if served(pg(0)) && served(pg(1)) {
                return;
            }
            for copy in &mut self.copies {
                copy.worker.tell_all(|| Event::Tick { jitter: 0 });
            }
        }
    }

    /// What is ready at one copy, decided and carried out; whether there was anything.
    fn pump(&mut self, at: usize) -> bool {
        let mut some = false;
        let copy = &mut self.copies[at];
        while let Ok(fetched) = copy.fetched.try_recv() {
            copy.worker.on_fetched(fetched);
        }
        if let Poll::Ready(durable) = copy.worker.store.poll_durable(&mut Context::from_waker(Waker::noop())) {
            copy.worker.on_durable(durable);
            some = true;
        }
        let mut effects = Vec::new();
        while let Some((of, event)) = self.copies[at].worker.events.pop_front() {
            some = true;
            let Worker { slots, leases, .. } = &mut self.copies[at].worker;
            let Some(slot) = slots.get_mut(&of) else { continue };
            slot.core.handle(self.now, leases, event, &mut effects);
            for effect in effects.drain(..) {
                match effect {
                    Effect::Send(message) => self.send(message),
                    Effect::Reply { request, outcome } => self.answered(request, &outcome),
                    Effect::Propose(_) | Effect::FetchConfig { .. } | Effect::RenewLeases => {}
                    other => self.copies[at].worker.carry_out(of, other),
                }
            }
        }
        some
    }

    /// Over the wire, as bytes.
    fn send(&mut self, mut message: Message<Payload>) {
        let to = usize::from(message.to == self.copies[1].own());
        if self.plant == Some(Plant::Altered)
            && to == 1
            && let Body::Write { write, .. } = &mut message.body
            && let WriteKind::Data(payload) = &mut write.kind
        {
            let altered: Vec<u8> = payload.data.iter().map(|byte| byte ^ 0x55).collect();
            *payload = Payload::computed(altered.into());
            self.plant = None;
        }
        let mut body = Vec::new();
        let payload = wire::encode(&message, &mut body);
        self.wires[to].push_back(wire::decode(&body, payload).expect("what is sent is understood"));
    }

    fn deliver(&mut self, to: usize) -> bool {
        let Some(message) = self.wires[to].pop_front() else { return false };
        self.copies[to].worker.events.push_back((message.pg, Event::Message(message)));
        self.pump(to);
        true
    }

    fn answered(&mut self, request: RequestId, outcome: &Outcome<Payload>) {
        let mut writes = self.history.values_mut().flatten();
        if let Some(covered) = self.flushes.remove(&request) {
            assert!(matches!(outcome, Outcome::Flushed { .. }), "its memory is the present one: {outcome:?}");
            return writes.filter(|write| covered.contains(&write.request)).for_each(|write| write.promised = true);
        }
        assert!(matches!(outcome, Outcome::Written { .. }), "there is space for all of it: {outcome:?}");
        let write = writes.find(|write| write.request == request).expect("it was asked for");
        write.answered = true;
        write.promised |= !self.writeback || write.fua || self.plant == Some(Plant::NoFlush);
    }

    /// FLUSH of one group: everything that was answered there before (S14).
    fn flush(&mut self, of: PgId) {
        self.operation += 1;
        let request = RequestId(self.operation);
        let writes = (0..CHUNKS).filter(|index| pg(*index) == of).flat_map(|index| &self.history[&chunk(index)]);
        let covered = writes.filter(|write| write.answered && !write.promised).map(|write| write.request).collect();
        self.flushes.insert(request, covered);
        let flush = ClientFlush { request, epoch: self.epoch, volatility: self.memory() };
        let leader = self.leader(of);
        self.copies[leader].worker.events.push_back((of, Event::Flush(flush)));
        self.pump(leader);
    }

    /// Until nothing is under way any more.
    async fn everything(&mut self) {
        loop {
            // Reads of the disk are tasks.
            tokio::task::yield_now().await;
            let mut moved = false;
            for at in [0, 1] {
                moved |= self.pump(at);
                moved |= self.deliver(at);
                moved |= self.copies[at].device.step(&mut self.random) | self.copies[at].meta.step();
            }
            if !moved && self.copies.iter().all(|copy| copy.worker.events.is_empty() && copy.fetched.is_empty()) {
                return;
            }
        }
    }

    fn write(&mut self, index: u64, blocks: BlockRange, tag: u32) {
        let (id, of) = (chunk(index), pg(index));
        let leader = self.leader(of);
        let worker = &mut self.copies[leader].worker;
        let creates_chunk = tag != 0 && !worker.store.has_unit(id);
        if creates_chunk && !worker.store.reserve(of, id, 0) {
            return;
        }
        self.operation += 1;
        let request = RequestId(self.operation);
        let bytes = tag.to_le_bytes().repeat(blocks.bytes() / 4);
        let fua = self.writeback && self.operation.is_multiple_of(7);
        let write = ClientWrite {
            request,
            epoch: self.epoch,
            client: CLIENT,
            operation: OperationId(self.operation),
            low_water: OperationId(self.operation.saturating_sub(200)),
            chunk: id,
            extent: Extent { offset: u32::from(blocks.first()) * BLOCK_SIZE, length: blocks.bytes() as u32 },
            kind: if tag == 0 { WriteKind::Zeroes } else { WriteKind::Data(Payload::computed(bytes.into())) },
            merge: false,
            creates_chunk,
            fua,
        };
        let write_of = Write { request, blocks, tag, fua, answered: false, promised: false };
        self.history.get_mut(&id).expect("a chunk of the test").push(write_of);
        worker.events.push_back((of, Event::Write(write)));
        self.pump(leader);
    }

    fn some_write(&mut self) {
        let count = match self.random.random_range(0..10) {
            0 => self.random.random_range(16..=64),
            1 => BLOCKS_PER_CHUNK as u16,
            _ => self.random.random_range(1..16),
        };
        let first = self.random.random_range(0..=BLOCKS_PER_CHUNK as u16 - count);
        let tag = if self.random.random_ratio(1, 8) { 0 } else { self.random.random() };
        let index = self.random.random_range(0..CHUNKS);
        self.write(index, BlockRange::new(first, count).expect("inside"), tag);
    }

    /// One thing happens.
    async fn act(&mut self) {
        self.now.0 += 1000;
        let at = self.random.random_range(0..2);
        match self.random.random_range(0..100) {
            0..3 if self.writeback => self.flush(pg(at as u64)),
            0..20 => self.some_write(),
            20..55 => drop(self.deliver(at)),
            55..80 => drop(self.copies[at].device.step(&mut self.random)),
            80..83 => drop(self.copies[at].meta.step()),
            _ => {
                tokio::task::yield_now().await;
                self.pump(at);
            }
        }
    }

    /// Rises whenever a disk was asked for something or did it.
    fn boundary(&self) -> u64 {
        self.copies.iter().map(|copy| copy.device.boundary() + copy.meta.queued() as u64).sum()
    }

    /// What both come back as if power failed now. This pair goes on.
    fn after_power_cut(&mut self) -> Self {
        let style = self.random.random_range(0..5);
        let mut random = ChaCha8Rng::seed_from_u64(self.random.random());
        let copies = [0, 1].map(|at| {
            let copy = &self.copies[at];
            let device = copy.device.after_power_cut(|page| match style {
                0 => [false; SECTORS],
                1 => [true; SECTORS],
                2 => [page.number < page.of / 2; SECTORS],
                3 => [page.number >= page.of / 2; SECTORS],
                _ => std::array::from_fn(|_| random.random()),
            });
            let meta = copy.meta.after_power_cut(random.random_range(0..=copy.meta.queued()));
            Copy::open(at as u8 + 1, device, meta)
        });
        let writes = |writes: &Vec<Write>| {
            let copied = writes.iter().map(|write| Write { ..*write });
            copied.collect()
        };
        let history = self.history.iter().map(|(id, all)| (*id, writes(all))).collect();
        let (epoch, first) = (Epoch(self.epoch.0 + 1), self.random.random_range(0..2));
        Self { writeback: self.writeback, ..Self::of(random, copies, epoch, first, self.operation, history) }
    }

    /// See the module.
    async fn check(&mut self) {
        for index in 0..CHUNKS {
            let id = chunk(index);
            let mut content = Vec::new();
            for copy in &mut self.copies {
                let read = copy.worker.store.read(id, BlockRange::WHOLE).await.expect("what is there can be read");
                content.push((read.version, read.data));
            }
            let (theirs, own) = (content.pop().expect("two copies"), content.pop().expect("two copies"));
            assert_eq!(own.0, theirs.0, "I4: chunk {index} has one version");
            assert!(own.1 == theirs.1, "I4: chunk {index} is the same on both copies");
            let tags: Vec<_> = own.1.chunks_exact(BLOCK).map(tag).collect();
            let writes = self.history.get_mut(&id).expect("a chunk of the test");
            let promised = writes.iter().rposition(|write| write.promised).map_or(0, |last| last + 1);
            let mut expected = vec![0; BLOCKS_PER_CHUNK as usize];
            let mut stands = (promised == 0 && tags == expected).then_some(0);
            for (count, write) in (1..).zip(&*writes) {
                write.blocks.blocks().for_each(|block| expected[usize::from(block)] = write.tag);
                stands = stands.or((count >= promised && tags == expected).then_some(count));
            }
            let Some(stands) = stands else {
                panic!("I2: chunk {index} is not what its first {promised} writes made it, or some more");
            };
            // What nobody was promised and power took is gone for good.
            writes.truncate(stands);
        }
        for of in [pg(0), pg(1)] {
            let [own, theirs] = [0, 1].map(|at| sorted(self.copies[at].worker.store.operations(of)));
            assert_eq!(own, theirs, "I4: the operation ids of {of}");
        }
    }
}

fn sorted(operations: OperationSnapshot) -> Vec<String> {
    let mut all: Vec<_> = operations.entries.iter().map(|entry| format!("{entry:?}")).collect();
    all.sort_unstable();
    all
}

fn tag(block: &[u8]) -> u32 {
    assert!(block[4..] == block[..BLOCK - 4], "a torn block");
    u32::from_le_bytes(block[..4].try_into().expect("four bytes"))
}

async fn live(seed: u64, writeback: bool, plant: Option<Plant>) {
    let mut pair = Pair::new(seed, writeback);
    pair.serve().await;
    // Enough that the journals are being carried to their place already.
    for index in 0..250 {
        pair.write(index % CHUNKS, BlockRange::new((index % 16) as u16 * 15, 15).expect("inside"), index as u32 + 1);
        pair.everything().await;
    }
    for copy in &pair.copies {
        copy.device.set_manual(true);
        copy.meta.set_manual(true);
    }
    pair.plant = plant;
    if let Some(Plant::Lie(lie)) = plant {
        pair.copies[1].device.set_lie(lie);
    }
    let (mut cuts, mut last) = (0, pair.boundary());
    while cuts < CUTS {
        pair.act().await;
        if pair.boundary() == std::mem::replace(&mut last, pair.boundary()) {
            continue;
        }
        cuts += 1;
        let mut after = pair.after_power_cut();
        after.serve().await;
        after.check().await;
        // They are of use again, and go on from there.
        (0..CHUNKS).for_each(|index| after.write(index, BlockRange::new(7, 9).expect("inside"), 77));
        after.everything().await;
        assert!(after.history.values().all(|writes| writes.last().is_some_and(|write| write.answered)));
        if writeback {
            [pg(0), pg(1)].into_iter().for_each(|of| after.flush(of));
            after.everything().await;
            assert!(after.flushes.is_empty(), "a FLUSH hangs");
        }
        after.check().await;
    }
    pair.everything().await;
    assert!(pair.history.values().flatten().all(|write| write.answered) && pair.flushes.is_empty(), "nothing hangs");
    assert!(pair.copies.iter().all(|copy| copy.worker.store.stats().checkpoints > 0), "the journals were carried over");
}

fn run(seed: u64, writeback: bool, plant: Option<Plant>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(tokio::task::LocalSet::new().run_until(live(seed, writeback, plant)));
}

#[test]
fn power_cut_at_both_copies_loses_nothing_answered_and_leaves_them_equal() {
    let given = std::env::var("PAIR_SEED").ok().and_then(|seed| seed.parse().ok());
    for seed in given.map_or(vec![1, rand::random()], |seed| vec![seed]) {
        println!("PAIR_SEED={seed}");
        run(seed, false, None);
        run(seed, true, None);
    }
}

#[test]
fn lying_disks_and_altered_copies_are_noticed() {
    for (writeback, plant) in [
        (false, Plant::Lie(Lie::WriteDurable)),
        (false, Plant::Lie(Lie::Sync)),
        (false, Plant::Altered),
        (true, Plant::Lie(Lie::WriteDurable)),
        (true, Plant::NoFlush),
    ] {
        let noticed = (1..=4).any(|seed| std::panic::catch_unwind(|| run(seed, writeback, Some(plant))).is_err());
        assert!(noticed, "{plant:?} goes unnoticed (writeback: {writeback})");
    }
}
