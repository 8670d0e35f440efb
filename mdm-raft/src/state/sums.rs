//! Bytes of each pool, and the copies its groups lack: derived from the tables, never stored.
//!
//! A sum over all volumes at each creation made the hundred-thousandth volume cost a hundred thousand steps, on every
//! member.

use std::collections::{BTreeMap, BTreeSet};

use pflex_proto::ids::{DeviceId, PoolId};

use super::{
    State,
    missing::Missing,
    model::{Device, Pg},
};

/// What the devices and volumes of each pool add up to; a pool without any has no entry.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub(super) struct Sums {
    /// Raw bytes of its devices that are to stay.
    pub(super) capacity: BTreeMap<PoolId, u64>,
    /// Sizes of its volumes.
    pub(super) provisioned: BTreeMap<PoolId, u64>,
    /// Copies that are not in sync.
    pub(super) missing: BTreeMap<PoolId, Missing>,
    /// Devices that are being emptied.
    pub(super) draining: BTreeMap<PoolId, BTreeSet<DeviceId>>,
    /// Groups with a copy on its way, by the device that it leaves.
    pub(super) moving: BTreeMap<PoolId, BTreeMap<DeviceId, u32>>,
}

impl Sums {
    /// From the whole tables.
    pub(super) fn of(state: &State) -> Self {
        let mut sums = Self::default();
        for (pool, bytes) in state.devices.values().filter_map(capacity) {
            add(&mut sums.capacity, pool, bytes);
        }
        for device in state.devices.values() {
            sums.follow_drain(None, Some(device));
        }
        for volume in state.volumes.values() {
            add(&mut sums.provisioned, volume.pool, volume.size.get());
        }
        for pg in state.pgs.values() {
            Missing::follow(&mut sums.missing, None, Some(pg));
            sums.follow_move(None, Some(pg));
        }
        sums
    }

    fn follow_drain(&mut self, before: Option<&Device>, now: Option<&Device>) {
        let drains = |row: Option<&Device>| row.and_then(|row| row.draining.and(row.pool).map(|pool| (pool, row.id)));
        let (before, now) = (drains(before), drains(now));
        if let Some((pool, device)) = before.filter(|_| before != now)
            && let Some(devices) = self.draining.get_mut(&pool)
        {
            devices.remove(&device);
            if devices.is_empty() {
                self.draining.remove(&pool);
            }
        }
        if let Some((pool, device)) = now {
            self.draining.entry(pool).or_default().insert(device);
        }
    }

    fn follow_move(&mut self, before: Option<&Pg>, now: Option<&Pg>) {
        let moves = |row: Option<&Pg>| row.and_then(|pg| Some((pg.id.pool, pg.leaving?)));
        let (before, now) = (moves(before), moves(now));
        if before == now {
            return;
        }
        if let Some((pool, device)) = now {
            *self.moving.entry(pool).or_default().entry(device).or_default() += 1;
        }
        if let Some((pool, device)) = before
            && let Some(devices) = self.moving.get_mut(&pool)
        {
            if let Some(groups) = devices.get_mut(&device) {
                *groups -= 1;
            }
            devices.retain(|_, groups| *groups > 0);
            if devices.is_empty() {
                self.moving.remove(&pool);
            }
        }
    }
}

/// What a device adds to its pool.
fn capacity(device: &Device) -> Option<(PoolId, u64)> {
    device.draining.is_none().then_some((device.pool?, device.capacity.get()))
}

impl State {
    /// Follows what the running apply has changed.
    pub(super) fn refresh_sums(&mut self) {
        for (_, before, now) in self.devices.changes() {
            follow(&mut self.sums.capacity, before.and_then(capacity), now.and_then(capacity));
            self.sums.follow_drain(before, now);
        }
        for (_, before, now) in self.volumes.changes() {
            let bytes = |row: Option<&super::model::Volume>| row.map(|row| (row.pool, row.size.get()));
            follow(&mut self.sums.provisioned, bytes(before), bytes(now));
        }
        for (_, before, now) in self.pgs.changes() {
            Missing::follow(&mut self.sums.missing, before, now);
            self.sums.follow_move(before, now);
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
