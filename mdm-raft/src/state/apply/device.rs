//! Devices: which are open, in which life, and what that means for the groups that have copies on them.

use std::collections::BTreeSet;

use pflex_proto::ids::{ByteCount, DeviceId, DeviceUuid, DomainId, Incarnation, PoolId, SdsId};

use super::{
    Context, Effect, Refusal, done, double,
    pg::{Restart, Restarts},
    validate::{self, invalid},
};
use crate::{
    command::{ErrorCode, proto},
    state::{
        State,
        limits::MAX_DEVICES,
        model::{Device, Losses},
    },
};

/// A device of a registration, checked against what is known of it.
pub(super) struct OpenedDevice {
    pub(super) uuid: DeviceUuid,
    /// None: never seen before.
    known: Option<DeviceId>,
    incarnation: Incarnation,
    capacity: ByteCount,
    path: String,
    /// It lost what its earlier lives held (S13).
    pub(super) empty: bool,
    /// As its superblock has it; of a device that came after the backup that the cluster was restored from (S19).
    keeps: Option<DeviceId>,
    /// Where it belongs, or is to belong.
    pool: Option<PoolId>,
}

impl OpenedDevice {
    /// Its id, if the cluster has seen it before.
    pub(super) const fn known(&self) -> Option<DeviceId> {
        self.known
    }

    /// Its pool, if it has one.
    pub(super) const fn pool(&self) -> Option<PoolId> {
        self.pool
    }
}

impl State {
    /// Checks one device of a registration.
    pub(super) fn opened_device(
        &self,
        sds: SdsId,
        domain: DomainId,
        same_process: bool,
        raw: &proto::OpenedDevice,
    ) -> Result<OpenedDevice, Refusal> {
        let object = format!("device {}", raw.path);
        let uuid = DeviceUuid::from_slice(&raw.uuid).map_err(|why| invalid(&object, why.to_string()))?;
        let incarnation = validate::incarnation(&object, raw.incarnation)?;
        if raw.capacity_bytes == 0 {
            return Err(invalid(object, "it has no room for data"));
        }
        let known = self.names.devices.get(&uuid).and_then(|id| self.devices.get(*id));
        match known {
            Some(device) => check_known(device, sds, incarnation, same_process, raw)?,
            None if raw.device_id != 0 && !self.is_of_after_the_backup(DeviceId(raw.device_id)) => {
                let what = format!(
                    "its superblock says device {}, which this cluster does not know; format it to use it here",
                    raw.device_id
                );
                return Err(Refusal::new(ErrorCode::Precondition, object, what));
            }
            None => {}
        }
        // Only a new device asks for a pool: the name in a file may be that of a pool that was renamed since.
        let pool = match known {
            Some(device) => device.pool,
            None => self.pool_for_device(domain, &raw.pool)?,
        };
        let sorted = |pool: &PoolId| pool.get() == raw.sorted_pool_id;
        if let Some(pool) = pool.filter(sorted).and_then(|pool| self.pools.get(pool)) {
            self.is_sorted_by_now(&object, pool, raw.pg_count)?;
        }
        Ok(OpenedDevice {
            uuid,
            known: known.map(|device| device.id),
            incarnation,
            capacity: ByteCount(raw.capacity_bytes),
            path: validate::text(&object, "path", &raw.path)?,
            empty: raw.empty,
            keeps: Some(DeviceId(raw.device_id)).filter(|id| known.is_none() && *id != DeviceId(0)),
            pool,
        })
    }

    /// The pool a new device joins: the one it names, else the first of its domain, else none until there is one.
    fn pool_for_device(&self, domain: DomainId, name: &str) -> Result<Option<PoolId>, Refusal> {
        if name.is_empty() {
            return Ok(self.pools.values().find(|pool| pool.domain == domain).map(|pool| pool.id));
        }
        let pool = self.named_pool(name)?;
        if pool.domain != domain {
            return Err(invalid(format!("pool {name}"), "it is in another domain than the SDS"));
        }
        Ok(Some(pool.id))
    }

    pub(super) fn room_for_devices(&self, opened: &[OpenedDevice]) -> Result<(), Refusal> {
        let new = opened.iter().filter(|device| device.known.is_none()).count();
        if self.devices.len() + new > MAX_DEVICES {
            Err(validate::limit("device", MAX_DEVICES, "devices"))
        } else {
            Ok(())
        }
    }

    /// Takes the open devices of an SDS into service and every other one of it out, in one step for all groups.
    /// With `admit` false, and each device that fails too often, they are known and stay out of service (S23).
    pub(super) fn open_devices(
        &mut self,
        context: Context,
        sds: SdsId,
        admit: bool,
        opened: &[OpenedDevice],
    ) -> Vec<DeviceId> {
        // By the state before: whose copy is the last there is must not depend on the order below.
        let in_service = |id| self.devices.get(id).is_some_and(|device| device.alive);
        let kept_out = |id| !admit || (!in_service(id) && self.device_kept_out(id, context.log_time).is_some());
        let kept_out: BTreeSet<DeviceId> =
            opened.iter().filter_map(|device| device.known).filter(|id| kept_out(*id)).collect();
        let mut touched: BTreeSet<DeviceId> = self.devices_of(sds).map(|device| device.id).collect();
        for device in &touched {
            self.devices.update(*device, |device| device.serve(false, context.log_time));
        }
        let mut restarted = Restarts::new();
        let mut grown: BTreeSet<PoolId> = BTreeSet::new();
        let mut ids = Vec::with_capacity(opened.len());
        for device in opened {
            let id = match device.known {
                Some(id) => {
                    // S2: the copy stays in sync, and the next epoch names its new life. Not when it lost its data:
                    // then its membership keeps naming the old life, which is dead.
                    let never_used = self
                        .devices
                        .get(id)
                        .and_then(|known| known.pool)
                        .and_then(|pool| self.pools.get(pool))
                        .is_some_and(|pool| !pool.used);
                    let before = self.devices.get(id).map_or(device.incarnation, |known| known.incarnation);
                    if !device.empty || never_used {
                        restarted.insert(id, Restart { before, now: device.incarnation });
                    }
                    self.devices.update(id, |known| {
                        known.incarnation = device.incarnation;
                        known.no_room = known.no_room.filter(|_| known.capacity == device.capacity);
                        known.capacity = device.capacity;
                        known.path.clone_from(&device.path);
                        known.serve(!kept_out.contains(&id), context.log_time);
                    });
                    id
                }
                None => {
                    let id = self.add_device(context, sds, admit, device);
                    grown.extend(device.pool);
                    id
                }
            };
            touched.insert(id);
            ids.push(id);
        }
        self.settle_pgs(&touched, &restarted);
        for pool in grown {
            self.leave_alone_no_more(pool);
            self.place_pool(pool);
        }
        ids
    }

    fn add_device(&mut self, context: Context, sds: SdsId, alive: bool, device: &OpenedDevice) -> DeviceId {
        let id = device.keeps.unwrap_or_else(|| {
            self.take_id(|counters| {
                counters.device = counters.device.next();
                counters.device
            })
        });
        // One that comes to a server in protected maintenance, or on its way there, has nothing and gets nothing yet.
        let lent = self.sds.get(sds).and_then(|sds| sds.protected);
        self.devices.put(Device {
            id,
            uuid: device.uuid,
            sds,
            pool: device.pool,
            incarnation: device.incarnation,
            capacity: device.capacity,
            path: device.path.clone(),
            alive,
            losses: Losses::default(),
            awaited: false,
            reported_by: None,
            lost_at: (!alive).then_some(context.log_time),
            slow: None,
            faults: None,
            draining: lent,
            lent: lent.is_some(),
            owed: false,
            no_room: None,
        });
        id
    }

    /// What the leader found of a disk's speed.
    pub(super) fn judge_disk(&mut self, judge: &proto::JudgeDisk) -> Effect {
        let id = DeviceId(judge.device_id);
        let object = format!("device {id}");
        validate::text(&object, "reason", &judge.why)?;
        let slow = Some(judge.why.clone()).filter(|why| !why.is_empty());
        match self.devices.get(id) {
            None => return Err(Refusal::new(ErrorCode::NotFound, object, "there is no device of this id")),
            Some(device) if device.slow == slow => {}
            Some(_) => self.devices.update(id, |device| device.slow = slow),
        }
        done(id.get())
    }

    pub(super) fn remove_device(&mut self, remove: &proto::RemoveDevice) -> Effect {
        let id = DeviceId(remove.device_id);
        let object = format!("device {id}");
        if !self.devices.contains(id) {
            return Err(Refusal::new(ErrorCode::NotFound, object, "there is no device of this id"));
        }
        self.not_recovering(&object)?;
        self.drains_can_do_without(id)?;
        if !self.leave_pool(id) {
            return Err(self.holds_copies(id));
        }
        self.devices.remove(id);
        done(id.get())
    }

    /// Gives a device without copies to a pool. It gets copies there as any new device does.
    pub(super) fn assign_device(&mut self, assign: &proto::AssignDevice) -> Effect {
        let id = DeviceId(assign.device_id);
        let object = format!("device {id}");
        let Some(device) = self.devices.get(id) else {
            return Err(Refusal::new(ErrorCode::NotFound, object, "there is no device of this id"));
        };
        let (before, domain) = (device.pool, self.sds.get(device.sds).map(|sds| sds.domain));
        let pool = self.named_pool(&assign.pool)?;
        if Some(pool.domain) != domain {
            return Err(invalid(object, format!("pool {} is in another domain than its SDS", pool.name)));
        }
        let sds = self.sds.get(device.sds).and_then(|sds| Some((&sds.name, sds.registration.as_ref()?)));
        if let Some((sds, _)) = sds.filter(|(_, process)| pool.has_doubled() && process.ignores_doubling()) {
            return Err(double::does_not_follow(format!("sds {sds}"), pool));
        }
        let pool = pool.id;
        if before == Some(pool) {
            return if assign.if_not_exists {
                done(id.get())
            } else {
                Err(Refusal::new(ErrorCode::AlreadyExists, object, format!("it is in pool {} already", assign.pool)))
            };
        }
        self.drains_can_do_without(id)?;
        if !self.leave_pool(id) {
            return Err(self.holds_copies(id));
        }
        // What it was emptied for was its place in the other pool; a protected maintenance is about the whole server.
        self.devices.update(id, |device| {
            device.pool = Some(pool);
            device.draining = device.draining.filter(|_| device.lent);
            device.owed = false;
        });
        self.leave_alone_no_more(pool);
        self.place_pool(pool);
        done(id.get())
    }

    /// S19: a device may turn out to have the newest copy of something, and is not forgotten before that is known.
    pub(super) fn not_recovering(&self, object: &str) -> Result<(), Refusal> {
        if self.is_recovering() {
            let what = "the recovery after a restore is not over; who has which copy is known only then";
            return Err(Refusal::new(ErrorCode::Precondition, object, what));
        }
        Ok(())
    }

    /// Takes a device out of its pool, unless copies would be lost: then nothing changes and this is `false`. A pool
    /// that never held anything is placed anew without it, if the others suffice.
    fn leave_pool(&mut self, id: DeviceId) -> bool {
        let holds = |state: &Self| state.pgs.values().any(|pg| pg.replicas.contains(&id));
        let Some(pool) = self.devices.get(id).and_then(|device| device.pool) else { return !holds(self) };
        self.devices.update(id, |device| device.pool = None);
        if holds(self) {
            self.place_pool(pool);
        }
        if holds(self) {
            self.devices.update(id, |device| device.pool = Some(pool));
            return false;
        }
        true
    }

    /// Why a device cannot go.
    fn holds_copies(&self, id: DeviceId) -> Refusal {
        let mut groups = self.pgs.values().filter(|pg| pg.replicas.contains(&id));
        let first = groups.next().map_or_else(String::new, |pg| pg.id.to_string());
        let pool = self.devices.get(id).and_then(|device| self.pools.get(device.pool?));
        let pool = pool.map_or_else(String::new, |pool| pool.name.clone());
        let what = match groups.count() {
            0 => format!("placement group {first} of pool {pool} keeps a copy on it"),
            more => format!("placement group {first} of pool {pool} and {more} more keep copies on it"),
        };
        let what = format!(
            "{what}; `pflex device drain {id}` moves them away, and those of a lost device get new homes after \
             rebuild.delay_ms"
        );
        Refusal::new(ErrorCode::InUse, format!("device {id}"), what)
    }
}

/// What a known device may not do: be on another SDS, go back to an older life, or share a life between processes.
fn check_known(
    device: &Device,
    sds: SdsId,
    incarnation: Incarnation,
    same_process: bool,
    raw: &proto::OpenedDevice,
) -> Result<(), Refusal> {
    let object = format!("device {} ({})", device.id, raw.path);
    if device.sds != sds {
        let what = format!("it belongs to sds {}; remove it there first", device.sds);
        return Err(Refusal::new(ErrorCode::Precondition, object, what));
    }
    if raw.device_id != 0 && raw.device_id != device.id.get() {
        let what = format!("its superblock says device {}, this cluster calls it {}", raw.device_id, device.id);
        return Err(Refusal::new(ErrorCode::Precondition, object, what));
    }
    // S2: another process has opened it since, or this one has not raised the incarnation it found.
    if incarnation < device.incarnation || (incarnation == device.incarnation && !same_process) {
        let what = format!("incarnation {incarnation} is not newer than {}, which registered", device.incarnation);
        return Err(Refusal::new(ErrorCode::Stale, object, what));
    }
    Ok(())
}
