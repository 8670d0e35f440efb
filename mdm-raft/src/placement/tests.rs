//! Properties of placement over random clusters; a failure prints the seed, `PFLEX_TEST_SEED` runs one again.

use std::collections::{BTreeMap, BTreeSet};

use pflex_proto::ids::{ByteCount, DeviceId, FaultSetId, PoolId, SdsId};
use rand::RngExt as _;

use super::{Candidate, FaultDomain, place};
use crate::testing::{Seeds, rng};

const GIB: u64 = 1 << 30;

fn equal_devices(n: u32) -> Vec<Candidate> {
    (1..=n)
        .map(|i| Candidate { device: DeviceId(i), domain: FaultDomain::Sds(SdsId(i)), capacity: ByteCount(GIB) })
        .collect()
}

fn share(groups: &[Vec<DeviceId>], copies: impl Fn(&Vec<DeviceId>) -> Vec<DeviceId>) -> BTreeMap<DeviceId, u32> {
    let mut counts = BTreeMap::new();
    for device in groups.iter().flat_map(copies) {
        *counts.entry(device).or_default() += 1;
    }
    counts
}

#[test]
fn equal_devices_get_equal_shares_of_copies_and_primaries() {
    for n in 2..=16 {
        for copies in 1..=n.min(4) as usize {
            let groups = place(PoolId(1), 128, copies, &equal_devices(n)).expect("enough devices");
            let all = share(&groups, Clone::clone);
            let first = share(&groups, |group| vec![group[0]]);
            for counts in [&all, &first] {
                let (least, most) = (counts.values().min().unwrap(), counts.values().max().unwrap());
                assert_eq!(counts.len(), n as usize, "{n} devices, {copies} copies: all are used");
                assert!(most - least <= 1, "{n} devices, {copies} copies: {counts:?}");
            }
        }
    }
}

#[test]
fn peers_of_a_device_share_its_groups() {
    let groups = place(PoolId(1), 256, 2, &equal_devices(8)).expect("enough devices");
    let peers: BTreeSet<_> = groups.iter().filter(|g| g.contains(&DeviceId(1))).flatten().collect();
    assert_eq!(peers.len(), 8, "a lost device is rebuilt from every other one");
}

#[test]
fn too_few_fault_domains_place_nothing() {
    let same = |device| Candidate {
        device: DeviceId(device),
        domain: FaultDomain::Set(FaultSetId(1)),
        capacity: ByteCount(GIB),
    };
    assert_eq!(place(PoolId(1), 8, 2, &[same(1), same(2), same(3)]), None);
    assert_eq!(place(PoolId(1), 8, 2, &[]), None);
    assert_eq!(place(PoolId(1), 8, 3, &equal_devices(2)), None);
}

#[test]
fn random_clusters_keep_copies_apart_and_shares_fair() {
    for seed in Seeds::new(200) {
        let mut rng = rng(seed);
        let copies = rng.random_range(1..=3_usize);
        let pg_count = 1 << rng.random_range(5..=9_u32);
        let devices: Vec<Candidate> = (1..=rng.random_range(3..=24_u32))
            .map(|i| {
                let sds = SdsId(rng.random_range(1..=8));
                let domain =
                    if sds.0 <= 4 { FaultDomain::Set(FaultSetId(sds.0 / 2 + 1)) } else { FaultDomain::Sds(sds) };
                Candidate { device: DeviceId(i), domain, capacity: ByteCount(rng.random_range(1..=4) * GIB) }
            })
            .collect();
        let Some(groups) = place(PoolId(3), pg_count, copies, &devices) else {
            assert!(super::fault_domains(&devices) < copies, "seed {seed}: placed nothing without need");
            continue;
        };
        assert_eq!(Some(&groups), place(PoolId(3), pg_count, copies, &devices).as_ref(), "seed {seed}: same again");
        let by_id: BTreeMap<_, _> = devices.iter().map(|c| (c.device, c)).collect();
        for group in &groups {
            let domains: BTreeSet<_> = group.iter().map(|d| by_id[d].domain).collect();
            assert_eq!(domains.len(), copies, "seed {seed}: two copies in one fault domain: {group:?}");
        }
        // One copy: nothing keeps shares from following capacity, but for rounding.
        if copies == 1 {
            let total: u64 = devices.iter().map(|c| c.capacity.get()).sum();
            for (device, n) in share(&groups, Clone::clone) {
                let fair = f64::from(pg_count) * by_id[&device].capacity.get() as f64 / total as f64;
                assert!((f64::from(n) - fair).abs() < 2.0, "seed {seed}: {device} has {n}, fair is {fair}");
            }
        }
    }
}
