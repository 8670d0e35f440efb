//! One placement group becomes two (S25): what a copy of it does then.
//!
//! The map says so together with a newer epoch of both. First the copy leaves its role, as it would for any newer epoch
//! ([`Pg::pause`]); then the driver has the store sort its chunks; then the other half gets a core of its own
//! ([`Pg::split_off`]) that has been through all this one has: it knows the same configuration, so that it waits for the same
//! leases (S6), the same watermark, the same highest sequence, so that none is given twice (S4), and the operations on its own
//! chunks. Then both hear of their new epoch, which begins with reconciliation (S1), as each does.

use pflex_proto::ids::{ChunkId, PgId};

use super::base::{Base, Cx};
use super::effect::Effect;
use super::gate::Gate;
use super::lease::Leases;
use super::pg::{Pg, Role, leave};
use super::planted::Bug;
use super::primary::Primary;
use super::types::{PgConfig, Ticket, Time};
use super::waits::Waits;

impl<D: Clone> Pg<D> {
    /// Ends the role: nothing is ordered, answered or asked of the store before the next configuration.
    pub fn pause(&mut self, now: Time, leases: &Leases, out: &mut Vec<Effect<D>>) {
        if self.base.planted.is(Bug::SortBesideRole) {
            return;
        }
        let cx = &mut Cx { now, leases, out };
        let role = std::mem::replace(&mut self.role, Role::Outside);
        if let Some(flight) = leave(role, &mut self.base, cx) {
            Primary::abandon(flight, &self.base, cx);
        }
        self.base.clear_gates();
    }

    /// The core of the group that some chunks go to; the others stay in this one. Every change that this one asked of the store
    /// is durable.
    pub fn split_off(&mut self, into: PgId, goes: impl Fn(ChunkId) -> bool) -> Self {
        let base = &mut self.base;
        let planted = |bug| base.planted.is(bug);
        debug_assert!(matches!(self.role, Role::Outside) || planted(Bug::SortBesideRole), "paused");
        let mut operations = base.operations.clone();
        operations.retain_chunks(|chunk| goes(chunk) && !planted(Bug::HalfForgetsOperations));
        let (mut last, mut floor, mut config) = (base.last, base.floor, base.config.clone());
        if planted(Bug::HalfForgetsOrder) {
            (last, floor) = (base.committed, base.committed);
        }
        if planted(Bug::HalfForgetsGrants) {
            config = None;
        }
        let waits = if planted(Bug::HalfForgetsGrants) { Waits::new(Time(0)) } else { base.waits.clone() };
        base.operations.retain_chunks(|chunk| !goes(chunk));
        let half = Base {
            id: into,
            own: base.own,
            config: config.map(|config| PgConfig { pg: into, ..config }),
            connected: base.connected.clone(),
            operations,
            last,
            committed: base.committed,
            lineage: base.lineage,
            floor,
            issued: Ticket(0),
            held: Ticket(0),
            durable: Ticket(0),
            gate: Gate::default(),
            held_gate: Gate::default(),
            waits,
            failed: base.failed,
            no_space: base.no_space,
            jitter: base.jitter,
            last_round: base.last_round,
            planted: base.planted,
        };
        Self { base: half, role: Role::Outside, early: None }
    }

    /// Takes over what a core heard that was made before this one was split off: others may have been sooner.
    pub fn hears(&mut self, earlier: Self) {
        self.early = earlier.early;
    }
}
