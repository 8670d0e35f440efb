//! The copies that a pool's placement groups lack: replicas that are not in sync. Derived from the groups, never stored.
//!
//! A group is whole when each of its replicas is in sync, whether alive or not: a copy that is merely away, and the only
//! one, has nothing to be filled from. Only rows of groups decide, so an apply costs what it changes.

use std::collections::BTreeMap;

use pflex_proto::ids::{DeviceId, PoolId};

use super::model::Pg;

/// Of one pool that lacks any.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Missing {
    /// Groups that lack one or more.
    pub groups: u32,
    /// By the device they belong on.
    pub copies: BTreeMap<DeviceId, Copies>,
}

/// Missing copies on one device.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Copies {
    /// All of them.
    pub all: u32,
    /// Those whose group has a primary, which could fill them.
    pub served: u32,
}

impl Copies {
    /// Those whose group has none.
    pub(super) fn unserved(self) -> u64 {
        u64::from(self.all - self.served)
    }
}

impl Pg {
    /// The replicas that are not in sync. Of a copy that moves one place counts: the new one, once the old one is lost.
    pub(super) fn missing(&self) -> impl Iterator<Item = DeviceId> {
        let has = |device: DeviceId| self.config.member(device).is_some();
        let stands_in = self.newcomer().filter(|_| self.leaving.is_some_and(has));
        let counts = move |device: &DeviceId| Some(*device) != self.leaving && Some(*device) != stands_in;
        self.replicas.iter().copied().filter(counts).filter(move |device| !has(*device))
    }

    /// Whether none is missing.
    pub fn is_whole(&self) -> bool {
        self.missing().next().is_none()
    }
}

impl Missing {
    /// How many copies are missing.
    pub fn total(&self) -> u64 {
        self.copies.values().map(|copies| u64::from(copies.all)).sum()
    }

    /// A group was as `before` and is as `now`.
    pub(super) fn follow(pools: &mut BTreeMap<PoolId, Self>, before: Option<&Pg>, now: Option<&Pg>) {
        for pg in now.into_iter().filter(|pg| !pg.is_whole()) {
            let pool = pools.entry(pg.id.pool).or_default();
            pool.groups += 1;
            for device in pg.missing() {
                let copies = pool.copies.entry(device).or_default();
                copies.all += 1;
                copies.served += u32::from(pg.config.primary.is_some());
            }
        }
        for pg in before.into_iter().filter(|pg| !pg.is_whole()) {
            let Some(pool) = pools.get_mut(&pg.id.pool) else { continue };
            pool.groups -= 1;
            for device in pg.missing() {
                let Some(copies) = pool.copies.get_mut(&device) else { continue };
                copies.all -= 1;
                copies.served -= u32::from(pg.config.primary.is_some());
                if copies.all == 0 {
                    pool.copies.remove(&device);
                }
            }
            // Nothing is no entry, so that equal sums are equal maps.
            if pool.groups == 0 {
                pools.remove(&pg.id.pool);
            }
        }
    }
}
