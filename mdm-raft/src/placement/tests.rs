//! Properties of placement over random clusters; a failure prints the seed, `PFLEX_TEST_SEED` runs one again.

use std::collections::{BTreeMap, BTreeSet};

use pflex_proto::ids::{ByteCount, DeviceId, FaultSetId, PoolId, SdsId};
use rand::RngExt as _;

use super::{Candidate, Copies, FaultDomain, Move, place, rebalance};
use crate::testing::{Seeds, rng};

const GIB: u64 = 1 << 30;

pub(super) fn equal_devices(n: u32) -> Vec<Candidate> {
    (1..=n)
        .map(|i| Candidate { device: DeviceId(i), domain: FaultDomain::Sds(SdsId(i)), capacity: ByteCount(GIB) })
        .collect()
}

pub(super) fn share(
    groups: &[Vec<DeviceId>],
    copies: impl Fn(&Vec<DeviceId>) -> Vec<DeviceId>,
) -> BTreeMap<DeviceId, u32> {
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
fn every_other_server_helps_to_rebuild_one_also_where_sizes_differ() {
    let sizes = [4, 3, 1, 3, 3, 4, 2];
    let devices: Vec<Candidate> = equal_devices(7)
        .into_iter()
        .zip(sizes)
        .map(|(candidate, size)| Candidate { capacity: ByteCount(size * GIB), ..candidate })
        .collect();
    let groups = place(PoolId(1), 512, 2, &devices).expect("enough devices");
    for (lost, size) in devices.iter().zip(sizes) {
        let peers = share(&groups, |group| {
            let with = group.contains(&lost.device);
            group.iter().copied().filter(|device| with && *device != lost.device).collect()
        });
        let all: u32 = peers.values().sum();
        for (other, other_size) in devices.iter().zip(sizes).filter(|(other, _)| other.device != lost.device) {
            let fair = f64::from(all) * other_size as f64 / (20 - size) as f64;
            let n = f64::from(peers.get(&other.device).copied().unwrap_or(0));
            assert!(
                n > fair * 0.5 - 4.0 && n < fair * 1.5 + 4.0,
                "{} shares {n} groups with {}, fair {fair:.1}",
                lost.device,
                other.device
            );
        }
    }
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

/// Servers of mixed sizes, one device each, some of them in racks.
pub(super) fn servers(rng: &mut rand_chacha::ChaCha8Rng, count: u32) -> Vec<Candidate> {
    let racks = rng.random_bool(0.3) && count >= 12;
    (1..=count)
        .map(|i| Candidate {
            device: DeviceId(i),
            domain: if racks { FaultDomain::Set(FaultSetId(i % 6)) } else { FaultDomain::Sds(SdsId(i)) },
            capacity: ByteCount(rng.random_range(1..=4) * GIB),
        })
        .collect()
}

/// The ideal share of each device: its part of all capacity, a domain never above one copy per group.
fn ideal(groups: usize, copies: usize, devices: &[Candidate]) -> BTreeMap<DeviceId, f64> {
    let mut full: BTreeSet<FaultDomain> = BTreeSet::new();
    loop {
        let free: f64 = devices.iter().filter(|c| !full.contains(&c.domain)).map(|c| c.capacity.get() as f64).sum();
        let left = (copies - full.len()) as f64;
        let weight =
            |domain| -> f64 { devices.iter().filter(|c| c.domain == domain).map(|c| c.capacity.get() as f64).sum() };
        let over: BTreeSet<_> = devices
            .iter()
            .map(|c| c.domain)
            .filter(|domain| !full.contains(domain) && left > 0.0 && weight(*domain) * left > free * (1.0 + 1e-12))
            .collect();
        if over.is_empty() {
            return devices
                .iter()
                .map(|c| {
                    let (of, part) = if full.contains(&c.domain) { (weight(c.domain), 1.0) } else { (free, left) };
                    (c.device, groups as f64 * part * c.capacity.get() as f64 / of)
                })
                .collect();
        }
        full.extend(over);
    }
}

pub(super) fn moved(groups: &[Copies], moves: &[Move]) -> Vec<Copies> {
    let mut groups = groups.to_vec();
    for step in moves {
        let copy = groups[step.group].iter_mut().find(|device| **device == step.from);
        *copy.expect("a move is of a copy that is there") = step.to;
    }
    groups
}

#[track_caller]
fn assert_good(groups: &[Copies], copies: usize, devices: &[Candidate], why: &str) {
    let by_id: BTreeMap<_, _> = devices.iter().map(|c| (c.device, c.domain)).collect();
    for group in groups {
        let domains: BTreeSet<_> = group.iter().filter_map(|device| by_id.get(device)).collect();
        assert_eq!(domains.len(), copies, "{why}: {group:?}");
    }
    let shares = share(groups, Clone::clone);
    for (device, fair) in ideal(groups.len(), copies, devices) {
        let n = f64::from(shares.get(&device).copied().unwrap_or(0));
        // Five per cent, or the rounding to whole copies.
        assert!((n - fair).abs() <= (fair * 0.05).max(1.0 + 1e-6), "{why}: device {device} has {n}, ideal {fair:.2}");
    }
}

#[test]
fn shares_follow_capacity_from_3_to_512_servers() {
    for seed in Seeds::new(2) {
        let mut rng = rng(seed);
        for count in [3, 4, 7, 16, 60, 200, 512] {
            let devices = servers(&mut rng, count);
            let copies = rng.random_range(1..=3_usize).min(count as usize - 1);
            // As many groups as give each device some tens of copies.
            let groups = (count * 16).next_power_of_two().clamp(64, 4_096);
            let placed = place(PoolId(1), groups, copies, &devices).expect("enough domains");
            assert_good(&placed, copies, &devices, &format!("seed {seed}, {count} servers, {copies} copies"));
            assert_eq!(rebalance(&placed, copies, &devices), Some(Vec::new()), "seed {seed}: nothing is left to move");
            let (held, led) = (share(&placed, Clone::clone), share(&placed, |group| vec![group[0]]));
            for (device, held) in held {
                let (led, fair) = (led.get(&device).copied().unwrap_or(0), f64::from(held) / copies as f64);
                assert!((f64::from(led) - fair).abs() < 1.0, "seed {seed}: {device} leads {led} of {held}");
            }
        }
    }
}

#[test]
fn little_more_moves_than_has_to_when_servers_come_and_go() {
    for seed in Seeds::new(40) {
        let mut rng = rng(seed);
        let count = rng.random_range(4..=48_u32);
        let copies = rng.random_range(1..=3_usize).min(count as usize - 2);
        let mut devices = servers(&mut rng, count);
        let groups = place(PoolId(1), 512, copies, &devices).expect("enough domains");
        let before = share(&groups, Clone::clone);
        let what = if rng.random_bool(0.5) {
            let capacity = ByteCount(rng.random_range(1..=4) * GIB);
            let new = DeviceId(count + 1);
            devices.push(Candidate { device: new, domain: FaultDomain::Sds(SdsId(count + 1)), capacity });
            "added"
        } else {
            devices.remove(rng.random_range(0..devices.len()));
            "removed"
        };
        let Some(moves) = rebalance(&groups, copies, &devices) else { continue };
        let why = format!("seed {seed}, {count} servers, {copies} copies, one {what}");
        let after = moved(&groups, &moves);
        assert_good(&after, copies, &devices, &why);
        // What must leave a device: all above its ideal share, rounded in the mover's favour.
        let fair = ideal(groups.len(), copies, &devices);
        let least: f64 = before
            .iter()
            .map(|(device, n)| (f64::from(*n) - fair.get(device).copied().unwrap_or(0.0).ceil()).max(0.0))
            .sum();
        // Where a fault domain has a copy of most groups, the copies of others must make room for it: what the shares say
        // is then less than what has to move, and twice that is the most.
        let crowded = devices.iter().any(|c| {
            let domain = devices.iter().filter(|other| other.domain == c.domain).map(|other| fair[&other.device]);
            domain.sum::<f64>() > 0.5 * groups.len() as f64
        });
        let most = least * if crowded { 2.0 } else { 1.2 } + devices.len() as f64;
        assert!(moves.len() as f64 <= most, "{why}: {} moves, at least {least:.1}", moves.len());
    }
}

#[test]
fn copies_that_share_a_fault_set_made_later_are_parted() {
    let mut devices = equal_devices(6);
    let groups = place(PoolId(1), 64, 2, &devices).expect("enough devices");
    for candidate in &mut devices[..2] {
        candidate.domain = FaultDomain::Set(FaultSetId(1));
    }
    let moves = rebalance(&groups, 2, &devices).expect("five domains are enough");
    assert!(!moves.is_empty());
    assert_good(&moved(&groups, &moves), 2, &devices, "servers 1 and 2 share a rack");
}
