//! How long things took: a histogram that one thread writes and others read, without a lock.
//!
//! Buckets are a quarter of a power of two wide (a reading is at most 25 % too high), from a microsecond to 2^32 of them.
//! Counters only grow; who wants an interval takes two snapshots and subtracts.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// Of a power of two.
const PARTS: u64 = 4;
const BUCKETS: usize = (33 * PARTS) as usize;

/// See the module.
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    sum_us: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: std::array::from_fn(|_| AtomicU64::new(0)), sum_us: AtomicU64::new(0) }
    }
}

impl fmt::Debug for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.snapshot().fmt(f)
    }
}

/// A histogram at one moment. Buckets without a count are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The sum of all that was recorded, in microseconds.
    pub sum_us: u64,
    /// (at most so many microseconds, how many), rising.
    pub buckets: Vec<(u64, u64)>,
}

impl Histogram {
    /// One more that took so long.
    pub fn record(&self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).min(u64::from(u32::MAX));
        self.buckets[bucket_of(us)].fetch_add(1, Relaxed);
        self.sum_us.fetch_add(us, Relaxed);
    }

    /// What was recorded until now.
    pub fn snapshot(&self) -> Snapshot {
        let counts = self.buckets.iter().map(|count| count.load(Relaxed)).enumerate();
        let buckets = counts.filter(|(_, count)| *count > 0).map(|(bucket, count)| (highest_in(bucket), count));
        Snapshot { buckets: buckets.collect(), sum_us: self.sum_us.load(Relaxed) }
    }
}

impl Snapshot {
    /// How many were recorded.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|(_, count)| count).sum()
    }

    /// The latency, in microseconds, that this part (0 to 1) of all did not exceed; none if there was nothing.
    pub fn quantile_us(&self, part: f64) -> Option<u64> {
        let rank = (part.clamp(0.0, 1.0) * self.count() as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        let found = self.buckets.iter().find(|(_, count)| {
            seen += count;
            seen >= rank
        });
        found.map(|(most, _)| *most)
    }

    /// What came after `earlier`, a snapshot of the same histogram.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let before = |most: u64| {
            let found = earlier.buckets.binary_search_by_key(&most, |(bucket, _)| *bucket);
            found.map_or(0, |index| earlier.buckets[index].1)
        };
        let left = self.buckets.iter().map(|(most, count)| (*most, count.saturating_sub(before(*most))));
        Self {
            sum_us: self.sum_us.saturating_sub(earlier.sum_us),
            buckets: left.filter(|(_, count)| *count > 0).collect(),
        }
    }
}

/// Below `PARTS` each number has its own; from there the two bits below the highest one tell the quarter.
fn bucket_of(us: u64) -> usize {
    if us < PARTS {
        return us as usize;
    }
    let power = u64::from(us.ilog2());
    let quarter = (us >> (power - 2)) & (PARTS - 1);
    ((power - 1) * PARTS + quarter) as usize
}

fn highest_in(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < PARTS {
        return bucket;
    }
    let (power, quarter) = (bucket / PARTS + 1, bucket % PARTS);
    (1 << power) + ((quarter + 1) << (power - 2)) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_in_the_bucket_that_ends_not_far_above_it() {
        let numbers = (0..100_000).chain((5..32).flat_map(|power| [(1 << power) - 1, 1 << power, (1 << power) + 1]));
        for us in numbers.chain([u64::from(u32::MAX)]) {
            let bucket = bucket_of(us);
            let most = highest_in(bucket);
            assert!(most >= us && most <= us + us / 4, "{us} is in the bucket up to {most}");
            assert!(bucket == 0 || highest_in(bucket - 1) < us, "{us} belongs in an earlier bucket");
        }
    }

    #[test]
    fn quantiles_and_intervals_are_those_of_what_was_recorded() {
        let histogram = Histogram::default();
        assert_eq!(histogram.snapshot().quantile_us(0.5), None);
        (0..99).for_each(|_| histogram.record(Duration::from_micros(100)));
        let before = histogram.snapshot();
        histogram.record(Duration::from_secs(1 << 40));
        let all = histogram.snapshot();
        assert_eq!((all.count(), all.quantile_us(0.99), all.quantile_us(0.0)), (100, Some(111), Some(111)));
        assert!(
            all.quantile_us(1.0).is_some_and(|most| most >= u64::from(u32::MAX)),
            "what is too long is the longest"
        );
        let after = all.since(&before);
        assert_eq!((after.count(), after.sum_us), (1, u64::from(u32::MAX)));
        assert_eq!(all.since(&all), Snapshot::default());
    }
}
