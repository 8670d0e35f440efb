//! What services ask the state: by id, by name, and sums.

use std::{collections::BTreeMap, ops::Bound};

use pflex_proto::ids::{
    ByteCount, DeviceId, DomainId, FaultSetId, KeyId, LogTime, Member, PgId, PgIndex, PoolId, ProcessId, Revision,
    SdcId, SdsId, TokenId, VolumeId,
};

use super::{
    State,
    limits::OVERCOMMIT_RATIO,
    model::{
        BadTokens, ClusterMetrics, Component, Device, Domain, Event, FaultSet, Health, HeartbeatLog, IoToken, Kind,
        Mapping, Node, NodeMetadata, Pg, Pool, Registration, Sdc, Sds, Secret, Snapshot, SnapshotId, TokenChain,
        Volume,
    },
};
use crate::placement::Candidate;

/// How a placement group is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PgState {
    /// Every copy is in sync and alive.
    Active,
    /// It serves with fewer copies than it should have.
    Degraded,
    /// No in-sync copy is alive.
    Unavailable,
}

/// What a pool has and holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PoolUsage {
    /// Bytes of its devices divided by its copies.
    pub capacity: ByteCount,
    /// Sum of its volumes' sizes.
    pub provisioned: ByteCount,
    /// Groups with every copy in sync.
    pub active: u32,
    /// Groups that serve with fewer copies.
    pub degraded: u32,
    /// Groups without a live in-sync copy.
    pub unavailable: u32,
    /// Groups without devices yet.
    pub unassigned: u32,
}

impl PoolUsage {
    /// How many bytes of volumes it may have.
    pub fn limit(&self) -> ByteCount {
        ByteCount(self.capacity.get().saturating_mul(OVERCOMMIT_RATIO))
    }
}

/// How many rows of each kind there are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "each field is the table its name says")]
pub struct Usage {
    pub domains: usize,
    pub pools: usize,
    pub fault_sets: usize,
    pub sds: usize,
    pub devices: usize,
    pub sdcs: usize,
    pub nodes: usize,
    pub volumes: usize,
    pub sessions: usize,
    pub tokens: usize,
    pub bad_sources: usize,
    pub events: usize,
}

macro_rules! lookups {
    ($($one:ident, $by_name:ident, $all:ident: $row:ident by $id:ident in $table:ident;)*) => {$(
        #[doc = concat!("The ", stringify!($row), " with this id.")]
        pub fn $one(&self, id: $id) -> Option<&$row> {
            self.$table.get(id)
        }

        #[doc = concat!("The ", stringify!($row), " with this name.")]
        pub fn $by_name(&self, name: &str) -> Option<&$row> {
            self.names.$table.get(name).and_then(|id| self.$table.get(*id))
        }

        #[doc = concat!("Every ", stringify!($row), " in id order.")]
        pub fn $all(&self) -> impl ExactSizeIterator<Item = &$row> {
            self.$table.values()
        }
    )*};
}

impl State {
    lookups! {
        domain, domain_by_name, all_domains: Domain by DomainId in domains;
        pool, pool_by_name, all_pools: Pool by PoolId in pools;
        fault_set, fault_set_by_name, all_fault_sets: FaultSet by FaultSetId in fault_sets;
        sds, sds_by_name, all_sds: Sds by SdsId in sds;
        sdc, sdc_by_name, all_sdcs: Sdc by SdcId in sdcs;
        volume, volume_by_name, all_volumes: Volume by VolumeId in volumes;
    }

    /// How full the tables are that have limits.
    pub fn usage(&self) -> Usage {
        Usage {
            domains: self.domains.len(),
            pools: self.pools.len(),
            fault_sets: self.fault_sets.len(),
            sds: self.sds.len(),
            devices: self.devices.len(),
            sdcs: self.sdcs.len(),
            nodes: self.nodes.len(),
            volumes: self.volumes.len(),
            sessions: self.sessions.len(),
            tokens: self.tokens.len(),
            bad_sources: self.bad_tokens.len(),
            events: self.events.len(),
        }
    }

    /// The device with this id.
    pub fn device(&self, id: DeviceId) -> Option<&Device> {
        self.devices.get(id)
    }

    /// Every device in id order.
    pub fn all_devices(&self) -> impl ExactSizeIterator<Item = &Device> {
        self.devices.values()
    }

    /// The devices of an SDS.
    pub fn devices_of(&self, sds: SdsId) -> impl Iterator<Item = &Device> {
        self.devices.values().filter(move |device| device.sds == sds)
    }

    /// The SDSs of a fault set.
    pub fn sds_in(&self, set: FaultSetId) -> impl Iterator<Item = &Sds> {
        self.sds.values().filter(move |sds| sds.fault_set == Some(set))
    }

    /// The SDS whose process says this name when it registers: the one that has it, or the one that had it when its
    /// process last registered.
    pub fn sds_registering_as(&self, name: &str) -> Option<&Sds> {
        self.sds_by_name(name).or_else(|| self.sds_formerly(name))
    }

    /// As of an SDS.
    pub fn sdc_registering_as(&self, name: &str) -> Option<&Sdc> {
        self.sdc_by_name(name).or_else(|| self.sdc_formerly(name))
    }

    pub(super) fn sds_formerly(&self, name: &str) -> Option<&Sds> {
        self.sds.values().find(|sds| sds.former_name.as_deref() == Some(name))
    }

    pub(super) fn sdc_formerly(&self, name: &str) -> Option<&Sdc> {
        self.sdcs.values().find(|sdc| sdc.former_name.as_deref() == Some(name))
    }

    /// Registered MDMs and consoles.
    pub fn all_nodes(&self) -> impl ExactSizeIterator<Item = &Node> {
        self.nodes.values()
    }

    /// The machine of a component, as it said at its last registration.
    pub fn machine_of(&self, component: Component) -> Option<&NodeMetadata> {
        self.metadata.get(component)
    }

    /// The process of a component that registered last.
    pub fn process_of(&self, component: Component) -> Option<ProcessId> {
        let registration = match component.kind {
            Kind::Sds => self.sds(component.id.into())?.registration.as_ref(),
            Kind::Sdc => self.sdc(component.id.into())?.registration.as_ref(),
            Kind::Mdm | Kind::Mgmt => self.nodes.get(component).map(|node| &node.registration),
        };
        registration.map(|registration| registration.process)
    }

    /// A component as people call it; none if it is gone.
    pub fn component_label(&self, component: Component) -> Option<String> {
        let name = match component.kind {
            Kind::Sds => &self.sds(component.id.into())?.name,
            Kind::Sdc => &self.sdc(component.id.into())?.name,
            Kind::Mdm | Kind::Mgmt => &self.nodes.get(component)?.name,
        };
        Some(format!("{} {name}", component.kind))
    }

    /// Components whose wall clock is off, and by how many milliseconds it is ahead of the leader's.
    pub fn clocks_off(&self) -> impl Iterator<Item = (Component, i64)> {
        self.health.values().filter_map(|health| Some((health.component, health.clock_ahead_ms?)))
    }

    /// The component of this kind and name.
    pub fn component_named(&self, kind: Kind, name: &str) -> Option<Component> {
        let id = match kind {
            Kind::Sds => self.sds_by_name(name)?.id.get(),
            Kind::Sdc => self.sdc_by_name(name)?.id.get(),
            Kind::Mdm | Kind::Mgmt => {
                return self
                    .all_nodes()
                    .map(|n| (n.component, &n.name))
                    .find(|(c, n)| c.kind == kind && *n == name)
                    .map(|(component, _)| component);
            }
        };
        Some(Component { kind, id })
    }

    /// The last starts of a component, oldest first.
    pub fn registrations_of(&self, component: Component) -> impl Iterator<Item = &Registration> {
        self.history.range((component, 0)..=(component, u64::MAX)).map(|row| &row.registration)
    }

    /// The kept samples of sums, newest first.
    pub fn metrics_newest_first(&self) -> impl Iterator<Item = &ClusterMetrics> {
        self.metrics.values().rev()
    }

    /// How components reported, by the sample of the same command.
    pub fn heartbeats_at(&self, revision: Revision) -> Option<&HeartbeatLog> {
        self.heartbeats.get(revision)
    }

    /// How often a component stopped being ACTIVE in the minute, hour and day before `now`.
    pub fn oscillation_of(&self, component: Component, now: LogTime) -> [u32; 3] {
        self.health_of(component).map(|health| health.losses.counts(now)).unwrap_or_default()
    }

    /// The last status transition of a component.
    pub fn health_of(&self, component: Component) -> Option<&Health> {
        self.health.get(component)
    }

    /// The devices that may be given copies of a pool's groups: its own that are in service, and are to stay so and there.
    pub fn candidates(&self, pool: PoolId) -> Vec<Candidate> {
        self.candidates_if(pool, |device| device.alive && !self.is_in_maintenance(device.sds))
    }

    /// The same once every maintenance is over: what is planned for good does not depend on it.
    pub fn candidates_in_the_end(&self, pool: PoolId) -> Vec<Candidate> {
        self.candidates_if(pool, |device| device.alive || self.is_in_maintenance(device.sds))
    }

    fn candidates_if(&self, pool: PoolId, may: impl Fn(&Device) -> bool) -> Vec<Candidate> {
        let devices = self
            .devices
            .values()
            .filter(|device| device.pool == Some(pool) && device.draining.is_none() && may(device));
        let candidate = |device: &Device| {
            let domain = self.sds.get(device.sds)?.fault_domain();
            Some(Candidate { device: device.id, domain, capacity: device.capacity })
        };
        devices.filter_map(candidate).collect()
    }

    /// A placement group; none while its pool has too few devices.
    pub fn pg(&self, id: PgId) -> Option<&Pg> {
        self.pgs.get(id)
    }

    /// Every placed group, by pool and number.
    pub fn all_pgs(&self) -> impl ExactSizeIterator<Item = &Pg> {
        self.pgs.values()
    }

    /// The placed groups of a pool.
    pub fn pgs_of(&self, pool: PoolId) -> impl Iterator<Item = &Pg> {
        self.pgs.range(PgId { pool, index: PgIndex(0) }..=PgId { pool, index: PgIndex(u32::MAX) })
    }

    /// Whether the copy with this membership is alive in that very life.
    pub fn is_alive(&self, member: &Member) -> bool {
        self.devices.get(member.device).is_some_and(|d| d.alive && d.incarnation == member.incarnation)
    }

    /// How a group is.
    pub fn pg_state(&self, pg: &Pg) -> PgState {
        let alive = pg.config.in_sync.iter().filter(|member| self.is_alive(member)).count();
        if pg.config.primary.is_none() || alive == 0 {
            PgState::Unavailable
        } else if alive < pg.copies() {
            PgState::Degraded
        } else {
            PgState::Active
        }
    }

    /// The replicas of a group that are alive but not in sync: they join.
    pub fn joiners<'a>(&'a self, pg: &'a Pg) -> impl Iterator<Item = &'a Device> {
        pg.replicas
            .iter()
            .filter(|device| pg.config.member(**device).is_none())
            .filter_map(|device| self.devices.get(*device))
            .filter(|device| device.alive)
    }

    /// The snapshots of a volume, the oldest first.
    pub fn snapshots_of(&self, volume: VolumeId) -> impl Iterator<Item = &Snapshot> {
        self.snapshots.range((volume, SnapshotId(0))..=(volume, SnapshotId(u64::MAX)))
    }

    /// Every snapshot, by volume.
    pub fn all_snapshots(&self) -> impl ExactSizeIterator<Item = &Snapshot> {
        self.snapshots.values()
    }

    /// The mappings of a volume.
    pub fn mappings_of(&self, volume: VolumeId) -> impl Iterator<Item = &Mapping> {
        self.mappings.range((volume, SdcId(0))..=(volume, SdcId(u32::MAX)))
    }

    /// The mapping of a volume to an SDC.
    pub fn mapping(&self, volume: VolumeId, sdc: SdcId) -> Option<&Mapping> {
        self.mappings.get((volume, sdc))
    }

    /// Every mapping, by volume and SDC.
    pub fn all_mappings(&self) -> impl ExactSizeIterator<Item = &Mapping> {
        self.mappings.values()
    }

    /// The bytes a pool has and has promised, without its groups: cheap, however many volumes there are.
    pub(super) fn space_of(&self, pool: &Pool) -> PoolUsage {
        let sum = |sums: &BTreeMap<PoolId, u64>| sums.get(&pool.id).copied().unwrap_or_default();
        PoolUsage {
            capacity: ByteCount(sum(&self.sums.capacity) / u64::from(pool.copies)),
            provisioned: ByteCount(sum(&self.sums.provisioned)),
            ..PoolUsage::default()
        }
    }

    /// What a pool has and holds.
    pub fn usage_of(&self, pool: &Pool) -> PoolUsage {
        let mut usage = self.space_of(pool);
        for pg in self.pgs_of(pool.id) {
            match self.pg_state(pg) {
                PgState::Active => usage.active += 1,
                PgState::Degraded => usage.degraded += 1,
                PgState::Unavailable => usage.unavailable += 1,
            }
        }
        usage.unassigned = pool.pg_count - (usage.active + usage.degraded + usage.unavailable);
        usage
    }

    /// The newest events after a revision, oldest first.
    pub fn events_after(&self, revision: Revision) -> impl DoubleEndedIterator<Item = &Event> {
        self.events.range((Bound::Excluded(revision), Bound::Unbounded))
    }

    /// The event of a command, if it is still kept.
    pub fn event(&self, revision: Revision) -> Option<&Event> {
        self.events.get(revision)
    }

    /// A generation of the cluster secret.
    pub fn secret(&self, key: KeyId) -> Option<&Secret> {
        self.secrets.get(key).map(|row| &row.secret)
    }

    /// Every generation of the cluster secret that may still verify.
    pub fn all_secrets(&self) -> impl ExactSizeIterator<Item = (KeyId, &Secret)> {
        self.secrets.values().map(|row| (row.key, &row.secret))
    }

    /// The generation that verifies and does not sign yet.
    pub fn next_key(&self) -> Option<KeyId> {
        let signing = self.cluster()?.newest_key;
        self.secrets.values().next_back().map(|row| row.key).filter(|newest| *newest > signing)
    }

    /// The generation that signs no more, and when the last token it signed expires.
    pub fn retiring_key(&self) -> Option<(KeyId, LogTime)> {
        self.secrets.values().find_map(|row| Some((row.key, row.last_expiry?)))
    }

    /// The live SDSs, each with the process that must have a new generation before it signs.
    pub fn live_sds(&self) -> impl Iterator<Item = (&Sds, ProcessId)> {
        self.sds.values().filter(|sds| sds.alive).filter_map(|sds| Some((sds, sds.registration.as_ref()?.process)))
    }

    /// The record of a token.
    pub fn token(&self, id: TokenId) -> Option<&IoToken> {
        self.tokens.get(id)
    }

    /// Who sent tokens that were refused; first who did last.
    pub fn bad_tokens_newest_first(&self) -> Vec<&BadTokens> {
        let mut rows: Vec<_> = self.bad_tokens.values().collect();
        rows.sort_by_key(|row| std::cmp::Reverse(row.last));
        rows
    }

    /// Every recorded token, newest first.
    pub fn tokens_newest_first(&self) -> impl Iterator<Item = &IoToken> {
        self.tokens.values().rev()
    }

    /// The chain that the token records form, and all of them, oldest first: a copy, because looking them through takes a
    /// while.
    pub fn token_records(&self) -> (TokenChain, Vec<IoToken>) {
        (self.token_chain(), self.tokens.values().cloned().collect())
    }

    /// Whether the token records still form the chain their links claim.
    ///
    /// # Errors
    /// See [`TokenChain::verify`].
    pub fn verify_token_chain(&self) -> Result<(), TokenId> {
        self.token_chain().verify(self.tokens.values())
    }
}
