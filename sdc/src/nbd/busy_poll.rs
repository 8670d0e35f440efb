//! Looking again for a moment before going to sleep.
//!
//! A client at depth 1 sends its next request some microseconds after a reply. To sleep in between costs more than the
//! request: an idle processor has to be woken, tens of microseconds in a virtual machine. So a connection that has answered
//! everything looks again for a while, as long as that pays: the kernel's halt polling decides alike
//! (Documentation/virt/guest-halt-polling.rst).

use std::pin::pin;
use std::task::Context;
use std::time::Duration;

use pflex_common::clock::MonotonicTime;

/// So many long waits in a row, and the next one is slept from its beginning.
const VAIN: u8 = 3;

/// Whether one connection looks again. Pure: the time is passed in.
#[derive(Clone, Copy, Debug)]
pub(super) struct BusyPoll {
    /// How long it looks at most; zero is never.
    most: Duration,
    waiting_since: Option<MonotonicTime>,
    vain: u8,
}

impl BusyPoll {
    pub(super) fn new(most: Duration) -> Self {
        Self { most, waiting_since: None, vain: 0 }
    }

    pub(super) fn is_on(&self) -> bool {
        !self.most.is_zero()
    }

    /// There is nothing to do: whether to look again at once. A wait shorter than `most` makes the next one be looked through too.
    pub(super) fn looks_again(&mut self, now: MonotonicTime) -> bool {
        let since = *self.waiting_since.get_or_insert(now);
        self.vain < VAIN && now.since(since) < self.most
    }

    /// Something came.
    pub(super) fn came(&mut self, now: MonotonicTime) {
        if let Some(since) = self.waiting_since.take() {
            self.vain = if now.since(since) <= self.most { 0 } else { VAIN.min(self.vain + 1) };
        }
    }
}

/// Has this task polled again after one look at the sockets. Every other task and thread that could run goes first.
pub(super) fn poll_again(context: &mut Context<'_>) {
    // Its first poll puts the task behind the runtime's next look at its sockets.
    let _pending = pin!(tokio::task::yield_now()).poll(context);
    std::thread::yield_now();
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: Duration = Duration::from_micros(100);

    fn at(micros: u64) -> MonotonicTime {
        MonotonicTime::from_start(Duration::from_micros(micros))
    }

    /// Waits from `from` to `to`; how long it looked again.
    fn wait(busy: &mut BusyPoll, from: u64, to: u64) -> u64 {
        let looked = (from..to).take_while(|now| busy.looks_again(at(*now))).count();
        busy.came(at(to));
        looked as u64
    }

    #[test]
    fn a_short_wait_is_looked_through_and_a_long_one_up_to_the_limit() {
        let mut busy = BusyPoll::new(MOST);
        assert_eq!(wait(&mut busy, 0, 40), 40);
        assert_eq!(wait(&mut busy, 50, 5_000), 100);
    }

    #[test]
    fn long_waits_end_it_and_a_short_one_begins_it_anew() {
        let mut busy = BusyPoll::new(MOST);
        let looked: Vec<_> = (0..5).map(|n| wait(&mut busy, n * 1_000, n * 1_000 + 500)).collect();
        assert_eq!(looked, [100, 100, 100, 0, 0]);
        assert_eq!(wait(&mut busy, 10_000, 10_050), 0, "slept, and too short for that");
        assert_eq!(wait(&mut busy, 11_000, 11_050), 50);
    }

    #[test]
    fn switched_off_it_never_looks_again() {
        let mut busy = BusyPoll::new(Duration::ZERO);
        assert!(!busy.is_on());
        assert_eq!(wait(&mut busy, 0, 10) + wait(&mut busy, 20, 20) + wait(&mut busy, 30, 31), 0);
    }
}
