//! The map's objects, checked when they arrive.

use pflex_proto::{
    ids::{
        ByteCount, DeviceId, DeviceUuid, DomainId, FaultSetId, Incarnation, LayerId, PgIndex, PoolId, SdcId, SdsId,
        VolumeEpoch, VolumeId, VtreeId,
    },
    pb,
    pg::MalformedMessage,
    rebuild::RebuildPolicy,
    token::TokenMode,
};

use crate::net::Endpoint;

/// A pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolInfo {
    /// Its id.
    pub id: PoolId,
    /// Its name.
    pub name: String,
    /// Its protection domain.
    pub domain: DomainId,
    /// How many copies each chunk has.
    pub copies: u32,
    /// How many placement groups; a power of two.
    pub pg_count: u32,
    /// As it was made with: groups may have doubled since (S25).
    pub first_pg_count: u32,
    /// Whether writes are answered from memory.
    pub writeback: bool,
    /// Groups of which a copy is being promoted by force, and that copy: the pool gets no tokens meanwhile (S12).
    pub frozen: Vec<(PgIndex, DeviceId)>,
    /// How fast copies are filled.
    pub rebuild: RebuildPolicy,
}

/// A storage server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SdsInfo {
    /// Its id.
    pub id: SdsId,
    /// Its name.
    pub name: String,
    /// Its protection domain.
    pub domain: DomainId,
    /// What it fails together with.
    pub fault_set: FaultSetId,
    /// Its data plane; none before its first registration.
    pub data: Option<Endpoint>,
    /// Its control plane.
    pub control: Option<Endpoint>,
    /// Its management plane.
    pub management: Option<Endpoint>,
    /// The MDM's verdict.
    pub alive: bool,
    /// The leader has seen that this process has ended (S8).
    pub proven_dead: bool,
}

/// A device of an SDS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Its id.
    pub id: DeviceId,
    /// Its server.
    pub sds: SdsId,
    /// As formatted.
    pub uuid: DeviceUuid,
    /// Its life at the last registration.
    pub incarnation: Incarnation,
    /// Its pool, if it has one.
    pub pool: Option<PoolId>,
    /// Bytes of its data area.
    pub capacity: ByteCount,
    /// In service: open in its server's registered process, and not found lost since.
    pub alive: bool,
}

/// A client host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SdcInfo {
    /// Its id.
    pub id: SdcId,
    /// Its name.
    pub name: String,
}

/// What a mapping allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reads.
    ReadOnly,
    /// Reads and writes.
    ReadWrite,
}

/// How much a mapping allows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Operations a second; 0 for any.
    pub iops: u64,
    /// Bytes a second; 0 for any.
    pub bandwidth: u64,
}

/// A volume's use by one SDC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Who.
    pub sdc: SdcId,
    /// What it may do.
    pub access: Access,
    /// How much of it.
    pub limits: Limits,
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeInfo {
    /// Its id.
    pub id: VolumeId,
    /// Its name, the NBD export name.
    pub name: String,
    /// Its pool.
    pub pool: PoolId,
    /// Its size; a multiple of 4 KiB.
    pub size: ByteCount,
    /// Whose chunks it shares.
    pub vtree: VtreeId,
    /// Which layer it writes.
    pub layer: LayerId,
    /// Tokens of a lower epoch are void (S20).
    pub epoch: VolumeEpoch,
    /// How its IO is authorised.
    pub token_mode: TokenMode,
    /// Who uses it.
    pub mappings: Vec<Mapping>,
}

impl VolumeInfo {
    /// The mapping to `sdc`.
    pub fn mapping(&self, sdc: SdcId) -> Option<&Mapping> {
        self.mappings.iter().find(|mapping| mapping.sdc == sdc)
    }
}

impl TryFrom<pb::Pool> for PoolInfo {
    type Error = MalformedMessage;

    fn try_from(pool: pb::Pool) -> Result<Self, MalformedMessage> {
        if !pool.pg_count.is_power_of_two() {
            return Err(MalformedMessage::Value { field: "pool.pg_count", value: pool.pg_count.into() });
        }
        let first = if pool.first_pg_count == 0 { pool.pg_count } else { pool.first_pg_count };
        if !first.is_power_of_two() || first > pool.pg_count {
            return Err(MalformedMessage::Value { field: "pool.first_pg_count", value: first.into() });
        }
        Ok(Self {
            id: PoolId(pool.id),
            writeback: pool.write_policy() == pb::WritePolicy::Writeback,
            name: pool.name,
            domain: DomainId(pool.domain_id),
            copies: pool.copies,
            pg_count: pool.pg_count,
            first_pg_count: first,
            frozen: pool.frozen.iter().map(|one| (PgIndex(one.index), DeviceId(one.device_id))).collect(),
            rebuild: pool.rebuild.map(RebuildPolicy::try_from).transpose()?.unwrap_or_default(),
        })
    }
}

impl TryFrom<pb::Sds> for SdsInfo {
    type Error = MalformedMessage;

    fn try_from(sds: pb::Sds) -> Result<Self, MalformedMessage> {
        let addresses = sds.addresses.unwrap_or_default();
        Ok(Self {
            id: SdsId(sds.id),
            name: sds.name,
            domain: DomainId(sds.domain_id),
            fault_set: FaultSetId(sds.fault_set_id),
            data: addresses.data.parse().ok(),
            control: addresses.control.parse().ok(),
            management: addresses.management.parse().ok(),
            alive: sds.alive,
            proven_dead: sds.proven_dead,
        })
    }
}

impl TryFrom<pb::Device> for DeviceInfo {
    type Error = MalformedMessage;

    fn try_from(device: pb::Device) -> Result<Self, MalformedMessage> {
        let uuid = DeviceUuid::from_slice(&device.uuid)
            .map_err(|source| MalformedMessage::Uuid { field: "device.uuid", source })?;
        Ok(Self {
            id: DeviceId(device.id),
            sds: SdsId(device.sds_id),
            uuid,
            incarnation: Incarnation(device.incarnation),
            pool: (device.pool_id != 0).then_some(PoolId(device.pool_id)),
            capacity: ByteCount(device.capacity_bytes),
            alive: device.alive,
        })
    }
}

impl TryFrom<pb::Sdc> for SdcInfo {
    type Error = MalformedMessage;

    fn try_from(sdc: pb::Sdc) -> Result<Self, MalformedMessage> {
        Ok(Self { id: SdcId(sdc.id), name: sdc.name })
    }
}

impl TryFrom<pb::Volume> for VolumeInfo {
    type Error = MalformedMessage;

    fn try_from(volume: pb::Volume) -> Result<Self, MalformedMessage> {
        let token_mode = match volume.token_mode() {
            pb::TokenMode::PerIo => TokenMode::PerIo,
            pb::TokenMode::Lease | pb::TokenMode::Unspecified => TokenMode::Lease,
        };
        let mappings = volume.mappings.iter().map(|mapping| Mapping {
            sdc: SdcId(mapping.sdc_id),
            access: match mapping.access() {
                pb::Access::ReadWrite => Access::ReadWrite,
                pb::Access::ReadOnly | pb::Access::Unspecified => Access::ReadOnly,
            },
            limits: Limits { iops: mapping.iops_limit, bandwidth: mapping.bandwidth_limit },
        });
        Ok(Self {
            id: VolumeId(volume.id),
            mappings: mappings.collect(),
            name: volume.name,
            pool: PoolId(volume.pool_id),
            size: ByteCount(volume.size_bytes),
            vtree: VtreeId(volume.vtree_id),
            layer: LayerId(volume.layer_id),
            epoch: VolumeEpoch(volume.epoch),
            token_mode,
        })
    }
}
