//! How long ago this server heard an MDM leader, and which tokens it may take after that.
//!
//! A revocation is complete at once on servers that confirm it. One that cannot be reached ends it by itself, because it
//! counts log time on from the newest stamp and each token has an end. Alone that bounds nothing: log time of the MDMs can
//! jump ahead of such a server (it catches up with other servers after an outage), and a token that was issued after the
//! jump would be good here for as long as the jump was. So a session opens only with a token that this server can place:
//!
//! - its newest stamp is at most [`HEARD_WITHIN`] old. Tokens live 60 s, so in an outage of the whole quorum this refuses
//!   no token that was issued before it (S21);
//! - the token was issued at most [`AHEAD`] after that stamp. More, and a leader has gone on without this server.
//!
//! **Bound.** Let a stamp be taken [`STAMP_DELAY`] after it was made at most (`daemon::liveness` drops a stream that was
//! slower). Whatever the MDMs' log time does and whatever this server hears or does not hear, no IO starts under a token
//! of a revoked volume epoch later than [`REVOKED_WITHIN`] of real time (67.5 s) after the command that revoked it was
//! applied. Proof: if the newest stamp was made after the command, this server has counted at least the command's log time
//! since, and ends each older token 60 s later, plus the delay. If before, the token ends 60 s + `AHEAD` after that stamp
//! by this server's count, which ran on from when the stamp came. Clocks that drift by 500 ppm add 34 ms; a hypervisor that
//! stops the clock is excluded, as for leases (S6).

use std::time::Duration;

use pflex_common::clock::{LogTimeFollower, MonotonicTime};
use pflex_proto::{data::RefusalCode, ids::LogTime, token::Token};

/// A server that has heard nobody for this long opens no session: a token's life (S21).
pub(crate) const HEARD_WITHIN: Duration = Duration::from_secs(60);
/// Stamps come each second; an election, and a stream that is made anew, take up to 4 s.
pub(crate) const AHEAD: Duration = Duration::from_secs(5);
/// The oldest a stamp may be when it is taken.
pub(crate) const STAMP_DELAY: Duration = Duration::from_millis(2_500);
/// The bound of a revocation, see the module.
#[cfg(test)]
pub(crate) const REVOKED_WITHIN: Duration = HEARD_WITHIN.saturating_add(AHEAD).saturating_add(STAMP_DELAY);

/// The newest stamp of a leader.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Heard {
    /// What it said, or what had been counted by then if that was more.
    pub(crate) stamp: LogTime,
    /// How long ago.
    pub(crate) age: Duration,
}

impl Heard {
    /// None before the first stamp since the start, and then nothing is admitted (S20).
    pub(crate) fn of(follower: &LogTimeFollower, now: MonotonicTime) -> Option<Self> {
        follower.newest().map(|(stamp, at)| Self { stamp, age: now.since(at) })
    }

    /// Log time as this server counts it.
    pub(crate) fn now(self) -> LogTime {
        let age_ms = u64::try_from(self.age.as_millis()).unwrap_or(u64::MAX);
        LogTime(self.stamp.0.saturating_add(age_ms))
    }

    /// Whether a session may be opened with this token.
    ///
    /// # Errors
    /// `NotReady`: the client keeps its token and tries again, here or at another copy.
    pub(super) fn places(self, token: &Token) -> Result<(), (RefusalCode, String)> {
        if self.age > HEARD_WITHIN {
            let why = format!("no MDM leader was heard for {} s, so revocations may be missed", self.age.as_secs());
            return Err((RefusalCode::NotReady, why));
        }
        if token.issued.0 > self.stamp.0.saturating_add(AHEAD.as_millis() as u64) {
            let why = format!("token {} is newer than what was last heard from an MDM leader", token.id);
            return Err((RefusalCode::NotReady, why));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use pflex_common::map::ClusterMap;
    use pflex_proto::ids::{ClusterId, ProcessId, SdcId, VolumeId};
    use rand::{RngExt as _, SeedableRng as _};
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::admission::{
        Authority, Surroundings,
        authority::tests::{map, token},
    };

    const RUNS: u64 = 40;
    /// As the MDM has it.
    const TOKEN_LIFE_MS: u64 = 60_000;

    fn open(token: &Token, map: &ClusterMap, heard: Heard) -> Result<Authority, RefusalCode> {
        let now = Surroundings { map, heard: Some(heard) };
        let (cluster, process) = (ClusterId::from_bytes([9; 16]), ProcessId::from_bytes([1; 16]));
        Authority::new(token.clone(), cluster, SdcId(3), process, VolumeId(1), now).map_err(|refused| refused.code)
    }

    fn issued(at: u64) -> Token {
        Token { issued: LogTime(at), expires: LogTime(at + TOKEN_LIFE_MS), ..token() }
    }

    #[test]
    fn in_an_outage_tokens_from_before_it_open_sessions_to_their_end() {
        let map = map(1);
        let heard = |age_s| Heard { stamp: LogTime(100_000), age: Duration::from_secs(age_s) };
        assert!(open(&issued(99_000), &map, heard(58)).is_ok());
        assert_eq!(open(&issued(99_000), &map, heard(59)).err(), Some(RefusalCode::TokenExpired));
        assert_eq!(open(&issued(104_000), &map, heard(61)).err(), Some(RefusalCode::NotReady), "nobody heard for 61 s");
        assert_eq!(open(&issued(105_001), &map, heard(6)).err(), Some(RefusalCode::NotReady), "a leader went on");
    }

    /// One life of a server that is cut off at some moment and never hears of the revocation. How long after it IO still
    /// starts, in ms of real time; `trusting` is a server that believes each token until its end.
    fn overrun(random: &mut ChaCha8Rng, trusting: bool) -> u64 {
        let map = map(1);
        let end = 400_000;
        let revoked = random.random_range(20_000..200_000_u64);
        let cut = random.random_range(10_000..220_000_u64);
        let jumps: Vec<(u64, u64)> =
            (0..3).map(|_| (random.random_range(0..end), random.random_range(0..600_000))).collect();
        let mdm = |at: u64| at + jumps.iter().filter(|(when, _)| *when <= at).map(|(_, by)| by).sum::<u64>();
        let at = |ms| MonotonicTime::from_start(Duration::from_millis(ms));
        let (mut follower, mut sessions, mut last): (_, Vec<Authority>, _) = (LogTimeFollower::default(), vec![], 0);
        let (mut due, mut made) = (1_000, 0);
        for now in (0..end).step_by(100) {
            if now >= due && made < cut {
                // Made up to the longest delay ago, in order.
                made = made.max(now.saturating_sub(random.random_range(0..=STAMP_DELAY.as_millis() as u64)));
                follower.observe(1, LogTime(mdm(made)), at(now));
                due = now + random.random_range(800..2_400);
            }
            let Some(heard) = Heard::of(&follower, at(now)) else { continue };
            let heard = if trusting { Heard { stamp: heard.now(), age: Duration::ZERO } } else { heard };
            let now_here = Surroundings { map: &map, heard: Some(heard) };
            sessions.retain(|session| session.is_in_force(now_here).is_ok());
            if !sessions.is_empty() {
                last = now;
            }
            if random.random_bool(0.2) {
                // The client has any of the tokens that were issued to it so far, the newest one mostly.
                let newest = now.min(revoked);
                let when = if random.random_bool(0.7) { newest } else { random.random_range(0..=newest) };
                sessions.extend(open(&issued(mdm(when)), &map, heard));
            }
        }
        last.saturating_sub(revoked)
    }

    #[test]
    fn no_io_starts_later_than_the_bound_after_a_revocation() {
        let seed = std::env::var("PFLEX_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_u64);
        println!("PFLEX_SEED={seed}");
        let bound = REVOKED_WITHIN.as_millis() as u64;
        let mut longest = 0;
        for run in 0..RUNS {
            let mut random = ChaCha8Rng::seed_from_u64(seed.wrapping_add(run));
            let overrun = overrun(&mut random, false);
            assert!(overrun <= bound, "{overrun} ms after the revocation; seed {}", seed.wrapping_add(run));
            longest = longest.max(overrun);
        }
        assert!(longest > bound / 2, "only {longest} ms: the test tries nothing");
        let broken = (0..RUNS).map(|run| overrun(&mut ChaCha8Rng::seed_from_u64(seed.wrapping_add(run)), true)).max();
        assert!(broken > Some(2 * bound), "a server that trusts every token is not noticed: {broken:?}");
    }
}
