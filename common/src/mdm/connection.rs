//! What every call to an MDM says of its caller.

use std::time::Duration;

use pflex_proto::{
    ids::{ClusterGeneration, ClusterId},
    status,
};
use tonic::{
    Request, Status,
    metadata::MetadataValue,
    service::{Interceptor, interceptor::InterceptedService},
    transport::Channel,
};

/// A channel that names the client's cluster in every call.
pub type Connection = InterceptedService<Channel, NameCluster>;

/// Adds the metadata by which a server refuses clients of another cluster, or of a newer generation of it (S19), and tells
/// it how long the answer is waited for: what nobody waits for any more is not proposed.
#[derive(Clone, Debug)]
pub struct NameCluster {
    pub(super) cluster: Option<ClusterId>,
    pub(super) generation: ClusterGeneration,
    pub(super) timeout: Option<Duration>,
}

impl Interceptor for NameCluster {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(timeout) = self.timeout {
            request.set_timeout(timeout);
        }
        if let Some(cluster) = self.cluster {
            let value = MetadataValue::try_from(cluster.to_string()).expect("a uuid is ASCII");
            request.metadata_mut().insert(status::CLUSTER_ID, value);
        }
        if self.generation != ClusterGeneration(0) {
            request.metadata_mut().insert(status::CLUSTER_GENERATION, self.generation.0.into());
        }
        Ok(request)
    }
}
