//! Keeps a map fresh from whichever MDM member answers.

use std::{sync::Arc, time::Duration};

use pflex_proto::{
    ids::{ClusterGeneration, Revision},
    pb::{ComponentKind, MapUpdate, WatchReply, WatchRequest, map_client::MapClient, watch_reply::Event},
    pg::MalformedMessage,
    status::{self, Reason},
};
use rand::RngExt as _;
use tokio::sync::watch;
use tonic::Status;

use super::ClusterMap;
use crate::{mdm::MdmClient, shutdown::Shutdown};

/// Servers say something each second; one that is silent longer is stuck, and another is asked.
const SILENCE: Duration = Duration::from_secs(3);
/// Between two members that cannot serve.
const PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// The map as it changes; none before the first one arrived.
pub type Watcher = watch::Receiver<Option<Arc<ClusterMap>>>;

/// Why one member's stream ended.
#[derive(Debug, thiserror::Error)]
enum StreamError {
    #[error("{}", .0.message())]
    Status(#[from] Status),
    #[error("silent for {SILENCE:?}")]
    Silent,
    #[error("ended")]
    Ended,
    #[error("malformed map")]
    Malformed(#[from] MalformedMessage),
    #[error("behind: it is at revision {theirs}, this process at {ours}")]
    Behind { theirs: Revision, ours: Revision },
    #[error("out of order: update {theirs} after {ours}")]
    Disorder { theirs: Revision, ours: Revision },
    #[error("of another cluster")]
    OtherCluster,
    #[error("of generation {theirs} of the cluster, this process has followed {ours}")]
    OlderGeneration { theirs: ClusterGeneration, ours: ClusterGeneration },
}

impl StreamError {
    /// How the next stream begins.
    fn next(&self) -> Begin {
        match self {
            // What came between is gone there; elsewhere it may not be, but a full map is never wrong.
            Self::Status(status) if status::reason(status) == Some(Reason::Compacted) => Begin::Anew,
            // What is missing cannot be told from what is known.
            Self::Malformed(_) | Self::Disorder { .. } => Begin::Anew,
            Self::Status(_)
            | Self::Silent
            | Self::Ended
            | Self::Behind { .. }
            | Self::OtherCluster
            | Self::OlderGeneration { .. } => Begin::WhereItWas,
        }
    }

    fn pause(&self) -> Duration {
        let asked = match self {
            Self::Status(status) => status::retry_after_ms(status).map_or(Duration::ZERO, Duration::from_millis),
            _ => Duration::ZERO,
        };
        // Thousands of watchers that lost one member do not come to the next all at once.
        asked.max(PAUSE).min(LONGEST_PAUSE).mul_f64(rand::rng().random_range(0.5..1.5))
    }
}

/// How a stream begins.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Begin {
    /// With the changes since the map that is known; with a full map if none is.
    WhereItWas,
    /// With a full map.
    Anew,
}

/// Watches until `shutdown`, from one member after the other (S18: never from one that is behind what was seen).
pub fn watch(client: MdmClient, kind: ComponentKind, id: u32, shutdown: Shutdown) -> Watcher {
    watch_from(None, client, kind, id, shutdown)
}

/// The same with a map to begin with, as of revision 0: it stands until a member gives a full one.
pub fn watch_from(
    known: Option<ClusterMap>,
    client: MdmClient,
    kind: ComponentKind,
    id: u32,
    shutdown: Shutdown,
) -> Watcher {
    let (sender, receiver) = watch::channel(known.map(Arc::new));
    tokio::spawn(async move {
        let follow = async {
            let mut begin = Begin::WhereItWas;
            loop {
                let (endpoint, connection) = client.any_member();
                let stream = Stream { mdms: &client, who: (kind, id), sender: &sender };
                let Err(error) = stream.follow(MapClient::new(connection), begin).await;
                tracing::debug!(%endpoint, %error, "map stream ended; asking the next member");
                begin = error.next();
                tokio::time::sleep(error.pause()).await;
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = sender.closed() => {}
            () = follow => {}
        }
    });
    receiver
}

/// One stream from one member.
struct Stream<'a> {
    mdms: &'a MdmClient,
    who: (ComponentKind, u32),
    sender: &'a watch::Sender<Option<Arc<ClusterMap>>>,
}

impl Stream<'_> {
    async fn follow(
        &self,
        client: MapClient<crate::mdm::Connection>,
        begin: Begin,
    ) -> Result<std::convert::Infallible, StreamError> {
        // A full map holds 131,072 volumes at the limit; tonic's default of 4 MiB would not.
        let mut client = client.max_decoding_message_size(1 << 30);
        let (from_revision, cluster_generation) = match begin {
            Begin::WhereItWas => self.sender.borrow().as_ref().map_or((0, 0), |map| (map.revision.0, map.generation.0)),
            Begin::Anew => (0, 0),
        };
        let (kind, id) = self.who;
        let request = WatchRequest { from_revision, kind: kind.into(), id, cluster_generation };
        let opened = tokio::time::timeout(SILENCE, client.watch(request)).await.map_err(|_| StreamError::Silent)?;
        let mut stream = opened?.into_inner();
        loop {
            let next = tokio::time::timeout(SILENCE, stream.message()).await.map_err(|_| StreamError::Silent)?;
            let WatchReply { event, updates } = next?.ok_or(StreamError::Ended)?;
            self.take(event).await?;
            self.apply(updates)?;
        }
    }

    async fn take(&self, event: Option<Event>) -> Result<(), StreamError> {
        let known = self.sender.borrow().clone();
        match event {
            Some(Event::Full(full)) => {
                let map = ClusterMap::from_full(full)?;
                // S19: what a restore has undone never comes back, not even for a process that has no map yet.
                let ours = self.mdms.generation();
                if map.generation < ours {
                    return Err(StreamError::OlderGeneration { theirs: map.generation, ours });
                }
                if let Some(known) = known {
                    if map.cluster != known.cluster {
                        return Err(StreamError::OtherCluster);
                    }
                    if map.generation == known.generation && map.revision < known.revision {
                        return Err(StreamError::Behind { theirs: map.revision, ours: known.revision });
                    }
                }
                self.mdms.set_generation(map.generation);
                self.sender.send_replace(Some(Arc::new(map)));
            }
            Some(Event::Progress(progress)) => {
                // A server names members that parsed once; one that does not is left out.
                let members = progress.mdms.iter().filter_map(|mdm| mdm.parse().ok()).collect();
                self.mdms.learn_members(progress.mdms_as_of, members).await;
            }
            None => {}
        }
        Ok(())
    }

    /// Makes one new map of all updates of a message, so that thousands of changes at once are not as many maps.
    fn apply(&self, updates: Vec<MapUpdate>) -> Result<(), StreamError> {
        if updates.is_empty() {
            return Ok(());
        }
        // The stream starts with a full map if this side has none; an update before it is a server's mistake.
        let known = self.sender.borrow().clone().ok_or(MalformedMessage::Missing("full"))?;
        self.sender.send_replace(Some(Arc::new(applied(&known, updates)?)));
        Ok(())
    }
}

/// The map after these updates, or nothing of them.
fn applied(known: &ClusterMap, updates: Vec<MapUpdate>) -> Result<ClusterMap, StreamError> {
    let mut map = known.clone();
    for update in updates {
        let (theirs, ours) = (Revision(update.revision), map.revision);
        if theirs <= ours {
            return Err(StreamError::Disorder { theirs, ours });
        }
        map.apply(update)?;
    }
    Ok(map)
}

#[cfg(test)]
mod tests {
    use pflex_proto::pb;

    use super::*;

    fn update(revision: u64) -> MapUpdate {
        let volume = pb::Volume { id: 1, name: format!("v{revision}"), ..Default::default() };
        MapUpdate { revision, volumes: vec![volume], ..Default::default() }
    }

    fn at_ten() -> ClusterMap {
        let full = pb::ClusterMap { cluster_id: vec![1; 16], revision: 10, ..Default::default() };
        ClusterMap::from_full(full).unwrap()
    }

    #[test]
    fn the_updates_of_a_message_are_applied_in_order() {
        let map = applied(&at_ten(), vec![update(11), update(15), update(16)]).unwrap();
        assert_eq!(map.revision, Revision(16));
        assert!(map.volume_named("v16").is_some());
    }

    #[test]
    fn updates_out_of_order_or_told_twice_are_a_reason_to_list_again() {
        for bad in [vec![update(12), update(11)], vec![update(11), update(11)], vec![update(10)]] {
            let error = applied(&at_ten(), bad).unwrap_err();
            assert!(matches!(error, StreamError::Disorder { .. }) && error.next() == Begin::Anew, "{error}");
        }
    }
}
