//! The 10 s health heartbeat: soft state in the leader. Only changes between ACTIVE, STALE and DOWN are logged.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use pflex_proto::ids::SdsId;

use crate::state::model::{Component, Kind, Status};

/// Metrics kept of one report; components send a dozen.
pub(crate) const MAX_METRICS: usize = 256;
/// Metric by which an SDS says how many bytes of its devices are used.
const USED_BYTES: &str = "pflex.sds.used";

/// The last reports. Clones share them.
#[derive(Clone, Default)]
pub struct Reports(Arc<Mutex<BTreeMap<Component, Report>>>);

struct Report {
    at: Instant,
    metrics: BTreeMap<String, f64>,
}

impl Reports {
    /// Keeps a report in the place of the one before.
    pub(crate) fn note(&self, component: Component, metrics: BTreeMap<String, f64>) {
        self.reports().insert(component, Report { at: Instant::now(), metrics });
    }

    /// The metrics of a component's last report.
    pub fn metrics_of(&self, component: Component) -> BTreeMap<String, f64> {
        self.reports().get(&component).map(|report| report.metrics.clone()).unwrap_or_default()
    }

    /// Bytes used on all devices of each SDS, as it reported last.
    pub(crate) fn used_bytes(&self) -> BTreeMap<SdsId, u64> {
        let reports = self.reports();
        let sds = reports.iter().filter(|(component, _)| component.kind == Kind::Sds);
        sds.filter_map(|(component, report)| Some((SdsId(component.id), *report.metrics.get(USED_BYTES)? as u64)))
            .collect()
    }

    /// How the registered components are by their reports; those never heard count from the first look.
    pub(super) fn look(
        &self,
        registered: &[Component],
        stale_after: Duration,
        down_after: Duration,
    ) -> Vec<(Component, Status)> {
        let now = Instant::now();
        let mut reports = self.reports();
        reports.retain(|component, _| registered.contains(component));
        registered
            .iter()
            .map(|component| {
                let report = reports.entry(*component).or_insert_with(|| Report { at: now, metrics: BTreeMap::new() });
                (*component, status_after(now.saturating_duration_since(report.at), stale_after, down_after))
            })
            .collect()
    }

    /// A new leadership: everybody counts from now.
    pub(super) fn reset(&self) {
        let now = Instant::now();
        self.reports().values_mut().for_each(|report| report.at = now);
    }

    fn reports(&self) -> MutexGuard<'_, BTreeMap<Component, Report>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn status_after(silence: Duration, stale_after: Duration, down_after: Duration) -> Status {
    if silence >= down_after {
        Status::Down
    } else if silence >= stale_after {
        Status::Stale
    } else {
        Status::Active
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_becomes_stale_and_then_down() {
        let s = Duration::from_secs;
        let after = |silence| status_after(s(silence), s(30), s(60));
        assert_eq!(
            [after(0), after(29), after(30), after(59), after(60)],
            [Status::Active, Status::Active, Status::Stale, Status::Stale, Status::Down]
        );
    }

    #[test]
    fn used_bytes_are_read_from_metrics_and_strangers_are_forgotten() {
        let reports = Reports::default();
        let sds = Component { kind: Kind::Sds, id: 1 };
        reports.note(sds, [(USED_BYTES.to_owned(), 4096.0), ("load".to_owned(), 0.5)].into());
        reports.note(Component { kind: Kind::Sdc, id: 1 }, [(USED_BYTES.to_owned(), 1.0)].into());
        assert_eq!(reports.used_bytes(), [(SdsId(1), 4096)].into());
        assert!(reports.look(&[], Duration::MAX, Duration::MAX).is_empty());
        assert!(reports.used_bytes().is_empty());
    }
}
