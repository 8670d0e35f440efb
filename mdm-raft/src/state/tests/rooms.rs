//! Devices without room for the copies that are to be filled there: moves are called off, missing copies get another home
//! or say why not, and nothing goes there and back for ever.

use std::collections::BTreeSet;

use pflex_proto::ids::{DeviceId, LogTime, PgId};
use rand::{RngExt as _, seq::IndexedRandom as _};

use super::{
    homes::move_copies,
    leader::{all_accepted, and_one, first_on, lead, on, refused, results, set, step},
    moves::{drain, move_live},
    rebuilds::{fillable, filled},
    world::{World, create_volume, lost, register_sds},
};
use crate::{
    command::{Body, proto},
    liveness::{
        homes::{Homeless, Refused},
        leads::Looks,
    },
    state::model::{NoRoom, Pg, Setting},
    testing::{Seeds, rng},
};

const PAUSE_MS: u64 = 600_000;

fn no_room(pg: &Pg, from: u32, to: u32) -> Body {
    move_live(proto::MoveKind::NoRoom, vec![step(pg, from, to)])
}

/// What a leader says that hears of these; how many copies that was.
fn report(world: &mut World, refused: &[(PgId, u32)]) -> usize {
    let refused: Refused = refused.iter().map(|(pg, device)| (*pg, DeviceId(*device))).collect();
    let plans = Homeless::without_room(&world.state, &refused, LogTime(world.now));
    let bodies = plans.iter().filter_map(Homeless::command).collect();
    all_accepted(world, bodies)
}

fn now(world: &World, id: PgId) -> Pg {
    world.state.pg(id).unwrap().clone()
}

fn told(world: &World) -> String {
    world.state.event(world.said).map(|event| event.what.clone()).unwrap_or_default()
}

fn kept_empty_for(world: &World, device: u32) -> Option<u64> {
    let until = world.state.device(DeviceId(device)).unwrap().without_room(LogTime(world.now));
    until.map(|until| until.get() - world.now)
}

#[test]
fn a_move_to_a_device_without_room_is_called_off_and_nothing_more_begins_there_for_a_while() {
    let mut world = and_one(3);
    let before = first_on(&world, 1);
    let [began] =
        results(&mut world, move_live(proto::MoveKind::Balance, vec![step(&before, 1, 4)])).try_into().unwrap();
    assert!(began.accepted, "{}", began.why);
    assert_eq!(report(&mut world, &[(before.id, 4)]), 1);
    let words = "no room on device 4 of sds s4 for copies that were to be filled there: 1 move is called off";
    assert!(told(&world).starts_with(words), "{}", told(&world));
    let after = now(&world, before.id);
    assert_eq!((&after.replicas, after.leaving), (&before.replicas, None));
    assert_eq!((&after.config.in_sync, after.config.primary), (&before.config.in_sync, before.config.primary));
    assert_eq!(kept_empty_for(&world, 4), Some(PAUSE_MS));
    let why = format!("{:?}", world.state.why("device 4"));
    assert!(why.contains("it had no room for a copy, and is given none until log time"), "{why}");
    assert!(world.reloaded() == world.state);
    assert_eq!(report(&mut world, &[(before.id, 4)]), 0, "old news");

    let mut looks = Looks::default();
    let mut began = |world: &mut World, seconds: u64| {
        let begun = (0..seconds).map(|_| {
            world.now += 1_000;
            lead(world, &mut looks)
        });
        begun.sum::<usize>()
    };
    assert_eq!((began(&mut world, 595), on(&world, 4)), (0, 0), "rebalance.auto would have filled it");
    assert!(began(&mut world, 60) > 0 && on(&world, 4) > 0, "there may be room by now");

    // Still none: longer this time. Another capacity makes another device of it.
    let moving: Vec<(PgId, u32)> = fillable(&world).into_iter().map(|id| (id, 4)).collect();
    assert_eq!(report(&mut world, &moving), moving.len());
    assert_eq!((kept_empty_for(&world, 4), on(&world, 4)), (Some(2 * PAUSE_MS), 0));
    let Body::RegisterComponent(mut again) = register_sds(4, 4, 1) else { unreachable!() };
    again.devices[0].capacity_bytes *= 2;
    world.ok(Body::RegisterComponent(again));
    assert_eq!(kept_empty_for(&world, 4), None);
}

#[test]
fn a_missing_copy_without_room_gets_another_home_or_it_is_said_once_that_there_is_none() {
    let mut world = and_one(4);
    world.ok(lost(3, 3));
    let pg = first_on(&world, 3);
    let mut others = [1, 2, 4].into_iter().filter(|n| !pg.replicas.contains(&DeviceId(*n)));
    let (third, fourth) = (others.next().unwrap(), others.next().unwrap());
    let [began] = results(&mut world, move_copies(vec![step(&pg, 3, 5)])).try_into().unwrap();
    assert!(began.accepted, "{}", began.why);
    assert_eq!(report(&mut world, &[(pg.id, 5)]), 1);
    let elsewhere = now(&world, pg.id);
    let home = *elsewhere.replicas.iter().find(|device| !pg.replicas.contains(device)).unwrap();
    assert!([third, fourth].contains(&home.get()), "{elsewhere:?}");
    assert!(told(&world).contains("no room on device 5 of sds s5"), "{}", told(&world));
    assert!(told(&world).contains(&format!("new homes on device {home}")), "{}", told(&world));

    let last = third + fourth - home.get();
    assert_eq!(report(&mut world, &[(pg.id, home.get())]), 1);
    assert!(now(&world, pg.id).replicas.contains(&DeviceId(last)));
    let (epoch, at) = (now(&world, pg.id).config.epoch, world.said);
    assert_eq!(report(&mut world, &[(pg.id, last)]), 1);
    assert_eq!(now(&world, pg.id).config.epoch, epoch, "its IO is not disturbed for nothing");
    assert!(told(&world).contains("nobody else may have them"), "{}", told(&world));
    assert!(world.said > at);
    assert_eq!(report(&mut world, &[(pg.id, last)]), 0, "said once");
    let why = format!("{:?}", world.state.why(&format!("pg {}", pg.id)));
    assert!(why.contains("has had no room for copies lately, and no other that may have it has"), "{why}");
    let waits = world.state.rebuild_waits_for(pg.id.pool, LogTime(world.now));
    assert!(waits.iter().any(|wait| wait.contains("has had no room lately")), "{waits:?}");
    filled(&mut world, pg.id);
    assert!(now(&world, pg.id).is_whole(), "it is tried on, and there was room after all");
    assert_eq!(report(&mut world, &[(pg.id, last)]), 0, "late news");
}

#[test]
fn what_is_no_want_of_room_is_refused() {
    let mut world = and_one(3);
    let pg = first_on(&world, 1);
    refused(&mut world, no_room(&pg, 1, 0), "has everything");
    refused(&mut world, no_room(&pg, 4, 0), "has no copy to give up");
    let [began] = results(&mut world, move_live(proto::MoveKind::Balance, vec![step(&pg, 1, 4)])).try_into().unwrap();
    assert!(began.accepted, "{}", began.why);
    let pg = now(&world, pg.id);
    let other = (1..=3).find(|n| !pg.replicas.contains(&DeviceId(*n))).unwrap();
    refused(&mut world, no_room(&pg, 4, other), "is part of a move already");
    world.ok(lost(4, 4));
    let mut world = and_one(3);
    world.ok(lost(3, 3));
    let pg = first_on(&world, 3);
    refused(&mut world, no_room(&pg, 3, 4), "is out of service");
    let mut before = NoRoom::again(None, LogTime(0));
    for minutes in [10, 20, 40, 80, 160, 320, 640, 1_280, 1_440, 1_440] {
        assert_eq!(before.pause_ms, minutes * 60_000);
        before = NoRoom::again(Some(before), before.until);
    }
    assert_eq!(NoRoom::again(Some(before), LogTime(before.until.get() + 86_400_000)).pause_ms, PAUSE_MS, "forgotten");
}

/// Random servers are full, lost and drained; what can be filled is, and the others report.
#[test]
fn random_clusters_with_full_devices_come_to_rest() {
    for seed in Seeds::new(8) {
        let mut rng = rng(seed);
        let n = rng.random_range(3..=6_u8);
        let mut world = and_one(n);
        world.ok(create_volume("w", 1 << 30));
        world.ok(set(Setting::RebuildDelay, 1_000));
        let full: BTreeSet<DeviceId> = (1..=u32::from(n) + 1).filter(|_| rng.random_bool(0.4)).map(DeviceId).collect();
        let all: Vec<u8> = (1..=n).collect();
        let gone = *all.choose(&mut rng).unwrap();
        match rng.random_range(0..3) {
            0 => _ = world.ok(lost(gone, gone)),
            1 => _ = world.say(drain(&format!("s{gone}"))),
            _ => {}
        }
        let mut looks = Looks::default();
        let mut said = Vec::new();
        for _ in 0..1_000 {
            world.now += 1_000;
            let mut told = lead(&mut world, &mut looks);
            let mut refused = Vec::new();
            for id in fillable(&world) {
                let pg = now(&world, id);
                let joiners: Vec<u32> = world.state.joiners(&pg).map(|device| device.id.get()).collect();
                match joiners.iter().all(|device| !full.contains(&DeviceId(*device))) {
                    true => filled(&mut world, id),
                    false => refused.extend(joiners.into_iter().map(|device| (id, device))),
                }
            }
            refused.retain(|(_, device)| full.contains(&DeviceId(*device)));
            told += report(&mut world, &refused);
            said.push(told);
        }
        // Each device is tried again after ten minutes, once.
        let quiet = said.iter().rev().take(300).filter(|told| **told > 0).count();
        assert!(quiet < 60, "seed {seed}: it goes on and on: {said:?}");
        assert!(world.reloaded() == world.state);
        let stuck: Vec<PgId> = fillable(&world);
        let homes: BTreeSet<DeviceId> = stuck
            .iter()
            .flat_map(|id| {
                let pg = now(&world, *id);
                world.state.joiners(&pg).map(|device| device.id).collect::<Vec<_>>()
            })
            .collect();
        assert!(homes.is_subset(&full), "seed {seed}: {homes:?} could be filled, and only {full:?} are full");
    }
}
