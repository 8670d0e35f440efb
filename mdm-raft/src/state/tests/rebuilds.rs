//! Conversations about rebuilds, which no command speaks of: they follow the placement groups.

use pflex_proto::ids::{DeviceId, LogTime, PgId};

use super::world::{GIB, POOL, World, create_pool, create_volume, delete, lost, opened, register_sds, returned};
use crate::{
    command::{Body, proto},
    state::{
        limits::MAX_REBUILDS_KEPT,
        model::{JobId, JobState, RebuildJob},
        tests::recovery::restored,
    },
};

/// Three SDSs and a volume, so that nothing is placed anew.
fn three() -> World {
    let mut world = World::with_sds(3);
    world.ok(create_volume("v", GIB));
    assert_eq!(world.state.all_rebuilds().len(), 0, "every group began whole");
    world
}

/// The newest rebuild of the pool.
fn newest(world: &World) -> RebuildJob {
    world.state.rebuilds_of(POOL).next_back().expect("there is one").clone()
}

fn waits(world: &World) -> Vec<String> {
    world.state.rebuild_waits_for(POOL, LogTime(world.now))
}

fn told(job: &RebuildJob) -> (JobState, u32, u64) {
    (job.state, job.groups_left, job.groups_done)
}

/// Groups that have a joiner and somebody to fill it.
pub(super) fn fillable(world: &World) -> Vec<PgId> {
    let groups = world.state.all_pgs().filter(|pg| pg.config.primary.is_some());
    groups.filter(|pg| world.state.joiners(pg).next().is_some()).map(|pg| pg.id).collect()
}

/// The primary of a group takes its joiners in.
pub(super) fn filled(world: &mut World, id: PgId) {
    world.activate_all();
    let pg = world.state.pg(id).unwrap();
    let primary = *pg.config.member(pg.config.primary.unwrap()).unwrap();
    let process = world.state.sds(primary.sds).unwrap().registration.as_ref().unwrap().process;
    let member =
        |device: u32, sds: u32, incarnation: u64| proto::Member { device_id: device, sds_id: sds, incarnation };
    let mut in_sync: Vec<proto::Member> =
        pg.config.in_sync.iter().map(|m| member(m.device.get(), m.sds.get(), m.incarnation.get())).collect();
    in_sync.extend(world.state.joiners(pg).map(|d| member(d.id.get(), d.sds.get(), d.incarnation.get())));
    let proposal = proto::Proposal {
        pool_id: id.pool.get(),
        index: id.index.get(),
        expected_epoch: pg.config.epoch.get(),
        in_sync,
        primary_device_id: 0,
        activate: false,
    };
    let result = world.propose(primary.sds.get() as u8, process.as_bytes()[0], proposal);
    assert!(result.accepted, "{}", result.why);
}

pub(super) fn fill_all(world: &mut World) {
    for id in fillable(world) {
        filled(world, id);
    }
}

fn event(world: &World) -> String {
    world.state.event(world.said).map(|event| event.what.clone()).unwrap_or_default()
}

#[test]
fn a_lost_server_opens_one_that_waits_for_it_and_is_done_when_all_groups_are_whole() {
    let mut world = three();
    world.now += 1_000;
    world.ok(lost(3, 3));
    let job = newest(&world);
    let groups = world.state.all_pgs().filter(|pg| pg.replicas.contains(&DeviceId(3))).count() as u32;
    assert_eq!(told(&job), (JobState::Waiting, groups, 0));
    assert_eq!(waits(&world), ["s3 is DOWN; new homes once rebuild.delay_ms has passed (600 s left)"]);
    assert_eq!(job.why, "sds s3: silent for 3 s");
    assert!(
        event(&world).contains(&format!("rebuild 1 of pool p begins, {groups} groups, waiting")),
        "{}",
        event(&world)
    );
    assert_eq!(job.opened.revision, world.said);
    let said = world.state.event(world.said).and_then(|event| event.told_of("pool p"));
    assert_eq!(said.map(|said| said.kind), Some("rebuild.begin"), "the pool's events have it");

    world.now += 5_000;
    world.ok(returned(3, 3, 1));
    let job = newest(&world);
    assert_eq!(told(&job), (JobState::Running, groups, 0));
    assert!(waits(&world).is_empty());
    assert_eq!((job.since, job.eta_ms(LogTime(world.now))), (LogTime(world.now), None), "nothing is known of its pace");
    assert!(!event(&world).contains("rebuild"), "it is not begun twice: {}", event(&world));

    let all = fillable(&world);
    for (n, id) in (1..).zip(&all) {
        world.now += 100;
        filled(&mut world, *id);
        let left = groups - n;
        assert_eq!((newest(&world).groups_left, newest(&world).groups_done), (left, u64::from(n)));
        if left > 0 {
            assert_eq!(newest(&world).eta_ms(LogTime(world.now)), Some(100 * u64::from(left)), "100 ms a group");
        }
    }
    let job = newest(&world);
    assert_eq!(told(&job), (JobState::Done, 0, u64::from(groups)));
    assert_eq!(
        job.duration_ms(LogTime(world.now + 77)),
        5_000 + 100 * u64::from(groups),
        "time after its end is not its"
    );
    assert!(event(&world).ends_with(&format!("rebuild 1 of pool p is done after {} ms", 5_000 + 100 * groups)));
    assert!(world.reloaded() == world.state);
}

#[test]
fn nothing_is_written_where_nothing_changes() {
    let mut world = three();
    world.ok(lost(3, 3));
    world.ok(lost(3, 3));
    let rows = &world.last.as_ref().unwrap().rows;
    assert_eq!(rows.len(), 1, "only the position: {rows:?}");
}

#[test]
fn a_copy_that_lost_its_data_and_a_joiner_of_a_group_that_nobody_serves() {
    let mut world = three();
    let Body::RegisterComponent(mut emptied) = register_sds(1, 11, 2) else { unreachable!() };
    emptied.devices[0].empty = true;
    world.ok(Body::RegisterComponent(emptied));
    assert_eq!(newest(&world).state, JobState::Running, "it is here, and to be filled");
    assert_eq!(newest(&world).why, "sds s1: started on host1, version 1 with 1 device");

    // Its groups with 2 have nobody left who could fill it; those with 3 have.
    world.ok(lost(2, 2));
    assert_eq!(newest(&world).state, JobState::Running);
    assert_eq!(waits(&world).len(), 2, "{:?}", waits(&world));
    world.ok(lost(3, 3));
    assert_eq!(newest(&world).state, JobState::Waiting);
    let waits = waits(&world);
    assert!(waits.iter().any(|wait| wait.ends_with("groups that nobody serves")), "{waits:?}");
    assert_eq!(world.state.all_rebuilds().len(), 1, "one at a time");

    world.ok(returned(2, 2, 1));
    world.ok(returned(3, 3, 1));
    fill_all(&mut world);
    assert_eq!(newest(&world).state, JobState::Done);
}

#[test]
fn a_group_hit_again_counts_again_and_less_is_never_done() {
    let mut world = three();
    world.ok(lost(3, 3));
    world.ok(returned(3, 3, 1));
    let first = fillable(&world)[0];
    filled(&mut world, first);
    let before = newest(&world);
    world.ok(lost(3, 3));
    let job = newest(&world);
    assert_eq!((job.id, job.groups_done, job.groups_left), (before.id, 1, before.groups_left + 1));
    assert_eq!((job.state, job.done_before), (JobState::Waiting, 1));
    world.ok(returned(3, 3, 1));
    fill_all(&mut world);
    assert_eq!(newest(&world).state, JobState::Done);
}

#[test]
fn a_lost_device_of_a_living_server_is_named() {
    let mut world = World::with_sds(2);
    world.ok(create_volume("v", GIB));
    world.ok(Body::SdsLost(proto::SdsLost {
        sds_id: 2,
        devices: vec![proto::DeviceLife { device_id: 2, incarnation: 1 }],
        process_id: vec![2; 16],
        ..Default::default()
    }));
    let stuck = world.state.all_pgs().len();
    assert_eq!(
        waits(&world),
        [format!("device 2 of s2 is out of service; no other fault domain has a device in service for {stuck} copies")]
    );
}

#[test]
fn each_pool_has_its_own_and_finished_ones_are_bounded() {
    let mut world = three();
    world.ok(create_pool("empty", 2, 4));
    for _ in 0..MAX_REBUILDS_KEPT + 3 {
        world.ok(lost(3, 3));
        assert_eq!(world.state.all_rebuilds().filter(|job| !job.is_finished()).count(), 1);
        // Far enough apart that nobody is kept out for failing too often.
        world.now += 3_600_001;
        world.ok(returned(3, 3, 1));
        fill_all(&mut world);
    }
    assert_eq!(world.state.rebuilds_of(POOL).count(), MAX_REBUILDS_KEPT);
    assert_eq!(world.state.rebuilds_of(POOL).next().unwrap().id, JobId(4), "the oldest went");
    assert_eq!(newest(&world).id, JobId(MAX_REBUILDS_KEPT as u64 + 3), "numbers are never given out twice");
    assert!(world.reloaded() == world.state);
}

#[test]
fn a_deleted_pool_takes_its_rebuilds_along_and_one_placed_anew_is_whole() {
    let mut world = World::with_sds(3);
    world.ok(lost(3, 3));
    assert_eq!(newest(&world).state, JobState::Waiting);
    // Nothing was ever stored: a new server gives its groups another home.
    world.ok(super::world::create_sds("s4"));
    world.ok(register_sds(4, 4, 1));
    assert_eq!(newest(&world).state, JobState::Done, "{:?}", newest(&world));

    world.ok(lost(4, 4));
    world.ok(delete(proto::Object::Pool, "p"));
    assert_eq!(world.state.all_rebuilds().len(), 0);
    assert!(world.reloaded() == world.state);
}

#[test]
fn a_restored_cluster_keeps_them_and_they_wait_until_somebody_serves() {
    let mut world = three();
    world.ok(lost(3, 3));
    world.ok(returned(3, 3, 1));
    let before = newest(&world);
    assert_eq!(before.state, JobState::Running);
    let restored = restored(&world.state.dump());
    let job = newest(&restored);
    assert_eq!((job.id, told(&job)), (before.id, (JobState::Waiting, before.groups_left, 0)));
    assert_eq!(waits(&restored), ["the recovery after a restore is not over"]);
}

#[test]
fn a_device_that_never_had_a_copy_changes_nothing() {
    let mut world = three();
    let Body::RegisterComponent(mut two) = register_sds(1, 11, 2) else { unreachable!() };
    two.devices.push(opened(50, 1));
    world.ok(Body::RegisterComponent(two));
    assert_eq!(world.state.all_rebuilds().len(), 0);
}
