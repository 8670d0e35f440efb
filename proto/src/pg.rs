//! A placement group's configuration: who is primary and whose copies are in sync. Changed only by a compare-and-set on
//! the epoch in the MDM's log (PacificA, section 2.3: the configuration manager).

use crate::{
    ids::{BadUuid, DeviceId, Epoch, Incarnation, Member, PgId, PgIndex, PoolId, SdsId, VolatilityId},
    pb, wire_fields,
};

/// One configuration.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PgConfig {
    /// Which placement group.
    pub pg: PgId,
    /// Grows by one with every change.
    pub epoch: Epoch,
    /// The device whose copy orders writes and answers reads; none while no in-sync copy is alive.
    pub primary: Option<DeviceId>,
    /// Copies that hold every acknowledged write, each in one life (S2).
    pub in_sync: Vec<Member>,
    /// Where copies belong, in order of preference; one that is alive and not in `in_sync` joins.
    pub replicas: Vec<DeviceId>,
    /// Changes when an epoch opens with no member that kept its memory (S14).
    pub volatility: VolatilityId,
    /// An operator promoted this primary's copy by force (S12): chunks that are half copied there count as they are.
    pub forced: bool,
    /// The primary answers nothing before it has activated this configuration: other copies have everything, too, and may
    /// yet be chosen instead of it (S11).
    pub to_activate: bool,
}

wire_fields!(PgConfig { pg, epoch, primary, in_sync, replicas, volatility, forced, to_activate });

impl PgConfig {
    /// The membership of `device`, if its copy is in sync.
    pub fn member(&self, device: DeviceId) -> Option<Member> {
        self.in_sync.iter().copied().find(|member| member.device == device)
    }

    /// The primary's membership.
    pub fn primary_member(&self) -> Option<Member> {
        self.primary.and_then(|device| self.member(device))
    }
}

/// A protobuf message that lacks what it must have.
#[derive(Debug, thiserror::Error)]
pub enum MalformedMessage {
    /// A sub-message is absent.
    #[error("field `{0}` is missing")]
    Missing(&'static str),
    /// A uuid of another length.
    #[error("field `{field}` is malformed")]
    Uuid {
        /// Which field.
        field: &'static str,
        /// How.
        #[source]
        source: BadUuid,
    },
    /// A value that cannot be.
    #[error("field `{field}` has the impossible value {value}")]
    Value {
        /// Which field.
        field: &'static str,
        /// What it holds.
        value: u64,
    },
}

impl From<Member> for pb::Member {
    fn from(member: Member) -> Self {
        Self { device_id: member.device.0, sds_id: member.sds.0, incarnation: member.incarnation.0 }
    }
}

impl From<&pb::Member> for Member {
    fn from(member: &pb::Member) -> Self {
        Self {
            device: DeviceId(member.device_id),
            sds: SdsId(member.sds_id),
            incarnation: Incarnation(member.incarnation),
        }
    }
}

impl From<PgId> for pb::PgId {
    fn from(pg: PgId) -> Self {
        Self { pool_id: pg.pool.0, index: pg.index.0 }
    }
}

impl From<&pb::PgId> for PgId {
    fn from(pg: &pb::PgId) -> Self {
        Self { pool: PoolId(pg.pool_id), index: PgIndex(pg.index) }
    }
}

impl From<&PgConfig> for pb::Pg {
    fn from(config: &PgConfig) -> Self {
        Self {
            id: Some(config.pg.into()),
            epoch: config.epoch.0,
            primary_device_id: config.primary.map_or(0, |device| device.0),
            in_sync: config.in_sync.iter().copied().map(Into::into).collect(),
            replica_device_ids: config.replicas.iter().map(|device| device.0).collect(),
            volatility: config.volatility.0,
            forced: config.forced,
            // For people; nobody acts by it.
            leaving_device_id: 0,
            fallback_device_ids: Vec::new(),
        }
    }
}

impl TryFrom<&pb::Pg> for PgConfig {
    type Error = MalformedMessage;

    fn try_from(pg: &pb::Pg) -> Result<Self, MalformedMessage> {
        let config = Self {
            pg: pg.id.as_ref().ok_or(MalformedMessage::Missing("pg.id"))?.into(),
            epoch: Epoch(pg.epoch),
            primary: (pg.primary_device_id != 0).then_some(DeviceId(pg.primary_device_id)),
            in_sync: pg.in_sync.iter().map(Into::into).collect(),
            replicas: pg.replica_device_ids.iter().copied().map(DeviceId).collect(),
            volatility: VolatilityId(pg.volatility),
            forced: pg.forced,
            to_activate: !pg.fallback_device_ids.is_empty(),
        };
        if config.primary.is_some() && config.primary_member().is_none() {
            let value = pg.primary_device_id.into();
            return Err(MalformedMessage::Value { field: "pg.primary_device_id", value });
        }
        Ok(config)
    }
}
