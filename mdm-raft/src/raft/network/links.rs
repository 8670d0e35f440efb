//! The seam for tests and fault injection: a member can be cut off from all others.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

/// Whether one member's Raft traffic passes, both ways. Clones share it.
#[derive(Clone, Default, Debug)]
pub struct Links(Arc<AtomicBool>);

impl Links {
    /// From now on nothing of this member leaves or is taken in.
    pub fn cut(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Traffic passes again.
    pub fn mend(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    pub(in crate::raft) fn are_cut(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
