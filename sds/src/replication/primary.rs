//! The primary: orders writes, has them applied everywhere, commits and answers them; answers reads.
//!
//! This file has the epoch's life and what the other copies say; `ordering` has the write path and `reads` the read
//! path, `reconcile` opens the epoch, `join` brings a joiner in, `holds` keeps what waits, `membership` decides whom to
//! propose.

use pflex_proto::ids::{ChunkId, Member};

use super::base::{Base, Cx};
use super::durability::Durability;
use super::effect::Effect;
use super::flight::Flight;
use super::holds::Holds;
use super::join::Join;
use super::membership::Membership;
use super::message::Body;
use super::ordering::{resend, written};
use super::planted::Bug;
use super::reads::Reads;
use super::reconcile::Reconcile;
use super::repairs::{Elsewhere, Repairs, Wanted};
use super::reservations::Reservations;
use super::scrub::Scrub;
use super::stream::Stream;
use super::types::{ChunkEntry, ChunkImage, Extent, JoinTrouble, Refusal, Round, ScrubOutcome, Time};

/// See the module.
#[derive(Debug)]
pub(super) struct Primary<D> {
    pub(super) phase: Phase,
    /// The other in-sync copies; filled when the epoch is opened.
    pub(super) backups: Vec<Stream>,
    pub(super) join: Option<Join>,
    pub(super) membership: Membership,
    pub(super) flight: Flight<D>,
    /// What was answered before it was durable everywhere, and who waits for that (S14).
    pub(super) durability: Durability,
    pub(super) reads: Reads<D>,
    pub(super) holds: Holds<D>,
    pub(super) repairs: Repairs,
    pub(super) reservations: Reservations,
    pub(super) scrub: Option<Scrub>,
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
            durability: Durability::default(),
            reads: Reads::default(),
            holds: Holds::default(),
            repairs: Repairs::default(),
            reservations: Reservations::default(),
            scrub: None,
        }
    }

    /// The epoch is over. What is ordered goes on in the next one, if this copy is primary again.
    pub(super) fn close(mut self, base: &Base<D>, cx: &mut Cx<'_, D>) -> Flight<D> {
        self.give_up_scrub(cx);
        let refusal = Refusal::WrongEpoch { epoch: base.epoch() };
        for request in self.reads.drain() {
            cx.refuse(request, refusal);
        }
        for request in self.holds.drain() {
            cx.refuse(request, refusal);
        }
        self.end_flushes(base, cx, refusal);
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

    pub(super) fn not_ready(&self, base: &Base<D>) -> Option<Refusal> {
        let epoch = base.epoch();
        match &self.phase {
            _ if base.failed => Some(Refusal::CopyFailed),
            Phase::Opening(_) => Some(Refusal::Opening { epoch }),
            Phase::Serving => None,
        }
    }

    pub(super) fn is_serving(&self) -> bool {
        matches!(self.phase, Phase::Serving)
    }

    pub(super) fn in_flight(&self) -> usize {
        self.flight.len()
    }

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
            (Body::Durable { round, through }, Some(backup)) if round == backup.round => {
                backup.made_durable(cx.now, through);
                self.advance(base, cx);
            }
            (Body::Gap { round, after }, Some(backup)) if round == backup.round && after >= backup.acknowledged() => {
                resend(base, cx, backup, &self.flight, after);
            }
            (Body::CannotApply, Some(_)) => self.membership.cannot_apply(base, cx, from),
            (Body::Reserved { round, chunk, granted }, Some(backup)) if round == backup.round => {
                backup.answered(cx.now);
                self.reservations.answered(chunk, backup.member);
                self.on_reserved(base, cx, from, chunk, granted);
            }
            (Body::Blocks { round, chunk, extent, version, data }, Some(backup)) if round == backup.round => {
                self.on_blocks(base, cx, from, (chunk, extent), version, data);
            }
            (Body::Verified { round, scrub, chunk, verified }, Some(backup)) if round == backup.round => {
                self.on_verified(base, cx, Some(from), (scrub, chunk), verified);
            }
            (Body::Sums { round, chunk, sums }, Some(backup)) if round == backup.round => {
                self.on_scrub_sums(base, cx, from, chunk, sums);
            }
            (Body::Fixed { round, chunk }, Some(backup)) if round == backup.round => {
                self.on_scrub_fixed(base, cx, from, chunk);
            }
            (body, None) => self.on_joiner_message(base, cx, from, &body),
            _ => {}
        }
    }

    fn on_joiner_message(&mut self, base: &mut Base<D>, cx: &mut Cx<'_, D>, from: Member, body: &Body<D>) {
        let Some(join) = self.join.as_mut().filter(|join| base.same(join.member(), from)) else { return };
        let device = from.device;
        match body {
            Body::CannotApply => return self.drop_joiner(base, cx, Some(JoinTrouble::CannotApply { device })),
            Body::NoSpace => return self.drop_joiner(base, cx, Some(JoinTrouble::NoSpace { device })),
            Body::Gap { round, .. } if *round == join.stream.round => return self.drop_joiner(base, cx, None),
            _ => {}
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
    pub(super) fn drop_joiner(&mut self, base: &mut Base<D>, cx: &mut Cx<'_, D>, trouble: Option<JoinTrouble>) {
        let proposed = self.join.as_ref().is_some_and(|join| self.membership.proposes(join.member()));
        if proposed && !base.planted.is(Bug::JoinerNotAwaited) {
            return;
        }
        let Some(join) = self.join.take() else { return };
        self.membership.joiner_dropped(cx.now, join.member(), trouble, base.jitter);
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
        if !base.failed && self.on_scrub_difference(base, cx, (round, chunk), image.as_ref()) {
            return;
        }
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
            // Another in-sync copy may have what is missing; if not, the chunk waits until it can be read again, and the
            // others go on.
            (Phase::Serving, None) => {
                if self.join.as_mut().is_some_and(|join| join.may_repair(round, chunk)) {
                    match self.elsewhere(base) {
                        Elsewhere::Ask => {
                            self.repair(base, cx, chunk, Extent::CHUNK, Wanted::Joiner(round));
                            return;
                        }
                        Elsewhere::Later => {}
                        Elsewhere::Nowhere => cx.emit(Effect::Unreadable { chunk, extent: Extent::CHUNK }),
                    }
                }
                let held = &mut self.holds;
                if self.join.as_mut().is_some_and(|join| join.unreadable(base, cx, held, round, chunk)) {
                    self.release(base, cx, chunk, false);
                }
            }
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
        self.end_flushes(base, cx, Refusal::CopyFailed);
        self.give_up_scrub(cx);
        self.repairs.clear();
        self.drop_joiner(base, cx, None);
        self.membership.give_up(base, cx);
    }

    /// Ends the opening once all copies are equal (S1), all is durable here too, no earlier primary can still read (S6),
    /// and the MDM knows that this one answers (S11).
    pub(super) fn try_serve(&mut self, base: &mut Base<D>, cx: &mut Cx<'_, D>) {
        let Phase::Opening(reconcile) = &self.phase else { return };
        let lapsed = base.waits.are_over(cx.now, cx.leases) || base.planted.is(Bug::NoLeaseWait);
        if !lapsed || base.failed || base.durable < base.issued {
            return;
        }
        let Some(opened) = reconcile.opened() else { return };
        // What is served from here on is a mark for others (S25): this copy has to remember it as well.
        if base.last > base.floor {
            let operations = base.operations.snapshot();
            return base.replace_operations(cx, operations);
        }
        // S11, as the very last: until this is committed the MDM may choose another copy, and the later it does, the fewer
        // failures make those that left stale for nothing.
        if base.is_to_be_activated() {
            return self.membership.activate(base, cx);
        }
        self.phase = Phase::Serving;
        self.backups = opened.into_iter().map(|(member, round)| Stream::new(member, round, base.last)).collect();
        // Everything this copy has is now everywhere: the writes in flight from the epoch before, too.
        base.committed = base.last;
        base.is_in_line();
        if !self.holds_leases(base, cx) {
            // Who heard of the epoch later could not grant for it when it began.
            cx.emit(Effect::RenewLeases);
        }
        while let Some(entry) = self.flight.pop_front() {
            for request in entry.waiting {
                written(base, cx, request, entry.write.version);
            }
        }
        self.start_join(base, cx);
    }

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

    pub(super) fn ask_again_for_space(&mut self, base: &Base<D>, cx: &mut Cx<'_, D>, member: Member) {
        let Some(backup) = self.backups.iter().find(|backup| backup.member == member) else { return };
        for chunk in self.holds.reserving(member) {
            self.reservations.ask(chunk, member);
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
        self.reservations.disconnected(member);
        self.end_scrub(base, cx, ScrubOutcome::Interrupted);
        self.repairs_without(base, cx, member);
        if self.join.as_ref().is_some_and(|join| join.member() == member) {
            self.drop_joiner(base, cx, None);
        }
    }

    pub(super) fn on_sync_permit(&mut self, base: &mut Base<D>, cx: &mut Cx<'_, D>) {
        if let Some(join) = &mut self.join {
            join.permit(base, cx, &mut self.holds);
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
            self.drop_joiner(base, cx, None);
        }
        if let Some(join) = &mut self.join {
            join.on_tick(base, cx, &mut self.holds);
        }
        self.repairs_on_tick(base, cx);
        self.scrub_on_tick(base, cx);
        self.release_unused(base, cx);
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
            self.drop_joiner(base, cx, None);
        }
        self.start_join(base, cx);
    }

    /// S11: from now on nobody else is chosen without this copy's word.
    pub(super) fn on_activated(&mut self, base: &mut Base<D>, cx: &mut Cx<'_, D>) {
        self.membership.activated();
        self.try_serve(base, cx);
    }

    /// The open proposal can never commit: its joiner counts no more (S3).
    pub(super) fn on_rejected(&mut self, base: &mut Base<D>, cx: &mut Cx<'_, D>) {
        let proposed = self.join.as_ref().is_some_and(|join| self.membership.proposes(join.member()));
        self.membership.rejected(base, cx.now);
        if proposed {
            self.drop_joiner(base, cx, None);
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
