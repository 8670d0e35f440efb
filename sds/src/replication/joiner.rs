//! A joiner: a copy outside the in-sync set that the primary fills (S10).
//!
//! Each chunk goes through three durable steps: marked unsynced, blocks written, version set. So at no moment does a
//! half-copied chunk bear a version that could equal another copy's.
//!
//! A copy that returns lists what it has above its watermark only, and so does the primary (S25). Nothing at or below the
//! mark differed between copies in sync when it was set, whatever is ordered later is above it, and whatever this copy has
//! beyond them is. So the mark stands still while the copy is filled, and rises at the end, when all of it is here. A copy
//! without a mark, or with one of other configurations (`Base::lineage`), lists everything.

use std::collections::{BTreeMap, VecDeque};

use pflex_proto::ids::{ChunkId, Member, Sequence};

use super::backup::send_list;
use super::base::{Base, Cx};
use super::effect::Effect;
use super::message::Body;
use super::planted::Bug;
use super::types::{ChunkEntry, ChunkImage, OrderedWrite, Round, Ticket};

/// See the module.
#[derive(Debug)]
pub(super) struct Joiner<D> {
    primary: Option<Member>,
    round: Round,
    /// The sequence received last on this attempt's stream; zero before the first.
    received: Sequence,
    /// Chunks that wait for space to be set aside here.
    unreserved: BTreeMap<ChunkId, ChunkImage<D>>,
    reserved: bool,
    /// Chunks whose next step waits for a ticket, in ticket order.
    steps: VecDeque<(Ticket, Step<D>)>,
}

#[derive(Debug)]
enum Step<D> {
    /// Marked; the blocks come next.
    Marked(ChunkId, ChunkImage<D>),
    /// Blocks written; the version comes last.
    Written(ChunkId, ChunkImage<D>),
}

impl<D: Clone> Joiner<D> {
    pub(super) fn new(primary: Option<Member>) -> Self {
        Self {
            primary,
            round: Round(0),
            received: Sequence(0),
            unreserved: BTreeMap::new(),
            reserved: false,
            steps: VecDeque::new(),
        }
    }

    pub(super) fn round(&self) -> Round {
        self.round
    }

    pub(super) fn primary(&self) -> Option<Member> {
        self.primary
    }

    /// Space was set aside that the end of this role should free.
    pub(super) fn has_reserved(&self) -> bool {
        self.reserved
    }

    pub(super) fn on_message(&mut self, base: &mut Base<D>, cx: &mut Cx<'_, D>, body: Body<D>) {
        let Some(primary) = self.primary else { return };
        match body {
            Body::JoinStart { round } if round > self.round => self.start(base, cx, round),
            // S4: nothing after a write that could not be applied; the primary drops this attempt.
            _ if base.failed => base.send(cx, primary, cannot_apply(base)),
            Body::SumsRequest { round, chunk } if round == self.round => cx.emit(Effect::ReadSums { round, chunk }),
            Body::SyncChunk { round, chunk, image } if round == self.round => self.on_chunk(base, cx, chunk, image),
            Body::Write { round, previous, committed, write } if round == self.round => {
                if base.planted.is(Bug::MarkWhileFilled) {
                    base.committed = base.committed.max(committed);
                }
                self.on_write(base, cx, primary, previous, write);
            }
            Body::JoinEnd { round, last, watermark, operations } if round == self.round => {
                base.last = base.last.max(last);
                // Set, not raised: a mark from an earlier membership says nothing about this one.
                base.committed = watermark;
                base.is_in_line();
                base.replace_operations(cx, operations);
                base.send_when_durable(cx, primary, Body::JoinReady { round });
            }
            // Of another attempt, or what only a primary or backup takes.
            Body::JoinStart { .. }
            | Body::SumsRequest { .. }
            | Body::SyncChunk { .. }
            | Body::Write { .. }
            | Body::JoinEnd { .. }
            | Body::Committed { .. }
            | Body::Collect { .. }
            | Body::Fix { .. }
            | Body::Open { .. }
            | Body::Reserve { .. }
            | Body::Unreserve { .. }
            | Body::Verify { .. }
            | Body::Verified { .. }
            | Body::WriteAck { .. }
            | Body::Durable { .. }
            | Body::Gap { .. }
            | Body::CannotApply
            | Body::VersionList { .. }
            | Body::Sums { .. }
            | Body::Fixed { .. }
            | Body::Opened { .. }
            | Body::ChunkSynced { .. }
            | Body::JoinReady { .. }
            | Body::ChunkRefused { .. }
            | Body::NoSpace
            | Body::Reserved { .. }
            | Body::FetchBlocks { .. }
            | Body::Blocks { .. }
            | Body::HandBack
            | Body::Refused => {}
        }
    }

    fn start(&mut self, base: &mut Base<D>, cx: &mut Cx<'_, D>, round: Round) {
        self.round = round;
        self.received = Sequence(0);
        self.steps.clear();
        self.unreserved.clear();
        if std::mem::take(&mut self.reserved) {
            cx.emit(Effect::ReleaseReservations);
        }
        base.clear_gates();
        if base.failed {
            (base.failed, base.no_space) = (false, false);
            let ticket = base.ticket();
            cx.emit(Effect::ClearFailure { ticket });
        }
        if base.lineage != base.volatility() && !base.planted.is(Bug::MarkOfOtherLineage) {
            base.committed = Sequence(0);
        }
        cx.emit(Effect::ListVersions { round, above: above(base.committed) });
    }

    pub(super) fn on_listed(&self, base: &mut Base<D>, cx: &mut Cx<'_, D>, round: Round, entries: &[ChunkEntry]) {
        if let (Some(primary), true) = (self.primary, round == self.round) {
            send_list(base, cx, primary, round, entries);
        }
    }

    fn on_write(
        &mut self,
        base: &mut Base<D>,
        cx: &mut Cx<'_, D>,
        primary: Member,
        previous: Sequence,
        write: OrderedWrite<D>,
    ) {
        let round = self.round;
        // S4. Nothing is resent to a joiner: after a gap the primary starts another attempt.
        if previous != self.received && !base.planted.is(Bug::AcceptGap) {
            return base.send(cx, primary, Body::Gap { round, after: self.received });
        }
        let through = write.version.sequence;
        self.received = through;
        base.apply(cx, write);
        base.acknowledge(cx, primary, round, through);
    }

    fn on_chunk(&mut self, base: &mut Base<D>, cx: &mut Cx<'_, D>, chunk: ChunkId, image: ChunkImage<D>) {
        base.has_seen(image.version);
        if image.runs.is_empty() || image.version.is_none() {
            // Nothing half-way can exist: the blocks are equal already, or the whole chunk goes.
            return self.set_version(base, cx, chunk, &image);
        }
        // A joiner that is full says so before anything of the chunk has changed, and takes the others.
        if image.runs.iter().any(|run| run.data.is_some()) {
            self.reserved = true;
            self.unreserved.insert(chunk, image);
            return cx.emit(Effect::Reserve { chunk });
        }
        self.begin_chunk(base, cx, chunk, image);
    }

    pub(super) fn on_reserved(&mut self, base: &mut Base<D>, cx: &mut Cx<'_, D>, chunk: ChunkId, granted: bool) {
        let Some(image) = self.unreserved.remove(&chunk) else { return };
        if granted {
            self.begin_chunk(base, cx, chunk, image);
        } else if let Some(primary) = self.primary {
            base.send(cx, primary, Body::ChunkRefused { round: self.round, chunk });
        }
    }

    fn begin_chunk(&mut self, base: &mut Base<D>, cx: &mut Cx<'_, D>, chunk: ChunkId, image: ChunkImage<D>) {
        if base.planted.is(Bug::SkipUnsyncedMark) {
            let ticket = base.ticket();
            cx.emit(Effect::WriteBlocks { ticket, chunk, runs: image.runs.clone() });
            return self.steps.push_back((ticket, Step::Written(chunk, image)));
        }
        let ticket = base.ticket();
        cx.emit(Effect::MarkUnsynced { ticket, chunk });
        self.steps.push_back((ticket, Step::Marked(chunk, image)));
    }

    /// Takes every chunk whose step became durable to its next.
    pub(super) fn on_durable(&mut self, base: &mut Base<D>, cx: &mut Cx<'_, D>) {
        while self.steps.front().is_some_and(|(ticket, _)| *ticket <= base.durable) {
            let Some((_, step)) = self.steps.pop_front() else { return };
            match step {
                Step::Marked(chunk, mut image) => {
                    let ticket = base.ticket();
                    let runs = std::mem::take(&mut image.runs);
                    cx.emit(Effect::WriteBlocks { ticket, chunk, runs });
                    self.steps.push_back((ticket, Step::Written(chunk, image)));
                }
                Step::Written(chunk, image) => self.set_version(base, cx, chunk, &image),
            }
        }
    }

    fn set_version(&self, base: &mut Base<D>, cx: &mut Cx<'_, D>, chunk: ChunkId, image: &ChunkImage<D>) {
        let ticket = base.ticket();
        cx.emit(Effect::SetVersion { ticket, chunk, version: image.version });
        if let Some(primary) = self.primary {
            base.send_when_durable(cx, primary, Body::ChunkSynced { round: self.round, chunk });
        }
    }
}

/// What to list beyond a watermark; none: everything.
pub(super) fn above(watermark: Sequence) -> Option<Sequence> {
    (watermark > Sequence(0)).then_some(watermark)
}

/// What a joiner that could not apply a write says to everything.
pub(super) fn cannot_apply<D>(base: &Base<D>) -> Body<D> {
    if base.no_space { Body::NoSpace } else { Body::CannotApply }
}
