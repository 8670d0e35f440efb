//! Copies that get another place. A command names the moves of one pool and why they are made; each is judged by itself
//! against the epoch that its planner saw (compare-and-set), and one that is accepted raises that epoch.
//!
//! **Lost**: away from a device that is out of service. Such a copy misses writes, and would miss none the less if
//! it came back, so giving up its place costs no redundancy: `in_sync` and the primary stay as they are, and the new
//! device is a joiner, which the primary fills and proposes like any other (S3). What is still in sync never moves this
//! way, alive or not: where no copy is alive, the lost ones are the only ones that have the writes, and they keep their
//! places until one of them is back and serves. Only then the others, which left the in-sync set at that moment, may go.
//!
//! **Drain** and **balance**: away from a living device, whose copy stays in sync until the new one is (`state::moving`).
//! Only groups that lack nothing move this way: what is missing is filled first.
//!
//! **No room**: a device in service could not take what it was to be filled with, as the primary of the group says. A move
//! there is called off; a copy that was missing gets another place if there is one, and else stays where it cannot be
//! filled. The device is remembered and given nothing for a while (`NoRoom`), so nothing goes there and back for ever.

use pflex_proto::ids::{DeviceId, Epoch, PgId, PgIndex, PoolId};

use super::{Context, Effect, Refusal, pg::config_message, validate};
use crate::{
    command::{Answer, ErrorCode, proto},
    placement::FaultDomain,
    state::{
        State,
        limits::MAX_MOVES,
        model::{Device, JobKind, Moment, NoRoom, Pg},
        moving::Homes,
    },
};

impl State {
    /// All moves of a command, in its order.
    pub(super) fn move_copies(&mut self, context: Context, command: &proto::MoveCopies) -> Effect {
        let pool = PoolId(command.pool_id);
        let object = self.pools.get(pool).map(|pool| format!("pool {}", pool.name));
        let object = object
            .ok_or_else(|| Refusal::new(ErrorCode::NotFound, format!("pool #{pool}"), "there is no pool of this id"))?;
        let kind = command.kind();
        if kind == proto::MoveKind::Unspecified {
            return Err(validate::invalid(object, "it does not say why copies move"));
        }
        if command.moves.len() > MAX_MOVES {
            return Err(validate::limit(object, MAX_MOVES, "moves in one command"));
        }
        if self.is_recovering() {
            // S19: where copies are is only known at its end.
            return Err(Refusal::new(ErrorCode::Precondition, object, "the recovery after a restore is not over"));
        }
        if kind == proto::MoveKind::Balance {
            let wanted = self.open_job(pool, JobKind::Rebalance).is_some();
            if !wanted && self.pools.get(pool).is_some_and(|pool| pool.left_alone) {
                // Planned before an operator ended it.
                return Err(Refusal::new(ErrorCode::Precondition, object, "its rebalance was ended by an operator"));
            }
            self.plan_says(context, pool, command.left);
        }
        let results = command.moves.iter().map(|step| {
            let id = PgId { pool, index: PgIndex(step.index) };
            let verdict = self.moved(id, kind, step);
            if verdict.is_ok() && kind == proto::MoveKind::NoRoom {
                self.had_no_room(context, DeviceId(step.from_device_id));
            }
            if let Ok(homes) = &verdict
                && let Some(config) = self.pgs.get(id).map(|pg| pg.config.clone())
            {
                self.open_epoch_on(id, homes.clone(), config.in_sync, config.primary);
            }
            proto::ProposalResult {
                accepted: verdict.is_ok(),
                why: verdict.err().unwrap_or_default(),
                current: self.pgs.get(id).map(config_message),
            }
        });
        Ok(Answer::Reconfigured(proto::Reconfigured { results: results.collect() }))
    }

    /// An operator asks for a rebalance, which the leader then plans and carries out, or for its end.
    pub(super) fn rebalance(&mut self, context: Context, rebalance: &proto::Rebalance) -> Effect {
        let pool = self.named_pool(&rebalance.pool)?.id;
        let object = format!("pool {}", rebalance.pool);
        let open = self.open_job(pool, JobKind::Rebalance).map(|job| (pool, job.id));
        match (rebalance.cancel, open) {
            (true, None) => {
                return Err(Refusal::new(ErrorCode::Precondition, object, "it is not being rebalanced"));
            }
            (true, Some(job)) => {
                self.jobs.update(job, |job| job.planned = 0);
                self.pools.update(pool, |pool| pool.left_alone = true);
                let here: Vec<DeviceId> = self.moving_in(pool).map(|(device, _)| device).collect();
                self.call_off(|state, leaving| here.contains(&leaving) && !state.is_draining(leaving));
                self.owes_nothing(pool, |_| true);
            }
            (false, _) if self.is_recovering() => {
                return Err(Refusal::new(ErrorCode::Precondition, object, "the recovery after a restore is not over"));
            }
            // Going on already, or being called off, which is over now.
            (false, Some(job)) => {
                self.leave_alone_no_more(pool);
                let planned = rebalance.planned;
                self.jobs.update(job, |job| job.planned = job.planned.max(planned));
            }
            // Nothing to do; a pool that holds nothing is placed anew whenever a device comes.
            (false, None) if rebalance.planned == 0 || !self.pools.get(pool).is_some_and(|pool| pool.used) => {
                self.leave_alone_no_more(pool);
            }
            (false, None) => {
                let (moment, left) = (moment(context), rebalance.planned);
                self.begin_rebalance(pool, left, moment, "asked for by an operator");
            }
        }
        super::done(pool.get())
    }

    /// What the planner still has to begin. The first it says opens the job.
    fn plan_says(&mut self, context: Context, pool: PoolId, left: u32) {
        match self.open_job(pool, JobKind::Rebalance).map(|job| (pool, job.id)) {
            Some(job) if self.jobs.get(job).is_some_and(|job| job.planned != left) => {
                self.jobs.update(job, |job| job.planned = left);
            }
            Some(_) => {}
            None => {
                self.begin_rebalance(pool, left, moment(context), "devices hold more than their shares of the pool")
            }
        }
    }

    /// Where the copies of a group belong after a move, or why it may not be.
    fn moved(&self, id: PgId, kind: proto::MoveKind, step: &proto::CopyMove) -> Result<Homes, String> {
        let pg = self.pgs.get(id).ok_or_else(|| "there is no such placement group".to_owned())?;
        let (from, to) = (DeviceId(step.from_device_id), DeviceId(step.to_device_id));
        if pg.config.epoch != Epoch(step.expected_epoch) {
            return Err(format!("the epoch is {}, not {}", pg.config.epoch, step.expected_epoch));
        }
        if pg.config.primary.is_none() {
            return Err("nobody serves it, so nobody could fill a new copy".to_owned());
        }
        let place = pg.replicas.iter().position(|device| *device == from);
        let place = place.ok_or_else(|| format!("device {from} has no copy to give up"))?;
        if let Some(sds) = self.sds_of(from).filter(|sds| self.is_in_maintenance(*sds)) {
            return Err(format!("{} is in maintenance: its copies keep their places", self.sds_label(sds)));
        }
        match kind {
            proto::MoveKind::Lost => self.is_lost_from(pg, from)?,
            proto::MoveKind::NoRoom => {
                self.is_not_filled_on(pg, from)?;
                match (pg.newcomer() == Some(from), to == DeviceId(0)) {
                    (true, true) => return Ok(pg.called_off()),
                    (false, true) => return Ok(pg.homes()),
                    (true, false) => return Err(format!("its copy on device {from} is part of a move already")),
                    (false, false) => {}
                }
            }
            proto::MoveKind::Drain | proto::MoveKind::Balance | proto::MoveKind::Unspecified => {
                self.may_leave(pg, kind, from)?;
            }
        }
        let target = self.devices.get(to).ok_or_else(|| format!("there is no device {to}"))?;
        if !target.alive || target.pool != Some(id.pool) {
            return Err(format!("device {to} is out of service or of another pool"));
        }
        if self.is_in_maintenance(target.sds) {
            return Err(format!("device {to} is on an SDS in maintenance"));
        }
        if target.draining.is_some() {
            return Err(format!("device {to} is being drained"));
        }
        if to == from {
            return Err(format!("device {to} is where that copy is"));
        }
        let others = || pg.replicas.iter().copied().filter(|device| *device != from);
        let domain = self.domain_of(target);
        // I5, of the places of lost copies too: whoever had one may come back to it.
        if let Some(other) = others().find(|other| self.devices.get(*other).map(|d| self.domain_of(d)) == Some(domain))
        {
            return Err(format!("device {to} fails together with device {other}, which has a copy (I5)"));
        }
        let mut homes = pg.homes();
        match kind {
            proto::MoveKind::Lost | proto::MoveKind::NoRoom => homes.replicas[place] = to,
            proto::MoveKind::Drain | proto::MoveKind::Balance | proto::MoveKind::Unspecified => {
                homes.replicas.push(to);
                homes.leaving = Some(from);
            }
        }
        Ok(homes)
    }

    fn is_lost_from(&self, pg: &Pg, from: DeviceId) -> Result<(), String> {
        if pg.config.member(from).is_some() {
            return Err(format!("its copy on device {from} is in sync"));
        }
        if pg.is_complete_on(from) {
            return Err(format!(
                "its copy on device {from} has everything until epoch {} is activated",
                pg.config.epoch
            ));
        }
        if pg.leaving == Some(from) || pg.newcomer() == Some(from) {
            return Err(format!("its copy on device {from} is part of a move already"));
        }
        // A return raises no epoch of a group that it is not in sync in: the planner may not have seen it.
        if self.devices.get(from).is_some_and(|device| device.alive) {
            return Err(format!("device {from} is in service"));
        }
        Ok(())
    }

    /// Whether a copy on a living device is still to be filled.
    fn is_not_filled_on(&self, pg: &Pg, from: DeviceId) -> Result<(), String> {
        if pg.config.member(from).is_some() || pg.is_complete_on(from) {
            return Err(format!("its copy on device {from} has everything"));
        }
        if pg.leaving == Some(from) {
            return Err(format!("its copy on device {from} is part of a move already"));
        }
        if !self.devices.get(from).is_some_and(|device| device.alive) {
            return Err(format!("device {from} is out of service"));
        }
        Ok(())
    }

    /// One command may name a device many times: that is one finding.
    fn had_no_room(&mut self, context: Context, id: DeviceId) {
        if self.devices.get(id).is_some_and(|device| device.without_room(context.log_time).is_none()) {
            self.devices.update(id, |device| device.no_room = Some(NoRoom::again(device.no_room, context.log_time)));
        }
    }

    /// Whether a living copy may go once another one is there.
    fn may_leave(&self, pg: &Pg, kind: proto::MoveKind, from: DeviceId) -> Result<(), String> {
        if pg.leaving.is_some() {
            return Err("another copy of it is moving".to_owned());
        }
        if !pg.config.member(from).is_some_and(|member| self.is_alive(member)) {
            return Err(format!("its copy on device {from} is not in sync or not in service"));
        }
        if !pg.is_whole() {
            return Err("it lacks a copy, which is filled first".to_owned());
        }
        match (kind, self.is_draining(from)) {
            (proto::MoveKind::Drain, false) => Err(format!("device {from} is not being drained")),
            (proto::MoveKind::Balance, true) => Err(format!("device {from} is being drained")),
            _ => Ok(()),
        }
    }

    /// What a device fails together with.
    pub(in crate::state) fn domain_of(&self, device: &Device) -> FaultDomain {
        self.sds.get(device.sds).map_or(FaultDomain::Sds(device.sds), crate::state::model::Sds::fault_domain)
    }
}

const fn moment(context: Context) -> Moment {
    Moment { revision: context.revision, at: context.log_time, wall_ms: context.wall_time_ms }
}
