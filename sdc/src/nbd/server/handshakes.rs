//! Connections that are in their handshake: bounded apart from the others, and the oldest makes room for a new one.
//!
//! An honest handshake takes milliseconds. Whoever opens thousands of connections and says nothing pushes out their own
//! old ones, not those who are past it and hardly those who are in the middle of it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

/// All of them, the oldest first.
#[derive(Clone, Debug)]
pub(super) struct Handshakes {
    open: Arc<Mutex<Open>>,
    most: usize,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    queue: VecDeque<(u64, CancellationToken)>,
}

/// One of them.
#[derive(Debug)]
pub(super) struct Place {
    all: Handshakes,
    number: u64,
    evicted: CancellationToken,
}

impl Handshakes {
    pub(super) fn new(most: usize) -> Self {
        Self { open: Arc::default(), most: most.max(1) }
    }

    /// Takes a place, if need be the oldest one.
    pub(super) fn enter(&self) -> Place {
        let mut open = self.open();
        if open.queue.len() >= self.most
            && let Some((_, oldest)) = open.queue.pop_front()
        {
            oldest.cancel();
        }
        let (number, evicted) = (open.next, CancellationToken::new());
        open.next += 1;
        open.queue.push_back((number, evicted.clone()));
        Place { all: self.clone(), number, evicted }
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.open().queue.len()
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Cancelled when it was taken away.
    pub(super) fn evicted(&self) -> CancellationToken {
        self.evicted.clone()
    }

    /// The handshake is over.
    pub(super) fn leave(&self) {
        let mut open = self.all.open();
        // Numbers rise along the queue.
        if let Ok(at) = open.queue.binary_search_by_key(&self.number, |(number, _)| *number) {
            open.queue.remove(at);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_more_than_there_are_places_ends_the_oldest() {
        let handshakes = Handshakes::new(2);
        let (first, second) = (handshakes.enter(), handshakes.enter());
        second.leave();
        let third = handshakes.enter();
        assert!(!first.evicted().is_cancelled());
        let fourth = handshakes.enter();
        assert!(first.evicted().is_cancelled() && !third.evicted().is_cancelled());
        drop((first, second, third, fourth));
        assert_eq!(handshakes.count(), 0);
    }
}
