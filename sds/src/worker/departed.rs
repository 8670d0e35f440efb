//! Copies that lost their place: this device holds data of a group that belongs to other devices now.
//!
//! Pure core ([`Departed`]): map, time and what is held come in. A copy goes in this order, and a crash leaves it either
//! whole with its row or without row:
//! 1. a map as new as this device's registration says that the group is neither placed nor in sync here, somebody serves
//!    it, and all its copies are in sync (else the old copy is the last resort of a person, unless its space is needed);
//!    that for [`GRACE`];
//! 2. the row of its configuration is deleted, durably: from here on a restore from backup does not count it (S19);
//! 3. its chunks go a few at a time ([`PURGE_BATCH`]), then all that is known of the group.
//!
//! Data without a row is therefore half a copy, also after a restart: it is never acted with. Configurations of the group
//! wait until nothing is left of it; then it may join, as an empty copy. The group's core stays: it knows which leases were
//! granted. While a restore is not over nothing goes (S19), and after it a copy of before stays for a day: a person may find
//! out late that the wrong backup was taken.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use pflex_common::{clock::MonotonicTime, map::ClusterMap};
use pflex_proto::{
    ids::{ClusterGeneration, DeviceId, PgId, Revision},
    pg::PgConfig,
};

use super::{orphans::PURGE_BATCH, worker::Worker};
use crate::{
    replication::{Event, RoleName},
    store::{Dropped, MetaError},
};

/// How long maps must say so: a group that is given back meanwhile is filled from what is here.
pub(crate) const GRACE: Duration = Duration::from_secs(60);
/// The same for a copy of before a restore from backup.
const GRACE_AFTER_RESTORE: Duration = Duration::from_secs(24 * 3600);
/// Of a device's units: with fewer free ones the space of old copies is needed.
const PRESSED_BELOW: u32 = 16;

/// How far a copy is on its way out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// It has lost its place.
    Away { since: MonotonicTime },
    /// Its row is being deleted; its data is whole.
    Forgetting,
    /// It has no row, and some of its data.
    Dropping,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Departed {
    own: DeviceId,
    /// The revision of the map that has this process's registration.
    registered: Revision,
    grace: Duration,
    stages: BTreeMap<PgId, Stage>,
}

impl Departed {
    /// `rests`: groups of which the store found data and no row when it was opened.
    pub(super) fn new(own: DeviceId, registered: Revision, grace: Duration, rests: Vec<PgId>) -> Self {
        let stages = rests.into_iter().map(|pg| (pg, Stage::Dropping)).collect();
        Self { own, registered, grace, stages }
    }

    /// Whether no configuration of the group may be acted in yet.
    pub(super) fn withholds(&self, pg: PgId) -> bool {
        self.stages.get(&pg) == Some(&Stage::Dropping)
    }

    /// Looks at what is held, each group with the generation of its newest configuration here. Returns those whose rows are
    /// to be deleted now.
    pub(super) fn look(
        &mut self,
        now: MonotonicTime,
        map: &ClusterMap,
        held: &BTreeMap<PgId, ClusterGeneration>,
        pressed: bool,
    ) -> Vec<PgId> {
        let own = self.own;
        let trusted = self.trusts(map);
        // A copy that has its place again stays as it is, unless it is half gone.
        self.stages.retain(|pg, stage| {
            let given = map.pgs.get(pg).is_none_or(|config| belongs(own, config));
            *stage == Stage::Dropping || !given && trusted && held.contains_key(pg)
        });
        if !trusted {
            return Vec::new();
        }
        let mut due = Vec::new();
        for (pg, generation) in held {
            let Some(config) = map.pgs.get(pg).filter(|config| !belongs(own, config)) else { continue };
            let grace = if *generation < map.generation { self.grace.max(GRACE_AFTER_RESTORE) } else { self.grace };
            let stage = self.stages.entry(*pg).or_insert(Stage::Away { since: now });
            let Stage::Away { since } = *stage else { continue };
            let whole = config.in_sync.len() >= config.replicas.len();
            if config.primary.is_some() && (whole || pressed) && now.since(since) >= grace {
                *stage = Stage::Forgetting;
                due.push(*pg);
            }
        }
        due
    }

    /// The group is given to this device again, before anything of its copy is gone.
    pub(super) fn given(&mut self, pg: PgId) {
        if !self.withholds(pg) {
            self.stages.remove(&pg);
        }
    }

    /// Data without a row, found when the groups doubled.
    pub(super) fn is_rest(&mut self, pg: PgId) {
        self.stages.insert(pg, Stage::Dropping);
    }

    /// Groups with a copy that has lost its place.
    pub(super) fn groups(&self) -> impl Iterator<Item = PgId> {
        self.stages.keys().copied()
    }

    /// Not yet: its core still acts in an earlier configuration.
    fn postpone(&mut self, pg: PgId, now: MonotonicTime) {
        self.stages.insert(pg, Stage::Away { since: now });
    }

    /// The row is gone from the disk. Whether the data goes next: else the group was given back meanwhile.
    fn forgotten(&mut self, pg: PgId) -> bool {
        match self.stages.get_mut(&pg) {
            Some(stage @ Stage::Forgetting) => {
                *stage = Stage::Dropping;
                true
            }
            Some(Stage::Away { .. } | Stage::Dropping) | None => false,
        }
    }

    /// A group of whose data some may go now.
    fn next(&self, map: &ClusterMap) -> Option<PgId> {
        // A member of an in-sync set is never destroyed, whatever the rows say: it is out of service, and taken out.
        let in_sync = |pg: &PgId| map.pgs.get(pg).is_some_and(|config| config.member(self.own).is_some());
        let mut dropping = self.stages.iter().filter(|(_, stage)| **stage == Stage::Dropping).map(|(pg, _)| *pg);
        if self.trusts(map) { dropping.find(|pg| !in_sync(pg)) } else { None }
    }

    /// Nothing is left of it.
    fn dropped(&mut self, pg: PgId) {
        self.stages.remove(&pg);
    }

    fn trusts(&self, map: &ClusterMap) -> bool {
        map.revision != Revision(0) && map.revision >= self.registered && !map.recovering
    }
}

fn belongs(own: DeviceId, config: &PgConfig) -> bool {
    config.replicas.contains(&own) || config.member(own).is_some()
}

/// Groups of which the store has something, by what is on disk: data and rows.
pub(super) fn rests(data: impl Iterator<Item = PgId>, rows: impl Iterator<Item = PgId>) -> Vec<PgId> {
    let rows: BTreeSet<PgId> = rows.collect();
    data.filter(|pg| !rows.contains(pg)).collect()
}

impl Worker {
    /// Looks for copies that have lost their place, and begins to forget those whose grace is over.
    pub(super) fn look_for_departed(&mut self, now: MonotonicTime) {
        let rows: HashMap<PgId, ClusterGeneration> = self.memory.rows().collect();
        // A row without data goes as well; data without a row is on its way out already.
        let held = rows.into_iter().collect::<BTreeMap<_, _>>();
        let stats = self.store.stats();
        let pressed = stats.units_available < stats.units_total / PRESSED_BELOW;
        let map = std::sync::Arc::clone(&self.map);
        for pg in self.departed.look(now, &map, &held, pressed) {
            let epoch = map.pgs.get(&pg).map(|config| config.epoch);
            // What is made durable first may be on its way still (S19); then the core has not left its role yet.
            let left = self.slots.get(&pg).is_none_or(|slot| {
                let status = slot.core.status();
                Some(status.epoch) == epoch && matches!(status.role, RoleName::Joiner | RoleName::Outside)
            });
            if !left {
                self.departed.postpone(pg, now);
                continue;
            }
            tracing::info!(%pg, device = %self.own.device, "the group belongs to other devices now; its copy here goes");
            self.memory.forget(pg);
            let forgotten = self.forgotten.clone();
            // Nobody receives it when the loop has ended.
            self.store.forget_config(pg, Box::new(move |result| drop(forgotten.send((pg, result)))));
        }
    }

    /// The row of a departed copy is gone, or the database is.
    pub(super) fn on_forgotten(&mut self, (pg, result): (PgId, Result<(), MetaError>)) {
        match result {
            Ok(()) => {
                if self.departed.forgotten(pg) {
                    // A core that is made later begins with nothing.
                    self.recovered.remove(&pg);
                }
            }
            Err(error) => self.store.could_not_remember(error),
        }
    }

    /// Frees some space of a departed copy. The caller has seen that nothing waits for the journal.
    pub(super) fn drop_departed(&mut self) {
        let Some(pg) = self.departed.next(&self.map) else { return };
        match self.store.drop_some(pg, PURGE_BATCH) {
            Ok(Dropped::Some | Dropped::Last) => {}
            Ok(Dropped::All) => {
                tracing::info!(%pg, device = %self.own.device, "nothing is left of a copy that lost its place");
                self.recovered.remove(&pg);
                self.departed.dropped(pg);
                self.events.push_back((pg, Event::Emptied));
                // What was withheld.
                if let Some(config) = self.map.pgs.get(&pg).cloned() {
                    self.configure_if_concerned(pg, &config);
                    self.remember();
                }
            }
            Err(error) => tracing::warn!(%pg, %error, "a copy that lost its place is not dropped yet"),
        }
    }
}

#[cfg(test)]
mod tests {
    use pflex_proto::pb;

    use super::*;

    const GRACE: Duration = Duration::from_secs(60);

    fn map(revision: u64, generation: u64, replicas: &[u32], in_sync: &[u32]) -> ClusterMap {
        let member = |device: &u32| pb::Member { device_id: *device, sds_id: *device, incarnation: 1 };
        let pg = pb::Pg {
            id: Some(group().into()),
            epoch: revision,
            primary_device_id: in_sync.first().copied().unwrap_or(0),
            in_sync: in_sync.iter().map(member).collect(),
            replica_device_ids: replicas.to_vec(),
            ..Default::default()
        };
        ClusterMap::from_full(pb::ClusterMap {
            cluster_id: vec![1; 16],
            cluster_generation: generation,
            revision,
            pgs: vec![pg],
            ..Default::default()
        })
        .unwrap()
    }

    fn group() -> PgId {
        PgId { pool: pflex_proto::ids::PoolId(1), index: pflex_proto::ids::PgIndex(7) }
    }

    fn at(seconds: u64) -> MonotonicTime {
        MonotonicTime::from_start(Duration::from_secs(seconds))
    }

    fn departed() -> Departed {
        Departed::new(DeviceId(1), Revision(10), GRACE, Vec::new())
    }

    fn held(generation: u64) -> BTreeMap<PgId, ClusterGeneration> {
        BTreeMap::from([(group(), ClusterGeneration(generation))])
    }

    /// Whether a copy goes after `seconds` of this map.
    fn goes(map: &ClusterMap, generation: u64, seconds: u64, pressed: bool) -> bool {
        let mut departed = departed();
        departed.look(at(0), map, &held(generation), pressed);
        let due = departed.look(at(seconds), map, &held(generation), pressed);
        assert_eq!(departed.next(map), None, "no data goes before the row");
        let gone = due == [group()];
        assert_eq!(departed.forgotten(group()), gone);
        assert_eq!(departed.next(map), gone.then(group));
        gone
    }

    #[test]
    fn a_copy_goes_when_a_new_map_says_for_long_enough_that_it_has_no_place() {
        assert!(goes(&map(10, 1, &[2, 3], &[2, 3]), 1, 60, false));
        assert!(!goes(&map(10, 1, &[2, 3], &[2, 3]), 1, 59, false), "not yet");
        assert!(!goes(&map(9, 1, &[2, 3], &[2, 3]), 1, 60, false), "older than the registration");
        assert!(!goes(&map(10, 1, &[1, 3], &[3]), 1, 60, true), "it may join");
        assert!(!goes(&map(10, 1, &[2, 3], &[1, 2]), 1, 60, true), "it is in sync, on its way elsewhere");
        assert!(!goes(&map(10, 1, &[2, 3], &[]), 1, 60, true), "nobody serves the group");
        assert!(!goes(&map(10, 1, &[2, 3], &[2]), 1, 600, false), "the group is not whole");
        assert!(goes(&map(10, 1, &[2, 3], &[2]), 1, 60, true), "its space is needed");
        assert!(!goes(&ClusterMap::default(), 1, 60, true), "there is no map yet");
        let recovering = ClusterMap { recovering: true, ..map(10, 1, &[2, 3], &[2, 3]) };
        assert!(!goes(&recovering, 1, 60, true), "S19");
    }

    #[test]
    fn a_copy_of_before_a_restore_stays_for_a_day() {
        let restored = map(1 << 41, 2, &[2, 3], &[2, 3]);
        assert!(!goes(&restored, 1, 3_600, false));
        assert!(goes(&restored, 1, 24 * 3_600, false));
        assert!(goes(&restored, 2, 60, false), "it lost its place after the restore");
    }

    #[test]
    fn a_group_given_back_keeps_a_whole_copy_and_never_half_a_one() {
        let (away, back) = (map(10, 1, &[2, 3], &[2, 3]), map(11, 1, &[1, 3], &[3]));
        let mut departed = departed();
        departed.look(at(0), &away, &held(1), false);
        departed.look(at(59), &back, &held(1), false);
        assert!(departed.look(at(60), &away, &held(1), false).is_empty(), "the grace begins anew");
        assert_eq!(departed.look(at(120), &away, &held(1), false), [group()]);
        departed.given(group());
        assert!(!departed.forgotten(group()) && departed.next(&back).is_none(), "the data was whole, so it stays");
        departed.look(at(200), &away, &held(1), false);
        assert_eq!(departed.look(at(260), &away, &held(1), false), [group()]);
        assert!(!departed.withholds(group()) && departed.forgotten(group()) && departed.withholds(group()));
        departed.given(group());
        departed.look(at(261), &back, &held(1), false);
        assert!(departed.withholds(group()), "half a copy is no copy");
        assert_eq!(departed.next(&back), Some(group()));
        departed.dropped(group());
        assert!(!departed.withholds(group()));
    }

    #[test]
    fn half_a_copy_found_at_the_start_is_finished_once_a_new_map_allows() {
        let mut departed =
            Departed::new(DeviceId(1), Revision(10), GRACE, rests([group()].into_iter(), [].into_iter()));
        assert!(departed.withholds(group()));
        let recovering = ClusterMap { recovering: true, ..map(10, 1, &[2, 3], &[2, 3]) };
        for not_yet in [map(9, 1, &[2, 3], &[2, 3]), recovering, ClusterMap::default(), map(10, 1, &[1, 2], &[1, 2])] {
            departed.look(at(600), &not_yet, &BTreeMap::new(), true);
            assert_eq!(departed.next(&not_yet), None);
        }
        assert_eq!(departed.next(&map(10, 1, &[1, 2], &[2])), Some(group()), "a joiner begins empty");
        assert!(departed.withholds(group()));
        assert!(rests([group()].into_iter(), [group()].into_iter()).is_empty());
    }

    use std::sync::{Arc, atomic::Ordering};

    use bytes::Bytes;
    use pflex_proto::ids::{ChunkId, ChunkIndex, Epoch, OperationId, Sequence, Version, VolatilityId, VtreeId};

    use crate::{
        device::MemoryDevice,
        store::{
            BlockRange, Client, KnownConfig, Lane, MemoryMeta, OpenReport, OrderedWrite, Origin, Run, Store,
            StoreConfig,
        },
        worker::{Command, DeviceHandle, testing},
    };

    const CONFIG: StoreConfig = StoreConfig { cluster: testing::CLUSTER, sds: pflex_proto::ids::SdsId(1) };

    /// A disk with three chunks of the group, and its row unless the copy is half gone.
    async fn disk_with_a_copy(row: bool) -> (Arc<MemoryDevice>, Arc<MemoryMeta>) {
        let (device, meta) = testing::disk();
        let (mut store, _) = Store::open(Arc::clone(&device) as Arc<_>, Arc::clone(&meta) as Arc<_>, CONFIG).unwrap();
        for number in 1..=3 {
            let data = Bytes::from(vec![7; BlockRange::WHOLE.bytes()]);
            let write = OrderedWrite {
                pg: group(),
                chunk: ChunkId { vtree: VtreeId(5), index: ChunkIndex(number), ..ChunkId::default() },
                version: Version { epoch: Epoch(1), sequence: Sequence(number) },
                run: Run::data(BlockRange::WHOLE, data),
                origin: Origin { client: Client::default(), operation: OperationId(number), low_water: OperationId(0) },
                watermark: Sequence(0),
                volatility: VolatilityId(1),
                lane: Lane::Client,
            };
            store.apply(write).unwrap();
        }
        let known = KnownConfig {
            generation: ClusterGeneration(1),
            epoch: Epoch(1),
            primary: Some(DeviceId(1)),
            in_sync: Vec::new(),
            replicas: vec![DeviceId(1), DeviceId(3)],
            volatility: VolatilityId(1),
            served: true,
        };
        if row {
            store.remember(&[(group(), known)], Box::new(|result| result.unwrap()));
        }
        store.close().await.unwrap();
        (device, meta)
    }

    /// Until the device uses so many chunks.
    async fn until_used(device: &DeviceHandle, chunks: u64) {
        let used = || device.counters.used_bytes.load(Ordering::Relaxed) >> 20;
        let reached = async {
            while device.counters.capacity_bytes.load(Ordering::Relaxed) == 0 || used() != chunks {
                tokio::task::yield_now().await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(30), reached).await;
        assert!(waited.is_ok(), "{} chunks are used, not {chunks}", used());
    }

    async fn found(device: DeviceHandle, disk: (Arc<MemoryDevice>, Arc<MemoryMeta>)) -> OpenReport {
        device.stop().await;
        device.join().await;
        Store::open(disk.0, disk.1, CONFIG).unwrap().1
    }

    #[tokio::test]
    async fn the_space_of_a_departed_copy_comes_back_and_it_joins_again_as_an_empty_one() {
        let disk = disk_with_a_copy(true).await;
        let (device, _reports) = testing::open(Arc::clone(&disk.0), &disk.1);
        until_used(&device, 3).await;
        device.send(Command::Map(Arc::new(map(10, 1, &[2, 3], &[2, 3])))).await;
        until_used(&device, 0).await;
        assert_eq!(device.counters.pgs_joining.load(Ordering::Relaxed), 0, "it joins nothing");
        let gone = found(device, disk.clone()).await;
        assert_eq!((gone.pgs.len(), gone.configs.len()), (0, 0), "and the next life knows nothing of it");

        let (device, _reports) = testing::open(Arc::clone(&disk.0), &disk.1);
        device.send(Command::Map(Arc::new(map(12, 1, &[1, 3], &[3])))).await;
        let joins = async {
            while device.counters.pgs_joining.load(Ordering::Relaxed) == 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), joins).await.unwrap();
        let joiner = found(device, disk).await;
        let rows: Vec<_> = joiner.configs.iter().map(|(pg, known)| (*pg, known.epoch)).collect();
        assert_eq!(rows, [(group(), Epoch(12))], "a place again, and a row again");
    }

    #[tokio::test]
    async fn half_a_copy_is_dropped_before_its_device_joins_again() {
        let disk = disk_with_a_copy(false).await;
        let (device, _reports) = testing::open(Arc::clone(&disk.0), &disk.1);
        device.send(Command::Map(Arc::new(map(10, 1, &[1, 3], &[3])))).await;
        until_used(&device, 0).await;
        let joins = async {
            while device.counters.pgs_joining.load(Ordering::Relaxed) == 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), joins).await.unwrap();
        let joiner = found(device, disk).await;
        assert_eq!(joiner.configs.len(), 1);
        assert!(joiner.pgs.iter().all(|group| group.chunks == 0 && group.operations.entries.is_empty()));
    }

    #[tokio::test]
    async fn a_copy_that_may_join_stays() {
        let disk = disk_with_a_copy(true).await;
        let (device, _reports) = testing::open(Arc::clone(&disk.0), &disk.1);
        device.send(Command::Map(Arc::new(map(10, 1, &[1, 3], &[3])))).await;
        let turns = device.counters.turns.load(Ordering::Relaxed);
        while device.counters.turns.load(Ordering::Relaxed) < turns + 50 {
            tokio::task::yield_now().await;
        }
        let kept = found(device, disk).await;
        assert_eq!((kept.pgs[0].chunks, kept.configs.len()), (3, 1));
    }
}
