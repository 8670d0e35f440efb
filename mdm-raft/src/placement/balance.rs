//! Chooses primaries: the device that answers a group's IO does more work than its backups, so each device should be
//! primary of its share of the groups it holds.

use std::collections::{BTreeMap, BTreeSet};

use pflex_proto::ids::DeviceId;

use super::Copies;

/// Reorders each group so that its primary comes first and primaries are spread evenly.
///
/// Starts from the given order and moves one primary at a time along the shortest path of swaps that ends at a device
/// with at least two primaries fewer, until there is none: then no device has two more than one it can reach.
pub(super) fn spread_primaries(groups: &mut [Copies]) {
    let mut primaries: BTreeMap<DeviceId, u32> = BTreeMap::new();
    for group in groups.iter() {
        for device in group {
            primaries.entry(*device).or_default();
        }
        if let Some(first) = group.first() {
            *primaries.entry(*first).or_default() += 1;
        }
    }
    // Each move lowers the sum of squares, so this ends; the bound only guards against a bug.
    for _ in 0..groups.len() * 2 {
        let mut by_load: Vec<(u32, DeviceId)> = primaries.iter().map(|(device, n)| (*n, *device)).collect();
        by_load.sort_by(|a, b| b.cmp(a));
        let Some(path) = by_load.iter().find_map(|(n, device)| path_down(groups, &primaries, *device, *n)) else {
            return;
        };
        for (group, device) in &path {
            let old = groups[*group][0];
            let at = groups[*group].iter().position(|d| d == device).expect("the path follows the group's copies");
            groups[*group].swap(0, at);
            *primaries.entry(old).or_default() -= 1;
            *primaries.entry(*device).or_default() += 1;
        }
    }
}

/// The shortest chain of (group, its new primary) that takes one primary from `from` and gives one to a device that
/// has at least two fewer.
fn path_down(
    groups: &[Copies],
    primaries: &BTreeMap<DeviceId, u32>,
    from: DeviceId,
    load: u32,
) -> Option<Vec<(usize, DeviceId)>> {
    if !primaries.values().any(|n| n + 2 <= load) {
        return None;
    }
    // Where each device was reached from: the group that hands over, and the device that gives it up.
    let mut reached: BTreeMap<DeviceId, (usize, DeviceId)> = BTreeMap::new();
    let mut frontier = BTreeSet::from([from]);
    while !frontier.is_empty() {
        let mut next = BTreeSet::new();
        for (index, group) in groups.iter().enumerate().filter(|(_, g)| g.first().is_some_and(|p| frontier.contains(p)))
        {
            let giver = group[0];
            for device in &group[1..] {
                if *device == from || reached.contains_key(device) {
                    continue;
                }
                reached.insert(*device, (index, giver));
                if primaries.get(device).copied().unwrap_or(0) + 2 <= load {
                    return Some(trace(&reached, from, *device));
                }
                next.insert(*device);
            }
        }
        frontier = next;
    }
    None
}

fn trace(reached: &BTreeMap<DeviceId, (usize, DeviceId)>, from: DeviceId, to: DeviceId) -> Vec<(usize, DeviceId)> {
    let mut path = Vec::new();
    let mut at = to;
    while at != from {
        let (group, giver) = reached[&at];
        path.push((group, at));
        at = giver;
    }
    path
}
