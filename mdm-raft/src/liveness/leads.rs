//! Leads even out again: who returned after a loss, a restart or a maintenance, and who is new, leads nothing at first.
//!
//! Planned from the state at each look. What is remembered besides is since when each device has been in service, as this
//! leader has seen: one that comes and goes gets nothing until it has stayed, the longer the more often its server was
//! lost within the hour. Leads that are off by one stay where they are, and a plan ends where the next one finds nothing
//! to do, so they never swing. Each move stops its group for as long as leases take to be handed back: a few at a time.

use std::collections::{BTreeMap, BTreeSet};

use pflex_proto::ids::{DeviceId, Incarnation, LogTime, PoolId, Revision};

use super::moves::Shape;
use crate::{
    command::{Body, proto},
    placement::{self, Copies},
    raft::RaftGroup,
    state::{
        State,
        model::{Device, Pg, Pool, Setting},
    },
};

/// Leads of a pool that move at a look at most; of a pool with many groups a part of them.
const AT_ONCE: usize = 16;
const PART_AT_ONCE: usize = 32;

/// What one leadership remembers between its looks.
#[derive(Debug, Default)]
pub(crate) struct Looks {
    /// Since when each device is in service in its present life.
    since: BTreeMap<DeviceId, (Incarnation, LogTime)>,
    /// Who could lead at the last look.
    able: BTreeSet<DeviceId>,
    /// Pools whose leads were even then, and by when their groups had last changed.
    even: BTreeMap<PoolId, Revision>,
    /// Pools whose copies were even when last looked at.
    level: BTreeMap<PoolId, Shape>,
}

impl Looks {
    /// Which devices have stayed long enough to be given something.
    pub(crate) fn settled(&mut self, state: &State, now: LogTime) -> BTreeSet<DeviceId> {
        let serves = |device: &&Device| device.alive && !state.is_in_maintenance(device.sds);
        self.since
            .retain(|id, (life, _)| state.device(*id).filter(serves).is_some_and(|device| device.incarnation == *life));
        let wait = state.settings().get(Setting::LeadReturn);
        let settled = |device: &&Device| {
            let (_, since) = *self.since.entry(device.id).or_insert((device.incarnation, now));
            let stayed = now.get().saturating_sub(since.get());
            stayed >= wait.saturating_mul(1 + u64::from(state.losses_of(device.sds)[1]))
        };
        state.all_devices().filter(serves).filter(settled).map(|device| device.id).collect()
    }

    /// Whether a device had stayed long enough at the last look.
    pub(super) fn has_settled(&self, device: DeviceId) -> bool {
        self.able.contains(&device)
    }

    /// Whether the copies of a pool of this shape are known to be even.
    pub(super) fn is_even(&self, pool: PoolId, shape: &Shape) -> bool {
        self.level.get(&pool) == Some(shape)
    }

    pub(crate) fn found_even(&mut self, pool: PoolId, shape: Shape) {
        self.level.insert(pool, shape);
    }

    /// Notes who could lead at this look.
    pub(crate) fn look(&mut self, state: &State, now: LogTime) {
        let able = self.settled(state, now);
        if able != self.able {
            self.even.clear();
            self.able = able;
        }
    }

    /// What to move at this look.
    pub(crate) fn commands(&mut self, state: &State, now: LogTime) -> Vec<Body> {
        self.look(state, now);
        if state.is_recovering() || state.eviction_hold().is_some_and(|hold| hold.is_recent(now)) {
            return Vec::new();
        }
        let mut commands = Vec::new();
        for pool in state.all_pools().filter(|pool| pool.used && pool.copies > 1) {
            let changed = state.pgs_of(pool.id).map(|pg| pg.since).max().unwrap_or_default();
            if self.even.get(&pool.id) == Some(&changed) {
                continue;
            }
            match moves(state, pool, &self.able) {
                moves if moves.is_empty() => drop(self.even.insert(pool.id, changed)),
                moves => commands.push(Body::MoveLeads(proto::MoveLeads { pool_id: pool.id.get(), moves })),
            }
        }
        commands
    }
}

fn moves(state: &State, pool: &Pool, able: &BTreeSet<DeviceId>) -> Vec<proto::LeadMove> {
    let pgs: Vec<&Pg> = state.pgs_of(pool.id).filter(|pg| pg.config.primary.is_some()).collect();
    let groups: Vec<Copies> = pgs.iter().map(|pg| may_lead(state, pg, able)).collect();
    let most = AT_ONCE.max(pgs.len() / PART_AT_ONCE);
    let step = |(at, to): (usize, DeviceId)| proto::LeadMove {
        index: pgs[at].id.index.get(),
        expected_epoch: pgs[at].config.epoch.get(),
        to_device_id: to.get(),
    };
    placement::even_leads(&groups, most).into_iter().map(step).collect()
}

/// The primary of a group, and who may take over. Nobody while a copy is being filled: that would begin anew.
fn may_lead(state: &State, pg: &Pg, able: &BTreeSet<DeviceId>) -> Copies {
    let primary = pg.config.primary;
    let others = pg.config.in_sync.iter().filter(|member| Some(member.device) != primary);
    let takes =
        |device: &DeviceId| able.contains(device) && !state.is_draining(*device) && state.joiners(pg).next().is_none();
    primary.into_iter().chain(others.map(|member| member.device).filter(takes)).collect()
}

/// What there is to do now.
pub(super) fn commands(group: &RaftGroup, looks: &mut Looks) -> Vec<Body> {
    let now = group.log_time();
    group.read_stale(|state| looks.commands(state, now)).1
}
