//! Time as an argument: monotonic time that goes on while the machine sleeps, and log time as a follower knows it (S20).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pflex_proto::ids::LogTime;

/// Time since boot, suspend included (CLOCK_BOOTTIME), so that a machine that slept does not think a lease still holds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct MonotonicTime(Duration);

impl MonotonicTime {
    /// Now.
    pub fn now() -> Self {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let seconds = u64::try_from(time.tv_sec).expect("time since boot is not negative");
        let nanoseconds = u32::try_from(time.tv_nsec).expect("a second has 10^9 ns");
        Self(Duration::new(seconds, nanoseconds))
    }

    /// A made-up time, for tests and simulation.
    pub const fn from_start(since: Duration) -> Self {
        Self(since)
    }

    /// How long after `earlier`; zero if it is not.
    pub const fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// Since boot.
    pub const fn since_boot(self) -> Duration {
        self.0
    }
}

/// What the wall clock shows, in milliseconds since 1970. For people, and to say whose clock is off: nothing is decided by it.
pub fn wall_ms() -> u64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
}

/// Follows the log time of the newest leader and extrapolates it (S20). Never runs backwards; knows nothing before the
/// first stamp, and then nothing is admitted.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogTimeFollower {
    newest: Option<Stamp>,
}

#[derive(Clone, Copy, Debug)]
struct Stamp {
    term: u64,
    log_time: LogTime,
    at: MonotonicTime,
}

impl LogTimeFollower {
    /// Takes a leader's stamp that arrived at `now`. One of an older term is ignored; one that lies behind what this
    /// follower already counted leaves the count standing, so that time waits for it rather than running back.
    pub fn observe(&mut self, term: u64, log_time: LogTime, now: MonotonicTime) {
        if self.newest.is_some_and(|stamp| term < stamp.term) {
            return;
        }
        let reached = self.now(now).unwrap_or_default();
        self.newest = Some(Stamp { term, log_time: log_time.max(reached), at: now });
    }

    /// The newest stamp, or what had been counted when it came if that was more, and when it came.
    pub fn newest(&self) -> Option<(LogTime, MonotonicTime)> {
        self.newest.map(|stamp| (stamp.log_time, stamp.at))
    }

    /// Log time at `now`; none without a stamp since this process started.
    pub fn now(&self, now: MonotonicTime) -> Option<LogTime> {
        let stamp = self.newest?;
        let elapsed_ms = u64::try_from(now.since(stamp.at).as_millis()).unwrap_or(u64::MAX);
        Some(LogTime(stamp.log_time.0.saturating_add(elapsed_ms)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> MonotonicTime {
        MonotonicTime::from_start(Duration::from_millis(ms))
    }

    #[test]
    fn log_time_is_unknown_before_the_first_stamp_then_extrapolated() {
        let mut follower = LogTimeFollower::default();
        assert_eq!(follower.now(at(5)), None);
        follower.observe(1, LogTime(1_000), at(10));
        assert_eq!(follower.now(at(260)), Some(LogTime(1_250)));
        assert_eq!(follower.newest(), Some((LogTime(1_000), at(10))));
    }

    #[test]
    fn log_time_never_runs_back_and_old_terms_are_ignored() {
        let mut follower = LogTimeFollower::default();
        follower.observe(2, LogTime(1_000), at(0));
        follower.observe(1, LogTime(9_000), at(1));
        assert_eq!(follower.now(at(100)), Some(LogTime(1_100)));
        follower.observe(3, LogTime(500), at(100));
        assert_eq!(follower.now(at(100)), Some(LogTime(1_100)), "a slower leader does not turn time back");
        follower.observe(3, LogTime(5_000), at(200));
        assert_eq!(follower.now(at(200)), Some(LogTime(5_000)));
    }

    #[test]
    fn the_clock_runs() {
        let start = MonotonicTime::now();
        assert!(MonotonicTime::now() >= start);
    }
}
