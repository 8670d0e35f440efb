//! The primary's side of a join (S10, S3).
//!
//! Lists first, of what either side has above the joiner's watermark (S25, `joiner`); the moment this copy's own list is
//! asked for, forwarding begins: a chunk written between that moment
//! and the list's arrival is dirty and is copied. Then chunk by chunk, a few at a time: *needs sync* (writes are not
//! forwarded), *syncing* (writes wait), *synced* (writes are forwarded and their acknowledgement is awaited). A chunk
//! absent on both sides is synced. When none is left and the joiner has made everything durable, it is proposed.
//!
//! Each chunk needs a permit of the driver, which knows what else the device has to do (`crate::worker::resync`). It is
//! asked before the chunk is held: a write never waits for a permit.
//!
//! A chunk that this copy cannot read, or the joiner has no space for, is *given up* for a while: the others go on, its
//! writes are not forwarded, and nothing is proposed before it is synced after all.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use pflex_proto::ids::{ChunkId, Member, Sequence, Version};

use super::backoff::Backoff;
use super::base::{Base, Cx};
use super::effect::Effect;
use super::holds::{Holds, Reason};
use super::joiner::above;
use super::limits::{JOINER_SILENT, SYNC_PARALLEL};
use super::message::Body;
use super::planted::Bug;
use super::stream::Stream;
use super::types::{ChunkEntry, ChunkImage, JoinTrouble, Round, Ticket, Time};

/// What a write to a chunk means for the joiner.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Forward {
    /// The chunk is still to be copied, with this write in it.
    No,
    /// The chunk is as here: send the write along.
    Yes,
}

/// Who has to act on a chunk being copied. A slow store here must not look like a silent joiner.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Turn {
    Joiner,
    OwnStore,
}

#[derive(Debug)]
enum Stage {
    /// The joiner's list is coming in.
    Listing,
    /// The own list is being read; these chunks were written since.
    OwnList { dirty: HashSet<ChunkId> },
    /// Chunks are copied.
    Syncing { needs: BTreeSet<ChunkId>, syncing: HashMap<ChunkId, Turn>, given_up: BTreeMap<ChunkId, JoinTrouble> },
    /// All chunks are copied; the writes in them become durable here first: an operation whose write could yet fail
    /// here must not enter the joiner's table (S7).
    Settling { through: Ticket },
    /// The joiner flushes.
    Ending,
    /// The joiner has everything durable.
    Ready,
}

/// What a join asks of the driver, for `Event::SyncPermit`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Demand {
    /// Chunks being copied.
    pub syncing: usize,
    /// There is one more that could be, with a permit.
    pub wants: bool,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Join {
    pub(super) stream: Stream,
    stage: Stage,
    theirs: HashMap<ChunkId, Option<Version>>,
    /// Since when the joiner owes an answer other than an acknowledgement.
    owes_since: Option<Time>,
    own_round: Round,
    /// When chunks that were given up are tried again.
    retry_at: Option<Time>,
    backoff: Backoff,
    /// Chunks that the joiner ever had no space for: when it refuses another one, these need not be tried.
    too_large: BTreeSet<ChunkId>,
    /// Chunks that this copy could not read and that were repaired since, as far as they can be.
    repaired: BTreeSet<ChunkId>,
    /// Chunks that may be begun.
    permits: usize,
}

impl Join {
    pub(super) fn start<D: Clone>(base: &mut Base<D>, cx: &mut Cx<'_, D>, member: Member) -> Self {
        let round = base.next_round();
        base.send(cx, member, Body::JoinStart { round });
        let owes_since = Some(cx.now);
        let stream = Stream::new(member, round, Sequence(0));
        Self {
            stream,
            stage: Stage::Listing,
            theirs: HashMap::new(),
            owes_since,
            own_round: Round(0),
            retry_at: None,
            backoff: Backoff::default(),
            too_large: BTreeSet::new(),
            repaired: BTreeSet::new(),
            permits: 0,
        }
    }

    pub(super) fn demand(&self) -> Demand {
        let Stage::Syncing { needs, syncing, .. } = &self.stage else { return Demand::default() };
        let wants = self.permits == 0 && syncing.len() < SYNC_PARALLEL && !needs.is_empty();
        Demand { syncing: syncing.len(), wants }
    }

    /// One chunk more may be copied.
    pub(super) fn permit<D: Clone>(&mut self, base: &mut Base<D>, cx: &mut Cx<'_, D>, holds: &mut Holds<D>) {
        self.permits = (self.permits + 1).min(SYNC_PARALLEL);
        self.sync_next(base, cx, holds);
    }

    pub(super) fn member(&self) -> Member {
        self.stream.member
    }

    pub(super) fn is_ready(&self) -> bool {
        matches!(self.stage, Stage::Ready)
    }

    /// The joiner has owed an answer for too long.
    pub(super) fn is_silent(&self, now: Time) -> bool {
        let late = |since: Option<Time>| since.is_some_and(|since| now.since(since) > JOINER_SILENT);
        late(self.owes_since) || late(self.stream.owes_since())
    }

    /// For a person: chunks still to copy.
    pub(super) fn remaining(&self) -> Option<usize> {
        match &self.stage {
            Stage::Listing | Stage::OwnList { .. } => None,
            Stage::Syncing { needs, syncing, given_up } => Some(needs.len() + syncing.len() + given_up.len()),
            Stage::Settling { .. } | Stage::Ending | Stage::Ready => Some(0),
        }
    }

    /// Why it does not end.
    pub(super) fn trouble(&self) -> Option<JoinTrouble> {
        match &self.stage {
            Stage::Syncing { given_up, .. } => given_up.values().next().copied(),
            Stage::Listing | Stage::OwnList { .. } | Stage::Settling { .. } | Stage::Ending | Stage::Ready => None,
        }
    }

    /// A write to this chunk is about to be ordered. The chunk is not being copied: such writes wait in `Holds`.
    pub(super) fn forward<D>(&mut self, base: &Base<D>, chunk: ChunkId) -> Forward {
        match &mut self.stage {
            Stage::Listing => Forward::No,
            Stage::OwnList { dirty } => {
                if !base.planted.is(Bug::ForgetDirtyDuringList) {
                    dirty.insert(chunk);
                }
                Forward::No
            }
            Stage::Syncing { needs, given_up, .. } if needs.contains(&chunk) || given_up.contains_key(&chunk) => {
                Forward::No
            }
            Stage::Syncing { .. } | Stage::Settling { .. } | Stage::Ending | Stage::Ready => Forward::Yes,
        }
    }

    /// Returns a chunk whose waiting writes may go on.
    pub(super) fn on_message<D: Clone>(
        &mut self,
        base: &mut Base<D>,
        cx: &mut Cx<'_, D>,
        holds: &mut Holds<D>,
        body: &Body<D>,
    ) -> Option<ChunkId> {
        let round = self.stream.round;
        match (body, &mut self.stage) {
            (Body::VersionList { round: of, entries, more, watermark, highest: _ }, Stage::Listing) if *of == round => {
                self.owes_since = Some(cx.now);
                self.theirs.extend(entries.iter().map(|entry| (entry.chunk, entry.version)));
                if !more {
                    self.owes_since = None;
                    self.own_round = base.next_round();
                    self.stage = Stage::OwnList { dirty: HashSet::new() };
                    cx.emit(Effect::ListVersions { round: self.own_round, above: above(*watermark) });
                }
            }
            (Body::Sums { round: of, chunk, sums }, Stage::Syncing { syncing, .. })
                if *of == round && syncing.contains_key(chunk) =>
            {
                syncing.insert(*chunk, Turn::OwnStore);
                self.owes_since = owes(syncing).then_some(cx.now);
                cx.emit(Effect::ReadDifference { round, chunk: *chunk, theirs: sums.clone() });
            }
            (Body::ChunkSynced { round: of, chunk }, Stage::Syncing { syncing, .. })
                if *of == round && syncing.contains_key(chunk) =>
            {
                syncing.remove(chunk);
                self.repaired.remove(chunk);
                self.owes_since = owes(syncing).then_some(cx.now);
                self.sync_next(base, cx, holds);
                return Some(*chunk);
            }
            (Body::ChunkRefused { round: of, chunk }, Stage::Syncing { needs, given_up, .. }) if *of == round => {
                let trouble = JoinTrouble::NoSpace { device: self.stream.member.device };
                // It is full: what it had no space for before waits as well, and is not sent in vain.
                for other in self.too_large.intersection(&needs.clone()) {
                    needs.remove(other);
                    given_up.insert(*other, trouble);
                }
                self.too_large.insert(*chunk);
                return self.give_up(base, cx, holds, *chunk, trouble).then_some(*chunk);
            }
            (Body::JoinReady { round: of }, Stage::Ending) if *of == round => {
                self.owes_since = None;
                self.stage = Stage::Ready;
            }
            (Body::WriteAck { round: of, through }, _) if *of == round => {
                self.stream.acknowledge(cx.now, *through);
            }
            (Body::Durable { round: of, through }, _) if *of == round => {
                self.stream.made_durable(cx.now, *through);
            }
            _ => {}
        }
        None
    }

    pub(super) fn on_listed<D: Clone>(
        &mut self,
        base: &mut Base<D>,
        cx: &mut Cx<'_, D>,
        holds: &mut Holds<D>,
        round: Round,
        entries: &[ChunkEntry],
    ) {
        let Stage::OwnList { dirty } = &mut self.stage else { return };
        if round != self.own_round {
            return;
        }
        let mut needs: BTreeSet<ChunkId> = dirty.drain().collect();
        let mut theirs = std::mem::take(&mut self.theirs);
        for entry in entries {
            // Unsynced equals nothing, not even unsynced.
            let equal = theirs.remove(&entry.chunk).flatten().is_some_and(|version| Some(version) == entry.version);
            if !equal {
                needs.insert(entry.chunk);
            }
        }
        // What only the joiner has is to be removed there.
        needs.extend(theirs.into_keys());
        self.stage = Stage::Syncing { needs, syncing: HashMap::new(), given_up: BTreeMap::new() };
        self.sync_next(base, cx, holds);
    }

    /// Starts copying as many chunks as may be at once; ends the join when none is left. A chunk that another hold
    /// has is passed over: `Primary` calls again when that hold ends.
    pub(super) fn sync_next<D: Clone>(&mut self, base: &mut Base<D>, cx: &mut Cx<'_, D>, holds: &mut Holds<D>) {
        let Stage::Syncing { needs, syncing, given_up } = &mut self.stage else { return };
        let (member, round) = (self.stream.member, self.stream.round);
        while self.permits > 0
            && syncing.len() < SYNC_PARALLEL
            && let Some(chunk) = needs.iter().copied().find(|chunk| !holds.is_held(*chunk))
        {
            self.permits -= 1;
            needs.remove(&chunk);
            syncing.insert(chunk, Turn::Joiner);
            holds.hold(chunk, Reason::Syncing);
            self.owes_since.get_or_insert(cx.now);
            base.send(cx, member, Body::SumsRequest { round, chunk });
        }
        if needs.is_empty() && syncing.is_empty() && given_up.is_empty() {
            self.owes_since = None;
            self.stage = Stage::Settling { through: base.issued };
            self.on_durable(base, cx);
        }
    }

    /// A chunk cannot be copied now: whether it was being copied. Its waiting writes go on.
    fn give_up<D: Clone>(
        &mut self,
        base: &mut Base<D>,
        cx: &mut Cx<'_, D>,
        holds: &mut Holds<D>,
        chunk: ChunkId,
        trouble: JoinTrouble,
    ) -> bool {
        let Stage::Syncing { syncing, given_up, .. } = &mut self.stage else { return false };
        if syncing.remove(&chunk).is_none() {
            return false;
        }
        given_up.insert(chunk, trouble);
        self.repaired.remove(&chunk);
        self.owes_since = owes(syncing).then_some(cx.now);
        if self.retry_at.is_none() {
            self.retry_at = Some(cx.now.plus(self.backoff.failed(base.jitter)));
        }
        self.sync_next(base, cx, holds);
        true
    }

    /// This copy cannot read a chunk: whether its waiting writes may go on.
    pub(super) fn unreadable<D: Clone>(
        &mut self,
        base: &mut Base<D>,
        cx: &mut Cx<'_, D>,
        holds: &mut Holds<D>,
        round: Round,
        chunk: ChunkId,
    ) -> bool {
        round == self.stream.round && self.give_up(base, cx, holds, chunk, JoinTrouble::Unreadable { chunk })
    }

    /// This copy cannot read a chunk: whether it is worth a repair, before the chunk is given up.
    pub(super) fn may_repair(&mut self, round: Round, chunk: ChunkId) -> bool {
        let Stage::Syncing { syncing, .. } = &self.stage else { return false };
        round == self.stream.round && syncing.contains_key(&chunk) && self.repaired.insert(chunk)
    }

    /// The repair has ended. Its beginning left the chunk held and the turn the own store's.
    pub(super) fn compare_again<D: Clone>(&mut self, base: &Base<D>, cx: &mut Cx<'_, D>, round: Round, chunk: ChunkId) {
        let Stage::Syncing { syncing, .. } = &mut self.stage else { return };
        if round == self.stream.round
            && let Some(turn) = syncing.get_mut(&chunk)
        {
            *turn = Turn::Joiner;
            self.owes_since.get_or_insert(cx.now);
            base.send(cx, self.stream.member, Body::SumsRequest { round, chunk });
        }
    }

    /// Tries again what was given up, when it is time.
    pub(super) fn on_tick<D: Clone>(&mut self, base: &mut Base<D>, cx: &mut Cx<'_, D>, holds: &mut Holds<D>) {
        let Stage::Syncing { needs, given_up, .. } = &mut self.stage else { return };
        if self.retry_at.is_some_and(|at| cx.now >= at) {
            self.retry_at = None;
            needs.extend(std::mem::take(given_up).into_keys());
            self.sync_next(base, cx, holds);
        }
    }

    /// Ends the join: from the last copied chunk on every write was forwarded, so chunks and table are complete with
    /// those.
    pub(super) fn on_durable<D: Clone>(&mut self, base: &Base<D>, cx: &mut Cx<'_, D>) {
        if let Stage::Settling { through } = self.stage
            && through <= base.durable
        {
            self.stage = Stage::Ending;
            self.owes_since = Some(cx.now);
            let (last, watermark, operations) = (base.last, base.committed, base.operations.snapshot());
            let round = self.stream.round;
            base.send(cx, self.stream.member, Body::JoinEnd { round, last, watermark, operations });
        }
    }

    pub(super) fn on_difference<D: Clone>(
        &mut self,
        base: &Base<D>,
        cx: &mut Cx<'_, D>,
        round: Round,
        chunk: ChunkId,
        image: ChunkImage<D>,
    ) {
        let Stage::Syncing { syncing, .. } = &mut self.stage else { return };
        if round == self.stream.round
            && let Some(turn) = syncing.get_mut(&chunk)
        {
            *turn = Turn::Joiner;
            self.owes_since.get_or_insert(cx.now);
            base.send(cx, self.stream.member, Body::SyncChunk { round, chunk, image });
        }
    }

    /// The chunks whose writes wait for this join.
    pub(super) fn held(&self) -> Vec<ChunkId> {
        match &self.stage {
            Stage::Syncing { syncing, .. } => {
                let mut held: Vec<_> = syncing.keys().copied().collect();
                held.sort_unstable();
                held
            }
            Stage::Listing | Stage::OwnList { .. } | Stage::Settling { .. } | Stage::Ending | Stage::Ready => {
                Vec::new()
            }
        }
    }
}

fn owes(syncing: &HashMap<ChunkId, Turn>) -> bool {
    syncing.values().any(|turn| *turn == Turn::Joiner)
}
