//! How components are, and how often they were not well lately.

use std::fmt;

use pflex_proto::ids::{LogTime, Revision};

use super::Component;

/// Losses remembered of one thing: counters end here.
pub const MAX_LOSSES_KEPT: usize = 128;
/// The windows of the counters: a minute, an hour, a day.
pub const LOSS_WINDOWS_MS: [u64; 3] = [60_000, 3_600_000, 86_400_000];
/// So many losses within an hour are bad luck, and cost no waiting.
const FREE_LOSSES: u32 = 3;
/// What the next one costs; each further one twice as much.
const FIRST_WAIT_MS: u64 = 1_000;

/// How a component is, as its heartbeats tell; only transitions are logged.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Status {
    /// Heard recently.
    Active,
    /// Late.
    Stale,
    /// Silent for long, or lost.
    Down,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Active => "ACTIVE",
            Self::Stale => "STALE",
            Self::Down => "DOWN",
        })
    }
}

/// The last status transition of a component.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Health {
    /// Whose.
    pub component: Component,
    /// What it became.
    pub status: Status,
    /// When.
    pub since: LogTime,
    /// Why, for people.
    pub why: String,
    /// The command that said so. 0 in rows of before it was noted.
    pub revision: Revision,
    /// When it stopped being ACTIVE.
    pub losses: Losses,
    /// By how many milliseconds its wall clock is ahead of the leader's, below zero behind; none: by no more than is tolerated.
    pub clock_ahead_ms: Option<i64>,
}

/// How a clock is off that is so many milliseconds ahead of the leader's, or behind below zero.
pub fn clock_words(ahead_ms: i64) -> String {
    let (ms, side) = (ahead_ms.unsigned_abs(), if ahead_ms > 0 { "ahead of" } else { "behind" });
    let (s, tenths) = (ms / 1_000, ms % 1_000 / 100);
    format!("its clock is {s}.{tenths} s {side} the leader's; IO goes on, and times in its log are not to be compared")
}

/// When something was lost lately, in log time: what its oscillation counters and its way back follow from (S23).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Losses(Vec<LogTime>);

impl From<Vec<LogTime>> for Losses {
    fn from(times: Vec<LogTime>) -> Self {
        Self(times)
    }
}

impl Losses {
    /// The newest last.
    pub fn times(&self) -> &[LogTime] {
        &self.0
    }

    /// It was lost now. What is older than the longest window, or too much, is forgotten.
    pub fn note(&mut self, now: LogTime) {
        self.0.retain(|at| now.get().saturating_sub(at.get()) <= LOSS_WINDOWS_MS[2]);
        self.0.push(now);
        let over = self.0.len().saturating_sub(MAX_LOSSES_KEPT);
        self.0.drain(..over);
    }

    /// How many in the minute, hour and day before `now`.
    pub fn counts(&self, now: LogTime) -> [u32; 3] {
        LOSS_WINDOWS_MS
            .map(|window| self.0.iter().filter(|at| now.get().saturating_sub(at.get()) <= window).count() as u32)
    }

    /// Until when it is kept out after its last loss: not at all for a few losses within an hour, then a second, doubled
    /// with each further one, `most_ms` at most. It follows from the past alone, so every member agrees.
    pub fn kept_out_until(&self, most_ms: u64) -> Option<LogTime> {
        let last = *self.0.last()?;
        let [_, within_an_hour, _] = self.counts(last);
        let beyond = within_an_hour.checked_sub(FREE_LOSSES + 1)?;
        let wait = FIRST_WAIT_MS.checked_shl(beyond).filter(|_| beyond < 32).unwrap_or(u64::MAX).min(most_ms);
        (wait > 0).then(|| LogTime(last.get().saturating_add(wait)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lost_each(step_ms: u64, times: u64) -> Losses {
        let mut losses = Losses::default();
        (1..=times).for_each(|n| losses.note(LogTime(n * step_ms)));
        losses
    }

    #[test]
    fn waits_double_from_the_fourth_loss_of_an_hour_up_to_the_most() {
        let wait = |times| {
            let losses = lost_each(10_000, times);
            losses.kept_out_until(300_000).map(|until| until.get() - times * 10_000)
        };
        assert_eq!(
            [1, 3, 4, 5, 6, 12, 13, 100].map(wait).map(Option::unwrap_or_default),
            [0, 0, 1_000, 2_000, 4_000, 256_000, 300_000, 300_000]
        );
        assert_eq!(lost_each(3_600_001, 50).kept_out_until(300_000), None, "one an hour is no flapping");
        assert_eq!(lost_each(1_000, 50).kept_out_until(0), None, "switched off");
        assert_eq!(Losses::default().kept_out_until(300_000), None);
    }

    #[test]
    fn what_is_remembered_is_bounded_in_number_and_age() {
        let many = lost_each(1, 1_000);
        assert_eq!(many.times().len(), MAX_LOSSES_KEPT);
        assert_eq!(many.counts(LogTime(1_000)), [128; 3]);
        assert_eq!(many.counts(LogTime(1_000 + 3_600_000)), [0, 1, 128]);
        let mut old = lost_each(1, 5);
        old.note(LogTime(86_400_004));
        assert_eq!(old.times(), [LogTime(4), LogTime(5), LogTime(86_400_004)]);
    }
}
