//! How many requests and bytes a second a device serves: its counters as looked at each second, over the last ten. Pure.

use std::collections::VecDeque;

use pflex_common::clock::MonotonicTime;
use pflex_proto::pb::DeviceRates;

/// Looks that are kept.
const KEPT: usize = 11;

/// The counters at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    pub(super) at: MonotonicTime,
    /// Reads, their bytes, writes, their bytes, bytes to copies being filled.
    pub(super) counts: [u64; 5],
}

/// The last looks at one device.
#[derive(Debug, Default)]
pub(crate) struct Rates {
    looks: VecDeque<Look>,
}

impl Rates {
    pub(super) fn add(&mut self, look: Look) {
        if self.looks.len() == KEPT {
            self.looks.pop_front();
        }
        self.looks.push_back(look);
    }

    /// Nothing until there were two looks.
    pub(crate) fn get(&self) -> DeviceRates {
        let (Some(first), Some(last)) = (self.looks.front(), self.looks.back()) else { return DeviceRates::default() };
        let seconds = last.at.since(first.at).as_secs_f64();
        let rate = |which: usize| {
            let grown = last.counts[which].saturating_sub(first.counts[which]) as f64;
            if seconds > 0.0 { grown / seconds } else { 0.0 }
        };
        DeviceRates {
            reads_per_second: rate(0),
            read_bytes_per_second: rate(1),
            writes_per_second: rate(2),
            written_bytes_per_second: rate(3),
            resync_bytes_per_second: rate(4),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_rate_is_of_the_last_looks_alone() {
        let mut rates = Rates::default();
        assert_eq!(rates.get(), DeviceRates::default());
        for second in 0..30_u64 {
            let reads = if second < 15 { 1000 * second } else { 15_000 + 10 * (second - 15) };
            let at = MonotonicTime::from_start(Duration::from_secs(second));
            rates.add(Look { at, counts: [reads, 4096 * reads, 0, 0, 7 * second] });
        }
        let rates = rates.get();
        assert_eq!((rates.reads_per_second, rates.read_bytes_per_second), (10.0, 40_960.0));
        assert_eq!((rates.writes_per_second, rates.resync_bytes_per_second), (0.0, 7.0));
    }
}
