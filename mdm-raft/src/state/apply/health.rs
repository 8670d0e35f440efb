//! The status of components, how often it changed, and the samples of both.
//!
//! Who keeps failing is taken back later and later (S23): a server that comes and goes costs its groups a resync each
//! time, and the clients a pause. Nobody is kept out whose copy is the only one: then waiting would cost data, not spare
//! work.

use std::collections::BTreeMap;

use pflex_proto::ids::{DeviceId, LogTime, SdsId};

use super::{Context, Effect, Refusal, done, validate};
use crate::{
    command::{ErrorCode, proto},
    state::{
        State,
        limits::{MAX_BATCH, MAX_HEARTBEAT_SAMPLES, MAX_METRIC_SAMPLES, MAX_METRICS_PER_SAMPLE},
        model::{ClusterMetrics, Component, Health, HeartbeatLog, Heartbeats, Kind, Losses, Pg, Setting, Status},
    },
};

impl State {
    /// One transition; refused when the component is not there.
    pub(super) fn set_status(&mut self, context: Context, command: &proto::SetComponentStatus) -> Effect {
        let (component, status, why) = checked(command)?;
        if !self.is_registered(component) {
            let object = format!("{} {}", component.kind, component.id);
            return Err(Refusal::new(ErrorCode::NotFound, object, "it is not registered"));
        }
        self.note_status(context, component, status, why);
        done(component.id)
    }

    /// All transitions of one look.
    pub(super) fn set_statuses(&mut self, context: Context, command: &proto::SetStatuses) -> Effect {
        if command.entries.len() > MAX_BATCH {
            return Err(validate::limit("components", MAX_BATCH, "transitions in one command"));
        }
        let entries = command.entries.iter().map(checked).collect::<Result<Vec<_>, _>>()?;
        for (component, status, why) in entries {
            let lost = component.kind == Kind::Sds && self.sds.get(component.id.into()).is_some_and(|sds| !sds.alive);
            if self.is_registered(component) && !lost {
                self.note_status(context, component, status, why);
            }
        }
        done(0_u64)
    }

    fn is_registered(&self, component: Component) -> bool {
        match component.kind {
            Kind::Sds => self.sds.contains(component.id.into()),
            Kind::Sdc => self.sdcs.contains(component.id.into()),
            Kind::Mdm | Kind::Mgmt => self.nodes.contains(component),
        }
    }

    /// Records a transition; the same status again is none.
    pub(super) fn note_status(&mut self, context: Context, component: Component, status: Status, why: String) {
        let before = self.health.get(component);
        if before.is_some_and(|health| health.status == status) {
            return;
        }
        let was_well = before.is_none_or(|health| health.status == Status::Active);
        let mut losses = before.map(|health| health.losses.clone()).unwrap_or_default();
        // Who is stopped on purpose is not flapping.
        let planned = component.kind == Kind::Sds && self.is_in_maintenance(component.id.into());
        if was_well && status != Status::Active && !planned {
            losses.note(context.log_time);
        }
        let clock_ahead_ms = before.and_then(|health| health.clock_ahead_ms);
        let (since, revision) = (context.log_time, context.revision);
        self.health.put(Health { component, status, since, why, revision, losses, clock_ahead_ms });
    }

    /// Wall clocks that are off, or are right again. Who has gone meanwhile is passed over.
    pub(super) fn judge_clock(&mut self, context: Context, judge: &proto::JudgeClock) -> Effect {
        if judge.verdicts.len() > MAX_BATCH {
            return Err(validate::limit("components", MAX_BATCH, "clocks in one command"));
        }
        let verdict = |v: &proto::ClockVerdict| Ok((Component { kind: validate::kind(v.kind)?, id: v.id }, v.ahead_ms));
        let verdicts = judge.verdicts.iter().map(verdict).collect::<Result<Vec<_>, Refusal>>()?;
        for (component, ahead) in verdicts {
            let ahead = Some(ahead).filter(|ahead| *ahead != 0);
            let known = self.health.get(component);
            if !self.is_registered(component) || known.and_then(|health| health.clock_ahead_ms) == ahead {
                continue;
            }
            let health = known.cloned().unwrap_or_else(|| Health {
                component,
                status: Status::Active,
                since: context.log_time,
                why: String::new(),
                revision: context.revision,
                losses: Losses::default(),
                clock_ahead_ms: None,
            });
            self.health.put(Health { clock_ahead_ms: ahead, ..health });
        }
        done(0_u64)
    }

    /// A device was lost by itself.
    pub(super) fn note_device_loss(&mut self, context: Context, device: DeviceId) {
        self.devices.update(device, |device| device.losses.note(context.log_time));
    }

    /// Until when an SDS is kept out; none when it may be taken back now.
    pub fn sds_kept_out(&self, id: SdsId, now: LogTime) -> Option<LogTime> {
        let health = self.health.get(Component { kind: Kind::Sds, id: id.get() })?;
        let until = self.kept_out(&health.losses, now)?;
        (!self.is_last_hope(|pg| pg.complete().iter().any(|member| member.sds == id))).then_some(until)
    }

    /// As of an SDS: a device that fails by itself.
    pub fn device_kept_out(&self, id: DeviceId, now: LogTime) -> Option<LogTime> {
        let until = self.kept_out(&self.devices.get(id)?.losses, now)?;
        (!self.is_last_hope(|pg| pg.is_complete_on(id))).then_some(until)
    }

    fn kept_out(&self, losses: &Losses, now: LogTime) -> Option<LogTime> {
        // After a restore everybody is waited for.
        if self.is_recovering() {
            return None;
        }
        losses.kept_out_until(self.settings().get(Setting::ReadmissionMost)).filter(|until| now < *until)
    }

    /// Whether one of these groups has no live in-sync copy.
    fn is_last_hope(&self, wanted: impl Fn(&Pg) -> bool) -> bool {
        let lost = |pg: &Pg| !pg.config.in_sync.iter().any(|member| self.is_alive(member));
        self.pgs.values().any(|pg| wanted(pg) && lost(pg))
    }

    /// Keeps a sample of all components and of the sums, and forgets the oldest. Not an event: it is its own record.
    pub(super) fn record_sample(&mut self, context: Context, command: &proto::RecordSample) -> Effect {
        if command.heartbeats.len() > MAX_BATCH {
            return Err(validate::limit("sample", MAX_BATCH, "components in one sample"));
        }
        if command.metrics.len() > MAX_METRICS_PER_SAMPLE {
            return Err(validate::limit("sample", MAX_METRICS_PER_SAMPLE, "metrics in one sample"));
        }
        let mut samples = Vec::with_capacity(command.heartbeats.len());
        for row in &command.heartbeats {
            samples.push(Heartbeats {
                component: Component { kind: validate::kind(row.kind)?, id: row.id },
                reports: row.reports,
                longest_gap_ms: row.longest_gap_ms,
                silent_ms: row.silent_ms,
            });
        }
        let mut values = BTreeMap::new();
        for metric in &command.metrics {
            values.insert(validate::text("sample", "metric name", &metric.name)?, metric.value);
        }
        let (revision, at, at_wall_ms) = (context.revision, context.log_time, context.wall_time_ms);
        self.heartbeats.put(HeartbeatLog { revision, at, at_wall_ms, samples });
        self.metrics.put(ClusterMetrics { revision, at, at_wall_ms, values });
        while self.heartbeats.len() > MAX_HEARTBEAT_SAMPLES {
            let Some(oldest) = self.heartbeats.values().next().map(|sample| sample.revision) else { break };
            self.heartbeats.remove(oldest);
        }
        while self.metrics.len() > MAX_METRIC_SAMPLES {
            let Some(oldest) = self.metrics.values().next().map(|sample| sample.revision) else { break };
            self.metrics.remove(oldest);
        }
        done(0_u64)
    }
}

fn checked(command: &proto::SetComponentStatus) -> Result<(Component, Status, String), Refusal> {
    let component = Component { kind: validate::kind(command.kind)?, id: command.id };
    let object = format!("{} {}", component.kind, component.id);
    let status = match proto::Status::try_from(command.status) {
        Ok(proto::Status::Active) => Status::Active,
        Ok(proto::Status::Stale) => Status::Stale,
        Ok(proto::Status::Down) => Status::Down,
        Ok(proto::Status::Unspecified) | Err(_) => {
            return Err(validate::invalid(object, format!("{} is no status", command.status)));
        }
    };
    Ok((component, status, validate::text(&object, "reason", &command.why)?))
}
