//! Log time: milliseconds that grow with the log and survive leaders (S17, S20).
//!
//! The leader stamps each command with the last entry's time plus what its own monotonic clock counted since. The wall
//! clock never moves it. A follower keeps following, so that it can carry on from where the old leader was; a group that
//! was down carries on from its last entry, and then catches up with the SDSs, which counted on meanwhile: behind them it
//! would issue tokens that are expired where they are shown.

use std::time::{Duration, Instant};

use pflex_proto::ids::LogTime;

/// How far an SDS can put the clock forward: by an outage of the MDMs, and nobody leaves SDSs running without any MDM for
/// a month. What is beyond is a damaged number, which would end log time for good, as it never goes back.
const MAX_OUTAGE: Duration = Duration::from_hours(30 * 24);

/// A point of log time and when this process was there.
#[derive(Clone, Copy, Debug)]
pub struct LogClock {
    base: LogTime,
    at: Instant,
    /// What an SDS has reached: no entry takes the clock back below it.
    reached: LogTime,
}

/// What an SDS says is too far ahead to be true.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("its log time {heard} is more than {} days ahead of {ours} here", MAX_OUTAGE.as_secs() / 86_400)]
pub struct TooFarAhead {
    /// What it says.
    pub heard: LogTime,
    /// The clock.
    pub ours: LogTime,
}

impl LogClock {
    /// A clock that stands at `base` now, from the last entry applied.
    pub const fn new(base: LogTime, now: Instant) -> Self {
        Self { base, at: now, reached: LogTime(0) }
    }

    /// Log time now.
    pub fn now(&self, now: Instant) -> LogTime {
        let elapsed_ms = now.saturating_duration_since(self.at).as_millis();
        LogTime(self.base.get().saturating_add(u64::try_from(elapsed_ms).unwrap_or(u64::MAX)))
    }

    /// Takes notice of an entry of another leader: the clock is where that leader was. Taken as is, even when this
    /// clock was ahead, or a follower whose crystal runs fast would jump forward by days of drift when it leads. Only what
    /// SDSs have reached is kept: a new leader applies older entries after it heard the first beats.
    pub fn follow(&mut self, entry: LogTime, now: Instant) {
        self.base = entry.max(self.reached);
        self.at = now;
    }

    /// Takes notice of an own entry: the clock goes on and is only ever put forward. Setting it back to the entry's
    /// stamp would lose the time between stamping and applying, once per entry.
    pub fn lead(&mut self, entry: LogTime, now: Instant) {
        if entry > self.now(now) {
            self.follow(entry, now);
        }
    }

    /// Takes notice of how far an SDS has counted: the clock is not behind that from now on.
    ///
    /// An SDS counts from a stamp's arrival, so while a leader stamps it is behind the leader, and this does nothing but
    /// follow the fastest crystal.
    ///
    /// # Errors
    /// When that is further ahead than an outage can explain; the clock is left alone.
    pub fn catch_up(&mut self, heard: LogTime, now: Instant) -> Result<(), TooFarAhead> {
        let ours = self.now(now);
        let most = u64::try_from(MAX_OUTAGE.as_millis()).unwrap_or(u64::MAX);
        if heard.get().saturating_sub(ours.get()) > most {
            return Err(TooFarAhead { heard, ours });
        }
        self.reached = self.reached.max(heard);
        self.lead(heard, now);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_follower_follows_and_a_leader_never_goes_back() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut clock = LogClock::new(LogTime(1_000), start);
        assert_eq!(clock.now(at(50)), LogTime(1_050));

        clock.follow(LogTime(1_020), at(50));
        assert_eq!(clock.now(at(60)), LogTime(1_030));

        clock.lead(LogTime(1_030), at(100));
        assert_eq!(clock.now(at(100)), LogTime(1_070));

        clock.lead(LogTime(5_000), at(100));
        assert_eq!(clock.now(at(101)), LogTime(5_001));
    }

    #[test]
    fn after_an_outage_the_clock_catches_up_with_the_sdss_and_stays_there() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        // The last entry was at 1,000; the group was down for 700 s, in which the SDSs counted on.
        let mut clock = LogClock::new(LogTime(1_000), start);
        clock.catch_up(LogTime(701_000), at(10)).unwrap();
        assert_eq!(clock.now(at(20)), LogTime(701_010));
        clock.catch_up(LogTime(700_000), at(20)).unwrap();
        assert_eq!(clock.now(at(20)), LogTime(701_010), "a slower SDS does not turn time back");
        clock.follow(LogTime(1_000), at(30));
        assert_eq!(clock.now(at(30)), LogTime(701_000), "nor does an entry of before the outage");
        clock.follow(LogTime(800_000), at(30));
        assert_eq!(clock.now(at(30)), LogTime(800_000));
    }

    #[test]
    fn a_damaged_log_time_is_not_believed() {
        let now = Instant::now();
        let mut clock = LogClock::new(LogTime(1_000), now);
        let ours = LogTime(1_000);
        let month = u64::try_from(MAX_OUTAGE.as_millis()).unwrap();
        for heard in [LogTime(u64::MAX), LogTime(ours.get() + month + 1)] {
            assert_eq!(clock.catch_up(heard, now), Err(TooFarAhead { heard, ours }));
        }
        assert_eq!(clock.now(now), ours);
        clock.catch_up(LogTime(ours.get() + month), now).unwrap();
    }

    #[test]
    fn an_earlier_instant_is_not_negative_time() {
        let now = Instant::now();
        let clock = LogClock::new(LogTime(7), now + Duration::from_secs(1));
        assert_eq!(clock.now(now), LogTime(7));
    }
}
