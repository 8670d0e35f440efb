//! Random work on a device that completes in any order, crashes at any point, and a model that says what may be left:
//! every chunk stands where some prefix of its changes put it, with exactly their operation ids, and no shorter a prefix
//! than was reported durable. Data, versions and ids are compared; every read in between too.
//!
//! `STORE_SEED` runs one seed, `STORE_SEEDS` so many. The checker is shown to fail on planted bugs and lying disks.

use std::{collections::BTreeMap, panic};

use rand::{RngExt, SeedableRng, seq::IndexedRandom};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::device::{Lie, OpKind};

const UNITS: u32 = 7;
const CHUNKS: u64 = 9;
const LIVES: usize = 4;
const STEPS: usize = 350;

/// A chunk as it should be after some change.
#[derive(Clone, PartialEq, Debug)]
struct Image {
    /// None: no such chunk; none inside: unsynced.
    state: Option<Option<Version>>,
    tags: Vec<u32>,
    operations: Vec<(OperationId, Version)>,
}

impl Image {
    fn absent() -> Self {
        Self { state: None, tags: vec![0; usize::from(WHOLE)], operations: Vec::new() }
    }

    fn put(&mut self, run: &Run, tag: u32) {
        run.blocks.blocks().for_each(|block| self.tags[usize::from(block)] = tag);
    }
}

/// All images a chunk went through, each with the ticket of the change; the last is what reads must see.
struct History(Vec<(Ticket, Image)>);

impl History {
    fn now(&self) -> &Image {
        &self.0.last().unwrap().1
    }
}

pub(super) struct World {
    pub(super) random: ChaCha8Rng,
    pub(super) device: Arc<MemoryDevice>,
    pub(super) meta: Arc<MemoryMeta>,
    store: Store,
    histories: BTreeMap<ChunkId, History>,
    durable: BTreeMap<PgId, Ticket>,
    sequence: u64,
    low_water: OperationId,
    tag: u32,
    reads: Vec<(Read, Vec<u32>, Option<Version>)>,
    lie: Option<Lie>,
    refused: u64,
    pub(super) checkpoints: u64,
    /// Placement groups; they double now and then.
    groups: u32,
    /// Power fails while they do.
    cut_short: bool,
    sorted: u64,
}

const MOST_GROUPS: u32 = 16;

impl World {
    pub(super) fn new(seed: u64, lie: Option<Lie>) -> Self {
        let (device, meta) = formatted(UNITS);
        let (store, _) = Store::open(device.clone(), meta.clone(), CONFIG).unwrap();
        let histories = (0..CHUNKS).map(|n| (chunk(n), History(vec![(Ticket(0), Image::absent())]))).collect();
        let world = Self {
            random: ChaCha8Rng::seed_from_u64(seed),
            device,
            meta,
            store,
            histories,
            durable: BTreeMap::new(),
            sequence: 0,
            low_water: OperationId(0),
            tag: 0,
            reads: Vec::new(),
            lie,
            refused: 0,
            checkpoints: 0,
            groups: 2,
            cut_short: false,
            sorted: 0,
        };
        world.let_loose();
        world
    }

    fn pg_of(&self, chunk: ChunkId) -> PgId {
        pg(geometry_of(chunk, self.groups))
    }

    fn let_loose(&self) {
        self.device.set_manual(true);
        self.meta.set_manual(true);
        if let Some(lie) = self.lie {
            self.device.set_lie(lie);
        }
    }

    fn live(&mut self) {
        let kinds = [None, Some(OpKind::WriteDurable), Some(OpKind::Write), Some(OpKind::Sync), Some(OpKind::Read)];
        self.device.set_slow(*kinds.choose(&mut self.random).unwrap());
        // Half of the lives end while a checkpoint's commit is on its way: the narrowest window there is.
        let hunts = self.random.random::<bool>();
        for step in 0..2 * STEPS {
            if step >= STEPS && (!hunts || self.meta.queued() > 0) {
                return;
            }
            if step == STEPS {
                self.store.checkpoint.want();
            }
            self.act();
            if self.random.random_ratio(1, 200) && self.groups < MOST_GROUPS {
                self.double();
            }
            if self.cut_short {
                return;
            }
            if step < STEPS && self.random.random_ratio(1, 60) {
                self.drain();
            }
        }
    }

    /// One thing happens.
    pub(super) fn act(&mut self) {
        match self.random.random_range(0..100) {
            0..35 if self.store.stats().pending_changes < 40 => self.change(),
            35..45 => self.read(),
            45..85 => drop(self.device.step(&mut self.random)),
            85..90 => drop(self.meta.step()),
            90..92 => self.store.checkpoint.want(),
            _ => self.poll(),
        }
    }

    /// The groups double, once or twice at once. Some lives end meanwhile.
    fn double(&mut self) {
        let into = Sorting { pool: PoolId(1), pg_count: self.groups << self.random.random_range(1..=2) };
        let cut = self.random.random_ratio(1, 3).then(|| self.random.random_range(0..60));
        let Self { store, random, device, meta, .. } = self;
        let mut sorting = Box::pin(store.sort(into, self.groups, &[]));
        let context = &mut Context::from_waker(Waker::noop());
        for step in 0..20_000 {
            if let Poll::Ready(durable) = sorting.as_mut().poll(context) {
                drop(sorting);
                for durable in durable.unwrap() {
                    self.durable.insert(durable.pg, durable.through);
                }
                // What was asked for is durable, whatever group it is in now.
                let all = self.durable.values().max().copied().unwrap_or_default();
                self.durable = (0..into.pg_count).map(|index| (pg(index), all)).collect();
                let pgs: Vec<_> = self.store.chunks.iter().map(|(id, chunk)| (*id, chunk.pg)).collect();
                self.groups = into.pg_count;
                self.sorted += 1;
                return assert!(
                    pgs.into_iter().all(|(id, group)| group == self.pg_of(id)),
                    "each chunk is in its group"
                );
            }
            if cut == Some(step) {
                self.cut_short = true;
                return;
            }
            // Unevenly: a batch of rows may be on its way for long.
            device.step(random);
            if random.random_ratio(1, 4) {
                meta.step();
            }
        }
        panic!("the doubling hangs");
    }

    /// A quiet moment: everything completes, and nothing may hang.
    fn drain(&mut self) {
        for _ in 0..20_000 {
            let (stepped, committed) = (self.device.step(&mut self.random), self.meta.step());
            self.poll();
            if !stepped && !committed && self.device.queued() == 0 && self.store.stats().pending_changes == 0 {
                return;
            }
        }
        panic!("it hangs: {:?}", self.store.stats());
    }

    fn poll(&mut self) {
        for durable in poll_durable(&mut self.store).unwrap() {
            let before = self.durable.insert(durable.pg, durable.through);
            assert!(before < Some(durable.through), "reports only move on");
        }
        let context = &mut Context::from_waker(Waker::noop());
        self.reads.retain_mut(|(read, expected, version)| match std::pin::Pin::new(read).poll(context) {
            Poll::Pending => true,
            Poll::Ready(result) => {
                let result = result.expect("no read fails here");
                assert_eq!(&tags(&result.data), expected, "a read sees all changes before it and none after");
                assert_eq!(result.version, *version);
                false
            }
        });
    }

    fn read(&mut self) {
        let chunk = chunk(self.random.random_range(0..CHUNKS));
        let range = self.any_range();
        let image = self.histories[&chunk].now();
        let expected = range.blocks().map(|block| image.tags[usize::from(block)]).collect();
        let version = image.state.flatten();
        self.reads.push((self.store.read(chunk, range), expected, version));
    }

    fn any_range(&mut self) -> BlockRange {
        let count = *[1, 1, 2, 8, 16, 40, 255, 256, 256].choose(&mut self.random).unwrap();
        // Few different places, so that changes meet.
        let first = self.random.random_range(0..=(256 - count) / 8) * 8;
        range(first.min(256 - count), count)
    }

    fn any_run(&mut self) -> (Run, u32) {
        let range = self.any_range();
        self.tag += 1;
        let tag = if self.random.random_ratio(1, 6) { 0 } else { self.tag };
        (run(range.first(), range.count(), tag), tag)
    }

    fn change(&mut self) {
        let id = chunk(self.random.random_range(0..CHUNKS));
        let group = self.pg_of(id);
        let mut image = self.histories[&id].now().clone();
        let (run, tag) = self.any_run();
        self.sequence += 1;
        let version = version(self.sequence);
        let result = match (image.state, self.random.random_range(0..20)) {
            (Some(None), 0..14) => {
                image.put(&run, tag);
                self.store.write_blocks(group, id, vec![run])
            }
            (Some(None), _) => {
                image.state = Some(Some(version));
                self.store.set_version(group, id, Some(version))
            }
            (_, 0) => {
                image.state = Some(None);
                self.store.mark_unsynced(group, id)
            }
            (Some(_), 1) => {
                image = Image::absent();
                self.store.fix_chunk(Fix { pg: group, chunk: id, version: None, runs: vec![], operations: vec![] })
            }
            (_, 2..4) => {
                // The primary wins in both directions: an older version is right too.
                let fixed =
                    Version { epoch: Epoch(1), sequence: Sequence(self.random.random_range(1..=self.sequence)) };
                let kept = image.operations.iter().copied().filter(|_| self.random.random()).collect::<Vec<_>>();
                image.put(&run, tag);
                (image.state, image.operations) = (Some(Some(fixed)), kept.clone());
                let entry = |(id_, version)| Operation { client: CLIENT, id: id_, version, chunk: id };
                let operations = kept.into_iter().map(entry).collect();
                self.store.fix_chunk(Fix { pg: group, chunk: id, version: Some(fixed), runs: vec![run], operations })
            }
            _ => {
                image.put(&run, tag);
                image.state = Some(Some(version));
                image.operations.push((OperationId(self.sequence), version));
                if self.random.random_ratio(1, 10) {
                    self.low_water = OperationId(self.sequence.saturating_sub(30));
                }
                if self.random.random_ratio(1, 4) {
                    self.store.reserve(group, id, 0);
                }
                let mut write = write(group, id, self.sequence, run);
                write.origin.low_water = self.low_water;
                write.lane = if self.random.random() { Lane::Client } else { Lane::Replication };
                self.store.apply(write)
            }
        };
        match result {
            Ok(ticket) => self.histories.get_mut(&id).unwrap().0.push((ticket, image)),
            Err(ApplyError::NoSpace { .. }) => {
                self.refused += 1;
                self.store.release_reservations(group);
            }
            Err(error) => panic!("{error}"),
        }
        let entry = self.store.chunk(id).map(|entry| entry.version);
        assert_eq!(entry, self.histories[&id].now().state, "visible at once, and unchanged when refused");
    }

    /// Opens what a power cut left and compares it with the model; returns which of its images each chunk has.
    pub(super) fn recover(&self, device: &Arc<MemoryDevice>, meta: &Arc<MemoryMeta>) -> (Store, Vec<(ChunkId, usize)>) {
        let before = self.store.superblock().incarnation;
        let (mut store, report) = Store::open(device.clone(), meta.clone(), CONFIG).expect("it opens");
        assert!(!report.emptied);
        assert_eq!(report.superblock.incarnation, before.next(), "each life has its own incarnation");
        let mut entries: Vec<_> = report.pgs.iter().flat_map(|pg| pg.operations.entries.clone()).collect();
        let mut kept = Vec::new();
        for (id, history) in &self.histories {
            let mut operations: Vec<_> = entries.extract_if(.., |entry| entry.chunk == *id).collect();
            // Ids below the low-water mark may be there or not.
            operations.retain(|entry| entry.id >= self.low_water);
            operations.sort();
            let state = store.chunk(*id).map(|entry| entry.version);
            let data = read_now(&mut store, *id, BlockRange::WHOLE).unwrap_or_else(|error| panic!("{error}"));
            let found = Image {
                state,
                tags: tags(&data.data),
                operations: operations.into_iter().map(|entry| (entry.id, entry.version)).collect(),
            };
            let durable = self.durable.get(&self.pg_of(*id)).copied().unwrap_or_default();
            let least = history.0.iter().rposition(|(ticket, _)| *ticket <= durable).unwrap();
            let is_found = |image: &Image| {
                let mut operations = image.operations.clone();
                operations.retain(|(id, _)| *id >= self.low_water);
                operations.sort();
                *image == Image { operations: image.operations.clone(), ..found.clone() }
                    && operations == found.operations
            };
            let Some(at) = history.0[least..].iter().rposition(|(_, image)| is_found(image)) else {
                let wanted = &history.0[least].1;
                let differ = (0..256).find(|block| wanted.tags[*block] != found.tags[*block]);
                panic!(
                    "chunk {id}: no prefix of {} changes, {least} durable, matches; version {:?} found, {:?} durable; first \
                     differing block {differ:?}; ids {:?} found, {:?} durable",
                    history.0.len(),
                    found.state,
                    wanted.state,
                    found.operations,
                    wanted.operations
                );
            };
            kept.push((*id, least + at));
        }
        assert!(entries.is_empty(), "ids of no known chunk: {entries:?}");
        for (group, through) in self.durable.iter().filter(|_| self.sorted == 0) {
            assert!(*through == Ticket(0) || report.pgs.iter().any(|pg| pg.pg == *group), "{group} is known");
        }
        (store, kept)
    }

    /// Power fails at this very point; the model learns where each chunk was left.
    fn crash(&mut self) {
        self.checkpoints += self.store.stats().checkpoints;
        self.reads.clear();
        let survive = self.random.random_range(0..2);
        let (device, meta) = (self.device.crash(&mut self.random), self.meta.crash(survive));
        let (store, kept) = self.recover(&device, &meta);
        (self.device, self.meta, self.store) = (device, meta, store);
        self.groups = self.store.sorting().map_or(self.groups, |sorting| sorting.pg_count);
        self.cut_short = false;
        for (id, at) in kept {
            let history = self.histories.get_mut(&id).unwrap();
            history.0 = vec![(Ticket(0), history.0[at].1.clone())];
        }
        self.durable.clear();
        self.let_loose();
    }
}

fn geometry_of(chunk: ChunkId, groups: u32) -> u32 {
    pflex_proto::geometry::pg_of(chunk.vtree, chunk.index, groups).0
}

fn simulate(seed: u64, lie: Option<Lie>) -> [u64; 3] {
    let mut world = World::new(seed, lie);
    for _ in 0..LIVES {
        world.live();
        world.crash();
    }
    world.drain();
    world.device.set_manual(false);
    world.meta.set_manual(false);
    let World { store, device, meta, histories, refused, checkpoints, sorted, .. } = world;
    close(store).unwrap();
    let (mut store, report) = Store::open(device, meta, CONFIG).unwrap();
    assert_eq!(report.replayed_groups, 0, "a closed store has nothing to replay");
    for (id, history) in histories {
        let data = read_now(&mut store, id, BlockRange::WHOLE).unwrap();
        assert_eq!(tags(&data.data), history.now().tags, "after a close everything is there");
    }
    [refused, checkpoints, sorted]
}

pub(super) fn seeds(default: u64) -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    match number("STORE_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("STORE_SEEDS").unwrap_or(default),
    }
}

#[test]
fn a_crash_at_any_point_loses_nothing_that_was_reported_durable() {
    let mut counts = [0; 3];
    for seed in seeds(16) {
        let result = panic::catch_unwind(|| simulate(seed, None));
        let Ok(more) = result else { panic!("STORE_SEED={seed} fails") };
        counts = std::array::from_fn(|which| counts[which] + more[which]);
    }
    let [refused, checkpoints, sorted] = counts;
    println!("{refused} refused for space, {checkpoints} checkpoints, {sorted} times more groups");
    if std::env::var_os("STORE_SEED").is_none() {
        assert!(
            refused > 0 && checkpoints > 0 && sorted > 0,
            "the test reaches full devices, checkpoints and doublings"
        );
    }
}

/// Every lie of a disk and every planted bug must be noticed by some seed.
pub(super) fn all_are_noticed<T>(seeds: u64, bugs: &[Bug], run: impl Fn(u64, Option<Lie>) -> T + panic::RefUnwindSafe) {
    let is_noticed = |lie| {
        let hook = panic::take_hook();
        panic::set_hook(Box::new(|_| {}));
        let noticed = (0..seeds).any(|seed| panic::catch_unwind(|| run(seed, lie)).is_err());
        panic::set_hook(hook);
        noticed
    };
    for lie in [Lie::WriteDurable, Lie::Sync] {
        assert!(is_noticed(Some(lie)), "{lie:?}");
    }
    for bug in bugs.iter().copied() {
        PLANTED.set(Some(bug));
        let noticed = is_noticed(None);
        PLANTED.set(None);
        assert!(noticed, "{bug:?}");
    }
}

const ALL_BUGS: [Bug; 5] = [
    Bug::PersistVisibleOperations,
    Bug::OverwriteReferenced,
    Bug::SkipQuarantine,
    Bug::SortBesideCheckpoint,
    Bug::SortCountAlone,
];

#[test]
fn the_checker_notices_lying_disks_and_planted_bugs() {
    all_are_noticed(60, &ALL_BUGS, simulate);
}
