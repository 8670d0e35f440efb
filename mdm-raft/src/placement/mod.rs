//! Where the copies of placement groups go: pure and deterministic, so every member computes the same (ARCHITECTURE 5).
//!
//! Promises, each a property test: never two copies of a group in one fault domain (I5); copies in proportion to
//! capacity as far as that allows, to within one copy; primaries spread evenly; little more moves than has to when
//! devices come and go; the same input gives the same output.
//!
//! Reading order: `place` (from nothing), `quota` (whose share is what), `rebalance` (from what is there), `plan` (that,
//! with what it is good for), `rehome` (only what was lost), `balance` (who is primary, from nothing and from what is).

mod balance;
mod plan;
mod quota;
mod rebalance;
mod rehome;
#[cfg(test)]
mod rehome_tests;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use pflex_proto::ids::{ByteCount, DeviceId, FaultSetId, PoolId, SdsId};

pub use balance::even_leads;
pub use plan::{Plan, plan};
pub use rebalance::{Move, rebalance};
pub use rehome::{Orphan, rehome};

/// What fails together: the unit no two copies of a group share.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum FaultDomain {
    /// All SDSs of a fault set.
    Set(FaultSetId),
    /// An SDS outside any fault set.
    Sds(SdsId),
}

/// A device that may hold copies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Candidate {
    /// The device.
    pub device: DeviceId,
    /// What it fails with.
    pub domain: FaultDomain,
    /// Its weight.
    pub capacity: ByteCount,
}

/// The copies of one group; the first is its primary.
pub type Copies = Vec<DeviceId>;

/// Places `copies` copies of each of `pg_count` groups, or says `None` when the fault domains are too few.
///
/// Each group begins on the device that is owed the largest part of its share, and goes on where it shares the fewest groups for the other's
/// share: so the peers of a device, which rebuild it, are all others in proportion. What is then a few copies off its
/// share is put right by `rebalance`; nothing is stored yet, so that costs nothing. Rejected: hashing alone (CRUSH,
/// rendezvous), whose spread over few groups is uneven by tens of per cent, for statelessness we do not need: the table
/// is authoritative. Rejected too: always the device with the least load for its weight; devices of one size then meet in
/// every group and nobody else helps to rebuild them.
pub fn place(pool: PoolId, pg_count: u32, copies: usize, candidates: &[Candidate]) -> Option<Vec<Copies>> {
    let mut devices: Vec<Candidate> = candidates.iter().copied().filter(|c| c.capacity.get() > 0).collect();
    devices.sort_by_key(|candidate| candidate.device);
    devices.dedup_by_key(|candidate| candidate.device);
    if copies == 0 {
        return None;
    }
    let quotas = quota::quotas(pg_count, copies, &devices, &BTreeMap::new())?;

    // By position in `devices`: the inner loop runs groups x copies x devices times inside one apply.
    let quotas: Vec<u32> = devices.iter().map(|candidate| count(&quotas, candidate.device)).collect();
    let mut owed = quotas.clone();
    let mut together = vec![0_u32; devices.len() * devices.len()];
    let mut groups: Vec<Copies> = Vec::with_capacity(pg_count as usize);
    for index in 0..pg_count {
        let mut chosen: Vec<usize> = Vec::with_capacity(copies);
        while chosen.len() < copies {
            let shared = |at: usize| -> u32 { chosen.iter().map(|other| together[at * devices.len() + other]).sum() };
            let key = |at: usize| {
                // Parts of its share in 1/2^20: integers, so that every member computes the same.
                let part = |n: u32| (u64::from(n) << 20) / u64::from(quotas[at].max(1));
                let hash = spread(pool, index, devices[at].device);
                (owed[at] == 0, part(shared(at)), std::cmp::Reverse(part(owed[at])), hash, at)
            };
            let free = (0..devices.len()).filter(|at| chosen.iter().all(|c| devices[*c].domain != devices[*at].domain));
            let best = free.min_by_key(|at| key(*at)).expect("there are at least as many fault domains as copies");
            for other in &chosen {
                together[best * devices.len() + other] += 1;
                together[other * devices.len() + best] += 1;
            }
            owed[best] = owed[best].saturating_sub(1);
            chosen.push(best);
        }
        groups.push(chosen.into_iter().map(|at| devices[at].device).collect());
    }
    for step in rebalance(&groups, copies, &devices)? {
        if let Some(copy) = groups[step.group].iter_mut().find(|device| **device == step.from) {
            *copy = step.to;
        }
    }
    balance::spread_primaries(&mut groups);
    Some(groups)
}

/// The number of things that fail independently among `candidates`.
pub fn fault_domains(candidates: &[Candidate]) -> usize {
    candidates.iter().map(|candidate| candidate.domain).collect::<std::collections::BTreeSet<_>>().len()
}

fn count<K: Ord>(counts: &BTreeMap<K, u32>, key: K) -> u32 {
    counts.get(&key).copied().unwrap_or(0)
}

fn pair(a: DeviceId, b: DeviceId) -> (DeviceId, DeviceId) {
    if a < b { (a, b) } else { (b, a) }
}

/// A hash that breaks ties differently in every group. Its values need not stay the same between versions: what was
/// placed is in the table.
fn spread(pool: PoolId, index: u32, device: DeviceId) -> u64 {
    let mut k = u64::from(pool.get()) << 40 ^ u64::from(index) << 20 ^ u64::from(device.get());
    k = (k ^ (k >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    k = (k ^ (k >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    k ^ (k >> 31)
}
