//! A rebalance as it is shown to people: the moves, the least there can be, and how uneven it is before and after.

use std::collections::BTreeMap;

use pflex_proto::ids::DeviceId;

use super::{Candidate, Copies, Move, count, quota, rebalance};

/// What a rebalance would do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// By group.
    pub moves: Vec<Move>,
    /// Copies above the shares of the devices that hold them: no plan for these shares moves fewer.
    pub least: u32,
    /// How far the device that is furthest from its share is off now, in thousandths of that share. Devices that are no
    /// candidates have no share and count only by their moves.
    pub imbalance_before: u32,
    /// The same after the moves.
    pub imbalance_after: u32,
}

/// The moves of [`rebalance`] with what they are good for.
///
/// `None` when the fault domains are fewer than the copies.
pub fn plan(groups: &[Copies], copies: usize, candidates: &[Candidate]) -> Option<Plan> {
    let before = loads(groups);
    let quotas = quota::quotas(groups.len() as u32, copies, candidates, &before)?;
    let mut moves = rebalance(groups, copies, candidates)?;
    moves.sort();
    let mut after = before.clone();
    for step in &moves {
        *after.entry(step.from).or_default() -= 1;
        *after.entry(step.to).or_default() += 1;
    }
    Some(Plan {
        moves,
        least: before.iter().map(|(device, load)| load.saturating_sub(count(&quotas, *device))).sum(),
        imbalance_before: imbalance(&before, &quotas),
        imbalance_after: imbalance(&after, &quotas),
    })
}

/// How many copies each device holds.
fn loads(groups: &[Copies]) -> BTreeMap<DeviceId, u32> {
    let mut loads = BTreeMap::new();
    for device in groups.iter().flatten() {
        *loads.entry(*device).or_default() += 1;
    }
    loads
}

/// The largest distance of a device from its share, in thousandths of the share.
fn imbalance(loads: &BTreeMap<DeviceId, u32>, quotas: &BTreeMap<DeviceId, u32>) -> u32 {
    let off = |(device, quota): (&DeviceId, &u32)| {
        let distance = u64::from(count(loads, *device).abs_diff(*quota));
        // A share of nothing, held in full, is off by as much as it holds.
        u32::try_from(distance * 1_000 / u64::from((*quota).max(1))).unwrap_or(u32::MAX)
    };
    quotas.iter().map(off).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use pflex_proto::ids::{ByteCount, PoolId, SdsId};
    use rand::RngExt as _;

    use super::*;
    use crate::{
        placement::{FaultDomain, place},
        testing::{Seeds, rng},
    };

    fn devices(sizes: &[u64]) -> Vec<Candidate> {
        let candidate = |(i, size): (u32, &u64)| Candidate {
            device: DeviceId(i),
            domain: FaultDomain::Sds(SdsId(i)),
            capacity: ByteCount(*size << 30),
        };
        (1..).zip(sizes).map(candidate).collect()
    }

    #[test]
    fn an_even_pool_needs_no_moves_and_a_new_device_takes_its_share() {
        let groups = place(PoolId(1), 64, 2, &devices(&[1; 4])).expect("enough devices");
        let even = plan(&groups, 2, &devices(&[1; 4])).expect("enough devices");
        assert_eq!((even.moves.len(), even.least, even.imbalance_before, even.imbalance_after), (0, 0, 0, 0));

        // 128 copies on five devices: the fifth is to have 25 or 26.
        let grown = plan(&groups, 2, &devices(&[1; 5])).expect("enough devices");
        assert!(grown.moves.iter().all(|step| step.to == DeviceId(5)), "{grown:?}");
        assert_eq!((grown.moves.len() as u32, grown.imbalance_before, grown.imbalance_after), (grown.least, 1_000, 0));
        assert!((25..=26).contains(&grown.least));
    }

    #[test]
    fn a_device_that_is_gone_gives_up_everything_and_too_few_fault_domains_are_no_plan() {
        let groups = place(PoolId(1), 32, 2, &devices(&[1; 4])).expect("enough devices");
        let held = loads(&groups)[&DeviceId(4)];
        let lost = plan(&groups, 2, &devices(&[1; 3])).expect("enough devices");
        assert!(lost.moves.iter().filter(|step| step.from == DeviceId(4)).count() as u32 == held);
        assert_eq!(plan(&groups, 2, &devices(&[1; 1])), None);
    }

    #[test]
    fn plans_even_out_random_pools_with_few_moves() {
        for seed in Seeds::new(100) {
            let mut rng = rng(seed);
            let n = rng.random_range(3..=12);
            let sizes: Vec<u64> = (0..n).map(|_| rng.random_range(1..=4)).collect();
            let groups = place(PoolId(1), 128, 2, &devices(&sizes)).expect("enough devices");
            let mut changed = sizes.clone();
            changed.push(rng.random_range(1..=4));
            let found = plan(&groups, 2, &devices(&changed)).expect("enough devices");
            let moves = found.moves.len() as u32;
            assert!(moves >= found.least, "seed {seed}: fewer than what is above the shares: {found:?}");
            assert!(moves * 10 <= found.least * 12, "seed {seed}: {moves} moves, least {}", found.least);
            assert!(found.imbalance_after <= found.imbalance_before, "seed {seed}: {found:?}");
            let steps: std::collections::BTreeSet<_> = found.moves.iter().map(|step| (step.group, step.from)).collect();
            assert_eq!(steps.len(), found.moves.len(), "seed {seed}: a copy moves once");
        }
    }
}
