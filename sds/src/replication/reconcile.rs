//! S1 at the primary: a new epoch opens with all in-sync copies equal.
//!
//! Collect from every copy what it has above its watermark; list the same here, above the lowest of those watermarks;
//! where versions differ, the primary's chunk wins, with its operation ids; then each copy is opened with the
//! primary's operation table. A chunk listed by nobody has its last write at or below some watermark, so it was
//! durable everywhere.

use std::collections::HashMap;

use pflex_proto::ids::{ChunkId, Member, Sequence, Version};

use super::base::{Base, Cx};
use super::effect::Effect;
use super::limits::{BACKUP_SILENT, SYNC_PARALLEL};
use super::message::Body;
use super::planted::Bug;
use super::types::{ChunkEntry, ChunkImage, Round, Time};

/// One other in-sync copy.
#[derive(Debug)]
struct Peer {
    member: Member,
    round: Round,
    stage: Stage,
    /// Since when it owes an answer, or its connection is down.
    owes_since: Time,
    watermark: Sequence,
    theirs: HashMap<ChunkId, Option<Version>>,
    to_fix: Vec<ChunkId>,
    /// Being compared: whether it is the peer's turn, not the own store's.
    fixing: HashMap<ChunkId, bool>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Unreached,
    Collecting,
    Collected,
    Fixing,
    Opening,
    Opened,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Own {
    Waiting,
    Listing(Round),
    Listed,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Reconcile {
    peers: Vec<Peer>,
    own: Own,
}

impl Reconcile {
    /// With these other in-sync copies.
    pub(super) fn start<D: Clone>(base: &mut Base<D>, cx: &mut Cx<'_, D>, others: &[Member]) -> Self {
        let peers = others.iter().map(|member| Peer::new(*member, cx.now)).collect();
        let mut reconcile = Self { peers, own: Own::Waiting };
        reconcile.restart(base, cx);
        reconcile
    }

    /// From the beginning with everybody: what a copy said before its connection broke may no longer be so.
    fn restart<D: Clone>(&mut self, base: &mut Base<D>, cx: &mut Cx<'_, D>) {
        self.own = Own::Waiting;
        for peer in &mut self.peers {
            *peer = Peer::new(peer.member, cx.now);
            peer.collect(base, cx);
        }
        self.list_own(base, cx);
    }

    pub(super) fn on_connected<D: Clone>(&mut self, base: &mut Base<D>, cx: &mut Cx<'_, D>, member: Member) {
        if self.peers.iter().any(|peer| peer.member == member) {
            self.restart(base, cx);
        }
    }

    pub(super) fn on_disconnected<D: Clone>(&mut self, base: &mut Base<D>, cx: &mut Cx<'_, D>, member: Member) {
        if self.peers.iter().any(|peer| peer.member == member) {
            self.restart(base, cx);
        }
    }

    /// A copy that has owed an answer for too long.
    pub(super) fn silent(&self, now: Time) -> Option<Member> {
        let owes = |peer: &&Peer| match peer.stage {
            Stage::Unreached | Stage::Collecting | Stage::Opening => true,
            // A slow store here must not look like a silent peer.
            Stage::Fixing => peer.fixing.values().any(|theirs| *theirs),
            Stage::Collected | Stage::Opened => false,
        };
        let late = |peer: &&Peer| now.since(peer.owes_since) > BACKUP_SILENT;
        self.peers.iter().filter(owes).find(late).map(|peer| peer.member)
    }

    /// All copies are equal and opened; the round of each.
    pub(super) fn opened(&self) -> Option<Vec<(Member, Round)>> {
        let all = self.own == Own::Listed && self.peers.iter().all(|peer| peer.stage == Stage::Opened);
        all.then(|| self.peers.iter().map(|peer| (peer.member, peer.round)).collect())
    }

    /// For a person: chunks still to compare.
    pub(super) fn remaining(&self) -> usize {
        self.peers.iter().map(|peer| peer.to_fix.len() + peer.fixing.len()).sum()
    }

    pub(super) fn on_message<D: Clone>(
        &mut self,
        base: &mut Base<D>,
        cx: &mut Cx<'_, D>,
        from: Member,
        body: &Body<D>,
    ) {
        let Some(peer) = self.peers.iter_mut().find(|peer| base.same(peer.member, from)) else { return };
        match body {
            Body::VersionList { round, highest, watermark, entries, more }
                if *round == peer.round && peer.stage == Stage::Collecting =>
            {
                peer.owes_since = cx.now;
                peer.watermark = *watermark;
                peer.theirs.extend(entries.iter().map(|entry| (entry.chunk, entry.version)));
                // No later write may bear a sequence that some copy has already seen, or counts as committed.
                base.last = base.last.max(*highest).max(*watermark);
                if !more {
                    peer.stage = Stage::Collected;
                    self.list_own(base, cx);
                }
            }
            Body::Sums { round, chunk, sums } if *round == peer.round && peer.fixing.contains_key(chunk) => {
                peer.owes_since = cx.now;
                peer.fixing.insert(*chunk, false);
                let (round, chunk, theirs) = (*round, *chunk, sums.clone());
                cx.emit(Effect::ReadDifference { round, chunk, theirs });
            }
            Body::Fixed { round, chunk } if *round == peer.round && peer.fixing.remove(chunk).is_some() => {
                peer.owes_since = cx.now;
                peer.fix_next(base, cx);
            }
            Body::Opened { round } if *round == peer.round && peer.stage == Stage::Opening => {
                peer.stage = Stage::Opened;
            }
            _ => {}
        }
    }

    /// Lists this copy's own chunks once everybody's watermark is known, and once all this copy ordered is durable: an
    /// operation whose write could yet fail here must not enter another copy's table (S7).
    pub(super) fn list_own<D: Clone>(&mut self, base: &mut Base<D>, cx: &mut Cx<'_, D>) {
        let durable = base.durable >= base.issued;
        if self.own == Own::Waiting && durable && self.peers.iter().all(|peer| peer.stage == Stage::Collected) {
            let above = self.peers.iter().map(|peer| peer.watermark).fold(base.committed, Sequence::min);
            let round = base.next_round();
            self.own = Own::Listing(round);
            cx.emit(Effect::ListVersions { round, above: Some(above) });
        }
    }

    /// False: an own chunk is unsynced, so this copy must not be primary. It cannot happen to an in-sync copy, unless an
    /// operator made it one.
    pub(super) fn on_listed<D: Clone>(
        &mut self,
        base: &mut Base<D>,
        cx: &mut Cx<'_, D>,
        round: Round,
        entries: &[ChunkEntry],
    ) -> bool {
        if self.own != Own::Listing(round) {
            return true;
        }
        let unsynced = || entries.iter().filter(|entry| entry.version.is_none());
        if unsynced().next().is_some() {
            if !base.config.as_ref().is_some_and(|config| config.forced) {
                return false;
            }
            // S12: a chunk that was being copied is now what there is of it, under a version that nothing else has.
            for entry in unsynced() {
                base.last = base.last.next();
                let version = Some(Version { epoch: base.epoch(), sequence: base.last });
                let ticket = base.ticket();
                cx.emit(Effect::SetVersion { ticket, chunk: entry.chunk, version });
            }
        }
        self.own = Own::Listed;
        let own: HashMap<ChunkId, Option<Version>> = entries.iter().map(|entry| (entry.chunk, entry.version)).collect();
        for peer in &mut self.peers {
            peer.compare(&own);
            if base.planted.is(Bug::SkipReconcile) {
                peer.to_fix.clear();
            }
            peer.stage = Stage::Fixing;
            peer.owes_since = cx.now;
            peer.fix_next(base, cx);
        }
        true
    }

    pub(super) fn on_difference<D: Clone>(
        &mut self,
        base: &Base<D>,
        cx: &mut Cx<'_, D>,
        round: Round,
        chunk: ChunkId,
        image: ChunkImage<D>,
    ) {
        let Some(peer) = self.peers.iter_mut().find(|peer| peer.round == round) else { return };
        if let Some(theirs) = peer.fixing.get_mut(&chunk) {
            *theirs = true;
            peer.owes_since = cx.now;
            let operations = base.operations.of_chunk(chunk);
            base.send(cx, peer.member, Body::Fix { round, chunk, image, operations });
        }
    }
}

impl Peer {
    fn new(member: Member, now: Time) -> Self {
        Self {
            member,
            round: Round(0),
            stage: Stage::Unreached,
            owes_since: now,
            watermark: Sequence(0),
            theirs: HashMap::new(),
            to_fix: Vec::new(),
            fixing: HashMap::new(),
        }
    }

    fn collect<D: Clone>(&mut self, base: &mut Base<D>, cx: &mut Cx<'_, D>) {
        if base.is_connected(self.member) {
            self.round = base.next_round();
            self.stage = Stage::Collecting;
            base.send(cx, self.member, Body::Collect { round: self.round });
        }
    }

    /// What this copy lists and what the primary has above this copy's watermark, where the versions are not equal.
    fn compare(&mut self, own: &HashMap<ChunkId, Option<Version>>) {
        let theirs = std::mem::take(&mut self.theirs);
        for (chunk, version) in &theirs {
            // Not in the own list: absent here, or at or below every watermark, so certainly another version.
            if version.is_none() || own.get(chunk).copied().flatten() != *version {
                self.to_fix.push(*chunk);
            }
        }
        for (chunk, version) in own {
            let above = version.is_some_and(|version| version.sequence > self.watermark);
            if above && !theirs.contains_key(chunk) {
                self.to_fix.push(*chunk);
            }
        }
        // The order of a hash map must not decide anything: a seed gives one run.
        self.to_fix.sort_unstable();
    }

    fn fix_next<D: Clone>(&mut self, base: &Base<D>, cx: &mut Cx<'_, D>) {
        while self.fixing.len() < SYNC_PARALLEL
            && let Some(chunk) = self.to_fix.pop()
        {
            self.fixing.insert(chunk, true);
            base.send(cx, self.member, Body::SumsRequest { round: self.round, chunk });
        }
        if self.fixing.is_empty() && self.stage == Stage::Fixing {
            self.stage = Stage::Opening;
            let operations = base.operations.snapshot();
            base.send(cx, self.member, Body::Open { round: self.round, last: base.last, operations });
        }
    }
}
