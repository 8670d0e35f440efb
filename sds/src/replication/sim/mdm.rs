//! A model of the MDM as one atomic service: configurations by compare-and-set, liveness, incarnations.

use std::collections::{BTreeMap, BTreeSet};

use pflex_proto::ids::{DeviceId, Epoch, Incarnation, Member, PgId, SdsId, VolatilityId};

use crate::replication::planted::{Bug, Planted};
use crate::replication::{PgConfig, Proposal, ProposalReason};

/// Without a sign of life for this long (nanoseconds) a device is lost.
const LOST_AFTER_NS: u64 = 3_000_000_000;

struct Placement {
    /// One more than copies while one moves to the last of them.
    replicas: Vec<DeviceId>,
    leaving: Option<DeviceId>,
    config: PgConfig,
    /// As in the MDM: who has everything until the configuration is activated; empty: it is (S11).
    holders: Vec<Member>,
    /// In-sync copies and holders that restarted while others of the group may still have their memory (S14).
    forgot: BTreeSet<DeviceId>,
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
        self.pgs
            .insert(pg, Placement { replicas, leaving: None, config, holders: Vec::new(), forgot: BTreeSet::new() });
    }

    pub(super) fn pgs(&self) -> Vec<PgId> {
        self.pgs.keys().copied().collect()
    }

    pub(super) fn config(&self, pg: PgId) -> &PgConfig {
        &self.pgs[&pg].config
    }

    pub(super) fn replicas(&self, pg: PgId) -> &[DeviceId] {
        &self.pgs[&pg].replicas
    }

    pub(super) fn leaving(&self, pg: PgId) -> Option<DeviceId> {
        self.pgs[&pg].leaving
    }

    /// This life of a device has registered.
    pub(super) fn knows(&self, member: Member) -> bool {
        self.devices.get(&member.device).is_some_and(|(incarnation, _)| *incarnation == member.incarnation)
    }

    /// A living copy of a whole group gets another place.
    pub(super) fn begin_move(&mut self, pg: PgId, from: DeviceId, to: DeviceId) -> bool {
        let placement = &self.pgs[&pg];
        let config = placement.config.clone();
        let whole = placement.leaving.is_none() && config.in_sync.len() == placement.replicas.len();
        let possible = whole && config.primary.is_some() && config.in_sync.iter().all(|member| self.is_alive(*member));
        if !possible || placement.replicas.contains(&to) || self.alive(to).is_none() {
            return false;
        }
        let placement = self.pgs.get_mut(&pg).expect("known group");
        placement.replicas.push(to);
        placement.leaving = Some(from);
        self.commit(pg, config.primary, config.in_sync);
        true
    }

    /// A copy that is lost and has nothing that others lack gets another place.
    pub(super) fn move_lost(&mut self, pg: PgId, to: DeviceId) -> bool {
        let placement = &self.pgs[&pg];
        let config = placement.config.clone();
        let counts =
            |device: &DeviceId| config.in_sync.iter().chain(&placement.holders).any(|member| member.device == *device);
        let lost = placement.replicas.iter().position(|device| self.lost.contains(device) && !counts(device));
        let Some(place) = lost.filter(|_| config.primary.is_some() && placement.leaving.is_none()) else {
            return false;
        };
        if placement.replicas.contains(&to) || self.alive(to).is_none() {
            return false;
        }
        self.pgs.get_mut(&pg).expect("known group").replicas[place] = to;
        self.commit(pg, config.primary, config.in_sync);
        true
    }

    /// If it can: another copy that is in sync leads.
    pub(super) fn move_lead(&mut self, pg: PgId, to: DeviceId) {
        let config = self.config(pg).clone();
        let may = config.in_sync.iter().any(|member| member.device == to && self.is_alive(*member));
        if may && config.primary.is_some_and(|primary| primary != to) {
            self.commit(pg, Some(to), config.in_sync);
        }
    }

    /// With the last of its copies the one leaves that was to move, and if it led, another one does. Whether that was so.
    fn after_arrival(&mut self, pg: PgId, in_sync: &mut Vec<Member>, primary: &mut Option<DeviceId>) -> bool {
        let placement = &self.pgs[&pg];
        let (Some(leaving), Some(newcomer)) = (placement.leaving, placement.replicas.last()) else { return false };
        let stays: Vec<Member> = in_sync.iter().copied().filter(|member| member.device != leaving).collect();
        let has = |device: DeviceId| stays.iter().any(|member| member.device == device);
        let next = primary.filter(|primary| has(*primary));
        let next = next.or_else(|| stays.iter().find(|member| self.is_alive(**member)).map(|member| member.device));
        if !has(*newcomer) || stays.len() + 1 < placement.replicas.len() || next.is_none() {
            return false;
        }
        (*in_sync, *primary) = (stays, next);
        let placement = self.pgs.get_mut(&pg).expect("known group");
        placement.replicas.retain(|device| *device != leaving);
        placement.leaving = None;
        true
    }

    /// A copy that moves stays where it is when its new home is lost, or when nobody serves.
    fn call_off_moves(&mut self) {
        for placement in self.pgs.values_mut() {
            let Some(newcomer) = placement.leaving.and(placement.replicas.last().copied()) else { continue };
            let gone = self.lost.contains(&newcomer) || placement.config.primary.is_none();
            if gone && placement.config.in_sync.iter().all(|member| member.device != newcomer) {
                placement.replicas.pop();
                placement.leaving = None;
                placement.holders.retain(|holder| holder.device != newcomer);
                placement.config.epoch = placement.config.epoch.next();
                placement.follow_holders(placement.config.in_sync.clone());
            }
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
        let alive = placement.replicas.iter().filter_map(|device| self.alive(*device));
        alive.filter(|member| !placement.config.in_sync.contains(member)).collect()
    }

    pub(super) fn all_in_sync(&self) -> bool {
        let all = |placement: &Placement| {
            placement.config.in_sync.len() == placement.replicas.len()
                && placement.config.primary.is_some()
                && placement.config.in_sync.iter().all(|member| self.is_alive(*member))
        };
        self.pgs.values().all(all)
    }

    /// A device was opened: a new life.
    pub(super) fn register(&mut self, now: u64, device: DeviceId, incarnation: Incarnation) {
        if self.devices.get(&device).is_some_and(|known| known.0 >= incarnation) {
            return;
        }
        self.devices.insert(device, (incarnation, now));
        self.lost.remove(&device);
        for pg in self.pgs() {
            for holder in &mut self.pgs.get_mut(&pg).expect("known group").holders {
                if holder.device == device {
                    holder.incarnation = holder.incarnation.max(incarnation);
                }
            }
            if self.writeback && !self.planted.is(Bug::RestartStaysInSync) && self.counts(pg, device) {
                self.pgs.get_mut(&pg).expect("known group").forgot.insert(device);
            }
            let config = self.config(pg).clone();
            let mut in_sync = config.in_sync.clone();
            let old = in_sync.iter_mut().find(|member| member.device == device);
            let Some(old) = old.filter(|old| old.incarnation < incarnation) else {
                self.serve_again(pg);
                continue;
            };
            // S2: in a `sync` pool it stays, under its new name, through S1.
            *old = member(device, incarnation);
            if self.writeback {
                self.settle(pg, in_sync);
                continue;
            }
            let primary = config.primary.filter(|primary| *primary != device);
            self.commit(pg, primary, in_sync);
        }
    }

    pub(super) fn sign_of_life(&mut self, now: u64, device: DeviceId, incarnation: Incarnation) {
        let Some(known) = self.devices.get_mut(&device).filter(|known| known.0 == incarnation) else { return };
        known.1 = now;
        if self.lost.remove(&device) {
            self.pgs().into_iter().for_each(|pg| self.serve_again(pg));
        }
    }

    /// Somebody is back: a group that nobody serves may have one again, perhaps one that had left (S11).
    fn serve_again(&mut self, pg: PgId) {
        let placement = &self.pgs[&pg];
        if self.writeback {
            self.settle(pg, placement.config.in_sync.clone());
        } else if placement.config.primary.is_none() {
            let in_sync = self.fallback(pg).unwrap_or_else(|| placement.config.in_sync.clone());
            self.commit(pg, None, in_sync);
        }
    }

    /// Who has everything and is alive, when nobody in sync is.
    fn fallback(&self, pg: PgId) -> Option<Vec<Member>> {
        let Placement { config, holders, .. } = &self.pgs[&pg];
        let nobody = !config.in_sync.iter().any(|member| self.is_alive(*member));
        let alive: Vec<Member> = holders.iter().copied().filter(|member| self.is_alive(*member)).collect();
        (nobody && !alive.is_empty()).then_some(alive)
    }

    /// S2, S14: copies that kept their memory go on alone, holders if none in sync can (S11); while one that is away may have
    /// kept it nobody serves; when none has, those that are here go on with what is on their disks. The id stays only with
    /// the memory of one that was in sync.
    fn settle(&mut self, pg: PgId, in_sync: Vec<Member>) {
        let Placement { config: before, holders, forgot, .. } = &self.pgs[&pg];
        let before = before.clone();
        let remembers = |member: &Member| {
            let present = self.devices.get(&member.device).is_some_and(|known| known.0 == member.incarnation);
            present && !forgot.contains(&member.device)
        };
        let alive = |members: &[Member]| -> Vec<Member> {
            members.iter().copied().filter(|member| self.is_alive(*member)).collect()
        };
        let choices = [alive(&in_sync), alive(holders)];
        let with_memory =
            choices.each_ref().map(|choice| -> Vec<Member> { choice.iter().copied().filter(remembers).collect() });
        let kept = !with_memory[0].is_empty();
        let lost = with_memory.iter().all(Vec::is_empty);
        let waits = lost && in_sync.iter().chain(holders).any(remembers);
        let mut goes_on = with_memory.into_iter().chain(choices).filter(|choice| !choice.is_empty());
        let Some(goes_on) = goes_on.next().filter(|_| !waits) else {
            if before.in_sync != in_sync || before.primary.is_some() {
                let config = PgConfig { epoch: before.epoch.next(), primary: None, in_sync, ..before };
                self.pgs.get_mut(&pg).expect("known group").config = config;
            }
            return;
        };
        if before.in_sync != goes_on || before.primary.is_none() {
            self.commit(pg, before.primary.filter(|_| kept), goes_on);
        }
        let Placement { config, holders, forgot, .. } = self.pgs.get_mut(&pg).expect("known group");
        for holder in holders.iter_mut() {
            // One that restarted and left has everything but memory.
            let present = self.devices.get(&holder.device).map_or(holder.incarnation, |known| known.0);
            holder.incarnation = holder.incarnation.max(present);
        }
        forgot.retain(|device| {
            config.in_sync.iter().all(|member| member.device != *device)
                && holders.iter().any(|holder| holder.device == *device)
        });
        if !kept && !self.planted.is(Bug::KeepVolatility) {
            config.volatility = config.volatility.next();
        }
        if lost {
            self.forgotten.push(pg);
        }
    }

    /// Takes every lost device out of every group that has another live copy.
    pub(super) fn judge(&mut self, now: u64) {
        let silent = |known: &(Incarnation, u64)| now.saturating_sub(known.1) > LOST_AFTER_NS;
        let newly: Vec<DeviceId> = self.devices.iter().filter(|(_, known)| silent(known)).map(|(d, _)| *d).collect();
        let newly: Vec<DeviceId> = newly.into_iter().filter(|device| self.lost.insert(*device)).collect();
        let any = !newly.is_empty();
        for device in newly {
            for pg in self.pgs() {
                let config = self.config(pg).clone();
                if config.in_sync.iter().all(|member| member.device != device) {
                    continue;
                }
                if self.writeback {
                    self.settle(pg, config.in_sync);
                    continue;
                }
                let remaining: Vec<Member> =
                    config.in_sync.iter().copied().filter(|member| member.device != device).collect();
                let primary = config.primary.filter(|primary| *primary != device);
                if remaining.iter().any(|member| self.is_alive(*member)) {
                    self.commit(pg, primary, remaining);
                } else if let Some(chosen) = self.fallback(pg) {
                    self.commit(pg, None, chosen);
                } else if config.primary == Some(device) {
                    self.commit(pg, None, config.in_sync);
                }
            }
        }
        if any {
            self.call_off_moves();
        }
    }

    /// A primary's proposal: compare-and-set. False: it can never commit.
    pub(super) fn propose(&mut self, proposal: &Proposal, from: Member) -> bool {
        let config = self.config(proposal.pg).clone();
        let current = config.epoch == proposal.expected_epoch && config.primary_member() == Some(from);
        if !current || proposal.in_sync.is_empty() {
            return false;
        }
        if proposal.reason == ProposalReason::Activation {
            let placement = self.pgs.get_mut(&proposal.pg).expect("known group");
            placement.holders.clear();
            placement.config.to_activate = false;
            return true;
        }
        let added_live = match proposal.reason {
            ProposalReason::Activation => false,
            ProposalReason::JoinerSynced(joiner) => self.is_alive(joiner) && self.pgs[&proposal.pg].holders.is_empty(),
            ProposalReason::BackupSilent(_) | ProposalReason::BackupCannotApply(_) => true,
            ProposalReason::PrimaryCannotApply(_) => proposal.in_sync.iter().any(|member| self.is_alive(*member)),
        };
        if added_live {
            let (mut in_sync, mut primary) = (proposal.in_sync.clone(), config.primary);
            let arrived = self.after_arrival(proposal.pg, &mut in_sync, &mut primary);
            self.commit(proposal.pg, primary, in_sync);
            if arrived {
                // As many copies as before: its primary answers already (S11).
                let placement = self.pgs.get_mut(&proposal.pg).expect("known group");
                placement.holders.clear();
                placement.config.to_activate = false;
                self.arrived += 1;
            }
            // It serves, so it has one state.
            self.pgs.get_mut(&proposal.pg).expect("known group").config.forced = false;
        }
        added_live
    }

    fn counts(&self, pg: PgId, device: DeviceId) -> bool {
        self.complete(pg).iter().any(|member| member.device == device)
    }

    /// Who has everything that was acknowledged.
    pub(super) fn complete(&self, pg: PgId) -> &[Member] {
        let Placement { config, holders, .. } = &self.pgs[&pg];
        if holders.is_empty() { &config.in_sync } else { holders }
    }

    /// S12: an operator promotes a copy that is not in sync, as no in-sync one is alive. The one that it makes primary.
    pub(super) fn force(&mut self, pg: PgId) -> Option<DeviceId> {
        let config = self.config(pg).clone();
        if config.in_sync.iter().any(|member| self.is_alive(*member)) {
            return None;
        }
        let chosen = *self.joiners(pg).first()?;
        let (epoch, primary) = (config.epoch.next(), Some(chosen.device));
        let volatility = config.volatility.next();
        let config =
            PgConfig { epoch, primary, in_sync: vec![chosen], volatility, forced: true, to_activate: false, ..config };
        let placement = self.pgs.get_mut(&pg).expect("known group");
        placement.config = config;
        placement.holders.clear();
        placement.forgot.clear();
        primary
    }

    /// The next epoch. The primary stays if it may, else the first live copy takes over.
    fn commit(&mut self, pg: PgId, primary: Option<DeviceId>, in_sync: Vec<Member>) {
        let stays = primary.filter(|primary| in_sync.iter().any(|m| m.device == *primary && self.is_alive(*m)));
        // Another one than before, if there is one: so roles move as much as they can.
        let before = self.config(pg).primary;
        let mut live = in_sync.iter().filter(|member| self.is_alive(**member)).map(|member| member.device);
        let first = || live.clone().find(|device| Some(*device) != before).or_else(|| live.next());
        let primary = stays.or_else(first);
        let placement = self.pgs.get_mut(&pg).expect("known group");
        let before = placement.config.clone();
        let mut config = PgConfig { epoch: before.epoch.next(), primary, in_sync, to_activate: false, ..before };
        // S14: no member of the old epoch is in the new one. In writeback it is memory that counts (`settle`).
        if !self.writeback && !config.in_sync.iter().any(|member| placement.config.in_sync.contains(member)) {
            config.volatility = config.volatility.next();
        }
        let before = std::mem::replace(&mut placement.config, config);
        placement.follow_holders(before.in_sync);
    }
}

impl Placement {
    /// S11, as the MDM has it: whoever had everything is remembered until the group is answered for without them.
    fn follow_holders(&mut self, before: Vec<Member>) {
        if self.holders.is_empty() {
            self.holders = before;
        }
        let in_sync = &self.config.in_sync;
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
}
