//! Where the copies of placement groups go: pure and deterministic, so every member computes the same (ARCHITECTURE 5).
//!
//! Promises, each a property test: never two copies of a group in one fault domain (I5); copies in proportion to
//! capacity as far as that allows, to within one copy; primaries spread evenly; little more moves than has to when
//! devices come and go; the same input gives the same output.
//!
//! Reading order: `place` (from nothing), `quota` (whose share is what), `rebalance` (from what is there), `balance`
//! (who is primary).

mod balance;
mod quota;
mod rebalance;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use pflex_proto::ids::{ByteCount, DeviceId, FaultSetId, PoolId, SdsId};

pub use rebalance::{Move, rebalance};

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
/// Greedy: each copy goes to the device with the least load for its weight among the fault domains the group does not
/// use yet; among equals to the one that shares the fewest groups with the copies already chosen (so that a rebuild
/// reads from many peers), then by hash. Rejected: hashing alone (CRUSH, rendezvous), whose spread over few groups is
/// uneven by tens of per cent, for statelessness we do not need: the table is authoritative.
pub fn place(pool: PoolId, pg_count: u32, copies: usize, candidates: &[Candidate]) -> Option<Vec<Copies>> {
    let mut devices: Vec<Candidate> = candidates.iter().copied().filter(|c| c.capacity.get() > 0).collect();
    devices.sort_by_key(|candidate| candidate.device);
    devices.dedup_by_key(|candidate| candidate.device);
    if copies == 0 || fault_domains(&devices) < copies {
        return None;
    }

    // By position in `devices`: the inner loop runs groups x copies x devices times inside one apply.
    let mut load = vec![0_u32; devices.len()];
    let mut together: BTreeMap<(DeviceId, DeviceId), u32> = BTreeMap::new();
    let mut groups = Vec::with_capacity(pg_count as usize);
    for index in 0..pg_count {
        let mut chosen: Vec<Candidate> = Vec::with_capacity(copies);
        while chosen.len() < copies {
            let (at, best) = devices
                .iter()
                .enumerate()
                .filter(|(_, candidate)| chosen.iter().all(|other| other.domain != candidate.domain))
                .min_by(|(at_a, a), (at_b, b)| {
                    let shared = |c: &Candidate| -> u32 {
                        chosen.iter().map(|other| count(&together, pair(c.device, other.device))).sum()
                    };
                    relative_load((load[*at_a], a), (load[*at_b], b))
                        .then_with(|| shared(a).cmp(&shared(b)))
                        .then_with(|| spread(pool, index, a.device).cmp(&spread(pool, index, b.device)))
                        .then_with(|| a.device.cmp(&b.device))
                })
                .map(|(at, best)| (at, *best))
                .expect("there are at least as many fault domains as copies");
            for other in &chosen {
                *together.entry(pair(best.device, other.device)).or_default() += 1;
            }
            load[at] += 1;
            chosen.push(best);
        }
        groups.push(chosen.into_iter().map(|candidate| candidate.device).collect());
    }
    // Greedy is a copy or two off where fault domains differ much in size; nothing is stored yet, so moves cost nothing.
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

/// Which of two devices is owed the next copy less: half a copy more for its weight (Webster's rule; a whole copy more
/// would favour the large ones). In integers: the state machine must reach
/// the same answer on every machine, and the products of 32 and 64 bits fit.
fn relative_load(a: (u32, &Candidate), b: (u32, &Candidate)) -> std::cmp::Ordering {
    let weigh =
        |(load, _): (u32, &Candidate), other: &Candidate| (2 * u128::from(load) + 1) * u128::from(other.capacity.get());
    weigh(a, b.1).cmp(&weigh(b, a.1))
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
