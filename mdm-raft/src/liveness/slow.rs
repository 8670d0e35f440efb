//! Which disks are slow: against the other disks of their pool, over windows of ten seconds. Pure.
//!
//! A disk that is dying often answers for weeks, and ever more slowly; each write waits for the slower of its copies. What
//! is slow is a matter of the peers: a pool of spinning disks is no alarm. Beats carry how many operations a disk has
//! completed and how long they took together, so a window's mean costs two numbers a beat. Three windows in a row make or
//! end a finding: one is a checkpoint.

use std::collections::BTreeMap;

use pflex_proto::ids::{DeviceId, Incarnation, PoolId};

/// Windows in a row that make a finding, or end it.
const STRIKES: i8 = 3;
/// Windows in a row in which a slow disk did too little to be judged, or had too few peers that did more: the finding is old.
const FORGOTTEN: u16 = 60;
/// Operations that a window must have to say anything.
const LEAST_IOS: u64 = 20;
/// Disks besides the one judged.
const LEAST_PEERS: usize = 2;
/// So many times the mean of the median peer is slow.
const FACTOR: u64 = 5;
/// A mean below this is never slow: a disk of another make may be much faster.
const LEAST_US: u64 = 5_000;

/// A disk as its last beat told of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Disk {
    pub(super) incarnation: Incarnation,
    /// Operations completed since its process started.
    pub(super) ios: u64,
    /// Microseconds that all of them took together.
    pub(super) us: u64,
}

/// A disk as the state has it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Placed {
    pub(super) pool: PoolId,
    /// It is called slow already.
    pub(super) slow: bool,
}

/// What is to be said of a disk: why it is slow, or none: it is not any more.
pub(super) type Finding = (DeviceId, Option<String>);

#[derive(Debug)]
struct Seen {
    at: Disk,
    /// Windows in a row that were slow, or, below zero, were not.
    strikes: i8,
    /// Windows since it was judged last.
    unjudged: u16,
}

/// The leader's memory of windows; a new leader begins anew.
#[derive(Debug, Default)]
pub(super) struct Slowness {
    seen: BTreeMap<DeviceId, Seen>,
}

impl Slowness {
    /// The end of a window.
    pub(super) fn look(
        &mut self,
        disks: &BTreeMap<DeviceId, Disk>,
        placed: &BTreeMap<DeviceId, Placed>,
    ) -> Vec<Finding> {
        self.seen.retain(|id, _| disks.contains_key(id));
        let mut means: BTreeMap<PoolId, Vec<(DeviceId, u64)>> = BTreeMap::new();
        for (id, disk) in disks {
            let Some(Placed { pool, .. }) = placed.get(id) else { continue };
            let seen = self.seen.entry(*id).or_insert(Seen { at: *disk, strikes: 0, unjudged: 0 });
            let same_life = seen.at.incarnation == disk.incarnation && disk.ios >= seen.at.ios;
            let ios = disk.ios.saturating_sub(seen.at.ios);
            if same_life && ios >= LEAST_IOS {
                means.entry(*pool).or_default().push((*id, disk.us.saturating_sub(seen.at.us) / ios));
            }
            seen.at = *disk;
            seen.unjudged = seen.unjudged.saturating_add(1);
        }
        let mut findings = Vec::new();
        for of_pool in means.values().filter(|of_pool| of_pool.len() > LEAST_PEERS) {
            for (id, mean) in of_pool {
                let peers = median(of_pool.iter().filter(|(peer, _)| peer != id).map(|(_, mean)| *mean));
                let slow = *mean >= LEAST_US && *mean >= peers.saturating_mul(FACTOR);
                let known = placed.get(id).is_some_and(|placed| placed.slow);
                let Some(seen) = self.seen.get_mut(id) else { continue };
                seen.unjudged = 0;
                seen.strikes = match (slow, seen.strikes) {
                    (true, strikes) => strikes.max(0).saturating_add(1),
                    (false, strikes) => strikes.min(0).saturating_sub(1),
                };
                if seen.strikes >= STRIKES && !known {
                    let why = format!(
                        "its disk takes {} for an operation on the average, those of its peers {}",
                        ms(*mean),
                        ms(peers)
                    );
                    findings.push((*id, Some(why)));
                } else if seen.strikes <= -STRIKES && known {
                    findings.push((*id, None));
                }
            }
        }
        // Nobody waits for a disk that does nothing, and what it was like then says nothing of it now.
        for (id, seen) in &mut self.seen {
            if seen.unjudged >= FORGOTTEN && placed.get(id).is_some_and(|placed| placed.slow) {
                (seen.strikes, seen.unjudged) = (0, 0);
                findings.push((*id, None));
            }
        }
        findings
    }
}

fn median(values: impl Iterator<Item = u64>) -> u64 {
    let mut values: Vec<u64> = values.collect();
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or(0)
}

fn ms(us: u64) -> String {
    format!("{}.{} ms", us / 1_000, us % 1_000 / 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Disks 1 to n of a pool, told of in windows.
    struct Pool {
        slowness: Slowness,
        disks: BTreeMap<DeviceId, Disk>,
        placed: BTreeMap<DeviceId, Placed>,
    }

    impl Pool {
        fn of(n: u32) -> Self {
            let ids = (1..=n).map(DeviceId);
            let disk = Disk { incarnation: Incarnation(1), ios: 0, us: 0 };
            let mut pool = Self {
                slowness: Slowness::default(),
                disks: ids.clone().map(|id| (id, disk)).collect(),
                placed: ids.map(|id| (id, Placed { pool: PoolId(1), slow: false })).collect(),
            };
            assert_eq!(pool.window(&[]), []);
            pool
        }

        /// In which each disk has so many operations of so many microseconds.
        fn window(&mut self, means: &[(u64, u64)]) -> Vec<Finding> {
            for (disk, (ios, us)) in self.disks.values_mut().zip(means) {
                (disk.ios, disk.us) = (disk.ios + ios, disk.us + ios * us);
            }
            let findings = self.slowness.look(&self.disks, &self.placed);
            for (id, why) in &findings {
                self.placed.get_mut(id).unwrap().slow = why.is_some();
            }
            findings
        }
    }

    #[test]
    fn a_disk_much_slower_than_its_peers_for_three_windows_is_found_and_so_is_its_end() {
        let mut pool = Pool::of(4);
        let (slow, well) = ([(100, 800), (100, 900), (30, 25_000), (100, 700)], [(100, 900); 4]);
        for _ in 0..2 {
            assert_eq!(pool.window(&slow), []);
            assert_eq!(pool.window(&slow), []);
            assert_eq!(pool.window(&well), [], "two in a row are a checkpoint");
        }
        assert_eq!((pool.window(&slow), pool.window(&slow)), (vec![], vec![]));
        let why = "its disk takes 25.0 ms for an operation on the average, those of its peers 0.8 ms";
        assert_eq!(pool.window(&slow), [(DeviceId(3), Some(why.to_owned()))]);
        assert_eq!(pool.window(&slow), [], "said once");
        assert_eq!((pool.window(&well), pool.window(&slow)), (vec![], vec![]));
        assert_eq!((pool.window(&well), pool.window(&well)), (vec![], vec![]));
        assert_eq!(pool.window(&well), [(DeviceId(3), None)]);
    }

    #[test]
    fn a_slow_disk_that_is_not_used_any_more_is_not_slow_for_ever() {
        let mut pool = Pool::of(4);
        let slow = [(100, 800), (100, 900), (30, 25_000), (100, 700)];
        let found: Vec<_> = (0..3).flat_map(|_| pool.window(&slow)).collect();
        assert_eq!(found.len(), 1);
        let idle = [(100, 800), (100, 900), (2, 25_000), (100, 700)];
        assert!((1..FORGOTTEN).all(|_| pool.window(&idle).is_empty()));
        assert_eq!(pool.window(&idle), [(DeviceId(3), None)], "ten minutes of nothing");
        // A whole pool without clients.
        let found: Vec<_> = (0..3).flat_map(|_| pool.window(&slow)).collect();
        assert_eq!(found.len(), 1, "found anew");
        assert_eq!((0..FORGOTTEN).flat_map(|_| pool.window(&[])).collect::<Vec<_>>(), [(DeviceId(3), None)]);
    }

    #[test]
    fn nothing_is_said_of_slow_pools_idle_disks_few_peers_and_new_lives() {
        let alike = [(100, 25_000); 4];
        let fast = [(100, 100), (100, 110), (100, 4_000), (100, 90)];
        let idle = [(100, 800), (100, 900), (19, 90_000), (100, 700)];
        for means in [alike, fast, idle] {
            let mut pool = Pool::of(4);
            assert!((0..9).all(|_| pool.window(&means).is_empty()), "{means:?}");
        }
        let mut two = Pool::of(2);
        assert!((0..9).all(|_| two.window(&[(100, 500), (100, 90_000)]).is_empty()), "which of them is it?");
        let mut pool = Pool::of(4);
        for life in 2..9 {
            let disk = pool.disks.get_mut(&DeviceId(3)).unwrap();
            *disk = Disk { incarnation: Incarnation(life), ios: 0, us: 0 };
            let slow = [(100, 800), (100, 900), (30, 90_000), (100, 700)];
            assert_eq!(pool.window(&slow), [], "its counters began anew");
        }
    }
}
