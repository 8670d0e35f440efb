//! One placement group's replica on one device: takes events, knows its role, fences by epoch and incarnation.
//!
//! The loop only dispatches; `primary`, `backup` and `joiner` decide.

use pflex_proto::ids::{Epoch, Member, PgId, Sequence};

use super::backup::Backup;
use super::base::{Base, Cx};
use super::effect::Effect;
use super::event::Event;
use super::flight::Flight;
use super::gate::Gate;
use super::join::{Demand, Join};
use super::joiner::{Joiner, cannot_apply};
use super::lease::Leases;
use super::message::{Body, Message};
use super::operations::Operations;
use super::planted::{Bug, Planted};
use super::primary::{Phase, Primary};
use super::types::{
    ClientKey, JoinTrouble, PgConfig, Recovered, Refusal, RequestId, Round, ScrubOutcome, Ticket, Time,
};
use super::waits::Waits;

/// See the module.
///
/// What the driver owes it: effects in order; events of one connection in order; `PeerDisconnected` before the next
/// `PeerConnected`; configurations as they come; a `Tick` every `limits::TICK`. A `Pg` whose `status().failed` is set
/// while it is the only in-sync copy cannot be replaced by another one: the driver opens the device anew.
///
/// Lives as long as its device is open: a `Pg` made anew in the same life of the device would forget
/// which primaries the device granted leases to.
#[derive(Debug)]
pub struct Pg<D> {
    pub(super) base: Base<D>,
    pub(super) role: Role<D>,
    /// The latest first message of an epoch this copy has not heard of: taken up when the configuration is here.
    pub(super) early: Option<Message<D>>,
}

#[derive(Debug)]
pub(super) enum Role<D> {
    /// No configuration yet, or one that names another life of this device (S2): nothing is served, acknowledged
    /// or granted.
    Outside,
    /// In sync, ordering.
    Primary(Box<Primary<D>>),
    /// In sync, following.
    Backup(Backup),
    /// In sync, but nobody is primary.
    Orphan,
    /// Alive and not in sync.
    Joiner(Joiner<D>),
}

/// For people and metrics.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PgStatus {
    /// What this copy is.
    pub role: RoleName,
    /// The epoch it knows.
    pub epoch: Epoch,
    /// Highest sequence here.
    pub last: Sequence,
    /// Durable on every in-sync copy, as far as this copy knows.
    pub committed: Sequence,
    /// Ordered and uncommitted writes.
    pub in_flight: usize,
    /// The joiner being filled, and how many chunks it still needs, once that is known.
    pub joining: Option<(Member, Option<usize>)>,
    /// Why a joiner is not filled, although it is there.
    pub trouble: Option<JoinTrouble>,
    /// This copy could not apply a write.
    pub failed: bool,
}

/// What a copy is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RoleName {
    /// Not named by the configuration in this life.
    Outside,
    /// Primary, opening its epoch: this many chunks are still to be compared.
    Opening {
        /// Chunks still to compare; zero while lists are collected or leases are waited for.
        remaining: usize,
    },
    /// Primary, answering.
    Serving,
    /// Backup; whether the primary has opened it in this epoch.
    Backup {
        /// Whether it takes writes.
        opened: bool,
    },
    /// In sync without a primary.
    Orphan,
    /// Not in sync.
    Joiner,
}

impl<D: Clone> Pg<D> {
    /// For a device just opened; `leases` are the device's.
    pub fn new(id: PgId, own: Member, recovered: Recovered, leases: &Leases) -> Self {
        Self::with_planted(id, own, recovered, leases, Planted::default())
    }

    pub(super) fn with_planted(id: PgId, own: Member, recovered: Recovered, leases: &Leases, planted: Planted) -> Self {
        let mut operations = Operations::default();
        operations.replace(&recovered.operations);
        let base = Base {
            id,
            own,
            config: None,
            connected: Vec::new(),
            operations,
            last: recovered.highest.max(recovered.watermark),
            committed: recovered.watermark,
            floor: recovered.highest.max(recovered.watermark),
            lineage: recovered.lineage,
            issued: Ticket(0),
            held: Ticket(0),
            durable: Ticket(0),
            gate: Gate::default(),
            held_gate: Gate::default(),
            waits: Waits::new(if planted.is(Bug::AcceptOldIncarnation) {
                Time(0)
            } else {
                leases.earlier_life_lapses()
            }),
            failed: false,
            no_space: false,
            jitter: 0,
            // Rounds rise over all lives of the device, so no delayed message of an earlier one fits.
            last_round: Round(own.incarnation.0 << 32),
            planted,
        };
        Self { base, role: Role::Outside, early: None }
    }

    /// The epoch this copy is in: what a lease grant says of this group. None: nothing may be granted (S2).
    pub fn epoch(&self) -> Option<Epoch> {
        self.base.config.as_ref().map(|config| config.epoch)
    }

    /// The configuration this copy knows.
    pub fn config(&self) -> Option<&PgConfig> {
        self.base.config.as_ref()
    }

    /// Whether acknowledged means held (S14): then the driver says what is.
    pub fn is_writeback(&self) -> bool {
        self.base.is_writeback()
    }

    /// Whether a read or write would be taken now.
    pub fn is_serving(&self) -> bool {
        matches!(&self.role, Role::Primary(primary) if primary.is_serving() && !self.base.failed)
    }

    /// Whether a read would be answered at this moment.
    pub fn may_read(&self, now: Time, leases: &Leases) -> bool {
        match &self.role {
            Role::Primary(primary) if self.is_serving() => {
                primary.holds_leases(&self.base, &Cx { now, leases, out: &mut Vec::new() })
            }
            Role::Primary(_) | Role::Backup(_) | Role::Joiner(_) | Role::Outside | Role::Orphan => false,
        }
    }

    /// For people and metrics.
    pub fn status(&self) -> PgStatus {
        let (role, in_flight, joining) = match &self.role {
            Role::Outside => (RoleName::Outside, 0, None),
            Role::Orphan => (RoleName::Orphan, 0, None),
            Role::Joiner(_) => (RoleName::Joiner, 0, None),
            Role::Backup(backup) => (RoleName::Backup { opened: backup.is_opened() }, 0, None),
            Role::Primary(primary) => {
                let role = match &primary.phase {
                    Phase::Opening(reconcile) => RoleName::Opening { remaining: reconcile.remaining() },
                    Phase::Serving => RoleName::Serving,
                };
                let joining = primary.join.as_ref().map(|join: &Join| (join.member(), join.remaining()));
                (role, primary.in_flight(), joining)
            }
        };
        let trouble = match &self.role {
            Role::Primary(primary) => {
                primary.join.as_ref().and_then(Join::trouble).or_else(|| primary.membership.trouble())
            }
            Role::Backup(_) | Role::Joiner(_) | Role::Outside | Role::Orphan => None,
        };
        let Base { last, committed, failed, .. } = self.base;
        PgStatus { role, epoch: self.base.epoch(), last, committed, in_flight, joining, trouble, failed }
    }

    /// What is asked for of `Event::SyncPermit`; changes with every event.
    pub fn demand(&self) -> Demand {
        match &self.role {
            Role::Primary(primary) => primary.join.as_ref().map(Join::demand).unwrap_or_default(),
            Role::Backup(_) | Role::Joiner(_) | Role::Outside | Role::Orphan => Demand::default(),
        }
    }

    /// Forgets operations of clients that will never ask again, because their volumes are deleted.
    pub fn forget_clients(&mut self, gone: impl Fn(ClientKey) -> bool) {
        self.base.operations.forget(gone);
    }

    /// Takes one event and appends what is to be done, in order.
    pub fn handle(&mut self, now: Time, leases: &Leases, event: Event<D>, out: &mut Vec<Effect<D>>) {
        let cx = &mut Cx { now, leases, out };
        let base = &mut self.base;
        match (event, &mut self.role) {
            (Event::Config { config, joiners }, _) => self.on_config(cx, config, joiners),
            (Event::Message(message), _) => self.on_message(cx, message),
            (Event::Write(write), Role::Primary(primary)) if write.epoch == base.epoch() => {
                primary.on_write(base, cx, write);
            }
            (Event::Read(read), Role::Primary(primary)) if read.epoch == base.epoch() => {
                primary.on_read(base, cx, read);
            }
            (Event::Flush(flush), Role::Primary(primary)) if flush.epoch == base.epoch() => {
                primary.on_flush(base, cx, flush);
            }
            (Event::Flush(flush), _) => self.refuse_request(cx, flush.request, flush.epoch),
            (Event::Write(write), _) => self.refuse_request(cx, write.request, write.epoch),
            (Event::Read(read), _) => self.refuse_request(cx, read.request, read.epoch),
            (Event::Cancel { request }, Role::Primary(primary)) => primary.on_cancel(cx, request),
            (Event::Merged { request, merged }, Role::Primary(primary)) => {
                primary.on_merged(base, cx, request, merged);
            }
            (Event::ReadDone { request, data }, Role::Primary(primary)) => {
                primary.on_read_done(base, cx, request, data);
            }
            (Event::Held { through }, role) => {
                base.held = base.held.max(through);
                base.open_gate(cx);
                if let Role::Primary(primary) = role {
                    primary.advance(base, cx);
                }
            }
            (Event::Durable { through }, _) => self.on_durable(cx, through),
            (Event::StoreFailed { no_space, .. }, _) => self.on_store_failed(cx, no_space),
            (Event::Listed { round, entries }, role) => match role {
                Role::Primary(primary) => primary.on_listed(base, cx, round, &entries),
                Role::Backup(backup) => backup.on_listed(base, cx, round, &entries),
                Role::Joiner(joiner) => joiner.on_listed(base, cx, round, &entries),
                Role::Outside | Role::Orphan => {}
            },
            (Event::SumsRead { round, chunk, sums }, role) => {
                let asked_by = match role {
                    Role::Backup(backup) if backup.round() == round => Some(backup.primary()),
                    Role::Joiner(joiner) if joiner.round() == round => joiner.primary(),
                    Role::Backup(_) | Role::Joiner(_) | Role::Primary(_) | Role::Outside | Role::Orphan => None,
                };
                if let Some(primary) = asked_by {
                    base.send(cx, primary, Body::Sums { round, chunk, sums });
                }
            }
            (Event::DifferenceRead { round, chunk, image }, Role::Primary(primary)) => {
                primary.on_difference(base, cx, round, chunk, image);
            }
            (Event::UnreadableFound { round, chunk, version, blocks }, Role::Primary(primary)) => {
                primary.on_found(base, cx, (round, chunk), version, blocks);
            }
            (Event::BlocksRead { round, chunk, extent, version, data }, Role::Backup(backup)) => {
                if round == backup.round() {
                    base.send(cx, backup.primary(), Body::Blocks { round, chunk, extent, version, data });
                }
            }
            (Event::BlocksRead { round, chunk, extent, version, data }, Role::Primary(primary)) => {
                primary.on_scrub_read(base, cx, (round, chunk), extent, version, data);
            }
            (Event::Scrub { chunk, confirmed }, Role::Primary(primary)) => {
                primary.on_scrub(base, cx, chunk, confirmed);
            }
            (Event::Scrub { chunk, .. }, _) => {
                cx.emit(Effect::Scrubbed { chunk, outcome: ScrubOutcome::Interrupted });
            }
            (Event::Verified { round, chunk, verified }, Role::Primary(primary)) => {
                primary.on_verified(base, cx, None, (round, chunk), verified);
            }
            (Event::Verified { round, chunk, verified }, Role::Backup(backup)) => {
                let (scrub, round) = (round, backup.round());
                base.send(cx, backup.primary(), Body::Verified { round, scrub, chunk, verified });
            }
            (Event::Reserved { chunk, granted }, Role::Backup(backup)) => {
                base.send(cx, backup.primary(), Body::Reserved { round: backup.round(), chunk, granted });
            }
            (Event::Reserved { chunk, granted }, Role::Joiner(joiner)) => {
                joiner.on_reserved(base, cx, chunk, granted);
            }
            (Event::PeerConnected(member), role) => {
                if !base.connected.contains(&member) {
                    base.connected.push(member);
                }
                match role {
                    Role::Primary(primary) => primary.on_connected(base, cx, member),
                    Role::Backup(backup) => backup.reconnected(base, cx),
                    Role::Joiner(_) | Role::Outside | Role::Orphan => {}
                }
            }
            (Event::PeerDisconnected(member), role) => {
                base.connected.retain(|connected| *connected != member);
                if let Role::Primary(primary) = role {
                    primary.on_disconnected(base, cx, member);
                }
            }
            (Event::ProposalRejected { expected_epoch }, Role::Primary(primary)) => {
                if expected_epoch == base.epoch() {
                    primary.on_rejected(base, cx);
                }
            }
            (Event::Emptied, Role::Joiner(_) | Role::Outside) => base.emptied(),
            (Event::Activated { epoch }, role) if epoch == base.epoch() => {
                if let Some(config) = &mut base.config {
                    config.to_activate = false;
                }
                if let Role::Primary(primary) = role {
                    primary.on_activated(base, cx);
                }
            }
            (Event::SyncPermit, Role::Primary(primary)) => primary.on_sync_permit(base, cx),
            (Event::Tick { jitter }, Role::Primary(primary)) => {
                base.jitter = jitter;
                primary.on_tick(base, cx);
            }
            // Answers to what an earlier role asked for.
            (
                Event::Cancel { .. }
                | Event::Merged { .. }
                | Event::ReadDone { .. }
                | Event::DifferenceRead { .. }
                | Event::UnreadableFound { .. }
                | Event::BlocksRead { .. }
                | Event::Verified { .. }
                | Event::Reserved { .. }
                | Event::ProposalRejected { .. }
                | Event::Activated { .. }
                | Event::Emptied
                | Event::SyncPermit
                | Event::Tick { .. },
                _,
            ) => {}
        }
    }

    /// S9: a request for another epoch, or to a copy that is not the primary.
    fn refuse_request(&self, cx: &mut Cx<'_, D>, request: RequestId, named: Epoch) {
        let epoch = self.base.epoch();
        if named > epoch {
            cx.emit(Effect::FetchConfig { pg: self.base.id, at_least: named });
        }
        let refusal = if named == epoch { Refusal::NotPrimary { epoch } } else { Refusal::WrongEpoch { epoch } };
        cx.refuse(request, refusal);
    }

    fn on_config(&mut self, cx: &mut Cx<'_, D>, config: PgConfig, joiners: Vec<Member>) {
        let base = &mut self.base;
        if config.epoch < base.epoch() {
            return;
        }
        if base.config.as_ref().is_some_and(|known| known.epoch == config.epoch) {
            if let Role::Primary(primary) = &mut self.role {
                primary.on_joiners(base, cx, joiners);
            }
            return;
        }
        // S6: what this device granted to the primary of the epoch it leaves. Grants name the epoch, so no other
        // primary can have used one of this device's.
        if let Some(old) = base.config.as_ref().and_then(PgConfig::primary_member)
            && old != base.own
        {
            base.waits.holder(cx.now, old, cx.leases.lapses(old));
        }
        // Nobody can have read before the first epoch; and if that names this life, no earlier life can have granted.
        if config.epoch == Epoch(1) && config.in_sync.contains(&base.own) {
            base.waits.nothing_was_granted();
        }
        base.clear_gates();
        base.config = Some(config);
        let before = std::mem::replace(&mut self.role, Role::Outside);
        let flight = leave(before, base, cx);
        hand_back(flight.is_some(), base, cx);
        self.role = enter(base, cx, joiners, flight);
        if let Some(early) = self.early.take() {
            self.on_message(cx, early);
        }
    }

    /// S2: only this life of this copy is spoken to, only by members of the same epoch.
    fn on_message(&mut self, cx: &mut Cx<'_, D>, message: Message<D>) {
        let base = &mut self.base;
        if message.pg != base.id {
            return;
        }
        let refused = matches!(message.body, Body::Refused);
        if message.epoch > base.epoch() {
            // Acted upon once the configuration is known, not before.
            cx.emit(Effect::FetchConfig { pg: base.id, at_least: message.epoch });
            if base.planted.is(Bug::HandBackBeforeLeaving) {
                let early = Message { epoch: message.epoch, ..base.message(message.from, Body::HandBack) };
                cx.emit(Effect::Send(early));
            }
            if matches!(message.body, Body::Collect { .. } | Body::JoinStart { .. } | Body::HandBack) {
                self.early = Some(message);
            }
            return;
        }
        if message.epoch < base.epoch() || !base.same(message.to, base.own) {
            if !refused {
                base.send(cx, message.from, Body::Refused);
            }
            return;
        }
        let Message { from, body, .. } = message;
        // Whoever speaks in this epoch has left all earlier ones.
        base.waits.handed_back(from);
        match &mut self.role {
            Role::Primary(primary) => primary.on_message(base, cx, from, body),
            Role::Backup(backup) if base.same(from, backup.primary()) => backup.on_message(base, cx, body),
            Role::Joiner(joiner) if joiner.primary().is_some_and(|primary| base.same(from, primary)) => {
                joiner.on_message(base, cx, body);
            }
            Role::Backup(_) | Role::Joiner(_) | Role::Outside | Role::Orphan => {}
        }
    }

    fn on_durable(&mut self, cx: &mut Cx<'_, D>, through: Ticket) {
        let base = &mut self.base;
        base.durable = base.durable.max(through);
        if let Role::Joiner(joiner) = &mut self.role {
            joiner.on_durable(base, cx);
        }
        base.open_gate(cx);
        if let Role::Primary(primary) = &mut self.role {
            primary.on_durable(base, cx);
        }
    }

    /// S4: a copy that cannot apply an ordered write leaves before anything later is acknowledged.
    fn on_store_failed(&mut self, cx: &mut Cx<'_, D>, no_space: bool) {
        let base = &mut self.base;
        (base.failed, base.no_space) = (true, no_space);
        match &mut self.role {
            Role::Primary(primary) => primary.fail(base, cx),
            Role::Backup(backup) => base.send(cx, backup.primary(), Body::CannotApply),
            Role::Joiner(joiner) => {
                if let Some(primary) = joiner.primary() {
                    base.send(cx, primary, cannot_apply(base));
                }
            }
            Role::Outside | Role::Orphan => {}
        }
    }
}

/// Ends a role; returns what a primary had ordered.
pub(super) fn leave<D: Clone>(role: Role<D>, base: &mut Base<D>, cx: &mut Cx<'_, D>) -> Option<Flight<D>> {
    match role {
        Role::Primary(primary) => Some(primary.close(base, cx)),
        Role::Backup(backup) => {
            if backup.has_reserved() {
                cx.emit(Effect::ReleaseReservations);
            }
            None
        }
        Role::Joiner(joiner) => {
            if joiner.has_reserved() {
                cx.emit(Effect::ReleaseReservations);
            }
            None
        }
        Role::Outside | Role::Orphan => None,
    }
}

/// S6: who was primary and is not any more says so to the one that is, which else would wait until its leases lapse. A
/// backup says it by its answer to `Collect`; this one may have no place in the group any more.
fn hand_back<D: Clone>(was_primary: bool, base: &Base<D>, cx: &mut Cx<'_, D>) {
    let primary = base.config.as_ref().and_then(PgConfig::primary_member);
    if let Some(primary) = primary.filter(|primary| was_primary && *primary != base.own) {
        base.send(cx, primary, Body::HandBack);
    }
}

/// The role the configuration gives this life of this copy.
fn enter<D: Clone>(base: &mut Base<D>, cx: &mut Cx<'_, D>, joiners: Vec<Member>, flight: Option<Flight<D>>) -> Role<D> {
    let Some(config) = &base.config else { return Role::Outside };
    let named = config.in_sync.iter().any(|member| base.same(*member, base.own));
    let primary = config.primary_member();
    if named && primary.is_some_and(|primary| base.same(primary, base.own)) {
        let flight = flight.unwrap_or_default();
        let mut primary = Primary::open(base, cx, joiners, flight);
        if base.failed {
            primary.fail(base, cx);
        }
        primary.try_serve(base, cx);
        return Role::Primary(Box::new(primary));
    }
    if let Some(flight) = flight {
        Primary::abandon(flight, base, cx);
    }
    match (named, primary) {
        (true, Some(primary)) => Role::Backup(Backup::new(primary)),
        (true, None) => Role::Orphan,
        // In sync in an earlier life: the MDM will name this one, and until then no chunk may become unsynced.
        (false, _) if config.in_sync.iter().any(|member| member.device == base.own.device) => Role::Outside,
        (false, primary) => Role::Joiner(Joiner::new(primary)),
    }
}
