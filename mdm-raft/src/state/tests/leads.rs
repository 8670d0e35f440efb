//! Who leads: what a move of a lead may be, and that leads come back to whoever returned or is new, and then stay.

use pflex_proto::ids::{DeviceId, LogTime, Revision};

use super::{
    leader::{all_accepted, led_by, results},
    maintenance::{enter, exit},
    rebuilds::fill_all,
    world::{GIB, POOL, World, create_pool, create_sds, create_volume, lost, register_sds, returned},
};
use crate::{
    command::{Body, ErrorCode, proto},
    liveness::leads::Looks,
    state::{
        limits::MAX_MOVES,
        model::{Event, Pg},
    },
};

const SETTLED_MS: u64 = 5_000;

pub(super) fn move_leads(moves: Vec<proto::LeadMove>) -> Body {
    Body::MoveLeads(proto::MoveLeads { pool_id: POOL.get(), moves })
}

fn step(pg: &Pg, to: u32) -> proto::LeadMove {
    proto::LeadMove { index: pg.id.index.get(), expected_epoch: pg.config.epoch.get(), to_device_id: to }
}

/// Says what a leader would now of leads; how many moved.
fn lead(world: &mut World, looks: &mut Looks) -> usize {
    let plans = looks.commands(&world.state, LogTime(world.now));
    all_accepted(world, plans)
}

/// Looks once a second, `seconds` long.
fn watch(world: &mut World, looks: &mut Looks, seconds: u64) -> usize {
    (0..seconds)
        .map(|_| {
            world.now += 1_000;
            lead(world, looks)
        })
        .sum()
}

/// `n` SDSs with 64 groups between them, and a volume.
fn cluster(n: u8) -> World {
    let mut world = World::new();
    world.ok(Body::CreateDomain(proto::CreateDomain { name: "d".into(), if_not_exists: false }));
    world.ok(create_pool("q", 2, 64));
    for i in 1..=n {
        world.ok(create_sds(&format!("s{i}")));
        let Body::RegisterComponent(mut start) = register_sds(i, i, 1) else { unreachable!() };
        start.devices[0].pool = "q".into();
        world.ok(Body::RegisterComponent(start));
    }
    world.ok(Body::CreateVolume(proto::CreateVolume {
        name: "v".into(),
        pool: "q".into(),
        size_bytes: GIB,
        ..Default::default()
    }));
    world
}

#[test]
fn leads_come_back_after_a_maintenance_and_a_restart_and_then_stay() {
    let mut world = cluster(3);
    let mut looks = Looks::default();
    assert_eq!(watch(&mut world, &mut looks, 20), 0, "they are even from the beginning");
    world.ok(enter("s1"));
    watch(&mut world, &mut looks, 20);
    assert_eq!(led_by(&world, 1), 0, "not while it may be stopped");
    world.ok(exit("s1"));
    assert_eq!(watch(&mut world, &mut looks, 4), 0, "it has to stay first");
    let moved = watch(&mut world, &mut looks, 10);
    assert!((20..=23).contains(&moved) && (20..=23).contains(&led_by(&world, 1)), "{moved}");
    assert!((2..=3).all(|n| (20..=23).contains(&led_by(&world, n))));
    assert_eq!(watch(&mut world, &mut looks, 60), 0);
    let told =
        |event: &Event| event.kind == "pg.lead" && event.what.starts_with("leads even out, to device 1 of sds s1");
    assert!(world.state.events_after(Revision(0)).any(told), "no event says it");

    // A restart: it leads again once its copies are in sync, at most so many at a time.
    world.ok(lost(1, 1));
    world.ok(register_sds(1, 11, 2));
    assert_eq!(watch(&mut world, &mut looks, 20), 0, "what is being filled is left alone");
    fill_all(&mut world);
    world.now += 1_000;
    assert_eq!(lead(&mut world, &mut looks), 16, "some at a time");
    assert_eq!(watch(&mut world, &mut looks, 1), led_by(&world, 1) - 16);
    assert_eq!(watch(&mut world, &mut looks, 60), 0);
    assert!(world.reloaded() == world.state);
}

#[test]
fn who_comes_and_goes_gets_none_and_nothing_moves_in_doubt() {
    let mut world = cluster(3);
    let mut looks = Looks::default();
    watch(&mut world, &mut looks, 6);
    for _ in 0..3 {
        world.ok(lost(1, 1));
        watch(&mut world, &mut looks, 3);
        world.ok(returned(1, 1, 1));
        fill_all(&mut world);
        assert_eq!(watch(&mut world, &mut looks, 4), 0);
    }
    // Lost three times within the hour, it has to stay four times as long.
    assert_eq!(watch(&mut world, &mut looks, 15), 0);
    world.ok(Body::HoldEvictions(proto::HoldEvictions { node_id: 1, why: "many are silent".into() }));
    assert_eq!(watch(&mut world, &mut looks, 30), 0, "the brake holds everything (S23)");
    assert!(watch(&mut world, &mut looks, 60) > 0);
    // Another leader knows nothing of how long it has stayed.
    world.ok(enter("s1"));
    world.ok(exit("s1"));
    let mut other = Looks::default();
    assert_eq!(watch(&mut world, &mut other, SETTLED_MS / 1_000), 0);
}

#[test]
fn leads_that_may_not_move_are_refused_by_themselves() {
    let mut world = World::with_sds(3);
    world.ok(create_volume("v", GIB));
    let pg = world.pg(0).clone();
    let (primary, backup) = (pg.replicas[0].get(), pg.replicas[1].get());
    let third = 6 - primary - backup;
    let refused = |world: &mut World, step, words: &str| {
        let before = world.state.clone();
        let [result] = results(world, move_leads(vec![step])).try_into().unwrap();
        assert!(!result.accepted && result.why.contains(words), "{words:?}: {result:?}");
        assert!(before.all_pgs().eq(world.state.all_pgs()), "it changed something");
    };
    refused(&mut world, step(&pg, primary), "leads it already");
    refused(&mut world, step(&pg, third), "is not in sync");
    refused(&mut world, proto::LeadMove { expected_epoch: 77, ..step(&pg, backup) }, "the epoch is");
    refused(&mut world, proto::LeadMove { index: 99, ..step(&pg, backup) }, "no such placement group");
    world.ok(enter(&format!("s{backup}")));
    let now = world.pg(0).clone();
    refused(&mut world, step(&now, backup), "is in maintenance");
    world.ok(exit(&format!("s{backup}")));

    let [result] = results(&mut world, move_leads(vec![step(&now, backup)])).try_into().unwrap();
    assert!(result.accepted, "{}", result.why);
    let after = world.pg(0).clone();
    assert_eq!((after.config.epoch, after.config.primary), (now.config.epoch.next(), Some(DeviceId(backup))));
    assert_eq!((&after.config.in_sync, &after.replicas), (&now.config.in_sync, &now.replicas));

    world.ok(lost(primary as u8, primary as u8));
    world.ok(lost(backup as u8, backup as u8));
    let now = world.pg(0).clone();
    refused(&mut world, step(&now, backup), "nobody serves it");
    assert_eq!(world.refused(move_leads(vec![step(&now, backup); MAX_MOVES + 1])), ErrorCode::Limit);
    let nowhere = Body::MoveLeads(proto::MoveLeads { pool_id: 9, moves: vec![] });
    assert_eq!(world.refused(nowhere), ErrorCode::NotFound);
}
