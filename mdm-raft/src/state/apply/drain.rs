//! Devices that are emptied (drained): an operator takes a device, or a whole SDS, out for good. From then on they get no
//! copies, and those they have move away one after the other (`liveness::moves`), without any group ever having fewer.
//!
//! What is proven first, in the log's order: the other devices of each pool can take it all, apart from one another (I5) and
//! with room for what is stored and for what was promised. What comes in between later, the jobs say (`drain_waits_for`).

use std::collections::{BTreeMap, BTreeSet};

use pflex_proto::ids::{DeviceId, PgId, PoolId};

use super::{Context, Effect, Refusal, done, validate};
use crate::{
    command::{ErrorCode, proto},
    placement::{self, Candidate},
    state::{State, limits::OVERCOMMIT_RATIO, model::Moment},
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
            if !devices.iter().any(|id| self.is_draining(*id)) {
                return refuse("it is not being drained");
            }
            for id in &devices {
                self.devices.update(*id, |device| device.draining = None);
            }
            self.call_off(|leaving| devices.contains(&leaving));
        } else {
            if self.is_recovering() {
                return refuse("the recovery after a restore is not over; who has which copy is known only then");
            }
            if devices.is_empty() {
                return refuse("it has no devices, so there is nothing to move away");
            }
            let used: BTreeMap<PoolId, u64> =
                drain.used.iter().map(|used| (PoolId(used.pool_id), used.bytes)).collect();
            for pool in &pools {
                let why = self.cannot_do_without(*pool, &devices, used.get(pool).copied());
                if let Err(why) = why {
                    return refuse(&why);
                }
            }
            let since = Moment { revision: context.revision, at: context.log_time, wall_ms: context.wall_time_ms };
            for id in &devices {
                if !self.is_draining(*id) {
                    self.devices.update(*id, |device| device.draining = Some(since));
                }
            }
            // Nothing comes to them any more, either.
            let comes: Vec<PgId> = self
                .pgs
                .values()
                .filter(|pg| pg.newcomer().is_some_and(|device| devices.contains(&device)))
                .map(|pg| pg.id)
                .collect();
            comes.into_iter().for_each(|pg| self.call_off_one(pg));
        }
        // Pools that hold nothing yet are placed anew, without them or with them again.
        pools.into_iter().for_each(|pool| self.place_pool(pool));
        done(0_u64)
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

    /// Whether the other devices of a pool can take what these have.
    fn cannot_do_without(&self, pool: PoolId, gone: &BTreeSet<DeviceId>, used: Option<u64>) -> Result<(), String> {
        let Some(row) = self.pools.get(pool) else { return Ok(()) };
        let held: Vec<PgId> =
            self.pgs_of(pool).filter(|pg| pg.replicas.iter().any(|id| gone.contains(id))).map(|pg| pg.id).collect();
        let Some(first) = held.first() else { return Ok(()) };
        let rest: Vec<Candidate> =
            self.candidates_in_the_end(pool).into_iter().filter(|c| !gone.contains(&c.device)).collect();
        let (domains, copies) = (placement::fault_domains(&rest), row.copies as usize);
        if domains < copies {
            let named = held.iter().take(NAMED).map(ToString::to_string).collect::<Vec<_>>().join(", ");
            let more = match held.len().saturating_sub(NAMED) {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            return Err(format!(
                "placement groups {named}{more} of pool {} have a copy there, and {copies} copies that fail apart (I5) need as \
                 many SDSs or fault sets with a device in service: {domains} would be left; add one first",
                row.name
            ));
        }
        let capacity: u64 = rest.iter().map(|candidate| candidate.capacity.get()).sum();
        if let Some(used) = used.filter(|used| *used > capacity) {
            return Err(format!(
                "the other devices of pool {} have {capacity} bytes, and its copies hold {used} (placement group {first} and \
                 {} more have one there); add a device first",
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
    pub(super) fn call_off(&mut self, of: impl Fn(DeviceId) -> bool) {
        let moving: Vec<PgId> = self.pgs.values().filter(|pg| pg.leaving.is_some_and(&of)).map(|pg| pg.id).collect();
        moving.into_iter().for_each(|pg| self.call_off_one(pg));
    }

    fn call_off_one(&mut self, id: PgId) {
        let Some(pg) = self.pgs.get(id) else { return };
        let (homes, in_sync, primary) =
            (pg.called_off(&pg.config.in_sync), pg.config.in_sync.clone(), pg.config.primary);
        self.open_epoch_on(id, homes, in_sync, primary);
    }
}
