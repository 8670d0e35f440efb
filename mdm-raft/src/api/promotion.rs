//! When a forced promotion may be carried out (S12): once no token of before the freeze can be used any more.
//!
//! Since the freeze no token was issued for the pool. Every older one is useless [`TOKENS_END`] of real time later on
//! each SDS, also on one that hears no MDM; the proof is in the SDS's `admission::freshness`. This member counts on its own
//! monotonic clock from when it first had the freeze in its state, which is later than the freeze: so it may wait longer
//! than needed, never less, and a leader that takes over may begin anew.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use pflex_proto::ids::{PgId, PgIndex, Revision};

use crate::state::{State, limits::REVOKED_WITHIN_MS, model::Freeze};

const TOKENS_END: Duration = Duration::from_millis(REVOKED_WITHIN_MS);

/// Since when this member has known each freeze. Bounded by the freezes of the state.
#[derive(Debug, Default)]
pub(crate) struct Freezes(Mutex<BTreeMap<(PgId, Revision), Instant>>);

impl Freezes {
    /// Begins to count for freezes that are new here, and forgets those that are over.
    pub(crate) fn see(&self, state: &State) {
        let frozen: Vec<(PgId, Revision)> = state
            .all_pools()
            .flat_map(|pool| {
                let id = |index: &PgIndex| PgId { pool: pool.id, index: *index };
                pool.frozen.iter().map(move |(index, freeze)| (id(index), freeze.at))
            })
            .collect();
        let now = Instant::now();
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.retain(|freeze, _| frozen.contains(freeze));
        for freeze in frozen {
            seen.entry(freeze).or_insert(now);
        }
    }

    /// Why it is safe now, or how long until it is.
    pub(crate) fn judge(&self, pg: PgId, freeze: Freeze, dead: bool) -> Result<String, Duration> {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = seen.get(&(pg, freeze.at)).map_or(Duration::ZERO, Instant::elapsed);
        judge(waited, dead)
    }
}

fn judge(waited: Duration, dead: bool) -> Result<String, Duration> {
    if dead {
        return Ok("every old copy is dead: its device has registered a newer life".to_owned());
    }
    match TOKENS_END.checked_sub(waited) {
        Some(left) if !left.is_zero() => Err(left),
        Some(_) | None => Ok(format!("{} s after the freeze no token of before it can be used", TOKENS_END.as_secs())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_proof_or_the_whole_time_is_enough() {
        assert!(judge(Duration::ZERO, true).is_ok());
        assert_eq!(judge(Duration::ZERO, false), Err(TOKENS_END));
        assert_eq!(judge(Duration::from_secs(60), false), Err(Duration::from_secs(10)), "a token's life is not enough");
        assert!(judge(TOKENS_END, false).is_ok());
    }
}
