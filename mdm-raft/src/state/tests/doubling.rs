//! Conversations about groups that double (S25): both halves are what the whole was, one epoch later, and who would not
//! notice keeps it from happening.

use pflex_proto::ids::{ClientId, DeviceId, Epoch, PgId, PgIndex, Revision};
use prost::Message as _;

use super::{
    leader::{results, set, settle, words},
    moves::{now, on_its_way, rebalance},
    promotion::{away, freeze, promote, unfreeze},
    rebuilds::{fill_all, filled},
    recovery::{comes_back, end, report, restored},
    world::{
        GIB, POOL, World, code, create_pool, create_sdc, create_sds, create_volume, double, judge, lost, map, member,
        opened, register_sdc, register_sds, returned, unmap,
    },
};
use crate::{
    api::convert,
    command::{Body, ErrorCode, Request, proto},
    liveness::leads::Looks,
    state::{
        MapChange, PgState,
        limits::MAX_PGS_PER_POOL,
        model::{JobState, Pg, Pool, Setting},
    },
};

/// Three SDSs and a volume.
fn three() -> World {
    let mut world = World::with_sds(3);
    world.ok(create_volume("v", GIB));
    world
}

fn pool(world: &World) -> &Pool {
    world.state.pool(POOL).unwrap()
}

fn groups(world: &World) -> Vec<Pg> {
    world.state.pgs_of(POOL).cloned().collect()
}

/// Each group is what that was which it comes from, one epoch later and said by the last command.
#[track_caller]
fn came_from(world: &World, before: &[Pg]) {
    let after = groups(world);
    assert_eq!(after.len(), before.len() * 2);
    for (index, pg) in (0..).zip(&after) {
        let mut whole = before[index as usize % before.len()].clone();
        whole.config.epoch = whole.config.epoch.next();
        whole.since = world.said;
        whole.id = PgId { pool: POOL, index: PgIndex(index) };
        assert_eq!(*pg, whole);
    }
    assert!(world.reloaded() == world.state);
}

/// A start of a build that knows nothing of doubling.
fn old(body: Body) -> Body {
    let Body::RegisterComponent(start) = body else { unreachable!() };
    Body::RegisterComponent(proto::RegisterComponent { follows_doubling: false, ..start })
}

/// SDS n starts, its device sorted into so many groups.
fn sorted(n: u8, process: u8, incarnation: u64, pg_count: u32) -> Body {
    let Body::RegisterComponent(mut start) = register_sds(n, process, incarnation) else { unreachable!() };
    (start.devices[0].pg_count, start.devices[0].sorted_pool_id) = (pg_count, POOL.get());
    Body::RegisterComponent(start)
}

#[test]
fn both_halves_are_what_the_whole_was_one_epoch_later() {
    let mut world = three();
    let before = groups(&world);
    world.ok(double(16));
    came_from(&world, &before);
    assert_eq!((pool(&world).pg_count, pool(&world).first_pg_count), (16, 8));
    assert!(groups(&world).iter().all(|pg| pg.is_activated() && world.state.pg_state(pg) == PgState::Active));

    let event = world.state.event(world.said).unwrap();
    assert_eq!((event.kind.as_str(), event.object.as_str()), ("pool.double", "pool p"));
    let said = "the placement groups of pool p doubled, from 8 to 16; 16 placement groups in a new configuration";
    assert_eq!(event.what, said);

    let again = groups(&world);
    world.ok(double(32));
    came_from(&world, &again);
    assert_eq!((pool(&world).pg_count, pool(&world).first_pg_count), (32, 8));
}

/// A watcher takes all changes of a revision together, so it never sees the number without the groups.
#[test]
fn the_pool_and_all_groups_are_in_one_update() {
    let mut world = World::new();
    world.ok(Body::CreateDomain(proto::CreateDomain { name: "d".into(), if_not_exists: false }));
    world.ok(create_pool("p", 4, MAX_PGS_PER_POOL / 2));
    for n in 1..=4 {
        world.ok(create_sds(&format!("s{n}")));
        world.ok(register_sds(n, n, 1));
    }
    world.ok(double(MAX_PGS_PER_POOL));
    let events = &world.last.as_ref().unwrap().events;
    assert!(matches!(&events[0].change, MapChange::Pool(pool) if pool.pg_count == MAX_PGS_PER_POOL));
    let update = convert::update(Revision(world.revision), events);
    assert_eq!((update.pools.len(), update.pgs.len()), (1, MAX_PGS_PER_POOL as usize));
    assert_eq!(update.pools[0].first_pg_count, MAX_PGS_PER_POOL / 2);
    // Of the 4 MiB that a message may have; ids and epochs of a cluster that was restored are five bytes longer.
    let longer = 4 * (3 * 5 + 5) + 10;
    assert!(update.encoded_len() + update.pgs.len() * longer < 1 << 20, "{} bytes", update.encoded_len());

    assert_eq!(world.refused(double(MAX_PGS_PER_POOL * 2)), ErrorCode::Limit);
}

#[test]
fn said_again_it_changes_nothing() {
    let mut world = three();
    world.ok(Body::OpenClientSession(proto::OpenClientSession { name: "t".into() }));
    let request = Request { client: ClientId(1), sequence: 1.into(), low_water: 0.into() };
    let first = world.say_once(request, double(16));
    assert_eq!(code(&first), None);
    let before = groups(&world);
    assert_eq!(world.say_once(request, double(16)), first, "a retry gets the first answer");
    // Who asks anew, because it does not know how the first try ended, is told that it is so.
    world.ok(double(16));
    assert!(world.last.as_ref().unwrap().events.is_empty());
    assert_eq!(groups(&world), before);
    assert!(world.state.event(world.said).is_none(), "and it is no news");
}

#[test]
fn other_numbers_are_refused_with_what_may_be_given() {
    let mut world = three();
    for (asked, said) in [
        (0, "0 placement groups: it has 8, which can only double; give 16"),
        (4, "4 placement groups: it has 8, which can only double; give 16"),
        (12, "12 placement groups: it has 8, which can only double; give 16"),
        (32, "32 placement groups: it has 8, which can only double; give 16"),
        (8_192, "8192 placement groups: it has 8, and 4096 is the most there may be"),
        (u32::MAX, "4294967295 placement groups: it has 8, and 4096 is the most there may be"),
    ] {
        assert_eq!(words(&mut world, double(asked)), said);
    }
    let strange = Body::DoubleGroups(proto::DoubleGroups { pool: "q".into(), pg_count: 16 });
    assert_eq!(world.refused(strange), ErrorCode::NotFound);
}

#[test]
fn a_pool_without_a_place_just_has_more() {
    let mut world = World::with_sds(1);
    world.ok(double(16));
    assert_eq!((pool(&world).pg_count, groups(&world).len()), (16, 0));
    world.ok(create_sds("s2"));
    world.ok(register_sds(2, 2, 1));
    assert_eq!(groups(&world).len(), 16);
    // Placed and without a volume: it doubles like another, and is placed anew when a device comes.
    world.ok(double(32));
    world.ok(create_sds("s3"));
    world.ok(register_sds(3, 3, 1));
    assert_eq!(groups(&world).len(), 32);
    assert!(world.state.copies_on(DeviceId(3)) > 16);
}

#[test]
fn who_does_not_follow_is_named_and_keeps_it_from_happening() {
    let mut world = three();
    world.ok(create_sdc("c"));
    world.ok(create_sdc("idle"));
    world.ok(old(register_sdc("c", 1)));
    world.ok(old(register_sdc("idle", 2)));
    world.ok(map("v", "c"));
    world.ok(old(register_sds(2, 12, 2)));
    let said = words(&mut world, double(16));
    assert!(said.contains("those of sds s2, sdc c; upgrade them first"), "{said}");
    // One that is away may come back with the same process.
    world.ok(lost(2, 12));
    assert!(words(&mut world, double(16)).contains("sds s2"));
    world.ok(register_sds(2, 13, 3));
    let said = words(&mut world, double(16));
    assert!(said.contains("those of sdc c;"), "{said}");
    world.ok(register_sdc("c", 3));
    world.ok(double(16));

    // Afterwards they do not come back, and get nothing of the pool.
    let said = words(&mut world, old(register_sds(2, 14, 4)));
    assert!(said.contains("of pool p have doubled, from 8 to 16, and its process does not follow that"), "{said}");
    assert_eq!(world.refused(old(register_sdc("c", 4))), ErrorCode::Precondition);
    assert_eq!(world.refused(map("v", "idle")), ErrorCode::Precondition);
    world.ok(unmap("v", "c"));
    world.ok(old(register_sdc("c", 5)));
    world.ok(register_sdc("idle", 6));
    world.ok(map("v", "idle"));

    // Nor does a device that is given to it.
    world.ok(create_pool("q", 1, 8));
    world.ok(create_sds("s4"));
    let Body::RegisterComponent(mut fourth) = old(register_sds(4, 4, 1)) else { unreachable!() };
    fourth.devices[0].pool = "p".into();
    assert_eq!(world.refused(Body::RegisterComponent(fourth.clone())), ErrorCode::Precondition);
    fourth.devices[0].pool = "q".into();
    world.ok(Body::RegisterComponent(fourth));
    assert_eq!(world.refused(super::topology::assign(4, "p")), ErrorCode::Precondition);
}

#[test]
fn a_group_that_is_frozen_keeps_it_from_happening_and_one_without_a_primary_does_not() {
    let (mut world, pg) = away();
    world.ok(freeze(pg, 2));
    let said = words(&mut world, double(16));
    assert!(said.contains(&format!("group 1.{pg} of it is frozen")) && said.contains("device 2"), "{said}");
    world.ok(unfreeze(pg));
    let before = groups(&world);
    assert_eq!(world.pg(pg).config.primary, None);
    world.ok(double(16));
    came_from(&world, &before);

    // Each half is served again, or promoted, by itself.
    let other = pg + 8;
    world.ok(freeze(other, 2));
    world.ok(promote(&world, other, 2));
    assert_eq!(world.pg(other).config.primary, Some(DeviceId(2)));
    assert!(world.pg(other).forced && !world.pg(pg).forced);
    world.ok(double(32));
    assert!(world.pg(other).forced && world.pg(other + 16).forced, "what is lost of one is lost of both");
    world.ok(returned(1, 1, 1));
    assert_eq!(world.pg(pg).config.in_sync, [member(1, 1)]);
    assert_eq!(world.pg(pg).config.primary, Some(DeviceId(1)));
}

#[test]
fn a_copy_on_its_way_is_on_its_way_in_both() {
    let (mut world, moving) = on_its_way();
    let before = groups(&world);
    let moving = now(&world, &moving);
    world.ok(double(16));
    came_from(&world, &before);
    let halves = [moving.id, PgId { index: PgIndex(moving.id.index.get() + 8), ..moving.id }];
    for id in halves {
        let pg = world.state.pg(id).unwrap();
        assert_eq!((pg.leaving, pg.newcomer()), (moving.leaving, moving.newcomer()));
        assert_eq!(world.state.joiners(pg).map(|device| device.id).collect::<Vec<_>>(), [DeviceId(4)]);
    }
    // Whoever speaks of the whole speaks of an epoch that is over.
    let leader = moving.config.primary.unwrap().get();
    let mut in_sync: Vec<_> = moving.config.in_sync.iter().map(|m| (m.device.get(), m.incarnation.get())).collect();
    in_sync.push((4, 1));
    let late = proto::Proposal {
        pool_id: 1,
        index: moving.id.index.get(),
        expected_epoch: moving.config.epoch.get(),
        in_sync: in_sync.into_iter().map(|(n, life)| super::world::member_message(n, life)).collect(),
        ..Default::default()
    };
    assert!(!world.propose(leader as u8, leader as u8, late).accepted);
    // One arrives, the other one's new home is lost.
    filled(&mut world, halves[0]);
    assert_eq!(world.state.pg(halves[0]).unwrap().leaving, None);
    assert!(world.state.pg(halves[0]).unwrap().replicas.contains(&DeviceId(4)));
    world.ok(lost(4, 4));
    assert_eq!(world.state.pg(halves[1]).unwrap().replicas, before[moving.id.index.get() as usize].replicas[..2]);
}

#[test]
fn a_copy_that_is_away_lacks_both_and_joins_both() {
    let mut world = three();
    world.ok(lost(2, 2));
    let before = groups(&world);
    let lacking = before.iter().filter(|pg| !pg.is_whole()).count();
    world.ok(double(16));
    came_from(&world, &before);
    let job = world.state.open_rebuild(POOL).unwrap();
    assert_eq!((job.groups_left as usize, job.state), (2 * lacking, JobState::Waiting));
    world.ok(returned(2, 2, 1));
    fill_all(&mut world);
    assert!(groups(&world).iter().all(|pg| world.state.pg_state(pg) == PgState::Active));
    assert_eq!(world.state.open_rebuild(POOL), None);
}

/// S11: who may yet be chosen of the whole may be of each half; and who is activated need not say so again.
#[test]
fn what_is_not_activated_is_to_be_activated_in_both() {
    let mut world = World { primaries_wait: true, ..three() };
    let pg = world.pg_between(1, 2);
    world.ok(lost(1, 1));
    let before = groups(&world);
    assert!(!world.pg(pg).is_activated());
    world.ok(double(16));
    came_from(&world, &before);
    // One half is about to answer, the other one never does.
    let activation = |index: u32, epoch: Epoch| proto::Proposal {
        pool_id: 1,
        index,
        expected_epoch: epoch.get(),
        activate: true,
        ..Default::default()
    };
    let whole = before[pg as usize].config.epoch;
    assert!(!world.propose(2, 2, activation(pg, whole)).accepted, "that was the whole's");
    assert!(world.propose(2, 2, activation(pg, whole.next())).accepted);
    world.ok(lost(2, 2));
    world.ok(returned(1, 1, 1));
    assert_eq!(world.pg(pg).config.primary, None, "it may miss what 2 answered");
    assert_eq!(world.pg(pg + 8).config.in_sync, [member(1, 1)], "nobody answered there");
    assert_eq!(world.pg(pg + 8).config.primary, Some(DeviceId(1)));
}

/// S14: a copy that waits for the memory of another one waits in both halves, under the id of the whole.
#[test]
fn what_was_forgotten_of_the_whole_is_forgotten_of_both() {
    let mut world = World::with_policy(2, proto::WritePolicy::Writeback);
    world.ok(create_volume("v", GIB));
    world.ok(judge([lost(1, 1), lost(2, 2)]));
    world.ok(register_sds(1, 11, 2));
    let before = groups(&world);
    assert!(before.iter().all(|pg| pg.config.primary.is_none() && pg.forgot == [DeviceId(1)].into()));
    world.ok(double(16));
    came_from(&world, &before);
    world.ok(returned(2, 2, 1));
    let went_on = |pg: &Pg| pg.config.in_sync == [member(2, 1)] && pg.config.volatility == before[0].config.volatility;
    assert!(groups(&world).iter().all(went_on), "the one with its memory goes on");
}

/// No copy moves by a doubling; what is then above a share moves like anything else, and it comes to an end.
#[test]
fn the_planner_evens_out_what_a_doubling_leaves() {
    let mut world = three();
    world.ok(set(Setting::RebalanceAuto, 0));
    let on = |world: &World| (1..=3).map(|n| world.state.copies_on(DeviceId(n))).collect::<Vec<_>>();
    let halved = on(&world);
    world.ok(double(16));
    world.ok(double(32));
    world.ok(double(64));
    let before = on(&world);
    assert_eq!(before, halved.iter().map(|copies| copies * 8).collect::<Vec<_>>());
    world.ok(set(Setting::RebalanceAuto, 1));
    let moved = settle(&mut world, &mut Looks::default());
    let after = on(&world);
    assert!(after.iter().all(|copies| (42..=43).contains(copies)), "{after:?}, {moved} moves from {before:?}");
    assert_eq!(moved, before.iter().zip(&after).map(|(was, is)| was.saturating_sub(*is)).sum::<usize>());
}

#[test]
fn a_rebalance_goes_on_over_a_doubling() {
    let mut world = three();
    world.ok(create_sds("s4"));
    world.ok(register_sds(4, 4, 1));
    world.ok(rebalance("p", 4, false));
    let mut looks = Looks::default();
    world.now += 1_000;
    super::leader::lead(&mut world, &mut looks);
    world.now += 6_000;
    assert!(super::leader::lead(&mut world, &mut looks) > 0);
    world.ok(double(16));
    settle(&mut world, &mut looks);
    assert_eq!((1..=4).map(|n| world.state.copies_on(DeviceId(n))).collect::<Vec<_>>(), [8; 4]);
    assert!(world.state.all_rebuilds().all(|job| job.is_finished()));
}

// ---- Registration

#[test]
fn a_device_may_be_sorted_into_fewer_groups_and_never_into_more() {
    let mut world = three();
    world.ok(double(16));
    world.ok(sorted(1, 11, 2, 0));
    world.ok(sorted(1, 12, 3, 8));
    world.ok(sorted(1, 13, 4, 16));
    let said = words(&mut world, sorted(1, 14, 5, 32));
    assert!(
        said.starts_with(
            "its chunks are sorted into 32 placement groups, pool p has 16: it comes from after the backup"
        ) && said.ends_with("remove it, and add it anew and empty"),
        "{said}"
    );
    // A device that is new to the cluster, too.
    let Body::RegisterComponent(mut start) = sorted(1, 14, 5, 16) else { unreachable!() };
    start.devices.push(proto::OpenedDevice { pg_count: 64, sorted_pool_id: POOL.get(), ..opened(50, 1) });
    assert_eq!(world.refused(Body::RegisterComponent(start.clone())), ErrorCode::Precondition);
    // One that was emptied in another pool brings nothing from there.
    start.devices[1].sorted_pool_id = POOL.get() + 1;
    world.ok(Body::RegisterComponent(start));
}

// ---- Recovery (S19)

/// A group between 1 and 2, backed up with 8 groups. Then 2 is lost, the groups double, and half 0 takes 2 in again.
#[test]
fn a_backup_of_before_recovers_what_doubled_after_it() {
    let mut before = three();
    let pg = before.pg_between(1, 2);
    let backup = before.state.dump();
    before.ok(lost(2, 2));
    before.ok(double(16));
    before.ok(returned(2, 2, 1));
    filled(&mut before, PgId { pool: POOL, index: PgIndex(pg) });
    assert_eq!(before.pg(pg).config.in_sync.len(), 2);
    assert_eq!(before.pg(pg + 8).config.in_sync, [member(1, 1)]);

    let mut world = restored(&backup);
    assert_eq!(world.refused(double(16)), ErrorCode::Precondition, "not before it is over");
    // The first to say it makes the groups; a registration alone does not, and is none the less taken.
    comes_back(&mut world, &before.state, 3);
    assert_eq!((pool(&world).pg_count, pool(&world).first_pg_count, groups(&world).len()), (16, 8, 16));
    let doubled = world.state.all_pgs().all(|pg| pg.config.primary.is_none());
    assert!(doubled && world.reloaded() == world.state);
    let Body::ReportGroups(said) = report(&world, &before.state, 2, 22, 2) else { unreachable!() };
    world.ok(Body::ReportGroups(said.clone()));
    world.ok(Body::ReportGroups(said));
    world.ok(sorted(2, 22, 2, 16));
    comes_back(&mut world, &before.state, 1);
    assert_eq!(groups(&world).len(), 16, "said by three, it doubled once");
    world.ok(end(&[]));
    assert_eq!(world.pg(pg).config.in_sync.len(), 2);
    assert_eq!(world.pg(pg + 8).config.in_sync, [member(1, 2)], "2 lacks what 1 has acknowledged there");
    assert!(world.state.all_pgs().all(|pg| pg.config.primary.is_some()));
    for known in before.state.all_pgs() {
        assert!(world.state.pg(known.id).unwrap().config.epoch > known.config.epoch);
    }
    assert!(world.reloaded() == world.state);
}

#[test]
fn the_report_that_doubles_is_in_the_audit() {
    let mut before = three();
    let backup = before.state.dump();
    before.ok(double(16));
    before.ok(double(32));
    let mut world = restored(&backup);
    let Body::ReportGroups(said) = report(&world, &before.state, 1, 21, 2) else { unreachable!() };
    world.ok(Body::ReportGroups(proto::ReportGroups { last: false, ..said.clone() }));
    assert_eq!(groups(&world).len(), 32);
    let event = world.state.event(world.said).unwrap();
    let words = "device 1 knows, from after the backup, that the placement groups of pool p doubled, from 8 to 32";
    assert!(event.kind == "cluster.report" && event.what.starts_with(words), "{event:?}");
    for (pg_count, what) in [(33, "no power of two"), (8_192, "more than there may be")] {
        let bad = proto::ReportGroups { pg_count, ..said.clone() };
        assert_eq!(world.refused(Body::ReportGroups(bad)), ErrorCode::Invalid, "{what}");
    }
}

/// All that had copies are lost: the one that had none yet is sorted for the pool all the same, and says so.
#[test]
fn a_device_without_copies_tells_of_a_doubling_too() {
    let mut before = super::leader::and_one(3);
    let backup = before.state.dump();
    before.ok(double(16));
    let mut world = restored(&backup);
    let Body::ReportGroups(said) = report(&world, &before.state, 4, 24, 2) else { unreachable!() };
    assert_eq!((said.groups.as_slice(), said.pg_count), (&[][..], 16));
    let elsewhere = proto::ReportGroups { sorted_pool_id: POOL.get() + 70, last: false, ..said.clone() };
    world.ok(Body::ReportGroups(elsewhere));
    assert_eq!((pool(&world).pg_count, groups(&world).len()), (8, 8), "no pool that there is");
    world.ok(Body::ReportGroups(said));
    assert_eq!((pool(&world).pg_count, groups(&world).len()), (16, 16));
    world.ok(sorted(4, 24, 2, 16));
    world.ok(end(&["s1", "s2", "s3"]));
    assert!(world.reloaded() == world.state);
}

/// The device that was away when the groups doubled has the only copy of one: what it says of the whole it says of both.
#[test]
fn a_device_that_never_heard_of_the_doubling_counts_in_both_halves() {
    for reports_first in [true, false] {
        for pg_count in [0, 8] {
            let mut before = three();
            let pg = before.pg_between(1, 2);
            let backup = before.state.dump();
            before.ok(lost(1, 1));
            before.ok(lost(2, 2));
            let last = before.state.clone();
            assert_eq!(before.pg(pg).config.in_sync, [member(2, 1)]);
            before.ok(double(16));

            let mut world = restored(&backup);
            let say = |world: &mut World| {
                let Body::ReportGroups(said) = report(world, &last, 2, 22, 2) else { unreachable!() };
                world.ok(Body::ReportGroups(proto::ReportGroups { pg_count, ..said }));
                world.ok(sorted(2, 22, 2, pg_count));
            };
            if reports_first {
                say(&mut world);
            }
            comes_back(&mut world, &before.state, 1);
            comes_back(&mut world, &before.state, 3);
            if !reports_first {
                say(&mut world);
            }
            world.ok(end(&[]));
            for index in [pg, pg + 8] {
                assert_eq!(world.pg(index).config.in_sync, [member(2, 2)], "1 lacks what 2 has, and 2 has it all");
                assert_eq!(world.pg(index).config.primary, Some(DeviceId(2)));
            }
        }
    }
}

/// Given up, and here after all: before the recovery ended nobody knew that groups had doubled, now they stay as they are.
#[test]
fn a_device_of_after_the_doubling_that_comes_too_late_is_refused() {
    let mut before = three();
    let backup = before.state.dump();
    before.ok(lost(1, 1));
    let last = before.state.clone();
    before.ok(double(16));
    let mut world = restored(&backup);
    comes_back(&mut world, &last, 2);
    comes_back(&mut world, &last, 3);
    world.ok(end(&["s1"]));
    let late = report(&world, &before.state, 1, 21, 2);
    let said = words(&mut world, late);
    assert!(said.contains("sorted into 16 placement groups, pool p has 8"), "{said}");
    assert_eq!(groups(&world).len(), 8);

    // And one of before, after the cluster has doubled anew, says the same of both halves.
    world.ok(double(16));
    comes_back(&mut world, &last, 1);
    assert!(groups(&world).iter().all(|pg| pg.config.member(DeviceId(1)).is_none()), "it had left");
}

/// Its groups double while it is waited for, long after the recovery: what it then says of the whole counts in both.
#[test]
fn who_is_waited_for_after_a_recovery_is_waited_for_in_both_halves() {
    let mut before = three();
    let pg = before.pg_between(1, 2);
    before.ok(lost(2, 2));
    let backup = before.state.dump();
    let mut world = restored(&backup);
    comes_back(&mut world, &before.state, 2);
    comes_back(&mut world, &before.state, 3);
    world.ok(end(&["s1"]));
    assert_eq!(world.pg(pg).config.primary, None, "only 1 has it");
    world.ok(double(16));
    comes_back(&mut world, &before.state, 1);
    for index in [pg, pg + 8] {
        assert_eq!((world.pg(index).config.primary, world.pg(index).config.in_sync.len()), (Some(DeviceId(1)), 1));
    }
}

#[test]
fn a_recovery_does_not_end_with_somebody_who_does_not_follow_what_has_doubled() {
    let mut before = three();
    let backup = before.state.dump();
    before.ok(double(16));
    let mut world = restored(&backup);
    let said = report(&world, &World::with_sds(3).state, 1, 21, 2);
    world.ok(said);
    world.ok(old(register_sds(1, 21, 2)));
    comes_back(&mut world, &before.state, 2);
    comes_back(&mut world, &before.state, 3);
    let said = words(&mut world, end(&[]));
    assert!(said.contains("those of sds s1; upgrade them first"), "{said}");
    world.ok(register_sds(1, 22, 3));
    world.ok(end(&[]));
}

#[test]
fn a_move_of_both_halves_is_judged_by_the_epoch_of_each() {
    let (mut world, moving) = on_its_way();
    world.ok(double(16));
    let moving = now(&world, &moving);
    let other = world.state.pg(PgId { index: PgIndex(moving.id.index.get() + 8), ..moving.id }).unwrap().clone();
    filled(&mut world, moving.id);
    let steps = [moving, other].map(|pg| proto::LeadMove {
        index: pg.id.index.get(),
        expected_epoch: pg.config.epoch.get(),
        to_device_id: pg.config.in_sync[1].device.get(),
    });
    let accepted: Vec<bool> =
        results(&mut world, super::leads::move_leads(steps.to_vec())).iter().map(|result| result.accepted).collect();
    assert_eq!(accepted, [false, true], "the first has arrived in another epoch, the second is as it was");
}
