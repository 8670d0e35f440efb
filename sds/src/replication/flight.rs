//! The ordered writes of a primary that are not yet committed, in order.
//!
//! Invariant: their sequences have no gaps, so a sequence is found by subtraction. A count per chunk answers "does
//! this overlap an uncommitted write?" in the common case without a walk.

use std::collections::{HashMap, VecDeque};

use pflex_proto::ids::{ChunkId, Sequence};

use super::limits::MAX_IN_FLIGHT;
use super::types::{Extent, OrderedWrite, RequestId, Ticket};

/// One of them.
#[derive(Debug)]
pub(super) struct InFlight<D> {
    pub(super) write: OrderedWrite<D>,
    /// Durable on the primary when the store says so of this ticket.
    pub(super) ticket: Ticket,
    /// Who waits: the request that was ordered, and resends of it.
    pub(super) waiting: Vec<RequestId>,
    /// Its answer waits until it is durable everywhere (S14).
    pub(super) fua: bool,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Flight<D> {
    window: VecDeque<InFlight<D>>,
    per_chunk: HashMap<ChunkId, u32>,
    /// Emptied waiter lists, so that a steady stream of writes allocates none.
    spare: Vec<Vec<RequestId>>,
}

impl<D> Default for Flight<D> {
    fn default() -> Self {
        Self { window: VecDeque::new(), per_chunk: HashMap::new(), spare: Vec::new() }
    }
}

impl<D> Flight<D> {
    pub(super) fn len(&self) -> usize {
        self.window.len()
    }

    pub(super) fn is_full(&self) -> bool {
        self.window.len() >= MAX_IN_FLIGHT
    }

    pub(super) fn push(&mut self, write: OrderedWrite<D>, ticket: Ticket, request: RequestId, fua: bool) {
        debug_assert!(
            self.window.back().is_none_or(|last| last.write.version.sequence.next() == write.version.sequence),
            "S4: the order has no gaps"
        );
        *self.per_chunk.entry(write.chunk).or_default() += 1;
        let mut waiting = self.spare.pop().unwrap_or_default();
        waiting.push(request);
        self.window.push_back(InFlight { write, ticket, waiting, fua });
    }

    pub(super) fn front(&self) -> Option<&InFlight<D>> {
        self.window.front()
    }

    pub(super) fn pop_front(&mut self) -> Option<InFlight<D>> {
        let first = self.window.pop_front()?;
        if let Some(count) = self.per_chunk.get_mut(&first.write.chunk) {
            *count -= 1;
            if *count == 0 {
                self.per_chunk.remove(&first.write.chunk);
            }
        }
        Some(first)
    }

    /// Takes back an answered entry's list for the next write.
    pub(super) fn recycle(&mut self, mut waiting: Vec<RequestId>) {
        if self.spare.len() < MAX_IN_FLIGHT {
            waiting.clear();
            self.spare.push(waiting);
        }
    }

    pub(super) fn get_mut(&mut self, sequence: Sequence) -> Option<&mut InFlight<D>> {
        let first = self.window.front()?.write.version.sequence;
        self.window.get_mut(usize::try_from(sequence.0.checked_sub(first.0)?).ok()?)
    }

    /// The entries after a sequence, in order.
    pub(super) fn after(&self, sequence: Sequence) -> impl Iterator<Item = &InFlight<D>> {
        self.window.iter().skip_while(move |entry| entry.write.version.sequence <= sequence)
    }

    /// Whether a write of this chunk is uncommitted.
    pub(super) fn has(&self, chunk: ChunkId) -> bool {
        self.per_chunk.contains_key(&chunk)
    }

    /// The last uncommitted write that touches the extent (S5).
    pub(super) fn last_overlapping(&self, chunk: ChunkId, extent: Extent) -> Option<Sequence> {
        self.per_chunk.get(&chunk)?;
        let overlapping = |entry: &&InFlight<D>| entry.write.chunk == chunk && entry.write.extent.overlaps(extent);
        self.window.iter().rev().find(overlapping).map(|entry| entry.write.version.sequence)
    }
}
