//! Copies and leads that move, devices that are drained, and copies that lost their place: what the MDM plans, and what the
//! driver does with data that nobody needs any more (`worker::departed`: the row of its configuration first, then chunks).
//!
//! Chances are of a generator of their own; worlds without moves have none.

use std::collections::BTreeMap;

use pflex_proto::ids::{ChunkId, DeviceId, Epoch, Member, PgId};

use crate::replication::planted::Bug;
use crate::replication::{Event, Pg, PgConfig, RoleName};

use super::rng::Rng;
use super::world::{Happening, MS, World};

/// How long maps must say that a copy has no place: in life a minute.
const GRACE_NS: u64 = 400 * MS;

/// What a device knows of where a group is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    epoch: Epoch,
    /// It has a place here, or is in sync here.
    mine: bool,
    /// Its copy here is to move away.
    leaves: bool,
    /// All its copies are in sync, and somebody serves it.
    whole: bool,
    /// The map is as new as this life's registration.
    trusted: bool,
}

/// How far a copy that lost its place is on its way out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stage {
    Away { since: u64 },
    Forgetting { until: u64 },
    Dropping,
}

/// A configuration as a map has it, with the places.
#[derive(Clone, Debug)]
pub(super) struct Told {
    pub(super) config: PgConfig,
    pub(super) joiners: Vec<Member>,
    pub(super) replicas: Vec<DeviceId>,
    pub(super) leaving: Option<DeviceId>,
    pub(super) trusted: bool,
    /// Of a map with twice as many groups.
    pub(super) doubled: bool,
}

/// What the MDM has in mind.
pub(super) struct Plans {
    rng: Rng,
    draining: Option<(DeviceId, u64)>,
    /// Copies dropped wholly.
    pub(super) dropped: u64,
}

impl Plans {
    pub(super) fn new(seed: u64) -> Self {
        Self { rng: Rng::new(seed ^ 0x0de5_70ca_51de), draining: None, dropped: 0 }
    }
}

impl World {
    /// Each round of the MDM, while there is load.
    pub(super) fn plan_moves(&mut self) {
        let (now, stormy) = (self.now, self.stormy);
        let devices: Vec<DeviceId> = self.nodes.keys().copied().collect();
        let Some(plans) = &mut self.plans else { return };
        if !stormy || plans.draining.is_some_and(|(_, until)| now > until) {
            plans.draining = None;
        }
        if !stormy {
            return;
        }
        if plans.draining.is_none() && plans.rng.percent(2) {
            let device = *plans.rng.pick(&devices);
            plans.draining = Some((device, now + plans.rng.between(2000, 8000) * MS));
        }
        let draining = plans.draining.map(|(device, _)| device);
        for pg in self.mdm.pgs() {
            let (drain, balance, lead, home) =
                (plans.rng.percent(20), plans.rng.percent(4), plans.rng.percent(3), plans.rng.percent(5));
            let target = *plans.rng.pick(&devices);
            let replicas = self.mdm.replicas(pg).to_vec();
            let from = match draining.filter(|device| drain && replicas.contains(device)) {
                Some(drained) => Some(drained),
                None => balance.then(|| *plans.rng.pick(&replicas)),
            };
            let free = Some(target) != draining;
            let made = match from {
                Some(from) => free && self.mdm.begin_move(pg, from, target),
                None => home && free && self.mdm.move_lost(pg, target),
            };
            if made {
                self.made.push((target, pg));
            } else if lead && from.is_none() {
                self.mdm.move_lead(pg, target);
            }
        }
        for (device, pg) in std::mem::take(&mut self.made) {
            self.ensure_copy(device, pg);
        }
    }

    /// A place for a copy, and a core for it, as a driver makes one at first sight.
    fn ensure_copy(&mut self, device: DeviceId, pg: PgId) {
        let (now, planted) = (self.now, self.planted);
        let node = self.nodes.get_mut(&device).expect("known node");
        node.stores.entry(pg).or_default();
        if !node.up || node.pgs.contains_key(&pg) {
            return;
        }
        let (own, clock) = (node.member(), node.clock(now));
        let recovered = node.stores[&pg].applied.recovered();
        let mut core = Pg::with_planted(pg, own, recovered, &node.leases, planted);
        for member in node.connected.clone() {
            core.handle(clock, &node.leases, Event::PeerConnected(member), &mut Vec::new());
        }
        node.pgs.insert(pg, core);
    }

    /// A configuration reaches a device (`worker::placement`, `worker::departed`).
    pub(super) fn configure(&mut self, device: DeviceId, pg: PgId, told: Told) -> Result<(), String> {
        let Told { config, joiners, replicas, leaving, trusted, doubled } = told;
        if doubled && !self.nodes[&device].doubled {
            self.sort(device)?;
        }
        let mine = replicas.contains(&device) || config.in_sync.iter().any(|member| member.device == device);
        let copies = replicas.len() - usize::from(leaving.is_some());
        let early = self.planted.is(Bug::DropLeaving);
        let whole = config.primary.is_some() && config.in_sync.len() >= if early { copies } else { replicas.len() };
        let place = Place { epoch: config.epoch, mine, leaves: leaving == Some(device), whole, trusted };
        let node = self.nodes.get_mut(&device).expect("known node");
        if node.places.get(&pg).is_some_and(|known| known.epoch > place.epoch) {
            return Ok(());
        }
        node.places.insert(pg, place);
        if !node.stores.contains_key(&pg) {
            return Ok(());
        }
        let half = node.departed.get(&pg) == Some(&Stage::Dropping);
        if mine && !half {
            node.departed.remove(&pg);
        }
        // Half a copy takes part in nothing.
        if half && !self.planted.is(Bug::ActOnHalfCopy) {
            return Ok(());
        }
        if mine && !half {
            node.stores.get_mut(&pg).expect("seen above").row = true;
        }
        self.step(device, pg, Event::Config { config, joiners })
    }

    /// With each tick of a device.
    pub(super) fn look_for_departed(&mut self, device: DeviceId) -> Result<(), String> {
        let early = self.planted.is(Bug::DropLeaving);
        let places: BTreeMap<PgId, Place> = self.nodes[&device].places.clone();
        for (pg, place) in places {
            let away = place.trusted && (!place.mine || (early && place.leaves));
            let node = self.nodes.get_mut(&device).expect("known node");
            let (Some(store), Some(core)) = (node.stores.get_mut(&pg), node.pgs.get(&pg)) else { continue };
            let stage = node.departed.get(&pg).copied();
            let next = match stage {
                // A member of an in-sync set is never destroyed, whatever the rows say.
                Some(Stage::Dropping) if !place.trusted => stage,
                Some(Stage::Dropping) if !store.drop_some() => stage,
                Some(Stage::Dropping) => {
                    node.departed.remove(&pg);
                    node.dropped_in.insert(pg, place.epoch);
                    self.dropped(device, pg)?;
                    continue;
                }
                _ if !away => None,
                None if store.row => Some(Stage::Away { since: self.now }),
                None => None,
                Some(Stage::Away { since }) => {
                    let status = core.status();
                    let left = early
                        || status.epoch == place.epoch && matches!(status.role, RoleName::Joiner | RoleName::Outside);
                    let due = self.now >= since + GRACE_NS && place.whole;
                    match due && left {
                        true => Some(Stage::Forgetting { until: self.now + self.decay.below(100) * MS }),
                        false => stage,
                    }
                }
                Some(Stage::Forgetting { until }) if self.now < until => {
                    if self.planted.is(Bug::DropChunksFirst) {
                        store.drop_some();
                    }
                    stage
                }
                Some(Stage::Forgetting { .. }) => {
                    store.row = false;
                    Some(Stage::Dropping)
                }
            };
            match next {
                Some(stage) => drop(node.departed.insert(pg, stage)),
                None => drop(node.departed.remove(&pg)),
            }
        }
        Ok(())
    }

    /// Nothing is left of it: what was withheld may come.
    fn dropped(&mut self, device: DeviceId, pg: PgId) -> Result<(), String> {
        if let Some(plans) = &mut self.plans {
            plans.dropped += 1;
        }
        if !self.planted.is(Bug::KeepMarkOfDropped) {
            self.step(device, pg, Event::Emptied)?;
        }
        let delay = self.mdm_delay(device);
        let incarnation = self.nodes[&device].incarnation;
        self.after(delay, Happening::Fetch(device, incarnation, pg));
        Ok(())
    }

    /// What lost its place is gone, and no row speaks of half a copy (S19).
    pub(super) fn no_rests(&self) -> Result<(), String> {
        for (device, node) in &self.nodes {
            for (pg, store) in &node.stores {
                let left: Vec<&ChunkId> = store.durable.chunks.keys().collect();
                if !self.mdm.replicas(*pg).contains(device) && !left.is_empty() {
                    let (place, stage) = (node.places.get(pg), node.departed.get(pg));
                    let core = node.pgs.get(pg).map(|core| core.status());
                    return Err(format!(
                        "pg {pg}: {device} has no place for it and keeps {} chunks: {place:?}, {stage:?}, {core:?}",
                        left.len()
                    ));
                }
            }
        }
        Ok(())
    }
}
