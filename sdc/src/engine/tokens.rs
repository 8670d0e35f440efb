//! Tokens of all mapped volumes: held here, renewed ahead of their expiry, used by the links.
//!
//! In lease mode a token is good for any IO until it expires, so authorisation is off the path of an IO: as long as
//! the MDM answers once in 45 s, no IO waits for it (S21). This side keeps no clock for expiry: the SDS decides, and its
//! refusal asks for another token. When what is asked for is decided in [`schedule`]. In per-io mode this token opens sessions
//! only, and each operation asks for one of its own ([`super::operation_tokens`]).

mod schedule;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use pflex_proto::ids::VolumeId;
use pflex_proto::token::TokenKey;
use rand::RngExt;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use self::schedule::Schedule;
use super::operation_tokens::{Plan, PlanDesk, Planned};

/// The least time between two requests for tokens, whatever asks for them.
const LEAST_INTERVAL: Duration = Duration::from_millis(100);
/// The longest pause after failures: well below the 45 s that a token still lives.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// A token as the MDM issued it.
#[derive(Clone, Debug)]
pub struct HeldToken {
    /// Rises with each token of this process, so that two can be told apart.
    pub version: u64,
    /// Token and signature.
    pub signed: Vec<u8>,
    /// What session keys are derived from.
    pub key: TokenKey,
}

/// The present token of one volume.
#[derive(Debug)]
pub struct VolumeAuth {
    volume: VolumeId,
    held: RwLock<Option<Arc<HeldToken>>>,
    versions: watch::Sender<u64>,
    wanted: Arc<Wanted>,
    plans: Arc<PlanDesk>,
}

/// Volumes whose tokens were refused since the keeper last looked. At most all mapped ones.
#[derive(Debug, Default)]
pub struct Wanted {
    volumes: Mutex<HashSet<VolumeId>>,
    any: Notify,
}

impl Wanted {
    fn add(&self, volume: VolumeId) {
        if self.volumes.lock().unwrap_or_else(PoisonError::into_inner).insert(volume) {
            self.any.notify_one();
        }
    }

    fn take(&self) -> HashSet<VolumeId> {
        std::mem::take(&mut *self.volumes.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl VolumeAuth {
    /// No token yet. `wanted` is told when one is missing or was refused; tokens of single operations come from `plans`.
    pub fn new(volume: VolumeId, wanted: Arc<Wanted>, plans: Arc<PlanDesk>) -> Arc<Self> {
        Arc::new(Self { volume, held: RwLock::default(), versions: watch::Sender::new(0), wanted, plans })
    }

    /// Whose token it is.
    pub const fn volume(&self) -> VolumeId {
        self.volume
    }

    /// A token of one operation, for per-io mode (S21).
    ///
    /// # Errors
    /// Why there is none.
    pub async fn planned(&self, plan: Plan) -> Planned {
        self.plans.token(plan).await
    }

    /// The present token.
    pub fn token(&self) -> Option<Arc<HeldToken>> {
        self.held.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The version of the present token; 0 without one.
    pub fn version(&self) -> u64 {
        *self.versions.borrow()
    }

    /// Takes a newer token.
    pub fn put(&self, signed: Vec<u8>, key: TokenKey) {
        let version = self.version() + 1;
        *self.held.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(HeldToken { version, signed, key }));
        self.versions.send_replace(version);
    }

    /// Says that the token of this version (0: none) does not do, and returns where a newer one will show, or has shown
    /// if it is there by now.
    pub fn want_newer(&self, refused: u64) -> watch::Receiver<u64> {
        let mut versions = self.versions.subscribe();
        if *versions.borrow_and_update() > refused {
            versions.mark_changed();
        } else {
            self.wanted.add(self.volume);
        }
        versions
    }
}

/// A token fresh from the MDM.
#[derive(Debug)]
pub struct Issued {
    /// For which volume.
    pub volume: VolumeId,
    /// Token and signature.
    pub signed: Vec<u8>,
    /// Its key.
    pub key: TokenKey,
}

/// Where tokens come from: the MDM leader, or a test.
pub trait TokenSource: Send + Sync + 'static {
    /// Asks for tokens of all `volumes` at once. A volume that is refused is missing in the answer.
    fn issue(&self, volumes: &[VolumeId]) -> impl Future<Output = anyhow::Result<Vec<Issued>>> + Send;

    /// Asks for tokens of single operations; the answers are in the order of `plans`.
    fn issue_for(&self, plans: &[Plan]) -> impl Future<Output = anyhow::Result<Vec<Planned>>> + Send;
}

/// Holds and renews the tokens of all mapped volumes.
#[derive(Debug, Default)]
pub struct TokenKeeper {
    held: Mutex<Held>,
    wanted: Arc<Wanted>,
    plans: Arc<PlanDesk>,
}

#[derive(Debug, Default)]
struct Held {
    auths: HashMap<VolumeId, Arc<VolumeAuth>>,
    schedule: Schedule,
}

impl TokenKeeper {
    /// The place of a volume's token; a first token is asked for at once.
    pub fn auth(&self, volume: VolumeId) -> Arc<VolumeAuth> {
        let mut held = self.held();
        let Held { auths, schedule } = &mut *held;
        let auth = auths.entry(volume).or_insert_with(|| {
            schedule.add(volume, Instant::now());
            self.wanted.any.notify_one();
            VolumeAuth::new(volume, Arc::clone(&self.wanted), Arc::clone(&self.plans))
        });
        Arc::clone(auth)
    }

    /// Uses a token that an earlier life of this process got, until there is a newer one.
    pub fn resume(&self, token: Issued) {
        self.auth(token.volume).put(token.signed, token.key);
    }

    /// Stops renewing for a volume that is no longer mapped.
    pub fn forget(&self, volume: VolumeId) {
        let mut held = self.held();
        held.auths.remove(&volume);
        held.schedule.remove(volume);
    }

    /// Renews until `shutdown`.
    pub async fn run(&self, source: impl TokenSource, shutdown: CancellationToken) {
        let work = async {
            let mut failures = 0_u32;
            let mut not_before = Instant::now();
            loop {
                self.wait(not_before).await;
                let asked = Instant::now();
                let volumes = self.due(asked);
                if volumes.is_empty() {
                    continue;
                }
                not_before = asked + LEAST_INTERVAL;
                match source.issue(&volumes).await {
                    Ok(issued) => {
                        debug!(asked = volumes.len(), issued = issued.len(), "tokens renewed");
                        self.take(&volumes, issued, Instant::now());
                        if failures > 0 {
                            info!(failures, "tokens are renewed again");
                        }
                        failures = 0;
                    }
                    Err(error) => {
                        failures += 1;
                        if failures == 1 {
                            warn!(
                                error = format!("{error:#}"),
                                "tokens cannot be renewed; IO goes on until they expire"
                            );
                        }
                        let pause = (LEAST_INTERVAL * 2_u32.pow(failures.min(8))).min(LONGEST_PAUSE);
                        not_before = Instant::now() + pause.mul_f64(rand::rng().random_range(0.5..=1.0));
                    }
                }
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = work => {}
            () = self.plans.serve(&source) => {}
        }
    }

    /// Until something is due, and not before that instant.
    async fn wait(&self, not_before: Instant) {
        tokio::time::sleep_until(not_before).await;
        let due = self.held().schedule.next_due();
        let due = async {
            match due {
                Some(due) => tokio::time::sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = due => {}
            () = self.wanted.any.notified() => {}
        }
    }

    fn due(&self, now: Instant) -> Vec<VolumeId> {
        let mut held = self.held();
        for volume in self.wanted.take() {
            held.schedule.want(volume, now, rand::rng().random());
        }
        held.schedule.due(now)
    }

    fn take(&self, asked: &[VolumeId], issued: Vec<Issued>, now: Instant) {
        let mut held = self.held();
        let random = rand::rng().random();
        let mut missing: HashSet<_> = asked.iter().copied().collect();
        for Issued { volume, signed, key } in issued {
            missing.remove(&volume);
            if let Some(auth) = held.auths.get(&volume) {
                auth.put(signed, key);
            }
            held.schedule.issued(volume, now, random);
        }
        for volume in missing {
            held.schedule.missing(volume, now, random);
        }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().expect("no holder panics")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// Fails a number of times, then issues.
    struct Source {
        failures: AtomicU32,
        asked: Arc<AtomicU32>,
    }

    impl TokenSource for Source {
        async fn issue(&self, volumes: &[VolumeId]) -> anyhow::Result<Vec<Issued>> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            let failing = self.failures.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
            anyhow::ensure!(failing.is_err(), "no leader");
            let key = || TokenKey::from_bytes([1; 32]);
            Ok(volumes.iter().map(|volume| Issued { volume: *volume, signed: vec![1], key: key() }).collect())
        }

        async fn issue_for(&self, _plans: &[Plan]) -> anyhow::Result<Vec<Planned>> {
            anyhow::bail!("not asked here")
        }
    }

    #[tokio::test(start_paused = true)]
    async fn tokens_are_renewed_after_15_s_and_failures_are_tried_again_soon() {
        let (keeper, asked) = (Arc::new(TokenKeeper::default()), Arc::new(AtomicU32::new(0)));
        let auth = keeper.auth(VolumeId(1));
        let source = Source { failures: AtomicU32::new(3), asked: Arc::clone(&asked) };
        let (running, shutdown) = (Arc::clone(&keeper), CancellationToken::new());
        let stop = shutdown.clone();
        let task = tokio::spawn(async move { running.run(source, stop).await });
        let start = Instant::now();
        let mut versions = auth.want_newer(0);
        versions.wait_for(|version| *version == 1).await.unwrap();
        assert!(start.elapsed() < Duration::from_secs(5) && asked.load(Ordering::Relaxed) == 4);
        versions.wait_for(|version| *version == 2).await.unwrap();
        let age = start.elapsed();
        assert!(age > Duration::from_secs(12) && age < Duration::from_secs(23), "{age:?}");
        // A token that was good for a while; one that is refused at once is replaced after a pause (`schedule`).
        tokio::time::sleep(Duration::from_secs(11)).await;
        let age = start.elapsed();
        let _newer = auth.want_newer(2);
        versions.wait_for(|version| *version == 3).await.unwrap();
        assert!(start.elapsed() < age + Duration::from_secs(1), "a refused token is replaced at once");
        shutdown.cancel();
        task.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_token_is_asked_for_alone() {
        struct Counting(Arc<Mutex<Vec<VolumeId>>>);
        impl TokenSource for Counting {
            async fn issue(&self, volumes: &[VolumeId]) -> anyhow::Result<Vec<Issued>> {
                self.0.lock().unwrap().extend(volumes);
                let key = || TokenKey::from_bytes([1; 32]);
                Ok(volumes.iter().map(|volume| Issued { volume: *volume, signed: vec![1], key: key() }).collect())
            }

            async fn issue_for(&self, _plans: &[Plan]) -> anyhow::Result<Vec<Planned>> {
                anyhow::bail!("not asked here")
            }
        }
        let (keeper, asked) = (Arc::new(TokenKeeper::default()), Arc::new(Mutex::default()));
        let (bad, good) = (keeper.auth(VolumeId(1)), keeper.auth(VolumeId(2)));
        let (running, shutdown, source) = (Arc::clone(&keeper), CancellationToken::new(), Counting(Arc::clone(&asked)));
        let stop = shutdown.clone();
        let task = tokio::spawn(async move { running.run(source, stop).await });
        good.want_newer(0).changed().await.unwrap();
        // Every token of the one volume is refused as soon as it is there, by many IOs.
        let end = Instant::now() + Duration::from_secs(8);
        while Instant::now() < end {
            let refused = bad.version();
            let mut versions: Vec<_> = (0..10).map(|_| bad.want_newer(refused)).collect();
            drop(tokio::time::timeout_at(end, versions[0].changed()).await);
        }
        shutdown.cancel();
        task.await.unwrap();
        let asked = asked.lock().unwrap();
        let count = |volume| asked.iter().filter(|asked| **asked == volume).count();
        assert_eq!(count(VolumeId(2)), 1, "nobody refused this one");
        assert!((4..15).contains(&count(VolumeId(1))), "{}", count(VolumeId(1)));
        assert!(good.want_newer(0).has_changed().unwrap(), "a newer one than was refused is there already");
    }
}
