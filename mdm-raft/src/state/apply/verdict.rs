//! The leader's verdicts on SDSs: which are lost, wholly or some of their devices, and which are heard again (S23).
//!
//! All verdicts of one look come in one command. Each names the process it is about, and is accepted or refused by
//! itself. Those that are accepted take effect together, in three steps: who is lost, then who may come back, then every
//! group that any of it touches follows once. So no group moves to a server that the same look found lost: where both
//! copies went at once, both stay in sync, and whichever returns first serves.

use std::collections::BTreeSet;

use pflex_proto::ids::{DeviceId, Incarnation, SdsId};

use super::{Context, Effect, Refusal, done, validate};
use crate::{
    command::{Answer, ErrorCode, proto},
    state::{
        State,
        limits::MAX_VERDICTS,
        model::{Component, Kind, Status},
    },
};

pub(super) use proto::sds_verdict::Verdict;

use super::pg::Restarts;

impl Verdict {
    /// Whom it is about.
    pub(super) const fn sds(&self) -> SdsId {
        match self {
            Self::Lost(lost) => SdsId(lost.sds_id),
            Self::Returned(returned) => SdsId(returned.sds_id),
        }
    }

    fn process(&self) -> &[u8] {
        match self {
            Self::Lost(lost) => &lost.process_id,
            Self::Returned(returned) => &returned.process_id,
        }
    }
}

impl State {
    /// All verdicts of one look.
    pub(super) fn judge_sds(&mut self, context: Context, judge: &proto::JudgeSds) -> Effect {
        if judge.verdicts.len() > MAX_VERDICTS {
            return Err(validate::limit("cluster", MAX_VERDICTS, "verdicts in one command"));
        }
        let verdicts: Vec<Option<&Verdict>> = judge.verdicts.iter().map(|verdict| verdict.verdict.as_ref()).collect();
        let results = self.carry_out(context, &verdicts).into_iter().map(|result| proto::VerdictResult {
            error: result.err().map(|refusal| proto::Error {
                code: refusal.code.into(),
                what: refusal.what,
                object: refusal.object,
            }),
        });
        Ok(Answer::Judged(proto::Judged { results: results.collect() }))
    }

    /// A verdict of its own: the named device lives are lost.
    pub(super) fn sds_lost(&mut self, context: Context, lost: &proto::SdsLost) -> Effect {
        self.carry_out_one(context, &Verdict::Lost(lost.clone()))
    }

    /// A verdict of its own: the same process is heard again.
    pub(super) fn sds_returned(&mut self, context: Context, returned: &proto::SdsReturned) -> Effect {
        self.carry_out_one(context, &Verdict::Returned(returned.clone()))
    }

    fn carry_out_one(&mut self, context: Context, verdict: &Verdict) -> Effect {
        let results = self.carry_out(context, &[Some(verdict)]);
        results.into_iter().collect::<Result<Vec<()>, Refusal>>()?;
        done(verdict.sds().get())
    }

    /// Executes verdicts together; each of the results is about the verdict in its place.
    fn carry_out(&mut self, context: Context, verdicts: &[Option<&Verdict>]) -> Vec<Result<(), Refusal>> {
        let mut named = BTreeSet::new();
        let mut results: Vec<Result<(), Refusal>> =
            verdicts.iter().map(|verdict| self.may_stand(*verdict, &mut named)).collect();
        let mut touched = BTreeSet::new();
        for (verdict, result) in verdicts.iter().zip(&results) {
            if let (Some(Verdict::Lost(lost)), Ok(())) = (verdict, result) {
                touched.extend(self.lose(context, lost));
            }
        }
        // Whose copy is the last there is, is asked of the state without those that were lost, and before anybody is
        // back: it must not depend on the order of the verdicts.
        let mut back = Vec::new();
        for (verdict, result) in verdicts.iter().zip(&mut results) {
            if let (Some(Verdict::Returned(returned)), Ok(())) = (verdict, &result) {
                match self.readmitted(context, returned) {
                    Ok(devices) => back.push((SdsId(returned.sds_id), devices)),
                    Err(refusal) => *result = Err(refusal),
                }
            }
        }
        for (sds, devices) in back {
            self.take_back(context, sds, &devices);
            touched.extend(devices);
        }
        if !touched.is_empty() {
            self.settle_pgs(&touched, &Restarts::new());
        }
        results
    }

    /// Whether a verdict is about the process that runs now, and the only one of its command about it.
    fn may_stand(&self, verdict: Option<&Verdict>, named: &mut BTreeSet<SdsId>) -> Result<(), Refusal> {
        let verdict = verdict.ok_or_else(|| validate::invalid("verdict", "it says nothing"))?;
        let object = format!("sds {}", verdict.sds());
        if !named.insert(verdict.sds()) {
            return Err(validate::invalid(object, "it is judged twice in one command"));
        }
        self.registered_process(verdict.sds(), verdict.process())?;
        if let Verdict::Lost(lost) = verdict {
            validate::text(&object, "reason", &lost.why)?;
        }
        Ok(())
    }

    /// Takes an SDS, or some devices of it, out of service; returns the devices.
    fn lose(&mut self, context: Context, lost: &proto::SdsLost) -> BTreeSet<DeviceId> {
        let id = SdsId(lost.sds_id);
        let mut devices = self.present_lives(id, &lost.devices);
        if lost.whole {
            // The process that was lost had all of them open: a registration lists every open device.
            devices.extend(self.devices_of(id).map(|device| device.id));
            self.sds.update(id, |sds| {
                sds.alive = false;
                sds.proven_dead |= lost.proven_dead;
            });
            self.note_status(context, Component { kind: Kind::Sds, id: id.get() }, Status::Down, lost.why.clone());
        }
        for device in &devices {
            let was_alive = self.devices.get(*device).is_some_and(|device| device.alive);
            self.devices.update(*device, |device| device.serve(false, context.log_time));
            if was_alive && !lost.whole && !self.is_in_maintenance(id) {
                self.note_device_loss(context, *device);
            }
        }
        devices
    }

    /// What an SDS that is heard again has open and may serve; refused while it is kept out because it fails too often.
    fn readmitted(&self, context: Context, returned: &proto::SdsReturned) -> Result<BTreeSet<DeviceId>, Refusal> {
        let id = SdsId(returned.sds_id);
        let alive = self.sds.get(id).is_some_and(|sds| sds.alive);
        if let Some(until) = self.sds_kept_out(id, context.log_time).filter(|_| !alive) {
            let what = format!("it was lost too often lately, and is taken back at log time {until}");
            return Err(Refusal::new(ErrorCode::Precondition, self.sds_label(id), what));
        }
        let mut devices = self.present_lives(id, &returned.devices);
        devices.retain(|device| self.device_kept_out(*device, context.log_time).is_none());
        Ok(devices)
    }

    fn take_back(&mut self, context: Context, id: SdsId, devices: &BTreeSet<DeviceId>) {
        self.sds.update(id, |sds| {
            sds.alive = true;
            sds.proven_dead = false;
        });
        let component = Component { kind: Kind::Sds, id: id.get() };
        self.note_status(context, component, Status::Active, "heard again".to_owned());
        for device in devices {
            self.devices.update(*device, |device| device.serve(true, context.log_time));
        }
    }

    /// The named devices of an SDS that are still in the named life.
    fn present_lives(&self, sds: SdsId, lives: &[proto::DeviceLife]) -> BTreeSet<DeviceId> {
        lives
            .iter()
            .filter_map(|life| {
                let device = self.devices.get(DeviceId(life.device_id))?;
                // One that has not reported since a restore comes back by a registration only (S19).
                let present =
                    device.sds == sds && device.incarnation == Incarnation(life.incarnation) && !device.awaited;
                present.then_some(device.id)
            })
            .collect()
    }
}
