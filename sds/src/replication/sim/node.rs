//! One device of the simulated cluster: its replicas, stores, leases, clock, and what is wrong with it.

use std::collections::{BTreeMap, HashMap};

use pflex_proto::ids::{DeviceId, Epoch, Incarnation, Member, PgId};

use crate::replication::planted::Planted;
use crate::replication::{Effect, Event, Leases, Pg, PgConfig, Time};

use super::doubling::Groups;
use super::mdm::member;
use super::moves::{Place, Stage};
use super::rng::Rng;
use super::store::{Data, PgStore};

/// See the module.
pub(super) struct Node {
    pub(super) device: DeviceId,
    pub(super) incarnation: Incarnation,
    pub(super) up: bool,
    pub(super) pgs: BTreeMap<PgId, Pg<Data>>,
    pub(super) stores: BTreeMap<PgId, PgStore>,
    pub(super) leases: Leases,
    /// When the last flush asked for ends, per group: flushes end in order.
    pub(super) flush_ends: HashMap<PgId, u64>,
    pub(super) paused_until: u64,
    pub(super) slow_until: u64,
    /// No message to or from the MDM gets through before this.
    pub(super) mdm_cut_until: u64,
    /// The connections this life knows of.
    pub(super) connected: Vec<Member>,
    /// What this life knows of where its groups are, and which copies are on their way out.
    pub(super) places: BTreeMap<PgId, Place>,
    pub(super) departed: BTreeMap<PgId, Stage>,
    /// Copies that were dropped wholly, and in which epoch they had lost their place.
    pub(super) dropped_in: BTreeMap<PgId, Epoch>,
    /// Its chunks are sorted into twice as many groups; on its disk, so it outlives crashes.
    pub(super) doubled: bool,
    /// The next store change fails for want of space.
    pub(super) full: bool,
    /// The clock runs at this many parts per thousand, from this.
    rate: u64,
    offset: u64,
}

impl Node {
    pub(super) fn new(device: DeviceId, rng: &mut Rng) -> Self {
        // Any two rates are within 10 % of one another, which is what leases allow for.
        let (rate, offset) = (rng.between(955, 1045), rng.below(1 << 40));
        let mut node = Self {
            device,
            incarnation: Incarnation(0),
            up: false,
            pgs: BTreeMap::new(),
            stores: BTreeMap::new(),
            leases: Leases::new(member(device, Incarnation(0)), Time(0)),
            flush_ends: HashMap::new(),
            paused_until: 0,
            slow_until: 0,
            mdm_cut_until: 0,
            connected: Vec::new(),
            places: BTreeMap::new(),
            departed: BTreeMap::new(),
            dropped_in: BTreeMap::new(),
            doubled: false,
            full: false,
            rate,
            offset,
        };
        node.incarnation = Incarnation(0);
        node
    }

    pub(super) fn member(&self) -> Member {
        member(self.device, self.incarnation)
    }

    /// Whether a member of this configuration still has what it was given then: who is behind may not have heard that the
    /// copy was dropped since, and that another one may have been begun in its place.
    pub(super) fn counts_in(&self, config: &PgConfig, groups: Groups) -> bool {
        self.store_of(config.pg, groups).is_some_and(|store| store.row)
            && self.dropped_in.get(&config.pg).is_none_or(|lost| *lost <= config.epoch)
    }

    pub(super) fn clock(&self, now: u64) -> Time {
        Time(self.offset + now / 1000 * self.rate)
    }

    /// A new life on what the disk holds (S2: the incarnation is raised at each open).
    pub(super) fn open(&mut self, now: u64, planted: Planted) {
        self.incarnation = self.incarnation.next();
        self.up = true;
        self.full = false;
        (self.paused_until, self.slow_until) = (0, 0);
        self.flush_ends.clear();
        self.connected.clear();
        self.places.clear();
        // Data without a row is half a copy.
        let rests = self.stores.iter().filter(|(_, store)| store.is_rest());
        self.departed = rests.map(|(pg, _)| (*pg, Stage::Dropping)).collect();
        self.leases = Leases::new(self.member(), self.clock(now));
        let own = self.member();
        self.pgs = self
            .stores
            .iter()
            .map(|(id, store)| (*id, Pg::with_planted(*id, own, store.applied.recovered(), &self.leases, planted)))
            .collect();
    }

    pub(super) fn crash(&mut self, rng: &mut Rng) {
        self.up = false;
        self.pgs.clear();
        for store in self.stores.values_mut() {
            store.crash(rng);
        }
    }

    pub(super) fn handle(&mut self, now: u64, pg: PgId, event: Event<Data>) -> Vec<Effect<Data>> {
        let mut out = Vec::new();
        let clock = self.clock(now);
        if let Event::Config { config, .. } = &event {
            // A newer life has registered: the one before has ended.
            for member in &config.in_sync {
                self.leases.ended(member.device, Incarnation(member.incarnation.0.saturating_sub(1)));
            }
        }
        if let Some(pg) = self.pgs.get_mut(&pg) {
            pg.handle(clock, &self.leases, event, &mut out);
        }
        out
    }

    /// I3: this device would answer a read of the group now.
    pub(super) fn may_read(&self, now: u64, pg: PgId) -> bool {
        self.up && self.pgs.get(&pg).is_some_and(|pg| pg.may_read(self.clock(now), &self.leases))
    }

    pub(super) fn disk_delay(&self, now: u64, rng: &mut Rng) -> u64 {
        if now < self.slow_until { rng.between(50_000_000, 900_000_000) } else { rng.between(50_000, 3_000_000) }
    }
}
