//! A table that the versions of a map share: a change copies the thousandth part of it that it is in, not the whole.
//!
//! Rows are in buckets by their key, and buckets are shared between versions. What differs between two versions is found
//! by comparing buckets, so that following a change costs as much as the change. Rejected: a hash trie, which needs a
//! library or some hundred lines more, and is no faster at the half a million volumes that there may be.

use std::{fmt, sync::Arc};

use pflex_proto::ids::{DeviceId, PgId, PoolId, SdcId, SdsId, VolumeId};

/// With 100,000 rows a bucket has a hundred, and the list of buckets is 8 KiB: copying either takes a microsecond.
const BUCKETS: usize = 1_024;

/// Rows in key order; none: no rows.
type Bucket<K, V> = Option<Arc<Vec<(K, V)>>>;

/// Rows by key, cheap to copy and to change after that. Rows should be small, or behind an `Arc`.
#[derive(Clone)]
pub struct Table<K, V> {
    /// Empty, or all of them.
    buckets: Arc<Vec<Bucket<K, V>>>,
    len: usize,
}

/// A key of a table.
pub trait TableKey: Copy + Ord {
    /// Consecutive keys give different numbers.
    fn number(self) -> u64;
}

macro_rules! numbered {
    ($($id:ty)*) => { $(impl TableKey for $id {
        fn number(self) -> u64 {
            self.get().into()
        }
    })* };
}
numbered!(PoolId SdsId DeviceId SdcId VolumeId);

impl TableKey for PgId {
    fn number(self) -> u64 {
        // Pools begin at places of their own, or the small ones would all be in the first buckets.
        u64::from(self.pool.get()).wrapping_mul(389).wrapping_add(self.index.get().into())
    }
}

impl<K: TableKey, V: Clone> Table<K, V> {
    /// The row of a key.
    pub fn get(&self, key: &K) -> Option<&V> {
        let bucket = self.bucket(*key)?;
        bucket.binary_search_by_key(key, |row| row.0).ok().map(|at| &bucket[at].1)
    }

    /// Whether the key has a row.
    pub fn contains_key(&self, key: &K) -> bool {
        self.get(key).is_some()
    }

    /// Every row, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.buckets.iter().flatten().flat_map(|bucket| bucket.iter()).map(|(key, value)| (key, value))
    }

    /// Every key, in no order.
    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.iter().map(|(key, _)| key)
    }

    /// Every value, in no order.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }

    /// How many rows.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Writes a row.
    pub fn insert(&mut self, key: K, value: V) {
        let bucket = Arc::make_mut(self.bucket_mut(key).get_or_insert_default());
        match bucket.binary_search_by_key(&key, |row| row.0) {
            Ok(at) => bucket[at].1 = value,
            Err(at) => {
                bucket.insert(at, (key, value));
                self.len += 1;
            }
        }
    }

    /// Removes a row.
    pub fn remove(&mut self, key: &K) {
        if !self.contains_key(key) {
            return;
        }
        let bucket = self.bucket_mut(*key);
        if let Some(rows) = bucket {
            Arc::make_mut(rows).retain(|row| row.0 != *key);
            if rows.is_empty() {
                *bucket = None;
            }
        }
        self.len -= 1;
    }

    /// Whether both are one version. Two that are not may still have the same rows.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.buckets, &other.buckets)
    }

    fn bucket(&self, key: K) -> Option<&Vec<(K, V)>> {
        self.buckets.get(place(key))?.as_deref()
    }

    fn bucket_mut(&mut self, key: K) -> &mut Bucket<K, V> {
        let buckets = Arc::make_mut(&mut self.buckets);
        if buckets.is_empty() {
            buckets.resize(BUCKETS, None);
        }
        &mut buckets[place(key)]
    }
}

impl<K: TableKey, V: Clone + PartialEq> Table<K, V> {
    /// The keys whose rows differ from those `before`, in no order.
    pub fn changed_since(&self, before: &Self) -> Vec<K> {
        if self.is_same(before) {
            return Vec::new();
        }
        let mut changed = Vec::new();
        for place in 0..BUCKETS {
            let at = |table: &Self| table.buckets.get(place).cloned().flatten();
            let (now, then) = (at(self), at(before));
            let same = match (&now, &then) {
                (Some(now), Some(then)) => Arc::ptr_eq(now, then),
                (None, None) => true,
                (Some(_), None) | (None, Some(_)) => false,
            };
            if same {
                continue;
            }
            let rows = |bucket: &Bucket<K, V>| bucket.iter().flat_map(|rows| rows.iter()).map(|row| row.0).collect();
            let (now, then): (Vec<K>, Vec<K>) = (rows(&now), rows(&then));
            changed.extend(now.iter().filter(|key| self.get(key) != before.get(key)));
            changed.extend(then.iter().filter(|key| !self.contains_key(key)));
        }
        changed
    }
}

fn place(key: impl TableKey) -> usize {
    (key.number() % BUCKETS as u64) as usize
}

/// As of the maps of the standard library: panics when the key has no row.
impl<K: TableKey, V: Clone> std::ops::Index<&K> for Table<K, V> {
    type Output = V;

    fn index(&self, key: &K) -> &V {
        self.get(key).expect("whoever indexes knows that the row is there")
    }
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self { buckets: Arc::default(), len: 0 }
    }
}

impl<K: TableKey + fmt::Debug, V: Clone + fmt::Debug> fmt::Debug for Table<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

    use super::*;

    fn rows(table: &Table<VolumeId, u64>) -> BTreeMap<u64, u64> {
        table.iter().map(|(key, value)| (key.get(), *value)).collect()
    }

    /// Against the plain table: each version keeps what it had, and what changed between any two is found.
    #[test]
    fn versions_are_as_if_each_were_a_copy() {
        let seed = std::env::var("PFLEX_TEST_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
        println!("PFLEX_TEST_SEED={seed}");
        let mut rng = StdRng::seed_from_u64(seed);
        let mut versions: Vec<(Table<VolumeId, u64>, BTreeMap<u64, u64>)> = vec![Default::default()];
        for _ in 0..200 {
            let (mut table, mut plain) = versions[rng.random_range(0..versions.len())].clone();
            for _ in 0..rng.random_range(0..20) {
                // Some share a bucket.
                let key = rng.random_range(0..40_u64) + 1_024 * rng.random_range(0..3);
                if rng.random_bool(0.6) {
                    let value = rng.random_range(0..4);
                    table.insert(VolumeId(key), value);
                    plain.insert(key, value);
                } else {
                    table.remove(&VolumeId(key));
                    plain.remove(&key);
                }
            }
            versions.push((table, plain));
            for (table, plain) in &versions {
                assert_eq!(
                    (rows(table), table.len(), table.is_empty()),
                    (plain.clone(), plain.len(), plain.is_empty())
                );
            }
            let pick = |rng: &mut StdRng| rng.random_range(0..versions.len());
            let ((now, plain_now), (then, plain_then)) = (&versions[pick(&mut rng)], &versions[pick(&mut rng)]);
            let mut changed: Vec<u64> = now.changed_since(then).into_iter().map(VolumeId::get).collect();
            changed.sort_unstable();
            let keys = plain_now.keys().chain(plain_then.keys()).collect::<std::collections::BTreeSet<_>>();
            let expected: Vec<u64> =
                keys.into_iter().filter(|key| plain_now.get(key) != plain_then.get(key)).copied().collect();
            assert_eq!(changed, expected);
        }
    }

    #[test]
    fn groups_of_small_pools_are_spread() {
        let mut table = Table::default();
        for pool in 0..1_000 {
            for index in 0..8 {
                table.insert(PgId { pool: PoolId(pool), index: index.into() }, ());
            }
        }
        let fullest = table.buckets.iter().flatten().map(|bucket| bucket.len()).max().unwrap();
        assert!(fullest <= 16, "{fullest} of 8,000 rows are in one of {BUCKETS} buckets");
    }
}
