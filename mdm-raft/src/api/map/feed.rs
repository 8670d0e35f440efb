//! The updates of the map as one member applies them, encoded once, the last of them kept for those who come back.
//!
//! The ring is the only buffer there is: watchers take from it at their own pace, and one that is further behind than the
//! ring reaches has to list again. Its size in entries and in bytes is fixed, however many watchers there are and
//! however slow they read.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use pflex_common::shutdown::Shutdown;
use pflex_proto::{
    ids::Revision,
    pb::{MapUpdate, WatchReply, watch_reply::Event},
    status,
};
use prost::Message as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast::error::RecvError, watch};
use tonic::Status;

use crate::{
    api::convert,
    raft::{RaftGroup, group::Committed},
    state::MapEvent,
};

/// Updates kept for watchers that come back: a reconnect takes seconds, a busy cluster makes some hundred in that time.
const RING: usize = 4_096;
/// Their bytes: the loss of a server with thousands of groups is an update of several hundred KiB.
const RING_BYTES: usize = 64 << 20;
/// Watchers of one member: four times the SDSs and SDCs there may be, divided by three members, and a second stream for
/// those that reconnect before the server has noticed that they went.
const WATCHERS: usize = 16_384;
/// Full maps on their way at once; each is a copy in its stream, and the largest has tens of MiB.
const LISTINGS: usize = 16;

/// What one change looks like on the wire, for every watcher.
#[derive(Clone)]
pub(super) struct Encoded {
    pub(super) revision: Revision,
    /// A whole `WatchReply`; those of updates may be put behind one another.
    pub(super) bytes: Bytes,
}

/// The updates of the map as this member applies them. Clones share it.
#[derive(Clone)]
pub struct MapFeed(Arc<Feed>);

struct Feed {
    ring: Mutex<Ring>,
    /// Changes with the ring.
    turns: watch::Sender<u64>,
    /// The full map last encoded; good for as long as the ring has all that came after it.
    full: tokio::sync::Mutex<Option<Encoded>>,
    places: Arc<Semaphore>,
    listings: Semaphore,
}

/// The last updates, without a gap.
struct Ring {
    /// Everything after this revision is in `updates`.
    complete_after: Revision,
    updates: VecDeque<Encoded>,
    bytes: usize,
}

impl Ring {
    const fn new(complete_after: Revision) -> Self {
        Self { complete_after, updates: VecDeque::new(), bytes: 0 }
    }

    fn push(&mut self, update: Encoded) {
        self.bytes += update.bytes.len();
        self.updates.push_back(update);
        // The newest stays even if it alone is too large: somebody waits for it.
        while self.updates.len() > RING || (self.bytes > RING_BYTES && self.updates.len() > 1) {
            let Some(oldest) = self.updates.pop_front() else { return };
            self.bytes -= oldest.bytes.len();
            self.complete_after = oldest.revision;
        }
    }

    /// Updates after `revision`, as many as have at most `most` bytes, but at least one if there is any; none if some
    /// of them are gone.
    fn after(&self, revision: Revision, most: usize) -> Option<Vec<Encoded>> {
        if revision < self.complete_after {
            return None;
        }
        let first = self.updates.partition_point(|update| update.revision <= revision);
        let (mut bytes, mut taken) = (0_usize, Vec::new());
        for update in self.updates.range(first..) {
            bytes = bytes.saturating_add(update.bytes.len());
            if bytes > most && !taken.is_empty() {
                break;
            }
            taken.push(update.clone());
        }
        Some(taken)
    }
}

impl MapFeed {
    /// Follows a group until `shutdown`.
    pub fn start(group: RaftGroup, shutdown: Shutdown) -> Self {
        // Subscribed before the revision is read: what lies between is told twice, never missed.
        let mut committed = group.subscribe();
        let (complete_after, ()) = group.read_stale(|_| ());
        let feed = Self::at(complete_after);
        let task = feed.clone();
        tokio::spawn(async move {
            loop {
                let next = tokio::select! {
                    () = shutdown.cancelled() => return,
                    next = committed.recv() => next,
                };
                match next {
                    Ok(Committed::Changed { revision, events }) => task.publish(revision, &events),
                    Ok(Committed::Replaced { revision }) => task.restart(revision),
                    Err(RecvError::Lagged(_)) => task.restart(group.read_stale(|_| ()).0),
                    Err(RecvError::Closed) => return,
                }
            }
        });
        feed
    }

    fn at(complete_after: Revision) -> Self {
        Self(Arc::new(Feed {
            ring: Mutex::new(Ring::new(complete_after)),
            turns: watch::Sender::new(0),
            full: tokio::sync::Mutex::default(),
            places: Arc::new(Semaphore::new(WATCHERS)),
            listings: Semaphore::new(LISTINGS),
        }))
    }

    fn publish(&self, revision: Revision, events: &[MapEvent]) {
        if !events.is_empty() && revision > self.newest_known() {
            self.push(convert::update(revision, events));
        }
    }

    fn push(&self, update: MapUpdate) {
        let revision = Revision(update.revision);
        let bytes = WatchReply { event: None, updates: vec![update] }.encode_to_vec().into();
        self.ring().push(Encoded { revision, bytes });
        self.0.turns.send_modify(|turn| *turn += 1);
    }

    /// The updates up to `revision` are unknown: watchers list again.
    fn restart(&self, revision: Revision) {
        *self.ring() = Ring::new(revision);
        self.0.turns.send_modify(|turn| *turn += 1);
    }

    /// Updates after `revision`, oldest first: as many as have at most `most` bytes, but at least one if there is any.
    ///
    /// # Errors
    /// When some of them are gone; the status names the oldest revision that is not.
    pub(super) fn after(&self, revision: Revision, most: usize) -> Result<Vec<Encoded>, Status> {
        let ring = self.ring();
        ring.after(revision, most).ok_or_else(|| {
            let oldest = ring.complete_after;
            let what = format!("the updates after revision {revision} are gone, the oldest held here is {oldest}");
            status::compacted(format!("{what}; list again, from revision 0"), oldest)
        })
    }

    /// Changes with every update.
    pub(super) fn turns(&self) -> watch::Receiver<u64> {
        self.0.turns.subscribe()
    }

    /// How many watch here.
    pub(super) fn watchers(&self) -> u32 {
        u32::try_from(WATCHERS.saturating_sub(self.0.places.available_permits())).unwrap_or(u32::MAX)
    }

    /// A watcher's place; none when there are too many.
    pub(super) fn take_place(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.0.places).try_acquire_owned().ok()
    }

    /// The right to have a full map on its way.
    pub(super) async fn take_listing(&self) -> Option<tokio::sync::SemaphorePermit<'_>> {
        self.0.listings.acquire().await.ok()
    }

    /// A full map from which the ring can go on. A thousand clients that come at once are served one encoding.
    pub(super) async fn full(&self, group: &RaftGroup) -> Encoded {
        let mut kept = self.0.full.lock().await;
        let good = |full: &Encoded| {
            let ring = self.ring();
            let since = ring.after(full.revision, usize::MAX)?;
            // Sending what changed since must not cost more than sending the map anew.
            (since.iter().map(|update| update.bytes.len()).sum::<usize>() <= full.bytes.len()).then_some(())
        };
        if let Some(full) = kept.as_ref().filter(|full| good(full).is_some()) {
            return full.clone();
        }
        let (revision, map) = group.read_stale(|state| convert::full_map(state, state.revision()));
        let full = Encoded { revision, bytes: encode(Event::Full(map)) };
        *kept = Some(full.clone());
        full
    }

    /// The newest change of the map that is known here; 0 when none was seen since the start.
    pub(in crate::api) fn newest(&self) -> Revision {
        self.ring().updates.back().map_or(Revision(0), |update| update.revision)
    }

    /// Up to where this member's updates go; a watcher that has less has something to take, or to list again.
    pub(super) fn newest_known(&self) -> Revision {
        let ring = self.ring();
        ring.updates.back().map_or(ring.complete_after, |update| update.revision)
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.0.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) fn encode(event: Event) -> Bytes {
    WatchReply { event: Some(event), updates: Vec::new() }.encode_to_vec().into()
}

#[cfg(test)]
mod tests {
    use pflex_proto::status::Reason;

    use super::*;

    fn feed(revisions: impl IntoIterator<Item = u64>) -> MapFeed {
        let feed = MapFeed::at(Revision(10));
        revisions.into_iter().for_each(|revision| feed.push(MapUpdate { revision, ..Default::default() }));
        feed
    }

    const ANY: usize = usize::MAX;

    fn held(feed: &MapFeed, after: u64, most: usize) -> Option<Vec<u64>> {
        let updates = feed.after(Revision(after), most).ok()?;
        Some(updates.into_iter().map(|update| update.revision.get()).collect())
    }

    #[test]
    fn who_comes_back_gets_what_came_after() {
        let feed = feed([12, 15, 16]);
        assert_eq!(held(&feed, 10, ANY), Some(vec![12, 15, 16]));
        assert_eq!(held(&feed, 12, 1), Some(vec![15]));
        assert_eq!(held(&feed, 14, ANY), Some(vec![15, 16]));
        assert_eq!(held(&feed, 16, ANY), Some(vec![]));
        assert_eq!(feed.newest(), Revision(16));
    }

    #[test]
    fn what_is_gone_is_said_with_the_oldest_that_is_held() {
        let end = 11 + u64::try_from(RING).unwrap();
        let feed = feed(11..=end);
        let gone = feed.after(Revision(10), ANY).err().unwrap();
        assert_eq!(status::reason(&gone), Some(Reason::Compacted));
        assert_eq!(status::oldest_revision(&gone), Some(Revision(11)));
        assert_eq!(held(&feed, 11, 1), Some(vec![12]));
        feed.restart(Revision(end + 100));
        let gone = feed.after(Revision(end), ANY).err().unwrap();
        assert_eq!(status::oldest_revision(&gone), Some(Revision(end + 100)));
    }

    #[test]
    fn a_bundle_is_bounded_and_is_one_message_with_all_of_its_updates() {
        let feed = feed([12, 15, 16]);
        let one = feed.after(Revision(10), 1).unwrap().remove(0).bytes.len();
        assert_eq!(held(&feed, 10, 2 * one), Some(vec![12, 15]));
        assert_eq!(held(&feed, 10, 2 * one - 1), Some(vec![12]));
        let bundle: Vec<u8> =
            feed.after(Revision(10), ANY).unwrap().iter().flat_map(|update| update.bytes.clone()).collect();
        let WatchReply { event, updates } = WatchReply::decode(bundle.as_slice()).unwrap();
        assert_eq!(updates.iter().map(|update| update.revision).collect::<Vec<_>>(), [12, 15, 16]);
        assert_eq!(event, None);
    }

    #[test]
    fn the_ring_is_bounded_in_bytes() {
        let mut ring = Ring::new(Revision(0));
        for revision in 1..=10 {
            ring.push(Encoded { revision: Revision(revision), bytes: vec![0; RING_BYTES / 4].into() });
        }
        assert!(ring.bytes <= RING_BYTES, "{}", ring.bytes);
        assert_eq!((ring.updates.len(), ring.complete_after), (4, Revision(6)));
        ring.push(Encoded { revision: Revision(11), bytes: vec![0; 2 * RING_BYTES].into() });
        assert_eq!(ring.updates.len(), 1, "the newest is always there");
    }
}
