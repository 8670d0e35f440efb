//! The seam for tests and fault injection: a member can be cut off from all others, and fail while it installs a snapshot.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};

/// The steps of an install after which it can be made to fail.
pub const INSTALL_STEPS: u32 = 4;

/// Whether one member's Raft traffic passes, both ways. Clones share it.
#[derive(Clone, Default, Debug)]
pub struct Links(Arc<Faults>);

#[derive(Default, Debug)]
struct Faults {
    cut: AtomicBool,
    /// 0: at none.
    install_fails_at: AtomicU32,
    cut_between: AtomicBool,
}

impl Links {
    /// From now on nothing of this member leaves or is taken in.
    pub fn cut(&self) {
        self.0.cut.store(true, Ordering::Relaxed);
    }

    /// Traffic passes again.
    pub fn mend(&self) {
        self.0.cut.store(false, Ordering::Relaxed);
    }

    pub(in crate::raft) fn are_cut(&self) -> bool {
        self.0.cut.load(Ordering::Relaxed)
    }

    /// From now on an install of a snapshot fails after this step, as if the process ended there; 0: after none.
    pub fn fail_install_at(&self, step: u32) {
        self.0.install_fails_at.store(step, Ordering::Relaxed);
    }

    /// The member is cut off as soon as it has applied the first of the two steps of a change of the voters, before it can
    /// take the second.
    pub fn cut_between_the_steps_of_a_change(&self) {
        self.0.cut_between.store(true, Ordering::Relaxed);
    }

    /// No longer.
    pub fn disarm(&self) {
        self.0.cut_between.store(false, Ordering::Relaxed);
    }

    /// The first of the two steps is applied.
    pub(in crate::raft) fn between_two_sets_of_voters(&self) {
        if self.0.cut_between.load(Ordering::Relaxed) {
            self.cut();
        }
    }

    /// An install has come this far.
    pub(in crate::raft) fn installed(&self, step: u32) -> io::Result<()> {
        if self.0.install_fails_at.load(Ordering::Relaxed) == step {
            return Err(io::Error::other(format!("made to fail after step {step}")));
        }
        Ok(())
    }
}
