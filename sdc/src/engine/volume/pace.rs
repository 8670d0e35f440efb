//! How long an IO waits between its attempts, and when it gives up.

use std::fmt::Display;
use std::time::Duration;

use pflex_proto::ids::{DeviceId, Epoch, PgId};
use rand::RngExt;
use tokio::sync::watch;
use tokio::time::Instant;

use super::super::routes::{Route, Routes};
use crate::block::IoError;

/// The first pause.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
/// The longest: short against any failover, long enough not to matter to an SDS that is busy coming back.
const LONGEST_PAUSE: Duration = Duration::from_millis(100);
/// Attempts that may follow one another without a pause: more would mean that two sides disagree for good.
const ATTEMPTS_AT_ONCE: u32 = 3;

/// The pace of one IO.
#[derive(Debug)]
pub(super) struct Pace {
    allowed: Duration,
    /// Known from the first failure on: an IO that succeeds at once asks no clock.
    started: Option<Instant>,
    /// Known from the first answer on that may be right, or of one who has not heard (`Verdict::Grace`).
    doubted: Option<Instant>,
    at_once: u32,
    pause: Duration,
}

impl Pace {
    pub(super) const fn new(allowed: Duration) -> Self {
        Self { allowed, started: None, doubted: None, at_once: 0, pause: FIRST_PAUSE }
    }

    /// Whether an attempt has failed.
    pub(super) const fn is_retrying(&self) -> bool {
        self.started.is_some()
    }

    /// Time since the first failure.
    pub(super) fn stalled(&self) -> Option<Duration> {
        self.started.map(|started| started.elapsed())
    }

    /// Whether what an answer says has been doubted for so long, from now on if not before. What failed earlier for another
    /// reason, a failover say, does not count: who takes over may be the one that has not heard.
    pub(super) fn doubted_for(&mut self, so_long: Duration) -> bool {
        self.doubted.get_or_insert_with(Instant::now).elapsed() >= so_long
    }

    /// What is left of the time it may take.
    pub(super) fn left(&self) -> Duration {
        self.allowed.saturating_sub(self.stalled().unwrap_or_default())
    }

    /// So much of its time went before it was sent. After a failure its time runs anyway.
    pub(super) fn spent(&mut self, waited: Duration) {
        if self.started.is_none() {
            self.allowed = self.allowed.saturating_sub(waited);
        }
    }

    /// Its time has run since then, if not earlier.
    pub(super) fn began(&mut self, at: Instant) {
        self.started.get_or_insert(at);
    }

    /// Goes on at once, unless this happens again and again.
    pub(super) async fn again(&mut self, why: &impl Display) -> Result<(), IoError> {
        self.at_once += 1;
        let pause = if self.at_once > ATTEMPTS_AT_ONCE { self.next_pause() } else { Duration::ZERO };
        self.sleep(pause, why, std::future::pending()).await
    }

    /// Waits for a pause, or until `changes` tells something.
    pub(super) async fn wait(&mut self, changes: &mut watch::Receiver<u64>, why: impl Display) -> Result<(), IoError> {
        let pause = self.next_pause();
        let changed = async {
            // A sender that is gone tells nothing any more.
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        self.sleep(pause, &why, changed).await
    }

    /// Waits for a pause, or until the route of `pg` is another one than the attempt took.
    pub(super) async fn wait_from(
        &mut self,
        changes: &mut watch::Receiver<u64>,
        epoch: Epoch,
        device: DeviceId,
        pg: PgId,
        routes: &Routes,
        why: &impl Display,
    ) -> Result<(), IoError> {
        let pause = self.next_pause();
        let tried = Some((epoch, Some(device)));
        let present = |route: Route| (route.epoch, route.primary);
        let changed = async {
            while routes.route(pg).map(present) == tried {
                if changes.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        self.sleep(pause, why, changed).await
    }

    fn next_pause(&mut self) -> Duration {
        let pause = self.pause;
        self.pause = (pause * 2).min(LONGEST_PAUSE);
        // Half of it at random: those who failed together must not come back together.
        pause / 2 + rand::rng().random_range(Duration::ZERO..=pause / 2)
    }

    async fn sleep(
        &mut self,
        pause: Duration,
        why: &impl Display,
        change: impl Future<Output = ()>,
    ) -> Result<(), IoError> {
        let started = *self.started.get_or_insert_with(Instant::now);
        if started.elapsed() >= self.allowed {
            return Err(IoError::Failed(format!("not done within {:?}: {why}", self.allowed)));
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = change => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_doubted_from_the_first_of_its_kind_on() {
        let second = Duration::from_secs(1);
        let mut pace = Pace::new(10 * second);
        pace.again(&"no server answers").await.unwrap();
        tokio::time::advance(4 * second).await;
        assert!(!pace.doubted_for(3 * second), "the first server that answers may not have heard yet");
        tokio::time::advance(2 * second).await;
        assert!(!pace.doubted_for(3 * second));
        tokio::time::advance(second).await;
        assert!(pace.doubted_for(3 * second));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_waited_for_a_token_counts_once() {
        let second = Duration::from_secs(1);
        let mut pace = Pace::new(10 * second);
        pace.spent(2 * second);
        assert_eq!(pace.left(), 8 * second);
        pace.again(&"the first attempt fails").await.unwrap();
        tokio::time::advance(3 * second).await;
        pace.spent(3 * second);
        assert_eq!(pace.left(), 5 * second, "the clock has run since the failure");
    }
}
