//! What the leader logs of the health reports: transitions, all of one look in one command, and samples.

use std::{collections::BTreeMap, time::Duration};

use pflex_proto::ids::ProcessId;

use super::{Reports, reports::Verdict};
use crate::{
    command::{Body, proto},
    raft::RaftGroup,
    state::{
        State,
        limits::{MAX_BATCH, MAX_METRICS_PER_SAMPLE},
        model::{Component, Kind, Setting, Status},
    },
};

/// Samples are never taken more often: each is a log entry with every component in it.
const LEAST_SAMPLE_MS: u64 = 10_000;

/// Components whose reports say something else than the last logged status.
pub(super) fn transitions(group: &RaftGroup, reports: &Reports) -> Option<Body> {
    // One look at the state: what is compared is of one moment.
    let (_, changed) = group.read_stale(|state| {
        let settings = state.settings();
        let after = |setting| Duration::from_millis(settings.get(setting));
        let verdicts = reports.look(&registered(state), after(Setting::HealthStale), after(Setting::HealthDown));
        changes(state, verdicts)
    });
    let entries: Vec<_> = changed.into_iter().take(MAX_BATCH).map(entry).collect();
    (!entries.is_empty()).then_some(Body::SetStatuses(proto::SetStatuses { entries }))
}

/// Wall clocks of which something new is to be said.
pub(super) fn clocks(group: &RaftGroup, reports: &Reports) -> Option<Body> {
    let (_, judged) = group.read_stale(|state| {
        let tolerance = state.settings().get(Setting::ClockTolerance);
        reports.judge_clocks(tolerance, |component| state.health_of(component).and_then(|health| health.clock_ahead_ms))
    });
    let verdict = |(component, ahead): (Component, Option<i64>)| proto::ClockVerdict {
        kind: kind(component.kind).into(),
        id: component.id,
        ahead_ms: ahead.unwrap_or(0),
    };
    let verdicts: Vec<_> = judged.into_iter().take(MAX_BATCH).map(verdict).collect();
    (!verdicts.is_empty()).then_some(Body::JudgeClock(proto::JudgeClock { verdicts }))
}

/// Everybody who ever registered, and the process that did last.
fn registered(state: &State) -> Vec<(Component, ProcessId)> {
    let sds = state.all_sds().map(|sds| (Kind::Sds, sds.id.get(), sds.registration.as_ref()));
    let sdcs = state.all_sdcs().map(|sdc| (Kind::Sdc, sdc.id.get(), sdc.registration.as_ref()));
    let components =
        sds.chain(sdcs).filter_map(|(kind, id, registration)| Some((Component { kind, id }, registration?.process)));
    components.chain(state.all_nodes().map(|node| (node.component, node.registration.process))).collect()
}

/// The verdicts that differ from what is logged. An SDS is judged by its beats, each second: a lost one is no business of
/// its reports, and one that beats is late at most.
fn changes(state: &State, verdicts: Vec<Verdict>) -> Vec<(Component, Status)> {
    let differs = |verdict: Verdict| {
        let component = verdict.component;
        let mut status = verdict.status;
        if component.kind == Kind::Sds {
            if !state.sds(component.id.into())?.alive {
                return None;
            }
            status = status.min(Status::Stale);
        }
        let logged = state.health_of(component).map_or(Status::Active, |health| health.status);
        // Who was not heard in this leadership may have got worse, never better.
        let known = verdict.heard || status > logged;
        (known && status != logged).then_some((component, status))
    };
    verdicts.into_iter().filter_map(differs).collect()
}

fn entry((component, status): (Component, Status)) -> proto::SetComponentStatus {
    let (status, why) = match status {
        Status::Active => (proto::Status::Active, "reports again"),
        Status::Stale => (proto::Status::Stale, "its health reports are late"),
        Status::Down => (proto::Status::Down, "its health reports stopped"),
    };
    proto::SetComponentStatus {
        kind: kind(component.kind).into(),
        id: component.id,
        status: status.into(),
        why: why.to_owned(),
    }
}

const fn kind(kind: Kind) -> proto::Kind {
    match kind {
        Kind::Mdm => proto::Kind::Mdm,
        Kind::Sds => proto::Kind::Sds,
        Kind::Sdc => proto::Kind::Sdc,
        Kind::Mgmt => proto::Kind::Mgmt,
    }
}

/// A sample, when the last one is old enough; by log time, so that a new leader goes on where the last one was.
pub(super) fn sample(group: &RaftGroup, reports: &Reports) -> Option<Body> {
    let now = group.log_time().get();
    let (_, (due, mut sums)) = group.read_stale(|state| {
        let every = state.settings().get(Setting::HealthSample);
        let last = state.metrics_newest_first().next().map_or(0, |sample| sample.at.get());
        let due = every > 0 && (last == 0 || now.saturating_sub(last) >= every.max(LEAST_SAMPLE_MS));
        (due, if due { sums(state, reports) } else { BTreeMap::new() })
    });
    if !due {
        return None;
    }
    sums.extend(reports.sums());
    let metrics = sums.into_iter().take(MAX_METRICS_PER_SAMPLE);
    let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let heartbeats = reports.sample().into_iter().take(MAX_BATCH).map(|sampled| proto::HeartbeatSample {
        kind: kind(sampled.component.kind).into(),
        id: sampled.component.id,
        reports: sampled.reports,
        longest_gap_ms: ms(sampled.longest_gap),
        silent_ms: ms(sampled.silent),
    });
    Some(Body::RecordSample(proto::RecordSample {
        heartbeats: heartbeats.collect(),
        metrics: metrics.map(|(name, value)| proto::MetricSample { name, value }).collect(),
    }))
}

/// What the state says of the cluster as a whole.
fn sums(state: &State, reports: &Reports) -> BTreeMap<String, u64> {
    let mut sums: BTreeMap<String, u64> = BTreeMap::new();
    let mut add = |name: &str, value: u64| *sums.entry(name.to_owned()).or_default() += value;
    let used = reports.used_bytes();
    for pool in state.all_pools() {
        let usage = state.usage_of(pool);
        add("cluster.capacity_bytes", usage.capacity.get());
        add("cluster.provisioned_bytes", usage.provisioned.get());
        add("cluster.used_bytes", crate::api::used_of(state, pool, &used));
        add("cluster.pgs", pool.pg_count.into());
        add("cluster.pgs_degraded", usage.degraded.into());
        add("cluster.pgs_unavailable", usage.unavailable.into());
    }
    for (component, _) in registered(state) {
        let status = state.health_of(component).map_or(Status::Active, |health| health.status);
        add(
            match status {
                Status::Active => "cluster.components_active",
                Status::Stale => "cluster.components_stale",
                Status::Down => "cluster.components_down",
            },
            1,
        );
    }
    sums
}
