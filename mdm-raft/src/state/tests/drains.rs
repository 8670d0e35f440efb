//! What may be emptied, or leave its pool, while other devices are being emptied: a drain that was begun keeps its places,
//! whether or not its copies are there yet.

use pflex_proto::ids::DeviceId;

use super::{
    leader::{and_one, on, set, settle, words},
    maintenance::exit,
    moves::{cancel, drain, drain_device},
    protected::protect,
    topology::{assign, remove},
    world::{World, create_pool, create_sds, register_sds},
};
use crate::{command::Body, liveness::leads::Looks, state::model::Setting};

/// Two copies on s1 and s2, and s3 without any: the only place for what s1 or s2 is to give up.
fn one_place_left() -> World {
    let mut world = and_one(2);
    world.ok(set(Setting::RebalanceAuto, 0));
    world.ok(create_pool("q", 2, 8));
    assert!(on(&world, 3) == 0 && on(&world, 2) > 0);
    world
}

/// All ways to take the device of s3 away.
fn takes_s3() -> [Body; 5] {
    [drain("s3"), drain_device(3), protect("s3"), assign(3, "q"), remove(3)]
}

#[test]
fn an_empty_server_that_another_drain_needs_stays_whatever_had_moved_until_then() {
    for first in [drain("s2"), protect("s2")] {
        let mut world = one_place_left();
        world.ok(first);
        for body in takes_s3() {
            let why = words(&mut world, body);
            assert!(
                why.contains("or on devices that are being emptied already") && why.contains("1 would be left"),
                "{why}"
            );
        }
        assert!(!world.state.is_draining(DeviceId(3)) && world.reloaded() == world.state);
        settle(&mut world, &mut Looks::default());
        assert_eq!(on(&world, 2), 0, "so it ends");
    }
}

#[test]
fn it_may_go_when_nobody_needs_it_any_more() {
    for body in takes_s3() {
        let mut world = one_place_left();
        world.ok(drain("s2"));
        world.ok(cancel("s2"));
        world.ok(body.clone());

        let mut world = one_place_left();
        world.ok(protect("s2"));
        world.ok(exit("s2"));
        world.ok(body.clone());

        let mut world = one_place_left();
        world.ok(drain("s2"));
        world.ok(create_sds("s4"));
        world.ok(register_sds(4, 4, 1));
        world.ok(body);
        settle(&mut world, &mut Looks::default());
        assert_eq!((on(&world, 2), on(&world, 3)), (0, 0));
    }
}
