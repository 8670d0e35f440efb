//! Bytes of each pool, and the copies its groups lack: derived from the tables, never stored.
//!
//! A sum over all volumes at each creation made the hundred-thousandth volume cost a hundred thousand steps, on every
//! member.

use std::collections::BTreeMap;

use pflex_proto::ids::PoolId;

use super::{State, missing::Missing};

/// What the devices and volumes of each pool add up to; a pool without any has no entry.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub(super) struct Sums {
    /// Raw bytes of its devices.
    pub(super) capacity: BTreeMap<PoolId, u64>,
    /// Sizes of its volumes.
    pub(super) provisioned: BTreeMap<PoolId, u64>,
    /// Copies that are not in sync.
    pub(super) missing: BTreeMap<PoolId, Missing>,
}

impl Sums {
    /// From the whole tables.
    pub(super) fn of(state: &State) -> Self {
        let mut sums = Self::default();
        for (pool, bytes) in state.devices.values().filter_map(|row| Some((row.pool?, row.capacity.get()))) {
            add(&mut sums.capacity, pool, bytes);
        }
        for volume in state.volumes.values() {
            add(&mut sums.provisioned, volume.pool, volume.size.get());
        }
        for pg in state.pgs.values() {
            Missing::follow(&mut sums.missing, None, Some(pg));
        }
        sums
    }
}

impl State {
    /// Follows what the running apply has changed.
    pub(super) fn refresh_sums(&mut self) {
        for (_, before, now) in self.devices.changes() {
            let bytes = |row: Option<&super::model::Device>| row.and_then(|row| Some((row.pool?, row.capacity.get())));
            follow(&mut self.sums.capacity, bytes(before), bytes(now));
        }
        for (_, before, now) in self.volumes.changes() {
            let bytes = |row: Option<&super::model::Volume>| row.map(|row| (row.pool, row.size.get()));
            follow(&mut self.sums.provisioned, bytes(before), bytes(now));
        }
        for (_, before, now) in self.pgs.changes() {
            Missing::follow(&mut self.sums.missing, before, now);
        }
    }
}

fn follow(sums: &mut BTreeMap<PoolId, u64>, before: Option<(PoolId, u64)>, now: Option<(PoolId, u64)>) {
    if let Some((pool, bytes)) = now {
        add(sums, pool, bytes);
    }
    if let Some((pool, bytes)) = before
        && let Some(sum) = sums.get_mut(&pool)
    {
        *sum -= bytes;
        if *sum == 0 {
            sums.remove(&pool);
        }
    }
}

/// Nothing is no entry, so that equal sums are equal maps.
fn add(sums: &mut BTreeMap<PoolId, u64>, pool: PoolId, bytes: u64) {
    if bytes > 0 {
        *sums.entry(pool).or_default() += bytes;
    }
}
