//! Conversations about a cluster that begins again from a backup (S19): what devices knew decides, not the backup.

use pflex_proto::ids::{DeviceId, Member};

use super::world::{GIB, POOL, World, create_volume, lost, member, member_message, opened, register_sds};
use crate::{
    command::{Answer, Body, ErrorCode, proto},
    state::{PgState, State, StoredRow, model::Pg},
};

/// Three SDSs, a volume, and group `pg` with its primary on 1 and its backup on 2, backed up. After that 2 leaves the group.
struct Story {
    before: World,
    /// Rows as of the backup.
    backup: Vec<StoredRow>,
    pg: u32,
}

fn two_left_after_the_backup() -> Story {
    let mut before = World::with_sds(3);
    before.ok(create_volume("v", GIB));
    let pg = before.pg_between(1, 2);
    let backup = before.state.dump();
    before.ok(lost(2, 2));
    assert_eq!(before.pg(pg).config.in_sync, [member(1, 1)]);
    Story { before, backup, pg }
}

pub(super) fn restored(backup: &[StoredRow]) -> World {
    let restored =
        State::restored(backup.iter().filter(|row| crate::backup::is_kept(row.0)).cloned(), 1_800_000_000, [1; 32])
            .unwrap();
    let store = restored.state.dump().into_iter().map(|(t, key, value)| ((t, key.into_vec()), value.into_vec()));
    let revision = restored.revision.get();
    World {
        store: store.collect(),
        state: State::load(restored.state.dump().into_iter()).unwrap(),
        revision,
        now: 2_000_000,
        ..World::default()
    }
}

/// What device `n` says of each group that `known` names it a copy of: that it knows the configuration of then.
pub(super) fn report(world: &World, known: &State, n: u8, process: u8, incarnation: u64) -> Body {
    let groups = known.all_pgs().filter(|pg| pg.replicas.contains(&DeviceId(n.into()))).map(said).collect();
    Body::ReportGroups(proto::ReportGroups {
        sds: format!("s{n}"),
        process_id: vec![process; 16],
        generation: world.state.cluster().unwrap().generation.get(),
        device_uuid: vec![n; 16],
        device_id: n.into(),
        incarnation,
        groups,
        last: true,
        pg_count: known.pool(POOL).map_or(0, |pool| pool.pg_count),
        sorted_pool_id: POOL.get(),
    })
}

fn said(pg: &Pg) -> proto::GroupReport {
    proto::GroupReport {
        pool_id: pg.id.pool.get(),
        index: pg.id.index.get(),
        generation: 1,
        epoch: pg.config.epoch.get(),
        primary_device_id: pg.config.primary.map_or(0, DeviceId::get),
        in_sync: pg.config.in_sync.iter().map(|m| member_message(m.device.get(), m.incarnation.get())).collect(),
        replica_device_ids: pg.replicas.iter().map(|device| device.get()).collect(),
        volatility: pg.config.volatility.get(),
        served: false,
    }
}

/// SDS n starts again after the restore, and tells what `known` has.
pub(super) fn comes_back(world: &mut World, known: &State, n: u8) {
    let report = report(world, known, n, 20 + n, 2);
    world.ok(report);
    world.ok(register_sds(n, 20 + n, 2));
}

pub(super) fn end(without: &[&str]) -> Body {
    Body::EndRecovery(proto::EndRecovery { without: without.iter().map(|name| (*name).to_owned()).collect() })
}

#[test]
fn a_copy_that_left_after_the_backup_never_counts_as_in_sync() {
    let Story { before, backup, pg } = two_left_after_the_backup();
    let stale = State::load(backup.iter().cloned()).unwrap();
    let mut world = restored(&backup);
    assert_eq!(world.pg(pg).config.in_sync, [member(1, 1), member(2, 1)], "the backup knows no better");

    // The stale copy comes first, and only knows what the backup knows.
    comes_back(&mut world, &stale, 2);
    comes_back(&mut world, &before.state, 3);
    assert_eq!(world.refused(end(&[])), ErrorCode::Precondition, "s1 has not reported");
    assert_eq!(world.pg(pg).config.primary, None);
    comes_back(&mut world, &before.state, 1);
    let highest = before.pg(pg).config.epoch;
    world.ok(end(&[]));
    assert_eq!(world.pg(pg).config.in_sync, [member(1, 2)], "only 1 has what was acknowledged since");
    assert_eq!(world.pg(pg).config.primary, Some(DeviceId(1)));
    assert!(world.pg(pg).config.epoch > highest);
    assert!(world.state.all_pgs().all(|pg| world.state.pg_state(pg) != PgState::Unavailable));
    assert!(world.reloaded() == world.state);
    assert_eq!(world.refused(end(&[])), ErrorCode::Precondition, "it is over");
}

#[test]
fn a_group_whose_only_copy_is_lost_stays_closed_and_says_so() {
    let Story { before, backup, pg } = two_left_after_the_backup();
    let mut world = restored(&backup);
    // 2 has heard that it left.
    comes_back(&mut world, &before.state, 2);
    comes_back(&mut world, &before.state, 3);
    let refused = world.say(end(&[]));
    let why = refused.error().unwrap().what.clone();
    assert!(why.contains("sds s1 (devices 1) has not reported") && why.contains("--without s1"), "{why}");
    assert_eq!(world.refused(end(&["s2"])), ErrorCode::Precondition, "s2 is here");
    assert_eq!(world.refused(end(&["s1", "s9"])), ErrorCode::NotFound);
    world.ok(end(&["s1"]));
    assert_eq!(world.state.pg_state(world.pg(pg)), PgState::Unavailable, "a stale copy is never promoted");
    assert_eq!(world.pg(pg).config.in_sync, [member(1, 1)]);
    let why = world.state.why(&format!("pg 1.{pg}"));
    let said: Vec<&str> = why[0].causes.iter().map(|cause| cause.what.as_str()).collect();
    assert!(said.iter().any(|what| what.contains("devices 1 have not reported")), "{said:#?}");
    let event = world.state.event(world.state.revision()).unwrap();
    assert!(event.what.contains("without s1") && event.severity == crate::state::model::Severity::Critical);

    // It was not lost after all: it says what it knew before it counts.
    assert_eq!(world.refused(register_sds(1, 21, 2)), ErrorCode::ReportFirst);
    comes_back(&mut world, &before.state, 1);
    assert_eq!(world.pg(pg).config.primary, Some(DeviceId(1)));
}

#[test]
fn a_lost_copy_that_returns_and_had_left_does_not_count() {
    // Nobody who reports knows that 2 left; 1, which knows, is given up, and so is 2. Then 2 returns, and knows.
    let Story { before, backup, pg } = two_left_after_the_backup();
    let stale = State::load(backup.iter().cloned()).unwrap();
    let mut world = restored(&backup);
    comes_back(&mut world, &stale, 3);
    world.ok(end(&["s1", "s2"]));
    assert_eq!(world.state.pg_state(world.pg(pg)), PgState::Unavailable);
    comes_back(&mut world, &before.state, 2);
    assert_eq!(world.state.pg_state(world.pg(pg)), PgState::Unavailable, "2 knows that it had left");
    world.ok(register_sds(2, 99, 3));
    assert_eq!(world.state.pg_state(world.pg(pg)), PgState::Unavailable, "a restart makes it no better");
    comes_back(&mut world, &before.state, 1);
    assert_eq!(world.pg(pg).config.primary, Some(DeviceId(1)));
    assert_eq!(world.pg(pg).config.in_sync, [member(1, 2)]);
}

#[test]
fn a_copy_that_lost_its_data_after_the_backup_does_not_count() {
    let Story { backup, pg, .. } = two_left_after_the_backup();
    let stale = State::load(backup.iter().cloned()).unwrap();
    let mut world = restored(&backup);
    comes_back(&mut world, &stale, 3);
    // 1 was emptied: it knows nothing at all. 2 is lost.
    let nothing = State::default();
    comes_back(&mut world, &nothing, 1);
    world.ok(end(&["s2"]));
    let config = &world.pg(pg).config;
    assert_eq!((config.primary, config.in_sync.clone()), (None, vec![member(2, 1)]), "2 may have it, 1 has not");
    world.ok(register_sds(1, 41, 3));
    assert_eq!(world.pg(pg).config.primary, None, "not after another restart either");
}

#[test]
fn a_copy_that_lost_its_data_stays_out_over_restarts() {
    let mut world = World::with_sds(3);
    world.ok(create_volume("v", GIB));
    let pg = world.pg_between(1, 2);
    world.ok(lost(1, 1));
    let Body::RegisterComponent(mut emptied) = register_sds(2, 12, 2) else { unreachable!() };
    emptied.devices[0].empty = true;
    world.ok(Body::RegisterComponent(emptied));
    assert_eq!(world.pg(pg).config.primary, None);
    world.ok(register_sds(2, 13, 3));
    assert_eq!(world.pg(pg).config.primary, None, "an empty copy is not full because it was opened once more");
    assert_eq!(world.pg(pg).config.in_sync, [member(2, 1)]);
}

#[test]
fn a_device_and_a_pool_of_after_the_backup_are_known_again_or_named() {
    let mut before = World::with_sds(2);
    let backup = before.state.dump();
    before.ok(super::world::create_pool("late", 2, 8));
    let Body::RegisterComponent(mut two) = register_sds(1, 11, 2) else { unreachable!() };
    two.devices.push(proto::OpenedDevice { pool: "late".into(), ..opened(50, 1) });
    before.ok(Body::RegisterComponent(two));
    let Body::RegisterComponent(mut two) = register_sds(2, 12, 2) else { unreachable!() };
    two.devices.push(proto::OpenedDevice { pool: "late".into(), ..opened(60, 1) });
    before.ok(Body::RegisterComponent(two));
    assert_eq!(before.state.all_pgs().len(), 16);

    let mut world = restored(&backup);
    for (n, extra, id) in [(1_u8, 50_u8, 3_u32), (2, 60, 4)] {
        let Body::ReportGroups(known) = report(&world, &before.state, n, 20 + n, 3) else { unreachable!() };
        let late = before.state.all_pgs().filter(|pg| pg.replicas.contains(&DeviceId(id))).map(said).collect();
        world.ok(Body::ReportGroups(proto::ReportGroups {
            device_uuid: vec![extra; 16],
            device_id: id,
            incarnation: 2,
            groups: late,
            ..known.clone()
        }));
        world.ok(Body::ReportGroups(known));
        let Body::RegisterComponent(mut start) = register_sds(n, 20 + n, 3) else { unreachable!() };
        start.devices.push(proto::OpenedDevice { device_id: id, ..opened(extra, 2) });
        world.ok(Body::RegisterComponent(start));
        assert_eq!(world.state.device(DeviceId(id)).unwrap().sds.get(), u32::from(n), "it keeps its id");
    }
    assert_eq!(world.state.unknown_groups().count(), 8);
    let why = world.state.why("cluster");
    assert!(why[0].causes.iter().any(|cause| cause.what.contains("not in the backup")), "{why:?}");
    world.ok(end(&[]));
    let event = world.state.event(world.state.revision()).unwrap();
    assert!(event.what.contains("8 groups are on devices and not in the backup"), "{}", event.what);
    assert!(world.state.all_pgs().all(|pg| world.state.pg_state(pg) == PgState::Active));
    assert!(world.reloaded() == world.state);
}

#[test]
fn nobody_is_removed_before_it_is_known_who_has_what() {
    let mut world = World::with_sds(3);
    world.ok(super::moves::drain("s3"));
    let mut back = restored(&world.state.dump());
    assert_eq!(back.state.copies_on(DeviceId(3)), 0, "as far as the backup knows");
    assert_eq!(back.refused(super::world::delete(proto::Object::Sds, "s3")), ErrorCode::Precondition);
    assert_eq!(back.refused(Body::RemoveDevice(proto::RemoveDevice { device_id: 3 })), ErrorCode::Precondition);
    back.ok(end(&["s1", "s2", "s3"]));
    back.ok(super::world::delete(proto::Object::Sds, "s3"));
}

#[test]
fn who_runs_on_registers_again_first() {
    let Story { backup, .. } = two_left_after_the_backup();
    let mut world = restored(&backup);
    // The process of the backup still runs: its word counts only once it has registered and reported.
    assert_eq!(world.refused(super::world::returned(1, 1, 1)), ErrorCode::Precondition);
    assert_eq!(world.refused(lost(1, 1)), ErrorCode::Precondition);
    let older = proto::ReportGroups { generation: 1, ..report_of(&world) };
    assert_eq!(world.refused(Body::ReportGroups(older)), ErrorCode::ReportFirst, "to another generation");
}

/// S19: a beat that names a device which has not reported does not bring it back, whatever life it names.
#[test]
fn a_device_that_has_not_reported_is_not_taken_back_by_a_beat() {
    let mut before = World::with_sds(3);
    let Body::RegisterComponent(mut two) = register_sds(1, 11, 2) else { unreachable!() };
    two.devices.push(opened(50, 1));
    let Answer::Registered(registered) = before.ok(Body::RegisterComponent(two)) else { panic!() };
    let silent = registered.device_ids[1];
    before.ok(create_volume("v", GIB));
    let mut world = restored(&before.state.dump());

    // The SDS comes back with one of its two devices.
    let first = report(&world, &before.state, 1, 21, 3);
    world.ok(first);
    world.ok(register_sds(1, 21, 3));
    let life = |device_id, incarnation| proto::DeviceLife { device_id, incarnation };
    world.ok(Body::SdsReturned(proto::SdsReturned {
        sds_id: 1,
        devices: vec![life(1, 3), life(silent, 1)],
        process_id: vec![21; 16],
    }));
    let device = |id: u32| world.state.device(DeviceId(id)).unwrap();
    assert!(device(1).alive && !device(1).awaited);
    assert!(!device(silent).alive && device(silent).awaited, "it has said nothing yet");
    assert_eq!(world.refused(end(&[])), ErrorCode::Precondition, "and is waited for");
}

fn report_of(world: &World) -> proto::ReportGroups {
    let Body::ReportGroups(report) = report(world, &State::default(), 1, 21, 2) else { unreachable!() };
    report
}

/// The check of `state::check` fails where it should.
#[test]
fn nobody_serves_during_a_recovery() {
    let Story { before, backup, pg } = two_left_after_the_backup();
    let mut world = restored(&backup);
    comes_back(&mut world, &before.state, 1);
    let id = world.pg(pg).id;
    let first: Member = world.pg(pg).config.in_sync[0];
    world.state.pgs.update(id, |pg| pg.config.primary = Some(first.device));
    let verdict = world.state.check().unwrap_err();
    assert!(verdict.contains("during a recovery"), "{verdict}");
}
