//! Every check is shown to fail: a bug is planted in a good state and `check` or `check_step` must name it.

use pflex_proto::ids::{
    ByteCount, ClientId, DeviceId, Epoch, KeyId, LogTime, PgId, PgIndex, PoolId, SdcId, SdsId, TokenId, VolumeEpoch,
    VolumeId,
};

use super::{
    rebuilds::{fill_all, fillable, filled},
    secrets::{rotate, sign},
    world::{GIB, POOL, World, create_sdc, create_volume, lost, map, member, register_sdc, returned},
};
use crate::{
    command::{Body, Request, proto},
    state::{
        State,
        limits::MAX_BAD_SOURCES,
        model::{
            BadSource, BadTokens, Flaws, JobId, JobState, Link, Moment, Pg, Pool, RebuildJob, Snapshot, SnapshotId,
            SnapshotState, Volume, WritePolicy,
        },
    },
};

const DONE: (PoolId, JobId) = (POOL, JobId(1));
/// Waits for the third SDS.
const REBUILD: (PoolId, JobId) = (POOL, JobId(2));
const SNAPSHOT: (VolumeId, SnapshotId) = (VolumeId(1), SnapshotId(1));
const PG: PgId = PgId { pool: POOL, index: PgIndex(0) };

/// A state with something in every table that `check` looks at.
fn good() -> State {
    let mut world = World::with_sds(3);
    world.ok(create_volume("v", GIB));
    world.ok(create_sdc("c"));
    world.ok(register_sdc("c", 1));
    world.ok(map("v", "c"));
    world.ok(Body::IssueTokens(proto::IssueTokens {
        sdc_id: 1,
        process_id: vec![1; 16],
        volume_ids: vec![1],
        plans: vec![],
    }));
    world.ok(Body::OpenClientSession(proto::OpenClientSession { name: "t".into() }));
    let request = Request { client: ClientId(1), sequence: 1.into(), low_water: 0.into() };
    world.say_once(request, create_sdc("d"));
    world.ok(super::snapshots::create_snapshot("v", "monday"));
    world.ok(super::snapshots::set_snapshot(1, 1, proto::SnapshotState::Ready));
    // One rebuild that is done, and one that has done something and waits.
    world.ok(lost(2, 2));
    world.ok(returned(2, 2, 1));
    fill_all(&mut world);
    world.ok(lost(3, 3));
    world.ok(returned(3, 3, 1));
    let first = fillable(&world)[0];
    filled(&mut world, first);
    world.ok(lost(3, 3));
    assert_eq!(world.state.check(), Ok(()));
    world.state
}

#[track_caller]
fn found(plant: impl FnOnce(&mut State), words: &str) {
    let mut state = good();
    plant(&mut state);
    state.refresh_names();
    state.refresh_sums();
    let verdict = state.check();
    assert!(verdict.as_ref().is_err_and(|why| why.contains(words)), "planted {words:?}, found {verdict:?}");
}

#[test]
fn check_finds_bad_sources_of_refused_tokens() {
    let row = |sdc: u32, told_at| BadTokens {
        source: BadSource { sdc: SdcId(sdc), address: [10, 0, 0, 1].into() },
        refused: Flaws::default(),
        told: Flaws::default(),
        told_at,
        first: LogTime(1),
        last: LogTime(1),
        by: SdsId(1),
    };
    found(|s| s.bad_tokens.put(row(1, None)), "nobody was told");
    let many = 0..=u32::try_from(MAX_BAD_SOURCES).unwrap() + 1;
    found(|s| many.for_each(|sdc| s.bad_tokens.put(row(sdc, Some(LogTime(1))))), "sources of refused tokens are kept");
}

#[test]
fn check_finds_bad_groups() {
    found(|s| s.pgs.update(PG, |pg| pg.replicas[1] = pg.replicas[0]), "two copies");
    found(|s| s.pgs.update(PG, |pg| pg.config.in_sync.clear()), "no in-sync copy");
    found(|s| s.pgs.update(PG, |pg| pg.config.primary = None), "although an in-sync copy is alive");
    found(|s| s.pgs.update(PG, |pg| pg.config.primary = Some(DeviceId(77))), "not an in-sync copy");
    found(|s| s.pgs.update(PG, |pg| pg.forgot = [DeviceId(77)].into()), "has forgotten");
    found(|s| s.pgs.update(PG, |pg| pg.forgot = [pg.config.in_sync[0].device].into()), "waits for memory");
    found(|s| s.pgs.update(PG, |pg| pg.config.in_sync[0].incarnation.0 = 9), "has not had");
    found(|s| s.pgs.update(PG, |pg| pg.config.in_sync.push(member(77, 1))), "no replica");
    found(|s| drop(s.pgs.remove(PG)), "of 8 groups placed");
    found(|s| s.pools.update(POOL, |pool| pool.pg_count = 16), "8 of 16 groups placed");
    found(|s| s.pools.update(POOL, |pool| pool.first_pg_count = 16), "was made with 16 groups and has 8");
    found(|s| s.pools.update(POOL, |pool| pool.first_pg_count = 3), "was made with 3 groups");
    found(|s| drop(s.devices.remove(DeviceId(1))), "not there");
    found(|s| s.devices.update(DeviceId(1), |d| d.alive = false), "not an in-sync copy that is alive");
    found(|s| s.devices.update(DeviceId(1), |d| d.lost_at = Some(LogTime(7))), "alive and lost");
    // A copy that moves to nowhere, to where another one is, and from where none is; one place too many.
    found(|s| s.pgs.update(PG, |pg| pg.leaving = Some(pg.replicas[0])), "replicas");
    found(
        |s| {
            s.pgs.update(PG, |pg| {
                pg.replicas.push(pg.replicas[1]);
                pg.leaving = Some(pg.replicas[0]);
            });
        },
        "where another one is",
    );
    found(
        |s| {
            s.pgs.update(PG, |pg| {
                pg.replicas.push(DeviceId(3));
                pg.leaving = Some(DeviceId(77));
            });
        },
        "where none is",
    );
    found(|s| s.pgs.update(PG, |pg| pg.replicas.push(DeviceId(3))), "replicas");
    found(|s| s.sums.moving.entry(POOL).or_default().extend([(DeviceId(1), 1)]), "no rebalance");
    // A move without regard to who is in sync.
    found(
        |s| {
            s.pgs.update(PG, |pg| {
                let primary = pg.config.primary;
                let to = (1..=3).map(DeviceId).find(|id| !pg.replicas.contains(id)).unwrap();
                pg.replicas.iter_mut().filter(|device| Some(**device) == primary).for_each(|device| *device = to);
            });
        },
        "in sync and no replica",
    );
    found(
        |s| {
            for id in 1..=3 {
                s.sds.update(id.into(), |sds| sds.fault_set = Some(1.into()));
            }
        },
        "strange fault set",
    );
}

#[test]
fn check_finds_bad_names_volumes_sessions_and_tokens() {
    found(
        |s| {
            let twin = Volume { id: VolumeId(9), ..s.volumes.get(VolumeId(1)).unwrap().clone() };
            s.volumes.put(twin);
        },
        "name",
    );
    found(|s| s.volumes.update(VolumeId(1), |v| v.size = ByteCount(1)), "bad size");
    found(|s| s.sums.provisioned.clear(), "bytes of pools");
    found(|s| s.sums.capacity.clear(), "bytes of pools");
    found(|s| drop(s.volumes.remove(VolumeId(1))), "mapped and not there");
    found(|s| drop(s.sdcs.remove(SdcId(1))), "not there");
    found(|s| s.sessions.update(ClientId(1), |session| session.kept = 7), "counts 7 outcomes");
    found(|s| drop(s.sessions.remove(ClientId(1))), "no session");
    found(|s| s.tokens.update(TokenId(1), |token| token.link = Link([1; 32])), "hash chain");
    found(|s| s.pools.update(POOL, |pool| pool.used = false), "placed anew");
}

/// A rebuild that differs from the groups in any way is found: they are what it is derived from.
#[test]
fn check_finds_bad_rebuilds_and_snapshots() {
    found(|s| s.sums.missing.clear(), "differ from the groups");
    found(|s| s.jobs.update(REBUILD, |job| job.groups_left += 1), "says");
    found(|s| s.jobs.update(REBUILD, |job| job.state = JobState::Running), "says");
    found(|s| s.jobs.update(REBUILD, |job| job.state = JobState::Done), "half finished");
    found(|s| drop(s.jobs.remove(REBUILD)), "has no rebuild");
    found(|s| s.jobs.update(REBUILD, |job| job.done_before = 9), "done less than before");
    found(
        |s| {
            let newer = RebuildJob { id: JobId(3), ..s.jobs.get(REBUILD).unwrap().clone() };
            s.jobs.put(newer);
        },
        "a newer one",
    );
    found(
        |s| {
            let job = s.jobs.remove(REBUILD).unwrap();
            s.jobs.put(RebuildJob { id: JobId(3), ..job });
        },
        "never given out",
    );
    found(
        |s| {
            let of_nobody = RebuildJob { pool: 9.into(), ..s.jobs.get(REBUILD).unwrap().clone() };
            s.jobs.put(of_nobody);
        },
        "no such pool",
    );
    // A group that became whole without anybody noticing.
    found(
        |s| {
            let all: Vec<PgId> = s.pgs.values().map(|pg| pg.id).collect();
            for id in all {
                s.pgs.update(id, |pg| pg.replicas.retain(|device| device.get() != 3));
            }
            let pool = s.pools.get(POOL).unwrap().clone();
            s.pools.put(Pool { copies: 1, ..pool });
            s.pgs.values().map(|pg| pg.id).collect::<Vec<_>>().into_iter().for_each(|id| {
                s.pgs.update(id, |pg| {
                    let primary = pg.config.primary.unwrap();
                    pg.replicas.retain(|device| *device == primary);
                    pg.config.in_sync.retain(|member| member.device == primary);
                });
            });
        },
        "is whole",
    );
    let twin = |s: &mut State| {
        let twin = Snapshot { id: SnapshotId(2), ..s.snapshots.get(SNAPSHOT).unwrap().clone() };
        s.snapshots.put(twin);
    };
    found(twin, "two snapshots");
    found(
        |s| {
            let orphan = Snapshot { volume: VolumeId(7), ..s.snapshots.get(SNAPSHOT).unwrap().clone() };
            s.snapshots.put(orphan);
        },
        "which is not there",
    );
}

#[test]
fn check_finds_secrets_that_do_not_fit_their_tokens() {
    let forget = |s: &mut State| {
        s.secrets.remove(KeyId(1));
    };
    found(forget, "generation that signs is missing");
    found(|s| s.secrets.update(KeyId(1), |row| row.last_expiry = Some(LogTime(5))), "missing or retired");
    let mut rotated = World { state: good(), revision: 1_000, now: 2_000, ..World::default() };
    rotated.ok(rotate());
    rotated.ok(sign(2));
    let mut state = rotated.state;
    state.secrets.update(KeyId(1), |row| row.last_expiry = Some(LogTime(5)));
    assert!(state.check().unwrap_err().contains("outlives its secret"));
}

/// S14: under the volatility id of before.
fn all_restart(state: &mut State) {
    state.pools.update(POOL, |pool| pool.write_policy = WritePolicy::Writeback);
    state.pgs.update(PG, |pg| {
        pg.config.epoch = pg.config.epoch.next();
        pg.config.in_sync.iter_mut().for_each(|member| member.incarnation = member.incarnation.next());
    });
}

#[test]
fn check_step_finds_what_does_not_grow() {
    let step = |plant: fn(&mut State)| {
        let mut state = good();
        plant(&mut state);
        state.check_step()
    };
    assert_eq!(step(|_| {}), Ok(()));
    type Plant = fn(&mut State);
    let steps: [(Plant, &str); 18] = [
        (|s| s.pgs.update(PG, |pg| pg.config.primary = None), "epoch"),
        (|s| s.pgs.update(PG, |pg| pg.config.epoch = Epoch(0)), "epoch"),
        (all_restart, "served without its memory"),
        (|s| s.devices.update(DeviceId(1), |d| d.incarnation.0 = 0), "older life"),
        (|s| s.devices.update(DeviceId(1), |d| d.alive = false), "nobody knows since when"),
        (|s| s.devices.update(DeviceId(3), |d| d.lost_at = Some(LogTime(5))), "since another time"),
        // The third is away, so the first has the only copy of some groups.
        (|s| s.sds.update(1.into(), |sds| sds.maintenance = Some(Moment::default())), "has the only copy"),
        (enter_and_lead, "leads pg"),
        (give_up_in_sync, "gave up the place of a copy that was in sync"),
        // A doubling that forgets something.
        (|s| s.pools.update(POOL, |pool| pool.first_pg_count = 4), "made with another number"),
        (|s| s.pools.update(POOL, |pool| pool.pg_count = 4), "from 8 groups to 4"),
        (|s| s.pools.update(POOL, |pool| pool.pg_count = 16), "groups of an epoch of before"),
        (|s| double_but(s, |pg| pg.config.epoch.0 += 1), "differs from pg 1.0"),
        (|s| double_but(s, |pg| pg.config.primary = None), "differs from pg 1.0"),
        (|s| s.volumes.update(VolumeId(1), |v| v.epoch = VolumeEpoch(0)), "older epoch"),
        (|s| s.snapshots.update(SNAPSHOT, |snapshot| snapshot.state = SnapshotState::Preparing), "went from"),
        (|s| s.jobs.update(REBUILD, |job| job.groups_done = 0), "undone"),
        (|s| s.jobs.update(DONE, |job| job.groups_done = 9), "after it was done"),
    ];
    for (plant, words) in steps {
        let verdict = step(plant);
        assert!(verdict.as_ref().is_err_and(|why| why.contains(words)), "planted {words:?}, found {verdict:?}");
    }
}

/// Everything is in sync on another SDS, and the one that may stop leads on.
fn enter_and_lead(state: &mut State) {
    let alone: Vec<PgId> = state.pgs.values().filter(|pg| pg.config.in_sync.len() == 1).map(|pg| pg.id).collect();
    for id in alone {
        state.pgs.remove(id);
    }
    state.sds.update(1.into(), |sds| sds.maintenance = Some(Moment::default()));
}

/// A doubling, and one half of a group is something else.
fn double_but(state: &mut State, plant: impl FnOnce(&mut Pg)) {
    state.double(POOL);
    state.pgs.update(PgId { index: PgIndex(8), ..PG }, plant);
}

/// A move of a copy that is in sync: its writes may be nowhere else.
fn give_up_in_sync(state: &mut State) {
    let in_sync = |pg: &&Pg| pg.config.in_sync.len() == 2;
    let pg = state.pgs.values().find(in_sync).expect("some are whole").clone();
    let from = pg.config.in_sync[1].device;
    let to = state.devices.keys().find(|id| !pg.replicas.contains(id)).expect("three devices");
    state.pgs.update(pg.id, |pg| {
        pg.config.epoch = pg.config.epoch.next();
        pg.config.in_sync.truncate(1);
        pg.replicas.iter_mut().filter(|device| **device == from).for_each(|device| *device = to);
    });
}

#[test]
fn a_damaged_row_stops_the_load() {
    let state = good();
    for cut in 0..3_usize {
        let rows = state.dump().into_iter().map(|(table, key, value)| {
            let value = match cut {
                0 => value[..value.len().min(1) / 2].into(),
                1 => [&[99][..], &value[1..]].concat().into(),
                _ => [&value[..], &[0xff]].concat().into(),
            };
            (table, key, value)
        });
        assert!(State::load(rows).is_err(), "damage {cut} was loaded");
    }
}
