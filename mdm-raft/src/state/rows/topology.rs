//! Rows of domains, pools, fault sets, SDSs, devices and SDCs.

use pflex_proto::{
    ids::{
        ByteCount, DeviceId, DeviceUuid, DomainId, FaultSetId, Incarnation, LogTime, PgIndex, PoolId, ProcessId,
        Revision, SdcId, SdsId,
    },
    rebuild::{RebuildMode, RebuildPolicy},
};

use super::{
    Row, RowError, bad,
    health::{losses, losses_message},
    key::{KeyWriter, one_u32},
    open, optional, proto, seal,
    work::{moment, moment_row},
};
use crate::state::{
    model::{
        Addresses, Device, DeviceFaults, Domain, FaultSet, Freeze, NoRoom, Pool, PoolScrub, Registration, ScrubFound,
        Sdc, Sds, WritePolicy,
    },
    table::Table,
};

/// The parts of `Row` that are the same for every table keyed by one 32-bit id.
macro_rules! keyed_by_u32 {
    ($table:ident, $key:ident) => {
        const TABLE: Table = Table::$table;
        type Key = $key;

        fn key(&self) -> $key {
            self.id
        }

        fn encode_key(key: $key) -> Vec<u8> {
            KeyWriter::default().u32(key.get()).done()
        }
    };
}

impl Row for Domain {
    keyed_by_u32!(ProtectionDomains, DomainId);

    fn encode(&self) -> Vec<u8> {
        seal(&proto::Domain { name: self.name.clone() })
    }

    fn decode(key: &[u8], value: &[u8]) -> Result<Self, RowError> {
        let row: proto::Domain = open(value)?;
        Ok(Self { id: DomainId(one_u32(key)?), name: row.name })
    }
}

impl Row for FaultSet {
    keyed_by_u32!(FaultSets, FaultSetId);

    fn encode(&self) -> Vec<u8> {
        seal(&proto::FaultSet { domain: self.domain.get(), name: self.name.clone() })
    }

    fn decode(key: &[u8], value: &[u8]) -> Result<Self, RowError> {
        let row: proto::FaultSet = open(value)?;
        Ok(Self { id: FaultSetId(one_u32(key)?), domain: DomainId(row.domain), name: row.name })
    }
}

impl Row for Pool {
    keyed_by_u32!(StoragePools, PoolId);

    fn encode(&self) -> Vec<u8> {
        seal(&proto::Pool {
            domain: self.domain.get(),
            name: self.name.clone(),
            copies: self.copies,
            pg_count: self.pg_count,
            write_policy: match self.write_policy {
                WritePolicy::Sync => 1,
                WritePolicy::Writeback => 2,
            },
            used: self.used,
            frozen: self.frozen.iter().map(|(index, freeze)| (index.get(), freeze_row(*freeze))).collect(),
            // The default is no row: should it change, it does for all who never chose.
            rebuild: Some(self.rebuild).filter(|policy| *policy != RebuildPolicy::default()).map(policy_row),
            scrub: self.scrub.map(scrub_row),
            left_alone: self.left_alone,
            first_pg_count: if self.has_doubled() { self.first_pg_count } else { 0 },
        })
    }

    fn decode(key: &[u8], value: &[u8]) -> Result<Self, RowError> {
        let row: proto::Pool = open(value)?;
        let write_policy = match row.write_policy {
            1 => WritePolicy::Sync,
            2 => WritePolicy::Writeback,
            other => return Err(bad("write policy", other)),
        };
        if !row.pg_count.is_power_of_two() {
            return Err(bad("pg count", row.pg_count));
        }
        let first_pg_count = if row.first_pg_count == 0 { row.pg_count } else { row.first_pg_count };
        if !first_pg_count.is_power_of_two() || first_pg_count > row.pg_count {
            return Err(bad("first pg count", first_pg_count));
        }
        Ok(Self {
            id: PoolId(one_u32(key)?),
            domain: DomainId(row.domain),
            name: row.name,
            copies: row.copies,
            pg_count: row.pg_count,
            first_pg_count,
            write_policy,
            used: row.used,
            frozen: row
                .frozen
                .into_iter()
                .map(|(index, row)| (PgIndex(index), Freeze { device: DeviceId(row.device), at: Revision(row.at) }))
                .collect(),
            rebuild: row.rebuild.map(policy).transpose()?.unwrap_or_default(),
            scrub: row.scrub.map(scrub),
            left_alone: row.left_alone,
        })
    }
}

fn scrub_row(scrub: PoolScrub) -> proto::PoolScrub {
    let ScrubFound { chunks, bad_blocks, mismatches, unreadable_chunks } = scrub.found;
    proto::PoolScrub {
        pass: scrub.pass,
        started: Some(moment_row(scrub.started)),
        ended: scrub.ended.map(moment_row),
        chunks,
        bad_blocks,
        mismatches,
        unreadable_chunks,
    }
}

fn scrub(row: proto::PoolScrub) -> PoolScrub {
    let proto::PoolScrub { pass, started, ended, chunks, bad_blocks, mismatches, unreadable_chunks } = row;
    PoolScrub {
        pass,
        started: moment(started.unwrap_or_default()),
        ended: ended.map(moment),
        found: ScrubFound { chunks, bad_blocks, mismatches, unreadable_chunks },
    }
}

const fn faults_row(faults: DeviceFaults) -> proto::DeviceFaults {
    proto::DeviceFaults {
        incarnation: faults.incarnation.get(),
        repaired_blocks: faults.repaired_blocks,
        unreadable_blocks: faults.unreadable_blocks,
        scrub_bad_blocks: faults.scrub_bad_blocks,
        scrub_mismatches: faults.scrub_mismatches,
        noted_log_ms: faults.noted.get(),
    }
}

const fn faults(row: proto::DeviceFaults) -> DeviceFaults {
    DeviceFaults {
        incarnation: Incarnation(row.incarnation),
        repaired_blocks: row.repaired_blocks,
        unreadable_blocks: row.unreadable_blocks,
        scrub_bad_blocks: row.scrub_bad_blocks,
        scrub_mismatches: row.scrub_mismatches,
        noted: LogTime(row.noted_log_ms),
    }
}

const fn freeze_row(freeze: Freeze) -> proto::Freeze {
    proto::Freeze { device: freeze.device.get(), at: freeze.at.get() }
}

impl From<&Registration> for proto::Registration {
    fn from(registration: &Registration) -> Self {
        let addresses = registration.addresses.clone();
        Self {
            process: registration.process.as_bytes().to_vec(),
            data: addresses.data,
            control: addresses.control,
            management: addresses.management,
            raft: addresses.raft,
            api: addresses.api,
            nbd: addresses.nbd,
            version: registration.version.clone(),
            at_wall_ms: registration.at_wall_ms,
            count: registration.count,
            host_name: registration.host_name.clone(),
            follows_doubling: registration.follows_doubling,
        }
    }
}

pub(super) fn registration(row: Option<proto::Registration>) -> Result<Option<Registration>, RowError> {
    let Some(row) = row else { return Ok(None) };
    Ok(Some(Registration {
        process: ProcessId::from_slice(&row.process).map_err(|why| bad("process id", why))?,
        addresses: Addresses {
            data: row.data,
            control: row.control,
            management: row.management,
            raft: row.raft,
            api: row.api,
            nbd: row.nbd,
        },
        version: row.version,
        at_wall_ms: row.at_wall_ms,
        count: row.count,
        host_name: row.host_name,
        follows_doubling: row.follows_doubling,
    }))
}

fn policy_row(policy: RebuildPolicy) -> proto::RebuildPolicy {
    let RebuildPolicy { mode, bytes_per_second, concurrency, paused, spare_percent } = policy;
    proto::RebuildPolicy { mode: mode.number(), bytes_per_second, concurrency, paused, spare_percent }
}

fn policy(row: proto::RebuildPolicy) -> Result<RebuildPolicy, RowError> {
    let proto::RebuildPolicy { mode, bytes_per_second, concurrency, paused, spare_percent } = row;
    let mode = RebuildMode::from_number(mode).ok_or_else(|| bad("rebuild mode", mode))?;
    Ok(RebuildPolicy { mode, bytes_per_second, concurrency, paused, spare_percent })
}

impl Row for Sds {
    keyed_by_u32!(SdsNodes, SdsId);

    fn encode(&self) -> Vec<u8> {
        seal(&proto::Sds {
            name: self.name.clone(),
            domain: self.domain.get(),
            fault_set: self.fault_set.map_or(0, FaultSetId::get),
            registration: self.registration.as_ref().map(Into::into),
            alive: self.alive,
            former_name: self.former_name.clone().unwrap_or_default(),
            awaited: self.awaited,
            proven_dead: self.proven_dead,
            maintenance: self.maintenance.map(moment_row),
            protected: self.protected.map(moment_row),
        })
    }

    fn decode(key: &[u8], value: &[u8]) -> Result<Self, RowError> {
        let row: proto::Sds = open(value)?;
        Ok(Self {
            id: SdsId(one_u32(key)?),
            name: row.name,
            domain: DomainId(row.domain),
            fault_set: optional(row.fault_set),
            registration: registration(row.registration)?,
            alive: row.alive,
            former_name: Some(row.former_name).filter(|name| !name.is_empty()),
            awaited: row.awaited,
            proven_dead: row.proven_dead,
            maintenance: row.maintenance.map(moment),
            protected: row.protected.map(moment),
        })
    }
}

impl Row for Device {
    keyed_by_u32!(Devices, DeviceId);

    fn encode(&self) -> Vec<u8> {
        seal(&proto::Device {
            uuid: self.uuid.as_bytes().to_vec(),
            sds: self.sds.get(),
            pool: self.pool.map_or(0, PoolId::get),
            incarnation: self.incarnation.get(),
            capacity_bytes: self.capacity.get(),
            path: self.path.clone(),
            alive: self.alive,
            losses_log_ms: losses_message(&self.losses),
            awaited: self.awaited,
            reported_by: self.reported_by.map(|process| process.as_bytes().to_vec()).unwrap_or_default(),
            lost_at_log_ms: self.lost_at.map(LogTime::get),
            slow: self.slow.clone().unwrap_or_default(),
            faults: self.faults.map(faults_row),
            draining: self.draining.map(moment_row),
            lent: self.lent,
            owed: self.owed,
            no_room: self
                .no_room
                .map(|no_room| proto::NoRoom { until_log_ms: no_room.until.get(), pause_ms: no_room.pause_ms }),
        })
    }

    fn decode(key: &[u8], value: &[u8]) -> Result<Self, RowError> {
        let row: proto::Device = open(value)?;
        Ok(Self {
            id: DeviceId(one_u32(key)?),
            uuid: DeviceUuid::from_slice(&row.uuid).map_err(|why| bad("device uuid", why))?,
            sds: SdsId(row.sds),
            pool: optional(row.pool),
            incarnation: Incarnation(row.incarnation),
            capacity: ByteCount(row.capacity_bytes),
            path: row.path,
            alive: row.alive,
            losses: losses(row.losses_log_ms),
            awaited: row.awaited,
            reported_by: match row.reported_by.as_slice() {
                [] => None,
                bytes => Some(ProcessId::from_slice(bytes).map_err(|why| bad("process id", why))?),
            },
            lost_at: row.lost_at_log_ms.map(LogTime),
            slow: Some(row.slow).filter(|why| !why.is_empty()),
            faults: row.faults.map(faults),
            draining: row.draining.map(moment),
            lent: row.lent,
            owed: row.owed,
            no_room: row.no_room.map(|row| NoRoom { until: LogTime(row.until_log_ms), pause_ms: row.pause_ms }),
        })
    }
}

impl Row for Sdc {
    keyed_by_u32!(SdcClients, SdcId);

    fn encode(&self) -> Vec<u8> {
        seal(&proto::Sdc {
            name: self.name.clone(),
            registration: self.registration.as_ref().map(Into::into),
            approved: self.approved,
            former_name: self.former_name.clone().unwrap_or_default(),
        })
    }

    fn decode(key: &[u8], value: &[u8]) -> Result<Self, RowError> {
        let row: proto::Sdc = open(value)?;
        Ok(Self {
            id: SdcId(one_u32(key)?),
            name: row.name,
            registration: registration(row.registration)?,
            approved: row.approved,
            former_name: Some(row.former_name).filter(|name| !name.is_empty()),
        })
    }
}
