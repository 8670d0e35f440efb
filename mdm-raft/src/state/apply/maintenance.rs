//! Maintenance of an SDS: an operator stops it for a while and starts it again, and nothing is made of its absence.
//!
//! What is promised when it is entered is proven here, in the log's order, so nothing can come between: each group that has
//! an in-sync copy on the SDS has another one, in service and on an SDS that is not in maintenance. In the same step the
//! SDS gives up its leads; what it granted as a primary it hands back itself. From then on its copies keep their places
//! however long it is away (`homes`), no new ones are placed there, and its losses are not held against it (S23).
//!
//! A protected one costs no redundancy: first its devices are lent to it, which is a drain that ends with the maintenance, so
//! all copies move elsewhere (`liveness::moves`) and no group ever has fewer. It is entered when none is left, which the
//! leader says (`liveness::maintenance`) and apply proves again. Its end gives the devices back, and a rebalance their shares:
//! once they are in service, should the server still be down (`State::follow_rebuilds`).

use std::collections::BTreeSet;

use pflex_proto::ids::{DeviceId, Member, PgId, PoolId, SdsId};

use super::{Context, Effect, Refusal, done, pg::count_move};
use crate::{
    command::{ErrorCode, proto},
    state::{
        State,
        model::{Moment, Pg, Sds},
    },
};

/// Groups that a refusal names one by one.
const NAMED: usize = 10;

impl State {
    /// Said again, it proves again: who is about to stop the server asks whether that still costs nothing.
    pub(super) fn enter_maintenance(&mut self, context: Context, enter: &proto::EnterMaintenance) -> Effect {
        let id = self.named_sds(&enter.name)?.id;
        let object = format!("sds {}", enter.name);
        if self.is_recovering() {
            let what = "the recovery after a restore is not over; who has which copy is known only then";
            return Err(Refusal::new(ErrorCode::Precondition, object, what));
        }
        let since = Moment { revision: context.revision, at: context.log_time, wall_ms: context.wall_time_ms };
        let preparing = self.sds.get(id).is_some_and(Sds::is_preparing);
        if enter.prepared && !preparing {
            return Err(Refusal::new(ErrorCode::Stale, object, "it is not being prepared for maintenance any more"));
        }
        if enter.protected && !enter.prepared {
            self.prepare_maintenance(id, since, &enter.used)
                .map_err(|why| Refusal::new(ErrorCode::Precondition, object.clone(), why))?;
        }
        if enter.protected && self.copies_of(id) > 0 {
            return done(id.get());
        }
        let here: Vec<&Pg> = self.pgs.values().filter(|pg| is_on(pg, id)).collect();
        let alone: Vec<PgId> = here.iter().filter(|pg| self.stays_without(pg, id).is_empty()).map(|pg| pg.id).collect();
        if !alone.is_empty() {
            return Err(Refusal::new(ErrorCode::Precondition, object, needed(&alone)));
        }
        let led = here.iter().filter(|pg| pg.config.primary.is_some_and(|device| self.sds_of(device) == Some(id)));
        let led: Vec<PgId> = led.map(|pg| pg.id).collect();
        let mut primaries = self.primary_counts();
        for group in led {
            let Some(pg) = self.pgs.get(group) else { continue };
            let (in_sync, before) = (pg.config.in_sync.clone(), pg.config.primary);
            let primary = self.successor(&self.stays_without(pg, id), &primaries);
            count_move(&mut primaries, before, primary);
            self.open_epoch(group, in_sync, primary);
        }
        if !self.is_in_maintenance(id) {
            self.sds.update(id, |sds| sds.maintenance = Some(since));
        }
        done(id.get())
    }

    /// Its copies begin to move elsewhere, unless the other devices cannot take them.
    fn prepare_maintenance(&mut self, id: SdsId, since: Moment, used: &[proto::PoolUse]) -> Result<(), String> {
        let devices: BTreeSet<DeviceId> = self.devices_of(id).map(|device| device.id).collect();
        let copies = self.copies_of(id);
        if copies > 0 && self.is_in_maintenance(id) {
            return Err(format!("it is in maintenance and {copies} copies keep their places there; exit that first"));
        }
        self.can_do_without(&devices, used, Self::candidates)?;
        if self.sds.get(id).is_some_and(|sds| sds.protected.is_none()) {
            self.sds.update(id, |sds| sds.protected = Some(since));
        }
        for device in &devices {
            if !self.is_draining(*device) {
                self.devices.update(*device, |device| {
                    (device.draining, device.lent, device.owed) = (Some(since), true, false);
                });
            }
        }
        self.nothing_comes_to(&devices);
        // Pools that hold nothing yet are placed anew, without them.
        self.pools_of(&devices).into_iter().for_each(|pool| self.place_pool(pool));
        Ok(())
    }

    pub(super) fn exit_maintenance(&mut self, context: Context, exit: &proto::ExitMaintenance) -> Effect {
        let id = self.named_sds(&exit.name)?.id;
        let Some(sds) = self.sds.get(id).filter(|sds| sds.maintenance.is_some() || sds.protected.is_some()) else {
            let object = format!("sds {}", exit.name);
            return Err(Refusal::new(ErrorCode::Precondition, object, "it is not in maintenance"));
        };
        let away = sds.maintenance.is_some();
        self.sds.update(id, |sds| (sds.maintenance, sds.protected) = (None, None));
        let devices: BTreeSet<DeviceId> = self.devices_of(id).map(|device| device.id).collect();
        for device in &devices {
            self.devices.update(*device, |device| {
                if away && !device.alive {
                    // It was expected to be away until now.
                    device.lost_at = Some(context.log_time);
                }
                if std::mem::take(&mut device.lent) {
                    (device.draining, device.owed) = (None, true);
                }
            });
        }
        self.call_off(|state, leaving| devices.contains(&leaving) && !state.is_draining(leaving));
        // Pools that hold nothing yet may use it again.
        self.pools_of(&devices).into_iter().for_each(|pool| self.place_pool(pool));
        done(id.get())
    }

    /// Copies that an SDS has a place for.
    pub fn copies_of(&self, id: SdsId) -> usize {
        self.devices_of(id).map(|device| self.copies_on(device.id)).sum()
    }

    fn pools_of(&self, devices: &BTreeSet<DeviceId>) -> BTreeSet<PoolId> {
        devices.iter().filter_map(|id| self.devices.get(*id)?.pool).collect()
    }

    /// Whether an operator has said that this SDS is down for a while, or is about to be.
    pub fn is_in_maintenance(&self, id: SdsId) -> bool {
        self.sds.get(id).is_some_and(|sds| sds.maintenance.is_some())
    }

    /// The in-sync copies of a group that go on when an SDS stops, and every other one that is in maintenance.
    pub(in crate::state) fn stays_without(&self, pg: &Pg, id: SdsId) -> Vec<Member> {
        let stays = |member: &&Member| member.sds != id && self.is_alive(member) && !self.is_in_maintenance(member.sds);
        pg.config.in_sync.iter().filter(stays).copied().collect()
    }

    pub(in crate::state) fn sds_of(&self, device: DeviceId) -> Option<SdsId> {
        self.devices.get(device).map(|device| device.sds)
    }
}

/// Whether a group has an in-sync copy on an SDS.
pub(in crate::state) fn is_on(pg: &Pg, id: SdsId) -> bool {
    pg.config.in_sync.iter().any(|member| member.sds == id)
}

fn needed(alone: &[PgId]) -> String {
    let named = alone.iter().take(NAMED).map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let more = match alone.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let groups = if alone.len() == 1 { "placement group" } else { "placement groups" };
    format!(
        "{groups} {named}{more} would have no in-sync copy in service on an SDS that is not in maintenance; wait until \
         their other copies are in sync (`pflex rebuild list`)"
    )
}
