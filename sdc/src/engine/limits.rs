//! The limits of a mapping: requests pass one by one, held back where the mapping would do more than it may.
//!
//! What passes when is decided in [`queue`], which knows no clock; here are the lock, the timer and the waiting. A mapping
//! without limits costs a request one atomic read. Volumes have nothing in common here, so none waits for another; the
//! connections of a volume get equal shares of what the mapping may do. Bounded by what a connection may have under way.

pub mod queue;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pflex_common::map::Limits;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use self::queue::{Cost, Lane, Queue, Ticket};

/// The limits of one mapping, as they are now.
#[derive(Debug)]
pub struct Throttle {
    state: Mutex<State>,
    limited: AtomicBool,
    changed: Notify,
    started: Instant,
    runtime: tokio::runtime::Handle,
    held_back: AtomicU64,
    held_back_us: AtomicU64,
}

#[derive(Debug)]
struct State {
    queue: Queue<oneshot::Sender<()>>,
    next_lane: u64,
    /// A task lets requests pass; there is one while any waits.
    pumping: bool,
}

/// Takes a waiting request out of the queue when nobody waits for it any more.
struct Place<'a> {
    throttle: &'a Throttle,
    ticket: Ticket,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.throttle.state().queue.cancel(self.ticket);
    }
}

impl Throttle {
    /// Without limits, until they are set. Its timers run on the present runtime.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State { queue: Queue::default(), next_lane: 1, pumping: false }),
            limited: AtomicBool::new(false),
            changed: Notify::new(),
            started: Instant::now(),
            runtime: tokio::runtime::Handle::current(),
            held_back: AtomicU64::new(0),
            held_back_us: AtomicU64::new(0),
        })
    }

    /// Takes other limits, also for what waits already.
    pub fn set(&self, limits: Limits) {
        let mut state = self.state();
        if state.queue.limits() != limits {
            state.queue.set(limits, self.now());
            self.limited.store(limits != Limits::default(), Ordering::Release);
            drop(state);
            self.changed.notify_one();
        }
    }

    /// The limits that hold now.
    pub fn limits(&self) -> Limits {
        self.state().queue.limits()
    }

    /// Whether any limit holds.
    pub fn is_limited(&self) -> bool {
        self.limited.load(Ordering::Acquire)
    }

    /// A lane for one more connection; given back with [`Self::leave`].
    pub fn lane(&self) -> Lane {
        let mut state = self.state();
        state.next_lane += 1;
        Lane(state.next_lane)
    }

    /// The connection of a lane has ended.
    pub fn leave(&self, lane: Lane) {
        self.state().queue.leave(lane);
    }

    /// Waits until a request may be begun. Cancel-safe: a request that is given up takes nothing from the others.
    pub async fn pass(self: &Arc<Self>, lane: Lane, cost: Cost) {
        if !self.is_limited() {
            return;
        }
        let (place, passed) = {
            let mut state = self.state();
            let now = self.now();
            if state.queue.pass(lane, cost, now) {
                return;
            }
            let (sender, passed) = oneshot::channel();
            let ticket = state.queue.wait(lane, cost, sender);
            if !state.pumping {
                state.pumping = true;
                self.runtime.spawn(Arc::clone(self).pump());
            }
            (Place { throttle: self, ticket }, passed)
        };
        let began = Instant::now();
        self.held_back.fetch_add(1, Ordering::Relaxed);
        // Its sender is dropped only with this place.
        let _ = passed.await;
        drop(place);
        self.held_back_us.fetch_add(began.elapsed().as_micros() as u64, Ordering::Relaxed);
    }

    /// How many requests were held back so far.
    pub fn held_back(&self) -> u64 {
        self.held_back.load(Ordering::Relaxed)
    }

    /// And for how long, all together; those that wait now are counted when they pass.
    pub fn held_back_for(&self) -> Duration {
        Duration::from_micros(self.held_back_us.load(Ordering::Relaxed))
    }

    /// How many wait now.
    pub fn waiting(&self) -> usize {
        self.state().queue.len()
    }

    /// Lets requests pass when their time has come, until none waits.
    async fn pump(self: Arc<Self>) {
        loop {
            let next = {
                let mut state = self.state();
                let now = self.now();
                while let Some(passed) = state.queue.due(now) {
                    // Nobody there: then its place is being given up in this moment.
                    let _ = passed.send(());
                }
                match state.queue.next_at() {
                    Some(next) => next,
                    None => {
                        state.pumping = false;
                        return;
                    }
                }
            };
            tokio::select! {
                () = tokio::time::sleep_until(self.started + next) => {}
                () = self.changed.notified() => {}
            }
        }
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPERATION: Cost = Cost { operations: 1, bytes: 4096 };

    async fn passes(throttle: &Arc<Throttle>, lane: Lane, count: u32) -> Duration {
        let began = Instant::now();
        for _ in 0..count {
            throttle.pass(lane, OPERATION).await;
        }
        began.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_holds_is_counted_and_changes_at_once() {
        let throttle = Throttle::new();
        let lane = throttle.lane();
        assert_eq!(passes(&throttle, lane, 10_000).await, Duration::ZERO, "no limit");
        throttle.set(Limits { iops: 100, bandwidth: 0 });
        let took = passes(&throttle, lane, 300).await;
        assert!(took > Duration::from_millis(2_800) && took < Duration::from_millis(3_100), "{took:?}");
        assert!(throttle.held_back() > 250 && throttle.held_back_for() <= took);
        throttle.set(Limits { iops: 0, bandwidth: 4096 * 1_000 });
        let took = passes(&throttle, lane, 3_000).await;
        assert!(took > Duration::from_millis(2_800) && took < Duration::from_millis(3_200), "{took:?}");

        // One that waits for long goes on when the limit is lifted.
        throttle.set(Limits { iops: 0, bandwidth: 1 });
        throttle.pass(lane, OPERATION).await;
        let waiting = tokio::spawn({
            let throttle = Arc::clone(&throttle);
            async move { throttle.pass(lane, OPERATION).await }
        });
        while throttle.waiting() == 0 {
            tokio::task::yield_now().await;
        }
        throttle.set(Limits::default());
        waiting.await.unwrap();
        assert_eq!(throttle.waiting(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_is_given_up_takes_nothing_from_others() {
        let throttle = Throttle::new();
        let (impatient, patient) = (throttle.lane(), throttle.lane());
        throttle.set(Limits { iops: 10, bandwidth: 0 });
        passes(&throttle, patient, 5).await;
        for _ in 0..100 {
            let passing = throttle.pass(impatient, OPERATION);
            let _ = tokio::time::timeout(Duration::from_millis(1), passing).await;
        }
        assert_eq!(throttle.waiting(), 0);
        let took = passes(&throttle, patient, 10).await;
        assert!(took < Duration::from_millis(1_200), "{took:?}");
    }
}
