//! Watching the cluster map: a full map, or the updates since a revision, and then every update in order.
//!
//! `feed` turns the group's events into encoded updates, once for all watchers, and keeps the last of them in a ring;
//! `watcher` takes them from there to one client; `reply` puts the bytes on the wire as they are. A change costs each
//! watcher a copy of its bytes and nothing else, and a watcher that does not read holds nothing but its own few replies.

mod feed;
mod reply;
mod watcher;

use pflex_proto::{
    ids::Revision,
    pb::WatchRequest,
    status::{self, Reason},
};
use tonic::{Request, Response, Status};

pub use feed::MapFeed;
pub(super) use reply::MapService;
use reply::Replies;
use watcher::Watcher;

use super::{Api, error};
use crate::raft::Standing;

/// A member without a sign of a quorum for this long may miss changes that others have: its watchers should ask another
/// one. Above the second that an election takes.
const MAX_SILENCE: std::time::Duration = std::time::Duration::from_millis(2_500);
/// What a client that was cut off waits.
const RETRY_MS: u64 = 100;

impl Api {
    fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Replies>, Status> {
        let WatchRequest { from_revision, cluster_generation, .. } = request.into_inner();
        self.is_not_older(cluster_generation)?;
        let ours = self.look(|state| state.cluster().map_or(0, |cluster| cluster.generation.get()));
        // Revisions of two generations say nothing of one another.
        let other = cluster_generation != 0 && cluster_generation != ours;
        let from = Revision(if other { 0 } else { from_revision });
        if self.look(|state| state.cluster().is_none()) {
            return Err(error::not_bootstrapped());
        }
        self.shows_the_present()?;
        let (at, ()) = self.group().read_stale(|_| ());
        if from > at {
            // S18: a client never goes back in time.
            let what = format!("this member is at revision {at}, the watcher has seen {from}; ask another member");
            return Err(status::status(Reason::Behind, what));
        }
        if from != Revision(0) {
            // Said before the stream begins: a watcher that was away too long lists again.
            self.feed().after(from, 0)?;
        }
        let Some(place) = self.feed().take_place() else {
            return Err(status::overloaded("this member has as many watchers as it takes; ask another one", RETRY_MS));
        };
        let (sender, replies) = reply::channel();
        tokio::spawn(Watcher::new(sender, self.clone(), from, place).run());
        Ok(Response::new(replies))
    }

    /// Refuses to show the map of a member that is cut off from the others, or no longer one of them.
    fn shows_the_present(&self) -> Result<(), Status> {
        if self.group().standing() == Standing::Removed {
            let what = "this MDM was removed from the cluster; ask another one";
            return Err(status::status(Reason::Removed, what));
        }
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
