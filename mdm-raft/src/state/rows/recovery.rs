//! Rows of what was known before a restore.

use pflex_proto::ids::{ClusterGeneration, DeviceId, Epoch, PgId, PgIndex, PoolId, VolatilityId};

use super::{
    Row, RowError,
    key::{KeyWriter, two_u32},
    open, optional,
    pg::{member, member_row},
    proto, seal,
};
use crate::state::{
    model::{GroupReports, KnownConfig},
    table::Table,
};

impl Row for GroupReports {
    const TABLE: Table = Table::GroupReports;
    type Key = PgId;

    fn key(&self) -> PgId {
        self.pg
    }

    fn encode_key(key: PgId) -> Vec<u8> {
        KeyWriter::default().u32(key.pool.get()).u32(key.index.get()).done()
    }

    fn encode(&self) -> Vec<u8> {
        seal(&proto::GroupReports {
            base: self.base.as_ref().map(known_row),
            by: self.by.iter().map(|(device, known)| (device.get(), known_row(known))).collect(),
        })
    }

    fn decode(key: &[u8], value: &[u8]) -> Result<Self, RowError> {
        let (pool, index) = two_u32(key)?;
        let row: proto::GroupReports = open(value)?;
        Ok(Self {
            pg: PgId { pool: PoolId(pool), index: PgIndex(index) },
            base: row.base.as_ref().map(known),
            by: row.by.iter().map(|(device, row)| (DeviceId(*device), known(row))).collect(),
        })
    }
}

fn known_row(known: &KnownConfig) -> proto::KnownConfig {
    proto::KnownConfig {
        generation: known.generation.get(),
        epoch: known.epoch.get(),
        primary: known.primary.map_or(0, DeviceId::get),
        in_sync: known.in_sync.iter().map(member_row).collect(),
        replicas: known.replicas.iter().map(|device| device.get()).collect(),
        volatility: known.volatility.get(),
        served: known.served,
    }
}

fn known(row: &proto::KnownConfig) -> KnownConfig {
    KnownConfig {
        generation: ClusterGeneration(row.generation),
        epoch: Epoch(row.epoch),
        primary: optional(row.primary),
        in_sync: row.in_sync.iter().map(member).collect(),
        replicas: row.replicas.iter().copied().map(DeviceId).collect(),
        volatility: VolatilityId(row.volatility),
        served: row.served,
    }
}
