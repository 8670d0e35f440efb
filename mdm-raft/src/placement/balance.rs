//! Chooses primaries: the device that answers a group's IO does more work than its backups, so each device should be
//! primary of its share of the groups it holds.
//!
//! Each copy of a group that may lead it is owed 1/c of the lead, c being how many may; a device is to lead the sum of
//! what its copies are owed, rounded down or up. Parts of leads meet that exactly, so a whole-numbered solution exists
//! (integrality of flows), and moving leads along augmenting paths finds it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use pflex_proto::ids::DeviceId;

use super::{Copies, count};

/// A whole lead: what one to five copies are owed of it is a whole number.
const LEAD: u32 = 60;

/// The leads to give away so that devices lead their shares, starting from who leads now: the first of each group. The
/// others of a group are those that may take over. About `most` at a time, the plan of the rest being made anew then.
///
/// None while every device leads its share to within one: leads that moved for less would come and go with every copy.
pub fn even_leads(groups: &[Copies], most: usize) -> Vec<(usize, DeviceId)> {
    let mut after = groups.to_vec();
    let mut leads = Leads::present(&after);
    if !leads.is_uneven() {
        return Vec::new();
    }
    // Whole paths only: each leaves somebody nearer to its share, and nobody further from it.
    let mut changed: BTreeSet<usize> = BTreeSet::new();
    while changed.len() < most {
        let Some(path) = leads.next_path(&after).filter(|path| !path.is_empty()) else { break };
        for (group, device) in path {
            leads.give(&mut after, group, device);
            changed.insert(group);
        }
    }
    let moved = |at: usize| (after[at].first() != groups[at].first()).then_some((at, *after[at].first()?));
    changed.into_iter().filter_map(moved).collect()
}

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
    /// What the copies of each device are owed, in parts of [`LEAD`].
    owed: BTreeMap<DeviceId, u32>,
    led: BTreeMap<DeviceId, BTreeSet<usize>>,
}

impl Leads {
    fn nobody(groups: &[Copies]) -> Self {
        let mut owed = BTreeMap::new();
        for group in groups {
            for device in group {
                *owed.entry(*device).or_default() += LEAD / group.len() as u32;
            }
        }
        Self { owed, led: BTreeMap::new() }
    }

    /// As it is.
    fn present(groups: &[Copies]) -> Self {
        let mut leads = Self::nobody(groups);
        for (at, group) in groups.iter().enumerate() {
            if let Some(primary) = group.first() {
                leads.led.entry(*primary).or_default().insert(at);
            }
        }
        leads
    }

    /// Starts with the least busy copy of each group: close to even, so that few paths are needed.
    fn new(groups: &mut [Copies]) -> Self {
        let mut leads = Self::nobody(groups);
        for (at, group) in groups.iter_mut().enumerate() {
            // The smallest part of its share: leads/owed, compared crosswise in integers; among equals the present one.
            let least = (0..group.len()).min_by(|a, b| {
                let part = |at: &usize, other: &usize| {
                    u64::from(leads.leads(group[*at])) * u64::from(count(&leads.owed, group[*other]))
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
        let owed = count(&self.owed, device);
        (owed / LEAD, owed.div_ceil(LEAD))
    }

    /// Whether somebody is off its share by more than one, or leads nothing.
    fn is_uneven(&self) -> bool {
        self.owed.keys().any(|device| {
            let (leads, (low, high)) = (self.leads(*device), self.share(*device));
            leads > high + 1 || leads + 1 < low || (leads == 0 && low > 0)
        })
    }

    /// The shortest chain of (group, its new primary) that takes a lead from a device above its share, or gives one to
    /// a device below.
    fn next_path(&self, groups: &[Copies]) -> Option<Vec<(usize, DeviceId)>> {
        let mut able = Vec::new();
        for device in self.owed.keys().copied() {
            let (leads, (low, high)) = (self.leads(device), self.share(device));
            if leads > high {
                return self.path(groups, &[device], |to| self.leads(to) < self.share(to).1);
            }
            if leads > low {
                able.push(device);
            }
        }
        let wanting = |device| self.leads(device) < self.share(device).0;
        if self.owed.keys().any(|device| wanting(*device)) { self.path(groups, &able, wanting) } else { None }
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

#[cfg(test)]
mod tests {
    use rand::{RngExt as _, seq::SliceRandom as _};

    use super::*;
    use crate::testing::{Seeds, rng};

    fn groups(all: &[&[u32]]) -> Vec<Copies> {
        all.iter().map(|group| group.iter().copied().map(DeviceId).collect()).collect()
    }

    #[test]
    fn who_returns_gets_its_share_of_leads_and_nobody_else_loses_more() {
        // Device 3 was away: 1 and 2 lead everything.
        let mut now = groups(&[&[1, 3], &[1, 3], &[1, 2], &[1, 2], &[2, 3], &[2, 3], &[2, 1], &[2, 1]]);
        let given = even_leads(&now, 100);
        assert!(given.iter().all(|(_, to)| *to == DeviceId(3)) && given.len() == 2, "{given:?}");
        for (group, to) in given {
            let at = now[group].iter().position(|device| *device == to).unwrap();
            now[group].swap(0, at);
        }
        assert_eq!(even_leads(&now, 100), [], "and then it is quiet");
    }

    #[test]
    fn what_is_off_by_one_stays_and_who_may_not_lead_gets_nothing() {
        assert_eq!(even_leads(&groups(&[&[1, 2], &[1, 2], &[2, 1], &[1, 2]]), 100), []);
        assert_eq!(even_leads(&groups(&[&[1], &[1], &[1], &[2]]), 100), [], "nobody else may");
        let given = even_leads(&groups(&[&[1, 2], &[1, 2]]), 100);
        assert_eq!(given.len(), 1, "who leads nothing and is owed something gets it");
    }

    #[test]
    fn random_leads_become_even_in_small_steps_and_stay_so() {
        for seed in Seeds::new(60) {
            let mut rng = rng(seed);
            let devices = rng.random_range(2..=12_u32);
            let mut now: Vec<Copies> = (0..rng.random_range(8..=128))
                .map(|_| {
                    let mut all: Vec<DeviceId> = (1..=devices).map(DeviceId).collect();
                    all.shuffle(&mut rng);
                    all.truncate(rng.random_range(1..=3));
                    all
                })
                .collect();
            let most = rng.random_range(1..=16);
            let mut looks = 0;
            loop {
                let given = even_leads(&now, most);
                if given.is_empty() {
                    break;
                }
                for (group, to) in given {
                    let at = now[group].iter().position(|device| *device == to).expect("only copies lead");
                    now[group].swap(0, at);
                }
                looks += 1;
                assert!(looks <= now.len(), "seed {seed}: it goes on and on");
            }
            let leads = Leads::present(&now);
            assert!(!leads.is_uneven(), "seed {seed}");
        }
    }
}
