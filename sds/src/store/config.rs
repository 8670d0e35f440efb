//! The newest configuration of each placement group that this device has acted in, or is about to (S19).
//!
//! A restored MDM knows only configurations of before its backup; these rows are what it is told of later ones. They are
//! lost together with the chunk table and never alone: a device without its data must not claim a place in a group.
//!
//! Row in `configs`, key as in `pgs`: format u8, then the fields of [`KnownConfig`] in their order.

use pflex_proto::{
    codec::{CodecError, Reader, Wire as _},
    ids::{ClusterGeneration, DeviceId, Epoch, Member, PgId, VolatilityId},
    wire_fields,
};

use super::{
    Store,
    error::MetaError,
    meta::{Batch, Committed, Table},
    pg::row_key,
};

const ROW_FORMAT: u8 = 1;

/// A configuration as this device knows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KnownConfig {
    /// The generation of the cluster that made it; orders epochs before the epoch does.
    pub generation: ClusterGeneration,
    /// Its epoch there.
    pub epoch: Epoch,
    /// Who may serve.
    pub primary: Option<DeviceId>,
    /// Who holds every acknowledged write.
    pub in_sync: Vec<Member>,
    /// Where copies belong.
    pub replicas: Vec<DeviceId>,
    /// Travels with acknowledgements (S14).
    pub volatility: VolatilityId,
    /// This device is the primary: from here on it may answer IO in this epoch (S11).
    pub served: bool,
}

wire_fields!(KnownConfig { generation, epoch, primary, in_sync, replicas, volatility, served });

impl KnownConfig {
    /// Which of two is newer.
    pub const fn order(&self) -> (ClusterGeneration, Epoch) {
        (self.generation, self.epoch)
    }

    pub(super) fn encode_row(&self) -> Vec<u8> {
        let mut out = vec![ROW_FORMAT];
        self.encode(&mut out);
        out
    }

    pub(super) fn decode_row(row: &[u8]) -> Result<Self, CodecError> {
        let mut reader = Reader::new(row);
        let format: u8 = reader.get()?;
        if format != ROW_FORMAT {
            return Err(CodecError::BadTag { what: "configuration row format", value: format.into() });
        }
        let known = reader.get()?;
        reader.finish()?;
        Ok(known)
    }
}

impl Store {
    /// Makes configurations durable, all or none; `done` is called once they are. Calls complete in their order.
    pub fn remember(&self, configs: &[(PgId, KnownConfig)], done: Committed) {
        let row = |(pg, known): &(PgId, KnownConfig)| (Table::Configs, row_key(*pg), Some(known.encode_row()));
        let batch = Batch { rows: configs.iter().map(row).collect() };
        self.meta.commit(self.superblock.uuid, batch, done);
    }

    /// Deletes the row of a group, durably; `done` is called once it is. In one order with [`Self::remember`]. Before any of
    /// the group's data goes: what is left of a copy must not claim a place in a group (S19).
    pub fn forget_config(&self, pg: PgId, done: Committed) {
        let batch = Batch { rows: vec![(Table::Configs, row_key(pg), None)] };
        self.meta.commit(self.superblock.uuid, batch, done);
    }

    /// `remember` or `forget_config` failed: what is durable is not known any more.
    pub fn could_not_remember(&mut self, error: MetaError) {
        self.fail("a metadata commit", error);
    }
}
