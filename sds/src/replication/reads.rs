//! Reads at the primary (S5).
//!
//! The store is read at once; what matters comes after. When the data is there, the epoch must be the same (a new
//! epoch empties this table), the lease must still hold, and the answer waits until every overlapping write that was
//! ordered by then is committed: the data may hold it. Writes ordered later cannot be in the data.

use std::collections::HashMap;

use pflex_proto::ids::{ChunkId, Sequence};

use super::limits::MAX_READS;
use super::types::{Extent, RequestId};

/// A read whose data is there and which waits for overlapping writes.
#[derive(Debug)]
struct Parked<D> {
    request: RequestId,
    until: Sequence,
    data: D,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Reads<D> {
    reading: HashMap<RequestId, (ChunkId, Extent)>,
    parked: Vec<Parked<D>>,
}

impl<D> Default for Reads<D> {
    fn default() -> Self {
        Self { reading: HashMap::new(), parked: Vec::new() }
    }
}

impl<D> Reads<D> {
    pub(super) fn is_full(&self) -> bool {
        self.reading.len() + self.parked.len() >= MAX_READS
    }

    pub(super) fn begin(&mut self, request: RequestId, chunk: ChunkId, extent: Extent) {
        self.reading.insert(request, (chunk, extent));
    }

    /// The store answered. None: this read was given up with its epoch.
    pub(super) fn done(&mut self, request: RequestId) -> Option<(ChunkId, Extent)> {
        self.reading.remove(&request)
    }

    pub(super) fn park(&mut self, request: RequestId, until: Sequence, data: D) {
        self.parked.push(Parked { request, until, data });
    }

    /// One that need not wait any longer.
    pub(super) fn release(&mut self, committed: Sequence) -> Option<(RequestId, D)> {
        let ready = self.parked.iter().position(|parked| parked.until <= committed)?;
        let Parked { request, data, .. } = self.parked.swap_remove(ready);
        Some((request, data))
    }

    /// Gives all up: the epoch is over.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = RequestId> + '_ {
        self.reading.drain().map(|(request, _)| request).chain(self.parked.drain(..).map(|parked| parked.request))
    }
}
