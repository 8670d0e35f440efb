//! The cluster map comes in: which groups have a copy here, who their peers are, which admissions it revokes.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, atomic::Ordering},
};

use pflex_common::map::ClusterMap;
use pflex_proto::{
    ids::{DeviceId, Member, PgId, VolumeId},
    pg::PgConfig,
};

use super::{effects::Slot, sorting::Due, worker::Worker};
use crate::{
    payload::Payload,
    replication::{self, Event, Pg, Recovered},
    store::{self, KnownConfig},
};

impl Worker {
    pub(super) fn on_map(&mut self, map: Arc<ClusterMap>) {
        let before = std::mem::replace(&mut self.map, map);
        self.revoke(&before);
        self.forget_deleted(&before);
        self.publish_scrub();
        let waiting = self.no_sort();
        // S19: what a backup calls in sync may have left its group since. Until the recovery is over nobody serves, and
        // what this device knows of before stays as it is.
        if self.map.recovering {
            return;
        }
        let due = self.due_sorting();
        let was_ahead = self.counters.ahead_of_map.swap(due == Due::OldMap, Ordering::Relaxed);
        match due {
            Due::Nothing => self.take_configurations(),
            Due::Sort(into) => self.sort_soon(into, waiting),
            Due::OldMap if was_ahead => {}
            Due::OldMap => {
                let why = self.counters.trouble();
                tracing::error!(device = %self.own.device, why, "the map is not followed");
            }
        }
    }

    /// What the map says of the groups here.
    pub(super) fn take_configurations(&mut self) {
        let own = self.own.device;
        let mine = |config: &PgConfig| config.replicas.contains(&own) || config.member(own).is_some();
        let map = Arc::clone(&self.map);
        let mut peers: HashMap<DeviceId, _> = HashMap::new();
        for config in map.pgs.values().filter(|config| mine(config)) {
            for device in config.replicas.iter().chain(config.in_sync.iter().map(|member| &member.device)) {
                let address = map
                    .devices
                    .get(device)
                    .and_then(|device| Some((device.sds, map.sds.get(&device.sds)?.data.clone()?)));
                if let Some(address) = address.filter(|_| *device != self.own.device) {
                    peers.insert(*device, address);
                }
            }
        }
        for (pg, config) in map.pgs.iter() {
            self.configure_if_concerned(*pg, config);
        }
        // A device's groups are all of one pool.
        if let Some(pool) = self.slots.keys().next().and_then(|pg| map.pools.get(&pg.pool)) {
            self.resync.set_policy(pool.rebuild);
        }
        self.learn_of_deaths();
        self.remember();
        self.links.dial(&peers);
    }

    /// Takes a configuration in, if this device has or had to do with the group.
    pub(super) fn configure_if_concerned(&mut self, pg: PgId, config: &Arc<PgConfig>) {
        let mine = config.replicas.contains(&self.own.device) || config.member(self.own.device).is_some();
        if mine {
            self.departed.given(pg);
        }
        if self.departed.withholds(pg) && config.member(self.own.device).is_some() {
            tracing::error!(%pg, device = %self.own.device, "in sync here by the map, and the copy here is not whole: it takes part in nothing");
        }
        // Half a copy takes part in nothing; when nothing is left of it, this comes again.
        if (mine || self.slots.contains_key(&pg)) && !self.departed.withholds(pg) {
            self.configure(pg, config, mine);
        }
    }

    fn configure(&mut self, pg: PgId, config: &Arc<PgConfig>, mine: bool) {
        let outside = config.replicas.iter().filter(|device| config.member(**device).is_none());
        let joiners: Vec<Member> = outside
            .filter(|device| self.map.device_alive(**device))
            .filter_map(|device| self.member_of(*device))
            .collect();
        let new = self.known_config(config);
        if self.memory.knows_newer(pg, &new) {
            return;
        }
        let slot = self.slot(pg);
        let known = slot.config.as_ref().is_some_and(|known| known.epoch >= config.epoch);
        if known && slot.joiners == joiners {
            return;
        }
        slot.config = Some(Arc::clone(config));
        slot.joiners.clone_from(&joiners);
        let writeback = self.map.pools.get(&pg.pool).is_some_and(|pool| pool.writeback);
        let config = replication::PgConfig {
            pg,
            epoch: config.epoch,
            primary: config.primary,
            in_sync: config.in_sync.clone(),
            volatility: config.volatility,
            writeback,
            forced: config.forced,
            to_activate: config.to_activate,
        };
        let own = self.own;
        let other_life = new.in_sync.iter().any(|member| member.device == own.device && *member != own);
        // As long as there is a copy its row says that others are newer; of a group that has none here nothing is kept.
        let remembers = !other_life && (mine || self.memory.has_row(pg));
        self.memory.comes(pg, Event::Config { config, joiners }, remembers.then_some(new));
    }

    /// What is made durable of a configuration before it is acted in.
    fn known_config(&self, config: &PgConfig) -> KnownConfig {
        KnownConfig {
            generation: self.map.generation,
            epoch: config.epoch,
            primary: config.primary,
            in_sync: config.in_sync.clone(),
            replicas: config.replicas.clone(),
            volatility: config.volatility,
            served: config.primary == Some(self.own.device),
        }
    }

    /// This device's replica of the group. Made at first sight: the primary may know the configuration before this
    /// device does.
    pub(super) fn slot(&mut self, pg: PgId) -> &mut Slot {
        let Self { slots, recovered, leases, own, links, events, .. } = self;
        slots.entry(pg).or_insert_with(|| {
            let recovered = recovered.remove(&pg).map(found).unwrap_or_default();
            events.extend(links.connected().map(|member| (pg, Event::<Payload>::PeerConnected(member))));
            Slot::new(Pg::new(pg, *own, recovered, leases))
        })
    }

    /// S20: requests of revoked tokens that were not ordered yet are discarded; the revision is confirmed when those
    /// that were have been answered.
    fn revoke(&mut self, before: &ClusterMap) {
        let mut waiting = HashSet::new();
        let void = |id: &VolumeId| match (before.volumes.get(id), self.map.volumes.get(id)) {
            (Some(old), Some(new)) => new.epoch > old.epoch,
            (Some(_), None) => true,
            (None, _) => false,
        };
        let changed: HashSet<VolumeId> =
            self.map.volumes.changed_since(&before.volumes).into_iter().filter(void).collect();
        if !changed.is_empty() {
            let revoked = self.pending.matching(|request| changed.contains(&request.volume));
            waiting.extend(revoked.iter().map(|(request, _)| *request));
            self.cancel(revoked);
        }
        self.pending.drain(self.map.revision, waiting);
    }

    /// The trees of volumes that were deleted since the last map are purged from the next tick on. What was deleted while
    /// this server was away is found by looking at the store ([`super::orphans`]).
    fn forget_deleted(&mut self, before: &ClusterMap) {
        let closed = before.generation != self.map.generation || self.map.recovering;
        if closed {
            return;
        }
        for id in self.map.volumes.changed_since(&before.volumes) {
            if let Some(old) = before.volumes.get(&id).filter(|_| !self.map.volumes.contains_key(&id)) {
                self.orphans.doom(old.vtree);
            }
        }
    }
}

fn found(report: store::PgReport) -> Recovered {
    let client = |client: store::Client| replication::ClientKey { sdc: client.sdc, volume: client.volume };
    let entries = report.operations.entries.into_iter().map(|entry| replication::OperationEntry {
        client: client(entry.client),
        operation: entry.id,
        version: entry.version,
        chunk: entry.chunk,
    });
    let low_waters = report.operations.low_waters.into_iter().map(|(key, low)| (client(key), low)).collect();
    let operations = replication::OperationSnapshot { entries: entries.collect(), low_waters };
    Recovered { highest: report.highest.sequence, watermark: report.watermark, lineage: report.volatility, operations }
}
