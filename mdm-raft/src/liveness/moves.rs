//! Copies on living devices that move: away from devices that are being drained, and to where they make the shares of a
//! pool even, after a device or a server came, or came back empty.
//!
//! Planned anew from the state at each look, like new homes of lost copies: a new leader goes on where the last one was.
//! What is lost comes first: only groups that lack nothing move, and a pool is evened out only while none of its groups
//! lacks anything, nobody is in maintenance, and every device has stayed for a while. A drain goes before a rebalance. A few
//! groups move at a time (`rebalance.groups_per_device`), so that devices have time for their clients.

use std::collections::{BTreeMap, BTreeSet};

use pflex_proto::ids::{DeviceId, Epoch, LogTime, PgIndex, PoolId, Revision};

use super::{homes, leads::Looks};
use crate::{
    command::{Body, proto},
    placement::{self, Candidate, Copies, FaultDomain, Orphan},
    raft::RaftGroup,
    state::{
        State,
        limits::MAX_MOVES,
        model::{Device, JobKind, Pg, Pool, Setting},
    },
};

/// What decides whether the copies of a pool are even: when groups changed last, and who may hold how much.
pub(super) type Shape = (Revision, Vec<(DeviceId, u64)>);

/// A pool in which copies may have to move.
#[derive(Debug)]
pub(crate) struct Moving {
    pool: PoolId,
    copies: usize,
    /// By position: number, epoch, primary.
    pgs: Vec<(PgIndex, Epoch, Option<DeviceId>)>,
    /// Where their copies are when nothing moves any more.
    groups: Vec<Copies>,
    /// Groups that may begin to move now.
    free: Vec<bool>,
    domains: BTreeMap<DeviceId, FaultDomain>,
    candidates: Vec<Candidate>,
    /// Those that are given nothing now.
    without_room: BTreeSet<DeviceId>,
    /// Copies on devices that are being drained.
    orphans: Vec<Orphan>,
    /// To be evened out, if there is nothing to drain.
    balance: Option<Shape>,
    /// What the open rebalance says that is still to begin.
    planned: Option<u32>,
    /// How many groups each device fills, or is being filled in.
    busy: BTreeMap<DeviceId, u32>,
    most: u32,
}

impl Moving {
    /// All pools in which there may be something to do.
    pub(crate) fn all(state: &State, looks: &Looks, now: LogTime) -> Vec<Self> {
        let used = state.all_pools().filter(|pool| pool.used && state.pgs_of(pool.id).next().is_some());
        // Once for all pools: this runs each second.
        let mut devices: BTreeMap<PoolId, Vec<&Device>> = BTreeMap::new();
        for device in state.all_devices() {
            if let Some(pool) = device.pool {
                devices.entry(pool).or_default().push(device);
            }
        }
        let of = |pool: &Pool| Self::of(state, looks, pool, devices.get(&pool.id).map_or(&[], Vec::as_slice), now);
        used.filter_map(of).collect()
    }

    fn of(state: &State, looks: &Looks, pool: &Pool, devices: &[&Device], now: LogTime) -> Option<Self> {
        let id = pool.id;
        if pool.rebuild.paused {
            return None;
        }
        let drains = state.draining_in(id).next().is_some();
        let balance = Self::balance(state, looks, pool, devices, now);
        if !drains && balance.is_none() {
            return None;
        }
        let places = state.places_of(id, now);
        if places.hold().is_some() {
            return None;
        }
        let mut orphans = Vec::new();
        for device in state.draining_in(id) {
            for (group, pg) in state.pgs_of(id).enumerate().filter(|(_, pg)| pg.replicas.contains(&device.id)) {
                if pg.leaving.is_none() && state.stuck(pg, device, &places).is_none() {
                    orphans.push(Orphan { group, from: device.id });
                }
            }
        }
        orphans.sort();
        Some(Self {
            pool: id,
            copies: pool.copies as usize,
            pgs: state.pgs_of(id).map(|pg| (pg.id.index, pg.config.epoch, pg.config.primary)).collect(),
            groups: state.pgs_of(id).map(|pg| pg.places().collect()).collect(),
            free: state.pgs_of(id).map(|pg| pg.leaving.is_none() && pg.is_whole()).collect(),
            domains: devices.iter().filter_map(|d| Some((d.id, state.sds(d.sds)?.fault_domain()))).collect(),
            candidates: places.candidates,
            without_room: places.without_room,
            orphans,
            balance,
            planned: state.open_job(id, JobKind::Rebalance).map(|job| job.planned),
            busy: busy(state, id),
            most: u32::try_from(state.settings().get(Setting::MovesPerDevice)).unwrap_or(u32::MAX),
        })
    }

    /// Whether a pool is to be evened out now, if it is not known to be even.
    fn balance(state: &State, looks: &Looks, pool: &Pool, devices: &[&Device], now: LogTime) -> Option<Shape> {
        let wanted = state.open_job(pool.id, JobKind::Rebalance).is_some();
        if !wanted && (pool.left_alone || state.settings().get(Setting::RebalanceAuto) == 0) {
            return None;
        }
        // All that are there, as `State::candidates` is when nobody is in maintenance.
        let stay = || devices.iter().filter(|device| device.draining.is_none());
        // What is to leave comes first, and waits for what it waits for (maintenance, say).
        let leaves = |device: &&&Device| {
            device.draining.is_some() && state.pgs_of(pool.id).any(|pg| pg.places().any(|place| place == device.id))
        };
        if stay().any(|device| state.is_in_maintenance(device.sds))
            || state.missing_in(pool.id).is_some()
            || devices.iter().any(|device| leaves(&device))
        {
            return None;
        }
        let shape = (
            state.pgs_of(pool.id).map(|pg| pg.since).max().unwrap_or_default(),
            stay()
                .filter(|device| device.alive)
                // One that has room again is looked at again.
                .map(|d| (d.id, if d.without_room(now).is_some() { 0 } else { d.capacity.get() }))
                .collect(),
        );
        if !wanted && looks.is_even(pool.id, &shape) {
            return None;
        }
        let calm = state.pgs_of(pool.id).all(|pg| pg.config.primary.is_some())
            && shape.1.iter().all(|(device, _)| looks.has_settled(*device));
        calm.then_some(shape)
    }

    /// The next command; none when nothing can move now. Says besides whether the pool is found even.
    pub(crate) fn command(&self) -> (Option<Body>, bool) {
        if !self.orphans.is_empty() {
            let Self { pool, copies, groups, candidates, without_room, domains, orphans, .. } = self;
            let has_room = |candidate: &&Candidate| !without_room.contains(&candidate.device);
            let candidates: Vec<Candidate> = candidates.iter().filter(has_room).copied().collect();
            let moves = placement::rehome(*pool, groups, *copies, &candidates, domains, orphans);
            let moves = self.some_of(moves);
            return (self.message(proto::MoveKind::Drain, &moves, 0), false);
        }
        if self.balance.is_none() {
            return (None, false);
        }
        let plan = placement::plan(&self.groups, self.copies, &self.candidates);
        // Their shares count, or they would give up what they have; only nothing comes to them.
        let mut all = plan.map(|plan| plan.moves).unwrap_or_default();
        all.retain(|step| !self.without_room.contains(&step.to));
        let (total, even) = (all.len(), all.is_empty());
        let moves = self.some_of(all);
        let left = u32::try_from(total - moves.len()).unwrap_or(u32::MAX);
        // An open job is told that there is nothing more to begin.
        let over = even && self.planned.is_some_and(|planned| planned > 0);
        let body = self.message(proto::MoveKind::Balance, &moves, left);
        let closing =
            || homes::message(self.pool, proto::MoveKind::Balance, &[], |at| (self.pgs[at].0, self.pgs[at].1), 0);
        (body.or_else(|| over.then(closing)), even)
    }

    /// Those that may begin now: no device fills, or is filled in, more groups than it should.
    fn some_of(&self, moves: Vec<placement::Move>) -> Vec<placement::Move> {
        let mut busy = self.busy.clone();
        let mut begun = Vec::new();
        let mut groups = BTreeSet::new();
        for step in moves {
            let Some(primary) = self.pgs[step.group].2 else { continue };
            let free = |device| busy.get(&device).copied().unwrap_or(0) < self.most;
            if begun.len() < MAX_MOVES
                && self.free[step.group]
                && free(primary)
                && free(step.to)
                && groups.insert(step.group)
            {
                *busy.entry(primary).or_default() += 1;
                *busy.entry(step.to).or_default() += 1;
                begun.push(step);
            }
        }
        begun
    }

    fn message(&self, kind: proto::MoveKind, moves: &[placement::Move], left: u32) -> Option<Body> {
        let of = |group: usize| (self.pgs[group].0, self.pgs[group].1);
        (!moves.is_empty()).then(|| homes::message(self.pool, kind, moves, of, left))
    }
}

/// Copies being filled count, whatever they are filled for.
fn busy(state: &State, pool: PoolId) -> BTreeMap<DeviceId, u32> {
    let mut busy = BTreeMap::new();
    let mut fills = |pg: &Pg| {
        for device in state.joiners(pg) {
            for id in pg.config.primary.into_iter().chain([device.id]) {
                *busy.entry(id).or_default() += 1;
            }
        }
    };
    state.pgs_of(pool).for_each(&mut fills);
    busy
}

/// What there is to do now, planned on a thread of its own as new homes are.
pub(super) async fn commands(group: &RaftGroup, looks: &mut Looks) -> Vec<Body> {
    let now = group.log_time();
    let moving = group.read_stale(|state| Moving::all(state, looks, now)).1;
    if moving.is_empty() {
        return Vec::new();
    }
    let planned = tokio::task::spawn_blocking(move || {
        moving.into_iter().map(|pool| (pool.command(), pool.pool, pool.balance)).collect::<Vec<_>>()
    });
    let planned = planned.await.unwrap_or_else(|why| {
        tracing::error!("planning moves: {why}");
        Vec::new()
    });
    let mut bodies = Vec::new();
    for ((body, even), pool, shape) in planned {
        if let Some(shape) = shape.filter(|_| even) {
            looks.found_even(pool, shape);
        }
        bodies.extend(body);
    }
    bodies
}
