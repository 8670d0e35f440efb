//! Scrubs of pools and faults of disks: what commands leave, and when the leader gives which.

use std::collections::BTreeMap;

use pflex_proto::ids::{DeviceId, Incarnation, LogTime, Revision};

use super::world::{GIB, World, create_volume, lost};
use crate::{
    command::{Body, ErrorCode, proto},
    liveness::{HeardScrub, scrubs},
    state::model::{DeviceFaults, ScrubFound, Severity},
};

/// Of the pool that every world has.
const NAME: &str = "p";
const WEEK_MS: u64 = 604_800_000;

type Disks = BTreeMap<DeviceId, (DeviceFaults, HeardScrub)>;

fn start() -> Body {
    Body::StartScrub(proto::StartScrub { pool: NAME.into() })
}

fn note(unreadable_blocks: u64, repaired_blocks: u64) -> Body {
    Body::NoteDevice(proto::NoteDevice {
        device_id: 1,
        incarnation: 1,
        repaired_blocks,
        unreadable_blocks,
        ..Default::default()
    })
}

fn with_two() -> World {
    let mut world = World::with_sds(2);
    world.ok(create_volume("v", GIB));
    world
}

/// Both devices at this pass, with these counts of theirs.
fn heard(pass: u64, done: [bool; 2], repaired_blocks: u64) -> Disks {
    let disk = |n: u32| {
        let faults = DeviceFaults { incarnation: Incarnation(1), repaired_blocks, ..DeviceFaults::default() };
        let found = ScrubFound { chunks: 10, bad_blocks: 1, ..ScrubFound::default() };
        (DeviceId(n), (faults, HeardScrub { pass, done: done[n as usize - 1], as_of: Revision(u64::MAX), found }))
    };
    [1, 2].map(disk).into()
}

fn last(world: &World) -> (Severity, String) {
    let event = world.state.events_after(Revision(0)).last().expect("there is one");
    (event.severity, event.what.clone())
}

#[test]
fn a_pool_is_scrubbed_when_it_is_due_and_once_at_a_time() {
    let mut world = with_two();
    let idle = heard(0, [false; 2], 0);
    let asks = |world: &World, after: u64, disks: &Disks| scrubs::commands(&world.state, LogTime(after), disks);
    assert!(asks(&world, WEEK_MS - 1, &idle).is_empty());
    assert!(matches!(&asks(&world, WEEK_MS, &idle)[..], [Body::StartScrub(start)] if start.pool == NAME));
    world.ok(start());
    assert_eq!(world.refused(start()), ErrorCode::Precondition);
    let pool = world.state.pool_by_name(NAME).unwrap();
    assert_eq!(pool.scrub.map(|scrub| (scrub.pass, scrub.runs())), Some((1, true)));
    // Over when all have done their parts of this very pass.
    let now = world.now + 10 * WEEK_MS;
    for (pass, done) in [(0, [true; 2]), (1, [true, false]), (2, [true; 2])] {
        assert!(asks(&world, now, &heard(pass, done, 0)).is_empty(), "{pass} {done:?}");
    }
    assert!(asks(&world, now, &Disks::new()).is_empty(), "nobody was heard");
    let mut gone = with_two();
    gone.ok(start());
    gone.ok(lost(1, 1));
    gone.ok(lost(2, 2));
    assert!(asks(&gone, now, &heard(1, [true; 2], 0)).is_empty(), "no device in service: nothing was looked at");
    // One has not heard yet of a group that it leads since: nobody may have come to it.
    let newest = world.state.all_pgs().map(|pg| pg.since).max().unwrap();
    for (as_of, is_over) in [(Revision(newest.get() - 1), false), (newest, true)] {
        let mut disks = heard(1, [true; 2], 0);
        disks.get_mut(&DeviceId(2)).unwrap().1.as_of = as_of;
        assert_eq!(!asks(&world, now, &disks).is_empty(), is_over, "as of {as_of}");
    }
    let end = asks(&world, now, &heard(1, [true; 2], 0)).remove(0);
    world.ok(end.clone());
    assert_eq!(last(&world).0, Severity::Warning, "{}", last(&world).1);
    let scrub = world.state.pool_by_name(NAME).unwrap().scrub.unwrap();
    assert_eq!((scrub.runs(), scrub.found.chunks, scrub.found.bad_blocks), (false, 20, 2));
    assert_eq!(world.refused(end), ErrorCode::Precondition, "it is over once");
    world.ok(start());
    assert_eq!(world.state.pool_by_name(NAME).unwrap().scrub.unwrap().pass, 2);
    assert!(world.reloaded() == world.state);
}

#[test]
fn faults_of_a_disk_are_told_once_with_what_is_new() {
    let mut world = with_two();
    let events = |world: &World| world.state.events_after(Revision(0)).count();
    world.ok(note(0, 3));
    assert_eq!(
        last(&world),
        (Severity::Warning, "3 blocks could not be read and were put back from another copy".into())
    );
    let before = events(&world);
    world.ok(note(0, 3));
    assert_eq!(events(&world), before, "said before");
    world.ok(note(2, 5));
    let (severity, what) = last(&world);
    assert_eq!(severity, Severity::Critical);
    assert!(what.starts_with("2 reads of blocks that no copy can read") && what.contains("; 2 blocks"), "{what}");
    let stale = Body::NoteDevice(proto::NoteDevice { device_id: 1, incarnation: 9, ..Default::default() });
    assert_eq!(world.refused(stale), ErrorCode::Precondition);
    assert!(world.reloaded() == world.state);
}

#[test]
fn the_leader_notes_what_grew_once_a_minute() {
    let mut world = with_two();
    let notes = |world: &World, now: u64, repaired: u64| {
        scrubs::commands(&world.state, LogTime(now), &heard(0, [false; 2], repaired))
            .into_iter()
            .filter(|body| matches!(body, Body::NoteDevice(_)))
            .collect::<Vec<_>>()
    };
    let now = world.now;
    assert!(notes(&world, now, 0).is_empty());
    for body in notes(&world, now, 4) {
        world.ok(body);
    }
    let now = world.now;
    assert!(notes(&world, now + 1_000, 9).is_empty(), "not every second");
    assert_eq!(notes(&world, now + 60_000, 9).len(), 2);
    assert!(notes(&world, now + 60_000, 4).is_empty(), "nothing grew");
}
