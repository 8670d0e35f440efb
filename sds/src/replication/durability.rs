//! What a primary of a writeback pool has answered, or may answer, before it is durable everywhere (S14).
//!
//! In such a pool a write is answered when every in-sync copy holds it in memory. The watermark (S1) follows later: it
//! says *durable* in both kinds of pools, because it is persisted and must be true after every copy has lost its memory.
//! A FLUSH waits until the watermark has reached what was ordered when it came, a FUA write until it has reached itself.

use std::collections::{BTreeMap, VecDeque};

use pflex_proto::ids::{Sequence, Version};

use super::limits::MAX_FLUSHES;
use super::types::{RequestId, Ticket};

/// A request that waits for the watermark.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Waiter {
    /// A FLUSH.
    Flush,
    /// A FUA write that every copy holds: ordered, so it goes on whatever becomes of the request.
    Fua(Version),
}

/// See the module. Empty in a `sync` pool.
#[derive(Debug, Default)]
pub(super) struct Durability {
    /// Ordered and not known to be durable everywhere, in order. Bounded by the journal's space here: a change beyond it
    /// is not held (`Event::Held`), so not answered, and then the window of writes in flight is full.
    volatile: VecDeque<(Sequence, Ticket)>,
    waiting: BTreeMap<(Sequence, RequestId), Waiter>,
}

impl Durability {
    pub(super) fn ordered(&mut self, sequence: Sequence, ticket: Ticket) {
        self.volatile.push_back((sequence, ticket));
    }

    /// The watermark: the prefix that is durable here, and on the others as `elsewhere` says.
    pub(super) fn advance(&mut self, durable: Ticket, elsewhere: impl Fn(Sequence) -> bool) -> Option<Sequence> {
        let mut reached = None;
        while let Some((sequence, _)) =
            self.volatile.front().filter(|(sequence, ticket)| *ticket <= durable && elsewhere(*sequence))
        {
            reached = Some(*sequence);
            self.volatile.pop_front();
        }
        reached
    }

    /// False: too many wait already.
    pub(super) fn wait(&mut self, through: Sequence, request: RequestId, waiter: Waiter) -> bool {
        let room = self.waiting.len() < MAX_FLUSHES;
        if room {
            self.waiting.insert((through, request), waiter);
        }
        room
    }

    /// The next one that waits for nothing above this.
    pub(super) fn release(&mut self, through: Sequence) -> Option<(RequestId, Waiter)> {
        let (&(sequence, request), _) = self.waiting.first_key_value()?;
        if sequence > through {
            return None;
        }
        self.waiting.remove(&(sequence, request)).map(|waiter| (request, waiter))
    }

    /// Everything ordered before is durable everywhere (S1), or this copy is primary no more.
    pub(super) fn end(&mut self) -> impl Iterator<Item = (RequestId, Waiter)> + use<> {
        self.volatile.clear();
        std::mem::take(&mut self.waiting).into_iter().map(|((_, request), waiter)| (request, waiter))
    }
}
