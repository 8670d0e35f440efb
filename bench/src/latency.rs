//! How long operations took.

use std::time::Duration;

use serde_json::{Value, json};

/// Every operation's time, in microseconds: a run has some hundred thousand, so nothing needs to be rounded away.
#[derive(Default)]
pub(crate) struct Latencies(Vec<u32>);

impl Latencies {
    pub(crate) fn note(&mut self, took: Duration) {
        self.0.push(u32::try_from(took.as_micros()).unwrap_or(u32::MAX));
    }

    pub(crate) fn merge(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// Operations a second and percentiles.
    pub(crate) fn summary(mut self, wall: Duration) -> Value {
        self.0.sort_unstable();
        json!({
            "operations": self.0.len(),
            "per_second": (self.0.len() as f64 / wall.as_secs_f64()).round(),
            "p50_us": self.percentile(50),
            "p99_us": self.percentile(99),
            "max_us": self.0.last(),
        })
    }

    /// Of the sorted times.
    fn percentile(&self, percent: usize) -> Option<u32> {
        self.0.get((self.0.len() * percent / 100).min(self.0.len().saturating_sub(1))).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_all_operations() {
        let mut latencies = Latencies::default();
        for us in (1..=200).rev() {
            latencies.note(Duration::from_micros(us));
        }
        let summary = latencies.summary(Duration::from_secs(2));
        assert_eq!(summary["per_second"], 100.0);
        assert_eq!(
            (&summary["p50_us"], &summary["p99_us"], &summary["max_us"]),
            (&json!(101), &json!(199), &json!(200))
        );
    }

    #[test]
    fn nothing_done_has_no_percentiles() {
        assert_eq!(Latencies::default().summary(Duration::from_secs(1))["p50_us"], Value::Null);
    }
}
