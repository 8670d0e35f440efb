//! When which token is asked for: the decisions of the keeper, with time and randomness as arguments.
//!
//! Tokens of volumes that are well are renewed together, 15 s after they were issued. A token that an SDS refuses is
//! replaced at once and alone; one that is refused soon after it was issued is replaced after a pause that doubles, because
//! then the token is not what is wrong (a server whose clock of log time is ahead, a key it cannot fetch), and another one
//! each 100 ms would only fill the MDM's log. A volume that the MDM gives no token for is asked for again at the same pace.
//! No volume's trouble moves the times of another.

use std::collections::HashMap;
use std::time::Duration;

use pflex_proto::ids::VolumeId;
use tokio::time::Instant;

/// Tokens are renewed at this age, give or take [`JITTER`]; they live 60 s.
pub(super) const RENEW_AFTER: Duration = Duration::from_secs(15);
/// Keeps the clients of a cluster from asking all at once.
const JITTER: Duration = Duration::from_secs(2);
/// Volumes that are due this soon are asked for with those that are due: their schedules join again.
const COALESCED: Duration = Duration::from_secs(5);
/// The pause before a token that was refused soon is replaced; doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest: an IO that waits for the end of a trouble elsewhere notices it this late.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A token that nobody refused for this long was a good one: the next refusal is answered at once.
const GOOD_AFTER: Duration = Duration::from_secs(10);
/// Volumes in one request: the MDM takes 16,384 in a command, and nobody shall wait for so many.
pub(super) const MOST_ASKED: usize = 1024;

/// One volume.
#[derive(Debug)]
struct Entry {
    due: Instant,
    /// The last pause; zero while all is well.
    pause: Duration,
    /// When the present token was issued; none if there is none, or the MDM gave none when it was last asked.
    issued: Option<Instant>,
    /// The refusal of the present token has been taken into account.
    wanted: bool,
}

impl Entry {
    /// The next pause: between a half and the whole of the doubled one before, as `random` (0 to 1) says.
    fn back_off(&mut self, random: f64) -> Duration {
        self.pause = (self.pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
        self.pause.mul_f64(0.5 + random / 2.0)
    }
}

/// All volumes.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    entries: HashMap<VolumeId, Entry>,
}

impl Schedule {
    /// A volume without a token: it is due.
    pub(super) fn add(&mut self, volume: VolumeId, now: Instant) {
        self.entries.entry(volume).or_insert(Entry { due: now, pause: Duration::ZERO, issued: None, wanted: true });
    }

    /// A volume that is no longer mapped.
    pub(super) fn remove(&mut self, volume: VolumeId) {
        self.entries.remove(&volume);
    }

    /// The present token was refused. Said by every IO that met it; only the first counts.
    pub(super) fn want(&mut self, volume: VolumeId, now: Instant, random: f64) {
        let Some(entry) = self.entries.get_mut(&volume).filter(|entry| !entry.wanted) else { return };
        entry.wanted = true;
        match entry.issued {
            Some(issued) if now.duration_since(issued) < GOOD_AFTER => {
                entry.due = (issued + entry.back_off(random)).max(now);
            }
            Some(_) | None => (entry.due, entry.pause) = (now, Duration::ZERO),
        }
    }

    /// When somebody must be asked for something; none without volumes.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.entries.values().map(|entry| entry.due).min()
    }

    /// Whom to ask for now: nobody, or all that are due and those that soon are, the longest overdue first. Volumes in
    /// trouble are asked for when they are due, not with others.
    pub(super) fn due(&self, now: Instant) -> Vec<VolumeId> {
        if self.next_due().is_none_or(|due| due > now) {
            return Vec::new();
        }
        let soon = |entry: &Entry| entry.due <= now || (!entry.wanted && entry.due <= now + COALESCED);
        let mut due: Vec<_> =
            self.entries.iter().filter(|(_, entry)| soon(entry)).map(|(volume, entry)| (entry.due, *volume)).collect();
        due.sort_unstable();
        due.truncate(MOST_ASKED);
        due.into_iter().map(|(_, volume)| volume).collect()
    }

    /// A token was issued. `random` is the same for all of one request, so that they stay together.
    pub(super) fn issued(&mut self, volume: VolumeId, now: Instant, random: f64) {
        if let Some(entry) = self.entries.get_mut(&volume) {
            if entry.issued.is_none() {
                entry.pause = Duration::ZERO;
            }
            (entry.issued, entry.wanted) = (Some(now), false);
            entry.due = now + RENEW_AFTER - JITTER + (2 * JITTER).mul_f64(random);
        }
    }

    /// The MDM gave none for this volume.
    pub(super) fn missing(&mut self, volume: VolumeId, now: Instant, random: f64) {
        if let Some(entry) = self.entries.get_mut(&volume) {
            (entry.issued, entry.wanted) = (None, true);
            entry.due = now + entry.back_off(random);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: VolumeId = VolumeId(1);
    const BAD: VolumeId = VolumeId(2);
    const RANDOM: f64 = 0.5;

    /// Both volumes have a token, issued at the instant that is returned.
    fn two() -> (Schedule, Instant) {
        let (mut schedule, start) = (Schedule::default(), Instant::now());
        schedule.add(GOOD, start);
        schedule.add(BAD, start);
        assert_eq!(schedule.due(start), [GOOD, BAD]);
        schedule.issued(GOOD, start, RANDOM);
        schedule.issued(BAD, start, RANDOM);
        assert!(schedule.due(start).is_empty());
        (schedule, start)
    }

    #[test]
    fn a_refused_token_is_replaced_alone_and_at_once() {
        let (mut schedule, start) = two();
        let late = start + GOOD_AFTER;
        let (mut refused, mut again) = (schedule, Vec::new());
        refused.want(BAD, late, RANDOM);
        for _ in 0..100 {
            refused.want(BAD, late, RANDOM);
        }
        again.extend(refused.due(late));
        assert_eq!(again, [BAD, GOOD], "5 s before its renewal the other goes along");
        schedule = two().0;
        let early = schedule.next_due().unwrap() - COALESCED - Duration::from_millis(1);
        schedule.want(BAD, early, RANDOM);
        assert_eq!(schedule.due(early.max(start)).first(), Some(&BAD));
    }

    #[test]
    fn a_volume_whose_tokens_are_always_refused_asks_ever_less_and_touches_no_other() {
        let (mut schedule, start) = two();
        let renewal = schedule.next_due().unwrap();
        let (mut now, mut asked) = (start, 0);
        let mut longest = Duration::ZERO;
        while now < start + Duration::from_secs(120) {
            schedule.want(BAD, now, RANDOM);
            let due = schedule.entries[&BAD].due;
            longest = longest.max(due - now);
            now = due.min(schedule.entries[&GOOD].due);
            for volume in schedule.due(now) {
                if volume == GOOD {
                    assert!(now + COALESCED >= renewal, "renewed {:?} early", renewal - now);
                } else {
                    asked += 1;
                }
                schedule.issued(volume, now, RANDOM);
            }
        }
        assert!(asked < 60, "{asked} requests in two minutes; each 100 ms it would be 1,200");
        assert!(longest <= LONGEST_PAUSE);
        // Once its tokens are good for a while, a refusal is answered at once again.
        let (issued, later) = (schedule.entries[&BAD].issued.unwrap(), GOOD_AFTER);
        schedule.want(BAD, issued + later, RANDOM);
        assert_eq!(schedule.entries[&BAD].due, issued + later);
    }

    #[test]
    fn a_volume_the_mdm_gives_no_token_for_is_asked_for_again_at_its_own_pace() {
        let (mut schedule, start) = two();
        schedule.missing(BAD, start, RANDOM);
        let first = schedule.next_due().unwrap();
        assert!(first > start && first <= start + FIRST_PAUSE);
        assert_eq!(schedule.due(first), [BAD]);
        schedule.want(BAD, start, RANDOM);
        assert_eq!(schedule.next_due(), Some(first), "an IO that waits for it changes nothing");
        schedule.issued(BAD, first, RANDOM);
        assert_eq!(schedule.entries[&BAD].pause, Duration::ZERO);
    }

    #[test]
    fn the_longest_overdue_go_first() {
        let (mut schedule, start) = (Schedule::default(), Instant::now());
        for volume in 0..MOST_ASKED as u64 {
            schedule.add(VolumeId(volume + 10), start + Duration::from_millis(1));
        }
        schedule.add(GOOD, start);
        let due = schedule.due(start + Duration::from_secs(1));
        assert_eq!((due.len(), due[0]), (MOST_ASKED, GOOD));
    }
}
