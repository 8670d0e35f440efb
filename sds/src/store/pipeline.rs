//! From visible to durable: lanes, placement of large data, group commit, folding.
//!
//! One journal write is in flight at most; what is queued meanwhile goes into the next one, so the running write is the
//! batching window and no timer is needed. It starts when the owner looks for what became durable, that is, with
//! everything that the owner had to ask for before it would wait. Ring space is promised when a change leaves its lane: from there on nothing
//! it waits for depends on other changes, so a full ring always drains by the checkpoint alone (S24).

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
};

use pflex_proto::{
    geometry::BLOCK_SIZE,
    ids::{ChunkId, PgId},
};
use tokio::sync::mpsc;

use super::{
    DirtyKey, Stats, Store,
    blocks::BlockSet,
    chunk::Freed,
    error::{MetaError, Poison},
    record::{Kind, Record, UnitId},
    ring::{self, HEADER_BYTES, Identity, MAX_GROUP_BYTES, Position, Ring},
    space::Quarantined,
    types::{Durable, Lane, Ticket},
};
use crate::device::{AlignedBuffer, DeviceError, Op, Outcome};

/// Runs from this many blocks on (64 KiB) go to the data area at once, if their place is unreferenced: below, one
/// sequential journal write beats a random write and a flush.
const LARGE_BLOCKS: u16 = 16;
/// Large writes on their way to the data area: bounds promised ring space (1 MiB each until placed) and memory.
const MAX_PLACING: usize = 16;

/// Something a completion reports. They carry no decision.
#[derive(Debug)]
pub(super) enum Event {
    GroupWritten(Result<(), DeviceError>),
    Placed(Ticket, Result<(), DeviceError>),
    DataSynced(Result<(), DeviceError>),
    CheckpointWritten(Result<(), DeviceError>),
    MetaCommitted(Result<(), MetaError>),
    Discarded(UnitId),
    Backed(Result<(), DeviceError>),
    ReaderGone,
}

/// A change on its way.
#[derive(Clone, Debug)]
pub(super) struct Work {
    pub(super) ticket: Ticket,
    pub(super) record: Arc<Record>,
    /// Ring bytes it needs, promised once it left its lane.
    pub(super) promised: u64,
    pub(super) lane: Lane,
}

struct InFlight {
    at: Position,
    first_record: u64,
    works: Vec<(Work, Option<UnitId>)>,
}

/// A data sync that runs, and what it makes durable.
struct DataSync {
    placed: Vec<Ticket>,
    checkpoint: bool,
}

/// See the module.
pub(super) struct Pipeline {
    last_ticket: Ticket,
    next_record: u64,
    /// Client, then replication.
    lanes: [VecDeque<Work>; 2],
    journal: VecDeque<(Work, Option<UnitId>)>,
    in_flight: Option<InFlight>,
    placing: BTreeMap<Ticket, (Work, UnitId)>,
    /// Written to the data area, waiting for the next sync.
    placed: Vec<Ticket>,
    sync: Option<DataSync>,
    /// Behind the last folded group: nothing before it is needed for what is not dirty.
    pub(super) folded: Position,
    completed: BTreeMap<PgId, Ticket>,
    pending: u64,
    groups: u64,
    grouped: u64,
}

impl Pipeline {
    pub(super) fn new(next_record: u64, head: Position) -> Self {
        Self {
            last_ticket: Ticket(0),
            next_record,
            lanes: Default::default(),
            journal: VecDeque::new(),
            in_flight: None,
            placing: BTreeMap::new(),
            placed: Vec::new(),
            sync: None,
            folded: head,
            completed: BTreeMap::new(),
            pending: 0,
            groups: 0,
            grouped: 0,
        }
    }

    pub(super) const fn next_ticket(&mut self) -> Ticket {
        self.last_ticket.0 += 1;
        self.last_ticket
    }

    pub(super) fn queue(&mut self, work: Work) {
        self.pending += 1;
        self.lanes[work.lane as usize].push_back(work);
    }

    pub(super) fn stats(&self) -> Stats {
        let waiting = self.lanes.iter().map(VecDeque::len).sum::<usize>() as u64;
        Stats {
            waiting_changes: waiting,
            pending_changes: self.pending,
            groups: self.groups,
            grouped_changes: self.grouped,
            ..Stats::default()
        }
    }

    /// Records written to the journal so far, in all lives.
    pub(super) const fn records(&self) -> u64 {
        self.next_record
    }

    pub(super) const fn is_idle(&self) -> bool {
        self.pending == 0
    }

    /// Whether a change has not left its lane.
    pub(super) fn has_waiting(&self) -> bool {
        self.lanes.iter().any(|lane| !lane.is_empty())
    }
}

impl Store {
    /// What became durable since the last call, and all background progress. Ready with an error once the device is out
    /// of service; after that error was returned once it stays pending, so a loop does not spin.
    pub fn poll_durable(&mut self, context: &mut Context<'_>) -> Poll<Result<Vec<Durable>, Poison>> {
        loop {
            while let Ok(event) = self.events.try_recv() {
                self.take(event);
            }
            if self.poison.is_none() {
                self.write_group();
            }
            if !self.pipeline.completed.is_empty() {
                let completed = std::mem::take(&mut self.pipeline.completed);
                return Poll::Ready(Ok(completed.into_iter().map(|(pg, through)| Durable { pg, through }).collect()));
            }
            if let Some(poison) = &self.poison
                && !self.poison_reported
            {
                self.poison_reported = true;
                return Poll::Ready(Err(poison.clone()));
            }
            match self.events.poll_recv(context) {
                Poll::Ready(Some(event)) => self.take(event),
                // The store holds a sender itself, so the channel never ends.
                Poll::Ready(None) | Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// [`Self::poll_durable`] as a future. Cancel-safe: what became durable is kept until it is returned.
    ///
    /// # Errors
    /// When the device went out of service; once.
    pub async fn durable(&mut self) -> Result<Vec<Durable>, Poison> {
        std::future::poll_fn(|context| self.poll_durable(context)).await
    }

    /// Waits until everything is durable and carried to the data area and `sds_local.db`, so that the next open has
    /// nothing to replay. What became durable meanwhile is not reported any more.
    ///
    /// # Errors
    /// When the device went out of service.
    pub async fn close(mut self) -> Result<(), Poison> {
        self.checkpoint.set_forced();
        self.settle();
        std::future::poll_fn(|context| {
            loop {
                if let Some(poison) = &self.poison {
                    return Poll::Ready(Err(poison.clone()));
                }
                if self.pipeline.is_idle() && self.dirty.is_empty() && !self.checkpoint.is_active() {
                    return Poll::Ready(Ok(()));
                }
                match self.poll_durable(context) {
                    Poll::Ready(Ok(_)) => {}
                    Poll::Ready(Err(poison)) => return Poll::Ready(Err(poison)),
                    Poll::Pending if self.is_clean() => {}
                    Poll::Pending => return Poll::Pending,
                }
            }
        })
        .await
    }

    fn is_clean(&self) -> bool {
        self.poison.is_none() && self.pipeline.is_idle() && self.dirty.is_empty() && !self.checkpoint.is_active()
    }

    fn take(&mut self, event: Event) {
        if self.poison.is_some() {
            return;
        }
        match event {
            Event::GroupWritten(Ok(())) => self.group_written(),
            Event::Placed(ticket, Ok(())) => self.pipeline.placed.push(ticket),
            Event::DataSynced(Ok(())) => self.data_synced(),
            Event::CheckpointWritten(Ok(())) => self.checkpoint.written(),
            Event::MetaCommitted(Ok(())) => self.checkpoint_committed(),
            Event::Discarded(unit) => {
                self.space.discarding -= 1;
                self.space.give_back(unit, true);
            }
            Event::Backed(outcome) => {
                if self.space.backed(outcome.is_ok())
                    && let Err(error) = outcome
                {
                    tracing::warn!(device = %self.superblock.uuid, %error, "there is no space for more: the device is full");
                }
            }
            Event::ReaderGone => {}
            Event::GroupWritten(Err(error)) => self.fail("a journal write", error),
            Event::Placed(_, Err(error)) => self.fail("a data write", error),
            Event::DataSynced(Err(error)) => self.fail("a data flush", error),
            Event::CheckpointWritten(Err(error)) => self.fail("a checkpoint write", error),
            Event::MetaCommitted(Err(error)) => self.fail("a metadata commit", error),
        }
        self.settle();
    }

    /// Takes the device out of service. What is in flight is forgotten: whether it is durable only the next open knows.
    pub(super) fn fail(&mut self, during: &'static str, cause: impl std::error::Error + Send + Sync + 'static) {
        self.poison.get_or_insert(Poison { during, cause: Arc::new(cause) });
    }

    /// Starts whatever can start. Idempotent and cheap; runs after each change and each event.
    pub(super) fn settle(&mut self) {
        if self.poison.is_some() {
            return;
        }
        self.awaits_readers.store(false, Ordering::SeqCst);
        self.release_quarantine();
        self.back_units();
        self.admit(Lane::Replication);
        self.admit(Lane::Client);
        self.advance_checkpoint();
        self.sync_data();
    }

    /// Ring bytes that a change must leave free for those that matter more (S24).
    fn keep_bytes(&self, work: &Work) -> u64 {
        let share = self.ring.bytes() / 16;
        match work.lane {
            // Marks, removals, TRIM and table replacements may use the last share: they free space.
            _ if !work.record.has_data() => 0,
            Lane::Replication => share,
            Lane::Client => 3 * share,
        }
    }

    fn admit(&mut self, lane: Lane) {
        while let Some(work) = self.pipeline.lanes[lane as usize].front() {
            // A change of a whole group's table stands in the journal exactly where it stands in the group's order.
            let must_be_alone = !work.record.kind.is_of_chunk();
            let is_next = || self.pgs.get(&work.record.pg).and_then(|pg| pg.oldest()) == Some(work.ticket);
            if (must_be_alone && !is_next()) || (is_large(&work.record) && self.pipeline.placing.len() >= MAX_PLACING) {
                return;
            }
            let (bytes, keep) = (work.promised, self.keep_bytes(work));
            if !self.ring.reserve(bytes, keep) {
                return self.checkpoint.want();
            }
            let Some(work) = self.pipeline.lanes[lane as usize].pop_front() else { return };
            if let Some(pg) = self.pgs.get_mut(&work.record.pg) {
                pg.queued -= 1;
            }
            self.dispatch_in_order(work);
        }
    }

    fn dispatch_in_order(&mut self, work: Work) {
        if work.record.kind.is_of_chunk()
            && let Some(chunk) = self.chunks.get_mut(&work.record.chunk)
            && (chunk.placing.is_some() || !chunk.held.is_empty())
        {
            return chunk.held.push_back(work);
        }
        self.dispatch(work);
    }

    fn dispatch(&mut self, work: Work) {
        let Some((unit, run)) = self.placement(&work).zip(work.record.runs.first()) else {
            return self.pipeline.journal.push_back((work, None));
        };
        let offset =
            self.superblock.geometry.unit_offset(unit.0) + u64::from(run.blocks.first()) * u64::from(BLOCK_SIZE);
        let (sender, ticket) = (self.sender.clone(), work.ticket);
        let data = run.data.iter().cloned().collect();
        if let Some(chunk) = self.chunks.get_mut(&work.record.chunk) {
            chunk.placing = Some(ticket);
        }
        self.pipeline.placing.insert(ticket, (work, unit));
        let done = move |outcome: Outcome| drop(sender.send(Event::Placed(ticket, outcome.map(drop))));
        self.device.submit(Op::Write { offset, data }, Box::new(done));
    }

    /// The unit that a large run's bytes may go to directly: nothing durable references that place (S13).
    fn placement(&mut self, work: &Work) -> Option<UnitId> {
        let record = &work.record;
        if !is_large(record) {
            return None;
        }
        let run = record.runs.first()?;
        let chunk = self.chunks.get(&record.chunk)?;
        let earlier = || chunk.pending.iter().take_while(|pending| pending.ticket < work.ticket);
        if run.blocks.is_whole() {
            let is_first = chunk.stable.unit.is_none() && earlier().next().is_none();
            return if is_first { record.unit } else { self.space.take_spare() };
        }
        let blocks = BlockSet::of(run.blocks);
        #[cfg(test)]
        if super::tests::is_planted(super::tests::Bug::OverwriteReferenced) {
            return chunk.stable.unit;
        }
        if earlier().next().is_some() || chunk.stable.written.intersects(&blocks) {
            return None;
        }
        let unit = chunk.stable.unit.or(record.unit)?;
        // Zeroed blocks are unreferenced, yet an old reader or a running checkpoint may still be at them.
        let busy = self.checkpoint.is_writing(unit, &blocks)
            || self.readers.are_reading(unit, Some(&blocks), &self.awaits_readers);
        (!busy).then_some(unit)
    }

    /// One sync at a time makes everything durable that was written before it began.
    fn sync_data(&mut self) {
        let checkpoint = self.checkpoint.wants_sync();
        if self.pipeline.sync.is_some() || (self.pipeline.placed.is_empty() && !checkpoint) {
            return;
        }
        if checkpoint {
            self.checkpoint.sync_started();
        }
        self.pipeline.sync = Some(DataSync { placed: std::mem::take(&mut self.pipeline.placed), checkpoint });
        let sender = self.sender.clone();
        let done = move |outcome: Outcome| drop(sender.send(Event::DataSynced(outcome.map(drop))));
        self.device.submit(Op::Sync, Box::new(done));
    }

    fn data_synced(&mut self) {
        let Some(sync) = self.pipeline.sync.take() else { return };
        for ticket in sync.placed {
            let Some((mut work, unit)) = self.pipeline.placing.remove(&ticket) else { continue };
            let cost = Ring::cost(work.record.encoded_bytes(true));
            self.ring.unreserve(work.promised - cost);
            work.promised = cost;
            let id = work.record.chunk;
            self.pipeline.journal.push_back((work, Some(unit)));
            self.release_held(id);
        }
        if sync.checkpoint {
            self.commit_checkpoint();
        }
    }

    /// Lets the changes go that waited behind a placed one, up to the next that is placed itself.
    fn release_held(&mut self, id: ChunkId) {
        let Some(chunk) = self.chunks.get_mut(&id) else { return };
        chunk.placing = None;
        while let Some(chunk) = self.chunks.get_mut(&id)
            && chunk.placing.is_none()
            && let Some(work) = chunk.held.pop_front()
        {
            self.dispatch(work);
        }
    }

    /// Group commit: everything queued, up to the largest group, in one durable write.
    fn write_group(&mut self) {
        if self.pipeline.in_flight.is_some() || self.pipeline.journal.is_empty() {
            return;
        }
        let (mut works, mut bytes, mut promised) = (Vec::new(), HEADER_BYTES, 0);
        while let Some((work, placed)) = self.pipeline.journal.front() {
            let size = work.record.encoded_bytes(placed.is_some());
            if bytes + size > MAX_GROUP_BYTES {
                break;
            }
            (bytes, promised) = (bytes + size, promised + work.promised);
            works.extend(self.pipeline.journal.pop_front());
        }
        let mut buffer = AlignedBuffer::with_capacity(bytes);
        buffer.extend(&[0; HEADER_BYTES]);
        let mut head = Vec::with_capacity(256);
        for (work, placed) in &works {
            head.clear();
            work.record.encode_head(*placed, &mut head);
            buffer.extend(&head);
            if placed.is_none() {
                work.record.data().for_each(|data| buffer.extend(data));
            }
        }
        debug_assert_eq!(buffer.len(), bytes, "encoded_bytes agrees with the encoding");
        let group_bytes = bytes.next_multiple_of(crate::device::ALIGNMENT) as u64;
        let (at, offset) = self.ring.place(group_bytes, promised);
        let first_record = self.pipeline.next_record;
        self.pipeline.next_record += works.len() as u64;
        let identity = Identity {
            uuid: self.superblock.uuid,
            generation: self.superblock.generation,
            incarnation: self.superblock.incarnation,
        };
        ring::seal(&mut buffer, &identity, at, works.len() as u32, first_record);
        self.pipeline.groups += 1;
        self.pipeline.grouped += works.len() as u64;
        self.pipeline.in_flight = Some(InFlight { at, first_record, works });
        let sender = self.sender.clone();
        let done = move |outcome: Outcome| drop(sender.send(Event::GroupWritten(outcome.map(drop))));
        self.device.submit(Op::WriteDurable { offset, data: buffer }, Box::new(done));
    }

    fn group_written(&mut self) {
        let Some(InFlight { at, first_record, works }) = self.pipeline.in_flight.take() else { return };
        for (number, (work, placed)) in (first_record..).zip(works) {
            self.fold(&work, placed, number, at);
        }
        self.pipeline.folded = self.ring.head;
    }

    /// A change is durable: it moves from pending to stable.
    fn fold(&mut self, work: &Work, placed: Option<UnitId>, number: u64, at: Position) {
        let record = &work.record;
        self.pipeline.pending -= 1;
        if record.kind.is_of_chunk() {
            self.fold_chunk(work, placed, number, at);
        }
        let key = DirtyKey::Pg(record.pg);
        self.dirty.mark(key, at);
        let Some(pg) = self.pgs.get_mut(&record.pg) else { return };
        pg.durable.apply(record);
        pg.record = number;
        if let Some(through) = pg.finish(work.ticket) {
            self.pipeline.completed.insert(record.pg, through);
        }
        if record.kind == Kind::DropPg {
            self.pgs.remove(&record.pg);
        }
    }

    fn fold_chunk(&mut self, work: &Work, placed: Option<UnitId>, number: u64, at: Position) {
        let id = work.record.chunk;
        let Some(chunk) = self.chunks.get_mut(&id) else { return };
        let first = chunk.pending.pop_front();
        debug_assert_eq!(first.map(|pending| pending.ticket), Some(work.ticket), "in the order of the calls");
        let mut freed = Vec::new();
        chunk.stable.fold(&work.record, placed, number, &mut freed);
        if chunk.is_gone() {
            self.chunks.remove(&id);
        }
        self.dirty.mark(DirtyKey::Chunk(id), at);
        let checkpoint = self.checkpoint.over_after();
        self.space.quarantine.extend(freed.into_iter().map(|freed| Quarantined { freed, checkpoint }));
    }

    /// Frees units that neither a checkpoint nor a reader is at any more.
    fn release_quarantine(&mut self) {
        let completed = self.checkpoint.completed();
        let mut waiting = Vec::new();
        for quarantined in std::mem::take(&mut self.space.quarantine) {
            let Freed { unit, discard } = quarantined.freed;
            #[cfg(test)]
            if super::tests::is_planted(super::tests::Bug::SkipQuarantine) {
                self.space.give_back(unit, false);
                continue;
            }
            if quarantined.checkpoint > completed || self.readers.are_reading(unit, None, &self.awaits_readers) {
                waiting.push(quarantined);
            } else if discard {
                self.space.discarding += 1;
                let offset = self.superblock.geometry.unit_offset(unit.0);
                let sender = self.sender.clone();
                // A discard that fails costs nothing but space on a sparse file.
                let done = move |_: Outcome| drop(sender.send(Event::Discarded(unit)));
                let length = u64::from(pflex_proto::geometry::CHUNK_SIZE);
                self.device.submit(Op::Discard { offset, length }, Box::new(done));
            } else {
                self.space.give_back(unit, false);
            }
        }
        self.space.quarantine = waiting;
    }

    /// Has the file system set space aside for chunks to come.
    fn back_units(&mut self) {
        let Some((first, count)) = self.space.back_next() else { return };
        let geometry = &self.superblock.geometry;
        let offset = geometry.unit_offset(first.0);
        let length = u64::from(count) * u64::from(pflex_proto::geometry::CHUNK_SIZE);
        let sender = self.sender.clone();
        let done = move |outcome: Outcome| drop(sender.send(Event::Backed(outcome.map(drop))));
        self.device.submit(Op::Allocate { offset, length }, Box::new(done));
    }

    /// Asks for space again where there was none: others may have given some back.
    pub fn look_for_space(&mut self) {
        self.space.ask_again();
        self.settle();
    }

    /// The channel that completions report on.
    pub(super) fn events() -> (mpsc::UnboundedSender<Event>, mpsc::UnboundedReceiver<Event>) {
        mpsc::unbounded_channel()
    }
}

/// Whether a change's bytes are worth a write of their own.
fn is_large(record: &Record) -> bool {
    matches!(record.runs.as_slice(), [run] if run.data.is_some() && run.blocks.count() >= LARGE_BLOCKS)
}
