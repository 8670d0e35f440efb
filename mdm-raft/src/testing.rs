//! Seeds for random tests: every failure names its seed, and `PFLEX_TEST_SEED` runs that one alone.

use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;

/// The seeds a test runs: `count` fresh ones, or the one in the environment.
pub(crate) struct Seeds(Vec<u64>);

impl Seeds {
    pub(crate) fn new(count: u64) -> Self {
        match std::env::var("PFLEX_TEST_SEED") {
            Ok(seed) => Self(vec![seed.parse().expect("PFLEX_TEST_SEED is a number")]),
            Err(_) => Self((0..count).map(|_| rand::random()).collect()),
        }
    }

    /// Besides these, which once failed.
    pub(crate) fn and(mut self, once_failed: &[u64]) -> Self {
        if std::env::var("PFLEX_TEST_SEED").is_err() {
            self.0.extend_from_slice(once_failed);
        }
        self
    }
}

impl Iterator for Seeds {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        let seed = self.0.pop()?;
        // The harness shows this only when the test fails: the last one printed is the one that did.
        println!("PFLEX_TEST_SEED={seed}");
        Some(seed)
    }
}

pub(crate) fn rng(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}
