//! Repair at the primary (S13): blocks that cannot be read here come from another in-sync copy.
//!
//! A repair needs the chunk to stand still: it is held, so nothing new is ordered on it, and begins when nothing of it
//! is in flight. Then every in-sync copy has the version that is here, and a block under any other version is not
//! taken. Block by block: two copies may each have lost something else of the same chunk. What wanted the blocks is
//! tried again afterwards, whether or not they were found. If it fails again, it has failed for good when every in-sync copy
//! said that it lacks a block. Else clients come back: a copy that is silent or cut off may have it, until it answers or has
//! left, and where everything was put back it is another block that went bad since.

use std::collections::{BTreeMap, VecDeque};

use pflex_proto::ids::{ChunkId, Member, Version};

use super::base::{Base, Cx};
use super::effect::Effect;
use super::holds::Reason;
use super::limits::BACKUP_SILENT;
use super::message::Body;
use super::planted::Bug;
use super::primary::Primary;
use super::types::{Extent, Refusal, RequestId, Round, Time};

/// Chunks that are being repaired.
#[derive(Debug, Default)]
pub(super) struct Repairs {
    chunks: BTreeMap<ChunkId, Repair>,
}

/// What wants blocks that cannot be read.
#[derive(Clone, Copy, Debug)]
pub(super) enum Wanted {
    /// A client's read; it stays in `Reads`, whose bound is that of these.
    Read(RequestId),
    /// A write that waits in the hold for the blocks its edges are in.
    Merge,
    /// The scrub of the chunk.
    Scrub,
    /// A joiner, in this attempt to fill it.
    Joiner(Round),
}

/// Where the bytes of blocks may be that cannot be read here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Elsewhere {
    /// A copy can be asked.
    Ask,
    /// Copies that may have them cannot be asked now.
    Later,
    /// There is no other in-sync copy.
    Nowhere,
}

/// What was done so that blocks can be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Repaired {
    /// Nothing yet.
    No,
    /// Every block that could not be read was put back.
    Whole,
    /// Not so, but a copy was not heard.
    InPart,
    /// No in-sync copy has one of them.
    Lost,
}

impl Repaired {
    /// What to do when it cannot be read all the same.
    pub(super) const fn refusal(self) -> Refusal {
        match self {
            Self::Lost => Refusal::Unreadable,
            Self::No | Self::Whole | Self::InPart => Refusal::Unrepaired,
        }
    }
}

#[derive(Debug)]
struct Repair {
    /// Whole blocks.
    extent: Extent,
    reads: Vec<RequestId>,
    joiner: Option<Round>,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// For the chunk to stand still.
    Waiting,
    /// The own store looks which blocks cannot be read.
    Finding(Round),
    Asking(Asking),
}

#[derive(Debug)]
struct Asking {
    version: Version,
    /// Still to be repaired; the first is being asked for.
    blocks: VecDeque<u16>,
    asked: Option<(Member, Time)>,
    /// For the first block.
    untried: Vec<Member>,
    /// The copies that may be asked; one that is silent once is not asked again.
    copies: Vec<Member>,
    /// A copy could not be asked, or did not answer.
    unheard: bool,
    /// What the blocks come to that were tried.
    repaired: Repaired,
}

impl Repairs {
    pub(super) fn clear(&mut self) {
        self.chunks.clear();
    }

    fn asking(&mut self, chunk: ChunkId) -> Option<&mut Asking> {
        match &mut self.chunks.get_mut(&chunk)?.stage {
            Stage::Asking(asking) => Some(asking),
            Stage::Waiting | Stage::Finding(_) => None,
        }
    }

    /// The chunks that wait for this copy's answer, or for one that is overdue.
    fn owed_by(&self, owes: impl Fn(Member, Time) -> bool) -> Vec<ChunkId> {
        let owed = |repair: &Repair| match &repair.stage {
            Stage::Asking(asking) => asking.asked.is_some_and(|(member, since)| owes(member, since)),
            Stage::Waiting | Stage::Finding(_) => false,
        };
        self.chunks.iter().filter(|(_, repair)| owed(repair)).map(|(chunk, _)| *chunk).collect()
    }
}

impl<D: Clone> Primary<D> {
    /// Where what cannot be read here may be.
    pub(super) fn elsewhere(&self, base: &Base<D>) -> Elsewhere {
        let is_there = self.backups.iter().any(|backup| base.is_connected(backup.member));
        match () {
            () if self.backups.is_empty() => Elsewhere::Nowhere,
            () if is_there && self.is_serving() && !base.failed => Elsewhere::Ask,
            () => Elsewhere::Later,
        }
    }

    /// These bytes cannot be read. A repair that is under way already does not grow: who wants more asks again after it.
    pub(super) fn repair(
        &mut self,
        base: &mut Base<D>,
        cx: &mut Cx<'_, D>,
        chunk: ChunkId,
        extent: Extent,
        wanted: Wanted,
    ) {
        let extent = extent.whole_blocks();
        let fresh = Repair { extent, reads: Vec::new(), joiner: None, stage: Stage::Waiting };
        let repair = self.repairs.chunks.entry(chunk).or_insert(fresh);
        if matches!(repair.stage, Stage::Waiting) {
            repair.extent = repair.extent.joined(extent);
        }
        match wanted {
            Wanted::Read(request) => repair.reads.push(request),
            Wanted::Merge | Wanted::Scrub => {}
            Wanted::Joiner(round) => repair.joiner = Some(round),
        }
        self.start_repair(base, cx, chunk);
    }

    /// A hold of the chunk has ended: a repair that waits for it, or ran under it, goes on holding the chunk.
    pub(super) fn hold_for_repair(&mut self, base: &mut Base<D>, cx: &mut Cx<'_, D>, chunk: ChunkId) {
        if self.repairs.chunks.contains_key(&chunk) && !base.planted.is(Bug::RepairFromOtherVersion) {
            self.holds.hold(chunk, Reason::Repairing(None));
            self.start_repair(base, cx, chunk);
        }
    }

    /// Something was committed.
    pub(super) fn start_repairs(&mut self, base: &mut Base<D>, cx: &mut Cx<'_, D>) {
        let waits = |repair: &Repair| matches!(repair.stage, Stage::Waiting);
        let waiting = self.repairs.chunks.iter().filter(|(_, repair)| waits(repair)).map(|(chunk, _)| *chunk);
        for chunk in waiting.collect::<Vec<_>>() {
            self.start_repair(base, cx, chunk);
        }
    }

    fn start_repair(&mut self, base: &mut Base<D>, cx: &mut Cx<'_, D>, chunk: ChunkId) {
        let Some(repair) = self.repairs.chunks.get_mut(&chunk) else { return };
        if !matches!(repair.stage, Stage::Waiting) {
            return;
        }
        if !base.planted.is(Bug::RepairFromOtherVersion) {
            if !self.holds.is_held(chunk) {
                self.holds.hold(chunk, Reason::Repairing(None));
            }
            if !self.holds.stands_still(chunk) || self.flight.has(chunk) {
                return;
            }
        }
        let round = base.next_round();
        repair.stage = Stage::Finding(round);
        cx.emit(Effect::FindUnreadable { round, chunk, extent: repair.extent });
    }

    /// The own store has looked.
    pub(super) fn on_found(
        &mut self,
        base: &mut Base<D>,
        cx: &mut Cx<'_, D>,
        (round, chunk): (Round, ChunkId),
        version: Option<Version>,
        blocks: Vec<u16>,
    ) {
        let Some(repair) = self.repairs.chunks.get_mut(&chunk) else { return };
        if !matches!(repair.stage, Stage::Finding(asked) if asked == round) {
            return;
        }
        // Without a version there is nothing that another copy could have the same of.
        let Some(version) = version else { return self.end_repair(base, cx, chunk, Repaired::Lost) };
        let copies: Vec<Member> = self.backups.iter().map(|backup| backup.member).collect();
        let untried = copies.clone();
        repair.stage = Stage::Asking(Asking {
            version,
            blocks: blocks.into(),
            asked: None,
            untried,
            copies,
            unheard: false,
            repaired: Repaired::Whole,
        });
        self.ask_for_block(base, cx, chunk);
    }

    /// Asks the next copy for the first block that is left, or ends the repair.
    fn ask_for_block(&mut self, base: &mut Base<D>, cx: &mut Cx<'_, D>, chunk: ChunkId) {
        while let Some(asking) = self.repairs.asking(chunk) {
            asking.asked = None;
            let Some(block) = asking.blocks.front().copied() else {
                let repaired = asking.repaired;
                return self.end_repair(base, cx, chunk, repaired);
            };
            let extent = Extent::block(block);
            let Some(member) = asking.untried.pop() else {
                asking.blocks.pop_front();
                asking.untried = asking.copies.clone();
                if asking.unheard {
                    asking.repaired = Repaired::InPart;
                } else {
                    asking.repaired = Repaired::Lost;
                    cx.emit(Effect::Unreadable { chunk, extent });
                }
                continue;
            };
            let backup = self.backups.iter().find(|backup| backup.member == member);
            if let Some(backup) = backup.filter(|_| base.is_connected(member)) {
                asking.asked = Some((member, cx.now));
                return base.send(cx, member, Body::FetchBlocks { round: backup.round, chunk, extent });
            }
            asking.unheard = !base.planted.is(Bug::SilenceIsLoss);
        }
    }

    /// A copy answered. Its round is the present one.
    pub(super) fn on_blocks(
        &mut self,
        base: &mut Base<D>,
        cx: &mut Cx<'_, D>,
        from: Member,
        (chunk, extent): (ChunkId, Extent),
        version: Option<Version>,
        data: Option<D>,
    ) {
        let Some(asking) = self.repairs.asking(chunk) else { return };
        let asked = asking.asked.is_some_and(|(member, _)| base.same(member, from));
        if !asked || asking.blocks.front().copied().map(Extent::block) != Some(extent) {
            return;
        }
        let equal = version == Some(asking.version) || base.planted.is(Bug::RepairFromOtherVersion);
        // The chunk stands still, and this copy had its last write before it was asked: an older version is in the answer to an
        // earlier question, of a repair that a write has ended, and says nothing of what the copy has now.
        if !equal && version.is_some_and(|version| version < asking.version) {
            return;
        }
        if let Some(data) = data.filter(|_| equal) {
            asking.blocks.pop_front();
            asking.untried = asking.copies.clone();
            let version = asking.version;
            let ticket = base.ticket();
            cx.emit(Effect::Repair { ticket, chunk, version, extent, data });
        }
        self.ask_for_block(base, cx, chunk);
    }

    /// Whoever does not answer is not asked again in this repair.
    pub(super) fn repairs_on_tick(&mut self, base: &mut Base<D>, cx: &mut Cx<'_, D>) {
        let now = cx.now;
        let late = self.repairs.owed_by(|_, since| now.since(since) > BACKUP_SILENT);
        self.ask_others(base, cx, late);
    }

    /// The connection to a copy broke, and with it the questions.
    pub(super) fn repairs_without(&mut self, base: &mut Base<D>, cx: &mut Cx<'_, D>, member: Member) {
        let owed = self.repairs.owed_by(|asked, _| asked == member);
        self.ask_others(base, cx, owed);
    }

    fn ask_others(&mut self, base: &mut Base<D>, cx: &mut Cx<'_, D>, chunks: Vec<ChunkId>) {
        for chunk in chunks {
            if let Some(asking) = self.repairs.asking(chunk)
                && let Some((silent, _)) = asking.asked
            {
                asking.copies.retain(|copy| *copy != silent);
                asking.unheard = !base.planted.is(Bug::SilenceIsLoss);
            }
            self.ask_for_block(base, cx, chunk);
        }
    }

    /// What wanted the blocks is tried again.
    fn end_repair(&mut self, base: &mut Base<D>, cx: &mut Cx<'_, D>, chunk: ChunkId, repaired: Repaired) {
        let Some(repair) = self.repairs.chunks.remove(&chunk) else { return };
        let what = repair.extent;
        let done = |wanted: Extent| if what.joined(wanted.whole_blocks()) == what { repaired } else { Repaired::No };
        for request in repair.reads {
            if let Some((chunk, extent)) = self.reads.again(request, done) {
                cx.emit(Effect::Read { request, chunk, extent });
            }
        }
        if let Some((join, round)) = self.join.as_mut().zip(repair.joiner) {
            join.compare_again(base, cx, round, chunk);
        }
        if let Some((request, extent, data)) = self.holds.merge_again(chunk, done) {
            cx.emit(Effect::Merge { request, chunk, extent, data });
        } else if self.holds.is_held_for_repair(chunk) {
            self.release(base, cx, chunk, false);
        }
        self.scrub_repaired(base, cx, chunk);
    }
}
