//! The primary's view of one copy it sends writes to, in-sync or joining.

use std::collections::VecDeque;

use pflex_proto::ids::{Member, Sequence};

use super::base::{Base, Cx};
use super::message::Body;
use super::types::{OrderedWrite, Round, Time};

/// See the module.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) member: Member,
    /// The attempt in which the copy was opened or started to join; its messages carry it.
    pub(super) round: Round,
    /// The sequence sent last. A copy tells by it whether it missed one (S4).
    sent: Sequence,
    /// Sent and not acknowledged. A joiner's have gaps: what is not synced yet is not forwarded.
    outstanding: VecDeque<Sequence>,
    /// Sent and not known to be durable there; in a writeback pool only (S14).
    volatile: VecDeque<Sequence>,
    /// Since when none of these has become durable.
    volatile_since: Option<Time>,
    /// Since when the copy owes an answer.
    owes_since: Option<Time>,
    /// Since when its connection is down.
    down_since: Option<Time>,
    /// The watermark it was told last.
    told: Sequence,
}

impl Stream {
    pub(super) fn new(member: Member, round: Round, sent: Sequence) -> Self {
        Self {
            member,
            round,
            sent,
            outstanding: VecDeque::new(),
            volatile: VecDeque::new(),
            volatile_since: None,
            owes_since: None,
            down_since: None,
            told: Sequence(0),
        }
    }

    pub(super) fn send_write<D: Clone>(&mut self, base: &Base<D>, cx: &mut Cx<'_, D>, write: &OrderedWrite<D>) {
        let sequence = write.version.sequence;
        self.outstanding.push_back(sequence);
        self.owes_since.get_or_insert(cx.now);
        if base.is_writeback() {
            self.volatile.push_back(sequence);
            self.volatile_since.get_or_insert(cx.now);
        }
        self.told = base.committed;
        let (round, previous, committed) = (self.round, self.sent, base.committed);
        self.sent = sequence;
        base.send(cx, self.member, Body::Write { round, previous, committed, write: write.clone() });
    }

    /// Forgets what was sent after `acknowledged`, to send it again.
    pub(super) fn rewind(&mut self, acknowledged: Sequence) {
        self.sent = acknowledged;
        self.outstanding.retain(|sequence| *sequence <= acknowledged);
        self.volatile.retain(|sequence| *sequence <= acknowledged);
        self.owes_since = None;
    }

    /// The last one this copy surely holds of what it was sent.
    pub(super) fn acknowledged(&self) -> Sequence {
        self.outstanding.front().map_or(self.sent, |first| Sequence(first.0 - 1))
    }

    pub(super) fn acknowledge(&mut self, now: Time, through: Sequence) {
        while self.outstanding.front().is_some_and(|first| *first <= through) {
            self.outstanding.pop_front();
        }
        self.answered(now);
    }

    /// S14: what is durable there is held there.
    pub(super) fn made_durable(&mut self, now: Time, through: Sequence) {
        while self.volatile.front().is_some_and(|first| *first <= through) {
            self.volatile.pop_front();
        }
        self.volatile_since = (!self.volatile.is_empty()).then_some(now);
        self.acknowledge(now, through);
    }

    /// Something else was asked of this copy.
    pub(super) fn owe(&mut self, now: Time) {
        self.owes_since.get_or_insert(now);
    }

    /// It was answered.
    pub(super) fn answered(&mut self, now: Time) {
        self.owes_since = (!self.outstanding.is_empty()).then_some(now);
    }

    /// Whether this copy has all it needs for the write of this sequence to be answered: durably, or in a writeback pool
    /// in memory.
    pub(super) fn covers(&self, sequence: Sequence) -> bool {
        self.outstanding.front().is_none_or(|first| *first > sequence)
    }

    /// The same, durably in both kinds of pools.
    pub(super) fn covers_durably(&self, sequence: Sequence) -> bool {
        self.covers(sequence) && self.volatile.front().is_none_or(|first| *first > sequence)
    }

    /// A disk that takes what it is sent and makes nothing of it durable owes as well.
    pub(super) fn owes_since(&self) -> Option<Time> {
        self.owes_since.into_iter().chain(self.volatile_since).min()
    }

    pub(super) fn down_since(&self) -> Option<Time> {
        self.down_since
    }

    pub(super) fn set_down(&mut self, since: Option<Time>) {
        self.down_since = since;
    }

    /// Tells an idle copy how far is committed, so that little is left to compare at the next epoch.
    pub(super) fn tell_watermark<D: Clone>(&mut self, base: &Base<D>, cx: &mut Cx<'_, D>) {
        if self.told < base.committed {
            self.told = base.committed;
            base.send(cx, self.member, Body::Committed { round: self.round, through: base.committed });
        }
    }
}
