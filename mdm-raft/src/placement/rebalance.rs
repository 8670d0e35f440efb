//! Which copies to move so that each device holds its share again: after a device came, grew, leaves or was lost.
//!
//! The least that has to move is what is above the quotas. Each step takes one copy off a device that has too many,
//! straight to one that has too few, or, where fault domains forbid that, along the shortest chain of moves.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use pflex_proto::ids::DeviceId;

use super::{Candidate, Copies, FaultDomain, count, pair, quota};

/// One copy of a group goes from one device to another.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Move {
    /// Which group, by position.
    pub group: usize,
    /// Loses it.
    pub from: DeviceId,
    /// Gets it.
    pub to: DeviceId,
}

/// The moves that bring `groups` to the quotas of `candidates`; devices that are no candidates give up everything.
///
/// `None` when the fault domains are fewer than the copies. The same input gives the same moves.
pub fn rebalance(groups: &[Copies], copies: usize, candidates: &[Candidate]) -> Option<Vec<Move>> {
    let mut now = BTreeMap::new();
    for device in groups.iter().flatten() {
        *now.entry(*device).or_default() += 1;
    }
    let quotas = quota::quotas(groups.len() as u32, copies, candidates, &now)?;
    let mut table = Table::new(groups, candidates, quotas, now);
    table.settle_domains();
    let mut stuck = BTreeSet::new();
    while let Some(from) = table.most_over(&stuck) {
        if !table.relieve(from) {
            stuck.insert(from);
        }
    }
    Some(table.moves())
}

struct Table<'a> {
    before: &'a [Copies],
    groups: Vec<Copies>,
    domains: BTreeMap<DeviceId, FaultDomain>,
    quotas: BTreeMap<DeviceId, u32>,
    load: BTreeMap<DeviceId, u32>,
    /// Positions of the groups with a copy on each device.
    held: BTreeMap<DeviceId, BTreeSet<usize>>,
    /// How many groups two devices share: a rebuild reads from many peers when no pair shares many.
    together: BTreeMap<(DeviceId, DeviceId), u32>,
}

impl<'a> Table<'a> {
    fn new(
        before: &'a [Copies],
        candidates: &[Candidate],
        quotas: BTreeMap<DeviceId, u32>,
        load: BTreeMap<DeviceId, u32>,
    ) -> Self {
        let mut table = Self {
            before,
            groups: before.to_vec(),
            domains: candidates.iter().map(|c| (c.device, c.domain)).collect(),
            quotas,
            load,
            held: BTreeMap::new(),
            together: BTreeMap::new(),
        };
        for (at, group) in before.iter().enumerate() {
            for (position, device) in group.iter().enumerate() {
                table.held.entry(*device).or_default().insert(at);
                for other in &group[..position] {
                    *table.together.entry(pair(*device, *other)).or_default() += 1;
                }
            }
        }
        table
    }

    fn load(&self, device: DeviceId) -> u32 {
        count(&self.load, device)
    }

    fn quota(&self, device: DeviceId) -> u32 {
        count(&self.quotas, device)
    }

    /// How many copies too many.
    fn over(&self, device: DeviceId) -> u32 {
        self.load(device).saturating_sub(self.quota(device))
    }

    fn under(&self, device: DeviceId) -> bool {
        self.load(device) < self.quota(device)
    }

    fn most_over(&self, except: &BTreeSet<DeviceId>) -> Option<DeviceId> {
        let over =
            self.load.keys().filter(|device| !except.contains(device)).map(|device| (self.over(*device), *device));
        over.filter(|(over, _)| *over > 0).max_by(|a, b| a.0.cmp(&b.0).then_with(|| b.1.cmp(&a.1))).map(|(_, d)| d)
    }

    /// Whether a copy of the group may go from one device to another (I5).
    fn may_move(&self, group: usize, from: DeviceId, to: DeviceId) -> bool {
        let Some(domain) = self.domains.get(&to) else { return false };
        let copies = &self.groups[group];
        !copies.contains(&to)
            && copies.iter().filter(|device| **device != from).all(|device| self.domains.get(device) != Some(domain))
    }

    /// Two copies in one fault domain, because servers were put into a fault set later: one of them goes first.
    fn settle_domains(&mut self) {
        for at in 0..self.groups.len() {
            let mut seen = BTreeSet::new();
            let group = self.groups[at].clone();
            for device in group {
                let Some(domain) = self.domains.get(&device) else { continue };
                if seen.insert(*domain) {
                    continue;
                }
                let emptiest = self
                    .domains
                    .keys()
                    .copied()
                    .filter(|to| self.may_move(at, device, *to))
                    .max_by_key(|to| i64::from(self.quota(*to)) - i64::from(self.load(*to)));
                if let Some(to) = emptiest {
                    self.put(Move { group: at, from: device, to });
                }
            }
        }
    }

    /// Takes one copy off a device; `false` when no chain of moves allows it.
    fn relieve(&mut self, from: DeviceId) -> bool {
        let Some(path) = self.straight(from).map(|step| vec![step]).or_else(|| self.chain(from)) else { return false };
        for step in path {
            self.put(step);
        }
        true
    }

    /// A move to a device that has too few. Groups with the fewest places to go to come first, or they would end in
    /// chains; then those that part devices which share much, so that no pair shares many groups; then backups.
    fn straight(&self, from: DeviceId) -> Option<Move> {
        let targets: Vec<DeviceId> = self.quotas.keys().copied().filter(|device| self.under(*device)).collect();
        let moves = self.held.get(&from)?.iter().flat_map(|group| {
            let allowed: Vec<_> = targets.iter().copied().filter(|to| self.may_move(*group, from, *to)).collect();
            let choices = allowed.len();
            allowed.into_iter().map(move |to| (choices, Move { group: *group, from, to }))
        });
        let best = moves.min_by_key(|(choices, step)| {
            let others = self.groups[step.group].iter().filter(|device| **device != from);
            let shared: u32 = others.map(|other| count(&self.together, pair(step.to, *other))).sum();
            (*choices, shared, self.groups[step.group].first() == Some(&from), *step)
        });
        best.map(|(_, step)| step)
    }

    /// The shortest chain: each device in it hands one copy to the next, the last has too few.
    fn chain(&self, from: DeviceId) -> Option<Vec<Move>> {
        let mut came: BTreeMap<DeviceId, Move> = BTreeMap::new();
        let mut queue = VecDeque::from([from]);
        while let Some(giver) = queue.pop_front() {
            for group in self.held.get(&giver).into_iter().flatten() {
                for to in self.quotas.keys().copied() {
                    if to == from || came.contains_key(&to) || !self.may_move(*group, giver, to) {
                        continue;
                    }
                    came.insert(to, Move { group: *group, from: giver, to });
                    if self.under(to)
                        && let Some(path) = self.path(&came, from, to)
                    {
                        return Some(path);
                    }
                    queue.push_back(to);
                }
            }
        }
        None
    }

    /// The chain that ends at `to`, unless two of its moves meet in one group: each was allowed alone only.
    fn path(&self, came: &BTreeMap<DeviceId, Move>, from: DeviceId, to: DeviceId) -> Option<Vec<Move>> {
        let mut path = Vec::new();
        let mut at = to;
        while at != from {
            let step = *came.get(&at)?;
            path.push(step);
            at = step.from;
        }
        let groups: BTreeSet<usize> = path.iter().map(|step| step.group).collect();
        (groups.len() == path.len()).then_some(path)
    }

    fn put(&mut self, step: Move) {
        let Move { group, from, to } = step;
        let copies = &mut self.groups[group];
        let Some(place) = copies.iter().position(|device| *device == from) else { return };
        copies[place] = to;
        for other in self.groups[group].iter().filter(|device| **device != to) {
            *self.together.entry(pair(from, *other)).or_default() -= 1;
            *self.together.entry(pair(to, *other)).or_default() += 1;
        }
        *self.load.entry(from).or_default() -= 1;
        *self.load.entry(to).or_default() += 1;
        self.held.entry(from).or_default().remove(&group);
        self.held.entry(to).or_default().insert(group);
    }

    /// What differs in the end; a copy that went along a chain twice moves once.
    fn moves(&self) -> Vec<Move> {
        let mut moves = Vec::new();
        for (group, (before, after)) in self.before.iter().zip(&self.groups).enumerate() {
            let gone = before.iter().filter(|device| !after.contains(device));
            let come = after.iter().filter(|device| !before.contains(device));
            moves.extend(gone.zip(come).map(|(from, to)| Move { group, from: *from, to: *to }));
        }
        moves
    }
}
