//! How fast copies are filled: what an operator sets is kept, told, and shown; a bad value changes nothing.

use pflex_proto::{
    ids::{LogTime, Revision},
    rebuild::{RebuildMode, RebuildPolicy},
};

use super::world::{GIB, POOL, World, create_pool, create_volume, lost};
use crate::command::{Body, ErrorCode, proto};

fn set(change: impl FnOnce(&mut proto::SetRebuildPolicy)) -> Body {
    let mut set = proto::SetRebuildPolicy::default();
    change(&mut set);
    Body::SetRebuildPolicy(set)
}

fn policy(world: &World, pool: &str) -> RebuildPolicy {
    world.state.pool_by_name(pool).expect("made").rebuild
}

#[test]
fn what_is_given_changes_and_the_rest_stays_for_one_pool_or_all() {
    let mut world = World::with_sds(3);
    world.ok(create_pool("q", 2, 8));
    world.ok(set(|set| (set.pool, set.mode, set.concurrency) = ("q".into(), Some(2), Some(4))));
    let limited = RebuildPolicy { mode: RebuildMode::Limit, concurrency: 4, ..RebuildPolicy::default() };
    assert_eq!((policy(&world, "q"), policy(&world, "p")), (limited, RebuildPolicy::default()));
    world.ok(set(|set| set.bytes_per_second = Some(0)));
    let event = world.state.events_after(Revision(0)).next_back().expect("it is audited");
    assert_eq!((event.object.as_str(), event.what.as_str()), ("all pools", "filling copies: no limit of bytes"));
    assert_eq!(policy(&world, "q"), RebuildPolicy { bytes_per_second: 0, ..limited });
    assert_eq!(policy(&world, "p"), RebuildPolicy { bytes_per_second: 0, ..RebuildPolicy::default() });
    world.state = world.reloaded();
    assert_eq!(policy(&world, "q"), RebuildPolicy { bytes_per_second: 0, ..limited });
}

#[test]
fn bad_values_change_nothing() {
    let mut world = World::with_sds(2);
    let bad: [Body; 6] = [
        set(|set| set.mode = Some(9)),
        set(|set| (set.mode, set.bytes_per_second) = (Some(1), Some(1000))),
        set(|set| (set.mode, set.concurrency) = (Some(1), Some(0))),
        set(|set| (set.mode, set.concurrency) = (Some(1), Some(65))),
        set(|set| (set.mode, set.spare_percent) = (Some(1), Some(51))),
        set(|set| set.pool = "x".into()),
    ];
    for (body, code) in bad.into_iter().zip([ErrorCode::Invalid; 5].into_iter().chain([ErrorCode::NotFound])) {
        assert_eq!(world.refused(body), code);
    }
    assert_eq!(policy(&world, "p"), RebuildPolicy::default());
}

#[test]
fn a_paused_rebuild_says_so() {
    let mut world = World::with_sds(3);
    world.ok(create_volume("v", GIB));
    world.ok(lost(3, 3));
    let waits = |world: &World| world.state.rebuild_waits_for(POOL, LogTime(world.now)).join("; ");
    assert!(!waits(&world).contains("paused"));
    world.ok(set(|set| set.paused = Some(true)));
    assert!(waits(&world).contains("it is paused"), "{}", waits(&world));
    world.ok(set(|set| set.paused = Some(false)));
    assert!(!waits(&world).contains("paused"));
}
