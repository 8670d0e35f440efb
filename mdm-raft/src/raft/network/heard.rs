//! When this member last knew that a quorum works: openraft tells who led last, which a member that is cut off believes
//! for good, because it may not start elections (pre-vote).

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// The last sign of a working quorum. Clones share it.
#[derive(Clone, Debug)]
pub(in crate::raft) struct Heard(Arc<Mutex<Instant>>);

impl Heard {
    /// A member that starts is given the benefit of the doubt.
    pub(in crate::raft) fn new(now: Instant) -> Self {
        Self(Arc::new(Mutex::new(now)))
    }

    /// A leader's message was accepted, or a quorum accepted this member's, at `at`.
    pub(in crate::raft) fn note(&self, at: Instant) {
        let mut last = self.last();
        *last = at.max(*last);
    }

    /// How long ago the last sign was.
    pub(in crate::raft) fn silence(&self, now: Instant) -> Duration {
        now.saturating_duration_since(*self.last())
    }

    fn last(&self) -> MutexGuard<'_, Instant> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
