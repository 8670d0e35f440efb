//! Devices that are emptied (drained): an operator takes a device, or a whole SDS, out for good. From then on they get no
//! copies, and those they have move away one after the other (`liveness::moves`), without any group ever having fewer.
//!
//! What is proven first, in the log's order: the devices of each pool that would be left can take it all, apart from one
//! another (I5) and with room for what is stored and for what was promised. All is what every device of the pool that is
//! being emptied still holds, also for a protected maintenance: a server without copies may be the only place that an
//! earlier drain was promised. The same holds when an empty device leaves its pool. What comes in between later, the jobs
//! say (`drain_waits_for`).

use std::collections::{BTreeMap, BTreeSet};

use pflex_proto::ids::{DeviceId, PgId, PoolId};

use super::{Context, Effect, Refusal, done, validate};
use crate::{
    command::{ErrorCode, proto},
    placement::{self, Candidate},
    state::{
        State,
        limits::OVERCOMMIT_RATIO,
        model::{Moment, Pg},
    },
};

/// Groups that a refusal names one by one.
const NAMED: usize = 10;

impl State {
    pub(super) fn drain(&mut self, context: Context, drain: &proto::Drain) -> Effect {
        let (object, devices) = self.to_be_drained(drain)?;
        let refuse = |what: &str| Err(Refusal::new(ErrorCode::Precondition, object.clone(), what));
        let pools: BTreeSet<PoolId> =
            devices.iter().filter_map(|id| self.devices.get(*id).and_then(|device| device.pool)).collect();
        if drain.cancel {
            let own: BTreeSet<DeviceId> = devices.iter().copied().filter(|id| self.is_drained_for_good(*id)).collect();
            if own.is_empty() {
                let lent = devices.iter().any(|id| self.is_draining(*id));
                return refuse(match lent {
                    false => "it is not being drained",
                    true => {
                        "its copies move away for a protected maintenance of its server; `pflex sds maintenance exit` \
                              ends that"
                    }
                });
            }
            for id in own {
                // What a protected maintenance has moved away stays away until that is over.
                let lent = self.devices.get(id).and_then(|device| self.sds.get(device.sds)?.protected);
                self.devices.update(id, |device| (device.draining, device.lent) = (lent, lent.is_some()));
            }
            self.call_off(|state, leaving| devices.contains(&leaving) && !state.is_draining(leaving));
        } else {
            if self.is_recovering() {
                return refuse("the recovery after a restore is not over; who has which copy is known only then");
            }
            if devices.is_empty() {
                return refuse("it has no devices, so there is nothing to move away");
            }
            if let Err(why) = self.can_do_without(&devices, &drain.used, Self::candidates_in_the_end) {
                return refuse(&why);
            }
            let since = Moment { revision: context.revision, at: context.log_time, wall_ms: context.wall_time_ms };
            for id in &devices {
                if !self.is_drained_for_good(*id) {
                    self.devices.update(*id, |device| {
                        (device.draining, device.lent, device.owed) = (Some(since), false, false);
                    });
                }
            }
            self.nothing_comes_to(&devices);
        }
        // Pools that hold nothing yet are placed anew, without them or with them again.
        pools.into_iter().for_each(|pool| self.place_pool(pool));
        done(0_u64)
    }

    /// Whether an operator wants it empty for itself, not for a maintenance of its server.
    fn is_drained_for_good(&self, id: DeviceId) -> bool {
        self.devices.get(id).is_some_and(|device| device.draining.is_some() && !device.lent)
    }

    /// Ends the moves of copies to these devices.
    pub(super) fn nothing_comes_to(&mut self, devices: &BTreeSet<DeviceId>) {
        let comes = |pg: &&Pg| pg.newcomer().is_some_and(|device| devices.contains(&device));
        let comes: Vec<PgId> = self.pgs.values().filter(comes).map(|pg| pg.id).collect();
        comes.into_iter().for_each(|pg| self.call_off_one(pg));
    }

    /// Whether the other `candidates` of their pools can take what these devices have, and those that are being emptied
    /// already, as far as is known how much that is.
    pub(super) fn can_do_without(
        &self,
        gone: &BTreeSet<DeviceId>,
        used: &[proto::PoolUse],
        candidates: impl Fn(&Self, PoolId) -> Vec<Candidate>,
    ) -> Result<(), String> {
        let used: BTreeMap<PoolId, u64> = used.iter().map(|used| (PoolId(used.pool_id), used.bytes)).collect();
        let pools: BTreeSet<PoolId> =
            gone.iter().filter_map(|id| self.devices.get(*id).and_then(|device| device.pool)).collect();
        pools.into_iter().try_for_each(|pool| {
            let emptied: BTreeSet<DeviceId> =
                self.draining_in(pool).map(|device| device.id).chain(gone.clone()).collect();
            let rest = candidates(self, pool).into_iter().filter(|candidate| !emptied.contains(&candidate.device));
            self.can_take(pool, &emptied, &rest.collect::<Vec<_>>(), used.get(&pool).copied())
        })
    }

    /// Refuses that an empty device leaves its pool while others are being emptied that have no place without it.
    pub(super) fn drains_can_do_without(&self, id: DeviceId) -> Result<(), Refusal> {
        let Some(pool) = self.devices.get(id).and_then(|device| device.pool) else { return Ok(()) };
        let candidates = self.candidates_in_the_end(pool);
        // One that holds something is refused for that, and one that may be given nothing is no place for a drain.
        if self.copies_on(id) > 0 || !candidates.iter().any(|candidate| candidate.device == id) {
            return Ok(());
        }
        self.can_do_without(&BTreeSet::from([id]), &[], Self::candidates_in_the_end)
            .map_err(|why| Refusal::new(ErrorCode::Precondition, format!("device {id}"), why))
    }

    fn to_be_drained(&self, drain: &proto::Drain) -> Result<(String, BTreeSet<DeviceId>), Refusal> {
        if drain.sds.is_empty() {
            let id = DeviceId(drain.device_id);
            let object = format!("device {id}");
            if !self.devices.contains(id) {
                return Err(Refusal::new(ErrorCode::NotFound, object, "there is no device of this id"));
            }
            return Ok((object, BTreeSet::from([id])));
        }
        if drain.device_id != 0 {
            return Err(validate::invalid(format!("sds {}", drain.sds), "either an SDS or a device is drained"));
        }
        let id = self.named_sds(&drain.sds)?.id;
        Ok((format!("sds {}", drain.sds), self.devices_of(id).map(|device| device.id).collect()))
    }

    /// Whether the `rest` of a pool's devices can take what all have that are to be empty.
    fn can_take(
        &self,
        pool: PoolId,
        emptied: &BTreeSet<DeviceId>,
        rest: &[Candidate],
        used: Option<u64>,
    ) -> Result<(), String> {
        let Some(row) = self.pools.get(pool) else { return Ok(()) };
        let held: Vec<PgId> =
            self.pgs_of(pool).filter(|pg| pg.replicas.iter().any(|id| emptied.contains(id))).map(|pg| pg.id).collect();
        let Some(first) = held.first() else { return Ok(()) };
        let before = self.draining_in(pool).any(|device| self.copies_on(device.id) > 0);
        let or_elsewhere = if before { ", or on devices that are being emptied already" } else { "" };
        let (domains, copies) = (placement::fault_domains(rest), row.copies as usize);
        if domains < copies {
            let named = held.iter().take(NAMED).map(ToString::to_string).collect::<Vec<_>>().join(", ");
            let more = match held.len().saturating_sub(NAMED) {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            return Err(format!(
                "placement groups {named}{more} of pool {} have a copy there{or_elsewhere}, and {copies} copies that fail apart \
                 (I5) need as many SDSs or fault sets with a device in service: {domains} would be left; add one first",
                row.name
            ));
        }
        let capacity: u64 = rest.iter().map(|candidate| candidate.capacity.get()).sum();
        if let Some(used) = used.filter(|used| *used > capacity) {
            return Err(format!(
                "the other devices of pool {} have {capacity} bytes, and its copies hold {used} (placement group {first} and \
                 {} more have one there{or_elsewhere}); add a device first",
                row.name,
                held.len() - 1
            ));
        }
        let (limit, promised) =
            ((capacity / u64::from(row.copies)).saturating_mul(OVERCOMMIT_RATIO), self.space_of(row).provisioned.get());
        if promised > limit {
            return Err(format!(
                "the volumes of pool {} add up to {promised} bytes, and without it they may have {limit} (over-commit limit); \
                 add a device first",
                row.name
            ));
        }
        Ok(())
    }

    /// Ends moves of copies away from these devices; what was copied so far is dropped by who has it.
    pub(super) fn call_off(&mut self, of: impl Fn(&Self, DeviceId) -> bool) {
        let ends = |pg: &&Pg| pg.leaving.is_some_and(|device| of(self, device));
        let moving: Vec<PgId> = self.pgs.values().filter(ends).map(|pg| pg.id).collect();
        moving.into_iter().for_each(|pg| self.call_off_one(pg));
    }

    /// S11: as long as a lost newcomer might yet have been chosen, it kept its place.
    pub(super) fn call_off_to_lost(&mut self, id: PgId) {
        let is_there = |device| self.devices.get(device).is_some_and(|device| device.alive);
        let lost = self.pgs.get(id).and_then(Pg::newcomer).is_some_and(|newcomer| !is_there(newcomer));
        if lost {
            self.call_off_one(id);
        }
    }

    fn call_off_one(&mut self, id: PgId) {
        let Some(pg) = self.pgs.get(id) else { return };
        let (homes, in_sync, primary) = (pg.called_off(), pg.config.in_sync.clone(), pg.config.primary);
        self.open_epoch_on(id, homes, in_sync, primary);
    }
}
