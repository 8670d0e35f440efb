//! Keeps a map fresh from whichever MDM member answers.

use std::{sync::Arc, time::Duration};

use pflex_proto::{
    ids::Revision,
    pb::{ComponentKind, WatchReply, WatchRequest, map_client::MapClient, watch_reply::Event},
    pg::MalformedMessage,
};
use tokio::sync::watch;
use tonic::Status;

use super::ClusterMap;
use crate::{mdm::MdmClient, shutdown::Shutdown};

/// Servers say something each second; one that is silent longer is stuck, and another is asked.
const SILENCE: Duration = Duration::from_secs(3);
/// Between two members that cannot serve.
const PAUSE: Duration = Duration::from_millis(100);

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
    #[error("of another cluster")]
    OtherCluster,
}

/// Watches until `shutdown`, from one member after the other (S18: never from one that is behind what was seen).
pub fn watch(client: MdmClient, kind: ComponentKind, id: u32, shutdown: Shutdown) -> Watcher {
    let (sender, receiver) = watch::channel(None);
    tokio::spawn(async move {
        let follow = async {
            loop {
                let (endpoint, connection) = client.any_member();
                let Err(error) = follow(MapClient::new(connection), &client, kind, id, &sender).await;
                tracing::debug!(%endpoint, %error, "map stream ended; asking the next member");
                tokio::time::sleep(PAUSE).await;
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

async fn follow(
    mut client: MapClient<crate::mdm::Connection>,
    mdms: &MdmClient,
    kind: ComponentKind,
    id: u32,
    sender: &watch::Sender<Option<Arc<ClusterMap>>>,
) -> Result<std::convert::Infallible, StreamError> {
    // A full map holds 131,072 volumes at the limit; tonic's default of 4 MiB would not.
    client = client.max_decoding_message_size(1 << 30);
    let from_revision = sender.borrow().as_ref().map_or(0, |map| map.revision.0);
    let request = WatchRequest { from_revision, kind: kind.into(), id };
    let opened = tokio::time::timeout(SILENCE, client.watch(request)).await.map_err(|_| StreamError::Silent)?;
    let mut stream = opened?.into_inner();
    loop {
        let next = tokio::time::timeout(SILENCE, stream.message()).await.map_err(|_| StreamError::Silent)?;
        let WatchReply { event } = next?.ok_or(StreamError::Ended)?;
        let known = sender.borrow().clone();
        match event {
            Some(Event::Full(full)) => {
                let map = ClusterMap::from_full(full)?;
                if let Some(known) = known {
                    if map.cluster != known.cluster {
                        return Err(StreamError::OtherCluster);
                    }
                    if map.revision < known.revision {
                        return Err(StreamError::Behind { theirs: map.revision, ours: known.revision });
                    }
                }
                sender.send_replace(Some(Arc::new(map)));
            }
            Some(Event::Update(update)) => {
                // The stream starts with a full map if this side has none; an update before it is a server's mistake.
                let mut map = known.as_deref().cloned().ok_or(MalformedMessage::Missing("full"))?;
                map.apply(update)?;
                sender.send_replace(Some(Arc::new(map)));
            }
            Some(Event::Progress(progress)) => {
                // A server names members that parsed once; one that does not is left out.
                mdms.learn_members(progress.mdms.iter().filter_map(|mdm| mdm.parse().ok()).collect()).await;
            }
            None => {}
        }
    }
}
