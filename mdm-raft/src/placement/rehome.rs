//! New places for copies that lost theirs, and for nothing else: copies on living devices stay where they are.
//!
//! The quotas say how much each device should hold. Each copy goes to an allowed device below its quota, one that shares
//! few groups with the copies that are left, so that many fill many; where all allowed ones are full, a copy that was
//! just given a place makes room by going elsewhere, and only if none can, a device gets more than its share.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use pflex_proto::ids::{DeviceId, PoolId};

use super::{Candidate, Copies, FaultDomain, Move, quota, spread};

/// Searches in vain for somebody to make room, until it is taken for granted that nobody can: each looks at all copies.
const VAIN_SEARCHES: u32 = 32;

/// A place that is to be given up.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Orphan {
    /// Which group, by position.
    pub group: usize,
    /// Whose copy there is lost.
    pub from: DeviceId,
}

/// A move for each orphan that can have one, at most one of a group: the next look sees to the others. `domains` are those
/// of all devices in `groups`, whether they are candidates or not: a lost copy keeps its place, and its fault domain.
pub fn rehome(
    pool: PoolId,
    groups: &[Copies],
    copies: usize,
    candidates: &[Candidate],
    domains: &BTreeMap<DeviceId, FaultDomain>,
    orphans: &[Orphan],
) -> Vec<Move> {
    let mut table = Table::new(pool, groups, copies, candidates);
    let mut needs: Vec<Need> = Vec::with_capacity(orphans.len());
    let mut seen = BTreeSet::new();
    for orphan in orphans {
        let need = table.need(groups, domains, *orphan);
        if need.choices > 0 && seen.insert(orphan.group) {
            needs.push(need);
        }
    }
    // Those with the fewest places to go to first, or they would find them taken.
    needs.sort_by_key(|need| (need.choices, need.orphan));
    let mut vain = 0;
    for at in 0..needs.len() {
        let best = table.best(&needs[at]);
        if table.owed(best) > 0 || vain == VAIN_SEARCHES {
            table.give(&needs, at, best);
        } else if !table.make_room(&needs, at) {
            vain += 1;
            table.give(&needs, at, best);
        }
    }
    let home = |(need, home): (&Need, &Option<usize>)| {
        let to = table.devices[(*home)?].device;
        Some(Move { group: need.orphan.group, from: need.orphan.from, to })
    };
    let mut moves: Vec<Move> = needs.iter().zip(&table.homes).filter_map(home).collect();
    moves.sort();
    moves
}

/// An orphan and what decides where it may go.
struct Need {
    orphan: Orphan,
    /// Where the other copies of its group are.
    taken: Vec<FaultDomain>,
    /// Those on candidates, by position.
    peers: Vec<usize>,
    /// How many candidates may have it.
    choices: usize,
}

/// Candidates by position: the loops run orphans x candidates times.
struct Table {
    pool: PoolId,
    devices: Vec<Candidate>,
    at: BTreeMap<DeviceId, usize>,
    quotas: Vec<u32>,
    load: Vec<u32>,
    /// How many groups two devices share.
    together: Vec<u32>,
    /// What each device was given, by position in the needs.
    given: Vec<BTreeSet<usize>>,
    /// Where each need went.
    homes: Vec<Option<usize>>,
}

impl Table {
    fn new(pool: PoolId, groups: &[Copies], copies: usize, candidates: &[Candidate]) -> Self {
        let mut devices: Vec<Candidate> = candidates.iter().copied().filter(|c| c.capacity.get() > 0).collect();
        devices.sort_by_key(|candidate| candidate.device);
        devices.dedup_by_key(|candidate| candidate.device);
        let at: BTreeMap<DeviceId, usize> = devices.iter().enumerate().map(|(at, c)| (c.device, at)).collect();
        let n = devices.len();
        let (mut load, mut together) = (vec![0; n], vec![0; n * n]);
        for group in groups {
            let here: Vec<usize> = group.iter().filter_map(|device| at.get(device).copied()).collect();
            for (position, one) in here.iter().enumerate() {
                load[*one] += 1;
                for other in &here[..position] {
                    together[one * n + other] += 1;
                    together[other * n + one] += 1;
                }
            }
        }
        let now = devices.iter().zip(&load).map(|(candidate, load)| (candidate.device, *load)).collect();
        // With fewer fault domains than copies some groups can still be helped; no domain holds two copies of one.
        let copies = copies.min(super::fault_domains(&devices));
        let quotas = quota::quotas(groups.len() as u32, copies, &devices, &now).unwrap_or_default();
        let quotas = devices.iter().map(|candidate| super::count(&quotas, candidate.device)).collect();
        Self { pool, devices, at, quotas, load, together, given: vec![BTreeSet::new(); n], homes: Vec::new() }
    }

    fn need(&self, groups: &[Copies], domains: &BTreeMap<DeviceId, FaultDomain>, orphan: Orphan) -> Need {
        let others: Vec<DeviceId> =
            groups[orphan.group].iter().copied().filter(|device| *device != orphan.from).collect();
        let mut need = Need {
            orphan,
            taken: others.iter().filter_map(|device| domains.get(device).copied()).collect(),
            peers: others.iter().filter_map(|device| self.at.get(device).copied()).collect(),
            choices: 0,
        };
        need.choices = self.allowed(&need).count();
        need
    }

    /// Where it may go (I5).
    fn allowed<'a>(&'a self, need: &'a Need) -> impl Iterator<Item = usize> + 'a {
        let free = |at: &usize| {
            let candidate = &self.devices[*at];
            candidate.device != need.orphan.from && !need.taken.contains(&candidate.domain)
        };
        (0..self.devices.len()).filter(free)
    }

    fn owed(&self, at: usize) -> u32 {
        self.quotas[at].saturating_sub(self.load[at])
    }

    /// Below its quota; then the one that shares the least with the other copies, then the one owed the most, each as
    /// a part of its share. Of those that are full, the one that is the least over.
    fn best(&self, need: &Need) -> usize {
        let n = self.devices.len();
        let key = |at: usize| {
            // Parts in 1/2^20, in integers.
            let part = |count: u32| (u64::from(count) << 20) / u64::from(self.quotas[at].max(1));
            let shared = part(need.peers.iter().map(|peer| self.together[at * n + peer]).sum());
            let hash = spread(self.pool, need.orphan.group as u32, self.devices[at].device);
            match self.owed(at) {
                0 => (true, part(self.load[at] + 1), shared, hash),
                owed => (false, shared, u64::MAX - part(owed), hash),
            }
        };
        self.allowed(need).min_by_key(|at| key(*at)).expect("only orphans with a choice are looked at")
    }

    /// Gives the need its home; it may have had another before.
    fn give(&mut self, needs: &[Need], need: usize, to: usize) {
        let n = self.devices.len();
        self.homes.resize(self.homes.len().max(need + 1), None);
        let before = self.homes[need].replace(to);
        if let Some(before) = before {
            self.given[before].remove(&need);
            self.load[before] -= 1;
        }
        self.given[to].insert(need);
        self.load[to] += 1;
        for peer in &needs[need].peers {
            for (device, more) in before.map(|before| (before, false)).into_iter().chain([(to, true)]) {
                for at in [device * n + peer, peer * n + device] {
                    if more { self.together[at] += 1 } else { self.together[at] -= 1 }
                }
            }
        }
    }

    /// Finds a home for a need by the shortest chain in which each device passes on one copy that it was given, up to one
    /// that is owed more; `false` when there is none.
    fn make_room(&mut self, needs: &[Need], need: usize) -> bool {
        // How each device is reached: which need would go there.
        let mut reached: BTreeMap<usize, usize> = self.allowed(&needs[need]).map(|to| (to, need)).collect();
        let mut queue: VecDeque<usize> = reached.keys().copied().collect();
        let mut end = None;
        while let Some(giver) = queue.pop_front().filter(|_| end.is_none()) {
            for passed in &self.given[giver] {
                for to in self.allowed(&needs[*passed]) {
                    if reached.contains_key(&to) {
                        continue;
                    }
                    reached.insert(to, *passed);
                    queue.push_back(to);
                    if self.owed(to) > 0 {
                        end = end.or(Some(to));
                    }
                }
            }
        }
        if let Some(end) = end {
            self.pass_on(needs, &reached, need, end);
        }
        end.is_some()
    }

    /// From the end of a chain to its beginning: who goes there, and then to the place that it leaves.
    fn pass_on(&mut self, needs: &[Need], reached: &BTreeMap<usize, usize>, first: usize, end: usize) {
        let mut to = end;
        while let Some(passed) = reached.get(&to).copied() {
            let left = self.homes.get(passed).copied().flatten();
            self.give(needs, passed, to);
            match left {
                Some(left) if passed != first => to = left,
                Some(_) | None => return,
            }
        }
    }
}
