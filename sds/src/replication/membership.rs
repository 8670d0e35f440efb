//! Which configuration change a primary asks for, one at a time.
//!
//! A proposal stays open until a newer epoch arrives or the MDM refuses it for good; till then its joiner counts for
//! acknowledgements and leases (S3), and nothing else is proposed.

use pflex_proto::ids::Member;

use super::base::{Base, Cx};
use super::effect::Effect;
use super::limits::JOIN_RETRY;
use super::types::{Proposal, ProposalReason, Time};

/// See the module.
#[derive(Debug)]
pub(super) struct Membership {
    joiners: Vec<Member>,
    open: Option<Proposal>,
    /// The joiner dropped last, and until when it is left alone.
    rests: Option<(Member, Time)>,
}

impl Membership {
    pub(super) fn new(joiners: Vec<Member>) -> Self {
        Self { joiners, open: None, rests: None }
    }

    pub(super) fn set_joiners(&mut self, joiners: Vec<Member>) {
        self.joiners = joiners;
    }

    pub(super) fn may_join(&self, member: Member) -> bool {
        self.joiners.contains(&member)
    }

    /// Whether an open proposal would make this member in-sync.
    pub(super) fn proposes(&self, member: Member) -> bool {
        self.open.as_ref().is_some_and(|open| open.reason == ProposalReason::JoinerSynced(member))
    }

    pub(super) fn rejected<D: Clone>(&mut self, base: &Base<D>) {
        if self.open.as_ref().is_some_and(|open| open.expected_epoch == base.epoch()) {
            self.open = None;
        }
    }

    /// The next live replica to bring in. Another one goes before the one that was just dropped.
    pub(super) fn next_joiner<D: Clone>(&self, base: &Base<D>, now: Time) -> Option<Member> {
        // A proposal ends the epoch and with it every join, so none is begun under one.
        if self.open.is_some() {
            return None;
        }
        let config = base.config.as_ref()?;
        // S2: a device that is in sync in another life is the MDM's to rename, never ours to fill: filling marks
        // chunks unsynced in a copy that may be named in-sync any moment.
        let outside = |member: &Member| config.in_sync.iter().all(|in_sync| in_sync.device != member.device);
        let rests = |member: &Member| self.rests.is_some_and(|(resting, until)| resting == *member && now < until);
        self.joiners.iter().copied().find(|member| outside(member) && !rests(member) && base.is_connected(*member))
    }

    pub(super) fn joiner_dropped(&mut self, now: Time, member: Member) {
        self.rests = Some((member, now.plus(JOIN_RETRY)));
    }

    pub(super) fn joiner_synced<D: Clone>(&mut self, base: &Base<D>, cx: &mut Cx<'_, D>, joiner: Member) {
        let mut in_sync = in_sync(base);
        in_sync.push(joiner);
        self.propose(base, cx, in_sync, ProposalReason::JoinerSynced(joiner));
    }

    pub(super) fn backup_silent<D: Clone>(&mut self, base: &Base<D>, cx: &mut Cx<'_, D>, backup: Member) {
        self.remove(base, cx, backup, ProposalReason::BackupSilent(backup));
    }

    pub(super) fn cannot_apply<D: Clone>(&mut self, base: &Base<D>, cx: &mut Cx<'_, D>, backup: Member) {
        self.remove(base, cx, backup, ProposalReason::BackupCannotApply(backup));
    }

    /// S4: this copy leaves, if another one can go on.
    pub(super) fn give_up<D: Clone>(&mut self, base: &Base<D>, cx: &mut Cx<'_, D>) {
        self.remove(base, cx, base.own, ProposalReason::PrimaryCannotApply(base.own));
    }

    fn remove<D: Clone>(&mut self, base: &Base<D>, cx: &mut Cx<'_, D>, member: Member, reason: ProposalReason) {
        let before = in_sync(base);
        let mut after = before.clone();
        after.retain(|in_sync| *in_sync != member);
        if !after.is_empty() && after.len() < before.len() {
            self.propose(base, cx, after, reason);
        }
    }

    fn propose<D: Clone>(&mut self, base: &Base<D>, cx: &mut Cx<'_, D>, in_sync: Vec<Member>, reason: ProposalReason) {
        if self.open.is_none() {
            let proposal = Proposal { pg: base.id, expected_epoch: base.epoch(), in_sync, reason };
            self.open = Some(proposal.clone());
            cx.emit(Effect::Propose(proposal));
        }
    }
}

fn in_sync<D: Clone>(base: &Base<D>) -> Vec<Member> {
    base.config.as_ref().map(|config| config.in_sync.clone()).unwrap_or_default()
}
