//! A client: a few operations at once, each resent under its id until it is answered (S7).

use std::collections::BTreeMap;

use pflex_proto::ids::{ChunkId, OperationId, PgId, SdcId, Version, VolatilityId, VolumeId};

use crate::replication::{ClientKey, Extent};

use super::history::{Moment, Register};
use super::store::{BLOCK, Data};

/// What is asked.
#[derive(Clone, Debug)]
pub(super) enum Action {
    Read,
    Write(OperationId, Data),
    /// What must be durable on every in-sync copy when it is answered: the chunks that were written, with their versions.
    Flush(VolatilityId, BTreeMap<ChunkId, Version>),
}

/// One operation from its call to its return.
#[derive(Clone, Debug)]
pub(super) struct Pending {
    pub(super) pg: PgId,
    pub(super) chunk: ChunkId,
    pub(super) block: usize,
    pub(super) blocks: usize,
    pub(super) action: Action,
    pub(super) called: Moment,
    pub(super) tries: u64,
    /// A write that is to be durable when it is answered.
    pub(super) fua: bool,
}

/// What a client knows of a group that it wrote since the last FLUSH (S14).
#[derive(Clone, Debug)]
pub(super) struct Dirty {
    pub(super) volatility: VolatilityId,
    pub(super) chunks: BTreeMap<ChunkId, Version>,
    /// Answered, with the block and the value.
    pub(super) values: Vec<(Register, u64)>,
}

impl Pending {
    pub(super) fn extent(&self) -> Extent {
        Extent { offset: self.block as u32 * BLOCK, length: self.blocks as u32 * BLOCK }
    }
}

/// See the module.
pub(super) struct Client {
    pub(super) key: ClientKey,
    next_operation: u64,
    next_pending: u64,
    pub(super) pending: BTreeMap<u64, Pending>,
    pub(super) dirty: BTreeMap<PgId, Dirty>,
}

impl Client {
    pub(super) fn new(index: u64) -> Self {
        let key = ClientKey { sdc: SdcId(index as u32 + 1), volume: VolumeId(1) };
        Self { key, next_operation: 1, next_pending: 0, pending: BTreeMap::new(), dirty: BTreeMap::new() }
    }

    pub(super) fn next_operation(&mut self) -> OperationId {
        self.next_operation += 1;
        OperationId(self.next_operation)
    }

    pub(super) fn call(&mut self, pending: Pending) -> u64 {
        self.next_pending += 1;
        self.pending.insert(self.next_pending, pending);
        self.next_pending
    }

    /// S14: a write was acknowledged. An id that differs from an earlier one is remembered, so that the FLUSH fails.
    pub(super) fn acknowledged(
        &mut self,
        pg: PgId,
        chunk: ChunkId,
        volatility: VolatilityId,
        version: Version,
        values: impl Iterator<Item = (Register, u64)>,
    ) {
        let new = || Dirty { volatility, chunks: BTreeMap::new(), values: Vec::new() };
        let dirty = self.dirty.entry(pg).or_insert_with(new);
        dirty.volatility = dirty.volatility.min(volatility);
        let newest = dirty.chunks.entry(chunk).or_insert(version);
        *newest = (*newest).max(version);
        dirty.values.extend(values);
    }

    /// Everything below is answered and will not be sent again.
    pub(super) fn low_water(&self) -> OperationId {
        let open = self.pending.values().filter_map(|pending| match pending.action {
            Action::Write(operation, _) => Some(operation),
            Action::Read | Action::Flush(..) => None,
        });
        open.min().unwrap_or(OperationId(self.next_operation + 1))
    }
}
