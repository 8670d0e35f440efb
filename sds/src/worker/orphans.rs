//! What is left of volumes that were deleted while this server was away, or while the news was on its way.
//!
//! Pure: map, time and what the store holds come in. A map that merely lacks a volume may be older than the volume: a
//! backup hears of writes before it hears of the volume they are for. So an id that the map lacks counts as deleted only if
//! the volume was certainly made before that map:
//! - it was in the store when the device was opened, and the map is at least as new as the registration that followed; or
//! - the map has a volume with a higher id (ids are given out in order and never again).
//!
//! And only after the maps have lacked it for a minute ([`GRACE`]). Nothing is removed while a restore from backup is not
//! over (S19). Once it is, the map may lack volumes that came after the backup: what nobody deleted stays for a day
//! ([`GRACE_AFTER_RESTORE`]), because a person may find out late that the wrong backup was taken.
//!
//! Space is freed a few chunks at a time ([`PURGE_BATCH`]), so that IO does not wait for it.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    time::Duration,
};

use pflex_common::{clock::MonotonicTime, map::ClusterMap};
use pflex_proto::ids::{ClusterGeneration, Revision, VolumeId, VtreeId};

/// As a cluster is made.
const FIRST_GENERATION: ClusterGeneration = ClusterGeneration(1);
/// Between two looks at what the store holds.
pub(super) const SWEEP_EVERY: Duration = Duration::from_secs(10);
/// How long the maps must lack a tree before it is purged: time for a person who sees that something is wrong.
const GRACE: Duration = Duration::from_secs(60);
/// The same in a cluster that was ever restored.
const GRACE_AFTER_RESTORE: Duration = Duration::from_secs(24 * 3600);
/// Chunks removed in one tick of 50 ms: 1.2 GiB of space each second, and 64 journal records of 100 bytes at a time.
pub(super) const PURGE_BATCH: usize = 64;

/// Trees of volumes on their way out.
#[derive(Debug)]
pub(super) struct Orphans {
    /// The revision of the map that has this process's registration.
    registered: Revision,
    /// Volumes and trees (they share their numbers) that the store knew when it was opened.
    recovered: HashSet<u64>,
    unknown_since: HashMap<VtreeId, MonotonicTime>,
    doomed: BTreeSet<VtreeId>,
}

impl Orphans {
    pub(super) fn new(registered: Revision, recovered: HashSet<u64>) -> Self {
        Self { registered, recovered, unknown_since: HashMap::new(), doomed: BTreeSet::new() }
    }

    /// Looks at which of the store's trees the map does not know.
    pub(super) fn sweep(&mut self, now: MonotonicTime, map: &ClusterMap, held: &[VtreeId]) {
        if !trusts(map) {
            return;
        }
        let alive: HashSet<VtreeId> = map.volumes.values().map(|volume| volume.vtree).collect();
        let newest = newest(map);
        let unknown: Vec<_> =
            held.iter().filter(|tree| !alive.contains(tree) && self.is_old(map, newest, tree.0)).copied().collect();
        self.unknown_since.retain(|tree, _| unknown.contains(tree));
        for tree in unknown {
            let since = *self.unknown_since.entry(tree).or_insert(now);
            if now.since(since) >= grace(map) {
                self.doomed.insert(tree);
            }
        }
    }

    /// Whether this volume certainly does not exist any more, as a test for the present map. None if nothing is certain.
    pub(super) fn deleted<'a>(&'a self, map: &'a ClusterMap) -> Option<impl Fn(VolumeId) -> bool + 'a> {
        let newest = newest(map);
        trusts(map)
            .then_some(move |volume: VolumeId| !map.volumes.contains_key(&volume) && self.is_old(map, newest, volume.0))
    }

    /// A volume of this tree was in the last map and is not in this one. If others of the tree are, it stays.
    pub(super) fn doom(&mut self, tree: VtreeId) {
        self.doomed.insert(tree);
    }

    /// A tree to purge. It is asked again whether the map still lacks it.
    pub(super) fn next(&mut self, map: &ClusterMap) -> Option<VtreeId> {
        if !trusts(map) {
            self.doomed.clear();
        }
        self.doomed.retain(|tree| map.volumes.values().all(|volume| volume.vtree != *tree));
        self.doomed.first().copied()
    }

    /// Nothing is left of it.
    pub(super) fn purged(&mut self, tree: VtreeId) {
        self.doomed.remove(&tree);
        self.unknown_since.remove(&tree);
    }

    /// Whether a volume of this number, if it ever existed, was made before the map.
    fn is_old(&self, map: &ClusterMap, newest: u64, number: u64) -> bool {
        number < newest || (map.revision >= self.registered && self.recovered.contains(&number))
    }
}

/// Whether there is a map, and no restore is going on.
fn trusts(map: &ClusterMap) -> bool {
    map.revision != Revision(0) && !map.recovering
}

fn grace(map: &ClusterMap) -> Duration {
    if map.generation <= FIRST_GENERATION { GRACE } else { GRACE_AFTER_RESTORE }
}

fn newest(map: &ClusterMap) -> u64 {
    map.volumes.keys().map(|volume| volume.0).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use pflex_proto::pb;

    use super::*;

    fn map(revision: u64, generation: u64, volumes: &[u64]) -> ClusterMap {
        let volume = |id: &u64| pb::Volume { id: *id, name: format!("v{id}"), vtree_id: *id, ..Default::default() };
        ClusterMap::from_full(pb::ClusterMap {
            cluster_id: vec![1; 16],
            cluster_generation: generation,
            revision,
            volumes: volumes.iter().map(volume).collect(),
            ..Default::default()
        })
        .unwrap()
    }

    fn at(seconds: u64) -> MonotonicTime {
        MonotonicTime::from_start(Duration::from_secs(seconds))
    }

    fn orphans() -> Orphans {
        Orphans::new(Revision(10), HashSet::from([5, 7]))
    }

    /// What is purged after sweeps of one map over two minutes.
    fn purged(map: &ClusterMap, held: &[u64]) -> Option<u64> {
        let (mut orphans, held) = (orphans(), held.iter().copied().map(VtreeId).collect::<Vec<_>>());
        (0..120).step_by(10).for_each(|second| orphans.sweep(at(second), map, &held));
        orphans.next(map).map(|tree| tree.0)
    }

    #[test]
    fn only_what_was_certainly_made_before_the_map_is_purged() {
        assert_eq!(purged(&map(10, 1, &[5]), &[5, 7]), Some(7), "it was here at the start, the map is newer");
        assert_eq!(purged(&map(9, 1, &[5]), &[5, 7]), None, "the map is older than the registration");
        assert_eq!(purged(&map(10, 1, &[5]), &[5, 8]), None, "made after the start: the map may be older than it");
        assert_eq!(purged(&map(10, 1, &[5, 9]), &[5, 8]), Some(8), "a later one exists, so it existed");
        assert_eq!(purged(&map(10, 1, &[5, 7]), &[5, 7]), None);
        assert_eq!(purged(&ClusterMap::default(), &[5, 7]), None, "there is no map yet");
    }

    #[test]
    fn what_came_after_the_backup_stays_for_a_day() {
        let restored = map(1 << 41, 2, &[5]);
        let mut orphans = orphans();
        orphans.sweep(at(0), &restored, &[VtreeId(7)]);
        orphans.sweep(at(3_600), &restored, &[VtreeId(7)]);
        assert_eq!(orphans.next(&restored), None);
        orphans.sweep(at(24 * 3_600), &restored, &[VtreeId(7)]);
        assert_eq!(orphans.next(&restored), Some(VtreeId(7)));
    }

    #[test]
    fn a_tree_that_is_back_or_a_recovery_stops_it() {
        let mut orphans = orphans();
        let lacks = map(10, 1, &[5]);
        orphans.sweep(at(0), &lacks, &[VtreeId(7)]);
        orphans.sweep(at(59), &lacks, &[VtreeId(7)]);
        assert_eq!(orphans.next(&lacks), None, "not yet");
        orphans.sweep(at(60), &lacks, &[VtreeId(7)]);
        assert_eq!(orphans.next(&map(11, 1, &[5, 7])), None);
        orphans.sweep(at(61), &lacks, &[VtreeId(7)]);
        assert_eq!(orphans.next(&lacks), Some(VtreeId(7)));
        assert!(orphans.deleted(&lacks).unwrap()(VolumeId(7)) && !orphans.deleted(&lacks).unwrap()(VolumeId(5)));
        let restored = ClusterMap { recovering: true, ..map(1 << 41, 2, &[5]) };
        assert_eq!(orphans.next(&restored), None);
        assert!(orphans.deleted(&restored).is_none());
        orphans.purged(VtreeId(7));
        assert_eq!(orphans.next(&lacks), None);
        orphans.doom(VtreeId(5));
        orphans.doom(VtreeId(6));
        assert_eq!(orphans.next(&lacks), Some(VtreeId(6)), "another volume of tree 5 lives");
    }
}
