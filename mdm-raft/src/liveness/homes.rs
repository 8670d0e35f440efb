//! New homes for copies whose devices have been lost for longer than `rebuild.delay_ms`.
//!
//! The plan is made anew from the state at each look, and nothing is remembered between looks: a new leader just goes on,
//! and what was refused because the state moved on is planned again. Each look sends one command per pool at most, so
//! that a device with thousands of groups does not stop the IO of all at once; groups with the fewest copies go first.
//! Copies on living devices are never moved, however uneven that leaves them.
//!
//! Copies on living devices that cannot be filled there for want of room are given another place in the same way, as soon as
//! the primary of the group says so (`without_room`); a move to such a device is called off.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use pflex_proto::ids::{DeviceId, Epoch, LogTime, PgId, PgIndex, PoolId};

use crate::{
    command::{Body, proto},
    placement::{self, Candidate, Copies, FaultDomain, Orphan},
    raft::RaftGroup,
    state::{Outlook, Places, State, limits::MAX_MOVES},
};

/// Copies that cannot be filled where they belong, because there is no room.
pub(crate) type Refused = BTreeSet<(PgId, DeviceId)>;

/// How often the leader looks.
pub(super) const LOOK: Duration = Duration::from_secs(1);

/// A pool with copies that are to get new homes now.
#[derive(Debug)]
pub(crate) struct Homeless {
    pool: PoolId,
    copies: usize,
    /// By position: number, epoch, copies in sync.
    pgs: Vec<(PgIndex, Epoch, usize)>,
    groups: Vec<Copies>,
    domains: BTreeMap<DeviceId, FaultDomain>,
    candidates: Vec<Candidate>,
    orphans: Vec<Orphan>,
    /// Of `without_room` alone: what goes nowhere.
    nowhere: Vec<Orphan>,
    known: BTreeSet<DeviceId>,
    kind: proto::MoveKind,
}

impl Homeless {
    /// All pools that have some.
    pub(crate) fn all(state: &State, now: LogTime) -> Vec<Self> {
        // Most looks find every group whole, and cost a look at each pool's sum.
        let lacking = state.all_pools().filter(|pool| {
            let lost = |device: &DeviceId| state.device(*device).is_some_and(|device| !device.alive);
            state.missing_in(pool.id).is_some_and(|missing| missing.copies.keys().any(lost))
        });
        lacking.filter_map(|pool| Self::of(state, pool.id, now)).collect()
    }

    fn of(state: &State, pool: PoolId, now: LogTime) -> Option<Self> {
        let places = state.places_of(pool, now);
        let mut orphans = Vec::new();
        for (group, pg) in state.pgs_of(pool).enumerate() {
            let due = |device: &&DeviceId| state.outlook(pg, **device, &places) == Some(Outlook::Due);
            orphans.extend(pg.replicas.iter().filter(due).map(|from| Orphan { group, from: *from }));
        }
        if orphans.is_empty() { None } else { Self::planned(state, pool, &places, orphans, proto::MoveKind::Lost) }
    }

    /// What follows from that these devices had no room for the copies of these groups, as their primaries say.
    pub(crate) fn without_room(state: &State, refused: &Refused, now: LogTime) -> Vec<Self> {
        let mut pools: BTreeMap<PoolId, BTreeSet<(PgId, DeviceId)>> = BTreeMap::new();
        refused.iter().for_each(|(pg, device)| _ = pools.entry(pg.pool).or_default().insert((*pg, *device)));
        pools.into_iter().filter_map(|(pool, refused)| Self::refused_in(state, pool, &refused, now)).collect()
    }

    fn refused_in(state: &State, pool: PoolId, refused: &Refused, now: LogTime) -> Option<Self> {
        let mut places = state.places_of(pool, now);
        if places.hold().is_some() {
            return None;
        }
        // None of them has room for another one's copies, either.
        places.without_room.extend(refused.iter().map(|(_, device)| *device));
        let (mut orphans, mut nowhere) = (Vec::new(), Vec::new());
        for (group, pg) in state.pgs_of(pool).enumerate() {
            for from in state.joiners(pg).map(|device| device.id).filter(|from| refused.contains(&(pg.id, *from))) {
                let goes_nowhere = pg.newcomer() == Some(from);
                let list = if goes_nowhere { &mut nowhere } else { &mut orphans };
                list.push(Orphan { group, from });
            }
        }
        if orphans.is_empty() && nowhere.is_empty() {
            return None;
        }
        let mut planned = Self::planned(state, pool, &places, orphans, proto::MoveKind::NoRoom)?;
        // Said once: one that keeps its place is known to have none.
        let known = |from: DeviceId| state.device(from).is_some_and(|row| row.without_room(now).is_some());
        planned.nowhere = nowhere;
        planned.known = planned.orphans.iter().map(|orphan| orphan.from).filter(|from| known(*from)).collect();
        Some(planned)
    }

    fn planned(
        state: &State,
        pool: PoolId,
        places: &Places,
        orphans: Vec<Orphan>,
        kind: proto::MoveKind,
    ) -> Option<Self> {
        let devices = state.all_devices().filter(|device| device.pool == Some(pool));
        Some(Self {
            pool,
            copies: state.pool(pool)?.copies as usize,
            pgs: state.pgs_of(pool).map(|pg| (pg.id.index, pg.config.epoch, pg.config.in_sync.len())).collect(),
            groups: state.pgs_of(pool).map(|pg| pg.replicas.clone()).collect(),
            domains: devices.filter_map(|d| Some((d.id, state.sds(d.sds)?.fault_domain()))).collect(),
            candidates: places.with_room(),
            orphans,
            nowhere: Vec::new(),
            known: BTreeSet::new(),
            kind,
        })
    }

    /// The next command; none when no orphan can have another home.
    pub(crate) fn command(&self) -> Option<Body> {
        let Self { pool, copies, groups, candidates, domains, orphans, .. } = self;
        let mut moves = placement::rehome(*pool, groups, *copies, candidates, domains, orphans);
        if self.kind == proto::MoveKind::NoRoom {
            let nowhere = |orphan: &Orphan| placement::Move { group: orphan.group, from: orphan.from, to: DeviceId(0) };
            let homeless = |orphan: &&Orphan| {
                // Another one of the group goes first: its epoch is not this one any more then.
                let goes = moves.iter().any(|step| step.group == orphan.group);
                !goes && !self.known.contains(&orphan.from)
            };
            let stay: Vec<_> = orphans.iter().filter(homeless).chain(&self.nowhere).map(nowhere).collect();
            moves.extend(stay);
        }
        moves.sort_by_key(|step| (self.pgs[step.group].2, *step));
        moves.truncate(MAX_MOVES);
        let of = |group: usize| (self.pgs[group].0, self.pgs[group].1);
        (!moves.is_empty()).then(|| message(*pool, self.kind, &moves, of, 0))
    }
}

/// These moves as a command, with the number of each group and the epoch that the planner saw.
pub(super) fn message(
    pool: PoolId,
    kind: proto::MoveKind,
    moves: &[placement::Move],
    of: impl Fn(usize) -> (PgIndex, Epoch),
    left: u32,
) -> Body {
    let step = |step: &placement::Move| {
        let (index, epoch) = of(step.group);
        proto::CopyMove {
            index: index.get(),
            expected_epoch: epoch.get(),
            from_device_id: step.from.get(),
            to_device_id: step.to.get(),
        }
    };
    let moves = moves.iter().map(step).collect();
    Body::MoveCopies(proto::MoveCopies { pool_id: pool.get(), kind: kind.into(), moves, left })
}

/// What there is to do now. Planned on a thread of its own: thousands of groups over hundreds of devices take a while,
/// and verdicts do not wait for it.
pub(super) async fn commands(group: &RaftGroup) -> Vec<Body> {
    let now = group.log_time();
    plan(group.read_stale(|state| Homeless::all(state, now)).1).await
}

/// The same of copies for which there was no room.
pub(super) async fn without_room(group: &RaftGroup, refused: Refused) -> Vec<Body> {
    if refused.is_empty() {
        return Vec::new();
    }
    let now = group.log_time();
    plan(group.read_stale(|state| Homeless::without_room(state, &refused, now)).1).await
}

async fn plan(homeless: Vec<Homeless>) -> Vec<Body> {
    if homeless.is_empty() {
        return Vec::new();
    }
    let planned = tokio::task::spawn_blocking(move || homeless.iter().filter_map(Homeless::command).collect());
    planned.await.unwrap_or_else(|why| {
        tracing::error!("planning new homes: {why}");
        Vec::new()
    })
}
