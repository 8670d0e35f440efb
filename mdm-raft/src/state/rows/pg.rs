//! Rows of placement groups.

use pflex_proto::ids::{DeviceId, Epoch, Incarnation, Member, PgId, PgIndex, PoolId, Revision, SdsId, VolatilityId};

use super::{
    Row, RowError, bad,
    key::{KeyWriter, two_u32},
    open, optional, proto, seal,
};
use crate::state::{
    model::{Pg, PgConfig},
    table::Table,
};

pub(super) fn member_row(member: &Member) -> proto::Member {
    proto::Member { device: member.device.get(), sds: member.sds.get(), incarnation: member.incarnation.get() }
}

pub(super) fn member(row: &proto::Member) -> Member {
    Member { device: DeviceId(row.device), sds: SdsId(row.sds), incarnation: Incarnation(row.incarnation) }
}

impl Row for Pg {
    const TABLE: Table = Table::Replicas;
    type Key = PgId;

    fn key(&self) -> PgId {
        self.id
    }

    fn encode_key(key: PgId) -> Vec<u8> {
        KeyWriter::default().u32(key.pool.get()).u32(key.index.get()).done()
    }

    fn encode(&self) -> Vec<u8> {
        seal(&proto::Pg {
            replicas: self.replicas.iter().map(|device| device.get()).collect(),
            epoch: self.config.epoch.get(),
            primary: self.config.primary.map_or(0, DeviceId::get),
            in_sync: self.config.in_sync.iter().map(member_row).collect(),
            volatility: self.config.volatility.get(),
            since: self.since.get(),
            forced: self.forced,
            leaving: self.leaving.map_or(0, DeviceId::get),
            holders: self.holders.iter().map(member_row).collect(),
            forgot: self.forgot.iter().map(|device| device.get()).collect(),
        })
    }

    fn decode(key: &[u8], value: &[u8]) -> Result<Self, RowError> {
        let (pool, index) = two_u32(key)?;
        let row: proto::Pg = open(value)?;
        if row.in_sync.is_empty() || row.epoch == 0 {
            return Err(bad("pg configuration", format_args!("epoch {} of {} members", row.epoch, row.in_sync.len())));
        }
        Ok(Self {
            id: PgId { pool: PoolId(pool), index: PgIndex(index) },
            replicas: row.replicas.into_iter().map(DeviceId).collect(),
            config: PgConfig {
                epoch: Epoch(row.epoch),
                primary: optional(row.primary),
                in_sync: row.in_sync.iter().map(member).collect(),
                volatility: VolatilityId(row.volatility),
            },
            since: Revision(row.since),
            forced: row.forced,
            leaving: optional(row.leaving),
            holders: row.holders.iter().map(member).collect(),
            forgot: row.forgot.into_iter().map(DeviceId).collect(),
        })
    }
}
