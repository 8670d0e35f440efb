//! Scrub at the primary (S13): a chunk is read on every in-sync copy, each block against its stored checksum, and the
//! copies are compared by version and checksums.
//!
//! Nothing is held for the comparison: under one version there is one content (S4), so what copies report is comparable
//! when their versions are equal. If a write was ordered meanwhile they need not be, and the driver comes back later.
//! What is wrong is put right in this order: blocks that cannot be read here come from another copy (`repairs`); a copy
//! that differs although all it read is sound, which must not be, is made equal to this one while the chunk is held (S1's
//! rule, and a critical event); blocks that another copy cannot read are sent to it, which takes them only if they are
//! the bytes it lost. Copies are called different only when the driver has asked twice: a volume that is being deleted
//! leaves one copy before the other.

use std::collections::BTreeSet;

use pflex_proto::ids::{ChunkId, Member, Version};

use super::base::{Base, Cx};
use super::effect::Effect;
use super::holds::Reason;
use super::limits::{BACKUP_SILENT, SCRUB_PATIENCE};
use super::message::Body;
use super::planted::Bug;
use super::primary::Primary;
use super::repairs::Wanted;
use super::types::{BlockSums, ChunkImage, Extent, Round, ScrubFindings, ScrubOutcome, Time, VerifiedChunk};

/// The chunk that is being scrubbed: one at a time in each group.
#[derive(Debug)]
pub(super) struct Scrub {
    chunk: ChunkId,
    /// The driver has seen the copies differ before.
    confirmed: bool,
    /// Of what is asked of the own store.
    round: Round,
    since: Time,
    /// A write was ordered on the chunk since the beginning.
    touched: bool,
    found: ScrubFindings,
    /// Blocks that another copy cannot read.
    bad: Vec<(Member, u16)>,
    /// Copies that differ and are not made equal yet.
    differing: Vec<Member>,
    version: Option<Version>,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    Verifying {
        own: Option<VerifiedChunk>,
        others: Vec<(Member, Option<VerifiedChunk>)>,
    },
    /// Blocks that cannot be read here.
    Repairing,
    /// Makes the last of `differing` equal. The chunk is held.
    Mending {
        since: Time,
    },
    /// Reads the blocks that others cannot.
    Supplying {
        left: BTreeSet<u16>,
    },
}

impl<D: Clone> Primary<D> {
    /// The driver wants this chunk looked at. Answered by `Effect::Scrubbed`.
    pub(super) fn on_scrub(&mut self, base: &mut Base<D>, cx: &mut Cx<'_, D>, chunk: ChunkId, confirmed: bool) {
        let reachable = self.backups.iter().all(|backup| base.is_connected(backup.member));
        if !self.is_serving() || base.failed || self.scrub.is_some() || self.join.is_some() || !reachable {
            return cx.emit(Effect::Scrubbed { chunk, outcome: ScrubOutcome::Interrupted });
        }
        if self.flight.has(chunk) || self.holds.is_held(chunk) {
            return cx.emit(Effect::Scrubbed { chunk, outcome: ScrubOutcome::Busy });
        }
        let round = base.next_round();
        cx.emit(Effect::Verify { round, chunk });
        for backup in &self.backups {
            base.send(cx, backup.member, Body::Verify { round: backup.round, scrub: round, chunk });
        }
        let others = self.backups.iter().map(|backup| (backup.member, None)).collect();
        self.scrub = Some(Scrub {
            chunk,
            confirmed,
            round,
            since: cx.now,
            touched: false,
            found: ScrubFindings::default(),
            bad: Vec::new(),
            differing: Vec::new(),
            version: None,
            stage: Stage::Verifying { own: None, others },
        });
    }

    /// A write is ordered.
    pub(super) fn touch_scrub(&mut self, chunk: ChunkId) {
        if let Some(scrub) = self.scrub.as_mut().filter(|scrub| scrub.chunk == chunk) {
            scrub.touched = true;
        }
    }

    /// A copy has read the whole chunk; none: this one.
    pub(super) fn on_verified(
        &mut self,
        base: &mut Base<D>,
        cx: &mut Cx<'_, D>,
        from: Option<Member>,
        (round, chunk): (Round, ChunkId),
        verified: VerifiedChunk,
    ) {
        // Not what an earlier look at the same chunk has asked for: the chunk may have changed on one copy since.
        let of_it = |scrub: &&mut Scrub| (scrub.chunk, scrub.round) == (chunk, round);
        let Some(scrub) = self.scrub.as_mut().filter(of_it) else { return };
        let Stage::Verifying { own, others } = &mut scrub.stage else { return };
        match from {
            None => *own = Some(verified),
            Some(member) => {
                if let Some((_, theirs)) = others.iter_mut().find(|(of, _)| base.same(*of, member)) {
                    *theirs = Some(verified);
                }
            }
        }
        if own.is_some() && others.iter().all(|(_, theirs)| theirs.is_some()) {
            self.compare(base, cx);
        }
    }

    fn compare(&mut self, base: &mut Base<D>, cx: &mut Cx<'_, D>) {
        let standing = base.planted.is(Bug::MendWhileWritten);
        let Some(scrub) = &mut self.scrub else { return };
        let Stage::Verifying { own: Some(own), others } = &scrub.stage else { return };
        if (scrub.touched && !standing) || own.version.is_none() {
            return self.end_scrub(base, cx, ScrubOutcome::Busy);
        }
        scrub.version = own.version;
        scrub.found.bad_here = own.bad.len();
        for (member, theirs) in others.iter().filter_map(|(member, theirs)| Some((*member, theirs.as_ref()?))) {
            scrub.bad.extend(theirs.bad.iter().map(|block| (member, *block)));
            if theirs.version != own.version || theirs.sums != own.sums {
                scrub.differing.push(member);
            }
        }
        if base.planted.is(Bug::RepairUnverified) {
            let given = others.iter().flat_map(|(member, _)| own.bad.iter().map(|block| (*member, *block)));
            scrub.bad = given.collect();
        }
        (scrub.found.bad_elsewhere, scrub.found.differing) = (scrub.bad.len(), scrub.differing.len());
        if !scrub.differing.is_empty() && !scrub.confirmed {
            return self.end_scrub(base, cx, ScrubOutcome::Suspect);
        }
        let (chunk, bad_here) = (scrub.chunk, !own.bad.is_empty() && !base.planted.is(Bug::RepairUnverified));
        scrub.stage = Stage::Repairing;
        if bad_here {
            self.repair(base, cx, chunk, Extent::CHUNK, Wanted::Scrub);
        } else {
            self.mend_next(base, cx);
        }
    }

    /// The repair of the own blocks has ended, as far as they can be repaired.
    pub(super) fn scrub_repaired(&mut self, base: &mut Base<D>, cx: &mut Cx<'_, D>, chunk: ChunkId) {
        let repairing = |scrub: &Scrub| scrub.chunk == chunk && matches!(scrub.stage, Stage::Repairing);
        if self.scrub.as_ref().is_some_and(repairing) {
            self.mend_next(base, cx);
        }
    }

    /// Makes the next copy equal that differs, or goes on when there is none.
    fn mend_next(&mut self, base: &mut Base<D>, cx: &mut Cx<'_, D>) {
        let Some(scrub) = &mut self.scrub else { return };
        let chunk = scrub.chunk;
        let Some(member) = scrub.differing.last().copied() else { return self.supply(base, cx) };
        let begins = !matches!(scrub.stage, Stage::Mending { .. });
        if begins && !base.planted.is(Bug::MendWhileWritten) {
            if self.flight.has(chunk) || self.holds.is_held(chunk) {
                return self.end_scrub(base, cx, ScrubOutcome::Busy);
            }
            self.holds.hold(chunk, Reason::Mending);
        }
        scrub.stage = Stage::Mending { since: cx.now };
        if let Some(backup) = self.backups.iter().find(|backup| backup.member == member) {
            base.send(cx, member, Body::SumsRequest { round: backup.round, chunk });
        }
    }

    fn mending(&self, chunk: ChunkId) -> Option<(&Scrub, Member)> {
        let scrub = self.scrub.as_ref().filter(|scrub| scrub.chunk == chunk)?;
        matches!(scrub.stage, Stage::Mending { .. }).then_some((scrub, *scrub.differing.last()?))
    }

    pub(super) fn on_scrub_sums(
        &mut self,
        base: &Base<D>,
        cx: &mut Cx<'_, D>,
        from: Member,
        chunk: ChunkId,
        theirs: BlockSums,
    ) {
        if let Some((scrub, member)) = self.mending(chunk)
            && base.same(member, from)
        {
            cx.emit(Effect::ReadDifference { round: scrub.round, chunk, theirs });
        }
    }

    /// Whether it was for the scrub.
    pub(super) fn on_scrub_difference(
        &mut self,
        base: &mut Base<D>,
        cx: &mut Cx<'_, D>,
        (round, chunk): (Round, ChunkId),
        image: Option<&ChunkImage<D>>,
    ) -> bool {
        if self.scrub.as_ref().is_none_or(|scrub| scrub.round != round) {
            return false;
        }
        let Some((_, member)) = self.mending(chunk) else { return true };
        let Some(image) = image else {
            // What cannot be read here was said by the repair. The other copy stays as it is.
            self.end_scrub(base, cx, ScrubOutcome::Interrupted);
            return true;
        };
        if let Some(backup) = self.backups.iter().find(|backup| backup.member == member) {
            let (image, operations) = (image.clone(), base.operations.of_chunk(chunk));
            base.send(cx, member, Body::Fix { round: backup.round, chunk, image, operations });
        }
        true
    }

    pub(super) fn on_scrub_fixed(&mut self, base: &mut Base<D>, cx: &mut Cx<'_, D>, from: Member, chunk: ChunkId) {
        let of_it = self.mending(chunk).is_some_and(|(_, member)| base.same(member, from));
        if of_it && let Some(scrub) = &mut self.scrub {
            scrub.differing.pop();
            self.mend_next(base, cx);
        }
    }

    /// Reads what others have lost, each block once.
    fn supply(&mut self, base: &mut Base<D>, cx: &mut Cx<'_, D>) {
        self.end_mending(base, cx);
        let Some(scrub) = &mut self.scrub else { return };
        let left: BTreeSet<u16> = scrub.bad.iter().map(|(_, block)| *block).collect();
        if left.is_empty() {
            let outcome = ScrubOutcome::Checked(scrub.found);
            return self.end_scrub(base, cx, outcome);
        }
        let (round, chunk) = (scrub.round, scrub.chunk);
        for block in &left {
            cx.emit(Effect::ReadBlocks { round, chunk, extent: Extent::block(*block) });
        }
        scrub.stage = Stage::Supplying { left };
    }

    pub(super) fn on_scrub_read(
        &mut self,
        base: &mut Base<D>,
        cx: &mut Cx<'_, D>,
        (round, chunk): (Round, ChunkId),
        extent: Extent,
        version: Option<Version>,
        data: Option<D>,
    ) {
        let Some(scrub) = self.scrub.as_mut().filter(|scrub| (scrub.round, scrub.chunk) == (round, chunk)) else {
            return;
        };
        let Stage::Supplying { left } = &mut scrub.stage else { return };
        let Some(block) = left.iter().copied().find(|block| Extent::block(*block) == extent) else { return };
        left.remove(&block);
        // A write since then may have replaced the block there; if not, the next scrub finds it again.
        if let Some(data) = data.filter(|_| version == scrub.version) {
            for (member, _) in scrub.bad.iter().filter(|(_, bad)| *bad == block) {
                if let Some(backup) = self.backups.iter().find(|backup| backup.member == *member) {
                    let (round, data) = (backup.round, Some(data.clone()));
                    base.send(cx, *member, Body::Blocks { round, chunk, extent, version, data });
                }
            }
        }
        if left.is_empty() {
            let outcome = ScrubOutcome::Checked(scrub.found);
            self.end_scrub(base, cx, outcome);
        }
    }

    /// A connection broke, or the wait was too long.
    pub(super) fn scrub_on_tick(&mut self, base: &mut Base<D>, cx: &mut Cx<'_, D>) {
        let Some(scrub) = &self.scrub else { return };
        let late = match scrub.stage {
            // Writes wait for it.
            Stage::Mending { since } => cx.now.since(since) > BACKUP_SILENT,
            Stage::Verifying { .. } | Stage::Repairing | Stage::Supplying { .. } => {
                cx.now.since(scrub.since) > SCRUB_PATIENCE
            }
        };
        if late {
            self.end_scrub(base, cx, ScrubOutcome::Interrupted);
        }
    }

    /// The role ends, and with it every hold.
    pub(super) fn give_up_scrub(&mut self, cx: &mut Cx<'_, D>) {
        if let Some(scrub) = self.scrub.take() {
            cx.emit(Effect::Scrubbed { chunk: scrub.chunk, outcome: ScrubOutcome::Interrupted });
        }
    }

    pub(super) fn end_scrub(&mut self, base: &mut Base<D>, cx: &mut Cx<'_, D>, outcome: ScrubOutcome) {
        self.end_mending(base, cx);
        if let Some(scrub) = self.scrub.take() {
            cx.emit(Effect::Scrubbed { chunk: scrub.chunk, outcome });
        }
    }

    fn end_mending(&mut self, base: &mut Base<D>, cx: &mut Cx<'_, D>) {
        let Some(scrub) = &mut self.scrub else { return };
        if matches!(scrub.stage, Stage::Mending { .. }) {
            let chunk = scrub.chunk;
            scrub.stage = Stage::Repairing;
            if !base.planted.is(Bug::MendWhileWritten) {
                self.release(base, cx, chunk, false);
            }
        }
    }
}
