//! Copies that get another place. A command names the moves of one pool and why they are made; each is judged by itself
//! against the epoch that its planner saw (compare-and-set), and one that is accepted raises that epoch.
//!
//! So far one kind: away from a device that is out of service. Such a copy misses writes, and would miss none the less if
//! it came back, so giving up its place costs no redundancy: `in_sync` and the primary stay as they are, and the new
//! device is a joiner, which the primary fills and proposes like any other (S3). What is still in sync never moves this
//! way, alive or not: where no copy is alive, the lost ones are the only ones that have the writes, and they keep their
//! places until one of them is back and serves. Only then the others, which left the in-sync set at that moment, may go.
//!
//! Moves of live copies are to be further kinds: they need both places until the new copy is in sync.

use pflex_proto::ids::{DeviceId, Epoch, PgId, PgIndex, PoolId};

use super::{Effect, Refusal, pg::config_message, validate};
use crate::{
    command::{Answer, ErrorCode, proto},
    placement::FaultDomain,
    state::{State, limits::MAX_MOVES, model::Device},
};

impl State {
    /// All moves of a command, in its order.
    pub(super) fn move_copies(&mut self, command: &proto::MoveCopies) -> Effect {
        let pool = PoolId(command.pool_id);
        let object = self.pools.get(pool).map(|pool| format!("pool {}", pool.name));
        let object = object
            .ok_or_else(|| Refusal::new(ErrorCode::NotFound, format!("pool #{pool}"), "there is no pool of this id"))?;
        match command.kind() {
            proto::MoveKind::Lost => {}
            proto::MoveKind::Unspecified => return Err(validate::invalid(object, "it does not say why copies move")),
        }
        if command.moves.len() > MAX_MOVES {
            return Err(validate::limit(object, MAX_MOVES, "moves in one command"));
        }
        if self.is_recovering() {
            // S19: where copies are is only known at its end.
            return Err(Refusal::new(ErrorCode::Precondition, object, "the recovery after a restore is not over"));
        }
        let results = command.moves.iter().map(|step| {
            let id = PgId { pool, index: PgIndex(step.index) };
            let verdict = self.moved(id, step);
            if let Ok(replicas) = &verdict
                && let Some(config) = self.pgs.get(id).map(|pg| pg.config.clone())
            {
                self.open_epoch_on(id, replicas.clone(), config.in_sync, config.primary);
            }
            proto::ProposalResult {
                accepted: verdict.is_ok(),
                why: verdict.err().unwrap_or_default(),
                current: self.pgs.get(id).map(config_message),
            }
        });
        Ok(Answer::Reconfigured(proto::Reconfigured { results: results.collect() }))
    }

    /// The places of a group's copies after a move, or why it may not be.
    fn moved(&self, id: PgId, step: &proto::CopyMove) -> Result<Vec<DeviceId>, String> {
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
        if pg.config.member(from).is_some() {
            return Err(format!("its copy on device {from} is in sync"));
        }
        // A return raises no epoch of a group that it is not in sync in: the planner may not have seen it.
        if self.devices.get(from).is_some_and(|device| device.alive) {
            return Err(format!("device {from} is in service"));
        }
        if let Some(sds) = self.sds_of(from).filter(|sds| self.is_in_maintenance(*sds)) {
            return Err(format!("{} is in maintenance: its copies keep their places", self.sds_label(sds)));
        }
        let target = self.devices.get(to).ok_or_else(|| format!("there is no device {to}"))?;
        if !target.alive || target.pool != Some(id.pool) {
            return Err(format!("device {to} is out of service or of another pool"));
        }
        if self.is_in_maintenance(target.sds) {
            return Err(format!("device {to} is on an SDS in maintenance"));
        }
        let others = || pg.replicas.iter().copied().filter(|device| *device != from);
        let domain = self.domain_of(target);
        // I5, of the places of lost copies too: whoever had one may come back to it.
        if let Some(other) = others().find(|other| self.devices.get(*other).map(|d| self.domain_of(d)) == Some(domain))
        {
            return Err(format!("device {to} fails together with device {other}, which has a copy (I5)"));
        }
        let mut replicas = pg.replicas.clone();
        replicas[place] = to;
        Ok(replicas)
    }

    /// What a device fails together with.
    pub(in crate::state) fn domain_of(&self, device: &Device) -> FaultDomain {
        self.sds.get(device.sds).map_or(FaultDomain::Sds(device.sds), crate::state::model::Sds::fault_domain)
    }
}
