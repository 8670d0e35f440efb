//! Whose wall clock is off: each component's against the leader's. Pure.
//!
//! Nothing in pflex is decided by a wall clock: log time follows the leader's monotonic clock (S17), leases and time-outs
//! are monotonic (S6). But people read logs and events by it, so a clock that is far off is worth a word. It is judged by
//! health reports, which say what time it was when they were sent. A report takes a while to arrive, so a clock seems to be
//! behind by that; the report that took least of the last [`SAMPLES`] counts. Nothing makes a clock seem to be ahead.

use std::collections::VecDeque;

/// Reports looked at: one that was delayed does no harm.
const SAMPLES: usize = 3;
/// A clock counts as right again within so many quarters of the tolerance, so that one at its edge is not told of for ever.
const RIGHT_AGAIN_QUARTERS: u64 = 3;

/// How far a component's clock seemed to be ahead of the leader's at its last reports, in milliseconds.
#[derive(Clone, Debug, Default)]
pub(super) struct ClockSamples(VecDeque<i64>);

impl ClockSamples {
    /// A report said that it was `theirs` when the leader's clock showed `ours`.
    pub(super) fn note(&mut self, theirs: u64, ours: u64) {
        let ahead = i128::from(theirs) - i128::from(ours);
        if self.0.len() == SAMPLES {
            self.0.pop_front();
        }
        let ahead = i64::try_from(ahead).unwrap_or(if ahead > 0 { i64::MAX } else { i64::MIN });
        self.0.push_back(ahead);
    }

    /// What is to be said of it, if that is something new: how far it is ahead (or, below zero, behind), or none: it is right.
    /// `known` is what was said last. Without a tolerance every clock is right.
    pub(super) fn judge(&self, tolerance_ms: u64, known: Option<i64>) -> Option<Option<i64>> {
        if tolerance_ms == 0 {
            return known.map(|_| None);
        }
        let ahead = self.0.iter().copied().max()?;
        let beyond = ahead.unsigned_abs();
        let is_sure = ahead > 0 || self.0.len() == SAMPLES;
        if beyond > tolerance_ms && is_sure {
            let said_already = known.is_some_and(|known| known.signum() == ahead.signum());
            return (!said_already).then_some(Some(ahead));
        }
        let right = beyond <= tolerance_ms.saturating_mul(RIGHT_AGAIN_QUARTERS) / 4 && self.0.len() == SAMPLES;
        (right && known.is_some()).then_some(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOLERANCE: u64 = 2_000;
    const NOW: u64 = 1_700_000_000_000;

    /// Reports one after the other; what is said after each.
    fn told(reports: &[i64]) -> Vec<Option<Option<i64>>> {
        let (mut samples, mut known) = (ClockSamples::default(), None);
        let say = |ahead: &i64| {
            samples.note(NOW.checked_add_signed(*ahead).unwrap(), NOW);
            let said = samples.judge(TOLERANCE, known);
            known = said.unwrap_or(known);
            said
        };
        reports.iter().map(say).collect()
    }

    #[test]
    fn a_clock_that_is_ahead_is_told_of_at_once_and_once() {
        let ahead = Some(Some(5_000));
        assert_eq!(told(&[0, 5_000, 5_100, 5_200]), [None, ahead, None, None]);
        assert_eq!(told(&[3_600_000])[0], Some(Some(3_600_000)));
        assert_eq!(told(&[2_000, 1_999, -2_000, 0]), [None; 4], "within the tolerance");
    }

    #[test]
    fn a_clock_that_is_behind_is_told_of_when_no_delay_can_be_why() {
        assert_eq!(told(&[-9_000, 0, -9_000, -9_000, 0]), [None; 5], "single reports were late");
        assert_eq!(told(&[-9_000, -9_500, -8_999, -9_000]), [None, None, Some(Some(-8_999)), None]);
    }

    #[test]
    fn a_clock_that_was_set_right_is_told_of_after_three_reports_and_not_at_the_edge() {
        let (ahead, right) = (Some(Some(9_000)), Some(None));
        assert_eq!(told(&[9_000, 10, 10, 10, 10]), [ahead, None, None, right, None]);
        assert_eq!(told(&[9_000, 1_600, 1_900, 1_501, 1_500, 1_500]), [ahead, None, None, None, None, None]);
        assert_eq!(told(&[9_000, 0, 0, -9_000, -9_000, -9_000]), [ahead, None, None, right, None, Some(Some(-9_000))]);
    }

    #[test]
    fn without_a_tolerance_all_are_right() {
        let mut samples = ClockSamples::default();
        samples.note(u64::MAX, 0);
        assert_eq!(samples.judge(0, None), None);
        assert_eq!(samples.judge(0, Some(7)), Some(None));
        assert_eq!(samples.judge(u64::MAX, Some(7)), None);
    }
}
