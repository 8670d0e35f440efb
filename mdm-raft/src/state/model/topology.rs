//! Domains, pools, fault sets, SDSs, devices and SDCs.

use std::collections::BTreeMap;

use pflex_proto::{
    ids::{
        ByteCount, DeviceId, DeviceUuid, DomainId, FaultSetId, Incarnation, LogTime, PgIndex, PoolId, ProcessId,
        Revision, SdcId, SdsId,
    },
    rebuild::RebuildPolicy,
};

use super::{Component, DeviceFaults, Losses, Moment, PoolScrub};
use crate::placement::FaultDomain;

/// A protection domain: SDSs and pools that have nothing to do with those of another.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Domain {
    /// Its id.
    pub id: DomainId,
    /// Unique.
    pub name: String,
}

/// SDSs that fail together. Made by its own command or by the first SDS that names it; stays until it is deleted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FaultSet {
    /// Its id.
    pub id: FaultSetId,
    /// Where it is.
    pub domain: DomainId,
    /// Unique in the cluster.
    pub name: String,
}

/// When a write is acknowledged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WritePolicy {
    /// When every in-sync copy has it durable.
    Sync,
    /// When every in-sync copy has it in memory.
    Writeback,
}

/// A storage pool.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pool {
    /// Its id.
    pub id: PoolId,
    /// Where it is.
    pub domain: DomainId,
    /// Unique in the cluster: volumes name only the pool.
    pub name: String,
    /// Copies of every chunk.
    pub copies: u32,
    /// Placement groups; a power of two, which may only double (S25).
    pub pg_count: u32,
    /// As many as it was made with. A store that never heard of doubling is sorted into these.
    pub first_pg_count: u32,
    /// When a write is acknowledged.
    pub write_policy: WritePolicy,
    /// Has had a volume. Until then its groups hold nothing and are placed anew when a device comes.
    pub used: bool,
    /// Groups of which an operator is promoting a copy by force: nobody gets a token for the pool meanwhile (S12).
    pub frozen: BTreeMap<PgIndex, Freeze>,
    /// How fast its copies are filled.
    pub rebuild: RebuildPolicy,
    /// The last scrub; none before the first.
    pub scrub: Option<PoolScrub>,
    /// An operator ended its rebalance: none begins by itself until he asks for one, or a device comes.
    pub left_alone: bool,
}

impl Pool {
    /// Whether its groups have doubled since it was made (S25): who does not follow that looks for chunks in wrong ones.
    pub const fn has_doubled(&self) -> bool {
        self.pg_count > self.first_pg_count
    }
}

/// A forced promotion on its way. Nobody becomes primary of its group until it is carried out or given up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Freeze {
    /// Whose copy.
    pub device: DeviceId,
    /// The command that froze the group.
    pub at: Revision,
}

/// `host:port` of each plane; empty where there is none.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[allow(missing_docs, reason = "the names of the planes")]
pub struct Addresses {
    pub data: String,
    pub control: String,
    pub management: String,
    pub raft: String,
    pub api: String,
    pub nbd: String,
}

/// The last start of a component's process.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Registration {
    /// Which process.
    pub process: ProcessId,
    /// Where it listens.
    pub addresses: Addresses,
    /// Its binary's version.
    pub version: String,
    /// When, by the leader's wall clock; for people.
    pub at_wall_ms: u64,
    /// How many starts so far.
    pub count: u64,
    /// The machine it was on.
    pub host_name: String,
    /// Its build knows what to do when the groups of a pool double (S25).
    pub follows_doubling: bool,
}

impl Registration {
    /// Of before a restore: whoever it was registers again before anything else is heard from it (S19).
    pub fn is_void(&self) -> bool {
        self.process == ProcessId::default()
    }

    /// It runs, and would look for chunks in groups that they have left (S25).
    pub fn ignores_doubling(&self) -> bool {
        !self.follows_doubling && !self.is_void()
    }
}

/// One remembered start of a component.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HistoryRow {
    /// Whose.
    pub component: Component,
    /// The start.
    pub registration: Registration,
}

/// A storage data server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sds {
    /// Its id.
    pub id: SdsId,
    /// Unique.
    pub name: String,
    /// Where it is.
    pub domain: DomainId,
    /// What it fails with, if not alone.
    pub fault_set: Option<FaultSetId>,
    /// Its last start; none until it is seen.
    pub registration: Option<Registration>,
    /// The liveness verdict on that process.
    pub alive: bool,
    /// What it was called when its process registered last, if it was renamed since: that process knows no other name,
    /// so nobody else may have it.
    pub former_name: Option<String>,
    /// It has not registered since the cluster was restored from a backup (S19).
    pub awaited: bool,
    /// Its registered process has ended, as the leader has seen (S8): nobody need wait for what it was granted.
    pub proven_dead: bool,
    /// When it entered maintenance: an operator stops it for a while. None: it is not in maintenance.
    pub maintenance: Option<Moment>,
    /// When a protected maintenance was asked for, until its end: before `maintenance` all copies move elsewhere.
    pub protected: Option<Moment>,
}

impl Sds {
    /// What no two copies of a group may share.
    pub fn fault_domain(&self) -> FaultDomain {
        self.fault_set.map_or(FaultDomain::Sds(self.id), FaultDomain::Set)
    }

    /// Whether its copies are moved elsewhere, so that it may then be in maintenance.
    pub const fn is_preparing(&self) -> bool {
        self.protected.is_some() && self.maintenance.is_none()
    }

    /// Whether `process` is the one that registered last.
    pub fn runs(&self, process: ProcessId) -> bool {
        self.registration.as_ref().is_some_and(|r| r.process == process)
    }
}

/// A device of an SDS.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Device {
    /// Its id.
    pub id: DeviceId,
    /// As formatted.
    pub uuid: DeviceUuid,
    /// Whose it is.
    pub sds: SdsId,
    /// Where its capacity goes; none when its domain has no pool.
    pub pool: Option<PoolId>,
    /// The newest life that registered (S2).
    pub incarnation: Incarnation,
    /// Of the data area.
    pub capacity: ByteCount,
    /// On the SDS's machine, for people.
    pub path: String,
    /// Open in the registered process, and neither it nor its SDS was found lost since.
    pub alive: bool,
    /// When it was lost by itself, its SDS staying.
    pub losses: Losses,
    /// It has not registered since the cluster was restored from a backup (S19).
    pub awaited: bool,
    /// The process that has reported all it knew from before the restore; until the device is registered.
    pub reported_by: Option<ProcessId>,
    /// Since when it is out of service; none while it is in service.
    pub lost_at: Option<LogTime>,
    /// How much slower its disk is than those of its peers, in words.
    pub slow: Option<String>,
    /// What was wrong with its disk, as last noted; none while nothing was.
    pub faults: Option<DeviceFaults>,
    /// When it began to be emptied: it gets no copies, and those it has move away. None: it is not.
    pub draining: Option<Moment>,
    /// It is emptied only for a protected maintenance of its SDS, and draining ends with that.
    pub lent: bool,
    /// Its copies left for a protected maintenance that is over. Its share comes back once it is in service, whatever
    /// `rebalance.auto` is; until a rebalance has seen to that.
    pub owed: bool,
    /// It had no room for a copy that was to be filled there.
    pub no_room: Option<NoRoom>,
}

/// A device that had no room for a copy is given none for a while, longer each time: what a move copied is dropped when it
/// is called off, so a device that is nearly full would be chosen, filled and emptied for ever.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoRoom {
    /// It is given no copies before.
    pub until: LogTime,
    /// How long that was.
    pub pause_ms: u64,
}

impl NoRoom {
    const SHORTEST_MS: u64 = 10 * 60 * 1_000;
    const LONGEST_MS: u64 = 24 * 60 * 60 * 1_000;

    /// It had none just now. One that was well for a day begins anew.
    pub fn again(before: Option<Self>, now: LogTime) -> Self {
        let lately = before.filter(|before| now.get().saturating_sub(before.until.get()) < Self::LONGEST_MS);
        let pause_ms = lately.map_or(Self::SHORTEST_MS, |before| (before.pause_ms * 2).min(Self::LONGEST_MS));
        Self { until: LogTime(now.get().saturating_add(pause_ms)), pause_ms }
    }
}

impl Device {
    /// Until when it is given no copies, because it had no room for one.
    pub fn without_room(&self, now: LogTime) -> Option<LogTime> {
        self.no_room.map(|no_room| no_room.until).filter(|until| now < *until)
    }

    /// Whether it may have copies: in service, and not to be emptied.
    pub const fn is_here(&self) -> bool {
        self.alive && self.draining.is_none()
    }

    /// Takes it into service or out of it. One that is out already keeps the time since when.
    pub fn serve(&mut self, alive: bool, now: LogTime) {
        self.alive = alive;
        self.lost_at = if alive { None } else { Some(self.lost_at.unwrap_or(now)) };
    }
}

/// A storage data client.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sdc {
    /// Its id.
    pub id: SdcId,
    /// Unique.
    pub name: String,
    /// Its last start; none until it is seen.
    pub registration: Option<Registration>,
    /// May get tokens.
    pub approved: bool,
    /// As of an SDS.
    pub former_name: Option<String>,
}
