//! Carries out what the replication cores decide: on the store, on links, towards clients and the MDM.

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::Ordering},
};

use bytes::Bytes;
use futures::FutureExt as _;
use pflex_proto::{
    codec::Wire as _,
    data::AllocationReply,
    geometry::BLOCK_SIZE,
    ids::{ChunkId, PgId, Version, VolatilityId},
    pg::PgConfig,
};

use super::{
    command::Report,
    convert::{client, cut, difference, hull, operation, run_of, run_of_blocks},
    worker::Worker,
};
use crate::{
    payload::Payload,
    replication::{self, BlockSums, ChunkImage, Effect, Event, Extent, Pg, RequestId, Round, Ticket, WriteKind},
    store::{self, BlockRange, Lane, ReadData, ReadError},
};

/// Payloads up to this size are copied out of the receive buffer: keeping 4 KiB of it would keep all 128 KiB.
const COPY_LIMIT: usize = 32 << 10;

/// A payload that may stay for long without holding on to much more memory than its own.
pub(super) fn copied_if_small(payload: &Bytes) -> Bytes {
    if payload.len() <= COPY_LIMIT { Bytes::copy_from_slice(payload) } else { payload.clone() }
}

/// One placement group's replica on this device.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) core: Pg<Payload>,
    /// As last told to the core.
    pub(super) config: Option<Arc<PgConfig>>,
    pub(super) joiners: Vec<pflex_proto::ids::Member>,
    /// Store changes on their way, with the core's number for each.
    tickets: VecDeque<(store::Ticket, Ticket)>,
    last_asked: store::Ticket,
    durable: store::Ticket,
    /// The store refused a change; nothing more is asked of it for this group until the core has cleared that (S4).
    failed: bool,
    last_core: Ticket,
}

impl Slot {
    pub(super) fn new(core: Pg<Payload>) -> Self {
        Self {
            core,
            config: None,
            joiners: Vec::new(),
            tickets: VecDeque::new(),
            last_asked: store::Ticket::default(),
            durable: store::Ticket::default(),
            failed: false,
            last_core: Ticket::default(),
        }
    }

    /// That of a group split off this one, of which everything is durable.
    pub(super) fn half(&self, core: Pg<Payload>) -> Self {
        Self { failed: self.failed, ..Self::new(core) }
    }

    /// The store made a prefix durable: the core's number for it, if that is news.
    pub(super) fn durable(&mut self, through: store::Ticket) -> Option<Ticket> {
        self.durable = self.durable.max(through);
        let mut reached = None;
        while let Some((_, core)) = self.tickets.front().filter(|(asked, _)| *asked <= self.durable) {
            reached = Some(*core);
            self.tickets.pop_front();
        }
        reached
    }

    /// Nothing that is on its way will be reported durable; the first one that failed.
    pub(super) fn fail(&mut self) -> Ticket {
        self.failed = true;
        let first = self.tickets.front().map_or(Ticket(self.last_core.0 + 1), |(_, core)| *core);
        self.tickets.clear();
        first
    }
}

/// What had to wait for the disk.
#[derive(Debug)]
pub(super) enum Fetched {
    /// A store read.
    Data { pg: PgId, purpose: Purpose, result: Result<ReadData, ReadError> },
    /// The search for blocks that cannot be read.
    Found { pg: PgId, found: Event<Payload> },
    /// Some block of a chunk cannot be read, so each is to be read by itself.
    Unsound { pg: PgId, round: Round, chunk: ChunkId },
}

/// Why a change is not made.
struct Failed {
    no_space: bool,
    error: Box<dyn std::error::Error>,
}

impl From<&'static str> for Failed {
    fn from(why: &'static str) -> Self {
        Self { no_space: false, error: why.into() }
    }
}

/// What a store read is for.
#[derive(Debug)]
pub(super) enum Purpose {
    Read { request: RequestId, range: BlockRange, extent: Extent },
    Merge { request: RequestId, range: BlockRange, extent: Extent, data: Payload },
    Blocks { round: Round, chunk: ChunkId, extent: Extent },
    Difference { round: Round, chunk: ChunkId, version: Option<Version>, range: BlockRange, theirs: BlockSums },
}

impl Worker {
    pub(super) fn carry_out(&mut self, pg: PgId, effect: Effect<Payload>) {
        match effect {
            Effect::Apply { ticket, write, watermark } => {
                self.resync.application();
                let Some(run) = run_of(write.extent, write.kind) else {
                    return self.changed(pg, ticket, Err("an ordered write that is not whole blocks".into()));
                };
                let serving = self.slots.get(&pg).is_some_and(|slot| slot.core.is_serving());
                let volatility = self.volatility(pg);
                let change = store::OrderedWrite {
                    pg,
                    chunk: write.chunk,
                    version: write.version,
                    run,
                    origin: store::Origin {
                        client: client(write.client),
                        operation: write.operation,
                        low_water: write.low_water,
                    },
                    watermark,
                    volatility,
                    lane: if serving { Lane::Client } else { Lane::Replication },
                };
                self.change(pg, ticket, |store| store.apply(change));
            }
            Effect::FixChunk { ticket, chunk, image, operations } => {
                let operations = operations.into_iter().map(operation).collect();
                let ChunkImage { version, runs } = image;
                match runs.into_iter().map(run_of_blocks).collect() {
                    Some(runs) => {
                        let fix = store::Fix { pg, chunk, version, runs, operations };
                        self.change(pg, ticket, |store| store.fix_chunk(fix));
                    }
                    None => self.changed(pg, ticket, Err("a fix that is not whole blocks".into())),
                }
            }
            Effect::MarkUnsynced { ticket, chunk } => self.change(pg, ticket, |store| store.mark_unsynced(pg, chunk)),
            Effect::WriteBlocks { ticket, chunk, runs } => match runs.into_iter().map(run_of_blocks).collect() {
                Some(runs) => self.change(pg, ticket, |store| store.write_blocks(pg, chunk, runs)),
                None => self.changed(pg, ticket, Err("resync blocks that are not whole".into())),
            },
            Effect::SetVersion { ticket, chunk, version } => {
                self.change(pg, ticket, |store| store.set_version(pg, chunk, version));
            }
            Effect::ReplaceOperations { ticket, operations, watermark, last } => {
                let snapshot = store::OperationSnapshot {
                    entries: operations.entries.into_iter().map(operation).collect(),
                    low_waters: operations.low_waters.into_iter().map(|(key, low)| (client(key), low)).collect(),
                };
                let volatility = self.volatility(pg);
                self.change(pg, ticket, |store| store.replace_operations(pg, snapshot, watermark, volatility, last));
            }
            Effect::ClearFailure { ticket } => {
                let Some(slot) = self.slots.get_mut(&pg) else { return };
                slot.failed = false;
                slot.last_core = ticket;
                slot.tickets.push_back((slot.last_asked, ticket));
                self.report_durable(pg);
            }
            Effect::Read { request, chunk, extent } => {
                self.resync.application();
                match BlockRange::around(extent.offset, extent.length) {
                    Some(range) if self.pending.asks_allocation(request) => {
                        let reply = AllocationReply { written: self.store.written(chunk, range) };
                        let data = Some(Payload::verified(Bytes::from(reply.to_bytes()), []));
                        self.events.push_back((pg, Event::ReadDone { request, data }));
                    }
                    Some(range) => self.fetch(pg, chunk, range, Purpose::Read { request, range, extent }),
                    None => self.events.push_back((pg, Event::ReadDone { request, data: None })),
                }
            }
            Effect::Merge { request, chunk, extent, data } => match BlockRange::around(extent.offset, extent.length) {
                Some(range) => self.fetch(pg, chunk, range, Purpose::Merge { request, range, extent, data }),
                None => self.events.push_back((pg, Event::Merged { request, merged: None })),
            },
            Effect::ListVersions { round, above } => {
                let entries = self.store.versions(pg, above).into_iter();
                let entries = entries.map(|e| replication::ChunkEntry { chunk: e.chunk, version: e.version }).collect();
                self.events.push_back((pg, Event::Listed { round, entries }));
            }
            Effect::ReadSums { round, chunk } => {
                let sums = BlockSums(self.store.checksums(chunk).map(|sums| sums.blocks).unwrap_or_default());
                self.events.push_back((pg, Event::SumsRead { round, chunk, sums }));
            }
            Effect::ReadDifference { round, chunk, theirs } => {
                let version = self.store.chunk(chunk).and_then(|entry| entry.version);
                let own = self.store.checksums(chunk).map(|sums| sums.blocks).unwrap_or_default();
                match hull(&BlockSums(own), &theirs) {
                    Some(range) => {
                        self.fetch(pg, chunk, range, Purpose::Difference { round, chunk, version, range, theirs })
                    }
                    None => {
                        let image = Some(ChunkImage { version, runs: Vec::new() });
                        self.events.push_back((pg, Event::DifferenceRead { round, chunk, image }));
                    }
                }
            }
            Effect::FindUnreadable { round, chunk, extent } => self.find_unreadable(pg, round, chunk, extent),
            Effect::ReadBlocks { round, chunk, extent } => match BlockRange::from_bytes(extent.offset, extent.length) {
                Some(range) => self.fetch(pg, chunk, range, Purpose::Blocks { round, chunk, extent }),
                None => {
                    let none = Event::BlocksRead { round, chunk, extent, version: None, data: None };
                    self.events.push_back((pg, none));
                }
            },
            Effect::Repair { ticket, chunk, version, extent, data } => {
                self.repair(pg, ticket, (chunk, version), extent, data);
            }
            Effect::Verify { round, chunk } => self.verify(pg, round, chunk),
            Effect::Scrubbed { chunk, outcome } => self.on_scrubbed(pg, chunk, outcome),
            Effect::Unreadable { chunk, extent } => {
                self.scrub.cannot_read(pg, chunk);
                tracing::error!(%pg, device = %self.own.device, %chunk, ?extent, "critical: data that cannot be read here, and no other in-sync copy has it");
                self.counters.unreadable_blocks.fetch_add(1, Ordering::Relaxed);
            }
            Effect::Reserve { chunk } => {
                // For a client's write the spare space stays spare here too; a copy being filled may use it.
                let role = self.slots.get(&pg).map(|slot| slot.core.status().role);
                let joins = matches!(role, Some(replication::RoleName::Joiner));
                let keep = if joins { 0 } else { self.spare_units() };
                let granted = self.store.reserve(pg, chunk, keep);
                self.events.push_back((pg, Event::Reserved { chunk, granted }));
            }
            Effect::Unreserve { chunk } => self.store.release_reservation(pg, chunk),
            Effect::ReleaseReservations => self.store.release_reservations(pg),
            Effect::Send(message) => self.send(&message),
            Effect::Reply { request, outcome } => self.answer(request, outcome),
            Effect::Propose(proposal) => {
                tracing::info!(pg = %pg, epoch = %proposal.expected_epoch, reason = ?proposal.reason, "proposing a configuration");
                let (reports, device) = (self.reports.clone(), self.own.device);
                // Never dropped: a proposal that got lost would leave its group waiting for ever.
                tokio::task::spawn_local(async move {
                    drop(reports.send(Report::Propose { device, proposal }).await);
                });
            }
            // The map's watch brings it; nothing else can.
            Effect::FetchConfig { pg, at_least } => {
                tracing::debug!(%pg, epoch = %at_least, "waiting for a configuration")
            }
            Effect::RenewLeases => self.renew_leases = true,
        }
    }

    fn volatility(&self, pg: PgId) -> VolatilityId {
        self.slots.get(&pg).and_then(|slot| slot.core.config()).map(|config| config.volatility).unwrap_or_default()
    }

    /// A change that the store need not make is durable with the one before it, which may be so already.
    fn report_durable(&mut self, pg: PgId) {
        let reached = self.slots.get_mut(&pg).and_then(|slot| slot.durable(slot.durable));
        self.events.extend(reached.map(|through| (pg, Event::Durable { through })));
    }

    fn change(
        &mut self,
        pg: PgId,
        ticket: Ticket,
        change: impl FnOnce(&mut store::Store) -> Result<store::Ticket, store::ApplyError>,
    ) {
        if self.departed.withholds(pg) {
            return self.changed(pg, ticket, Err("what is left of the copy here is being dropped".into()));
        }
        if self.slots.get(&pg).is_some_and(|slot| !slot.failed) {
            let outcome = change(&mut self.store);
            let no_space = matches!(outcome, Err(store::ApplyError::NoSpace { .. }));
            self.changed(pg, ticket, outcome.map_err(|error| Failed { no_space, error: error.into() }));
        }
    }

    fn changed(&mut self, pg: PgId, ticket: Ticket, outcome: Result<store::Ticket, Failed>) {
        let Some(slot) = self.slots.get_mut(&pg) else { return };
        slot.last_core = ticket;
        match outcome {
            Ok(asked) => {
                slot.last_asked = asked;
                slot.tickets.push_back((asked, ticket));
                // S14. A change that waits for journal space is not held: so whoever writes faster than the disk waits, and
                // what is held and not durable is never more than the journal takes.
                if slot.core.is_writeback() && !self.store.is_waiting(pg) {
                    self.events.push_back((pg, Event::Held { through: ticket }));
                }
            }
            Err(Failed { no_space, error }) => {
                tracing::error!(%pg, device = %self.own.device, error = error.as_ref(), "a copy cannot apply an ordered change and leaves");
                slot.failed = true;
                // Before whatever else it is to hear: nothing is read for a core that does not know yet.
                self.events.push_front((pg, Event::StoreFailed { ticket, no_space }));
            }
        }
    }

    /// Reads from the store: what is in memory or in the page cache at once, else when the disk has answered.
    fn fetch(&mut self, pg: PgId, chunk: ChunkId, range: BlockRange, purpose: Purpose) {
        let mut read = self.store.read(chunk, range);
        match (&mut read).now_or_never() {
            Some(result) => self.on_fetched(Fetched::Data { pg, purpose, result }),
            None => {
                let fetched = self.fetched.clone();
                tokio::task::spawn_local(async move {
                    // Nobody receives it when the loop has ended.
                    drop(fetched.send(Fetched::Data { pg, purpose, result: read.await }));
                });
            }
        }
    }

    /// Reads each block by itself: a read of many fails as a whole.
    fn find_unreadable(&mut self, pg: PgId, round: Round, chunk: ChunkId, extent: Extent) {
        let version = self.store.chunk(chunk).and_then(|entry| entry.version);
        let blocks = BlockRange::from_bytes(extent.offset, extent.length).map(BlockRange::blocks).unwrap_or_default();
        let one = |block| Some((block, self.store.read(chunk, BlockRange::new(block, 1)?)));
        let reads: Vec<_> = blocks.filter_map(one).collect();
        let fetched = self.fetched.clone();
        tokio::task::spawn_local(async move {
            let mut blocks = Vec::new();
            for (block, read) in reads {
                if read.await.is_err() {
                    blocks.push(block);
                }
            }
            let found = Event::UnreadableFound { round, chunk, version, blocks };
            // Nobody receives it when the loop has ended.
            drop(fetched.send(Fetched::Found { pg, found }));
        });
    }

    /// S13: only at the version the bytes are of, and only the bytes that were lost: the checksums of those are still
    /// here. Anything else changes nothing; the copy is as good as before.
    fn repair(
        &mut self,
        pg: PgId,
        ticket: Ticket,
        (chunk, version): (ChunkId, Version),
        extent: Extent,
        data: Payload,
    ) {
        let blocks = BlockRange::from_bytes(extent.offset, extent.length);
        let known = self.store.checksums(chunk).zip(blocks);
        let known = known.and_then(|(sums, range)| {
            sums.blocks.get(usize::from(range.first())..usize::from(range.first() + range.count())).map(<[u32]>::to_vec)
        });
        let same = known.is_some_and(|known| known == *data.checksums);
        let run = run_of(extent, WriteKind::Data(data)).filter(|run| same && run.is_sound());
        let last = self.slots.get(&pg).map(|slot| slot.last_asked).unwrap_or_default();
        let Some(run) = run else {
            tracing::error!(%pg, device = %self.own.device, %chunk, ?extent, "critical: another copy has other bytes under the same version; not taken");
            self.counters.unreadable_blocks.fetch_add(1, Ordering::Relaxed);
            self.change(pg, ticket, |_| Ok(last));
            return self.report_durable(pg);
        };
        let mut repaired = 0;
        self.change(pg, ticket, |store| match store.repair(pg, chunk, version, run) {
            Ok(asked) => {
                repaired = u64::from(extent.length / BLOCK_SIZE);
                Ok(asked)
            }
            // Its volume is being deleted.
            Err(store::ApplyError::WrongState { .. }) => Ok(last),
            Err(error) => Err(error),
        });
        self.report_durable(pg);
        if repaired > 0 {
            self.scrub.can_read(chunk);
            tracing::warn!(%pg, device = %self.own.device, %chunk, ?extent, "blocks that could not be read were put back from another copy");
            self.counters.repaired_blocks.fetch_add(repaired, Ordering::Relaxed);
        }
    }

    pub(super) fn on_fetched(&mut self, fetched: Fetched) {
        let (pg, purpose, result) = match fetched {
            Fetched::Data { pg, purpose, result } => (pg, purpose, result),
            Fetched::Found { pg, found } => return self.events.push_back((pg, found)),
            Fetched::Unsound { pg, round, chunk } => return self.verify_blocks(pg, round, chunk),
        };
        let data =
            result.inspect_err(|error| tracing::error!(%pg, device = %self.own.device, %error, "a read failed")).ok();
        let event = match purpose {
            Purpose::Read { request, range, extent } => {
                Event::ReadDone { request, data: data.map(|read| cut(&read, range, extent)) }
            }
            Purpose::Merge { request, range, extent, data: new } => {
                let at = extent.offset - u32::from(range.first()) * BLOCK_SIZE;
                let merged = data.and_then(|read| store::patch_blocks(&read.data, at as usize, &new.data));
                let offset = u32::from(range.first()) * BLOCK_SIZE;
                let whole = Extent { offset, length: u32::from(range.count()) * BLOCK_SIZE };
                Event::Merged { request, merged: merged.map(|(bytes, sums)| (whole, Payload::verified(bytes, sums))) }
            }
            Purpose::Blocks { round, chunk, extent } => {
                let version = data.as_ref().and_then(|read| read.version);
                let data = data.map(|read| Payload::verified(read.data, read.checksums));
                Event::BlocksRead { round, chunk, extent, version, data }
            }
            Purpose::Difference { round, chunk, version, range, theirs } => {
                // A chunk that was changed since the read was asked for is compared again by the core's own order:
                // what it forwards after this read comes after it on the other side too.
                let image = data.map(|read| ChunkImage { version, runs: difference(&read, range.first(), &theirs) });
                Event::DifferenceRead { round, chunk, image }
            }
        };
        self.events.push_back((pg, event));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One chunk, whole, whose block 5 the disk has damaged.
    #[tokio::test]
    async fn what_cannot_be_read_is_found_and_put_back_with_its_own_bytes_alone() {
        use crate::{store::Geometry, worker::testing};
        use pflex_proto::ids::{Epoch, Sequence};
        let repair = async {
            let (device, meta) = testing::disk();
            let (config, _reports) = testing::config(device.clone(), &meta);
            let (_commands, commands) = tokio::sync::mpsc::channel(1);
            let mut worker = Worker::new(config, Arc::default(), commands);
            let (sender, mut fetched) = tokio::sync::mpsc::unbounded_channel();
            worker.fetched = sender;
            let (pg, chunk, extent) = (PgId::default(), ChunkId::default(), Extent::CHUNK);
            worker.slot(pg);
            let version = Version { epoch: Epoch(1), sequence: Sequence(1) };
            let payload = |fill: u8, blocks: u32| Payload::computed(vec![fill; (blocks * BLOCK_SIZE) as usize].into());
            let write = replication::OrderedWrite {
                version,
                chunk,
                extent,
                kind: WriteKind::Data(payload(7, 256)),
                client: replication::ClientKey { sdc: Default::default(), volume: Default::default() },
                operation: Default::default(),
                low_water: Default::default(),
            };
            worker.carry_out(pg, Effect::Apply { ticket: Ticket(1), write, watermark: Sequence(0) });
            let durable = worker.store.durable().await;
            worker.on_durable(durable);
            let geometry = Geometry { units: 16, ..Geometry::divide(1 << 30, 0).unwrap() };
            (0..16).for_each(|unit| device.corrupt(geometry.unit_offset(unit) + 5 * u64::from(BLOCK_SIZE) + 17));
            worker.carry_out(pg, Effect::FindUnreadable { round: Round(3), chunk, extent });
            let Some(Fetched::Found { found: Event::UnreadableFound { version: of, blocks, .. }, .. }) =
                fetched.recv().await
            else {
                panic!("the search ends")
            };
            assert_eq!((of, blocks.as_slice()), (Some(version), &[5][..]));
            let counted = |worker: &Worker| {
                let counters = &worker.counters;
                (counters.repaired_blocks.load(Ordering::Relaxed), counters.unreadable_blocks.load(Ordering::Relaxed))
            };
            let extent = Extent::block(5);
            let stale = Version { epoch: Epoch(1), sequence: Sequence(9) };
            let offers = [(version, 8, (0, 1)), (stale, 7, (0, 1)), (version, 7, (1, 1))];
            for (ticket, (version, fill, expected)) in (2..).map(Ticket).zip(offers) {
                worker.events.clear();
                let data = payload(fill, 1);
                worker.carry_out(pg, Effect::Repair { ticket, chunk, version, extent, data });
                assert_eq!(counted(&worker), expected, "{version} {fill}");
                let whole = worker.store.read(chunk, BlockRange::WHOLE).await;
                assert_eq!(whole.is_ok(), expected.0 == 1, "{version} {fill}");
                let durable = |(_, event): &(PgId, Event<Payload>)| matches!(event, Event::Durable { through } if *through == ticket);
                assert_eq!(
                    worker.events.iter().any(durable),
                    expected.0 == 0,
                    "what changes nothing is durable at once"
                );
            }
            assert!(worker.store.read(chunk, BlockRange::WHOLE).await.unwrap().data.iter().all(|byte| *byte == 7));
        };
        tokio::task::LocalSet::new().run_until(repair).await;
    }

    #[test]
    fn a_prefix_that_is_durable_is_reported_once() {
        let own = pflex_proto::ids::Member {
            device: Default::default(),
            sds: Default::default(),
            incarnation: pflex_proto::ids::Incarnation(1),
        };
        let leases = replication::Leases::new(own, replication::Time(0));
        let mut slot = Slot::new(Pg::new(PgId::default(), own, Default::default(), &leases));
        slot.tickets.extend([(store::Ticket(5), Ticket(1)), (store::Ticket(9), Ticket(2))]);
        assert_eq!(slot.durable(store::Ticket(4)), None);
        assert_eq!(slot.durable(store::Ticket(8)), Some(Ticket(1)));
        assert_eq!(slot.durable(store::Ticket(8)), None);
        assert_eq!(slot.fail(), Ticket(2));
        assert_eq!(slot.durable(store::Ticket(20)), None, "what failed is never durable");
    }
}
