//! How many copies each device should hold: in proportion to its capacity, as far as fault domains allow.
//!
//! A fault domain holds at most one copy of a group (I5), so a domain with more than its share of all capacity fills up
//! at one copy per group, and the rest is shared by the others: water-filling. Integers only: every member computes the
//! same.

use std::collections::{BTreeMap, BTreeSet};

use pflex_proto::ids::DeviceId;

use super::{Candidate, FaultDomain};

/// Copies per device, their sum being `groups * copies`; each within one of its ideal share. Where rounding leaves a
/// choice, devices keep what they hold `now`, so that nothing moves for a fraction of a copy.
///
/// `None` when the fault domains are fewer than the copies.
pub(super) fn quotas(
    groups: u32,
    copies: usize,
    candidates: &[Candidate],
    now: &BTreeMap<DeviceId, u32>,
) -> Option<BTreeMap<DeviceId, u32>> {
    let full = full_domains(copies, candidates)?;
    let mut quotas = BTreeMap::new();
    // A full domain has one copy of each group, shared by its own devices.
    for domain in &full {
        let inside: Vec<Candidate> = candidates.iter().copied().filter(|c| c.domain == *domain).collect();
        apportion(groups, &inside, now, groups, &mut quotas);
    }
    let outside: Vec<Candidate> = candidates.iter().copied().filter(|c| !full.contains(&c.domain)).collect();
    let rest = groups * (copies - full.len()) as u32;
    apportion(rest, &outside, now, groups, &mut quotas);
    Some(quotas)
}

/// The domains whose share would be over one copy per group: found by taking the largest away until none is.
fn full_domains(copies: usize, candidates: &[Candidate]) -> Option<BTreeSet<FaultDomain>> {
    let mut weights: BTreeMap<FaultDomain, u128> = BTreeMap::new();
    for candidate in candidates {
        *weights.entry(candidate.domain).or_default() += u128::from(candidate.capacity.get());
    }
    if weights.len() < copies {
        return None;
    }
    let mut by_weight: Vec<(u128, FaultDomain)> =
        weights.into_iter().map(|(domain, weight)| (weight, domain)).collect();
    by_weight.sort_by(|a, b| b.cmp(a));
    let mut full = BTreeSet::new();
    let mut total: u128 = by_weight.iter().map(|(weight, _)| weight).sum();
    for (weight, domain) in by_weight {
        let left = (copies - full.len()) as u128;
        if left == 0 || weight * left < total {
            break;
        }
        total -= weight;
        full.insert(domain);
    }
    Some(full)
}

/// Shares `amount` among the candidates by capacity: each gets its share rounded down, and the units that are left go
/// first to devices that hold them already, then to the largest remainders. No domain gets more than `per_domain`.
fn apportion(
    amount: u32,
    candidates: &[Candidate],
    now: &BTreeMap<DeviceId, u32>,
    per_domain: u32,
    into: &mut BTreeMap<DeviceId, u32>,
) {
    let total: u128 = candidates.iter().map(|c| u128::from(c.capacity.get())).sum();
    if total == 0 {
        return;
    }
    let mut left = amount;
    let mut of_domain: BTreeMap<FaultDomain, u32> = BTreeMap::new();
    // Keeps it already, remainder, device: who is first in line for a unit that is left.
    let mut line = Vec::with_capacity(candidates.len());
    for candidate in candidates {
        let product = u128::from(amount) * u128::from(candidate.capacity.get());
        let (whole, remainder) = ((product / total) as u32, product % total);
        into.insert(candidate.device, whole);
        *of_domain.entry(candidate.domain).or_default() += whole;
        left -= whole;
        let held = now.get(&candidate.device).copied().unwrap_or(0);
        line.push((held > whole, remainder, candidate));
    }
    // Without a remainder the share is whole: one more would be over by a full copy.
    line.sort_by(|a, b| (b.1 > 0, b.0, b.1).cmp(&(a.1 > 0, a.0, a.1)).then_with(|| a.2.device.cmp(&b.2.device)));
    while left > 0 {
        let before = left;
        for (.., candidate) in &line {
            let room = of_domain.entry(candidate.domain).or_default();
            if left > 0 && *room < per_domain {
                *into.entry(candidate.device).or_default() += 1;
                *room += 1;
                left -= 1;
            }
        }
        debug_assert!(left < before, "there are enough domains for every copy");
        if left == before {
            return;
        }
    }
}
