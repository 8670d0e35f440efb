//! Watching the cluster map: a full map, or the updates since a revision, and then every update in order.
//!
//! One task turns the group's events into updates, once for all watchers, and keeps the last of them in a ring. Each
//! watcher has its own bounded way to the client; one that does not keep up is cut off and lists again.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use pflex_common::shutdown::Shutdown;
use pflex_proto::{
    ids::Revision,
    pb::{self, WatchProgress, WatchReply, WatchRequest, map_server::Map, watch_reply::Event},
    status::{self, Reason},
};
use tokio::sync::{
    broadcast::{self, error::RecvError},
    mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{Api, convert};
use crate::raft::{RaftGroup, group::Committed};

/// Updates kept for watchers that come back: a reconnect takes seconds, a busy cluster makes some hundred in that time.
const RING: usize = 4_096;
/// Updates a watcher may be behind before it is cut off; each is one command's.
const BEHIND: usize = 1_024;
/// Replies on their way to one client; HTTP/2 flow control holds the rest back.
const IN_FLIGHT: usize = 16;
/// So that a client notices a dead connection, and knows the map is fresh when nothing changes.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);
/// A member without a sign of a quorum for this long may miss changes that others have: its watchers should ask another
/// one. Above the second that an election takes.
const MAX_SILENCE: Duration = Duration::from_millis(2_500);
/// What a client that was cut off waits.
const RETRY_MS: u64 = 100;

/// The updates of the map as this member applies them. Clones share it.
#[derive(Clone)]
pub struct MapFeed(Arc<Feed>);

struct Feed {
    ring: Mutex<Ring>,
    updates: broadcast::Sender<News>,
}

/// The last updates, without a gap.
struct Ring {
    /// Everything after this revision is in `updates`.
    complete_after: Revision,
    updates: VecDeque<Arc<pb::MapUpdate>>,
}

#[derive(Clone)]
enum News {
    Update(Arc<pb::MapUpdate>),
    /// A snapshot replaced the state: what changed is not known.
    Replaced,
}

impl MapFeed {
    /// Follows a group until `shutdown`.
    pub fn start(group: RaftGroup, shutdown: Shutdown) -> Self {
        // Subscribed before the revision is read: what lies between is told twice, never missed.
        let mut committed = group.subscribe();
        let (complete_after, ()) = group.read_stale(|_| ());
        let ring = Mutex::new(Ring { complete_after, updates: VecDeque::new() });
        let feed = Self(Arc::new(Feed { ring, updates: broadcast::channel(BEHIND).0 }));
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

    fn publish(&self, revision: Revision, events: &[crate::state::MapEvent]) {
        if events.is_empty() || revision <= self.ring().complete_after {
            return;
        }
        let update = Arc::new(convert::update(revision, events));
        {
            let mut ring = self.ring();
            if ring.updates.len() == RING
                && let Some(oldest) = ring.updates.pop_front()
            {
                ring.complete_after = Revision(oldest.revision);
            }
            ring.updates.push_back(Arc::clone(&update));
        }
        // Nobody watching is no error.
        drop(self.0.updates.send(News::Update(update)));
    }

    /// The updates up to `revision` are unknown: watchers list again.
    fn restart(&self, revision: Revision) {
        *self.ring() = Ring { complete_after: revision, updates: VecDeque::new() };
        drop(self.0.updates.send(News::Replaced));
    }

    /// The updates after `revision`, if all of them are still here.
    fn since(&self, revision: Revision) -> Option<Vec<Arc<pb::MapUpdate>>> {
        let ring = self.ring();
        (revision >= ring.complete_after)
            .then(|| ring.updates.iter().filter(|update| update.revision > revision.get()).cloned().collect())
    }

    /// The newest change of the map that is known here; 0 when none was seen since the start.
    pub(super) fn newest(&self) -> Revision {
        Revision(self.ring().updates.back().map_or(0, |update| update.revision))
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.0.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[tonic::async_trait]
impl Map for Api {
    type WatchStream = ReceiverStream<Result<WatchReply, Status>>;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let from = Revision(request.into_inner().from_revision);
        if self.look(|state| state.cluster().is_none()) {
            return Err(status::overloaded("the cluster is not bootstrapped yet", RETRY_MS));
        }
        self.in_touch()?;
        // Subscribed before the start is read, as above.
        let news = self.feed().0.updates.subscribe();
        let (at, ()) = self.group().read_stale(|_| ());
        if from > at {
            // S18: a client never goes back in time.
            let what = format!("this member is at revision {at}, the watcher has seen {from}; ask another member");
            return Err(status::status(Reason::Compacted, what));
        }
        let missed = if from == Revision(0) { None } else { self.feed().since(from) };
        let (sender, receiver) = mpsc::channel(IN_FLIGHT);
        let mut watcher = Watcher { sender, sent: from };
        let api = self.clone();
        tokio::spawn(async move {
            let first = match missed {
                Some(updates) => updates.into_iter().map(update_event).collect(),
                None => {
                    let (_, map) = api.group().read_stale(|state| convert::full_map(state, state.revision()));
                    vec![Event::Full(map)]
                }
            };
            if let Err(Some(end)) = watcher.run(first, news, &api).await {
                // If the client does not read even this, it finds the stream ended.
                drop(watcher.sender.try_send(Err(end)));
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

impl Api {
    /// Refuses to show the map of a member that is cut off from the others.
    fn in_touch(&self) -> Result<(), Status> {
        let silence = self.group().silence();
        if silence <= MAX_SILENCE {
            return Ok(());
        }
        let seconds = silence.as_secs();
        let what =
            format!("this member has known of no quorum for {seconds} s, its map may be old; ask another member");
        Err(status::status(Reason::NoQuorum, what))
    }
}

/// One client's stream.
struct Watcher {
    sender: mpsc::Sender<Result<WatchReply, Status>>,
    /// The client has everything up to this revision.
    sent: Revision,
}

impl Watcher {
    /// Sends until the client or the server ends; an error with a status is told to the client.
    async fn run(
        &mut self,
        first: Vec<Event>,
        mut news: broadcast::Receiver<News>,
        api: &Api,
    ) -> Result<(), Option<Status>> {
        let shutdown = api.shutdown();
        for event in first {
            self.send(event, shutdown).await?;
        }
        let mut progress = tokio::time::interval(PROGRESS_EVERY);
        loop {
            let event = tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                () = self.sender.closed() => return Err(None),
                _ = progress.tick() => {
                    api.in_touch().map_err(Some)?;
                    Event::Progress(WatchProgress { revision: self.sent.get(), mdms: api.group().voter_apis() })
                }
                next = news.recv() => match next {
                    Ok(News::Update(update)) if update.revision > self.sent.get() => update_event(update),
                    Ok(News::Update(_)) => continue,
                    Ok(News::Replaced) => {
                        let what = "this member took a snapshot from the leader; list again";
                        return Err(Some(status::status(Reason::Compacted, what)));
                    }
                    Err(RecvError::Lagged(missed)) => {
                        let what = format!("the watcher fell {missed} updates behind; list again");
                        return Err(Some(status::overloaded(what, RETRY_MS)));
                    }
                    Err(RecvError::Closed) => return Ok(()),
                },
            };
            self.send(event, shutdown).await?;
        }
    }

    async fn send(&mut self, event: Event, shutdown: &Shutdown) -> Result<(), Option<Status>> {
        match &event {
            Event::Full(map) => self.sent = Revision(map.revision),
            Event::Update(update) => self.sent = Revision(update.revision),
            Event::Progress(_) => {}
        }
        tokio::select! {
            () = shutdown.cancelled() => Err(None),
            sent = self.sender.send(Ok(WatchReply { event: Some(event) })) => sent.map_err(|_| None),
        }
    }
}

fn update_event(update: Arc<pb::MapUpdate>) -> Event {
    Event::Update(Arc::unwrap_or_clone(update))
}
