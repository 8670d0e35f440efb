//! Rows of volumes and mappings.

use pflex_proto::ids::{ByteCount, LayerId, PoolId, SdcId, VolumeEpoch, VolumeId, VtreeId};

use super::{
    Row, RowError, bad,
    key::{KeyReader, KeyWriter, one_u64},
    open, proto, seal,
};
use crate::state::{
    model::{Access, Mapping, TokenMode, Volume},
    table::Table,
};

pub(super) const fn mode_code(mode: TokenMode) -> u32 {
    match mode {
        TokenMode::Lease => 1,
        TokenMode::PerIo => 2,
    }
}

pub(super) fn mode_of(code: u32) -> Result<TokenMode, RowError> {
    match code {
        1 => Ok(TokenMode::Lease),
        2 => Ok(TokenMode::PerIo),
        other => Err(bad("token mode", other)),
    }
}

pub(super) const fn access_code(access: Access) -> u32 {
    match access {
        Access::ReadOnly => 1,
        Access::ReadWrite => 2,
    }
}

pub(super) fn access_of(code: u32) -> Result<Access, RowError> {
    match code {
        1 => Ok(Access::ReadOnly),
        2 => Ok(Access::ReadWrite),
        other => Err(bad("access", other)),
    }
}

impl Row for Volume {
    const TABLE: Table = Table::Volumes;
    type Key = VolumeId;

    fn key(&self) -> VolumeId {
        self.id
    }

    fn encode_key(key: VolumeId) -> Vec<u8> {
        KeyWriter::default().u64(key.get()).done()
    }

    fn encode(&self) -> Vec<u8> {
        seal(&proto::Volume {
            name: self.name.clone(),
            pool: self.pool.get(),
            size_bytes: self.size.get(),
            vtree: self.vtree.get(),
            layer: self.layer.get(),
            epoch: self.epoch.get(),
            token_mode: mode_code(self.token_mode),
            created_wall_ms: self.created_wall_ms,
        })
    }

    fn decode(key: &[u8], value: &[u8]) -> Result<Self, RowError> {
        let row: proto::Volume = open(value)?;
        Ok(Self {
            id: VolumeId(one_u64(key)?),
            name: row.name,
            pool: PoolId(row.pool),
            size: ByteCount(row.size_bytes),
            vtree: VtreeId(row.vtree),
            layer: LayerId(row.layer),
            epoch: VolumeEpoch(row.epoch),
            token_mode: mode_of(row.token_mode)?,
            created_wall_ms: row.created_wall_ms,
        })
    }
}

impl Row for Mapping {
    const TABLE: Table = Table::VolumeMappings;
    type Key = (VolumeId, SdcId);

    fn key(&self) -> (VolumeId, SdcId) {
        (self.volume, self.sdc)
    }

    fn encode_key((volume, sdc): (VolumeId, SdcId)) -> Vec<u8> {
        KeyWriter::default().u64(volume.get()).u32(sdc.get()).done()
    }

    fn encode(&self) -> Vec<u8> {
        seal(&proto::Mapping {
            access: access_code(self.access),
            iops_limit: self.iops_limit,
            bandwidth_limit: self.bandwidth_limit,
        })
    }

    fn decode(key: &[u8], value: &[u8]) -> Result<Self, RowError> {
        let mut reader = KeyReader::new(key);
        let (volume, sdc) = (VolumeId(reader.u64()?), SdcId(reader.u32()?));
        reader.end()?;
        let row: proto::Mapping = open(value)?;
        Ok(Self {
            volume,
            sdc,
            access: access_of(row.access)?,
            iops_limit: row.iops_limit,
            bandwidth_limit: row.bandwidth_limit,
        })
    }
}
