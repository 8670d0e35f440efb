//! Every state explains itself, with the command that made it so.

use super::world::{GIB, World, create_sdc, create_sds, create_volume, lost, map, register_sdc, returned};
use crate::state::Explanation;

fn one(world: &World, words: &str) -> Explanation {
    let mut found = world.state.why(words);
    assert_eq!(found.len(), 1, "{words}: {found:?}");
    found.remove(0)
}

#[track_caller]
fn says(explanation: &Explanation, words: &str) -> u64 {
    let cause = explanation.causes.iter().find(|cause| cause.what.contains(words));
    let cause = cause.unwrap_or_else(|| panic!("nothing says {words:?}: {explanation:#?}"));
    cause.revision.map_or(0, |revision| revision.get())
}

#[test]
fn a_lost_server_is_behind_its_devices_groups_pools_volumes_and_the_cluster() {
    let mut world = World::with_sds(3);
    world.ok(create_volume("v", GIB));
    assert_eq!(one(&world, "cluster").state, "ok");
    assert_eq!(one(&world, "pool p").state, "ok");

    world.ok(lost(1, 1));
    let verdict = world.said.get();
    let sds = one(&world, "sds s1");
    assert_eq!((sds.state.as_str(), says(&sds, "sds s1 is lost")), ("lost", verdict));
    assert_eq!(says(&one(&world, "device 1"), "out of service"), verdict);
    let degraded = world.state.all_pgs().find(|pg| pg.config.in_sync.len() == 1).expect("some lost a copy").id;
    let pg = one(&world, &format!("pg {degraded}"));
    assert_eq!((pg.state.as_str(), says(&pg, "sds s1")), ("degraded", verdict));
    says(&pg, "not in sync: it misses writes");
    for words in ["pool p", "volume v", "cluster"] {
        assert_eq!(one(&world, words).state, "degraded", "{words}");
    }
    assert_eq!(says(&one(&world, "volume v"), "changed last at revision"), verdict);

    world.ok(lost(2, 2));
    assert_eq!(one(&world, "v").state, "unavailable", "a bare name is enough");
    says(&one(&world, "cluster"), "never promoted (I3)");
    world.ok(returned(2, 2, 1));
    assert_eq!(one(&world, "v").state, "degraded");
}

#[test]
fn what_was_never_seen_or_has_no_place_or_no_user_is_told_what_is_missing() {
    let mut world = World::with_sds(1);
    says(&one(&world, "pool p"), "(I5)");
    world.ok(create_sds("s9"));
    assert_eq!(one(&world, "s9").state, "never seen");
    world.ok(create_sdc("c"));
    assert_eq!(one(&world, "sdc c").state, "never seen");
    assert!(world.state.why("volume nothing").is_empty() && world.state.why("").is_empty());
    assert!(world.state.why("pg 1").is_empty() && world.state.why("pg 9999999999.1").is_empty());

    let mut world = World::with_sds(2);
    world.ok(create_volume("v", GIB));
    says(&one(&world, "volume v"), "mapped to no SDC");
    world.ok(create_sdc("v"));
    world.ok(register_sdc("v", 1));
    world.ok(map("v", "v"));
    says(&one(&world, "volume v"), "mapped to v");
    assert_eq!(world.state.why("v").len(), 2, "a volume and an SDC may share a name");
}

#[test]
fn losses_are_counted_over_a_minute_an_hour_and_a_day() {
    let mut world = World::with_sds(2);
    for _ in 0..3 {
        world.ok(lost(1, 1));
        world.ok(returned(1, 1, 1));
        world.now += 50_000;
    }
    assert_eq!(world.state.losses_of(1.into()), [2, 3, 3]);
    assert_eq!(world.state.losses_of(2.into()), [0; 3]);
}
