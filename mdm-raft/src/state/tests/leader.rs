//! What a leader does about copies and leads, for conversations about them: it looks, says what follows, and what joins is
//! filled.

use pflex_proto::ids::{DeviceId, LogTime};

use super::{
    rebuilds::{fill_all, fillable},
    world::{GIB, World, create_sds, create_volume, register_sds},
};
use crate::{
    command::{Answer, Body, proto},
    liveness::{homes::Homeless, leads::Looks, maintenance, moves::Moving},
    state::model::{Pg, Setting},
};

pub(super) fn set(setting: Setting, value: u64) -> Body {
    let entry = proto::Setting { key: setting.key().into(), value, to_default: false };
    Body::ChangeSettings(proto::ChangeSettings { entries: vec![entry] })
}

pub(super) fn step(pg: &Pg, from: u32, to: u32) -> proto::CopyMove {
    proto::CopyMove {
        index: pg.id.index.get(),
        expected_epoch: pg.config.epoch.get(),
        from_device_id: from,
        to_device_id: to,
    }
}

/// What became of each move.
pub(super) fn results(world: &mut World, body: Body) -> Vec<proto::ProposalResult> {
    let Answer::Reconfigured(answer) = world.ok(body) else { panic!("another answer") };
    answer.results
}

/// A move that is refused, by itself and with these words.
#[track_caller]
pub(super) fn refused(world: &mut World, body: Body, words: &str) {
    let before = world.state.clone();
    let [result] = results(world, body).try_into().unwrap();
    assert!(!result.accepted && result.why.contains(words), "{words:?}: {result:?}");
    assert!(before.all_pgs().eq(world.state.all_pgs()), "it changed something");
}

#[track_caller]
pub(super) fn words(world: &mut World, body: Body) -> String {
    let outcome = world.say(body);
    outcome.error().expect("it is refused").what.clone()
}

/// These commands, of which each move must be accepted: they were planned for this very state. How many there were.
#[track_caller]
pub(super) fn all_accepted(world: &mut World, bodies: Vec<Body>) -> usize {
    let results: Vec<_> = bodies.into_iter().flat_map(|body| results(world, body)).collect();
    let refused: Vec<_> = results.iter().filter(|result| !result.accepted).collect();
    assert!(refused.is_empty(), "a plan for this very state is refused: {refused:?}");
    results.len()
}

/// Everything that a leader would say now; how many copies began to move.
pub(super) fn lead(world: &mut World, looks: &mut Looks) -> usize {
    let now = LogTime(world.now);
    let mut leads: Vec<Body> = looks.commands(&world.state, now);
    leads.truncate(1);
    if all_accepted(world, leads) > 0 {
        return 0;
    }
    let mut copies: Vec<Body> = Homeless::all(&world.state, now).iter().filter_map(Homeless::command).collect();
    if copies.is_empty() {
        copies = Moving::all(&world.state, looks, now).iter().filter_map(|pool| pool.command().0).collect();
    }
    let moves = all_accepted(world, copies);
    for body in maintenance::commands(&world.state) {
        world.ok(body);
    }
    moves
}

/// Looks once a second, and fills what joins, until nothing moves any more; how many copies moved.
pub(super) fn settle(world: &mut World, looks: &mut Looks) -> usize {
    let (mut moves, mut quiet) = (0, 0);
    for _ in 0..3_000 {
        world.now += 1_000;
        let began = lead(world, looks);
        moves += began;
        quiet = if began == 0 && fillable(world).is_empty() { quiet + 1 } else { 0 };
        fill_all(world);
        if quiet > 30 {
            return moves;
        }
    }
    panic!("it goes on and on: {:?}", world.state.why("pool p"));
}

pub(super) fn on(world: &World, device: u32) -> usize {
    world.state.copies_on(DeviceId(device))
}

pub(super) fn led_by(world: &World, n: u32) -> usize {
    world.state.all_pgs().filter(|pg| pg.config.primary == Some(DeviceId(n))).count()
}

/// `n` SDSs with a volume on them, and one more that came after it.
pub(super) fn and_one(n: u8) -> World {
    let mut world = World::with_sds(n);
    world.ok(create_volume("v", GIB));
    world.ok(create_sds(&format!("s{}", n + 1)));
    world.ok(register_sds(n + 1, n + 1, 1));
    world
}

pub(super) fn first_on(world: &World, device: u32) -> Pg {
    world.state.all_pgs().find(|pg| pg.replicas.contains(&DeviceId(device))).expect("it has copies").clone()
}
