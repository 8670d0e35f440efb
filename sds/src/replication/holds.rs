//! Writes that wait, unordered, for their chunk: while it is copied to a joiner (S10), while the edges of an unaligned
//! write are merged (S15), while the other copies reserve space for it (S4), while blocks of it are repaired or another
//! copy of it is made equal (S13).
//!
//! One chunk has one hold at a time; what arrives meanwhile queues behind it and is admitted again, in order, after.

use std::collections::{HashMap, VecDeque};

use pflex_proto::ids::{ChunkId, Member};

use super::event::ClientWrite;
use super::limits::MAX_HELD;
use super::repairs::Repaired;
use super::types::{Extent, RequestId, WriteKind};

/// Why a chunk is held.
#[derive(Debug)]
pub(super) enum Reason<D> {
    /// A joiner is being given it.
    Syncing,
    /// This write's edges are being merged.
    Merging(ClientWrite<D>),
    /// This write would create it, and these copies have not said yet that they have space.
    Reserving(ClientWrite<D>, Vec<Member>),
    /// Blocks of it cannot be read; this write's edges are in such, if there is one.
    Repairing(Option<ClientWrite<D>>),
    /// Another copy of it is made equal to this one.
    Mending,
}

/// A held chunk.
#[derive(Debug)]
pub(super) struct Hold<D> {
    pub(super) reason: Reason<D>,
    pub(super) waiting: VecDeque<ClientWrite<D>>,
    /// The write that the reason is about was cancelled: it is refused when the hold ends.
    pub(super) cancelled: bool,
    /// The blocks for the merge.
    pub(super) repaired: Repaired,
}

impl<D> Hold<D> {
    /// Every request in it.
    fn requests(self) -> impl Iterator<Item = RequestId> {
        let first = match self.reason {
            Reason::Syncing | Reason::Mending | Reason::Repairing(None) => None,
            Reason::Merging(write) | Reason::Reserving(write, _) | Reason::Repairing(Some(write)) => {
                Some(write.request)
            }
        };
        first.into_iter().chain(self.waiting.into_iter().map(|write| write.request))
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Holds<D> {
    chunks: HashMap<ChunkId, Hold<D>>,
    merging: HashMap<RequestId, ChunkId>,
    queued: usize,
}

impl<D> Default for Holds<D> {
    fn default() -> Self {
        Self { chunks: HashMap::new(), merging: HashMap::new(), queued: 0 }
    }
}

impl<D: Clone> Holds<D> {
    pub(super) fn is_held(&self, chunk: ChunkId) -> bool {
        self.chunks.contains_key(&chunk)
    }

    /// The chunk must not be held.
    pub(super) fn hold(&mut self, chunk: ChunkId, reason: Reason<D>) {
        if let Reason::Merging(write) = &reason {
            self.merging.insert(write.request, chunk);
        }
        let before = self
            .chunks
            .insert(chunk, Hold { reason, waiting: VecDeque::new(), cancelled: false, repaired: Repaired::No });
        debug_assert!(before.is_none(), "one hold at a time");
    }

    /// Queues behind the hold; gives the write back when there is no room.
    pub(super) fn queue(&mut self, write: ClientWrite<D>) -> Result<(), ClientWrite<D>> {
        match self.chunks.get_mut(&write.chunk) {
            Some(hold) if self.queued < MAX_HELD => {
                self.queued += 1;
                hold.waiting.push_back(write);
                Ok(())
            }
            Some(_) | None => Err(write),
        }
    }

    /// Takes a write out that waits here (S9, S20): true if it is gone now, so the caller refuses it. One that a hold is
    /// about is refused when that hold ends; one that is not here was ordered already.
    pub(super) fn cancel(&mut self, request: RequestId) -> bool {
        for hold in self.chunks.values_mut() {
            if let Some(place) = hold.waiting.iter().position(|write| write.request == request) {
                hold.waiting.remove(place);
                self.queued -= 1;
                return true;
            }
            if let Reason::Merging(write) | Reason::Reserving(write, _) | Reason::Repairing(Some(write)) = &hold.reason
                && write.request == request
            {
                hold.cancelled = true;
            }
        }
        false
    }

    pub(super) fn get_mut(&mut self, chunk: ChunkId) -> Option<&mut Hold<D>> {
        self.chunks.get_mut(&chunk)
    }

    /// The chunks for which this copy has not said yet whether it has space.
    pub(super) fn reserving(&self, member: Member) -> Vec<ChunkId> {
        let missing =
            |hold: &Hold<D>| matches!(&hold.reason, Reason::Reserving(_, missing) if missing.contains(&member));
        let mut chunks: Vec<_> =
            self.chunks.iter().filter(|(_, hold)| missing(hold)).map(|(chunk, _)| *chunk).collect();
        chunks.sort_unstable();
        chunks
    }

    /// The chunk a merge was for.
    pub(super) fn merged(&mut self, request: RequestId) -> Option<ChunkId> {
        self.merging.remove(&request)
    }

    /// Nothing is ordered on the chunk while this hold lasts, nor by its end alone.
    pub(super) fn stands_still(&self, chunk: ChunkId) -> bool {
        let reason = self.chunks.get(&chunk).map(|hold| &hold.reason);
        matches!(reason, Some(Reason::Syncing | Reason::Mending | Reason::Repairing(_)))
    }

    pub(super) fn is_held_for_repair(&self, chunk: ChunkId) -> bool {
        matches!(self.chunks.get(&chunk).map(|hold| &hold.reason), Some(Reason::Repairing(_)))
    }

    /// A merge failed because blocks cannot be read: what to repair. Once for each merge.
    pub(super) fn repair_for_merge(&mut self, chunk: ChunkId) -> Option<Extent> {
        let hold = self.chunks.get_mut(&chunk).filter(|hold| !hold.cancelled && hold.repaired == Repaired::No)?;
        let Reason::Merging(write) = &hold.reason else { return None };
        let (write, extent) = (write.clone(), write.extent);
        hold.reason = Reason::Repairing(Some(write));
        Some(extent)
    }

    /// The repair for a merge has ended: what to merge now.
    pub(super) fn merge_again(
        &mut self,
        chunk: ChunkId,
        done: impl FnOnce(Extent) -> Repaired,
    ) -> Option<(RequestId, Extent, D)> {
        let hold = self.chunks.get_mut(&chunk)?;
        let Reason::Repairing(Some(write)) = &hold.reason else { return None };
        let WriteKind::Data(data) = &write.kind else { return None };
        let (request, extent, data) = (write.request, write.extent, data.clone());
        let write = write.clone();
        (hold.reason, hold.repaired) = (Reason::Merging(write), done(extent));
        self.merging.insert(request, chunk);
        Some((request, extent, data))
    }

    /// Ends the hold; its writes are the caller's to admit.
    pub(super) fn release(&mut self, chunk: ChunkId) -> Option<Hold<D>> {
        let hold = self.chunks.remove(&chunk)?;
        self.queued -= hold.waiting.len();
        Some(hold)
    }

    /// Gives all up: the epoch is over. In the order of the requests, so that a seed gives one run.
    pub(super) fn drain(&mut self) -> Vec<RequestId> {
        self.queued = 0;
        self.merging.clear();
        let mut requests: Vec<_> = self.chunks.drain().flat_map(|(_, hold)| hold.requests()).collect();
        requests.sort_unstable();
        requests
    }
}
