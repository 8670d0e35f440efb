//! Chooses primaries: the device that answers a group's IO does more work than its backups, so each device should be
//! primary of its share of the groups it holds.
//!
//! With c copies, a device that holds h of them is to lead h/c groups, rounded down or up. Giving each copy 1/c of its
//! group's lead meets that exactly, so a whole-numbered solution exists (integrality of flows), and moving leads along
//! augmenting paths finds it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use pflex_proto::ids::DeviceId;

use super::{Copies, count};

/// Reorders each group so that its primary comes first and every device leads its share.
pub(super) fn spread_primaries(groups: &mut [Copies]) {
    let mut leads = Leads::new(groups);
    // Each path takes one unit off somebody's excess or want, so this ends; the bound only guards against a bug.
    for _ in 0..groups.len() {
        let Some(path) = leads.next_path(groups) else { return };
        for (group, device) in path {
            leads.give(groups, group, device);
        }
    }
}

/// Who leads what.
struct Leads {
    copies: usize,
    held: BTreeMap<DeviceId, u32>,
    led: BTreeMap<DeviceId, BTreeSet<usize>>,
}

impl Leads {
    /// Starts with the least busy copy of each group: close to even, so that few paths are needed.
    fn new(groups: &mut [Copies]) -> Self {
        let mut held = BTreeMap::new();
        for device in groups.iter().flatten() {
            *held.entry(*device).or_default() += 1;
        }
        let copies = groups.iter().map(Vec::len).max().unwrap_or(1).max(1);
        let mut leads = Self { copies, held, led: BTreeMap::new() };
        for (at, group) in groups.iter_mut().enumerate() {
            // The smallest part of its share: leads/held, compared crosswise in integers; among equals the present one.
            let least = (0..group.len()).min_by(|a, b| {
                let part = |at: &usize, other: &usize| {
                    u64::from(leads.leads(group[*at])) * u64::from(count(&leads.held, group[*other]))
                };
                part(a, b).cmp(&part(b, a)).then_with(|| a.cmp(b))
            });
            let Some(least) = least else { continue };
            group.swap(0, least);
            leads.led.entry(group[0]).or_default().insert(at);
        }
        leads
    }

    fn leads(&self, device: DeviceId) -> u32 {
        self.led.get(&device).map_or(0, |groups| groups.len() as u32)
    }

    /// Its share rounded down and up.
    fn share(&self, device: DeviceId) -> (u32, u32) {
        let (held, copies) = (count(&self.held, device), self.copies as u32);
        (held / copies, held.div_ceil(copies))
    }

    /// The shortest chain of (group, its new primary) that takes a lead from a device above its share, or gives one to
    /// a device below.
    fn next_path(&self, groups: &[Copies]) -> Option<Vec<(usize, DeviceId)>> {
        let mut able = Vec::new();
        for device in self.held.keys().copied() {
            let (leads, (low, high)) = (self.leads(device), self.share(device));
            if leads > high {
                return self.path(groups, &[device], |to| self.leads(to) < self.share(to).1);
            }
            if leads > low {
                able.push(device);
            }
        }
        let wanting = |device| self.leads(device) < self.share(device).0;
        if self.held.keys().any(|device| wanting(*device)) { self.path(groups, &able, wanting) } else { None }
    }

    fn path(
        &self,
        groups: &[Copies],
        from: &[DeviceId],
        wanted: impl Fn(DeviceId) -> bool,
    ) -> Option<Vec<(usize, DeviceId)>> {
        // Where each device was reached from: the group that changes its primary, and who gives it up.
        let mut reached: BTreeMap<DeviceId, (usize, DeviceId)> = BTreeMap::new();
        let mut queue: VecDeque<DeviceId> = from.iter().copied().collect();
        while let Some(giver) = queue.pop_front() {
            for group in self.led.get(&giver).into_iter().flatten() {
                for device in &groups[*group][1..] {
                    if from.contains(device) || reached.contains_key(device) {
                        continue;
                    }
                    reached.insert(*device, (*group, giver));
                    if wanted(*device) {
                        return Some(trace(&reached, *device));
                    }
                    queue.push_back(*device);
                }
            }
        }
        None
    }

    fn give(&mut self, groups: &mut [Copies], group: usize, device: DeviceId) {
        let copies = &mut groups[group];
        let Some(at) = copies.iter().position(|copy| *copy == device) else { return };
        self.led.entry(copies[0]).or_default().remove(&group);
        copies.swap(0, at);
        self.led.entry(device).or_default().insert(group);
    }
}

/// The chain back from `to` to where nobody was reached from.
fn trace(reached: &BTreeMap<DeviceId, (usize, DeviceId)>, to: DeviceId) -> Vec<(usize, DeviceId)> {
    let mut path = Vec::new();
    let mut at = to;
    while let Some((group, giver)) = reached.get(&at) {
        path.push((*group, at));
        at = *giver;
    }
    path
}
