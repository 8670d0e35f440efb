//! Rows of issued tokens.

use pflex_proto::{
    ids::{
        ByteCount, ByteOffset, DeviceId, Incarnation, KeyId, LogTime, OperationId, ProcessId, SdcId, TokenId,
        VolumeEpoch, VolumeId,
    },
    token::Plan,
};

use super::{
    Row, RowError, bad,
    cluster::link,
    key::{KeyWriter, one_u64},
    open, proto, seal,
    volume::{access_code, access_of, mode_code, mode_of},
};
use crate::state::{
    model::{IoToken, TokenUse},
    table::Table,
};

impl Row for IoToken {
    const TABLE: Table = Table::IoTokens;
    type Key = TokenId;

    fn key(&self) -> TokenId {
        self.id
    }

    fn encode_key(key: TokenId) -> Vec<u8> {
        KeyWriter::default().u64(key.get()).done()
    }

    fn encode(&self) -> Vec<u8> {
        seal(&proto::IoToken {
            key: self.key.get(),
            sdc: self.sdc.get(),
            volume: self.volume.get(),
            access: access_code(self.access),
            to_bytes: self.to.0,
            volume_epoch: self.volume_epoch.get(),
            issued_log_ms: self.issued.get(),
            expires_log_ms: self.expires.get(),
            mode: mode_code(self.mode),
            reads: self.used.reads,
            writes: self.used.writes,
            read_bytes: self.used.read_bytes.get(),
            written_bytes: self.used.written_bytes.get(),
            link: self.link.0.to_vec(),
            process: self.process.as_bytes().to_vec(),
            from_bytes: self.from.0,
            device: self.plan.map_or(0, |plan| plan.device.get()),
            incarnation: self.plan.map_or(0, |plan| plan.incarnation.get()),
            operation: self.plan.map_or(0, |plan| plan.operation.get()),
        })
    }

    fn decode(key: &[u8], value: &[u8]) -> Result<Self, RowError> {
        let row: proto::IoToken = open(value)?;
        Ok(Self {
            id: TokenId(one_u64(key)?),
            key: KeyId(row.key),
            sdc: SdcId(row.sdc),
            process: ProcessId::from_slice(&row.process).map_err(|why| bad("process id", why))?,
            volume: VolumeId(row.volume),
            access: access_of(row.access)?,
            to: ByteOffset(row.to_bytes),
            volume_epoch: VolumeEpoch(row.volume_epoch),
            issued: LogTime(row.issued_log_ms),
            expires: LogTime(row.expires_log_ms),
            mode: mode_of(row.mode)?,
            used: TokenUse {
                reads: row.reads,
                writes: row.writes,
                read_bytes: ByteCount(row.read_bytes),
                written_bytes: ByteCount(row.written_bytes),
            },
            link: link(&row.link)?,
            from: ByteOffset(row.from_bytes),
            plan: (row.device != 0).then_some(Plan {
                device: DeviceId(row.device),
                incarnation: Incarnation(row.incarnation),
                operation: OperationId(row.operation),
            }),
        })
    }
}
