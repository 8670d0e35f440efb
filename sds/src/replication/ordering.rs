//! The write path of a primary: dedupe, wait for the chunk, order, commit, answer.

use pflex_proto::ids::{ChunkId, Member, Sequence, Version, VolatilityId};

use super::base::{Base, Cx};
use super::durability::Waiter;
use super::effect::Effect;
use super::event::{ClientFlush, ClientWrite};
use super::flight::Flight;
use super::holds::{Hold, Reason};
use super::join::Forward;
use super::limits::MAX_WAITERS;
use super::message::Body;
use super::operations::Lookup;
use super::planted::Bug;
use super::primary::Primary;
use super::repairs::{Elsewhere, Repaired, Wanted};
use super::stream::Stream;
use super::types::{Extent, OrderedWrite, Outcome, Refusal, RequestId, WriteKind};

impl<D: Clone> Primary<D> {
    pub(super) fn on_write(&mut self, base: &mut Base<D>, cx: &mut Cx<'_, D>, write: ClientWrite<D>) {
        if let Some(refusal) = self.not_ready(base) {
            return cx.refuse(write.request, refusal);
        }
        // S7: a resend is answered like the first send, and never ordered again.
        match base.operations.lookup(write.client, write.operation) {
            _ if base.planted.is(Bug::ForgetOperations) => {}
            Lookup::New => {}
            Lookup::Executed(version) => return self.on_resend(base, cx, write.request, version, write.fua),
            Lookup::Old => return cx.refuse(write.request, Refusal::OldOperation),
            Lookup::Full => return cx.refuse(write.request, Refusal::Busy),
            Lookup::TableFull => return cx.refuse(write.request, Refusal::OperationsFull),
        }
        if self.holds.is_held(write.chunk) {
            if let Err(write) = self.holds.queue(write) {
                cx.refuse(write.request, Refusal::Busy);
            }
            return;
        }
        if self.flight.is_full() {
            return cx.refuse(write.request, Refusal::Busy);
        }
        if write.creates_chunk && !self.backups.is_empty() {
            return self.reserve(base, cx, write);
        }
        if write.merge
            && let WriteKind::Data(data) = &write.kind
        {
            let (request, chunk, extent, data) = (write.request, write.chunk, write.extent, data.clone());
            self.holds.hold(chunk, Reason::Merging(write));
            return cx.emit(Effect::Merge { request, chunk, extent, data });
        }
        self.order(base, cx, write);
    }

    /// S9, S20: what is not ordered yet is discarded. What is ordered goes on, and reads are checked when they are
    /// answered.
    pub(super) fn on_cancel(&mut self, cx: &mut Cx<'_, D>, request: RequestId) {
        if self.holds.cancel(request) {
            cx.refuse(request, Refusal::Cancelled);
        }
    }

    fn on_resend(&mut self, base: &Base<D>, cx: &mut Cx<'_, D>, request: RequestId, version: Version, fua: bool) {
        if version.sequence > base.committed
            && let Some(entry) = self.flight.get_mut(version.sequence)
        {
            if entry.waiting.len() < MAX_WAITERS {
                entry.fua |= fua;
                entry.waiting.push(request);
            } else {
                cx.refuse(request, Refusal::Busy);
            }
            return;
        }
        self.held_everywhere(base, cx, request, version, fua);
    }

    /// S14: a FUA write is answered when it is durable everywhere, any other one now.
    fn held_everywhere(&mut self, base: &Base<D>, cx: &mut Cx<'_, D>, request: RequestId, version: Version, fua: bool) {
        if !fua || version.sequence <= base.committed || base.planted.is(Bug::AnswerFuaWhenHeld) {
            return written(base, cx, request, version);
        }
        if !self.durability.wait(version.sequence, request, Waiter::Fua(version)) {
            cx.refuse(request, Refusal::Busy);
        }
    }

    /// S14: what was acknowledged is in the memory of every in-sync copy if this is still the memory it was acknowledged
    /// with. All that is ordered by now is waited for, until it is durable on each of them.
    pub(super) fn on_flush(&mut self, base: &mut Base<D>, cx: &mut Cx<'_, D>, flush: ClientFlush) {
        if let Some(refusal) = self.not_ready(base) {
            return cx.refuse(flush.request, refusal);
        }
        if !base.is_writeback() {
            return cx.emit(flushed(flush.request, flush.volatility));
        }
        let present = base.config.as_ref().map(|config| config.volatility).unwrap_or_default();
        if flush.volatility != present && !base.planted.is(Bug::FlushOfOtherMemory) {
            return cx.refuse(flush.request, Refusal::LostMemory { named: flush.volatility, present });
        }
        if !self.durability.wait(base.last, flush.request, Waiter::Flush) {
            return cx.refuse(flush.request, Refusal::Busy);
        }
        self.advance(base, cx);
    }

    /// The epoch or this copy's part in it is over: nobody here can say any more when what waits is durable. FUA writes are
    /// ordered; whoever is primary then answers their resends.
    pub(super) fn end_flushes(&mut self, base: &Base<D>, cx: &mut Cx<'_, D>, refusal: Refusal) {
        for (request, waiter) in self.durability.end() {
            let refusal = match waiter {
                Waiter::Flush => refusal,
                Waiter::Fua(_) => Refusal::OutcomeUnknown { epoch: base.epoch() },
            };
            cx.refuse(request, refusal);
        }
    }

    /// S4: a sequence is taken here, and never given back.
    pub(super) fn order(&mut self, base: &mut Base<D>, cx: &mut Cx<'_, D>, write: ClientWrite<D>) {
        let ClientWrite { request, client, operation, low_water, chunk, extent, kind, fua, .. } = write;
        let version = Version { epoch: base.epoch(), sequence: base.last.next() };
        if matches!(kind, WriteKind::Data(_)) {
            self.reservations.used(chunk);
        }
        let write = OrderedWrite { version, chunk, extent, kind, client, operation, low_water };
        self.touch_scrub(chunk);
        for backup in &mut self.backups {
            backup.send_write(base, cx, &write);
        }
        if let Some(join) = &mut self.join
            && join.forward(base, chunk) == Forward::Yes
        {
            join.stream.send_write(base, cx, &write);
        }
        let ticket = base.apply(cx, write.clone());
        if base.is_writeback() {
            self.durability.ordered(version.sequence, ticket);
        }
        self.flight.push(write, ticket, request, fua);
    }

    /// S4: every copy has room before the write that needs it is ordered.
    pub(super) fn reserve(&mut self, base: &Base<D>, cx: &mut Cx<'_, D>, write: ClientWrite<D>) {
        let chunk = write.chunk;
        for backup in &mut self.backups {
            backup.owe(cx.now);
            self.reservations.ask(chunk, backup.member);
            base.send(cx, backup.member, Body::Reserve { round: backup.round, chunk });
        }
        let members = self.backups.iter().map(|backup| backup.member).collect();
        self.holds.hold(chunk, Reason::Reserving(write, members));
    }

    pub(super) fn on_reserved(
        &mut self,
        base: &mut Base<D>,
        cx: &mut Cx<'_, D>,
        from: Member,
        chunk: ChunkId,
        granted: bool,
    ) {
        let Some(Hold { reason: Reason::Reserving(write, missing), .. }) = self.holds.get_mut(chunk) else { return };
        if granted {
            missing.retain(|member| *member != from);
            if missing.is_empty() {
                write.creates_chunk = false;
                self.release(base, cx, chunk, true);
            }
            return;
        }
        if let Some(Hold { reason: Reason::Reserving(write, _), waiting, .. }) = self.holds.release(chunk) {
            cx.refuse(write.request, Refusal::NoSpace { device: from.device });
            self.hold_for_repair(base, cx, chunk);
            self.admit_again(base, cx, waiting.into());
        }
    }

    pub(super) fn on_merged(
        &mut self,
        base: &mut Base<D>,
        cx: &mut Cx<'_, D>,
        request: RequestId,
        merged: Option<(Extent, D)>,
    ) {
        let Some(chunk) = self.holds.merged(request) else { return };
        if merged.is_none()
            && self.elsewhere(base) == Elsewhere::Ask
            && let Some(extent) = self.holds.repair_for_merge(chunk)
        {
            self.repair(base, cx, chunk, extent, Wanted::Merge);
            return;
        }
        let Some(Hold { reason: Reason::Merging(mut write), waiting, cancelled, repaired }) = self.holds.release(chunk)
        else {
            return;
        };
        match merged {
            _ if cancelled => cx.refuse(request, Refusal::Cancelled),
            // Between the read and here the chunk was held, so nothing was ordered over the merged bytes (S15).
            Some((extent, data)) if !self.flight.is_full() => {
                write.extent = extent;
                write.kind = WriteKind::Data(data);
                self.order(base, cx, write);
            }
            Some(_) => cx.refuse(request, Refusal::Busy),
            None => {
                let refusal = match (repaired, self.elsewhere(base)) {
                    (Repaired::No, Elsewhere::Nowhere) => {
                        cx.emit(Effect::Unreadable { chunk, extent: write.extent });
                        Refusal::Unreadable
                    }
                    (repaired, _) => repaired.refusal(),
                };
                cx.refuse(request, refusal);
            }
        }
        self.hold_for_repair(base, cx, chunk);
        self.admit_again(base, cx, waiting.into());
    }

    /// Ends a hold whose reason is gone.
    pub(super) fn release(&mut self, base: &mut Base<D>, cx: &mut Cx<'_, D>, chunk: ChunkId, reserved: bool) {
        let Some(hold) = self.holds.release(chunk) else { return };
        let mut writes: Vec<ClientWrite<D>> = Vec::with_capacity(hold.waiting.len() + 1);
        match hold.reason {
            Reason::Syncing | Reason::Mending | Reason::Repairing(None) => {}
            Reason::Merging(write) | Reason::Reserving(write, _) | Reason::Repairing(Some(write)) if hold.cancelled => {
                cx.refuse(write.request, Refusal::Cancelled);
            }
            Reason::Merging(write) | Reason::Reserving(write, _) | Reason::Repairing(Some(write)) => writes.push(write),
        }
        writes.extend(hold.waiting);
        if reserved {
            writes.iter_mut().for_each(|write| write.creates_chunk = false);
        }
        self.hold_for_repair(base, cx, chunk);
        self.admit_again(base, cx, writes);
    }

    pub(super) fn admit_again(&mut self, base: &mut Base<D>, cx: &mut Cx<'_, D>, writes: Vec<ClientWrite<D>>) {
        // S4: zeros may leave nothing of a chunk and give its space back; whoever was queued behind them asks for it anew.
        let mut emptied = false;
        for mut write in writes {
            match write.kind {
                WriteKind::Zeroes => emptied = true,
                WriteKind::Data(_) => write.creates_chunk |= emptied,
            }
            self.on_write(base, cx, write);
        }
        // A chunk that was held may have been passed over by the join.
        if let Some(join) = &mut self.join {
            join.sync_next(base, cx, &mut self.holds);
        }
    }

    /// Commits and answers what is durable on every copy that counts: this one, the in-sync ones, and a joiner, which
    /// counts until it is dropped, and which cannot be dropped while its proposal is open (S3). In a writeback pool what
    /// they hold is answered, and the watermark and FLUSHes follow when it is durable (S14).
    pub(super) fn advance(&mut self, base: &mut Base<D>, cx: &mut Cx<'_, D>) {
        // S4: a primary that could not apply a write acknowledges nothing after it.
        if !self.is_serving() || base.failed {
            return;
        }
        while let Some(first) = self.flight.front() {
            let sequence = first.write.version.sequence;
            let here = first.ticket <= if base.is_writeback() { base.held.max(base.durable) } else { base.durable };
            let backups =
                self.backups.iter().all(|backup| backup.covers(sequence)) || base.planted.is(Bug::AckBeforeBackup);
            let joiner = self.join.as_ref().is_none_or(|join| join.stream.covers(sequence))
                || base.planted.is(Bug::JoinerNotAwaited);
            if !(here && backups && joiner) {
                break;
            }
            self.commit_first(base, cx);
        }
        self.advance_watermark(base, cx);
        self.release_reads(base, cx);
        self.start_repairs(base, cx);
    }

    fn commit_first(&mut self, base: &mut Base<D>, cx: &mut Cx<'_, D>) {
        let Some(mut entry) = self.flight.pop_front() else { return };
        let version = entry.write.version;
        if !base.is_writeback() || base.planted.is(Bug::WatermarkOfMemory) {
            base.committed = version.sequence;
        }
        for request in entry.waiting.drain(..) {
            self.held_everywhere(base, cx, request, version, entry.fua && base.is_writeback());
        }
        self.flight.recycle(entry.waiting);
    }

    /// S14: the watermark says durable on every copy that counts, as in a `sync` pool.
    fn advance_watermark(&mut self, base: &mut Base<D>, cx: &mut Cx<'_, D>) {
        if !base.is_writeback() {
            return;
        }
        let (backups, join) = (&self.backups, &self.join);
        let elsewhere = |sequence| {
            let backups = backups.iter().all(|backup| backup.covers_durably(sequence));
            (backups || base.planted.is(Bug::FlushHereAlone))
                && join.as_ref().is_none_or(|join| join.stream.covers_durably(sequence))
        };
        if let Some(reached) = self.durability.advance(base.durable, elsewhere) {
            base.committed = base.committed.max(reached);
        }
        let volatility = base.config.as_ref().map(|config| config.volatility).unwrap_or_default();
        while let Some((request, waiter)) = self.durability.release(base.committed) {
            match waiter {
                Waiter::Flush => cx.emit(flushed(request, volatility)),
                Waiter::Fua(version) => written(base, cx, request, version),
            }
        }
    }

    /// Every write up to here was answered, or is with the others that the FLUSHes wait for.
    pub(super) fn answered(&self, base: &Base<D>) -> Sequence {
        self.flight.front().map_or(base.last, |first| Sequence(first.write.version.sequence.0 - 1))
    }
}

/// Sends a copy everything in flight after a sequence, in order, under the same versions.
pub(super) fn resend<D: Clone>(
    base: &Base<D>,
    cx: &mut Cx<'_, D>,
    backup: &mut Stream,
    flight: &Flight<D>,
    after: Sequence,
) {
    backup.rewind(after);
    for entry in flight.after(after) {
        backup.send_write(base, cx, &entry.write);
    }
}

const fn flushed<D>(request: RequestId, volatility: VolatilityId) -> Effect<D> {
    Effect::Reply { request, outcome: Outcome::Flushed { volatility } }
}

pub(super) fn written<D: Clone>(base: &Base<D>, cx: &mut Cx<'_, D>, request: RequestId, version: Version) {
    cx.emit(Effect::Reply { request, outcome: Outcome::Written { volatility: base.volatility(), version } });
}
