//! Log time: milliseconds that grow with the log and survive leaders (S17, S20).
//!
//! The leader stamps each command with the last entry's time plus what its own monotonic clock counted since. The wall
//! clock never moves it. A follower keeps following, so that it can carry on from where the old leader was; a group that
//! was down carries on from its last entry, the downtime does not count.

use std::time::Instant;

use pflex_proto::ids::LogTime;

/// A point of log time and when this process was there.
#[derive(Clone, Copy, Debug)]
pub struct LogClock {
    base: LogTime,
    at: Instant,
}

impl LogClock {
    /// A clock that stands at `base` now, from the last entry applied.
    pub const fn new(base: LogTime, now: Instant) -> Self {
        Self { base, at: now }
    }

    /// Log time now.
    pub fn now(&self, now: Instant) -> LogTime {
        let elapsed_ms = now.saturating_duration_since(self.at).as_millis();
        LogTime(self.base.get().saturating_add(u64::try_from(elapsed_ms).unwrap_or(u64::MAX)))
    }

    /// Takes notice of an entry of another leader: the clock is where that leader was. Taken as is, even when this
    /// clock was ahead, or a follower whose crystal runs fast would jump forward by days of drift when it leads.
    pub const fn follow(&mut self, entry: LogTime, now: Instant) {
        self.base = entry;
        self.at = now;
    }

    /// Takes notice of an own entry: the clock goes on and is only ever put forward. Setting it back to the entry's
    /// stamp would lose the time between stamping and applying, once per entry.
    pub fn lead(&mut self, entry: LogTime, now: Instant) {
        if entry > self.now(now) {
            self.follow(entry, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

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
    fn an_earlier_instant_is_not_negative_time() {
        let now = Instant::now();
        let clock = LogClock::new(LogTime(7), now + Duration::from_secs(1));
        assert_eq!(clock.now(now), LogTime(7));
    }
}
