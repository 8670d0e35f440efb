//! Placement groups: who serves them, and how that changes. Every change raises the epoch by one (I3).
//!
//! Four ways lead to a new configuration: the MDM reacts to devices that come and go (`settle_pgs`), a primary
//! proposes one (`reconfigure_pgs`, S3), a pool that never held anything is placed (`place_pool`), and copies get
//! another place (`moves`).

use std::collections::{BTreeMap, BTreeSet};

use pflex_proto::ids::{
    DeviceId, Epoch, Incarnation, Member, PgId, PgIndex, PoolId, ProcessId, Revision, SdsId, VolatilityId,
};

use super::{Effect, Refusal, validate};
use crate::{
    command::{Answer, ErrorCode, proto},
    placement,
    state::{
        State,
        limits::MAX_BATCH,
        model::{Pg, PgConfig, Registration, WritePolicy},
        moving::Homes,
    },
};

/// How many groups each device is primary of.
pub(super) type PrimaryCounts = BTreeMap<DeviceId, u32>;

/// A device that was opened again with all it had.
#[derive(Clone, Copy, Debug)]
pub(super) struct Restart {
    /// The life that had registered before.
    pub(super) before: Incarnation,
    /// The new one.
    pub(super) now: Incarnation,
}

/// By device.
pub(super) type Restarts = BTreeMap<DeviceId, Restart>;

impl State {
    /// Makes every group with a copy on a `touched` device follow what is alive now, in one step (ARCHITECTURE 6):
    /// - a copy whose device `restarted` keeps its place under its new life (S2), from one life to the next: a life that
    ///   was left behind when its device came back empty (S13) is followed by none;
    /// - of a writeback pool such a copy has lost what was acknowledged and not flushed (S14): it leaves while one that
    ///   kept its memory is alive, nobody serves while one that is away may have kept it, and when none has it stays. As
    ///   long as it may yet be chosen (S11) it is known to have forgotten; whoever is chosen so has another memory;
    /// - copies that are not alive leave, as long as one that is remains;
    /// - where none is alive nothing leaves, and there is no primary: unavailable, never a stale copy promoted;
    /// - where none is alive, but one that has everything all the same, those in sync are the ones that do (S11);
    /// - a primary that is alive stays; else the live in-sync copy with the fewest primaries takes over;
    /// - a copy that moves stays where it is when its new home is lost, or when nobody serves (`state::moving`);
    /// - after a restore (S19) nothing leaves and nobody serves until the operator says that all have reported.
    pub(super) fn settle_pgs(&mut self, touched: &BTreeSet<DeviceId>, restarted: &Restarts) {
        let hit: Vec<PgId> = self
            .pgs
            .values()
            .filter(|pg| {
                let complete = pg.complete().iter().map(|member| member.device);
                complete.chain(pg.newcomer()).any(|device| touched.contains(&device))
            })
            .map(|pg| pg.id)
            .collect();
        let recovering = self.is_recovering();
        let mut primaries = self.primary_counts();
        let follow = |member: &mut Member| {
            if let Some(life) = restarted.get(&member.device).filter(|life| life.before == member.incarnation) {
                member.incarnation = life.now;
            }
        };
        for id in hit {
            let forgot = self.note_forgetful(id, restarted);
            self.follow_holders(id, follow);
            let Some(pg) = self.pgs.get(id) else { continue };
            let config = &pg.config;
            let mut in_sync = config.in_sync.clone();
            in_sync.iter_mut().for_each(follow);
            if recovering {
                self.open_epoch(id, in_sync, None);
                continue;
            }
            let alive = self.who_goes_on(pg, &in_sync, &forgot);
            let primary = config
                .primary
                .filter(|device| alive.iter().any(|member| member.device == *device))
                .or_else(|| self.successor(&alive, &primaries));
            if !alive.is_empty() {
                in_sync = alive;
            }
            if config.primary != primary {
                count_move(&mut primaries, config.primary, primary);
            }
            let is_there = |device| self.devices.get(device).is_some_and(|device| device.alive);
            let goes_on = primary.is_some() && pg.newcomer().is_none_or(is_there);
            let homes = if goes_on { pg.homes() } else { pg.called_off() };
            self.open_epoch_on(id, homes, in_sync, primary);
            // One that restarted and left has everything but memory.
            self.follow_holders(id, follow);
            if primary.is_some() {
                // S12: the copy that was to be given up is here.
                self.thaw(id);
            }
        }
    }

    fn follow_holders(&mut self, id: PgId, follow: impl Fn(&mut Member)) {
        if self.pgs.get(id).is_some_and(|pg| !pg.is_activated()) {
            self.pgs.update(id, |pg| pg.holders.iter_mut().for_each(follow));
        }
    }

    /// The live copies that go on as the in-sync ones; none: nobody may.
    fn who_goes_on(&self, pg: &Pg, in_sync: &[Member], forgot: &BTreeSet<DeviceId>) -> Vec<Member> {
        let alive = |members: &[Member]| -> Vec<Member> {
            members.iter().copied().filter(|member| self.is_alive(member)).collect()
        };
        // S11: when no one in sync can, those that were when somebody answered last.
        let choices = [alive(in_sync), alive(&pg.holders)];
        let knows = |member: &Member| !forgot.contains(&member.device);
        for choice in &choices {
            if choice.iter().any(knows) {
                return choice.iter().copied().filter(knows).collect();
            }
        }
        let mut all = in_sync.iter().chain(&pg.holders);
        if !forgot.is_empty() && all.any(|member| knows(member) && self.may_remember(member)) {
            // Who comes back first does not decide that what the other one knows is lost.
            return Vec::new();
        }
        choices.into_iter().find(|choice| !choice.is_empty()).unwrap_or_default()
    }

    /// Adds to the copies of a writeback group that have forgotten those that `restarted` now; returns them all.
    fn note_forgetful(&mut self, id: PgId, restarted: &Restarts) -> BTreeSet<DeviceId> {
        let Some(pg) = self.pgs.get(id) else { return BTreeSet::new() };
        let policy = self.pools.get(id.pool).map(|pool| pool.write_policy);
        if policy != Some(WritePolicy::Writeback) {
            return BTreeSet::new();
        }
        let now = pg.complete().iter().filter(|member| {
            restarted
                .get(&member.device)
                .is_some_and(|life| life.before == member.incarnation && life.now > life.before)
        });
        let now: BTreeSet<DeviceId> = now.map(|member| member.device).collect();
        let all: BTreeSet<DeviceId> = pg.forgot.union(&now).copied().collect();
        if all != pg.forgot {
            self.pgs.update(id, |pg| pg.forgot.clone_from(&all));
        }
        all
    }

    /// Whether a copy that is away may come back with its memory: its device has not been opened since, and its process is
    /// not proven dead (S8).
    fn may_remember(&self, member: &Member) -> bool {
        let proven_dead = self.sds.get(member.sds).is_some_and(|sds| sds.proven_dead);
        self.present_life(member.device) == Some(*member) && !proven_dead
    }

    /// The live copy that is to lead: the one with the fewest primaries, and if another one is there, not in maintenance
    /// and not one that is about to leave.
    pub(super) fn successor(&self, alive: &[Member], primaries: &PrimaryCounts) -> Option<DeviceId> {
        let stays: Vec<Member> = alive
            .iter()
            .copied()
            .filter(|member| !self.is_in_maintenance(member.sds) && !self.is_draining(member.device))
            .collect();
        fewest_primaries(if stays.is_empty() { alive } else { &stays }, primaries)
    }

    pub(super) fn primary_counts(&self) -> PrimaryCounts {
        let mut counts = PrimaryCounts::new();
        for device in self.pgs.values().filter_map(|pg| pg.config.primary) {
            *counts.entry(device).or_default() += 1;
        }
        counts
    }

    /// The next epoch of a group, if who serves it differs from the present one.
    pub(super) fn open_epoch(&mut self, id: PgId, in_sync: Vec<Member>, primary: Option<DeviceId>) {
        if let Some(pg) = self.pgs.get(id) {
            let homes = pg.homes();
            self.open_epoch_on(id, homes, in_sync, primary);
        }
    }

    /// The same, with the places of its copies: another order of the same copies is another configuration too, or
    /// two members could tell the group differently at one epoch.
    pub(super) fn open_epoch_on(&mut self, id: PgId, homes: Homes, in_sync: Vec<Member>, primary: Option<DeviceId>) {
        self.pgs.update(id, |pg| {
            let config = &mut pg.config;
            if pg.replicas == homes.replicas
                && pg.leaving == homes.leaving
                && config.in_sync == in_sync
                && config.primary == primary
            {
                return;
            }
            // S14: no member of the old epoch is in the new one with its memory.
            let kept = |member: &Member| config.in_sync.contains(member) && !pg.forgot.contains(&member.device);
            if !in_sync.iter().any(kept) {
                config.volatility = config.volatility.next();
            }
            let before = if pg.holders.is_empty() { config.in_sync.clone() } else { std::mem::take(&mut pg.holders) };
            config.epoch = config.epoch.next();
            config.in_sync = in_sync;
            config.primary = primary;
            pg.replicas = homes.replicas;
            pg.leaving = homes.leaving;
            pg.carry_holders(before);
            pg.drop_forgetful();
        });
    }

    /// Says in each group that this command gave a new configuration which command it was.
    pub(super) fn date_groups(&mut self, revision: Revision) {
        let changed = self.pgs.changes().filter(|(_, before, now)| {
            now.is_some_and(|now| before.is_none_or(|before| before.config.epoch != now.config.epoch))
        });
        let changed: Vec<PgId> = changed.map(|(id, ..)| id).collect();
        for id in changed {
            self.pgs.update(id, |pg| pg.since = revision);
        }
    }

    /// Gives a pool's groups to its live devices, as long as nothing can be stored in them: before the first volume.
    /// Every copy starts in sync, because all are empty. With too few fault domains the pool stays as it is.
    pub(super) fn place_pool(&mut self, id: PoolId) {
        let Some(pool) = self.pools.get(id) else { return };
        if pool.used || self.is_recovering() {
            return;
        }
        let candidates = self.candidates(id);
        let Some(groups) = placement::place(id, pool.pg_count, pool.copies as usize, &candidates) else { return };
        for (index, replicas) in (0..).map(PgIndex).zip(groups) {
            let in_sync: Vec<Member> = replicas.iter().filter_map(|device| self.present_life(*device)).collect();
            let id = PgId { pool: id, index };
            let primary = replicas.first().copied();
            match self.pgs.get(id) {
                None => {
                    let config = PgConfig { epoch: Epoch(1), primary, in_sync, volatility: VolatilityId(1) };
                    let (since, holders, forgot) = (Revision(0), Vec::new(), BTreeSet::new());
                    self.pgs.put(Pg { id, replicas, config, since, forced: false, leaving: None, holders, forgot });
                }
                Some(_) => {
                    self.open_epoch_on(id, replicas.into(), in_sync, primary);
                    self.activated_by_choice(id);
                }
            }
        }
    }

    /// Places a pool whose groups have no place yet.
    pub(super) fn place_if_unplaced(&mut self, id: PoolId) {
        if self.pgs_of(id).next().is_none() {
            self.place_pool(id);
        }
    }

    /// Membership of a device in its present life.
    pub(super) fn present_life(&self, device: DeviceId) -> Option<Member> {
        let device = self.devices.get(device)?;
        Some(Member { device: device.id, sds: device.sds, incarnation: device.incarnation })
    }

    /// Proposals of primaries on one SDS; each is accepted or refused by itself (S3).
    pub(super) fn reconfigure_pgs(&mut self, command: &proto::ReconfigurePgs) -> Effect {
        let sds = SdsId(command.sds_id);
        self.registered_process(sds, &command.process_id)?;
        if command.proposals.len() > MAX_BATCH {
            return Err(validate::limit(format!("sds {sds}"), MAX_BATCH, "proposals in one command"));
        }
        let mut primaries = None;
        let results = command
            .proposals
            .iter()
            .map(|proposal| {
                let id = PgId { pool: PoolId(proposal.pool_id), index: PgIndex(proposal.index) };
                if proposal.activate {
                    let verdict = self.may_propose(sds, id, proposal.expected_epoch).map(drop);
                    if verdict.is_ok() {
                        self.activated_by_choice(id);
                        self.call_off_to_lost(id);
                    }
                    return self.result(id, verdict);
                }
                let verdict = self.proposed(sds, id, proposal);
                if let Ok((in_sync, primary)) = &verdict {
                    let before = self.pgs.get(id).map_or(0, |pg| pg.config.in_sync.len());
                    let swaps = self.takes_in(id, in_sync);
                    let (homes, in_sync, primary) = self.after_arrival(id, in_sync, *primary, &mut primaries);
                    let swaps = swaps && in_sync.len() >= before;
                    self.open_epoch_on(id, homes, in_sync, Some(primary));
                    if swaps {
                        self.activated_by_choice(id);
                    }
                    // Its primary serves: it has made one state of what it had.
                    let expected = Epoch(proposal.expected_epoch);
                    if self.pgs.get(id).is_some_and(|pg| pg.forced && pg.config.epoch > expected) {
                        self.pgs.update(id, |pg| pg.forced = false);
                    }
                }
                self.result(id, verdict.map(drop))
            })
            .collect();
        Ok(Answer::Reconfigured(proto::Reconfigured { results }))
    }

    fn result(&self, id: PgId, verdict: Result<(), String>) -> proto::ProposalResult {
        proto::ProposalResult {
            accepted: verdict.is_ok(),
            why: verdict.err().unwrap_or_default(),
            current: self.pgs.get(id).map(config_message),
        }
    }

    /// The configuration of a group stands, and nobody else may be chosen any more (S11).
    pub(super) fn activated_by_choice(&mut self, id: PgId) {
        if self.pgs.get(id).is_some_and(|pg| !pg.is_activated()) {
            self.pgs.update(id, Pg::activate);
        }
    }

    fn takes_in(&self, id: PgId, in_sync: &[Member]) -> bool {
        let Some(pg) = self.pgs.get(id) else { return false };
        in_sync.iter().any(|member| !pg.config.in_sync.contains(member))
    }

    /// The group of a proposal, if its primary on this SDS makes it, at its present epoch.
    fn may_propose(&self, sds: SdsId, id: PgId, expected_epoch: u64) -> Result<&Pg, String> {
        let pg = self.pgs.get(id).ok_or_else(|| "there is no such placement group".to_owned())?;
        let config = &pg.config;
        if config.epoch != Epoch(expected_epoch) {
            return Err(format!("the epoch is {}, not {expected_epoch}", config.epoch));
        }
        // Only the primary knows what a backup misses and what a joiner has (S3).
        let proposer = config.primary.and_then(|device| config.member(device));
        if proposer.is_some_and(|member| member.sds == sds && self.is_alive(member)) {
            Ok(pg)
        } else {
            Err(format!("sds {sds} is not its primary"))
        }
    }

    /// What an accepted proposal makes of a group: with the last of its copies that copy leaves that was to move, and if it
    /// led, another one does.
    fn after_arrival(
        &self,
        id: PgId,
        in_sync: &[Member],
        primary: DeviceId,
        primaries: &mut Option<PrimaryCounts>,
    ) -> (Homes, Vec<Member>, DeviceId) {
        let Some(pg) = self.pgs.get(id) else { return (Vec::new().into(), in_sync.to_vec(), primary) };
        let Some(homes) = pg.arrived(in_sync) else { return (pg.homes(), in_sync.to_vec(), primary) };
        let stays: Vec<Member> =
            in_sync.iter().copied().filter(|member| homes.replicas.contains(&member.device)).collect();
        if stays.iter().any(|member| member.device == primary) {
            return (homes, stays, primary);
        }
        let primaries = primaries.get_or_insert_with(|| self.primary_counts());
        let alive: Vec<Member> = stays.iter().copied().filter(|member| self.is_alive(member)).collect();
        match self.successor(&alive, primaries) {
            Some(next) => {
                count_move(primaries, Some(primary), Some(next));
                (homes, stays, next)
            }
            None => (pg.homes(), in_sync.to_vec(), primary),
        }
    }

    /// The configuration a proposal asks for, or why it may not be.
    fn proposed(&self, sds: SdsId, id: PgId, raw: &proto::Proposal) -> Result<(Vec<Member>, DeviceId), String> {
        let pg = self.may_propose(sds, id, raw.expected_epoch)?;
        let config = &pg.config;
        let in_sync: Vec<Member> = raw
            .in_sync
            .iter()
            .map(|member| Member {
                device: DeviceId(member.device_id),
                sds: SdsId(member.sds_id),
                incarnation: Incarnation(member.incarnation),
            })
            .collect();
        for (position, member) in in_sync.iter().enumerate() {
            if in_sync[..position].iter().any(|other| other.device == member.device) {
                return Err(format!("device {} is named twice", member.device));
            }
            if config.in_sync.contains(member) {
                continue;
            }
            if !pg.replicas.contains(&member.device) {
                return Err(format!("device {} has no copy to keep", member.device));
            }
            // S11: only who answers fills a joiner.
            if !pg.is_activated() {
                return Err(format!("epoch {} is not activated, so nobody can have joined", config.epoch));
            }
            // A joiner counts only in the life that was synced (S2).
            if self.present_life(member.device) != Some(*member) || !self.is_alive(member) {
                return Err(format!("{member} is not that device's present life, or it is lost"));
            }
        }
        let primary = match raw.primary_device_id {
            0 => config.primary,
            device => Some(DeviceId(device)),
        };
        match primary.and_then(|device| in_sync.iter().find(|member| member.device == device)) {
            Some(member) if self.is_alive(member) => Ok((in_sync.clone(), member.device)),
            Some(member) => Err(format!("the proposed primary, {member}, is lost")),
            None => Err("the proposed primary is not in the proposed set".to_owned()),
        }
    }

    /// Whether the caller is the SDS's registered process.
    pub(super) fn registered_process(&self, sds: SdsId, raw: &[u8]) -> Result<ProcessId, Refusal> {
        let object = format!("sds {sds}");
        let process = validate::process(&object, raw)?;
        let row = self.sds.get(sds);
        let row = row.ok_or_else(|| Refusal::new(ErrorCode::NotFound, &object, "there is no SDS of this id"))?;
        if row.registration.as_ref().is_some_and(Registration::is_void) {
            let what = "the cluster was restored from a backup; it registers first";
            return Err(Refusal::new(ErrorCode::Precondition, object, what));
        }
        if row.runs(process) {
            Ok(process)
        } else {
            Err(Refusal::new(
                ErrorCode::Stale,
                object,
                format!("process {process} is not the one that registered last"),
            ))
        }
    }
}

/// The live copy with the fewest primaries; among equals the first.
fn fewest_primaries(alive: &[Member], primaries: &PrimaryCounts) -> Option<DeviceId> {
    let load = |member: &&Member| primaries.get(&member.device).copied().unwrap_or(0);
    alive.iter().min_by_key(load).map(|member| member.device)
}

pub(super) fn count_move(primaries: &mut PrimaryCounts, from: Option<DeviceId>, to: Option<DeviceId>) {
    if let Some(count) = from.and_then(|device| primaries.get_mut(&device)) {
        *count = count.saturating_sub(1);
    }
    if let Some(device) = to {
        *primaries.entry(device).or_default() += 1;
    }
}

pub(super) fn config_message(pg: &Pg) -> proto::PgConfig {
    proto::PgConfig {
        pool_id: pg.id.pool.get(),
        index: pg.id.index.get(),
        epoch: pg.config.epoch.get(),
        primary_device_id: pg.config.primary.map_or(0, DeviceId::get),
        in_sync: pg
            .config
            .in_sync
            .iter()
            .map(|member| proto::Member {
                device_id: member.device.get(),
                sds_id: member.sds.get(),
                incarnation: member.incarnation.get(),
            })
            .collect(),
        replica_device_ids: pg.replicas.iter().map(|device| device.get()).collect(),
        volatility: pg.config.volatility.get(),
    }
}
