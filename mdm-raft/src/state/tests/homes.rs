//! New homes for lost copies: what a move may be, when the leader makes it, and random clusters that heal.

use std::collections::BTreeSet;

use pflex_proto::ids::{DeviceId, Incarnation, LogTime, PgId};
use rand::{RngExt as _, seq::IndexedRandom as _};

use super::{
    leader::{all_accepted, and_one, first_on, refused, results, step},
    rebuilds::{fill_all, filled},
    recovery::restored,
    world::{GIB, POOL, World, create_pool, create_sds, create_volume, lost, opened, register_sds, returned},
};
use crate::{
    command::{Body, ErrorCode, proto},
    liveness::homes::Homeless,
    placement::FaultDomain,
    state::{
        Outlook,
        limits::MAX_MOVES,
        model::{JobState, Pg, Setting},
    },
    testing::{Seeds, rng},
};

const DELAY_MS: u64 = 600_000;

pub(super) fn move_copies(moves: Vec<proto::CopyMove>) -> Body {
    Body::MoveCopies(proto::MoveCopies { pool_id: POOL.get(), kind: proto::MoveKind::Lost.into(), moves, left: 0 })
}

/// Says what a leader would at this moment of lost copies; how many moves were made.
fn lead(world: &mut World) -> usize {
    let plans = Homeless::all(&world.state, LogTime(world.now)).iter().filter_map(Homeless::command).collect();
    all_accepted(world, plans)
}

fn device(world: &World, n: u32) -> crate::state::model::Device {
    world.state.device(DeviceId(n)).expect("there is one").clone()
}

#[test]
fn a_lost_copy_moves_by_one_epoch_and_joins_where_it_came() {
    let mut world = and_one(3);
    world.ok(lost(3, 3));
    let before = first_on(&world, 3);
    let [result] = results(&mut world, move_copies(vec![step(&before, 3, 4)])).try_into().unwrap();
    assert!(result.accepted, "{}", result.why);
    let pg = world.state.pg(before.id).unwrap().clone();
    assert_eq!(pg.config.epoch, before.config.epoch.next());
    assert_eq!((&pg.config.in_sync, pg.config.primary), (&before.config.in_sync, before.config.primary));
    assert_eq!(pg.config.volatility, before.config.volatility, "who remembers still does (S14)");
    assert_eq!(world.state.joiners(&pg).map(|device| device.id).collect::<Vec<_>>(), [DeviceId(4)]);
    assert_eq!(result.current.unwrap().replica_device_ids, pg.replicas.iter().map(|d| d.get()).collect::<Vec<_>>());

    let event = world.state.event(world.state.revision()).unwrap();
    assert_eq!((event.kind.as_str(), event.object.as_str(), event.who.as_str()), ("pg.move", "pool p", "the leader"));
    assert!(
        event
            .what
            .starts_with("1 copy gets a new home: from device 3 of sds s3 to device 4 of sds s4; 1 placement group"),
        "{}",
        event.what
    );
    assert_eq!(world.state.open_rebuild(POOL).unwrap().state, JobState::Running);

    // The lost one is back, and has nothing to do with the group any more.
    world.ok(returned(3, 3, 1));
    assert!(!world.state.pg(pg.id).unwrap().replicas.contains(&DeviceId(3)));
    filled(&mut world, pg.id);
    assert!(world.state.pg(pg.id).unwrap().config.member(DeviceId(4)).is_some());
    fill_all(&mut world);
    assert_eq!(world.state.open_rebuild(POOL), None);
    assert!(world.reloaded() == world.state);
}

#[test]
fn moves_that_may_not_be_are_refused_by_themselves() {
    let mut world = and_one(3);
    world.ok(lost(3, 3));
    let pg = first_on(&world, 3);
    let other = pg.replicas.iter().find(|device| device.get() != 3).unwrap().get();
    let third = 3 - other;
    refused(
        &mut world,
        move_copies(vec![proto::CopyMove { expected_epoch: pg.config.epoch.get() - 1, ..step(&pg, 3, 4) }]),
        "the epoch is",
    );
    refused(&mut world, move_copies(vec![proto::CopyMove { index: 99, ..step(&pg, 3, 4) }]), "no such placement group");
    refused(&mut world, move_copies(vec![step(&pg, third, 4)]), "has no copy to give up");
    refused(&mut world, move_copies(vec![step(&pg, other, 4)]), "is in sync");
    refused(&mut world, move_copies(vec![step(&pg, 3, other)]), "fails together");
    refused(&mut world, move_copies(vec![step(&pg, 3, 3)]), "out of service");
    refused(&mut world, move_copies(vec![step(&pg, 3, 77)]), "there is no device 77");

    // A good one beside bad ones, and twice the same group.
    let moves = vec![step(&pg, 3, other), step(&pg, 3, 4), step(&pg, 3, third)];
    let accepted: Vec<bool> = results(&mut world, move_copies(moves)).iter().map(|result| result.accepted).collect();
    assert_eq!(accepted, [false, true, false]);

    let many = vec![step(&pg, 3, 4); MAX_MOVES + 1];
    assert_eq!(world.refused(move_copies(many)), ErrorCode::Limit);
    let nameless = proto::MoveCopies { pool_id: POOL.get(), kind: 0, moves: vec![], left: 0 };
    assert_eq!(world.refused(Body::MoveCopies(nameless.clone())), ErrorCode::Invalid);
    assert_eq!(world.refused(Body::MoveCopies(proto::MoveCopies { pool_id: 9, ..nameless })), ErrorCode::NotFound);

    // Back in service, which raised no epoch: the copy resyncs where it is.
    let pg = first_on(&world, 3);
    world.ok(returned(3, 3, 1));
    refused(&mut world, move_copies(vec![step(&pg, 3, 4)]), "is in service");

    // The only copy of a group is lost too: nobody could fill another, and the lost one is what has the writes.
    world.ok(lost(3, 3));
    world.ok(lost(1, 1));
    world.ok(lost(2, 2));
    let unserved = world.state.all_pgs().find(|pg| pg.config.primary.is_none()).unwrap().clone();
    let from = unserved.replicas[0].get();
    refused(&mut world, move_copies(vec![step(&unserved, from, 4)]), "nobody serves it");
}

#[test]
fn a_copy_never_goes_to_where_a_lost_copy_of_its_group_may_come_back() {
    let mut world = World::with_sds(0);
    world.ok(create_pool("q", 3, 8));
    for n in 1..=5_u8 {
        let fault_set = if n == 2 || n == 5 { "rack".to_owned() } else { String::new() };
        world.ok(Body::CreateSds(proto::CreateSds { name: format!("s{n}"), fault_set, ..Default::default() }));
        let Body::RegisterComponent(mut start) = register_sds(n, n, 1) else { unreachable!() };
        start.devices[0].pool = "q".into();
        world.ok(Body::RegisterComponent(start));
    }
    world.ok(Body::CreateVolume(proto::CreateVolume {
        name: "v".into(),
        pool: "q".into(),
        size_bytes: GIB,
        ..Default::default()
    }));
    let pg = world.state.all_pgs().find(|pg| [1, 2, 3].iter().all(|n| pg.replicas.contains(&DeviceId(*n))));
    let pg = pg.expect("copies spread").clone();
    world.ok(lost(2, 2));
    world.ok(lost(3, 3));
    let pg = world.state.pg(pg.id).unwrap().clone();
    let from = if pg.config.primary == Some(DeviceId(1)) { 3 } else { panic!("1 is the only one left") };
    let in_q = |moves| Body::MoveCopies(proto::MoveCopies { pool_id: 2, kind: 1, moves, left: 0 });
    let [result] = results(&mut world, in_q(vec![step(&pg, from, 5)])).try_into().unwrap();
    assert!(result.why.contains("fails together with device 2"), "{result:?}");
    let [result] = results(&mut world, in_q(vec![step(&pg, 2, 5)])).try_into().unwrap();
    assert!(result.accepted, "{result:?}");
}

#[test]
fn since_when_a_device_is_lost_is_kept_until_it_is_back() {
    let mut world = and_one(3);
    assert_eq!(device(&world, 3).lost_at, None);
    world.ok(lost(3, 3));
    let at = Some(LogTime(world.now));
    world.now += 5_000;
    world.ok(lost(3, 3));
    assert_eq!(device(&world, 3).lost_at, at, "said twice");
    assert!(world.reloaded() == world.state);
    world.ok(returned(3, 3, 1));
    assert_eq!(device(&world, 3).lost_at, None);

    // A start without the device takes it out of service; the next with it brings it back.
    let Body::RegisterComponent(mut bare) = register_sds(3, 30, 1) else { unreachable!() };
    bare.devices.clear();
    world.now += 1_000;
    world.ok(Body::RegisterComponent(bare.clone()));
    let at = Some(LogTime(world.now));
    world.now += 1_000;
    bare.process_id = vec![31; 16];
    world.ok(Body::RegisterComponent(bare));
    assert_eq!(device(&world, 3).lost_at, at, "still out");
    world.ok(register_sds(3, 32, 2));
    assert_eq!(device(&world, 3).lost_at, None);

    // A backup keeps it, and whoever was there then is missed since the restore.
    world.ok(lost(3, 32));
    let at = device(&world, 3).lost_at;
    world.now += 7_000;
    world.ok(create_volume("w", GIB));
    let restored = restored(&world.state.dump());
    assert_eq!(device(&restored, 3).lost_at, at);
    assert_eq!(device(&restored, 1).lost_at, Some(LogTime(world.now)));
    assert_eq!(Homeless::all(&restored.state, LogTime(u64::MAX)).len(), 0, "nothing moves during a recovery (S19)");
}

fn waits(world: &World) -> Vec<String> {
    world.state.rebuild_waits_for(POOL, LogTime(world.now))
}

#[test]
fn the_leader_waits_for_the_delay_and_says_so() {
    let mut world = and_one(3);
    world.ok(lost(3, 3));
    let groups = world.state.all_pgs().filter(|pg| pg.replicas.contains(&DeviceId(3))).count();
    assert_eq!(lead(&mut world), 0);
    world.now += 1_500;
    assert_eq!(waits(&world), ["s3 is DOWN; new homes once rebuild.delay_ms has passed (599 s left)"]);
    let why = format!("{:?}", world.state.why_at("pool p", LogTime(world.now)));
    assert!(why.contains("its rebuild 1 is waiting: s3 is DOWN; new homes once"), "{why}");
    let pg = first_on(&world, 3).id;
    let why = format!("{:?}", world.state.why_at(&format!("pg {pg}"), LogTime(world.now)));
    assert!(why.contains("(599 s left)"), "{why}");

    // Just short of it the device is back: plain resync.
    world.now += DELAY_MS - 1_501;
    assert_eq!(lead(&mut world), 0);
    world.ok(returned(3, 3, 1));
    world.now += DELAY_MS;
    assert_eq!(lead(&mut world), 0, "nothing is lost");
    fill_all(&mut world);

    // Lost again, it has the whole delay again.
    world.ok(lost(3, 3));
    world.now += DELAY_MS - 1;
    assert_eq!(lead(&mut world), 0);
    world.now += 1;
    assert_eq!(waits(&world), ["s3 is DOWN; new homes are being given"]);
    let why = format!("{:?}", world.state.why_at("device 3", LogTime(world.now)));
    assert!(why.contains(&format!("of {groups} copies on it: new homes are being given")), "{why}");
    assert_eq!(lead(&mut world), groups);
    assert_eq!((lead(&mut world), waits(&world)), (0, vec![]));
    assert_eq!(world.state.open_rebuild(POOL).unwrap().state, JobState::Running);
    assert!(world.state.all_pgs().any(|pg| pg.replicas.contains(&DeviceId(4))), "the new one takes its part");
    fill_all(&mut world);
    assert_eq!(world.state.open_rebuild(POOL), None);
    assert!(world.reloaded() == world.state);
}

#[test]
fn the_delay_is_a_setting_and_the_brake_holds_everything() {
    let mut world = and_one(3);
    let set = |value| {
        let entry = proto::Setting { key: Setting::RebuildDelay.key().into(), value, to_default: false };
        Body::ChangeSettings(proto::ChangeSettings { entries: vec![entry] })
    };
    world.ok(set(200));
    world.ok(lost(3, 3));
    world.now += 199;
    assert_eq!(lead(&mut world), 0);
    world.now += 1;
    world.ok(Body::HoldEvictions(proto::HoldEvictions { node_id: 1, why: "many are silent".into() }));
    assert_eq!(lead(&mut world), 0);
    assert!(waits(&world)[0].contains("over half of the servers fell silent"), "{:?}", waits(&world));
    world.now += 60_000;
    assert!(lead(&mut world) > 0);
}

#[test]
fn without_another_fault_domain_nothing_moves_and_the_rebuild_says_so() {
    let mut world = World::with_sds(2);
    world.ok(create_volume("v", GIB));
    world.ok(lost(2, 2));
    let words = "s2 is DOWN; no other fault domain has a device in service for 8 copies";
    assert_eq!(waits(&world), [words]);
    world.now += DELAY_MS;
    assert_eq!((lead(&mut world), waits(&world)), (0, vec![words.to_owned()]));
    let pg = first_on(&world, 2);
    let places = world.state.places_of(POOL, LogTime(world.now));
    assert_eq!(world.state.outlook(&pg, DeviceId(2), &places), Some(Outlook::NoDomain));

    // A server that is added later takes them.
    world.ok(create_sds("s3"));
    world.ok(register_sds(3, 3, 1));
    assert_eq!(lead(&mut world), 8);
    fill_all(&mut world);
    assert_eq!(world.state.open_rebuild(POOL), None);
}

/// A cluster of 3 to 64 servers of mixed sizes, some of them in racks, with a volume.
fn random_cluster(rng: &mut rand_chacha::ChaCha8Rng) -> (World, u8) {
    let count = rng.random_range(3..=64_u8);
    let racks = rng.random_bool(0.3) && count >= 12;
    let mut world = World::new();
    world.ok(Body::CreateDomain(proto::CreateDomain { name: "d".into(), if_not_exists: false }));
    for n in 1..=count {
        let fault_set = if racks { format!("rack{}", n % 6) } else { String::new() };
        world.ok(Body::CreateSds(proto::CreateSds { name: format!("s{n}"), fault_set, ..Default::default() }));
        let Body::RegisterComponent(mut start) = register_sds(n, n, 1) else { unreachable!() };
        start.devices =
            vec![proto::OpenedDevice { capacity_bytes: rng.random_range(1..=4) * 10 * GIB, ..opened(n, 1) }];
        world.ok(Body::RegisterComponent(start));
    }
    // After the servers: a pool is placed anew with each that comes before its first volume.
    world.ok(create_pool("p", rng.random_range(1..=3_u32).min(u32::from(count) - 1), 64));
    let all = world.state.all_devices().map(|device| device.id.get()).collect::<Vec<_>>();
    for device_id in all {
        world.say(Body::AssignDevice(proto::AssignDevice { device_id, pool: "p".into(), if_not_exists: true }));
    }
    world.ok(create_volume("v", GIB));
    let off = proto::Setting { key: "readmission.most_ms".into(), value: 0, to_default: false };
    world.ok(Body::ChangeSettings(proto::ChangeSettings { entries: vec![off] }));
    (world, count)
}

/// Groups with a lost copy that could have another home, or somebody to fill a copy.
fn unfinished(world: &World) -> Vec<PgId> {
    let free: BTreeSet<FaultDomain> = world.state.candidates(POOL).iter().map(|candidate| candidate.domain).collect();
    let domain = |device: &DeviceId| world.state.sds(device.get().into()).unwrap().fault_domain();
    let open = |pg: &&Pg| {
        let lost = pg.replicas.iter().filter(|device| pg.config.member(**device).is_none());
        let stuck = |from: &DeviceId| {
            let others: BTreeSet<FaultDomain> = pg.replicas.iter().filter(|d| *d != from).map(domain).collect();
            free.is_subset(&others)
        };
        pg.config.primary.is_some() && lost.into_iter().any(|from| !stuck(from))
    };
    world.state.all_pgs().filter(open).map(|pg| pg.id).collect()
}

#[test]
fn random_clusters_heal_by_themselves_and_only_what_is_lost_moves() {
    let mut moves = 0;
    for seed in Seeds::new(12) {
        let mut rng = rng(seed);
        let (mut world, count) = random_cluster(&mut rng);
        let mut lives = vec![1_u64; usize::from(count) + 1];
        for _ in 0..40 {
            world.now += rng.random_range(0..400_000_u64);
            let n = rng.random_range(1..=count);
            let alive = device(&world, n.into()).alive;
            let process = |life: u64| n.wrapping_add((life as u8).wrapping_sub(1).wrapping_mul(64));
            let life = &mut lives[usize::from(n)];
            match (alive, rng.random_range(0..3_u32)) {
                (true, 0..=1) => drop(world.say(lost(n, process(*life)))),
                (false, 0) => drop(world.say(returned(n, process(*life), *life))),
                (_, 2) => {
                    *life += 1;
                    world.ok(register_sds(n, process(*life), *life));
                }
                _ => {}
            }
            world.activate_all();
            let before: Vec<Pg> = world.state.all_pgs().cloned().collect();
            moves += lead(&mut world);
            for (before, now) in before.iter().zip(world.state.all_pgs()) {
                for gone in before.replicas.iter().filter(|device| !now.replicas.contains(device)) {
                    let lost_at = device(&world, gone.get()).lost_at.expect("only what is lost moves");
                    assert!(lost_at.get() + DELAY_MS <= world.now, "seed {seed}: {} moved from {gone} early", now.id);
                    assert!(before.config.member(*gone).is_none(), "seed {seed}: {} gave up an in-sync copy", now.id);
                }
            }
            if rng.random_bool(0.5) {
                fill_all(&mut world);
            }
        }
        // Left alone, it heals as far as it can; that takes a few looks and ends.
        world.now += DELAY_MS;
        let looks = (0..10).take_while(|_| {
            let moved = lead(&mut world);
            fill_all(&mut world);
            moved > 0
        });
        assert!(looks.count() < 10, "seed {seed}: it goes on and on");
        assert_eq!(unfinished(&world), [], "seed {seed}: not whole though it could be");
        assert!(world.reloaded() == world.state, "seed {seed}");

        // And wholly once everybody is back.
        for n in 1..=count {
            lives[usize::from(n)] += 1;
            let life = lives[usize::from(n)];
            world.ok(register_sds(n, n.wrapping_add((life as u8).wrapping_sub(1).wrapping_mul(64)), life));
        }
        fill_all(&mut world);
        assert_eq!(world.state.open_rebuild(POOL), None, "seed {seed}");
        assert!(device(&world, 1).incarnation > Incarnation(1));
    }
    assert!(moves > 0 || std::env::var("PFLEX_TEST_SEED").is_ok(), "nothing ever moved");
}

/// Moves as a planner with a bug would make them are refused, whatever the bug.
#[test]
fn plans_with_a_bug_are_found_out() {
    type Bug = fn(&World, &Pg, &mut proto::CopyMove);
    let bugs: [(Bug, &str); 3] = [
        // Into the fault domain of a copy that is left.
        (|_, pg, step| step.to_device_id = pg.config.in_sync[0].device.get(), "fails together"),
        // Of a copy that is in sync.
        (|_, pg, step| step.from_device_id = pg.config.in_sync[0].device.get(), "is in sync"),
        // From what it saw before the group changed.
        (|_, _, step| step.expected_epoch -= 1, "the epoch is"),
    ];
    let mut world = and_one(3);
    world.ok(lost(3, 3));
    world.now += DELAY_MS;
    for (bug, words) in bugs {
        let Some(Body::MoveCopies(plan)) = Homeless::all(&world.state, LogTime(world.now))[0].command() else {
            panic!("there is something to move")
        };
        let found = plan.moves.choose(&mut rng(1)).copied().map(|mut step| {
            let pg = world.state.all_pgs().find(|pg| pg.id.index.get() == step.index).unwrap().clone();
            bug(&world, &pg, &mut step);
            step
        });
        refused(&mut world, move_copies(vec![found.unwrap()]), words);
    }
}
