//! The placement groups of this device's pool double (S25): its chunks are sorted anew before any newer configuration is acted in.
//!
//! The map brings the larger count and the next epochs of all groups at once. Until the running checkpoint is over and no change
//! waits for one the groups go on as before, as they would had the map come later ([`Unsorted`]). Then the cores leave their
//! roles, and when what they asked for is durable the loop waits for one small commit, in which the store sorts. Each half of a
//! group goes on from what the whole one knew. Only then the configurations are taken in: an old primary has stopped, and what is
//! in the new ones is looked for in the right group.

use std::collections::BTreeSet;

use pflex_common::map::PoolInfo;
use pflex_proto::ids::PgId;

use super::{effects::Slot, worker::Worker};
use crate::store::Sorting;

/// What a map says of how the chunks are sorted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Due {
    /// They are sorted so.
    Nothing,
    /// There are more groups now.
    Sort(Sorting),
    /// There are fewer: it is of before the doubling, or of before a restore from backup that has not heard of it (S19).
    OldMap,
}

/// Checkpoints that are done before the groups pause for a sorting although changes still wait: the one that runs when it becomes
/// due, and one that those who waited then may need. Each takes a slow disk a second or more, and the copies of devices that are
/// faster wait for this one.
const PATIENT_ROUNDS: u64 = 2;

/// A sorting that is due.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Unsorted {
    into: Sorting,
    /// The groups pause when so many checkpoints are done, at the latest.
    by_round: u64,
    /// The groups are paused.
    paused: bool,
}

impl Unsorted {
    /// Whether the groups pause.
    const fn is_due(&self, quiet: bool, rounds: u64) -> bool {
        quiet || rounds >= self.by_round
    }
}

impl Worker {
    /// Sorts as soon as that takes no longer than one commit; what is due already goes on from where it is.
    pub(super) fn sort_soon(&mut self, into: Sorting, waiting: Option<Unsorted>) {
        let by_round = self.store.stats().checkpoints + PATIENT_ROUNDS;
        self.unsorted = Some(Unsorted { into, ..waiting.unwrap_or(Unsorted { into, by_round, paused: false }) });
        self.store.expect_sort(true);
    }

    /// Nothing is to be sorted by the newest map; what was to be by the last one.
    pub(super) fn no_sort(&mut self) -> Option<Unsorted> {
        self.store.expect_sort(false);
        self.unsorted.take()
    }

    /// Every turn of the loop. A device whose store has failed is opened anew, and sorts then.
    pub(super) async fn sort_if_ready(&mut self) {
        let Some(unsorted) = self.unsorted.filter(|_| self.store.poison().is_none()) else { return };
        if !unsorted.paused {
            if !unsorted.is_due(self.store.is_quiet(), self.store.stats().checkpoints) {
                return;
            }
            self.unsorted = Some(Unsorted { paused: true, ..unsorted });
            self.pause_groups();
            self.settle();
        }
        if self.store.is_at_rest() {
            self.unsorted = None;
            self.sort(unsorted.into).await;
            self.settle();
        }
    }

    /// Between two roles no chunk can be looked at.
    pub(super) fn is_paused(&self) -> bool {
        self.unsorted.is_some_and(|unsorted| unsorted.paused)
    }

    /// Of the pool that the device is in, and of those that it was in while it has copies of theirs: it may be given back.
    pub(super) fn due_sorting(&self) -> Due {
        let said = |pool: &PoolInfo| Sorting { pool: pool.id, pg_count: pool.pg_count };
        let others = self
            .map
            .pools
            .values()
            .map(said)
            .filter(|into| self.store.sorting_of(into.pool).is_some_and(|known| known.pg_count < into.pg_count));
        let pool = self.map.devices.get(&self.own.device).and_then(|device| device.pool);
        let Some(pool) = pool.and_then(|pool| self.map.pools.get(&pool)) else { return Due::Nothing };
        let into = said(pool);
        match (self.store.sorting_of(pool.id), others.min_by_key(|other| other.pool == pool.id)) {
            (Some(known), _) if known.pg_count > into.pg_count => Due::OldMap,
            (_, Some(first)) => Due::Sort(first),
            (Some(known), None) if known == into && self.store.sorting() == Some(into) => Due::Nothing,
            (Some(_) | None, None) => Due::Sort(into),
        }
    }

    /// Ends the roles of all groups: nothing may be on its way when the chunks are sorted. Nor is a configuration of before acted
    /// in afterwards, by what is only half of the group by then.
    fn pause_groups(&mut self) {
        self.memory.withdraw();
        let mut effects = Vec::new();
        let groups: Vec<PgId> = self.slots.keys().copied().collect();
        for pg in groups {
            let now = self.time();
            let Some(slot) = self.slots.get_mut(&pg) else { continue };
            slot.config = None;
            slot.core.pause(now, &self.leases, &mut effects);
            let demand = slot.core.demand();
            for effect in effects.drain(..) {
                self.carry_out(pg, effect);
            }
            self.resync.note(pg, demand);
        }
    }

    /// Sorts, and goes on with the map that brought the larger count.
    async fn sort(&mut self, into: Sorting) {
        let known = self.store.sorting_of(into.pool);
        // These are no halves, whatever they are: they keep what they know.
        let whole: BTreeSet<PgId> = self.store.groups().chain(self.memory.rows().map(|(pg, _)| pg)).collect();
        // Before it was told it had as many groups as the pool was made with.
        let first = self.map.pools.get(&into.pool).map_or(into.pg_count, |pool| pool.first_pg_count);
        let from = known.map_or(first, |known| known.pg_count);
        let configs = self.memory.halves(into, from);
        let (begun, chunks) = (std::time::Instant::now(), self.store.stats().chunks);
        match self.store.sort(into, from, &configs).await {
            Ok(durable) => self.on_durable(Ok(durable)),
            // The groups stay paused; the device is out of service.
            Err(poison) => return self.on_durable(Err(poison)),
        }
        self.decide();
        self.memory.adopt(configs);
        let wholes = self.slots.keys().chain(self.recovered.keys()).copied().chain(self.departed.groups());
        let wholes: BTreeSet<PgId> = wholes.filter(|pg| pg.pool == into.pool && pg.index.0 < from).collect();
        for pg in wholes {
            for half in into.halves(pg, from).filter(|half| !whole.contains(half)) {
                self.split(pg, half, into);
            }
            if self.recovered.contains_key(&pg) {
                self.recovered.extend(self.store.report(pg).map(|report| (pg, report)));
            }
        }
        self.scrub.sorted(into, from);
        if from < into.pg_count {
            let took_ms = begun.elapsed().as_millis();
            tracing::info!(device = %self.own.device, pool = %into.pool, from, into = into.pg_count, chunks, took_ms, "chunks are sorted into more placement groups");
        }
        match self.due_sorting() {
            Due::Nothing => self.take_configurations(),
            Due::Sort(next) => {
                let by_round = self.store.stats().checkpoints;
                self.sort_soon(next, Some(Unsorted { into: next, by_round, paused: true }));
            }
            Due::OldMap => {}
        }
    }

    fn split(&mut self, pg: PgId, half: PgId, into: Sorting) {
        // Made by a message of a primary that was sooner.
        let earlier = self.slots.remove(&half);
        let split_off = self.slots.get_mut(&pg).map(|whole| {
            let core = whole.core.split_off(half, |chunk| into.group_of(pg, chunk) == half);
            whole.half(core)
        });
        if let Some(slot) = split_off {
            self.slots.insert(half, slot);
        } else if let Some(report) = self.store.report(half) {
            self.recovered.insert(half, report);
        }
        if let Some(Slot { core, .. }) = earlier {
            self.slot(half).core.hears(core);
        }
        // Half a copy makes two halves of one: what has no row is on its way out. So is one of which nothing is left but what its
        // core knows, until that is told so.
        if !self.memory.has_row(half) && (self.store.report(half).is_some() || self.departed.withholds(pg)) {
            self.departed.is_rest(half);
        }
    }
}

impl super::memory::Memory {
    /// What is remembered of groups, for the halves that they become.
    fn halves(&self, into: Sorting, from: u32) -> Vec<(PgId, crate::store::KnownConfig)> {
        let wholes = self.rows().filter_map(|(pg, _)| Some((pg, self.known(pg)?)));
        let halves = wholes.flat_map(|(pg, known)| into.halves(pg, from).map(move |half| (half, known.clone())));
        halves.filter(|(half, _)| self.known(*half).is_none()).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::Arc};

    use bytes::Bytes;
    use futures::FutureExt as _;
    use pflex_common::map::ClusterMap;
    use pflex_proto::{geometry::pg_of, ids::*, pb};

    use super::*;
    use crate::{
        device::{Fault, FaultyDevice, Injected, OpKind},
        replication::{Body, Event, Message, RoleName, Round},
        store::{BlockRange, Client, KnownConfig, Lane, OrderedWrite, Origin, Run, Store, StoreConfig},
        worker::testing,
    };

    const CHUNKS: u64 = 12;

    fn pg(index: u32) -> PgId {
        PgId { pool: PoolId(1), index: PgIndex(index) }
    }

    fn chunk(n: u64) -> ChunkId {
        ChunkId { vtree: VtreeId(5), layer: LayerId(0), index: ChunkIndex(n) }
    }

    fn write(pg: PgId, chunk: ChunkId, epoch: u64, n: u64) -> OrderedWrite {
        OrderedWrite {
            pg,
            chunk,
            version: Version { epoch: Epoch(epoch), sequence: Sequence(n) },
            run: Run::data(BlockRange::WHOLE, Bytes::from(vec![7; BlockRange::WHOLE.bytes()])),
            origin: Origin { client: Client::default(), operation: OperationId(n), low_water: OperationId(0) },
            watermark: Sequence(n / 2),
            volatility: VolatilityId(1),
            lane: Lane::Client,
        }
    }

    /// Group 1 has chunks here and no row: half a copy, on its way out. Group 0 is whole, in epoch 3.
    async fn disk() -> (Arc<crate::device::MemoryDevice>, Arc<crate::store::MemoryMeta>) {
        let (device, meta) = testing::disk();
        let config = StoreConfig { cluster: testing::CLUSTER, sds: SdsId(1) };
        let (mut store, _) = Store::open(Arc::clone(&device) as Arc<_>, Arc::clone(&meta) as Arc<_>, config).unwrap();
        for n in 1..=CHUNKS {
            let pg = pg(pg_of(VtreeId(5), ChunkIndex(n), 2).0);
            store.apply(write(pg, chunk(n), 3, n)).unwrap();
        }
        let known = KnownConfig {
            generation: ClusterGeneration(1),
            epoch: Epoch(3),
            primary: Some(DeviceId(1)),
            in_sync: Vec::new(),
            replicas: vec![DeviceId(1), DeviceId(2)],
            volatility: VolatilityId(1),
            served: true,
        };
        store.remember(&[(pg(0), known)], Box::new(|result| result.unwrap()));
        store.close().await.unwrap();
        (device, meta)
    }

    /// All groups are in sync on devices 1 and 2 in this epoch, led by device 1.
    fn map(count: u32, epoch: u64, own: Member) -> ClusterMap {
        let member = |device: u32, incarnation| pb::Member { device_id: device, sds_id: device, incarnation };
        let group = |index| pb::Pg {
            id: Some(pg(index).into()),
            epoch,
            primary_device_id: 1,
            in_sync: vec![member(1, own.incarnation.0), member(2, 1)],
            replica_device_ids: vec![1, 2],
            volatility: 1,
            ..Default::default()
        };
        let device =
            |id: u32| pb::Device { id, sds_id: id, uuid: vec![9; 16], pool_id: 1, alive: true, ..Default::default() };
        ClusterMap::from_full(pb::ClusterMap {
            cluster_id: vec![1; 16],
            cluster_generation: 1,
            revision: epoch,
            pools: vec![pb::Pool { id: 1, pg_count: count, first_pg_count: 2, copies: 2, ..Default::default() }],
            devices: vec![device(1), device(2)],
            pgs: (0..count).map(group).collect(),
            ..Default::default()
        })
        .unwrap()
    }

    async fn take(worker: &mut Worker, map: ClusterMap) {
        worker.on_map(Arc::new(map));
        worker.sort_if_ready().await;
        // The disk in memory has it at once.
        worker.on_remembered(Ok(()));
        worker.decide();
    }

    #[tokio::test]
    async fn halves_go_on_from_what_the_whole_knew_and_half_a_copy_makes_two_of_them() {
        let double = async {
            let (device, meta) = disk().await;
            let (config, _reports) = testing::config(device.clone(), &meta);
            let (_commands, commands) = tokio::sync::mpsc::channel(1);
            let mut worker = Worker::new(config, Arc::default(), commands);
            let own = worker.own;
            take(&mut worker, map(2, 4, own)).await;
            assert_eq!(
                worker.store.sorting(),
                Some(Sorting { pool: PoolId(1), pg_count: 2 }),
                "it learned how many there were"
            );
            assert!(matches!(worker.slots[&pg(0)].core.status().role, RoleName::Opening { .. }));
            // A primary that was sooner speaks of a group that nobody here has heard of.
            let from = Member { device: DeviceId(2), sds: SdsId(2), incarnation: Incarnation(1) };
            let early = Message { from, to: own, pg: pg(2), epoch: Epoch(5), body: Body::Collect { round: Round(1) } };
            worker.slot(pg(2));
            worker.events.push_back((pg(2), Event::Message(early)));
            worker.decide();

            take(&mut worker, map(8, 5, own)).await;
            let in_group = |count, index| {
                (1..=CHUNKS).filter(|n| pg_of(VtreeId(5), ChunkIndex(*n), count).0 == index).collect::<Vec<_>>()
            };
            for index in 0..8 {
                let here = in_group(8, index);
                let found: BTreeMap<u64, ()> =
                    worker.store.versions(pg(index), None).iter().map(|entry| (entry.chunk.index.0, ())).collect();
                assert_eq!(found.into_keys().collect::<Vec<_>>(), here, "group {index}");
                let is_rest = index % 2 == 1;
                assert_eq!(worker.departed.withholds(pg(index)), is_rest, "group {index}");
                assert_eq!(worker.memory.has_row(pg(index)), !is_rest, "group {index}");
                if is_rest {
                    continue;
                }
                let status = worker.slots[&pg(index)].core.status();
                assert_eq!(status.epoch, Epoch(5), "group {index}");
                let whole = in_group(2, 0);
                assert_eq!(status.last, Sequence(*whole.last().unwrap()), "no sequence is given twice");
                assert_eq!(status.committed, Sequence(whole.last().unwrap() / 2));
                let known = worker.store.operations(pg(index));
                assert_eq!(known.entries.iter().map(|entry| entry.chunk.index.0).collect::<Vec<_>>(), here);
            }
            // A map of before whose rows are on their way when the groups double goes to no core.
            worker.on_map(Arc::new(map(8, 7, own)));
            worker.on_map(Arc::new(map(16, 8, own)));
            // Nothing is left in the store of group 1, and its core does not know that yet.
            worker.slot(pg(1));
            while worker.store.report(pg(1)).is_some() {
                worker.store.drop_some(pg(1), 100).unwrap();
                drop(worker.store.durable().await);
            }
            worker.sort_if_ready().await;
            assert_eq!(worker.store.sorting().unwrap().pg_count, 16);
            worker.on_remembered(Ok(()));
            worker.decide();
            assert_eq!(
                worker.slots[&pg(0)].core.status().epoch,
                Epoch(5),
                "half of a group acts in nothing of the whole's"
            );
            worker.on_remembered(Ok(()));
            worker.decide();
            assert_eq!(worker.slots[&pg(0)].core.status().epoch, Epoch(8));
            assert!(worker.departed.withholds(pg(9)), "half of what is gone is gone");
            // An older map, of before.
            assert_eq!(worker.counters.trouble(), None);
            take(&mut worker, map(4, 9, own)).await;
            assert_eq!(worker.slots[&pg(0)].core.status().epoch, Epoch(8), "nothing of it is followed");
            let why = worker.counters.trouble().expect("a beat says why");
            assert!(why.contains("more placement groups"), "{why}");
            take(&mut worker, map(16, 10, own)).await;
            assert_eq!((worker.counters.trouble(), worker.slots[&pg(0)].core.status().epoch), (None, Epoch(10)));
        };
        tokio::task::LocalSet::new().run_until(double).await;
    }

    #[tokio::test]
    async fn a_device_whose_disk_is_slow_goes_on_until_it_can_sort_and_answers_while_it_waits() {
        let double = async {
            let (memory, meta) = disk().await;
            let device = FaultyDevice::new(memory);
            let delay = |kind| device.inject(Fault { kind, after: 0, within: None, injected: Injected::Delay });
            let (config, _reports) = testing::config(device.clone(), &meta);
            let (_commands, commands) = tokio::sync::mpsc::channel(1);
            let mut worker = Worker::new(config, Arc::default(), commands);
            let own = worker.own;
            take(&mut worker, map(2, 4, own)).await;
            let role = |worker: &Worker| worker.slots[&pg(0)].core.status().role;
            let count = |worker: &Worker| worker.store.sorting().map(|sorting| sorting.pg_count);
            let change = |worker: &mut Worker, sequence| {
                let n = (1..=CHUNKS).find(|n| pg_of(VtreeId(5), ChunkIndex(*n), 2).0 == 0).unwrap();
                // Small enough for the journal.
                let blocks = BlockRange::new(0, 8).unwrap();
                let run = Run::data(blocks, Bytes::from(vec![8; blocks.bytes()]));
                worker.store.apply(OrderedWrite { run, ..write(pg(0), chunk(n), 4, sequence) }).unwrap();
            };
            let mut sequence = 100;
            while worker.store.stats().journal_used_bytes <= worker.store.stats().journal_bytes / 64 {
                sequence += 1;
                change(&mut worker, sequence);
                drop(worker.store.durable().await);
            }
            delay(OpKind::Write);
            worker.store.use_rest();
            worker.store.use_rest();
            assert!(!worker.store.is_quiet(), "a checkpoint runs, and the disk takes its time");

            worker.on_map(Arc::new(map(8, 5, own)));
            assert!(worker.sort_if_ready().now_or_never().is_some(), "the loop turns");
            assert_eq!(count(&worker), Some(2));
            assert!(matches!(role(&worker), RoleName::Opening { .. }), "the group goes on");
            assert_eq!(worker.slots[&pg(0)].core.status().epoch, Epoch(4));
            // A newer map of the same count takes nothing back, and is not acted in either.
            worker.on_map(Arc::new(map(8, 6, own)));

            delay(OpKind::WriteDurable);
            change(&mut worker, sequence + 1);
            device.release();
            assert!(worker.store.durable().now_or_never().is_none(), "the checkpoint is over, a change is on its way");
            assert!(worker.sort_if_ready().now_or_never().is_some(), "the loop turns");
            assert_eq!((count(&worker), role(&worker)), (Some(2), RoleName::Outside), "nothing new is taken on");
            worker.on_tick();
            worker.decide();

            device.release();
            let durable = worker.store.durable().await;
            worker.on_durable(durable);
            worker.sort_if_ready().await;
            worker.on_remembered(Ok(()));
            worker.decide();
            assert_eq!((count(&worker), worker.slots[&pg(0)].core.status().epoch), (Some(8), Epoch(6)));
        };
        tokio::task::LocalSet::new().run_until(double).await;
    }

    #[tokio::test]
    async fn a_disk_that_is_never_quiet_is_sorted_all_the_same() {
        let double = async {
            let (memory, meta) = disk().await;
            let (config, _reports) = testing::config(memory, &meta);
            let (_commands, commands) = tokio::sync::mpsc::channel(1);
            let mut worker = Worker::new(config, Arc::default(), commands);
            let own = worker.own;
            take(&mut worker, map(2, 4, own)).await;
            worker.on_map(Arc::new(map(4, 5, own)));
            let unsorted = worker.unsorted.unwrap();
            assert!(!unsorted.is_due(false, unsorted.by_round - 1), "the checkpoint that ran, and one more");
            assert!(unsorted.is_due(false, unsorted.by_round) && unsorted.is_due(true, 0));
            worker.on_map(Arc::new(map(8, 6, own)));
            assert_eq!(worker.unsorted.unwrap().by_round, unsorted.by_round, "another map does not begin anew");
        };
        tokio::task::LocalSet::new().run_until(double).await;
    }
}
