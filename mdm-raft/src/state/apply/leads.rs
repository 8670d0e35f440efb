//! Leads that go to another in-sync copy, because servers that returned or came lead too little. Both copies have every
//! acknowledged write, so nothing is copied; the new primary waits for what it granted the old one, which hands it back at
//! once (S6). Who leads what is the planner's (`liveness::leads`); here each move is judged by itself, in the log's order.

use pflex_proto::ids::{DeviceId, Epoch, PgId, PgIndex, PoolId};

use super::{Effect, Refusal, pg::config_message, validate};
use crate::{
    command::{Answer, ErrorCode, proto},
    state::{State, limits::MAX_MOVES},
};

impl State {
    /// All moves of a command, in its order.
    pub(super) fn move_leads(&mut self, command: &proto::MoveLeads) -> Effect {
        let pool = PoolId(command.pool_id);
        let object = self.pools.get(pool).map(|pool| format!("pool {}", pool.name));
        let object = object
            .ok_or_else(|| Refusal::new(ErrorCode::NotFound, format!("pool #{pool}"), "there is no pool of this id"))?;
        if command.moves.len() > MAX_MOVES {
            return Err(validate::limit(object, MAX_MOVES, "moves in one command"));
        }
        let results = command.moves.iter().map(|step| {
            let id = PgId { pool, index: PgIndex(step.index) };
            let verdict = self.leads_next(id, step);
            if let Ok(primary) = verdict
                && let Some(in_sync) = self.pgs.get(id).map(|pg| pg.config.in_sync.clone())
            {
                self.open_epoch(id, in_sync, Some(primary));
            }
            proto::ProposalResult {
                accepted: verdict.is_ok(),
                why: verdict.err().unwrap_or_default(),
                current: self.pgs.get(id).map(config_message),
            }
        });
        Ok(Answer::Reconfigured(proto::Reconfigured { results: results.collect() }))
    }

    /// Who leads a group after a move, or why it may not.
    fn leads_next(&self, id: PgId, step: &proto::LeadMove) -> Result<DeviceId, String> {
        let pg = self.pgs.get(id).ok_or_else(|| "there is no such placement group".to_owned())?;
        let (config, to) = (&pg.config, DeviceId(step.to_device_id));
        if config.epoch != Epoch(step.expected_epoch) {
            return Err(format!("the epoch is {}, not {}", config.epoch, step.expected_epoch));
        }
        match config.primary {
            // Also during a recovery (S19), and while it is frozen (S12).
            None => return Err("nobody serves it".to_owned()),
            Some(primary) if primary == to => return Err(format!("device {to} leads it already")),
            Some(_) => {}
        }
        let member = config.member(to).ok_or_else(|| format!("its copy on device {to} is not in sync"))?;
        if !self.is_alive(member) {
            return Err(format!("{member} is out of service"));
        }
        if self.is_in_maintenance(member.sds) {
            return Err(format!("{} is in maintenance", self.sds_label(member.sds)));
        }
        Ok(to)
    }
}
