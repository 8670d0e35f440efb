//! The first start of a member that joins: an empty store of its own, if the id is free.
//!
//! The store's uuid is random, so a directory that was lost and made anew is another store and gets no vote under the old
//! id (S18), whoever is asked here. Asking first only spares the operator the search for why.

use std::time::Duration;

use pflex_common::net::Endpoint;
use pflex_proto::{
    ids::StoreUuid,
    pb::{ClusterStatusRequest, cluster_client::ClusterClient},
};
use uuid::Uuid;

use super::{DaemonError, MdmConfig};
use crate::raft::{RaftGroup, StoreIdentity};

/// For one member to say who the members are.
const ASK: Duration = Duration::from_secs(1);

/// Makes the store, unless a member of the cluster knows the id as another store's.
pub(super) async fn make_store(config: &MdmConfig) -> Result<(), DaemonError> {
    let asked = futures::future::join_all(config.apis.iter().map(|member| is_member(member, config.id.get()))).await;
    if asked.into_iter().any(|is| is == Some(true)) {
        return Err(DaemonError::IdTaken { id: config.id, dir: config.dir.display().to_string() });
    }
    let store = StoreUuid(Uuid::new_v4());
    RaftGroup::create_store(&config.dir, StoreIdentity { cluster: config.cluster, node: config.id, store })?;
    tracing::info!(mdm = %config.id, %store, "made an empty store; waiting to be added to the cluster");
    Ok(())
}

/// Whether the cluster has a member of that id; none unless it is the leader that is asked: a member that was removed
/// still thinks that it is one.
async fn is_member(peer: &Endpoint, id: u64) -> Option<bool> {
    let mut client = ClusterClient::new(peer.channel());
    let asked = client.status(ClusterStatusRequest { stale: false });
    let status = tokio::time::timeout(ASK, asked).await.ok()?.ok()?.into_inner();
    Some(status.members.iter().any(|member| member.id == id))
}
