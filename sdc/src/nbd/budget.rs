//! Memory of all connections together.
//!
//! Each connection may hold [`OWN_BYTES`] without asking, so that small requests are never held up by others. What is beyond
//! comes out of one pool, in the order of asking. A client that does not read its replies keeps its part of the pool only
//! until somebody waits for it: then its connection is closed (see [`STALL`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::PollSemaphore;

/// What each connection may hold outside of the pool: a few hundred requests of 4 KiB with their headers.
pub(super) const OWN_BYTES: usize = 1 << 20;
/// How long a client may take no byte while it holds what others wait for.
pub(super) const STALL: Duration = Duration::from_secs(10);

/// The pool.
#[derive(Clone, Debug)]
pub(super) struct Budget {
    pool: Arc<Semaphore>,
    /// Connections that wait for a part of it.
    waiting: Arc<AtomicUsize>,
    stall: Duration,
}

impl Budget {
    pub(super) fn new(bytes: usize, stall: Duration) -> Self {
        Self { pool: Arc::new(Semaphore::new(bytes)), waiting: Arc::default(), stall }
    }

    /// Whether somebody waits.
    pub(super) fn is_wanted(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    pub(super) const fn stall(&self) -> Duration {
        self.stall
    }

    /// The account of one connection.
    pub(super) fn account(&self) -> Account {
        Account {
            pool: PollSemaphore::new(Arc::clone(&self.pool)),
            held: None,
            wait: Wait { on: false, budget: self.clone() },
        }
    }
}

/// Whether an account waits; counted also when it ends.
#[derive(Debug)]
struct Wait {
    on: bool,
    budget: Budget,
}

impl Wait {
    fn set(&mut self, on: bool) {
        match (self.on, on) {
            (false, true) => drop(self.budget.waiting.fetch_add(1, Ordering::Relaxed)),
            (true, false) => drop(self.budget.waiting.fetch_sub(1, Ordering::Relaxed)),
            (false, false) | (true, true) => {}
        }
        self.on = on;
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        self.set(false);
    }
}

/// What one connection holds of the pool.
#[derive(Debug)]
pub(super) struct Account {
    pool: PollSemaphore,
    held: Option<OwnedSemaphorePermit>,
    wait: Wait,
}

impl Account {
    /// Bytes of the pool that it holds.
    pub(super) fn held(&self) -> usize {
        self.held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits)
    }

    /// Makes room for `bytes` in all; pending until others give some back.
    pub(super) fn poll_cover(&mut self, context: &mut Context<'_>, bytes: usize) -> Poll<()> {
        let missing = bytes.saturating_sub(OWN_BYTES).saturating_sub(self.held());
        if missing == 0 {
            self.wait.set(false);
            return Poll::Ready(());
        }
        // What a connection may hold is far below 4 GiB.
        self.wait.set(true);
        let permit = ready!(self.pool.poll_acquire_many(context, missing as u32));
        self.wait.set(false);
        let permit = permit.expect("the pool is never closed");
        match &mut self.held {
            Some(held) => held.merge(permit),
            None => self.held = Some(permit),
        }
        Poll::Ready(())
    }

    /// Gives back what is not needed for `bytes` in all.
    pub(super) fn shrink(&mut self, bytes: usize) {
        let Some(held) = &mut self.held else { return };
        let surplus = held.num_permits().saturating_sub(bytes.saturating_sub(OWN_BYTES));
        drop(held.split(surplus));
        if held.num_permits() == 0 {
            self.held = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[tokio::test]
    async fn small_needs_never_wait_and_large_ones_wait_for_what_is_given_back() {
        let budget = Budget::new(10 << 20, STALL);
        let (mut first, mut second) = (budget.account(), budget.account());
        poll_fn(|context| first.poll_cover(context, 11 << 20)).await;
        poll_fn(|context| second.poll_cover(context, OWN_BYTES)).await;
        let waits = poll_fn(|context| Poll::Ready(second.poll_cover(context, 3 << 20).is_pending())).await;
        assert!(waits && budget.is_wanted());
        first.shrink(9 << 20);
        poll_fn(|context| second.poll_cover(context, 3 << 20)).await;
        assert!(!budget.is_wanted());
        assert_eq!((first.held(), second.held()), (8 << 20, 2 << 20));
        // One that ends while it waits is not counted any more.
        let _ = poll_fn(|context| Poll::Ready(second.poll_cover(context, 5 << 20).is_pending())).await;
        drop(second);
        assert!(!budget.is_wanted());
        first.shrink(0);
        assert_eq!((first.held(), budget.pool.available_permits()), (0, 10 << 20));
    }
}
