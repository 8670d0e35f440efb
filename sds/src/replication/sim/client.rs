//! A client: a few operations at once, each resent under its id until it is answered (S7).

use std::collections::BTreeMap;

use pflex_proto::ids::{ChunkId, OperationId, PgId, SdcId, VolumeId};

use crate::replication::{ClientKey, Extent};

use super::history::Moment;
use super::store::{BLOCK, Data};

/// What is asked.
#[derive(Clone, Debug)]
pub(super) enum Action {
    Read,
    Write(OperationId, Data),
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
}

impl Client {
    pub(super) fn new(index: u64) -> Self {
        let key = ClientKey { sdc: SdcId(index as u32 + 1), volume: VolumeId(1) };
        Self { key, next_operation: 1, next_pending: 0, pending: BTreeMap::new() }
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

    /// Everything below is answered and will not be sent again.
    pub(super) fn low_water(&self) -> OperationId {
        let open = self.pending.values().filter_map(|pending| match pending.action {
            Action::Write(operation, _) => Some(operation),
            Action::Read => None,
        });
        open.min().unwrap_or(OperationId(self.next_operation + 1))
    }
}
