//! What every role of a replica has: identity, configuration, operation table, order, durability.

use pflex_proto::ids::{Epoch, Member, PgId, Sequence, Version, VolatilityId};

use super::effect::Effect;
use super::gate::Gate;
use super::lease::Leases;
use super::message::{Body, Message};
use super::operations::Operations;
use super::planted::{Bug, Planted};
use super::types::{OperationSnapshot, OrderedWrite, PgConfig, RequestId, Round, Ticket, Time};
use super::types::{Outcome, Refusal};
use super::waits::Waits;

/// One call's surroundings.
pub(super) struct Cx<'a, D> {
    pub(super) now: Time,
    pub(super) leases: &'a Leases,
    pub(super) out: &'a mut Vec<Effect<D>>,
}

impl<D> Cx<'_, D> {
    pub(super) fn emit(&mut self, effect: Effect<D>) {
        self.out.push(effect);
    }

    pub(super) fn refuse(&mut self, request: RequestId, refusal: Refusal) {
        self.emit(Effect::Reply { request, outcome: Outcome::Refused(refusal) });
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Base<D> {
    pub(super) id: PgId,
    pub(super) own: Member,
    pub(super) config: Option<PgConfig>,
    pub(super) connected: Vec<Member>,
    pub(super) operations: Operations,
    /// The highest sequence this copy applied or heard of.
    pub(super) last: Sequence,
    /// The watermark: nothing at or below differs between in-sync copies (S1).
    pub(super) committed: Sequence,
    /// The configurations that the watermark is about: those of this volatility id (S25). It changes when nobody who had
    /// everything goes on, above all with a forced promotion (S12), and then the mark says nothing about the others.
    pub(super) lineage: VolatilityId,
    /// The highest sequence that the store remembers, or will before anything later. `last` may be above it: heard of, of a
    /// write that was undone.
    pub(super) floor: Sequence,
    /// The last ticket given to a store effect.
    pub(super) issued: Ticket,
    /// Every store effect up to here is applied; only told in writeback pools (S14).
    pub(super) held: Ticket,
    /// Every store effect up to here is durable.
    pub(super) durable: Ticket,
    /// What waits for tickets to be durable.
    pub(super) gate: Gate<D>,
    /// What waits for tickets to be held.
    pub(super) held_gate: Gate<D>,
    /// As primary, answer nothing before these are over (S6).
    pub(super) waits: Waits,
    /// A store effect failed: this copy applies nothing more until it joins anew (S4).
    pub(super) failed: bool,
    /// It failed for want of space.
    pub(super) no_space: bool,
    /// The random number of the last tick.
    pub(super) jitter: u16,
    pub(super) last_round: Round,
    pub(super) planted: Planted,
}

impl<D: Clone> Base<D> {
    pub(super) fn epoch(&self) -> Epoch {
        self.config.as_ref().map_or(Epoch(0), |config| config.epoch)
    }

    /// S11: the MDM does not know yet that this primary answers.
    pub(super) fn is_to_be_activated(&self) -> bool {
        !self.planted.is(Bug::AnswerUnactivated) && self.config.as_ref().is_some_and(|config| config.to_activate)
    }

    /// S14: acknowledged is what every in-sync copy holds.
    pub(super) fn is_writeback(&self) -> bool {
        self.config.as_ref().is_some_and(|config| config.writeback)
    }

    /// S2: a membership names one life of a device.
    pub(super) fn same(&self, a: Member, b: Member) -> bool {
        a == b || (self.planted.is(Bug::AcceptOldIncarnation) && a.device == b.device)
    }

    pub(super) fn is_connected(&self, member: Member) -> bool {
        self.connected.iter().any(|connected| self.same(*connected, member))
    }

    pub(super) fn next_round(&mut self) -> Round {
        self.last_round.0 += 1;
        self.last_round
    }

    pub(super) fn ticket(&mut self) -> Ticket {
        self.issued.0 += 1;
        self.issued
    }

    /// This copy has everything that those in sync have.
    pub(super) fn is_in_line(&mut self) {
        self.lineage = self.volatility();
    }

    pub(super) fn volatility(&self) -> VolatilityId {
        self.config.as_ref().map(|config| config.volatility).unwrap_or_default()
    }

    /// Replaces the operation table, in memory and in the store, and with it the watermark and what sequences were given: a
    /// mark that stands above what the copies remember after a restart would hide what they order next (S25).
    pub(super) fn replace_operations(&mut self, cx: &mut Cx<'_, D>, operations: OperationSnapshot) {
        self.operations.replace(&operations);
        let (ticket, last) = (self.ticket(), self.last);
        let watermark = if self.lineage == self.volatility() { self.committed } else { Sequence(0) };
        self.floor = last;
        cx.emit(Effect::ReplaceOperations { ticket, operations, watermark, last });
    }

    /// Nothing is here any more, so nothing is known to be equal to other copies'.
    pub(super) fn emptied(&mut self) {
        self.committed = Sequence(0);
        self.floor = Sequence(0);
        self.operations.replace(&OperationSnapshot::default());
    }

    pub(super) fn message(&self, to: Member, body: Body<D>) -> Message<D> {
        Message { from: self.own, to, pg: self.id, epoch: self.epoch(), body }
    }

    /// Nothing is sent into a broken connection: what matters is sent again when it is back.
    pub(super) fn send(&self, cx: &mut Cx<'_, D>, to: Member, body: Body<D>) {
        if self.is_connected(to) {
            cx.emit(Effect::Send(self.message(to, body)));
        }
    }

    /// Sends once everything that was asked of the store so far is durable.
    pub(super) fn send_when_durable(&mut self, cx: &mut Cx<'_, D>, to: Member, body: Body<D>) {
        self.gate.push(self.issued, to, body);
        self.open_gate(cx);
    }

    /// Acknowledges a write of this stream: when it is durable, in a writeback pool when it is held (S14).
    pub(super) fn acknowledge(&mut self, cx: &mut Cx<'_, D>, to: Member, round: Round, through: Sequence) {
        if !self.is_writeback() {
            return self.send_when_durable(cx, to, Body::WriteAck { round, through });
        }
        self.held_gate.push(self.issued, to, Body::WriteAck { round, through });
        self.send_when_durable(cx, to, Body::Durable { round, through });
    }

    /// What waits belongs to an epoch or attempt that is over.
    pub(super) fn clear_gates(&mut self) {
        self.gate.clear();
        self.held_gate.clear();
    }

    pub(super) fn open_gate(&mut self, cx: &mut Cx<'_, D>) {
        while let Some((to, body)) = self.held_gate.pop(self.held.max(self.durable)) {
            self.send(cx, to, body);
        }
        while let Some((to, body)) = self.gate.pop(self.durable) {
            self.send(cx, to, body);
        }
    }

    /// A chunk here gets this version otherwise than by a write: no later write may bear its sequence (S4), not even if
    /// the epoch that brought it was never opened.
    pub(super) fn has_seen(&mut self, version: Option<Version>) {
        self.last = self.last.max(version.map(|version| version.sequence).unwrap_or_default());
    }

    /// Applies an ordered write here: to the operation table now, to the store by an effect.
    pub(super) fn apply(&mut self, cx: &mut Cx<'_, D>, write: OrderedWrite<D>) -> Ticket {
        self.operations.record(&write);
        self.last = self.last.max(write.version.sequence);
        self.floor = self.floor.max(write.version.sequence);
        let ticket = self.ticket();
        cx.emit(Effect::Apply { ticket, write, watermark: self.committed });
        ticket
    }
}
