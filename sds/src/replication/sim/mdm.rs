//! A model of the MDM as one atomic service: configurations by compare-and-set, liveness, incarnations.

use std::collections::{BTreeMap, BTreeSet};

use pflex_proto::ids::{DeviceId, Epoch, Incarnation, Member, PgId, SdsId, VolatilityId};

use crate::replication::{PgConfig, Proposal, ProposalReason};

/// Without a sign of life for this long (nanoseconds) a device is lost.
const LOST_AFTER_NS: u64 = 3_000_000_000;

struct Placement {
    replicas: Vec<DeviceId>,
    config: PgConfig,
}

/// See the module.
#[derive(Default)]
pub(super) struct Mdm {
    pgs: BTreeMap<PgId, Placement>,
    /// Registered incarnation and last sign of life.
    devices: BTreeMap<DeviceId, (Incarnation, u64)>,
    lost: BTreeSet<DeviceId>,
}

pub(super) fn member(device: DeviceId, incarnation: Incarnation) -> Member {
    Member { device, sds: SdsId(device.0), incarnation }
}

impl Mdm {
    pub(super) fn create(&mut self, pg: PgId, replicas: Vec<DeviceId>, incarnation: Incarnation) {
        let in_sync = replicas.iter().map(|device| member(*device, incarnation)).collect();
        let primary = replicas.first().copied();
        let config = new_config(pg, Epoch(1), primary, in_sync, false);
        self.pgs.insert(pg, Placement { replicas, config });
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
            let config = self.config(pg).clone();
            let mut in_sync = config.in_sync.clone();
            let Some(old) = in_sync.iter_mut().find(|member| member.device == device) else { continue };
            if old.incarnation >= incarnation {
                if config.primary.is_none() {
                    self.commit(pg, None, config.in_sync);
                }
                continue;
            }
            // S2: in a `sync` pool it stays, under its new name, through S1.
            *old = member(device, incarnation);
            let primary = config.primary.filter(|primary| *primary != device);
            self.commit(pg, primary, in_sync);
        }
    }

    pub(super) fn sign_of_life(&mut self, now: u64, device: DeviceId, incarnation: Incarnation) {
        let Some(known) = self.devices.get_mut(&device).filter(|known| known.0 == incarnation) else { return };
        known.1 = now;
        if self.lost.remove(&device) {
            for pg in self.pgs() {
                let config = self.config(pg).clone();
                if config.primary.is_none() {
                    self.commit(pg, None, config.in_sync);
                }
            }
        }
    }

    /// Takes every lost device out of every group that has another live copy.
    pub(super) fn judge(&mut self, now: u64) {
        let silent = |known: &(Incarnation, u64)| now.saturating_sub(known.1) > LOST_AFTER_NS;
        let newly: Vec<DeviceId> = self.devices.iter().filter(|(_, known)| silent(known)).map(|(d, _)| *d).collect();
        let newly: Vec<DeviceId> = newly.into_iter().filter(|device| self.lost.insert(*device)).collect();
        for device in newly {
            for pg in self.pgs() {
                let config = self.config(pg).clone();
                if config.in_sync.iter().all(|member| member.device != device) {
                    continue;
                }
                let remaining: Vec<Member> =
                    config.in_sync.iter().copied().filter(|member| member.device != device).collect();
                let primary = config.primary.filter(|primary| *primary != device);
                if remaining.iter().any(|member| self.is_alive(*member)) {
                    self.commit(pg, primary, remaining);
                } else if config.primary == Some(device) {
                    self.commit(pg, None, config.in_sync);
                }
            }
        }
    }

    /// A primary's proposal: compare-and-set. False: it can never commit.
    pub(super) fn propose(&mut self, proposal: &Proposal, from: Member) -> bool {
        let config = self.config(proposal.pg).clone();
        let current = config.epoch == proposal.expected_epoch && config.primary_member() == Some(from);
        if !current || proposal.in_sync.is_empty() {
            return false;
        }
        let added_live = match proposal.reason {
            ProposalReason::JoinerSynced(joiner) => self.is_alive(joiner),
            ProposalReason::BackupSilent(_) | ProposalReason::BackupCannotApply(_) => true,
            ProposalReason::PrimaryCannotApply(_) => proposal.in_sync.iter().any(|member| self.is_alive(*member)),
        };
        if added_live {
            self.commit(proposal.pg, config.primary, proposal.in_sync.clone());
            // It serves, so it has one state.
            self.pgs.get_mut(&proposal.pg).expect("known group").config.forced = false;
        }
        added_live
    }

    /// S12: an operator promotes a copy that is not in sync, as no in-sync one is alive. The one that it makes primary.
    pub(super) fn force(&mut self, pg: PgId) -> Option<DeviceId> {
        let config = self.config(pg).clone();
        if config.in_sync.iter().any(|member| self.is_alive(*member)) {
            return None;
        }
        let chosen = *self.joiners(pg).first()?;
        let (epoch, primary) = (config.epoch.next(), Some(chosen.device));
        self.pgs.get_mut(&pg).expect("known group").config = new_config(pg, epoch, primary, vec![chosen], true);
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
        let epoch = self.config(pg).epoch.next();
        let forced = self.config(pg).forced;
        let config = new_config(pg, epoch, primary, in_sync, forced);
        self.pgs.get_mut(&pg).expect("known group").config = config;
    }
}

fn new_config(pg: PgId, epoch: Epoch, primary: Option<DeviceId>, in_sync: Vec<Member>, forced: bool) -> PgConfig {
    PgConfig { pg, epoch, primary, in_sync, volatility: VolatilityId(1), forced }
}
