//! Which configuration change a primary asks for, one at a time.
//!
//! A proposal stays open until a newer epoch arrives or the MDM refuses it for good; till then its joiner counts for
//! acknowledgements and leases (S3), and nothing else is proposed. After a refusal nothing is proposed for a while, which
//! doubles with each, until the map brings something new: what the MDM knows and this copy does not will not change sooner.

use pflex_proto::ids::Member;

use super::backoff::Backoff;
use super::base::{Base, Cx};
use super::effect::Effect;
use super::limits::{JOIN_RETRY, PROPOSAL_RETRY, PROPOSAL_RETRY_MOST};
use super::types::{JoinTrouble, Proposal, ProposalReason, Time};

/// See the module.
#[derive(Debug)]
pub(super) struct Membership {
    joiners: Vec<Member>,
    open: Option<Proposal>,
    /// Joiners that were dropped in this epoch.
    rests: Vec<Rest>,
    /// Nothing is proposed before.
    quiet_until: Time,
    refusals: Backoff,
}

/// A joiner that was dropped, and until when it is left alone.
#[derive(Clone, Copy, Debug)]
struct Rest {
    member: Member,
    until: Time,
    backoff: Backoff,
    trouble: Option<JoinTrouble>,
}

impl Membership {
    pub(super) fn new(joiners: Vec<Member>) -> Self {
        Self { joiners, open: None, rests: Vec::new(), quiet_until: Time(0), refusals: Backoff::default() }
    }

    pub(super) fn set_joiners(&mut self, joiners: Vec<Member>) {
        self.rests.retain(|rest| joiners.contains(&rest.member));
        self.joiners = joiners;
        (self.quiet_until, self.refusals) = (Time(0), Backoff::default());
    }

    /// Why a joiner is not being filled.
    pub(super) fn trouble(&self) -> Option<JoinTrouble> {
        self.rests.iter().find_map(|rest| rest.trouble)
    }

    pub(super) fn may_join(&self, member: Member) -> bool {
        self.joiners.contains(&member)
    }

    /// Whether an open proposal would make this member in-sync.
    pub(super) fn proposes(&self, member: Member) -> bool {
        self.open.as_ref().is_some_and(|open| open.reason == ProposalReason::JoinerSynced(member))
    }

    pub(super) fn rejected<D: Clone>(&mut self, base: &Base<D>, now: Time) {
        if self.open.as_ref().is_some_and(|open| open.expected_epoch == base.epoch()) {
            self.open = None;
            self.quiet_until = now.plus(self.refusals.doubled(PROPOSAL_RETRY, PROPOSAL_RETRY_MOST));
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
        let rests = |member: &Member| self.rests.iter().any(|rest| rest.member == *member && now < rest.until);
        self.joiners.iter().copied().find(|member| outside(member) && !rests(member) && base.is_connected(*member))
    }

    /// What does not heal by itself (`trouble`) is tried less and less often; a link that broke at once.
    pub(super) fn joiner_dropped(&mut self, now: Time, member: Member, trouble: Option<JoinTrouble>, jitter: u16) {
        let mut backoff = Backoff::default();
        if let Some(place) = self.rests.iter().position(|rest| rest.member == member) {
            backoff = self.rests.swap_remove(place).backoff;
        }
        let pause = if trouble.is_some() { backoff.failed(jitter) } else { JOIN_RETRY };
        self.rests.push(Rest { member, until: now.plus(pause), backoff, trouble });
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

    /// S11: this copy is ready to answer, and says so before it does.
    pub(super) fn activate<D: Clone>(&mut self, base: &Base<D>, cx: &mut Cx<'_, D>) {
        self.propose(base, cx, in_sync(base), ProposalReason::Activation);
    }

    /// That is committed: the configuration is as it was, and may be changed again.
    pub(super) fn activated(&mut self) {
        if self.open.as_ref().is_some_and(|open| open.reason == ProposalReason::Activation) {
            self.open = None;
        }
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
        if self.open.is_none() && cx.now >= self.quiet_until {
            let proposal = Proposal { pg: base.id, expected_epoch: base.epoch(), in_sync, reason };
            self.open = Some(proposal.clone());
            cx.emit(Effect::Propose(proposal));
        }
    }
}

fn in_sync<D: Clone>(base: &Base<D>) -> Vec<Member> {
    base.config.as_ref().map(|config| config.in_sync.clone()).unwrap_or_default()
}
