//! One client's stream: takes updates from the ring to the client until either ends.

use std::time::Duration;

use pflex_proto::{
    ids::Revision,
    pb::{WatchProgress, watch_reply::Event},
    status,
};
use tokio::{
    sync::{OwnedSemaphorePermit, watch},
    time::Instant,
};
use tonic::Status;

use super::{
    RETRY_MS,
    feed::encode,
    reply::{IN_FLIGHT, Reply, Sender},
};
use crate::{api::Api, raft::group::Members};

/// So that a client notices a dead connection, and knows the map is fresh when nothing changes.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);
/// A client that takes nothing for so long, though something waits for it, is cut off. Its machine may answer pings.
const STALLED: Duration = Duration::from_secs(5);
/// A watcher gets no updates more often than this, and this much longer for each watcher of the member, but what came
/// meanwhile together: so a storm of changes costs a member some 4,000 messages a second, however many watch. The first
/// change after a quiet moment goes at once.
const GATHER: Duration = Duration::from_millis(20);
const GATHER_EACH: Duration = Duration::from_micros(250);
/// Updates in one message: well below the 4 MiB that gRPC clients take by default. One alone may have more.
const BUNDLE_BYTES: usize = 1 << 20;

/// One client's stream.
pub(super) struct Watcher {
    sender: Sender,
    api: Api,
    /// The client has everything up to this revision.
    sent: Revision,
    /// When updates may be sent again.
    rested: Instant,
    _place: OwnedSemaphorePermit,
}

/// Why a stream ends: with a word for the client, or without because nobody is there to hear it.
type End = Option<Status>;

impl Watcher {
    pub(super) fn new(sender: Sender, api: Api, from: Revision, place: OwnedSemaphorePermit) -> Self {
        Self { sender, api, sent: from, rested: Instant::now(), _place: place }
    }

    /// Sends until the client or the server ends.
    pub(super) async fn run(mut self) {
        if let Err(Some(end)) = self.follow().await {
            self.sender.end(end);
        }
    }

    async fn follow(&mut self) -> Result<(), End> {
        let shutdown = self.api.shutdown().clone();
        let mut members = self.api.group().members();
        let mut turns = self.api.feed().turns();
        if self.sent == Revision(0) {
            self.list(&members).await?;
        }
        let mut progress = tokio::time::interval(PROGRESS_EVERY);
        loop {
            self.catch_up().await?;
            tokio::select! {
                turned = turns.changed() => {
                    if turned.is_err() {
                        return Ok(());
                    }
                    tokio::time::sleep_until(self.rested).await;
                },
                () = self.sender.queue.closed() => return Err(None),
                _ = progress.tick() => {
                    self.tell_members(&mut members).await?;
                    self.api.shows_the_present().map_err(Some)?;
                }
                // At once: it may be the last that this member hears.
                changed = members.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    self.tell_members(&mut members).await?;
                }
                () = shutdown.cancelled() => {
                    // Whoever ends for good says who is left.
                    drop(self.sender.queue.try_send(self.progress(&members.borrow_and_update().clone())));
                    let what = "this MDM is shutting down; go on with another one";
                    return Err(Some(Status::unavailable(what)));
                }
            }
        }
    }

    async fn list(&mut self, members: &watch::Receiver<Members>) -> Result<(), End> {
        // Taken by reference from a clone: the permit outlives the borrow of `self` below.
        let feed = self.api.feed().clone();
        // Who hears nothing for some seconds goes elsewhere and queues there again, and so would thousands.
        let tell = || self.send(self.progress(&members.borrow()));
        let listing = telling_meanwhile(PROGRESS_EVERY, feed.take_listing(), tell).await?;
        let _listing = listing.ok_or(None)?;
        let full = feed.full(self.api.group()).await;
        self.sent = full.revision;
        self.send(full.bytes.into()).await?;
        // The next one may list when this one is on its way.
        let queue = self.sender.queue.clone();
        self.unless_stalled(queue.reserve_many(IN_FLIGHT)).await.map(drop)
    }

    /// Sends what the ring has after `sent`; what comes meanwhile is gathered for the next time.
    async fn catch_up(&mut self) -> Result<(), End> {
        let queue = self.sender.queue.clone();
        let known = self.api.feed().newest_known();
        while known > self.sent {
            // First a place, then what is put there: whatever comes while the client is slow goes together.
            let place = self.unless_stalled(queue.reserve()).await?;
            let updates = self.api.feed().after(self.sent, BUNDLE_BYTES).map_err(Some)?;
            let Some(newest) = updates.last().map(|update| update.revision) else { return Ok(()) };
            place.send(Reply(updates.into_iter().map(|update| update.bytes).collect()));
            self.sent = newest;
            self.rested = Instant::now() + GATHER + GATHER_EACH * self.api.feed().watchers();
        }
        Ok(())
    }

    async fn tell_members(&self, members: &mut watch::Receiver<Members>) -> Result<(), End> {
        let now = members.borrow_and_update().clone();
        self.send(self.progress(&now)).await
    }

    fn progress(&self, members: &Members) -> Reply {
        let (revision, mdms, mdms_as_of) = (self.sent.get(), members.apis.clone(), members.as_of);
        encode(Event::Progress(WatchProgress { revision, mdms, mdms_as_of })).into()
    }

    async fn send(&self, reply: Reply) -> Result<(), End> {
        self.unless_stalled(self.sender.queue.send(reply)).await
    }

    async fn unless_stalled<T, E>(&self, sending: impl Future<Output = Result<T, E>>) -> Result<T, End> {
        tokio::select! {
            () = self.api.shutdown().cancelled() => Err(None),
            sent = tokio::time::timeout(STALLED, sending) => match sent {
                Ok(sent) => sent.map_err(|_| None),
                Err(_) => {
                    let seconds = STALLED.as_secs();
                    let what = format!("the watcher took nothing for {seconds} s; it can go on from the revision it has");
                    Err(Some(status::overloaded(what, RETRY_MS)))
                }
            },
        }
    }
}

/// Waits for `turn`; calls `tell` whenever it has taken `every` more.
async fn telling_meanwhile<T, Told>(
    every: Duration,
    turn: impl Future<Output = T>,
    mut tell: impl FnMut() -> Told,
) -> Result<T, End>
where
    Told: Future<Output = Result<(), End>>,
{
    let mut turn = std::pin::pin!(turn);
    loop {
        match tokio::time::timeout(every, &mut turn).await {
            Ok(turn) => return Ok(turn),
            Err(_) => tell().await?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_waits_for_a_turn_hears_of_it_until_it_comes() {
        let every = Duration::from_millis(1);
        let (sender, turn) = tokio::sync::oneshot::channel();
        let mut sender = Some(sender);
        let mut told = 0;
        let tell = || {
            told += 1;
            if told == 3 {
                sender.take().unwrap().send("turn").unwrap();
            }
            std::future::ready(Ok(()))
        };
        assert!(matches!(telling_meanwhile(every, turn, tell).await, Ok(Ok("turn"))));
        let gone = telling_meanwhile(every, std::future::pending::<()>(), || std::future::ready(Err(None))).await;
        assert!(matches!(gone, Err(None)), "nobody waits any more");
    }
}
