//! The scrub of the groups that this device leads: which chunk next, and when.
//!
//! The MDM orders passes; a pass looks at every chunk of a group once, one chunk at a time over all groups. It is
//! paced by a rate, waits while clients keep the device busy, though never for so long that a pass has no end, and while
//! copies are being filled. A group counts as done in this process only: one whose lead moves is looked at again.
//! Comparing and repairing is the core's (`replication::scrub`).

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::atomic::Ordering,
    time::Duration,
};

use pflex_proto::{
    geometry::CHUNK_SIZE,
    ids::{ChunkId, PgId},
};

use super::{effects::Fetched, worker::Worker};
use crate::{
    replication::{BlockSums, Event, Round, ScrubOutcome, Time, VerifiedChunk},
    store::{BlockRange, Sorting, was},
};

/// Between two looks at copies that seem to differ: one may be of a volume that is being deleted.
const SECOND_LOOK: Duration = Duration::from_secs(5);
/// Before a chunk that is being written is looked at again.
const COME_BACK: Duration = Duration::from_millis(500);
/// So often; then the next pass may have more luck. What is written all the time is read by its clients.
const MOST_TRIES: u32 = 20;
/// The core answers earlier; an answer that is lost all the same must not end the scrub.
const PATIENCE: Duration = Duration::from_secs(60);
/// Chunks that wait to be looked at again.
const MOST_AGAIN: usize = 256;
/// A device on which clients completed more in a tick (50 ms) is busy.
const BUSY_IOS: u64 = 10;
/// A busy device is scrubbed all the same, so often.
const BUSY_WAIT: Duration = Duration::from_secs(2);
/// Between two looks at what could not be read.
const LOOK_AGAIN: Duration = Duration::from_secs(600);
/// How fast without an order.
const USUAL_RATE: u64 = 8 << 20;
/// Chunks that are remembered as unreadable; more are as bad.
const MOST_UNREADABLE: usize = 4096;

/// The part of a device in the scrub of its pool, as the MDM wants it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ScrubOrder {
    /// Its number; rises.
    pub(crate) pass: u64,
    /// How fast each device does its part; 0: as it can.
    pub(crate) bytes_per_second: u64,
}

/// A chunk that the core looks at.
#[derive(Clone, Copy, Debug)]
struct Asked {
    pg: PgId,
    chunk: ChunkId,
    tries: u32,
    confirmed: bool,
    since: Time,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Scrub {
    order: Option<ScrubOrder>,
    done: BTreeSet<PgId>,
    /// What is left of a group.
    current: Option<(PgId, VecDeque<ChunkId>)>,
    asked: Option<Asked>,
    /// To be looked at again, not before that time.
    again: VecDeque<(Asked, Time)>,
    next_at: Time,
    last_at: Time,
    completed: u64,
    busy: bool,
    checked: u64,
    bad_blocks: u64,
    mismatches: u64,
    unreadable: BTreeMap<ChunkId, PgId>,
    looked_again: Time,
    last_again: Option<ChunkId>,
}

impl Scrub {
    /// Something of this chunk cannot be read on any copy.
    pub(super) fn cannot_read(&mut self, pg: PgId, chunk: ChunkId) {
        if self.unreadable.len() < MOST_UNREADABLE {
            self.unreadable.insert(chunk, pg);
        }
    }

    /// What was lost came back from another copy.
    pub(super) fn can_read(&mut self, chunk: ChunkId) {
        self.unreadable.remove(&chunk);
    }

    /// Now and then one that could not be read: it may have been written again, or the other copy is back.
    fn look_again(&mut self, now: Time) {
        if now.since(self.looked_again) < LOOK_AGAIN {
            return;
        }
        self.looked_again = now;
        let after = self.last_again.map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded);
        let next = self.unreadable.range((after, std::ops::Bound::Unbounded)).next();
        let next = next.or_else(|| self.unreadable.first_key_value()).map(|(chunk, pg)| (*chunk, *pg));
        if let Some((chunk, pg)) = next.filter(|_| self.again.is_empty()) {
            self.last_again = Some(chunk);
            self.again.push_back((Asked { pg, chunk, tries: 0, confirmed: false, since: now }, now));
        }
    }

    /// A new order begins anew; the rate may change within one.
    fn take(&mut self, order: Option<ScrubOrder>) {
        if self.order.map(|order| order.pass) != order.map(|order| order.pass) {
            let unreadable = std::mem::take(&mut self.unreadable);
            *self = Self { unreadable, asked: self.asked, completed: self.completed, ..Self::default() };
        }
        self.order = order;
    }

    /// The groups have doubled. A half is done if the whole was; what is left of the present one is in both.
    pub(super) fn sorted(&mut self, into: Sorting, from: u32) {
        let done: Vec<PgId> = self.done.iter().flat_map(|pg| into.halves(*pg, from)).collect();
        self.done.extend(done);
        self.unreadable.iter_mut().for_each(|(chunk, pg)| *pg = into.group_of(*pg, *chunk));
        self.again.iter_mut().for_each(|(asked, _)| asked.pg = into.group_of(asked.pg, asked.chunk));
        if let Some((pg, left)) = &mut self.current {
            left.retain(|chunk| into.group_of(*pg, *chunk) == *pg);
        }
    }

    fn left(&self) -> usize {
        self.current.as_ref().map_or(0, |(_, left)| left.len()) + self.again.len() + usize::from(self.asked.is_some())
    }

    /// The next chunk of the present group, or one that had to be come back to.
    fn pick(&mut self, now: Time) -> Option<Asked> {
        if let Some(place) = self.again.iter().position(|(_, at)| *at <= now) {
            return self.again.remove(place).map(|(asked, _)| Asked { since: now, ..asked });
        }
        let (pg, left) = self.current.as_mut()?;
        let chunk = left.pop_front()?;
        Some(Asked { pg: *pg, chunk, tries: 0, confirmed: false, since: now })
    }

    fn come_back(&mut self, asked: Asked, at: Time) {
        if asked.tries < MOST_TRIES && self.again.len() < MOST_AGAIN {
            self.again.push_back((asked, at));
        }
    }
}

impl Worker {
    pub(super) fn on_scrub_order(&mut self, order: Option<ScrubOrder>) {
        self.scrub.take(order);
    }

    /// Every tick, and when a chunk is done.
    pub(super) fn scrub_next(&mut self) {
        let now = self.time();
        self.note_load();
        if self.scrub.asked.is_some_and(|asked| now.since(asked.since) > PATIENCE) {
            self.scrub.asked = None;
        }
        self.scrub.look_again(now);
        let rate = self.scrub.order.map_or(USUAL_RATE, |order| order.bytes_per_second);
        if self.scrub.asked.is_none()
            && now >= self.scrub.next_at
            && !((self.scrub.busy || self.is_filling()) && now.since(self.scrub.last_at) < BUSY_WAIT)
            && self.store.poison().is_none()
            && !self.is_paused()
        {
            if self.scrub.order.is_some() {
                self.choose_group();
            }
            // What seemed to differ is not looked at again once its volume is deleted.
            let picked = self.scrub.pick(now);
            if let Some(asked) = picked.filter(|asked| !asked.confirmed || self.is_wanted(asked.chunk)) {
                (self.scrub.asked, self.scrub.last_at) = (Some(asked), now);
                let cost = if self.store.has_unit(asked.chunk) { u64::from(CHUNK_SIZE) } else { 4096 };
                let nanos = (cost * 1_000_000_000).checked_div(rate).unwrap_or(0);
                self.scrub.next_at = now.plus(Duration::from_nanos(nanos));
                let Asked { pg, chunk, confirmed, .. } = asked;
                self.events.push_back((pg, Event::Scrub { chunk, confirmed }));
            }
        }
        self.publish_scrub();
    }

    /// Copies are filled, from here or here. That may take for ever (a policy is paused, a chunk cannot be read), so it
    /// slows a scrub down and does not stop it.
    fn is_filling(&self) -> bool {
        self.counters.pgs_joining.load(Ordering::Relaxed) > 0
            || self.counters.resync_left_bytes.load(Ordering::Relaxed) > 0
    }

    /// Whether clients kept the device busy since the last tick.
    fn note_load(&mut self) {
        let completed = self.counters.completed.load(Ordering::Relaxed);
        self.scrub.busy = completed.saturating_sub(self.scrub.completed) > BUSY_IOS;
        self.scrub.completed = completed;
    }

    /// Whether this device leads a group, so that it is looked at here, now or as soon as its epoch is open. By the map: cores
    /// have no role while groups double.
    fn leads(&self, pg: PgId) -> bool {
        self.map.pgs.get(&pg).is_some_and(|config| config.primary == Some(self.own.device))
    }

    /// Whether the volumes of a chunk's tree are there. While one is deleted its copies go at their own times, so they
    /// differ, and nobody misses them.
    fn is_wanted(&self, chunk: ChunkId) -> bool {
        self.map.volumes.values().any(|volume| volume.vtree == chunk.vtree)
    }

    /// When one group has been looked at, the next one that this device leads. One whose lead went elsewhere in the middle is
    /// looked at there, whole, and here again if the lead comes back.
    fn choose_group(&mut self) {
        if let Some(pg) = self.scrub.current.as_ref().map(|(pg, _)| *pg).filter(|pg| !self.leads(*pg)) {
            self.scrub.current = None;
            self.scrub.again.retain(|(asked, _)| asked.pg != pg);
        }
        if self.scrub.current.as_ref().is_some_and(|(_, left)| !left.is_empty()) || !self.scrub.again.is_empty() {
            return;
        }
        if let Some((pg, _)) = self.scrub.current.take() {
            self.scrub.done.insert(pg);
        }
        let leads = |(pg, slot): (&PgId, &super::effects::Slot)| {
            (slot.core.is_serving() && !self.scrub.done.contains(pg)).then_some(*pg)
        };
        if let Some(pg) = self.slots.iter().filter_map(leads).min() {
            let chunks = self.store.versions(pg, None);
            self.scrub.current = Some((pg, chunks.into_iter().map(|entry| entry.chunk).collect()));
        }
    }

    pub(super) fn on_scrubbed(&mut self, pg: PgId, chunk: ChunkId, outcome: ScrubOutcome) {
        let Some(asked) = self.scrub.asked.take_if(|asked| (asked.pg, asked.chunk) == (pg, chunk)) else { return };
        let now = self.time();
        let again = Asked { tries: asked.tries + 1, ..asked };
        // A chunk that was dropped with its volume meanwhile is nobody's any more.
        if self.store.chunk(chunk).is_none() {
            self.scrub.can_read(chunk);
            return;
        }
        match outcome {
            ScrubOutcome::Busy => self.scrub.come_back(again, now.plus(COME_BACK)),
            ScrubOutcome::Suspect if !self.is_wanted(chunk) => {}
            ScrubOutcome::Suspect => {
                tracing::warn!(%pg, device = %self.own.device, %chunk, "copies seem to differ; they are compared once more");
                self.scrub.come_back(Asked { confirmed: true, ..again }, now.plus(SECOND_LOOK));
            }
            // Whoever leads the group now looks at it.
            ScrubOutcome::Interrupted if !self.leads(pg) => {}
            ScrubOutcome::Interrupted => self.scrub.come_back(again, now.plus(SECOND_LOOK)),
            ScrubOutcome::Checked(found) => {
                self.scrub.checked += 1;
                if found.bad_here == 0 {
                    self.scrub.unreadable.remove(&chunk);
                }
                let bad = found.bad_here + found.bad_elsewhere;
                self.scrub.bad_blocks += bad as u64;
                self.scrub.mismatches += found.differing as u64;
                if bad > 0 {
                    tracing::warn!(%pg, device = %self.own.device, %chunk, bad_here = found.bad_here, bad_elsewhere = found.bad_elsewhere, "a scrub found blocks that cannot be read");
                    self.counters.scrub_bad_blocks.fetch_add(bad as u64, Ordering::Relaxed);
                }
                if found.differing > 0 {
                    tracing::error!(%pg, device = %self.own.device, %chunk, copies = found.differing, "critical: sound copies differed under one version; they were made equal to the primary's");
                    self.counters.scrub_mismatches.fetch_add(found.differing as u64, Ordering::Relaxed);
                }
            }
        }
    }

    /// Also with each map, before that is confirmed.
    pub(super) fn publish_scrub(&mut self) {
        // A group that is led elsewhere by now is told of there. A new epoch of one that is led here changes nothing, nor that its
        // core has no role while groups double.
        let Self { scrub, map, own, store, .. } = self;
        let leads = |config: &std::sync::Arc<pflex_proto::pg::PgConfig>| config.primary == Some(own.device);
        scrub.unreadable.retain(|_, pg| map.pgs.get(pg).is_none_or(leads));
        let pass = scrub.order.map_or(0, |order| order.pass);
        // Until the chunks are sorted as the map says: the group that this one is half of.
        let whole = |pg: PgId| store.sorting_of(pg.pool).map_or(pg, |known| was(pg, known.pg_count));
        // By the map, not by roles: what beats say of it counts as of the map that they confirm.
        let open = |(pg, config): (&PgId, &std::sync::Arc<pflex_proto::pg::PgConfig>)| {
            config.primary == Some(own.device) && !scrub.done.contains(&whole(*pg))
        };
        let done = pass > 0 && scrub.left() == 0 && !map.pgs.iter().any(open);
        let counters = &self.counters;
        counters.unreadable_chunks.store(scrub.unreadable.len() as u64, Ordering::Relaxed);
        counters.scrub_pass_bad_blocks.store(scrub.bad_blocks, Ordering::Relaxed);
        counters.scrub_pass_mismatches.store(scrub.mismatches, Ordering::Relaxed);
        counters.scrubbed_chunks.store(scrub.checked, Ordering::Relaxed);
        counters.scrub_left_chunks.store(scrub.left() as u64, Ordering::Relaxed);
        counters.scrub_done.store(done, Ordering::Relaxed);
        counters.scrub_pass.store(pass, Ordering::Release);
    }

    /// Reads a chunk whole, for this scrub or that of another copy. Version and checksums are of the same moment as the
    /// bytes, whatever is written meanwhile.
    pub(super) fn verify(&mut self, pg: PgId, round: Round, chunk: ChunkId) {
        let (version, sums) = self.stored(chunk);
        let read = self.store.read(chunk, BlockRange::WHOLE);
        let fetched = self.fetched.clone();
        tokio::task::spawn_local(async move {
            let fetched_now = match read.await {
                Ok(_) => {
                    let verified = VerifiedChunk { version, sums, bad: Vec::new() };
                    Fetched::Found { pg, found: Event::Verified { round, chunk, verified } }
                }
                Err(_) => Fetched::Unsound { pg, round, chunk },
            };
            // Nobody receives it when the loop has ended.
            drop(fetched.send(fetched_now));
        });
    }

    /// Which blocks cannot be read, as of now.
    pub(super) fn verify_blocks(&mut self, pg: PgId, round: Round, chunk: ChunkId) {
        let (version, sums) = self.stored(chunk);
        let one = |block| Some((block, self.store.read(chunk, BlockRange::new(block, 1)?)));
        let reads: Vec<_> = BlockRange::WHOLE.blocks().filter_map(one).collect();
        let fetched = self.fetched.clone();
        tokio::task::spawn_local(async move {
            let mut bad = Vec::new();
            for (block, read) in reads {
                if read.await.is_err() {
                    bad.push(block);
                }
            }
            let verified = VerifiedChunk { version, sums, bad };
            let found = Event::Verified { round, chunk, verified };
            // Nobody receives it when the loop has ended.
            drop(fetched.send(Fetched::Found { pg, found }));
        });
    }

    fn stored(&self, chunk: ChunkId) -> (Option<pflex_proto::ids::Version>, BlockSums) {
        let stored = self.store.checksums(chunk);
        stored.map_or((None, BlockSums::default()), |sums| (sums.version, BlockSums(sums.blocks)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use pflex_proto::ids::{ChunkIndex, Epoch, Sequence, Version};

    use super::*;
    use crate::{
        payload::Payload,
        replication::{self, Effect, Extent, Ticket, WriteKind},
        store::Geometry,
        worker::testing,
    };

    fn chunk(n: u64) -> ChunkId {
        ChunkId { index: ChunkIndex(n), ..ChunkId::default() }
    }

    #[test]
    fn a_pass_looks_at_each_chunk_once_and_comes_back_to_those_that_are_written() {
        let mut scrub = Scrub::default();
        let order = ScrubOrder { pass: 1, bytes_per_second: 0 };
        scrub.take(Some(order));
        scrub.current = Some((PgId::default(), [chunk(1), chunk(2)].into()));
        let first = scrub.pick(Time(0)).unwrap();
        assert_eq!((first.chunk, first.confirmed), (chunk(1), false));
        scrub.come_back(Asked { confirmed: true, ..first }, Time(100));
        assert_eq!(scrub.pick(Time(1)).unwrap().chunk, chunk(2), "the others go on");
        assert_eq!((scrub.pick(Time(99)).map(|asked| asked.chunk), scrub.left()), (None, 1));
        let again = scrub.pick(Time(100)).unwrap();
        assert_eq!((again.chunk, again.confirmed), (chunk(1), true));
        scrub.come_back(Asked { tries: MOST_TRIES, ..again }, Time(200));
        assert_eq!(scrub.left(), 0, "not for ever");
        scrub.done.insert(PgId::default());
        scrub.take(Some(ScrubOrder { bytes_per_second: 5, ..order }));
        assert!(!scrub.done.is_empty(), "another rate is no other pass");
        scrub.take(Some(ScrubOrder { pass: 2, ..order }));
        assert!(scrub.done.is_empty());
    }

    /// One chunk, whole, whose block 5 the disk has damaged.
    #[tokio::test]
    async fn every_block_is_read_and_what_is_unsound_is_named() {
        let verify = async {
            let (device, meta) = testing::disk();
            let (config, _reports) = testing::config(device.clone(), &meta);
            let (_commands, commands) = tokio::sync::mpsc::channel(1);
            let mut worker = Worker::new(config, Arc::default(), commands);
            let (sender, mut fetched) = tokio::sync::mpsc::unbounded_channel();
            worker.fetched = sender;
            let (pg, round, version) = (PgId::default(), Round(3), Version { epoch: Epoch(1), sequence: Sequence(1) });
            worker.slot(pg);
            let write = replication::OrderedWrite {
                version,
                chunk: chunk(0),
                extent: Extent::CHUNK,
                kind: WriteKind::Data(Payload::computed(vec![7; CHUNK_SIZE as usize].into())),
                client: replication::ClientKey { sdc: Default::default(), volume: Default::default() },
                operation: Default::default(),
                low_water: Default::default(),
            };
            worker.carry_out(pg, Effect::Apply { ticket: Ticket(1), write, watermark: Sequence(0) });
            let durable = worker.store.durable().await;
            worker.on_durable(durable);
            for bad in [&[][..], &[5]] {
                worker.events.clear();
                worker.carry_out(pg, Effect::Verify { round, chunk: chunk(0) });
                while worker.events.is_empty() {
                    let fetched = fetched.recv().await.unwrap();
                    worker.on_fetched(fetched);
                }
                let (_, Event::Verified { verified, .. }) = &worker.events[0] else { panic!("{:?}", worker.events) };
                assert_eq!((verified.version, verified.bad.as_slice()), (Some(version), bad));
                assert_eq!(verified.sums.0.len(), 256);
                let geometry = Geometry { units: 16, ..Geometry::divide(1 << 30, 0).unwrap() };
                (0..16).for_each(|unit| device.corrupt(geometry.unit_offset(unit) + 5 * 4096 + 17));
            }
        };
        tokio::task::LocalSet::new().run_until(verify).await;
    }
}
