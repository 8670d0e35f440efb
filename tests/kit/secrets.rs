//! The secrets of a cluster, as nobody but a storage server gets them: the test registers as one.

use pflex_common::{
    mdm::{MdmClient, Patience},
    net::Endpoint,
};
use pflex_proto::{
    ids::ClusterId,
    pb::{
        ComponentKind, KeysRequest, RegisterRequest, SecretKey, discovery_client::DiscoveryClient,
        tokens_client::TokensClient,
    },
    token::KEY_SIZE,
};

use super::{Cluster, io::PATIENCE};

/// A storage server without devices that exists for its secrets.
pub(crate) struct Spy {
    runtime: tokio::runtime::Runtime,
    client: MdmClient,
    id: u32,
    process: Vec<u8>,
    pub(crate) cluster: ClusterId,
}

impl Spy {
    pub(crate) fn register(cluster: &Cluster) -> Self {
        cluster.expect(0, "sds add spy --domain default");
        let runtime = tokio::runtime::Runtime::new().expect("threads");
        let client = MdmClient::new("spy", vec![Endpoint::new("127.0.0.1", cluster.at(8001).port())]);
        let process = vec![0x5e; 16];
        let request = RegisterRequest {
            kind: ComponentKind::Sds.into(),
            name: "spy".into(),
            process_id: process.clone(),
            ..Default::default()
        };
        let call = |connection| {
            let request = request.clone();
            async move { DiscoveryClient::new(connection).register(request).await }
        };
        let reply = runtime.block_on(client.read(Patience::within(PATIENCE), call)).expect("it registers");
        let cluster = ClusterId::from_slice(&reply.cluster_id).expect("16 bytes");
        Self { runtime, client, id: reply.id, process, cluster }
    }

    /// All generations of the secret that are valid, oldest first: key id and bytes.
    pub(crate) fn secrets(&self) -> Vec<(u32, [u8; KEY_SIZE])> {
        let call = |connection| {
            let request = KeysRequest { sds_id: self.id, process_id: self.process.clone() };
            async move { TokensClient::new(connection).keys(request).await }
        };
        let reply =
            self.runtime.block_on(self.client.read(Patience::within(PATIENCE), call)).expect("it is registered");
        let secret = |key: SecretKey| (key.key_id, key.secret.try_into().expect("32 bytes"));
        reply.keys.into_iter().map(secret).collect()
    }
}
