//! How much the volumes do in a second: their counters are looked at once a second and kept for ten.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pflex_common::shutdown::Shutdown;
use pflex_proto::ids::VolumeId;
use tokio::time::Instant;

use super::MappedVolumes;

const PERIOD: Duration = Duration::from_secs(1);
/// Looks that are kept: the rates are those of the time between the first and now.
const KEPT: usize = 10;

/// Counters of a volume: reads, writes, bytes read, bytes written.
pub(super) type Counters = [u64; 4];

/// What was seen at one look.
type Look = (Instant, HashMap<VolumeId, Counters>);

/// What was seen.
#[derive(Clone, Debug, Default)]
pub(super) struct Rates(Arc<Mutex<VecDeque<Look>>>);

impl Rates {
    /// Looks until `shutdown`.
    pub(super) async fn follow(self, volumes: Arc<MappedVolumes>, shutdown: Shutdown) {
        let mut period = tokio::time::interval(PERIOD);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _now = period.tick() => {}
            }
            let volumes = volumes.engine().volumes();
            let seen = volumes.iter().map(|volume| (volume.id(), volume.statistics().counters()));
            self.look(Instant::now(), seen.collect());
        }
    }

    fn look(&self, now: Instant, seen: HashMap<VolumeId, Counters>) {
        let mut looks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if looks.len() >= KEPT {
            looks.pop_front();
        }
        looks.push_back((now, seen));
    }

    /// What a second of a volume is, whose counters are these now. One that was not there yet began with nothing.
    pub(super) fn of(&self, volume: VolumeId, counters: Counters, now: Instant) -> [f64; 4] {
        let looks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((began, seen)) = looks.front() else { return [0.0; 4] };
        let before = seen.get(&volume).copied().unwrap_or_default();
        let seconds = now.duration_since(*began).max(PERIOD).as_secs_f64();
        std::array::from_fn(|nth| counters[nth].saturating_sub(before[nth]) as f64 / seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_those_of_the_last_ten_looks() {
        let (rates, start, volume) = (Rates::default(), Instant::now(), VolumeId(1));
        assert_eq!(rates.of(volume, [5; 4], start), [0.0; 4]);
        for second in 0..30_u64 {
            // 100 a second, and 200 from the 20th on.
            let count = second * 100 + second.saturating_sub(20) * 100;
            rates.look(start + Duration::from_secs(second), HashMap::from([(volume, [count, 0, count, 1])]));
        }
        let now = start + Duration::from_secs(30);
        assert_eq!(rates.of(volume, [4_000, 0, 4_000, 1], now), [200.0, 0.0, 200.0, 0.0]);
        assert_eq!(rates.of(VolumeId(2), [100, 0, 0, 0], now)[0], 10.0, "a new one");
    }
}
