//! A model of the MDM as one atomic service: configurations by compare-and-set, liveness, incarnations.
//!
//! Its rules are those of the real one, under the same names (`state::apply::pg`, `state::activation`, `state::moving`); what a
//! model may leave out are pools, maintenance, recoveries and proofs of death. A rule that differs here hides faults, and
//! finds some that are none.

use std::collections::{BTreeMap, BTreeSet};

use pflex_proto::ids::{DeviceId, Epoch, Incarnation, Member, PgId, SdsId, VolatilityId};

use crate::replication::planted::{Bug, Planted};
use crate::replication::{PgConfig, Proposal, ProposalReason};

/// Without a sign of life for this long (nanoseconds) a device is lost.
const LOST_AFTER_NS: u64 = 3_000_000_000;

#[derive(Clone)]
struct Placement {
    homes: Homes,
    config: PgConfig,
    /// As in the MDM: who has everything until the configuration is activated; empty: it is (S11).
    holders: Vec<Member>,
    /// In-sync copies and holders that restarted while others of the group may still have their memory (S14).
    forgot: BTreeSet<DeviceId>,
}

/// The places of a group's copies.
#[derive(Clone, PartialEq, Eq)]
struct Homes {
    /// One more than copies while one moves to the last of them.
    replicas: Vec<DeviceId>,
    leaving: Option<DeviceId>,
}

/// A device that was opened again.
#[derive(Clone, Copy)]
struct Restart {
    device: DeviceId,
    before: Incarnation,
    now: Incarnation,
}

impl Restart {
    fn is_of(&self, member: &Member) -> bool {
        self.device == member.device && self.before == member.incarnation
    }
}

/// See the module.
#[derive(Default)]
pub(super) struct Mdm {
    pgs: BTreeMap<PgId, Placement>,
    /// Registered incarnation and last sign of life.
    devices: BTreeMap<DeviceId, (Incarnation, u64)>,
    lost: BTreeSet<DeviceId>,
    /// The pool acknowledges what is in memory (S14).
    pub(super) writeback: bool,
    planted: Planted,
    /// Groups that lost their memory, to be told to the history.
    pub(super) forgotten: Vec<PgId>,
    /// Moves that came to their end.
    pub(super) arrived: u64,
}

pub(super) fn member(device: DeviceId, incarnation: Incarnation) -> Member {
    Member { device, sds: SdsId(device.0), incarnation }
}

impl Mdm {
    pub(super) fn new(writeback: bool, planted: Planted) -> Self {
        Self { writeback, planted, ..Self::default() }
    }

    pub(super) fn create(&mut self, pg: PgId, replicas: Vec<DeviceId>, incarnation: Incarnation) {
        let in_sync = replicas.iter().map(|device| member(*device, incarnation)).collect();
        let primary = replicas.first().copied();
        let config = PgConfig {
            pg,
            epoch: Epoch(1),
            primary,
            in_sync,
            volatility: VolatilityId(1),
            writeback: self.writeback,
            forced: false,
            to_activate: false,
        };
        // Only who has registered is given a place.
        self.devices.extend(replicas.iter().map(|device| (*device, (incarnation, 0))));
        let homes = Homes { replicas, leaving: None };
        self.pgs.insert(pg, Placement { homes, config, holders: Vec::new(), forgot: BTreeSet::new() });
    }

    /// Each group becomes two, `apart` from one another, that begin a new epoch with the same members.
    pub(super) fn double(&mut self, apart: u32) {
        for pg in self.pgs() {
            let placement = self.pgs.get_mut(&pg).expect("just seen");
            placement.config.epoch = placement.config.epoch.next();
            let mut half = placement.clone();
            half.config.pg.index.0 += apart;
            self.pgs.insert(half.config.pg, half);
        }
    }

    pub(super) fn pgs(&self) -> Vec<PgId> {
        self.pgs.keys().copied().collect()
    }

    pub(super) fn config(&self, pg: PgId) -> &PgConfig {
        &self.pgs[&pg].config
    }

    pub(super) fn replicas(&self, pg: PgId) -> &[DeviceId] {
        &self.pgs[&pg].homes.replicas
    }

    pub(super) fn leaving(&self, pg: PgId) -> Option<DeviceId> {
        self.pgs[&pg].homes.leaving
    }

    /// This life of a device has registered.
    pub(super) fn knows(&self, member: Member) -> bool {
        self.devices.get(&member.device).is_some_and(|(incarnation, _)| *incarnation == member.incarnation)
    }

    /// A living copy of a whole group gets another place.
    pub(super) fn begin_move(&mut self, pg: PgId, from: DeviceId, to: DeviceId) -> bool {
        let Placement { config, homes, .. } = &self.pgs[&pg];
        let whole = homes.leaving.is_none() && config.in_sync.len() == homes.replicas.len();
        let possible = whole && config.primary.is_some() && config.in_sync.iter().all(|member| self.is_alive(*member));
        if !possible || homes.replicas.contains(&to) || self.alive(to).is_none() {
            return false;
        }
        let mut replicas = homes.replicas.clone();
        replicas.push(to);
        self.place(pg, Homes { replicas, leaving: Some(from) });
        true
    }

    /// A copy that is lost and has nothing that others lack gets another place.
    pub(super) fn move_lost(&mut self, pg: PgId, to: DeviceId) -> bool {
        let Placement { config, homes, .. } = &self.pgs[&pg];
        let lost = |device: &DeviceId| self.lost.contains(device) && !self.counts(pg, *device);
        let place = homes.replicas.iter().position(lost);
        let Some(place) = place.filter(|_| config.primary.is_some() && homes.leaving.is_none()) else {
            return false;
        };
        if homes.replicas.contains(&to) || self.alive(to).is_none() {
            return false;
        }
        let mut replicas = homes.replicas.clone();
        replicas[place] = to;
        self.place(pg, Homes { replicas, leaving: None });
        true
    }

    fn place(&mut self, pg: PgId, homes: Homes) {
        let config = self.config(pg).clone();
        self.open_epoch_on(pg, homes, config.in_sync, config.primary);
    }

    /// If it can: another copy that is in sync leads.
    pub(super) fn move_lead(&mut self, pg: PgId, to: DeviceId) {
        let Placement { config, homes, .. } = &self.pgs[&pg];
        let may = config.in_sync.iter().any(|member| member.device == to && self.is_alive(*member));
        if may && config.primary.is_some() {
            let (homes, in_sync) = (homes.clone(), config.in_sync.clone());
            self.open_epoch_on(pg, homes, in_sync, Some(to));
        }
    }

    /// S11: as long as a lost newcomer might yet have been chosen, it kept its place.
    fn call_off_to_lost(&mut self, pg: PgId) {
        let placement = &self.pgs[&pg];
        if placement.newcomer().is_some_and(|newcomer| self.lost.contains(&newcomer)) {
            self.place(pg, placement.called_off());
        }
    }

    fn alive(&self, device: DeviceId) -> Option<Member> {
        let (incarnation, _) = self.devices.get(&device)?;
        (!self.lost.contains(&device)).then(|| member(device, *incarnation))
    }

    fn is_alive(&self, member: Member) -> bool {
        self.alive(member.device) == Some(member)
    }

    /// Live replicas that are not in sync.
    pub(super) fn joiners(&self, pg: PgId) -> Vec<Member> {
        let placement = &self.pgs[&pg];
        let alive = placement.homes.replicas.iter().filter_map(|device| self.alive(*device));
        alive.filter(|member| !placement.config.in_sync.contains(member)).collect()
    }

    pub(super) fn all_in_sync(&self) -> bool {
        let all = |placement: &Placement| {
            placement.config.in_sync.len() == placement.homes.replicas.len()
                && placement.config.primary.is_some()
                && placement.config.in_sync.iter().all(|member| self.is_alive(*member))
        };
        self.pgs.values().all(all)
    }

    /// A device was opened: a new life.
    pub(super) fn register(&mut self, now: u64, device: DeviceId, incarnation: Incarnation) {
        let before = self.devices.get(&device).map(|known| known.0);
        if before >= Some(incarnation) {
            return;
        }
        self.devices.insert(device, (incarnation, now));
        self.lost.remove(&device);
        let restart = before.map(|before| Restart { device, before, now: incarnation });
        self.settle(&BTreeSet::from([device]), restart);
    }

    pub(super) fn sign_of_life(&mut self, now: u64, device: DeviceId, incarnation: Incarnation) {
        let Some(known) = self.devices.get_mut(&device).filter(|known| known.0 == incarnation) else { return };
        known.1 = now;
        if self.lost.remove(&device) {
            self.settle(&BTreeSet::from([device]), None);
        }
    }

    /// Devices that are silent for too long are lost.
    pub(super) fn judge(&mut self, now: u64) {
        let silent = |known: &(Incarnation, u64)| now.saturating_sub(known.1) > LOST_AFTER_NS;
        let newly: Vec<DeviceId> = self.devices.iter().filter(|(_, known)| silent(known)).map(|(d, _)| *d).collect();
        let newly: BTreeSet<DeviceId> = newly.into_iter().filter(|device| self.lost.insert(*device)).collect();
        if !newly.is_empty() {
            self.settle(&newly, None);
        }
    }

    /// Every group with a copy on one of these follows what is alive now.
    fn settle(&mut self, touched: &BTreeSet<DeviceId>, restart: Option<Restart>) {
        for pg in self.pgs() {
            let complete = self.complete(pg).iter().map(|member| member.device);
            if complete.chain(self.pgs[&pg].newcomer()).any(|device| touched.contains(&device)) {
                self.settle_one(pg, restart);
            }
        }
    }

    fn settle_one(&mut self, pg: PgId, restart: Option<Restart>) {
        let forgot = self.note_forgetful(pg, restart);
        let follow = |member: &mut Member| {
            if let Some(life) = restart.filter(|life| life.is_of(member)) {
                member.incarnation = life.now;
            }
        };
        let placement = self.pgs.get_mut(&pg).expect("known group");
        placement.holders.iter_mut().for_each(follow);
        let mut in_sync = placement.config.in_sync.clone();
        in_sync.iter_mut().for_each(follow);
        let placement = &self.pgs[&pg];
        let goes_on = self.who_goes_on(placement, &in_sync, &forgot);
        let primary = self.leader(placement.config.primary, &goes_on, placement.config.epoch);
        // S14: nobody is left who knows what was acknowledged and not flushed.
        let lost = !goes_on.is_empty() && goes_on.iter().all(|member| forgot.contains(&member.device));
        if !goes_on.is_empty() {
            in_sync = goes_on;
        }
        let is_there = placement.newcomer().is_none_or(|newcomer| !self.lost.contains(&newcomer));
        let homes = if primary.is_some() && is_there { placement.homes.clone() } else { placement.called_off() };
        self.open_epoch_on(pg, homes, in_sync, primary);
        // One that restarted and left has everything but memory.
        self.pgs.get_mut(&pg).expect("known group").holders.iter_mut().for_each(follow);
        if lost {
            self.forgotten.push(pg);
        }
    }

    /// The primary stays if it may; who of the others leads is as good as chance.
    fn leader(&self, primary: Option<DeviceId>, in_sync: &[Member], epoch: Epoch) -> Option<DeviceId> {
        let alive: Vec<DeviceId> =
            in_sync.iter().filter(|member| self.is_alive(**member)).map(|member| member.device).collect();
        let stays = primary.filter(|primary| alive.contains(primary));
        stays.or_else(|| alive.get(epoch.0 as usize % alive.len().max(1)).copied())
    }

    /// The live copies that go on as the in-sync ones; none: nobody may (S2, S11, S14).
    fn who_goes_on(&self, placement: &Placement, in_sync: &[Member], forgot: &BTreeSet<DeviceId>) -> Vec<Member> {
        let alive = |members: &[Member]| -> Vec<Member> {
            members.iter().copied().filter(|member| self.is_alive(*member)).collect()
        };
        let choices = [alive(in_sync), alive(&placement.holders)];
        let knows = |member: &Member| !forgot.contains(&member.device);
        if let Some(choice) = choices.iter().find(|choice| choice.iter().any(knows)) {
            return choice.iter().copied().filter(knows).collect();
        }
        let mut all = in_sync.iter().chain(&placement.holders);
        if !forgot.is_empty() && all.any(|member| knows(member) && self.knows(*member)) {
            return Vec::new();
        }
        choices.into_iter().find(|choice| !choice.is_empty()).unwrap_or_default()
    }

    fn note_forgetful(&mut self, pg: PgId, restart: Option<Restart>) -> BTreeSet<DeviceId> {
        let restart = restart.filter(|life| self.complete(pg).iter().any(|member| life.is_of(member)));
        let forgot = &mut self.pgs.get_mut(&pg).expect("known group").forgot;
        if self.writeback && !self.planted.is(Bug::RestartStaysInSync) {
            forgot.extend(restart.map(|life| life.device));
        }
        forgot.clone()
    }

    /// A primary's proposal: compare-and-set. False: it can never commit.
    pub(super) fn propose(&mut self, proposal: &Proposal, from: Member) -> bool {
        let (pg, config) = (proposal.pg, self.config(proposal.pg).clone());
        let current = config.epoch == proposal.expected_epoch && config.primary_member() == Some(from);
        if !current || !self.is_alive(from) || proposal.in_sync.is_empty() {
            return false;
        }
        if proposal.reason == ProposalReason::Activation {
            self.pgs.get_mut(&pg).expect("known group").activate();
            self.call_off_to_lost(pg);
            return true;
        }
        let placement = &self.pgs[&pg];
        let new = |member: &&Member| !config.in_sync.contains(member);
        let takes_in = proposal.in_sync.iter().any(|member| new(&member));
        // S11: only who answers fills a joiner, and it counts only in the life that was synced (S2).
        let may_come = |member: &Member| placement.holders.is_empty() && self.is_alive(*member);
        if !proposal.in_sync.iter().filter(new).all(may_come) {
            return false;
        }
        let Some(primary) = self.leader(config.primary, &proposal.in_sync, config.epoch) else { return false };
        let (homes, in_sync, primary) = self.after_arrival(placement, proposal.in_sync.clone(), primary);
        let arrived = homes != placement.homes;
        let swaps = takes_in && in_sync.len() >= config.in_sync.len();
        self.open_epoch_on(pg, homes, in_sync, Some(primary));
        let placement = self.pgs.get_mut(&pg).expect("known group");
        if swaps {
            // As many copies as before: its primary answers already (S11).
            placement.activate();
        }
        // It serves, so it has one state.
        placement.config.forced = false;
        self.arrived += u64::from(arrived);
        true
    }

    /// With the last of its copies the one leaves that was to move, and if it led, another one does.
    fn after_arrival(
        &self,
        placement: &Placement,
        in_sync: Vec<Member>,
        primary: DeviceId,
    ) -> (Homes, Vec<Member>, DeviceId) {
        if let Some(homes) = placement.arrived(&in_sync) {
            let mut stays = in_sync.clone();
            stays.retain(|member| homes.replicas.contains(&member.device));
            if let Some(next) = self.leader(Some(primary), &stays, placement.config.epoch) {
                return (homes, stays, next);
            }
        }
        (placement.homes.clone(), in_sync, primary)
    }

    fn counts(&self, pg: PgId, device: DeviceId) -> bool {
        self.complete(pg).iter().any(|member| member.device == device)
    }

    /// Who has everything that was acknowledged.
    pub(super) fn complete(&self, pg: PgId) -> &[Member] {
        self.pgs[&pg].complete()
    }

    /// S12: an operator promotes a copy that is not in sync, as no in-sync one is alive. The one that it makes primary.
    pub(super) fn force(&mut self, pg: PgId) -> Option<DeviceId> {
        if self.config(pg).in_sync.iter().any(|member| self.is_alive(*member)) {
            return None;
        }
        let chosen = *self.joiners(pg).first()?;
        let homes = self.pgs[&pg].homes.clone();
        self.open_epoch_on(pg, homes, vec![chosen], Some(chosen.device));
        let placement = self.pgs.get_mut(&pg).expect("known group");
        placement.activate();
        placement.config.forced = true;
        Some(chosen.device)
    }

    /// The next epoch of a group, if anything of it differs from the present one.
    fn open_epoch_on(&mut self, pg: PgId, homes: Homes, in_sync: Vec<Member>, primary: Option<DeviceId>) {
        let keeps_id = self.planted.is(Bug::KeepVolatility);
        let placement = self.pgs.get_mut(&pg).expect("known group");
        let Placement { config, forgot, .. } = placement;
        if placement.homes == homes && config.in_sync == in_sync && config.primary == primary {
            return;
        }
        // S14: no member of the old epoch is in the new one with its memory.
        let kept = |member: &Member| config.in_sync.contains(member) && !forgot.contains(&member.device);
        if !in_sync.iter().any(kept) && !keeps_id {
            config.volatility = config.volatility.next();
        }
        let before = std::mem::replace(&mut config.in_sync, in_sync);
        config.epoch = config.epoch.next();
        config.primary = primary;
        placement.homes = homes;
        placement.carry_holders(before);
        placement.drop_forgetful();
    }
}

impl Placement {
    fn complete(&self) -> &[Member] {
        if self.holders.is_empty() { &self.config.in_sync } else { &self.holders }
    }

    fn newcomer(&self) -> Option<DeviceId> {
        self.homes.leaving.and(self.homes.replicas.last().copied())
    }

    /// Without its move; one whose newcomer has everything goes on.
    fn called_off(&self) -> Homes {
        let counts = |device| self.complete().iter().any(|member| member.device == device);
        let Some(newcomer) = self.newcomer().filter(|newcomer| !counts(*newcomer)) else { return self.homes.clone() };
        self.homes.without(newcomer)
    }

    /// After its move, if these copies in sync let the old one go.
    fn arrived(&self, in_sync: &[Member]) -> Option<Homes> {
        let (leaving, newcomer) = (self.homes.leaving?, self.newcomer()?);
        let others = in_sync.iter().filter(|member| member.device != leaving).count();
        let has = in_sync.iter().any(|member| member.device == newcomer);
        (has && others + 1 >= self.homes.replicas.len()).then(|| self.homes.without(leaving))
    }

    /// S11: whoever had everything is remembered until the group is answered for without them.
    fn carry_holders(&mut self, before: Vec<Member>) {
        if self.holders.is_empty() {
            self.holders = before;
        }
        let (in_sync, replicas) = (&self.config.in_sync, &self.homes.replicas);
        self.holders.retain(|holder| replicas.contains(&holder.device));
        for holder in &mut self.holders {
            if let Some(now) = in_sync.iter().find(|now| now.device == holder.device) {
                holder.incarnation = holder.incarnation.max(now.incarnation);
            }
        }
        if self.holders.iter().all(|holder| in_sync.contains(holder)) {
            self.holders.clear();
        }
        self.config.to_activate = !self.holders.is_empty();
    }

    /// The configuration is activated, or chosen for good.
    fn activate(&mut self) {
        self.holders.clear();
        self.config.to_activate = false;
        self.drop_forgetful();
    }

    /// S14: who serves has the memory that counts from now on; and only of copies that count it matters what they forgot.
    fn drop_forgetful(&mut self) {
        let mut forgot = std::mem::take(&mut self.forgot);
        forgot.retain(|device| match self.config.in_sync.iter().any(|member| member.device == *device) {
            true => self.config.primary.is_none(),
            false => self.complete().iter().any(|member| member.device == *device),
        });
        self.forgot = forgot;
    }
}

impl Homes {
    fn without(&self, device: DeviceId) -> Self {
        Self { replicas: self.replicas.iter().copied().filter(|other| *other != device).collect(), leaving: None }
    }
}
