//! Forced promotion (S12): a group whose in-sync copies are all away goes on from another copy. What only the old copies
//! have is lost; an operator says so.
//!
//! The old primary may live on, cut off together with SDCs that still reach it: as the only in-sync copy it needs nobody's
//! lease. So first the group is frozen, and from then on no token is issued for its pool. The new epoch commits when no
//! older token can be used any more, which the leader waits for (`api::promotion`), or when every old copy is proven dead
//! by a newer life of its device. An in-sync copy that comes back in time ends the freeze: then nothing need be lost.

use pflex_proto::ids::{DeviceId, PgId, PgIndex, PoolId, Revision};

use super::{Context, Effect, Refusal, done, validate};
use crate::{
    command::{ErrorCode, proto},
    state::{
        State,
        model::{Freeze, Pg},
    },
};

impl State {
    pub(super) fn freeze_pg(&mut self, context: Context, freeze: &proto::FreezePg) -> Effect {
        let id = self.group_named(&freeze.pool, freeze.index)?.id;
        let device = DeviceId(freeze.device_id);
        self.promotable(id, device)?;
        match self.freeze_of(id) {
            Some(before) if before.device == device => return done(u64::from(device.get())),
            Some(before) => {
                let what = format!(
                    "the copy on device {} is being promoted; give that up first: `pflex pg unfreeze`",
                    before.device
                );
                return Err(Refusal::new(ErrorCode::Precondition, format!("pg {id}"), what));
            }
            None => {}
        }
        let freeze = Freeze { device, at: context.revision };
        self.pools.update(id.pool, |pool| {
            pool.frozen.insert(id.index, freeze);
        });
        done(u64::from(device.get()))
    }

    /// The leader has waited, or has proof. Everything else is looked at once more.
    pub(super) fn promote_pg(&mut self, promote: &proto::PromotePg) -> Effect {
        let id = self.group_named(&promote.pool, promote.index)?.id;
        let device = DeviceId(promote.device_id);
        validate::text(&format!("pg {id}"), "reason", &promote.why_safe)?;
        let waited = Freeze { device, at: Revision(promote.frozen_at) };
        if self.freeze_of(id) != Some(waited) {
            let what = format!("it is not frozen for device {device}, or was frozen anew; freeze it first");
            return Err(Refusal::new(ErrorCode::Precondition, format!("pg {id}"), what));
        }
        self.promotable(id, device)?;
        let Some(member) = self.present_life(device) else { return done(0_u64) };
        let in_sync = vec![member];
        let homes = match self.pgs.get(id) {
            Some(pg) if pg.newcomer() == Some(device) => pg.places().collect::<Vec<_>>().into(),
            Some(pg) => pg.newcomer().map_or_else(|| pg.homes(), |newcomer| pg.without_newcomer(newcomer)),
            None => return done(0_u64),
        };
        self.open_epoch_on(id, homes, in_sync, Some(device));
        self.activated_by_choice(id);
        self.pgs.update(id, |pg| pg.forced = true);
        self.thaw(id);
        done(u64::from(device.get()))
    }

    pub(super) fn unfreeze_pg(&mut self, unfreeze: &proto::UnfreezePg) -> Effect {
        let id = self.group_named(&unfreeze.pool, unfreeze.index)?.id;
        if self.freeze_of(id).is_none() {
            return Err(Refusal::new(ErrorCode::Precondition, format!("pg {id}"), "it is not frozen"));
        }
        self.thaw(id);
        done(0_u64)
    }

    /// Ends a freeze, if there is one.
    pub(super) fn thaw(&mut self, id: PgId) {
        if self.freeze_of(id).is_some() {
            self.pools.update(id.pool, |pool| {
                pool.frozen.remove(&id.index);
            });
        }
    }

    /// The forced promotion that a group is in.
    pub fn freeze_of(&self, id: PgId) -> Option<Freeze> {
        self.pools.get(id.pool)?.frozen.get(&id.index).copied()
    }

    /// Whether every copy that may have served a group is certainly over: its device has registered a newer life, and only one
    /// process has a device open (S8).
    pub fn old_copies_are_dead(&self, pg: &Pg) -> bool {
        pg.complete()
            .iter()
            .all(|member| self.devices.get(member.device).is_some_and(|device| device.incarnation > member.incarnation))
    }

    fn group_named(&self, pool: &str, index: u32) -> Result<&Pg, Refusal> {
        let pool: PoolId = self.named_pool(pool)?.id;
        let id = PgId { pool, index: PgIndex(index) };
        let object = format!("pg {id}");
        self.pgs.get(id).ok_or_else(|| Refusal::new(ErrorCode::NotFound, object, "there is no such placement group"))
    }

    /// Refuses to promote what need not be, or cannot be, promoted.
    fn promotable(&self, id: PgId, device: DeviceId) -> Result<(), Refusal> {
        let object = format!("pg {id}");
        let refuse = |what: String| Err(Refusal::new(ErrorCode::Precondition, object.clone(), what));
        if self.is_recovering() {
            return refuse(
                "the cluster was restored from a backup; `pflex cluster end-recovery` comes first".to_owned(),
            );
        }
        let Some(pg) = self.pgs.get(id) else { return refuse("there is no such placement group".to_owned()) };
        if let Some(primary) = pg.config.primary {
            return refuse(format!("its copy on device {primary} is in sync and alive; nothing need be lost"));
        }
        if !pg.replicas.contains(&device) {
            let replicas: Vec<String> = pg.replicas.iter().map(ToString::to_string).collect();
            return refuse(format!("device {device} has no copy of it; devices {} have", replicas.join(", ")));
        }
        if !self.devices.get(device).is_some_and(|device| device.alive) {
            return refuse(format!("device {device} is not in service; start its SDS first"));
        }
        Ok(())
    }
}
