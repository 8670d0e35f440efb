//! Pauses between attempts that keep failing: 1 s, doubling to 60 s, each shortened by up to a quarter at random, so that the
//! groups of a device that is full do not all come back at the same moment.

use std::time::Duration;

use super::limits::{JOIN_RETRY, JOIN_RETRY_MOST};

/// See the module.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// One more failure: how long to wait. `jitter` is any of its values, at random.
    pub(super) fn failed(&mut self, jitter: u16) -> Duration {
        let pause = self.doubled(JOIN_RETRY, JOIN_RETRY_MOST);
        pause - pause / 4 * u32::from(jitter) / u32::from(u16::MAX)
    }

    /// The same with other bounds and to the millisecond.
    pub(super) fn doubled(&mut self, first: Duration, most: Duration) -> Duration {
        let pause = first.saturating_mul(1 << self.failures.min(16)).min(most);
        self.failures = self.failures.saturating_add(1);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_doubles_to_a_minute_and_jitter_takes_up_to_a_quarter() {
        let (mut late, mut early) = (Backoff::default(), Backoff::default());
        let pauses: Vec<_> = (0..9).map(|_| late.failed(0).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        let (first, most) = (Duration::from_millis(50), Duration::from_secs(5));
        let mut refused = Backoff::default();
        let pauses: Vec<_> = (0..9).map(|_| refused.doubled(first, most).as_millis()).collect();
        assert_eq!(pauses, [50, 100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000]);
        let pauses: Vec<_> = (0..7).map(|_| early.failed(u16::MAX).as_millis()).collect();
        assert_eq!(pauses, [750, 1_500, 3_000, 6_000, 12_000, 24_000, 45_000]);
    }
}
