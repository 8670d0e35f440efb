//! A backup: an in-sync copy that applies what the primary ordered.
//!
//! In each epoch it first answers the primary's reconciliation (S1); writes are accepted once it was opened.

use pflex_proto::ids::{ChunkId, Member, Sequence};

use super::base::{Base, Cx};
use super::effect::Effect;
use super::limits::LIST_PAGE;
use super::message::Body;
use super::planted::Bug;
use super::types::{ChunkEntry, OrderedWrite, Round};

/// See the module.
#[derive(Debug)]
pub(super) struct Backup {
    primary: Member,
    /// The primary's present attempt; what carries an older one was delayed in a broken connection.
    round: Round,
    opened: bool,
    /// The sequence received last (S4).
    received: Sequence,
    gap_told: Option<Sequence>,
    reserved: bool,
    /// The primary holds this chunk to make it equal. Over with the next write of the chunk or the connection: what a
    /// broken connection delivers late must not undo what came after.
    mending: Option<ChunkId>,
}

impl Backup {
    pub(super) fn new(primary: Member) -> Self {
        Self {
            primary,
            round: Round(0),
            opened: false,
            received: Sequence(0),
            gap_told: None,
            reserved: false,
            mending: None,
        }
    }

    pub(super) fn is_opened(&self) -> bool {
        self.opened
    }

    pub(super) fn primary(&self) -> Member {
        self.primary
    }

    /// Space was set aside that the end of this role should free.
    pub(super) fn has_reserved(&self) -> bool {
        self.reserved
    }

    /// A new connection starts with the primary's resends.
    pub(super) fn reconnected<D: Clone>(&mut self, base: &mut Base<D>, cx: &mut Cx<'_, D>) {
        self.gap_told = None;
        self.mending = None;
        // What became durable while the connection was down was not said, and the primary need not send anything (S14).
        if self.opened && base.is_writeback() {
            let (round, through) = (self.round, self.received);
            base.send_when_durable(cx, self.primary, Body::Durable { round, through });
        }
    }

    pub(super) fn on_message<D: Clone>(&mut self, base: &mut Base<D>, cx: &mut Cx<'_, D>, body: Body<D>) {
        // S4: a copy that could not apply a write answers nothing but that, until it has left.
        if base.failed {
            return base.send(cx, self.primary, Body::CannotApply);
        }
        match body {
            Body::Collect { round } if round > self.round => {
                self.round = round;
                self.opened = false;
                base.clear_gates();
                cx.emit(Effect::ListVersions { round, above: Some(base.committed) });
            }
            Body::SumsRequest { round, chunk } if round == self.round => {
                self.mending = Some(chunk);
                cx.emit(Effect::ReadSums { round, chunk });
            }
            Body::Fix { round, chunk, image, operations }
                if round == self.round && (!self.opened || self.mending == Some(chunk)) =>
            {
                if !base.planted.is(Bug::KeepUndoneOperations) {
                    base.operations.replace_chunk(chunk, &operations);
                }
                let operations = if base.planted.is(Bug::KeepUndoneOperations) {
                    base.operations.of_chunk(chunk)
                } else {
                    operations
                };
                base.has_seen(image.version);
                let ticket = base.ticket();
                cx.emit(Effect::FixChunk { ticket, chunk, image, operations });
                base.send_when_durable(cx, self.primary, Body::Fixed { round, chunk });
            }
            Body::Open { round, last, operations } if round == self.round => {
                // A second one is a resend: the table has moved on since.
                if !self.opened {
                    self.opened = true;
                    base.is_in_line();
                    self.mending = None;
                    self.received = last;
                    self.gap_told = None;
                    base.last = base.last.max(last);
                    base.replace_operations(cx, operations);
                }
                base.send_when_durable(cx, self.primary, Body::Opened { round });
            }
            Body::Write { round, previous, committed, write } if round == self.round && self.opened => {
                base.committed = base.committed.max(committed);
                self.on_write(base, cx, previous, write);
            }
            Body::Committed { round, through } if round == self.round && self.opened => {
                base.committed = base.committed.max(through);
            }
            Body::Reserve { round, chunk } if round == self.round && self.opened => {
                self.reserved = true;
                cx.emit(Effect::Reserve { chunk });
            }
            Body::Unreserve { round, chunk } if round == self.round && self.opened => {
                cx.emit(Effect::Unreserve { chunk });
            }
            Body::Verify { round, scrub, chunk } if round == self.round && self.opened => {
                cx.emit(Effect::Verify { round: scrub, chunk });
            }
            Body::Blocks { round, chunk, extent, version: Some(version), data: Some(data) }
                if round == self.round && self.opened =>
            {
                let ticket = base.ticket();
                cx.emit(Effect::Repair { ticket, chunk, version, extent, data });
            }
            Body::FetchBlocks { round, chunk, extent } if round == self.round && self.opened => {
                cx.emit(Effect::ReadBlocks { round, chunk, extent });
            }
            // Of another attempt, or what only a primary or joiner takes.
            Body::Collect { .. }
            | Body::SumsRequest { .. }
            | Body::Fix { .. }
            | Body::Open { .. }
            | Body::Write { .. }
            | Body::Committed { .. }
            | Body::Reserve { .. }
            | Body::Unreserve { .. }
            | Body::Verify { .. }
            | Body::Verified { .. }
            | Body::JoinStart { .. }
            | Body::SyncChunk { .. }
            | Body::JoinEnd { .. }
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

    fn on_write<D: Clone>(
        &mut self,
        base: &mut Base<D>,
        cx: &mut Cx<'_, D>,
        previous: Sequence,
        write: OrderedWrite<D>,
    ) {
        let round = self.round;
        let sequence = write.version.sequence;
        if sequence <= self.received {
            // A resend after a reconnect: what it wants is the acknowledgement.
            return base.acknowledge(cx, self.primary, round, self.received);
        }
        // S4: a missing write is never skipped.
        if previous != self.received && !base.planted.is(Bug::AcceptGap) {
            if self.gap_told != Some(self.received) {
                self.gap_told = Some(self.received);
                base.send(cx, self.primary, Body::Gap { round, after: self.received });
            }
            return;
        }
        self.received = sequence;
        if self.mending == Some(write.chunk) {
            self.mending = None;
        }
        base.apply(cx, write);
        base.acknowledge(cx, self.primary, round, sequence);
    }

    pub(super) fn on_listed<D: Clone>(
        &self,
        base: &mut Base<D>,
        cx: &mut Cx<'_, D>,
        round: Round,
        entries: &[ChunkEntry],
    ) {
        if round == self.round && !self.opened {
            send_list(base, cx, self.primary, round, entries);
        }
    }

    pub(super) fn round(&self) -> Round {
        self.round
    }
}

/// Answers `Collect` or `JoinStart`. What is listed is made durable first: the primary will count on it.
pub(super) fn send_list<D: Clone>(
    base: &mut Base<D>,
    cx: &mut Cx<'_, D>,
    primary: Member,
    round: Round,
    entries: &[ChunkEntry],
) {
    let (highest, watermark) = (base.last.max(base.committed), base.committed);
    let mut pages = entries.chunks(LIST_PAGE).peekable();
    if pages.peek().is_none() {
        let empty = Body::VersionList { round, highest, watermark, entries: Vec::new(), more: false };
        return base.send_when_durable(cx, primary, empty);
    }
    while let Some(page) = pages.next() {
        let more = pages.peek().is_some();
        let list = Body::VersionList { round, highest, watermark, entries: page.to_vec(), more };
        base.send_when_durable(cx, primary, list);
    }
}
