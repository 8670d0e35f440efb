//! Requests that were admitted and not answered: to whom the answer goes, and which must drain before a revocation is
//! confirmed (S20).

use std::collections::{HashMap, HashSet, VecDeque};

use pflex_common::clock::MonotonicTime;
use pflex_proto::ids::{ChunkId, PgId, Revision, SdcId, VolumeId};

use crate::{
    admission::{Authority, ConnectionId},
    replication::{Extent, RequestId},
};

/// What a request is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Asks {
    /// Data.
    Read,
    /// Where there is data. For the core it is a read of the same range, so it is answered by the same rules (S5, S6).
    Allocation,
    /// A change.
    Write,
    /// That what was acknowledged become durable; of a writeback pool.
    Flush,
}

/// One request.
#[derive(Clone, Debug)]
pub(super) struct Pending {
    pub(super) connection: ConnectionId,
    /// The frame's.
    pub(super) frame_request: u64,
    pub(super) sdc: SdcId,
    pub(super) volume: VolumeId,
    pub(super) pg: PgId,
    pub(super) extent: Extent,
    pub(super) asks: Asks,
    pub(super) since: MonotonicTime,
    /// The chunk it may create, for which space was set aside here (S4).
    pub(super) creates: Option<ChunkId>,
    /// Checked again when a read's data is here, and while a write waits to be ordered (S20).
    pub(super) authority: Authority,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct PendingRequests {
    open: HashMap<RequestId, Pending>,
    last: RequestId,
    /// How many of the open requests space was set aside for, by chunk.
    creating: HashMap<(PgId, ChunkId), usize>,
    /// Revisions of the map that wait for requests admitted before them.
    drains: VecDeque<(Revision, HashSet<RequestId>)>,
    newest: Revision,
}

impl PendingRequests {
    pub(super) fn add(&mut self, request: Pending) -> RequestId {
        self.last.0 += 1;
        if let Some(chunk) = request.creates {
            *self.creating.entry((request.pg, chunk)).or_default() += 1;
        }
        self.open.insert(self.last, request);
        self.last
    }

    pub(super) fn remove(&mut self, id: RequestId) -> Option<Pending> {
        for (_, waiting) in &mut self.drains {
            waiting.remove(&id);
        }
        let request = self.open.remove(&id)?;
        if let Some(chunk) = request.creates
            && let Some(count) = self.creating.get_mut(&(request.pg, chunk))
        {
            *count -= 1;
            if *count == 0 {
                self.creating.remove(&(request.pg, chunk));
            }
        }
        Some(request)
    }

    /// Whether space set aside for this chunk is still some open request's.
    pub(super) fn creates(&self, pg: PgId, chunk: ChunkId) -> bool {
        self.creating.contains_key(&(pg, chunk))
    }

    /// Whether it asks where there is data.
    pub(super) fn asks_allocation(&self, id: RequestId) -> bool {
        self.open.get(&id).is_some_and(|request| request.asks == Asks::Allocation)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Requests that `of` chooses, with their placement groups.
    pub(super) fn matching(&self, of: impl Fn(&Pending) -> bool) -> Vec<(RequestId, PgId)> {
        self.open.iter().filter(|(_, request)| of(request)).map(|(id, request)| (*id, request.pg)).collect()
    }

    /// The map is at `revision`; it is confirmed when these requests are answered.
    pub(super) fn drain(&mut self, revision: Revision, requests: HashSet<RequestId>) {
        self.newest = revision;
        if !requests.is_empty() {
            self.drains.push_back((revision, requests));
        }
    }

    /// Up to which revision everything admitted before has been answered.
    pub(super) fn confirmed(&mut self) -> Revision {
        while self.drains.front().is_some_and(|(_, waiting)| waiting.is_empty()) {
            self.drains.pop_front();
        }
        self.drains.front().map_or(self.newest, |(revision, _)| Revision(revision.0 - 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(volume: u64) -> Pending {
        Pending {
            connection: ConnectionId(1),
            frame_request: 1,
            sdc: SdcId(1),
            volume: VolumeId(volume),
            pg: PgId::default(),
            extent: Extent { offset: 0, length: 1 },
            asks: Asks::Write,
            since: MonotonicTime::default(),
            creates: None,
            authority: crate::admission::test_authority(),
        }
    }

    #[test]
    fn a_revocation_is_confirmed_when_older_admissions_have_drained() {
        let mut pending = PendingRequests::default();
        let revoked = pending.add(request(1));
        let other = pending.add(request(2));
        let waiting = pending.matching(|request| request.volume == VolumeId(1)).into_iter().map(|(id, _)| id).collect();
        pending.drain(Revision(7), waiting);
        pending.drain(Revision(9), HashSet::new());
        assert_eq!(pending.confirmed(), Revision(6));
        pending.remove(other);
        assert_eq!(pending.confirmed(), Revision(6));
        pending.remove(revoked);
        assert_eq!(pending.confirmed(), Revision(9));
    }

    #[test]
    fn space_is_somebodys_until_the_last_request_that_it_was_set_aside_for_is_answered() {
        let (mut pending, pg, chunk) = (PendingRequests::default(), PgId::default(), ChunkId::default());
        let [first, resent] = [(); 2].map(|()| pending.add(Pending { creates: Some(chunk), ..request(1) }));
        pending.remove(first);
        pending.remove(first);
        assert!(pending.creates(pg, chunk));
        pending.remove(resent);
        assert!(!pending.creates(pg, chunk));
    }
}
