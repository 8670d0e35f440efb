//! The brake on verdicts (S23): a leader that hears so few SDSs may itself be deaf. Pure, time comes in.
//!
//! Silence alone is braked. A refused connection is a proof of death, and a device's own words are not hearsay.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use pflex_proto::ids::SdsId;

/// Which SDSs fell silent lately. Those of one leadership only: a new one has heard nobody yet.
#[derive(Debug, Default)]
pub(super) struct Brake {
    silent: BTreeMap<SdsId, Instant>,
}

/// What the leader would lose.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct TooMany {
    /// Silent within one timeout.
    pub(super) silent: usize,
    /// All that were alive before.
    pub(super) of: usize,
}

impl Brake {
    /// Whether the SDSs that are not heard `now`, with those lost to silence within the last `timeout`, are over half of
    /// those that were alive before. `alive` are those the state has as alive.
    pub(super) fn look(
        &mut self,
        now: Instant,
        timeout: Duration,
        silent: &BTreeSet<SdsId>,
        alive: &BTreeSet<SdsId>,
    ) -> Option<TooMany> {
        // One that is alive and not silent came back; one that is not alive was lost by our verdict, until it ages.
        self.silent.retain(|sds, since| {
            silent.contains(sds) || (!alive.contains(sds) && now.saturating_duration_since(*since) < timeout)
        });
        for sds in silent {
            self.silent.entry(*sds).or_insert(now);
        }
        let of = alive.iter().chain(self.silent.keys()).collect::<BTreeSet<_>>().len();
        let losing = self.silent.len();
        (losing * 2 > of).then_some(TooMany { silent: losing, of })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(3);

    fn ids(ids: impl IntoIterator<Item = u32>) -> BTreeSet<SdsId> {
        ids.into_iter().map(SdsId).collect()
    }

    #[test]
    fn half_may_go_and_more_may_not() {
        let now = Instant::now();
        let mut brake = Brake::default();
        assert_eq!(brake.look(now, TIMEOUT, &ids([]), &ids(1..=4)), None);
        assert_eq!(brake.look(now, TIMEOUT, &ids([1, 2]), &ids(1..=4)), None);
        assert_eq!(brake.look(now, TIMEOUT, &ids([1, 2, 3]), &ids(1..=4)), Some(TooMany { silent: 3, of: 4 }));
        assert_eq!(brake.look(now, TIMEOUT, &ids([1]), &ids(1..=4)), None, "2 and 3 are heard again");
    }

    #[test]
    fn those_lost_one_after_the_other_within_a_timeout_count_together() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut brake = Brake::default();
        assert_eq!(brake.look(at(0), TIMEOUT, &ids([1]), &ids(1..=3)), None);
        // The verdict on 1 is in force; now 2 falls silent.
        assert_eq!(brake.look(at(1_000), TIMEOUT, &ids([2]), &ids([2, 3])), Some(TooMany { silent: 2, of: 3 }));
        // Much later it is another failure: 1 is no part of it.
        let mut brake = Brake::default();
        assert_eq!(brake.look(at(0), TIMEOUT, &ids([1]), &ids(1..=3)), None);
        assert_eq!(brake.look(at(9_000), TIMEOUT, &ids([2]), &ids([2, 3])), None);
    }
}
