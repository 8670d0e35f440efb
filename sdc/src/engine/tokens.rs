//! Tokens of all mapped volumes: held here, renewed ahead of their expiry, used by the links.
//!
//! In lease mode a token is good for any IO until it expires, so authorisation is off the path of an IO: as long as
//! the MDM answers once in 45 s, no IO waits for it (S21). This side keeps no clock for expiry: the SDS decides, and its
//! refusal asks for another token.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use pflex_proto::ids::VolumeId;
use pflex_proto::token::TokenKey;
use rand::RngExt;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

/// Tokens are renewed at this age, give or take [`JITTER`]; they live 60 s.
pub const RENEW_AFTER: Duration = Duration::from_secs(15);
/// Keeps the clients of a cluster from asking all at once.
const JITTER: Duration = Duration::from_secs(2);
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
    wanted: Arc<Notify>,
}

impl VolumeAuth {
    /// No token yet. `wanted` is notified when one is missing or was refused.
    pub fn new(volume: VolumeId, wanted: Arc<Notify>) -> Arc<Self> {
        Arc::new(Self { volume, held: RwLock::default(), versions: watch::Sender::new(0), wanted })
    }

    /// Whose token it is.
    pub const fn volume(&self) -> VolumeId {
        self.volume
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

    /// Says that the present token does not do, and returns where a newer one will show.
    pub fn want_newer(&self) -> watch::Receiver<u64> {
        let mut versions = self.versions.subscribe();
        versions.mark_unchanged();
        self.wanted.notify_one();
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
}

/// Holds and renews the tokens of all mapped volumes.
#[derive(Debug, Default)]
pub struct TokenKeeper {
    auths: Mutex<HashMap<VolumeId, Arc<VolumeAuth>>>,
    wanted: Arc<Notify>,
}

impl TokenKeeper {
    /// The place of a volume's token; a first token is asked for at once.
    pub fn auth(&self, volume: VolumeId) -> Arc<VolumeAuth> {
        let mut auths = self.auths.lock().expect("no holder panics");
        let auth = auths.entry(volume).or_insert_with(|| {
            self.wanted.notify_one();
            VolumeAuth::new(volume, Arc::clone(&self.wanted))
        });
        Arc::clone(auth)
    }

    /// Stops renewing for a volume that is no longer mapped.
    pub fn forget(&self, volume: VolumeId) {
        self.auths.lock().expect("no holder panics").remove(&volume);
    }

    /// Renews until `shutdown`.
    pub async fn run(&self, source: impl TokenSource, shutdown: CancellationToken) {
        let work = async {
            let mut failures = 0_u32;
            let mut due = Instant::now();
            loop {
                tokio::select! {
                    () = tokio::time::sleep_until(due) => {}
                    () = self.wanted.notified() => {}
                }
                let asked = Instant::now();
                match self.renew(&source).await {
                    Ok(()) => {
                        if failures > 0 {
                            info!(failures, "tokens are renewed again");
                        }
                        failures = 0;
                        due = asked + RENEW_AFTER - JITTER + rand::rng().random_range(Duration::ZERO..2 * JITTER);
                    }
                    Err(error) => {
                        failures += 1;
                        if failures == 1 {
                            warn!(
                                error = format!("{error:#}"),
                                "tokens cannot be renewed; IO goes on until they expire"
                            );
                        }
                        due = Instant::now() + (LEAST_INTERVAL * 2_u32.pow(failures.min(8))).min(LONGEST_PAUSE);
                    }
                }
                tokio::time::sleep_until(asked + LEAST_INTERVAL).await;
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = work => {}
        }
    }

    async fn renew(&self, source: &impl TokenSource) -> anyhow::Result<()> {
        let auths = self.auths.lock().expect("no holder panics").clone();
        if auths.is_empty() {
            return Ok(());
        }
        let volumes: Vec<_> = auths.keys().copied().collect();
        let issued = source.issue(&volumes).await?;
        debug!(asked = volumes.len(), issued = issued.len(), "tokens renewed");
        for Issued { volume, signed, key } in issued {
            if let Some(auth) = auths.get(&volume) {
                auth.put(signed, key);
            }
        }
        Ok(())
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
        let mut versions = auth.want_newer();
        versions.wait_for(|version| *version == 1).await.unwrap();
        assert!(start.elapsed() < Duration::from_secs(5) && asked.load(Ordering::Relaxed) == 4);
        versions.wait_for(|version| *version == 2).await.unwrap();
        let age = start.elapsed();
        assert!(age > Duration::from_secs(12) && age < Duration::from_secs(23), "{age:?}");
        let _newer = auth.want_newer();
        versions.wait_for(|version| *version == 3).await.unwrap();
        assert!(start.elapsed() < age + Duration::from_secs(1), "a refused token is replaced at once");
        shutdown.cancel();
        task.await.unwrap();
    }
}
