//! Who passes next, and when: the decisions of a [`Throttle`](super::Throttle), with time as an argument.
//!
//! **When:** each limit is a bucket, kept as the instant at which it has no debt (GCRA). A request passes when neither
//! limit is in debt, and then adds what it costs. So a request of any size passes, what follows waits for it, and a mapping
//! that was idle may do [`BURST`] at once. Over any time t no limit lets more pass than t + BURST times its rate, and one
//! request.
//!
//! **Who:** start-time fair queueing (Goyal et al. 1996). A request of a lane that waits gets the tag at which the lane's
//! requests before it would end, if the lanes took turns; the lowest tag passes first. So lanes that always have something
//! waiting get equal shares of the limit's time, whatever the size and number of their requests, and one that was idle is
//! neither behind nor ahead.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use pflex_common::map::Limits;

/// What an idle mapping saves up. Longer than a timer is late, shorter than a person sees.
pub const BURST: Duration = Duration::from_millis(100);

/// What a request takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// Of the limit of operations.
    pub operations: u64,
    /// Of the limit of bytes.
    pub bytes: u64,
}

/// One of those that share a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Lane(pub u64);

/// A waiting request: its tag, and its number where tags are equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(Duration, u64);

#[derive(Debug)]
struct Waiting<T> {
    cost: Cost,
    whom: T,
}

/// One limit.
#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    /// A second; 0 for any.
    rate: u64,
    /// When it has no debt.
    free_at: Duration,
}

impl Bucket {
    fn takes(&self, amount: u64) -> Duration {
        match self.rate {
            0 => Duration::ZERO,
            rate => {
                let nanoseconds = u128::from(amount) * 1_000_000_000 / u128::from(rate);
                Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
            }
        }
    }

    fn take(&mut self, amount: u64, now: Duration) {
        let from = self.free_at.max(now.saturating_sub(BURST));
        self.free_at = from.saturating_add(self.takes(amount));
    }

    /// Another rate; what is owed stays, and is paid at the new rate.
    fn set(&mut self, rate: u64, now: Duration) {
        if rate == self.rate {
            return;
        }
        let owed = match rate {
            0 => Duration::ZERO,
            rate => self.free_at.saturating_sub(now).mul_f64(self.rate as f64 / rate as f64),
        };
        (self.rate, self.free_at) = (rate, now.saturating_add(owed));
    }
}

/// The requests of one mapping that are held back.
#[derive(Debug)]
pub struct Queue<T> {
    operations: Bucket,
    bytes: Bucket,
    waiting: BTreeMap<Ticket, Waiting<T>>,
    /// Where the next request of a lane begins; none that lie before `clock`, which say nothing.
    lanes: HashMap<Lane, Duration>,
    /// The tag of what passed last.
    clock: Duration,
    next: u64,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self {
            operations: Bucket::default(),
            bytes: Bucket::default(),
            waiting: BTreeMap::new(),
            lanes: HashMap::new(),
            clock: Duration::ZERO,
            next: 0,
        }
    }
}

impl<T> Queue<T> {
    /// Takes other limits.
    pub fn set(&mut self, limits: Limits, now: Duration) {
        self.operations.set(limits.iops, now);
        self.bytes.set(limits.bandwidth, now);
    }

    /// The limits.
    pub const fn limits(&self) -> Limits {
        Limits { iops: self.operations.rate, bandwidth: self.bytes.rate }
    }

    /// Lets a request pass now, if nothing is owed and nobody waits.
    pub fn pass(&mut self, lane: Lane, cost: Cost, now: Duration) -> bool {
        let passes = self.waiting.is_empty() && self.free_at() <= now;
        if passes {
            self.clock = self.tag(lane, cost);
            self.take(cost, now);
        }
        passes
    }

    /// Makes a request wait.
    pub fn wait(&mut self, lane: Lane, cost: Cost, whom: T) -> Ticket {
        self.next += 1;
        let ticket = Ticket(self.tag(lane, cost), self.next);
        self.waiting.insert(ticket, Waiting { cost, whom });
        ticket
    }

    /// The next one, if it may pass now.
    pub fn due(&mut self, now: Duration) -> Option<T> {
        if self.free_at() > now {
            return None;
        }
        let (Ticket(tag, _), Waiting { cost, whom }) = self.waiting.pop_first()?;
        self.clock = tag;
        self.take(cost, now);
        Some(whom)
    }

    /// When the next one may pass; none if none waits.
    pub fn next_at(&self) -> Option<Duration> {
        (!self.waiting.is_empty()).then(|| self.free_at())
    }

    /// Takes a request out, if it still waits.
    pub fn cancel(&mut self, ticket: Ticket) {
        self.waiting.remove(&ticket);
    }

    /// Forgets a lane.
    pub fn leave(&mut self, lane: Lane) {
        self.lanes.remove(&lane);
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    fn free_at(&self) -> Duration {
        self.operations.free_at.max(self.bytes.free_at)
    }

    fn take(&mut self, cost: Cost, now: Duration) {
        self.operations.take(cost.operations, now);
        self.bytes.take(cost.bytes, now);
    }

    /// The tag of one more request of a lane.
    fn tag(&mut self, lane: Lane, cost: Cost) -> Duration {
        let takes = self.operations.takes(cost.operations).max(self.bytes.takes(cost.bytes));
        let next = self.lanes.entry(lane).or_default();
        let tag = self.clock.max(*next);
        *next = tag.saturating_add(takes);
        tag
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KIB: u64 = 1024;

    fn limited(iops: u64, bandwidth: u64) -> Queue<usize> {
        let mut queue = Queue::default();
        queue.set(Limits { iops, bandwidth }, Duration::ZERO);
        queue
    }

    fn of(bytes: u64) -> Cost {
        Cost { operations: 1, bytes }
    }

    /// Lanes that always have `depth` requests of their own size waiting; what each was given after `passes`.
    fn shares(queue: &mut Queue<usize>, sizes: &[u64], depths: &[usize], passes: usize) -> Vec<u64> {
        let mut given = vec![0; sizes.len()];
        for (lane, size) in sizes.iter().enumerate() {
            for _ in 0..depths[lane % depths.len()] {
                queue.wait(Lane(lane as u64), of(*size), lane);
            }
        }
        for _ in 0..passes {
            let now = queue.next_at().unwrap();
            let lane = queue.due(now).unwrap();
            given[lane] += sizes[lane];
            queue.wait(Lane(lane as u64), of(sizes[lane]), lane);
        }
        given
    }

    #[test]
    fn lanes_of_a_limit_of_bytes_get_the_same_bytes_whatever_they_ask_for() {
        let sizes: Vec<_> = (0..64).map(|lane| [4 * KIB, 64 * KIB, 1024 * KIB][lane % 3]).collect();
        let given = shares(&mut limited(0, 100 << 20), &sizes, &[1, 64, 8, 2], 200_000);
        let (least, most) = (given.iter().min().unwrap(), given.iter().max().unwrap());
        assert!((*most as f64 / *least as f64) < 1.02, "{least} to {most}");
    }

    #[test]
    fn lanes_of_a_limit_of_operations_get_the_same_number_of_them() {
        let sizes: Vec<_> = (0..64).map(|lane| [4 * KIB, 1024 * KIB][lane % 2]).collect();
        let given = shares(&mut limited(1_000, 0), &sizes, &[32, 1], 64_000);
        let operations: Vec<_> = given.iter().zip(&sizes).map(|(given, size)| given / size).collect();
        assert!(operations.iter().all(|count| (990..=1_010).contains(count)), "{operations:?}");
    }

    #[test]
    fn who_was_idle_is_neither_behind_nor_ahead() {
        let mut queue = limited(1_000, 0);
        shares(&mut queue, &[KIB], &[4], 10_000);
        queue.wait(Lane(7), of(KIB), 7);
        let passed: Vec<_> = (0..2).map(|_| queue.due(queue.next_at().unwrap()).unwrap()).collect();
        assert!(passed.contains(&7), "its turn comes at once: {passed:?}");
        for _ in 0..100 {
            queue.wait(Lane(7), of(KIB), 7);
            queue.wait(Lane(0), of(KIB), 0);
        }
        let sevens = (0..100).filter(|_| queue.due(queue.next_at().unwrap()) == Some(7)).count();
        assert!((45..=55).contains(&sevens), "and it does not make up for the past: {sevens} of 100");
    }

    #[test]
    fn requests_of_a_lane_keep_their_order_and_those_given_up_are_gone() {
        let mut queue = limited(10, 0);
        let tickets: Vec<_> = (0..5).map(|nth| queue.wait(Lane(1), of(0), nth)).collect();
        queue.cancel(tickets[2]);
        let passed: Vec<_> = std::iter::from_fn(|| queue.due(queue.next_at()?)).collect();
        assert_eq!(passed, [0, 1, 3, 4]);
        queue.cancel(tickets[0]);
        assert!(queue.is_empty() && queue.next_at().is_none());
    }

    #[test]
    fn what_is_owed_is_paid_at_the_new_rate() {
        let mut queue = limited(0, 1_000);
        assert!(queue.pass(Lane(1), of(100_000), Duration::from_secs(1)), "a request of any size passes");
        assert!(!queue.pass(Lane(1), of(1), Duration::from_secs(90)));
        queue.set(Limits { iops: 0, bandwidth: 100_000 }, Duration::from_secs(1));
        assert!(queue.pass(Lane(1), of(1), Duration::from_secs(2)));
        queue.set(Limits::default(), Duration::from_secs(2));
        assert!(queue.pass(Lane(1), of(u64::MAX), Duration::from_secs(2)) && queue.limits() == Limits::default());
    }

    proptest! {
        #[test]
        fn no_limit_is_exceeded_over_any_time(
            iops in prop_oneof![Just(0), 1..5_000_u64],
            bandwidth in prop_oneof![Just(0), 1..50_000_000_u64],
            script in proptest::collection::vec((0..4_u64, 0..300_000_u64, 0..200_u64), 1..200),
        ) {
            let mut queue = limited(iops, bandwidth);
            let mut now = Duration::from_secs(10);
            // What passed when.
            let mut passed: Vec<(Duration, Cost)> = Vec::new();
            let mut costs = Vec::new();
            for (lane, bytes, pause_ms) in script {
                let until = now + Duration::from_millis(pause_ms);
                while let Some(at) = queue.next_at().filter(|at| *at <= until) {
                    now = now.max(at);
                    let nth = queue.due(now).unwrap();
                    passed.push((now, costs[nth]));
                }
                now = until;
                costs.push(of(bytes));
                if queue.pass(Lane(lane), of(bytes), now) {
                    passed.push((now, of(bytes)));
                } else {
                    queue.wait(Lane(lane), of(bytes), costs.len() - 1);
                }
            }
            for (from, (began, _)) in passed.iter().enumerate() {
                let (mut operations, mut bytes) = (0, 0);
                for (at, cost) in &passed[from..] {
                    // Without the last one, which may be of any size.
                    let time = (*at - *began + BURST).as_secs_f64() + 1e-6;
                    prop_assert!(iops == 0 || operations as f64 <= time * iops as f64 + 1.0);
                    prop_assert!(bandwidth == 0 || bytes as f64 <= time * bandwidth as f64 + 1.0);
                    operations += cost.operations;
                    bytes += cost.bytes;
                }
            }
        }
    }
}
