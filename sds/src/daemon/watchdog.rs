//! Notices a data thread that has stopped turning its loop: not dead (a panic ends the process), but hung in a system call or
//! an endless loop. Its device would look healthy for ever, because others send the beats.
//!
//! The loop counts its turns, one each 50 ms at least, whatever the disk does: disk IO is on other threads, so a slow disk
//! does not stop it. Only [`HUNG`] without a turn, watched all the time, makes a device unhealthy; a watcher that was away
//! itself (a stopped process, a machine that slept) starts over. A device that turns again is healthy again.

use std::{sync::Arc, sync::atomic::Ordering, time::Duration};

use pflex_common::clock::MonotonicTime;
use tracing::{error, info};

use super::Server;

/// A thread without a turn for this long is hung: a hundred turns have not happened.
const HUNG: Duration = Duration::from_secs(5);
/// Between two looks.
const INTERVAL: Duration = Duration::from_millis(500);
/// A look this late means that the watcher was away as well.
const AWAY: Duration = Duration::from_secs(2);

/// The view of one data thread.
#[derive(Debug)]
struct Watchdog {
    turns: u64,
    since: MonotonicTime,
    looked: MonotonicTime,
}

impl Watchdog {
    const fn new(now: MonotonicTime) -> Self {
        Self { turns: 0, since: now, looked: now }
    }

    /// How long the thread has been hung, if it is.
    fn look(&mut self, now: MonotonicTime, turns: u64) -> Option<Duration> {
        let away = now.since(self.looked) >= AWAY;
        self.looked = now;
        if away || turns != self.turns {
            (self.turns, self.since) = (turns, now);
        }
        let still = now.since(self.since);
        (still >= HUNG).then_some(still)
    }
}

/// Until the process ends.
pub(super) async fn run(server: Arc<Server>) {
    let mut dogs = Vec::new();
    loop {
        tokio::time::sleep(INTERVAL).await;
        let devices = server.devices();
        // Devices only become more.
        dogs.resize_with(devices.len(), || Watchdog::new(MonotonicTime::now()));
        for (dog, device) in dogs.iter_mut().zip(devices.iter()) {
            let counters = &device.counters;
            let hung = dog.look(MonotonicTime::now(), counters.turns.load(Ordering::Relaxed));
            let hung_ms = hung.map_or(0, |hung| u64::try_from(hung.as_millis()).unwrap_or(u64::MAX));
            match (counters.hung_ms.swap(hung_ms, Ordering::Relaxed), hung_ms) {
                (0, 1..) => error!(device = %device.own.device, "the data thread hangs; the device is out of service"),
                (1.., 0) => info!(device = %device.own.device, "the data thread turns again"),
                (0, 0) | (1.., 1..) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> MonotonicTime {
        MonotonicTime::from_start(Duration::from_millis(ms))
    }

    #[test]
    fn a_slow_loop_is_not_hung_and_one_that_stopped_is() {
        let mut dog = Watchdog::new(at(0));
        for ms in (500..60_000).step_by(500) {
            // One turn in 4.5 s.
            assert_eq!(dog.look(at(ms), ms / 4_500), None, "{ms}");
        }
        let turns = 60_000 / 4_500;
        let mut hung = (60_000..70_000).step_by(500).map(|ms| (ms, dog.look(at(ms), turns)));
        let (first, _) = hung.find(|(_, hung)| hung.is_some()).unwrap();
        assert!((63_500..65_500).contains(&first), "{first}");
        assert!(hung.all(|(_, hung)| hung.is_some()), "for as long as it lasts");
        assert_eq!(dog.look(at(70_000), turns + 1), None, "it turns again");
    }

    #[tokio::test]
    async fn a_data_thread_that_hangs_is_told_from_one_that_turns() {
        let (device, _reports) = crate::worker::testing::device();
        let turns = || device.counters.turns.load(Ordering::Relaxed);
        let turned = async |from| {
            while turns() == from {
                tokio::task::yield_now().await
            }
        };
        turned(turns()).await;
        let (begun, hangs) = tokio::sync::oneshot::channel();
        let (release, until) = std::sync::mpsc::channel();
        device.send(crate::worker::Command::Hang { begun, until }).await;
        hangs.await.unwrap();
        let mut dog = Watchdog::new(at(0));
        let hung = (500..=6_000).step_by(500).find_map(|ms| dog.look(at(ms), turns()));
        assert_eq!(hung, Some(HUNG));
        let stood_at = turns();
        release.send(()).unwrap();
        turned(stood_at).await;
        assert_eq!(dog.look(at(6_500), turns()), None);
        device.counters.hung_ms.store(7_100, Ordering::Relaxed);
        assert_eq!(device.counters.sick(MonotonicTime::now()).unwrap(), "its data thread has hung for 7 s");
        device.stop().await;
    }

    #[test]
    fn a_watcher_that_was_away_itself_says_nothing() {
        let mut dog = Watchdog::new(at(0));
        assert_eq!(dog.look(at(500), 3), None);
        assert_eq!(dog.look(at(100_000), 3), None, "the whole process was stopped");
        assert_eq!(dog.look(at(100_500), 3), None);
    }
}
