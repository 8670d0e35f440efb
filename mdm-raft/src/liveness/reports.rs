//! The 10 s health heartbeat: soft state in the leader. Only changes between ACTIVE, STALE and DOWN are logged, and samples.
//!
//! `Board` is pure, time comes in; `Reports` is the board behind its lock.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use pflex_proto::ids::{ProcessId, SdsId};

use super::clocks::ClockSamples;
use crate::state::model::{Component, Kind, Status};

/// Metrics kept of one report; components send a dozen.
pub(crate) const MAX_METRICS: usize = 256;
/// Metric by which an SDS says how many bytes of its devices are used.
const USED_BYTES: &str = "pflex.sds.used";

/// How a component is by its reports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Verdict {
    pub(super) component: Component,
    pub(super) status: Status,
    /// In this leadership: of the others only their silence is known.
    pub(super) heard: bool,
}

/// How a component reported since the last sample.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Sampled {
    pub(super) component: Component,
    pub(super) reports: u32,
    pub(super) longest_gap: Duration,
    pub(super) silent: Duration,
}

/// The last reports. Clones share them.
#[derive(Clone, Default)]
pub struct Reports(Arc<Mutex<Board>>);

#[derive(Default)]
struct Board(BTreeMap<Component, Report>);

struct Report {
    /// Whose it is, as registered; none until the first look.
    process: Option<ProcessId>,
    at: Instant,
    heard: bool,
    metrics: BTreeMap<String, f64>,
    clock: ClockSamples,
    /// Since the last sample.
    reports: u32,
    longest_gap: Duration,
}

impl Report {
    fn new(now: Instant) -> Self {
        let (metrics, longest_gap) = (BTreeMap::new(), Duration::ZERO);
        let clock = ClockSamples::default();
        Self { process: None, at: now, heard: false, metrics, clock, reports: 0, longest_gap }
    }

    fn silence(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.at)
    }
}

impl Board {
    fn note(&mut self, now: Instant, component: Component, metrics: BTreeMap<String, f64>) {
        let report = self.0.entry(component).or_insert_with(|| Report::new(now));
        report.longest_gap = report.longest_gap.max(report.silence(now));
        report.at = now;
        report.heard = true;
        report.metrics = metrics;
        report.reports = report.reports.saturating_add(1);
    }

    fn look(
        &mut self,
        now: Instant,
        registered: &[(Component, ProcessId)],
        stale_after: Duration,
        down_after: Duration,
    ) -> Vec<Verdict> {
        let known: BTreeMap<Component, ProcessId> = registered.iter().copied().collect();
        self.0.retain(|component, _| known.contains_key(component));
        let verdict = |(component, process): (Component, ProcessId)| {
            let report = self.0.entry(component).or_insert_with(|| Report::new(now));
            // A new process: its registration was a sign of life, and its first report is on its way.
            if report.process.is_some_and(|before| before != process) {
                (report.at, report.heard) = (now, true);
            }
            report.process = Some(process);
            let status = status_after(report.silence(now), stale_after, down_after);
            Verdict { component, status, heard: report.heard }
        };
        known.into_iter().map(verdict).collect()
    }

    fn sample(&mut self, now: Instant) -> Vec<Sampled> {
        let sampled = |(component, report): (&Component, &mut Report)| {
            let silent = report.silence(now);
            let longest_gap = std::mem::take(&mut report.longest_gap).max(silent);
            Sampled { component: *component, reports: std::mem::take(&mut report.reports), longest_gap, silent }
        };
        self.0.iter_mut().map(sampled).collect()
    }

    /// A new leadership: everybody counts from now, and nobody was heard.
    fn reset(&mut self, now: Instant) {
        for report in self.0.values_mut() {
            *report = Report { metrics: std::mem::take(&mut report.metrics), ..Report::new(now) };
        }
    }
}

impl Reports {
    /// A report said that it was `theirs` when the clock here showed `ours`.
    pub(crate) fn note_clock(&self, component: Component, theirs: u64, ours: u64) {
        if let Some(report) = self.board().0.get_mut(&component) {
            report.clock.note(theirs, ours);
        }
    }

    /// What is to be said of clocks, see [`ClockSamples::judge`].
    pub(super) fn judge_clocks(
        &self,
        tolerance_ms: u64,
        known: impl Fn(Component) -> Option<i64>,
    ) -> Vec<(Component, Option<i64>)> {
        let board = self.board();
        let judged = |(component, report): (&Component, &Report)| {
            Some((*component, report.clock.judge(tolerance_ms, known(*component))?))
        };
        board.0.iter().filter_map(judged).collect()
    }

    /// Keeps a report in the place of the one before.
    pub(crate) fn note(&self, component: Component, metrics: BTreeMap<String, f64>) {
        self.board().note(Instant::now(), component, metrics);
    }

    /// The metrics of a component's last report.
    pub fn metrics_of(&self, component: Component) -> BTreeMap<String, f64> {
        self.board().0.get(&component).map(|report| report.metrics.clone()).unwrap_or_default()
    }

    /// How long ago a component reported; none of one that has not in this leadership.
    pub(crate) fn silence(&self, component: Component) -> Option<Duration> {
        let board = self.board();
        board.0.get(&component).filter(|report| report.heard).map(|report| report.silence(Instant::now()))
    }

    /// Bytes used on all devices of each SDS, as it reported last.
    pub(crate) fn used_bytes(&self) -> BTreeMap<SdsId, u64> {
        let board = self.board();
        let sds = board.0.iter().filter(|(component, _)| component.kind == Kind::Sds);
        sds.filter_map(|(component, report)| Some((SdsId(component.id), *report.metrics.get(USED_BYTES)? as u64)))
            .collect()
    }

    /// Each metric summed over all components, in whole numbers.
    pub(super) fn sums(&self) -> BTreeMap<String, u64> {
        let mut sums: BTreeMap<String, f64> = BTreeMap::new();
        for (name, value) in self.board().0.values().flat_map(|report| &report.metrics) {
            *sums.entry(name.clone()).or_default() += value;
        }
        sums.into_iter().map(|(name, sum)| (name, sum as u64)).collect()
    }

    /// How the registered components are by their reports; those never heard count from the first look.
    pub(super) fn look(
        &self,
        registered: &[(Component, ProcessId)],
        stale_after: Duration,
        down_after: Duration,
    ) -> Vec<Verdict> {
        self.board().look(Instant::now(), registered, stale_after, down_after)
    }

    /// How they reported since the last sample.
    pub(super) fn sample(&self) -> Vec<Sampled> {
        self.board().sample(Instant::now())
    }

    /// See [`Board::reset`].
    pub(super) fn reset(&self) {
        self.board().reset(Instant::now());
    }

    fn board(&self) -> MutexGuard<'_, Board> {
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

    const STALE: Duration = Duration::from_secs(30);
    const DOWN: Duration = Duration::from_secs(60);
    const SDC: Component = Component { kind: Kind::Sdc, id: 1 };

    fn process(n: u8) -> ProcessId {
        ProcessId::from_bytes([n; 16])
    }

    fn look(board: &mut Board, now: Instant, n: u8) -> (Status, bool) {
        let verdicts = board.look(now, &[(SDC, process(n))], STALE, DOWN);
        assert_eq!(verdicts.len(), 1);
        (verdicts[0].status, verdicts[0].heard)
    }

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
    fn who_was_not_heard_since_the_leader_changed_is_not_taken_for_well() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let mut board = Board::default();
        assert_eq!(look(&mut board, at(0), 1), (Status::Active, false), "nothing is known yet");
        assert_eq!(look(&mut board, at(70), 1), (Status::Down, false), "silence is known");
        board.note(at(71), SDC, BTreeMap::new());
        assert_eq!(look(&mut board, at(72), 1), (Status::Active, true));
        assert_eq!(look(&mut board, at(102), 1), (Status::Stale, true));
        board.reset(at(103));
        assert_eq!(look(&mut board, at(104), 1), (Status::Active, false), "grace, and no news");
    }

    #[test]
    fn a_new_process_is_not_judged_by_the_silence_of_the_one_before() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let mut board = Board::default();
        board.note(at(0), SDC, BTreeMap::new());
        assert_eq!(look(&mut board, at(61), 1), (Status::Down, true));
        assert_eq!(look(&mut board, at(62), 2), (Status::Active, true), "it has just registered");
        assert_eq!(look(&mut board, at(92), 2), (Status::Stale, true), "and never reported");
    }

    #[test]
    fn a_sample_counts_reports_and_remembers_the_longest_gap() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let mut board = Board::default();
        [0, 10, 35, 45].into_iter().for_each(|s| board.note(at(s), SDC, BTreeMap::new()));
        let s = Duration::from_secs;
        assert_eq!(board.sample(at(50)), [Sampled { component: SDC, reports: 4, longest_gap: s(25), silent: s(5) }]);
        assert_eq!(board.sample(at(110)), [Sampled { component: SDC, reports: 0, longest_gap: s(65), silent: s(65) }]);
    }

    #[test]
    fn used_bytes_are_read_from_metrics_and_strangers_are_forgotten() {
        let reports = Reports::default();
        let sds = Component { kind: Kind::Sds, id: 1 };
        reports.note(sds, [(USED_BYTES.to_owned(), 4096.0), ("load".to_owned(), 0.5)].into());
        reports.note(Component { kind: Kind::Sdc, id: 1 }, [(USED_BYTES.to_owned(), 1.0)].into());
        assert_eq!(reports.used_bytes(), [(SdsId(1), 4096)].into());
        assert_eq!(reports.sums(), [(USED_BYTES.to_owned(), 4097), ("load".to_owned(), 0)].into());
        assert!(reports.look(&[], Duration::MAX, Duration::MAX).is_empty());
        assert!(reports.used_bytes().is_empty());
    }
}
