//! The primary: orders writes, has them applied everywhere, commits and answers them; answers reads.
//!
//! This file has the order and the commit; `reconcile` opens the epoch, `join` brings a joiner in, `reads` and `holds`
//! keep what waits, `membership` decides whom to propose.

use pflex_proto::ids::{ChunkId, Member, Sequence, Version};

use super::base::{Base, Cx};
use super::effect::Effect;
use super::event::{ClientRead, ClientWrite};
use super::flight::Flight;
use super::holds::{Hold, Holds, Reason};
use super::join::{Forward, Join};
use super::membership::Membership;
use super::message::Body;
use super::operations::Lookup;
use super::planted::Bug;
use super::reads::Reads;
use super::reconcile::Reconcile;
use super::stream::Stream;
use super::types::{ChunkEntry, ChunkImage, Extent, OrderedWrite, Outcome, Refusal, RequestId, Round, Time, WriteKind};

/// See the module.
#[derive(Debug)]
pub(super) struct Primary<D> {
    pub(super) phase: Phase,
    /// The other in-sync copies; filled when the epoch is opened.
    pub(super) backups: Vec<Stream>,
    pub(super) join: Option<Join>,
    pub(super) membership: Membership,
    flight: Flight<D>,
    reads: Reads<D>,
    pub(super) holds: Holds<D>,
}

/// How far the epoch is.
#[derive(Debug)]
pub(super) enum Phase {
    /// S1 and S6: nothing is answered yet.
    Opening(Reconcile),
    /// Requests are answered.
    Serving,
}

impl<D: Clone> Primary<D> {
    /// Opens an epoch. `flight` are the writes this copy ordered as primary of the epoch before: they are in its own
    /// store, so reconciliation commits them (S1).
    pub(super) fn open(base: &mut Base<D>, cx: &mut Cx<'_, D>, joiners: Vec<Member>, flight: Flight<D>) -> Self {
        let own = base.own;
        let others: Vec<Member> = base.config.iter().flat_map(|config| &config.in_sync).copied().collect();
        let others: Vec<Member> = others.into_iter().filter(|member| !base.same(*member, own)).collect();
        if !others.is_empty() {
            cx.emit(Effect::RenewLeases);
        }
        let reconcile = Reconcile::start(base, cx, &others);
        Self {
            phase: Phase::Opening(reconcile),
            backups: Vec::new(),
            join: None,
            membership: Membership::new(joiners),
            flight,
            reads: Reads::default(),
            holds: Holds::default(),
        }
    }

    /// The epoch is over. What is ordered goes on in the next one, if this copy is primary again.
    pub(super) fn close(mut self, base: &Base<D>, cx: &mut Cx<'_, D>) -> Flight<D> {
        let refusal = Refusal::WrongEpoch { epoch: base.epoch() };
        for request in self.reads.drain() {
            cx.refuse(request, refusal);
        }
        for request in self.holds.drain() {
            cx.refuse(request, refusal);
        }
        self.flight
    }

    /// Answers the writes of a copy that is primary no more: the next primary knows them or not.
    pub(super) fn abandon(mut flight: Flight<D>, base: &Base<D>, cx: &mut Cx<'_, D>) {
        while let Some(entry) = flight.pop_front() {
            for request in entry.waiting {
                cx.refuse(request, Refusal::OutcomeUnknown { epoch: base.epoch() });
            }
        }
    }

    pub(super) fn is_serving(&self) -> bool {
        matches!(self.phase, Phase::Serving)
    }

    pub(super) fn in_flight(&self) -> usize {
        self.flight.len()
    }

    // ---- writes

    pub(super) fn on_write(&mut self, base: &mut Base<D>, cx: &mut Cx<'_, D>, write: ClientWrite<D>) {
        if let Some(refusal) = self.not_ready(base) {
            return cx.refuse(write.request, refusal);
        }
        // S7: a resend is answered like the first send, and never ordered again.
        match base.operations.lookup(write.client, write.operation) {
            _ if base.planted.is(Bug::ForgetOperations) => {}
            Lookup::New => {}
            Lookup::Executed(version) => return self.on_resend(base, cx, write.request, version),
            Lookup::Old => return cx.refuse(write.request, Refusal::OldOperation),
            Lookup::Full => return cx.refuse(write.request, Refusal::Busy),
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

    fn on_resend(&mut self, base: &Base<D>, cx: &mut Cx<'_, D>, request: RequestId, version: Version) {
        if version.sequence > base.committed
            && let Some(entry) = self.flight.get_mut(version.sequence)
        {
            if entry.waiting.len() < super::limits::MAX_WAITERS {
                entry.waiting.push(request);
            } else {
                cx.refuse(request, Refusal::Busy);
            }
            return;
        }
        written(base, cx, request, version);
    }

    /// S4: a sequence is taken here, and never given back.
    fn order(&mut self, base: &mut Base<D>, cx: &mut Cx<'_, D>, write: ClientWrite<D>) {
        let ClientWrite { request, client, operation, low_water, chunk, extent, kind, .. } = write;
        let version = Version { epoch: base.epoch(), sequence: base.last.next() };
        let write = OrderedWrite { version, chunk, extent, kind, client, operation, low_water };
        for backup in &mut self.backups {
            backup.send_write(base, cx, &write);
        }
        if let Some(join) = &mut self.join
            && join.forward(base, chunk) == Forward::Yes
        {
            join.stream.send_write(base, cx, &write);
        }
        let ticket = base.apply(cx, write.clone());
        self.flight.push(write, ticket, request);
    }

    /// S4: every copy has room before the write that needs it is ordered.
    fn reserve(&mut self, base: &Base<D>, cx: &mut Cx<'_, D>, write: ClientWrite<D>) {
        let chunk = write.chunk;
        for backup in &mut self.backups {
            backup.owe(cx.now);
            base.send(cx, backup.member, Body::Reserve { round: backup.round, chunk });
        }
        let members = self.backups.iter().map(|backup| backup.member).collect();
        self.holds.hold(chunk, Reason::Reserving(write, members));
    }

    fn on_reserved(&mut self, base: &mut Base<D>, cx: &mut Cx<'_, D>, from: Member, chunk: ChunkId, granted: bool) {
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
        let Some(Hold { reason: Reason::Merging(mut write), waiting, cancelled }) = self.holds.release(chunk) else {
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
            None => cx.refuse(request, Refusal::Unreadable),
        }
        self.admit_again(base, cx, waiting.into());
    }

    /// Ends a hold whose reason is gone.
    fn release(&mut self, base: &mut Base<D>, cx: &mut Cx<'_, D>, chunk: ChunkId, reserved: bool) {
        let Some(hold) = self.holds.release(chunk) else { return };
        let mut writes: Vec<ClientWrite<D>> = Vec::with_capacity(hold.waiting.len() + 1);
        match hold.reason {
            Reason::Syncing => {}
            Reason::Merging(write) | Reason::Reserving(write, _) if hold.cancelled => {
                cx.refuse(write.request, Refusal::Cancelled);
            }
            Reason::Merging(write) | Reason::Reserving(write, _) => writes.push(write),
        }
        writes.extend(hold.waiting);
        if reserved {
            writes.iter_mut().for_each(|write| write.creates_chunk = false);
        }
        self.admit_again(base, cx, writes);
    }

    fn admit_again(&mut self, base: &mut Base<D>, cx: &mut Cx<'_, D>, writes: Vec<ClientWrite<D>>) {
        for write in writes {
            self.on_write(base, cx, write);
        }
        // A chunk that was held may have been passed over by the join.
        if let Some(join) = &mut self.join {
            join.sync_next(base, cx, &mut self.holds);
        }
    }

    // ---- commit

    /// Commits and answers what is durable on every copy that counts: this one, the in-sync ones, and a joiner, which
    /// counts until it is dropped, and which cannot be dropped while its proposal is open (S3).
    pub(super) fn advance(&mut self, base: &mut Base<D>, cx: &mut Cx<'_, D>) {
        // S4: a primary that could not apply a write acknowledges nothing after it.
        if !self.is_serving() || base.failed {
            return;
        }
        while let Some(first) = self.flight.front() {
            let sequence = first.write.version.sequence;
            let here = first.ticket <= base.durable;
            let backups =
                self.backups.iter().all(|backup| backup.covers(sequence)) || base.planted.is(Bug::AckBeforeBackup);
            let joiner = self.join.as_ref().is_none_or(|join| join.stream.covers(sequence))
                || base.planted.is(Bug::JoinerNotAwaited);
            if !(here && backups && joiner) {
                break;
            }
            self.commit_first(base, cx);
        }
        self.release_reads(base, cx);
    }

    fn commit_first(&mut self, base: &mut Base<D>, cx: &mut Cx<'_, D>) {
        let Some(mut entry) = self.flight.pop_front() else { return };
        base.committed = entry.write.version.sequence;
        for request in entry.waiting.drain(..) {
            written(base, cx, request, entry.write.version);
        }
        self.flight.recycle(entry.waiting);
    }

    // ---- reads

    pub(super) fn on_read(&mut self, base: &Base<D>, cx: &mut Cx<'_, D>, read: ClientRead) {
        let ClientRead { request, chunk, extent, .. } = read;
        if let Some(refusal) = self.not_ready(base) {
            return cx.refuse(request, refusal);
        }
        if !self.holds_leases(base, cx) {
            return cx.refuse(request, Refusal::NoLease { epoch: base.epoch() });
        }
        if self.reads.is_full() {
            return cx.refuse(request, Refusal::Busy);
        }
        self.reads.begin(request, chunk, extent);
        cx.emit(Effect::Read { request, chunk, extent });
    }

    pub(super) fn on_read_done(&mut self, base: &Base<D>, cx: &mut Cx<'_, D>, request: RequestId, data: Option<D>) {
        let Some((chunk, extent)) = self.reads.done(request) else { return };
        let Some(data) = data else { return cx.refuse(request, Refusal::Unreadable) };
        // S5: what was read may be a write that is not committed.
        match self.flight.last_overlapping(chunk, extent) {
            Some(until) if !base.planted.is(Bug::DirtyRead) => self.reads.park(request, until, data),
            Some(_) | None => self.answer_read(base, cx, request, data),
        }
    }

    fn release_reads(&mut self, base: &Base<D>, cx: &mut Cx<'_, D>) {
        while let Some((request, data)) = self.reads.release(base.committed) {
            self.answer_read(base, cx, request, data);
        }
    }

    /// S5: the lease is looked at last. While it holds no other primary can have answered a write, so the data is what
    /// was committed at this moment.
    fn answer_read(&self, base: &Base<D>, cx: &mut Cx<'_, D>, request: RequestId, data: D) {
        if self.holds_leases(base, cx) && !base.failed {
            cx.emit(Effect::Reply { request, outcome: Outcome::Read { data } });
        } else {
            cx.refuse(request, Refusal::NoLease { epoch: base.epoch() });
        }
    }

    /// A lease from every copy that could be promoted: the in-sync ones and a proposed joiner (S3, S6). Alone, none.
    pub(super) fn holds_leases(&self, base: &Base<D>, cx: &Cx<'_, D>) -> bool {
        let joiner = self.join.iter().filter(|join| self.membership.proposes(join.member())).map(Join::member);
        let mut granters = self.backups.iter().map(|backup| backup.member).chain(joiner);
        base.planted.is(Bug::ReadWithoutLease)
            || granters.all(|granter| cx.leases.holds(cx.now, granter, base.id, base.epoch()))
    }

    fn not_ready(&self, base: &Base<D>) -> Option<Refusal> {
        let epoch = base.epoch();
        match &self.phase {
            _ if base.failed => Some(Refusal::CopyFailed),
            Phase::Opening(_) => Some(Refusal::Opening { epoch }),
            Phase::Serving => None,
        }
    }

    // ---- what comes from the store and the other copies

    pub(super) fn on_message(&mut self, base: &mut Base<D>, cx: &mut Cx<'_, D>, from: Member, body: Body<D>) {
        // Memory is ahead of the store here: nothing of it may reach another copy.
        if base.failed {
            return;
        }
        if let Phase::Opening(reconcile) = &mut self.phase {
            if matches!(body, Body::CannotApply) {
                return self.membership.cannot_apply(base, cx, from);
            }
            reconcile.on_message(base, cx, from, &body);
            return self.try_serve(base, cx);
        }
        let backup = self.backups.iter_mut().find(|backup| base.same(backup.member, from));
        match (body, backup) {
            (Body::WriteAck { round, through }, Some(backup)) if round == backup.round => {
                backup.acknowledge(cx.now, through);
                self.advance(base, cx);
            }
            (Body::Gap { round, after }, Some(backup)) if round == backup.round => {
                if after >= backup.acknowledged() {
                    resend(base, cx, backup, &self.flight, after);
                }
            }
            (Body::CannotApply, Some(_)) => self.membership.cannot_apply(base, cx, from),
            (Body::Reserved { round, chunk, granted }, Some(backup)) if round == backup.round => {
                backup.answered(cx.now);
                self.on_reserved(base, cx, from, chunk, granted);
            }
            (body, None) => self.on_joiner_message(base, cx, from, &body),
            _ => {}
        }
    }

    fn on_joiner_message(&mut self, base: &mut Base<D>, cx: &mut Cx<'_, D>, from: Member, body: &Body<D>) {
        let Some(join) = self.join.as_mut().filter(|join| base.same(join.member(), from)) else { return };
        let failed =
            matches!(body, Body::CannotApply) || matches!(body, Body::Gap { round, .. } if *round == join.stream.round);
        if failed {
            return self.drop_joiner(base, cx);
        }
        if let Some(synced) = join.on_message(base, cx, &mut self.holds, body) {
            self.release(base, cx, synced, false);
        }
        self.propose_ready_joiner(base, cx);
        self.advance(base, cx);
    }

    pub(super) fn propose_ready_joiner(&mut self, base: &Base<D>, cx: &mut Cx<'_, D>) {
        if let Some(join) = self.join.as_ref().filter(|join| join.is_ready()) {
            self.membership.joiner_synced(base, cx, join.member());
        }
    }

    /// Drops the joiner without an epoch change and lets its waiters go on (S10), unless it is proposed: then it
    /// counts until the outcome is known (S3).
    pub(super) fn drop_joiner(&mut self, base: &mut Base<D>, cx: &mut Cx<'_, D>) {
        let proposed = self.join.as_ref().is_some_and(|join| self.membership.proposes(join.member()));
        if proposed && !base.planted.is(Bug::JoinerNotAwaited) {
            return;
        }
        let Some(join) = self.join.take() else { return };
        self.membership.joiner_dropped(cx.now, join.member());
        for chunk in join.held() {
            self.release(base, cx, chunk, false);
        }
        self.advance(base, cx);
    }

    pub(super) fn on_listed(&mut self, base: &mut Base<D>, cx: &mut Cx<'_, D>, round: Round, entries: &[ChunkEntry]) {
        match &mut self.phase {
            _ if base.failed => {}
            Phase::Opening(reconcile) => {
                if reconcile.on_listed(base, cx, round, entries) {
                    self.try_serve(base, cx);
                } else {
                    self.fail(base, cx);
                }
            }
            Phase::Serving => {
                if let Some(join) = &mut self.join {
                    join.on_listed(base, cx, &mut self.holds, round, entries);
                }
            }
        }
    }

    pub(super) fn on_difference(
        &mut self,
        base: &mut Base<D>,
        cx: &mut Cx<'_, D>,
        round: Round,
        chunk: ChunkId,
        image: Option<ChunkImage<D>>,
    ) {
        match (&mut self.phase, image) {
            _ if base.failed => {}
            (Phase::Opening(reconcile), Some(image)) => reconcile.on_difference(base, cx, round, chunk, image),
            (Phase::Serving, Some(image)) => {
                if let Some(join) = &mut self.join {
                    join.on_difference(base, cx, round, chunk, image);
                }
            }
            // What the primary cannot read it cannot give to others: another copy should be primary.
            (Phase::Opening(_), None) => self.fail(base, cx),
            (Phase::Serving, None) => self.drop_joiner(base, cx),
        }
    }

    pub(super) fn on_durable(&mut self, base: &mut Base<D>, cx: &mut Cx<'_, D>) {
        if base.failed {
            return;
        }
        if let Phase::Opening(reconcile) = &mut self.phase {
            reconcile.list_own(base, cx);
        }
        if let Some(join) = &mut self.join {
            join.on_durable(base, cx);
        }
        self.try_serve(base, cx);
        self.advance(base, cx);
    }

    /// This copy cannot apply an ordered write: it stops serving and gives the group up (S4).
    pub(super) fn fail(&mut self, base: &mut Base<D>, cx: &mut Cx<'_, D>) {
        base.failed = true;
        let flight = std::mem::take(&mut self.flight);
        Self::abandon(flight, base, cx);
        for request in self.reads.drain() {
            cx.refuse(request, Refusal::CopyFailed);
        }
        for request in self.holds.drain() {
            cx.refuse(request, Refusal::CopyFailed);
        }
        self.drop_joiner(base, cx);
        self.membership.give_up(base, cx);
    }

    /// Ends the opening once all copies are equal (S1), all is durable here too, and no earlier primary can still
    /// read (S6).
    pub(super) fn try_serve(&mut self, base: &mut Base<D>, cx: &mut Cx<'_, D>) {
        let Phase::Opening(reconcile) = &self.phase else { return };
        let lapsed = cx.now >= base.serve_after || base.planted.is(Bug::NoLeaseWait);
        if !lapsed || base.failed || base.durable < base.issued {
            return;
        }
        let Some(opened) = reconcile.opened() else { return };
        self.phase = Phase::Serving;
        self.backups = opened.into_iter().map(|(member, round)| Stream::new(member, round, base.last)).collect();
        // Everything this copy has is now everywhere: the writes in flight from the epoch before, too.
        base.committed = base.last;
        while let Some(entry) = self.flight.pop_front() {
            for request in entry.waiting {
                written(base, cx, request, entry.write.version);
            }
        }
        self.start_join(base, cx);
    }

    // ---- connections

    pub(super) fn on_connected(&mut self, base: &mut Base<D>, cx: &mut Cx<'_, D>, member: Member) {
        if let Phase::Opening(reconcile) = &mut self.phase {
            return reconcile.on_connected(base, cx, member);
        }
        if let Some(backup) = self.backups.iter_mut().find(|backup| backup.member == member) {
            backup.set_down(None);
            let acknowledged = backup.acknowledged();
            resend(base, cx, backup, &self.flight, acknowledged);
            self.ask_again_for_space(base, cx, member);
        }
        self.start_join(base, cx);
    }

    fn ask_again_for_space(&self, base: &Base<D>, cx: &mut Cx<'_, D>, member: Member) {
        let Some(backup) = self.backups.iter().find(|backup| backup.member == member) else { return };
        for chunk in self.holds.reserving(member) {
            base.send(cx, member, Body::Reserve { round: backup.round, chunk });
        }
    }

    pub(super) fn on_disconnected(&mut self, base: &mut Base<D>, cx: &mut Cx<'_, D>, member: Member) {
        if let Phase::Opening(reconcile) = &mut self.phase {
            return reconcile.on_disconnected(base, cx, member);
        }
        if let Some(backup) = self.backups.iter_mut().find(|backup| backup.member == member) {
            backup.set_down(Some(cx.now));
        }
        if self.join.as_ref().is_some_and(|join| join.member() == member) {
            self.drop_joiner(base, cx);
        }
    }

    pub(super) fn start_join(&mut self, base: &mut Base<D>, cx: &mut Cx<'_, D>) {
        if !self.is_serving() || self.join.is_some() || base.failed {
            return;
        }
        if let Some(member) = self.membership.next_joiner(base, cx.now) {
            self.join = Some(Join::start(base, cx, member));
        }
    }

    pub(super) fn on_tick(&mut self, base: &mut Base<D>, cx: &mut Cx<'_, D>) {
        self.try_serve(base, cx);
        if base.failed {
            return self.membership.give_up(base, cx);
        }
        if let Some(silent) = self.silent_backup(cx.now) {
            self.membership.backup_silent(base, cx, silent);
        }
        if self.join.as_ref().is_some_and(|join| join.is_silent(cx.now)) {
            self.drop_joiner(base, cx);
        }
        self.propose_ready_joiner(base, cx);
        self.start_join(base, cx);
        for backup in &mut self.backups {
            backup.tell_watermark(base, cx);
        }
    }

    /// The joiners changed within the epoch.
    pub(super) fn on_joiners(&mut self, base: &mut Base<D>, cx: &mut Cx<'_, D>, joiners: Vec<Member>) {
        self.membership.set_joiners(joiners);
        let lost = self.join.as_ref().is_some_and(|join| !self.membership.may_join(join.member()));
        if lost {
            self.drop_joiner(base, cx);
        }
        self.start_join(base, cx);
    }

    /// The open proposal can never commit: its joiner counts no more (S3).
    pub(super) fn on_rejected(&mut self, base: &mut Base<D>, cx: &mut Cx<'_, D>) {
        let proposed = self.join.as_ref().is_some_and(|join| self.membership.proposes(join.member()));
        self.membership.rejected(base);
        if proposed {
            self.drop_joiner(base, cx);
        }
    }

    fn silent_backup(&self, now: Time) -> Option<Member> {
        use super::limits::{BACKUP_SILENT, RECONNECT_GRACE};
        if let Phase::Opening(reconcile) = &self.phase {
            return reconcile.silent(now);
        }
        let down = |backup: &Stream| backup.down_since().is_some_and(|since| now.since(since) > RECONNECT_GRACE);
        let owes = |backup: &Stream| backup.owes_since().is_some_and(|since| now.since(since) > BACKUP_SILENT);
        self.backups.iter().find(|backup| down(backup) || owes(backup)).map(|backup| backup.member)
    }
}

/// Sends a copy everything in flight after a sequence, in order, under the same versions.
fn resend<D: Clone>(base: &Base<D>, cx: &mut Cx<'_, D>, backup: &mut Stream, flight: &Flight<D>, after: Sequence) {
    backup.rewind(after);
    for entry in flight.after(after) {
        backup.send_write(base, cx, &entry.write);
    }
}

fn written<D: Clone>(base: &Base<D>, cx: &mut Cx<'_, D>, request: RequestId, version: Version) {
    let volatility = base.config.as_ref().map(|config| config.volatility).unwrap_or_default();
    cx.emit(Effect::Reply { request, outcome: Outcome::Written { volatility, version } });
}
