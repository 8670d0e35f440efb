//! Properties of new homes over random clusters and losses; a failure prints the seed.

use std::collections::{BTreeMap, BTreeSet};

use pflex_proto::ids::{DeviceId, PoolId};
use rand::RngExt as _;

use super::{
    Candidate, Copies, FaultDomain, Move, Orphan, place, quota, rehome,
    tests::{equal_devices, moved, servers, share},
};
use crate::testing::{Seeds, rng};

const POOL: PoolId = PoolId(1);
const GROUPS: u32 = 256;

/// A placed pool of which some devices are lost.
struct Hurt {
    copies: usize,
    groups: Vec<Copies>,
    alive: Vec<Candidate>,
    domains: BTreeMap<DeviceId, FaultDomain>,
}

impl Hurt {
    fn random(seed: u64) -> Option<Self> {
        let mut rng = rng(seed);
        let count = rng.random_range(3..=64_u32);
        let copies = rng.random_range(1..=3_usize).min(count as usize - 1);
        let devices = servers(&mut rng, count);
        let groups = place(POOL, GROUPS, copies, &devices)?;
        let losses = rng.random_range(1..=(count as usize / 2).clamp(1, 8));
        let mut alive = devices.clone();
        for _ in 0..losses {
            alive.remove(rng.random_range(0..alive.len()));
        }
        let domains = devices.iter().map(|c| (c.device, c.domain)).collect();
        Some(Self { copies, groups, alive, domains })
    }

    fn is_alive(&self, device: DeviceId) -> bool {
        self.alive.iter().any(|candidate| candidate.device == device)
    }

    /// Lost copies of groups that have another one to be filled from.
    fn orphans(&self) -> Vec<Orphan> {
        let mut orphans = Vec::new();
        for (group, copies) in self.groups.iter().enumerate() {
            if copies.iter().any(|device| self.is_alive(*device)) {
                let lost = copies.iter().filter(|device| !self.is_alive(**device));
                orphans.extend(lost.map(|from| Orphan { group, from: *from }));
            }
        }
        orphans
    }

    fn plan(&self, domains: &BTreeMap<DeviceId, FaultDomain>) -> Vec<Move> {
        rehome(POOL, &self.groups, self.copies, &self.alive, domains, &self.orphans())
    }

    /// What is wrong with a plan, by rules of its own.
    fn fault(&self, plan: &[Move]) -> Option<String> {
        let orphans: BTreeSet<Orphan> = self.orphans().into_iter().collect();
        let mut seen = BTreeSet::new();
        for step in plan {
            if !orphans.contains(&Orphan { group: step.group, from: step.from }) {
                return Some(format!("{step:?} is of a copy that was not lost"));
            }
            if !seen.insert(step.group) {
                return Some(format!("{step:?} is the second of its group"));
            }
            if !self.is_alive(step.to) {
                return Some(format!("{step:?} goes to a lost device"));
            }
            let others = self.groups[step.group].iter().filter(|device| **device != step.from);
            let domain = self.domains[&step.to];
            if others.map(|device| self.domains[device]).any(|other| other == domain) {
                return Some(format!("{step:?} puts two copies in one fault domain"));
            }
        }
        None
    }

    /// Plans until nothing is left to move.
    fn heal(&mut self, seed: u64) {
        for _ in 0..=self.copies {
            let plan = self.plan(&self.domains);
            assert_eq!(self.fault(&plan), None, "seed {seed}");
            assert_eq!(plan, self.plan(&self.domains), "seed {seed}: the same input, another plan");
            self.groups = moved(&self.groups, &plan);
        }
    }
}

#[test]
fn every_lost_copy_that_can_has_a_new_home_apart_from_the_others_and_only_those_move() {
    let mut healed = 0;
    for seed in Seeds::new(120) {
        let Some(mut hurt) = Hurt::random(seed) else { continue };
        hurt.heal(seed);
        let free: BTreeSet<FaultDomain> = hurt.alive.iter().map(|candidate| candidate.domain).collect();
        for orphan in hurt.orphans() {
            let others = hurt.groups[orphan.group].iter().filter(|device| **device != orphan.from);
            let taken: BTreeSet<FaultDomain> = others.map(|device| hurt.domains[device]).collect();
            assert!(free.is_subset(&taken), "seed {seed}: {orphan:?} could have had a home");
        }
        healed += u32::from(hurt.orphans().is_empty());
    }
    assert!(healed > 0 || std::env::var("PFLEX_TEST_SEED").is_ok(), "no cluster was ever whole again");
}

/// Nobody gets more than its share by capacity where two fault domains more than copies are left: then there is a choice.
#[test]
fn who_takes_in_copies_has_its_share_of_all_and_little_more() {
    for seed in Seeds::new(120) {
        let Some(mut hurt) = Hurt::random(seed) else { continue };
        let domains: BTreeSet<FaultDomain> = hurt.alive.iter().map(|candidate| candidate.domain).collect();
        if domains.len() < hurt.copies + 2 {
            continue;
        }
        let before = share(&hurt.groups, Clone::clone);
        hurt.heal(seed);
        let after = share(&hurt.groups, Clone::clone);
        let quotas = quota::quotas(GROUPS, hurt.copies, &hurt.alive, &before).expect("enough domains");
        for (device, quota) in quotas {
            let load = |shares: &BTreeMap<DeviceId, u32>| shares.get(&device).copied().unwrap_or(0);
            let most = quota.max(load(&before)) + quota / 10 + 2;
            assert!(load(&after) <= most, "seed {seed}: {device} has {} of a share of {quota}", load(&after));
        }
    }
}

#[test]
fn every_other_server_takes_its_part_of_a_lost_one() {
    let devices = equal_devices(12);
    let groups = place(POOL, GROUPS, 2, &devices).expect("enough domains");
    let domains = devices.iter().map(|c| (c.device, c.domain)).collect();
    let mut hurt = Hurt { copies: 2, groups, alive: devices[1..].to_vec(), domains };
    let plan = hurt.plan(&hurt.domains);
    let takers: BTreeSet<DeviceId> = plan.iter().map(|step| step.to).collect();
    assert_eq!(takers.len(), 11, "{plan:?}");
    hurt.heal(0);
    assert!(hurt.orphans().is_empty());
}

/// A planner that does not know what fails together is found out.
#[test]
fn a_planner_without_fault_domains_is_found_out() {
    let plans = Seeds::new(40).filter_map(|seed| {
        let hurt = Hurt::random(seed)?;
        hurt.fault(&hurt.plan(&BTreeMap::new()))
    });
    let found: Vec<String> = plans.collect();
    assert!(
        found.iter().any(|fault| fault.contains("one fault domain")) || std::env::var("PFLEX_TEST_SEED").is_ok(),
        "{found:?}"
    );
}
