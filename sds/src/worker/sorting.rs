//! The placement groups of this device's pool double (S25): its chunks are sorted anew before any newer configuration is acted in.
//!
//! The map brings the larger count and the next epochs of all groups at once. The cores leave their roles, the loop waits until
//! the store has sorted (for what is on its way to the journal, and for one small commit), and then each half of a group goes on
//! from what the whole one knew. Only then the configurations are taken in: an old primary has stopped, and what is in the new
//! ones is looked for in the right group.

use pflex_proto::ids::PgId;

use super::{effects::Slot, worker::Worker};
use crate::store::{Sorting, was};

/// What a map says of how the chunks are sorted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Due {
    /// They are sorted so.
    Nothing,
    /// There are more groups now.
    Sort(Sorting),
    /// There are fewer: it is of before the doubling, or of before a restore from backup that has not heard of it (S19).
    OldMap,
}

impl Worker {
    pub(super) fn due_sorting(&self) -> Due {
        let pool = self.map.devices.get(&self.own.device).and_then(|device| device.pool);
        let Some(pool) = pool.and_then(|pool| self.map.pools.get(&pool)) else { return Due::Nothing };
        let into = Sorting { pool: pool.id, pg_count: pool.pg_count };
        match self.store.sorting().filter(|known| known.pool == pool.id) {
            Some(known) if known == into => Due::Nothing,
            Some(known) if known.pg_count > into.pg_count => Due::OldMap,
            Some(_) | None => Due::Sort(into),
        }
    }

    /// Ends the roles of all groups: nothing may be on its way when the chunks are sorted.
    pub(super) fn pause_groups(&mut self) {
        let mut effects = Vec::new();
        let groups: Vec<PgId> = self.slots.keys().copied().collect();
        for pg in groups {
            let now = self.time();
            let Some(slot) = self.slots.get_mut(&pg) else { continue };
            slot.core.pause(now, &self.leases, &mut effects);
            let demand = slot.core.demand();
            for effect in effects.drain(..) {
                self.carry_out(pg, effect);
            }
            self.resync.note(pg, demand);
        }
    }

    /// Sorts, and goes on with the map that brought the larger count.
    pub(super) async fn sort(&mut self, into: Sorting) {
        let known = self.store.sorting().filter(|known| known.pool == into.pool);
        // Before it was told it had as many groups as the pool was made with.
        let first = self.map.pools.get(&into.pool).map_or(into.pg_count, |pool| pool.first_pg_count);
        let from = known.map_or(first, |known| known.pg_count);
        let configs = self.memory.halves(into, from);
        let (begun, chunks) = (std::time::Instant::now(), self.store.stats().chunks);
        match self.store.sort(into, from, &configs).await {
            Ok(durable) => self.on_durable(Ok(durable)),
            // The groups stay paused; the device is out of service.
            Err(poison) => return self.on_durable(Err(poison)),
        }
        self.decide();
        self.memory.adopt(configs);
        let wholes = self.slots.keys().chain(self.recovered.keys());
        let wholes: Vec<PgId> = wholes.copied().filter(|pg| pg.pool == into.pool && pg.index.0 < from).collect();
        for pg in wholes {
            for half in into.halves(pg, from) {
                self.split(pg, half, into);
            }
            if self.recovered.contains_key(&pg) {
                self.recovered.extend(self.store.report(pg).map(|report| (pg, report)));
            }
        }
        self.scrub.sorted(into, from);
        if from < into.pg_count {
            let took_ms = begun.elapsed().as_millis();
            tracing::info!(device = %self.own.device, pool = %into.pool, from, into = into.pg_count, chunks, took_ms, "chunks are sorted into more placement groups");
        }
        self.take_configurations();
    }

    fn split(&mut self, pg: PgId, half: PgId, into: Sorting) {
        // Made by a message of a primary that was sooner.
        let earlier = self.slots.remove(&half);
        let split_off = self.slots.get_mut(&pg).map(|whole| {
            let core = whole.core.split_off(half, |chunk| into.group_of(pg, chunk) == half);
            whole.half(core)
        });
        if let Some(slot) = split_off {
            self.slots.insert(half, slot);
        } else if let Some(report) = self.store.report(half) {
            self.recovered.insert(half, report);
        }
        if let Some(Slot { core, .. }) = earlier {
            self.slot(half).core.hears(core);
        }
        // Half a copy makes two halves of one: what has no row is on its way out.
        if !self.memory.has_row(half) && self.store.report(half).is_some() {
            self.departed.is_rest(half);
        }
    }
}

impl super::memory::Memory {
    /// What is remembered of groups, for the halves that they become.
    fn halves(&self, into: Sorting, from: u32) -> Vec<(PgId, crate::store::KnownConfig)> {
        let rows = self.rows().flat_map(|(pg, _)| into.halves(pg, from));
        rows.filter_map(|half| Some((half, self.known(was(half, from))?.clone()))).collect()
    }
}
