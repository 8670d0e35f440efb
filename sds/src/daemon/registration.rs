//! Registering with the MDM, for as long as it takes.

use std::time::Duration;

use pflex_common::mdm::{MdmClient, MdmError, Patience};
use pflex_proto::{
    geometry::CHUNK_SIZE,
    ids::{ClusterId, DeviceId, ProcessId, SdsId},
    pb::{self, ComponentKind, RegisterReply, RegisterRequest, RegisteredDevice, discovery_client::DiscoveryClient},
    status::Reason,
};
use tracing::warn;

use super::{SdsConfig, SdsError, identity::Identity};
use crate::store::{OpenReport, Store};

/// For one try; there is another one after it.
const PATIENCE: Patience = Patience::within(Duration::from_secs(10));
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(300);

/// Who registers.
pub(super) struct Registration<'a> {
    pub(super) config: &'a SdsConfig,
    pub(super) client: &'a MdmClient,
    pub(super) process: ProcessId,
    pub(super) addresses: pb::Addresses,
}

impl Registration<'_> {
    /// Learns the cluster and this server's id, before any device is opened. Nothing is registered: the cluster goes on
    /// with what it knows of this server's devices, so that a restart does not cost their copies' place (S2).
    pub(super) async fn introduce(&self, identity: &mut Identity) -> Result<(ClusterId, SdsId), SdsError> {
        let reply = self.register(identity, None).await?;
        let cluster = self.cluster_of(&reply)?;
        identity.join(cluster)?;
        self.client.set_cluster(cluster);
        Ok((cluster, SdsId(reply.id)))
    }

    /// Registers the opened devices and learns their ids.
    pub(super) async fn devices(
        &self,
        identity: &mut Identity,
        stores: &[(Store, OpenReport)],
    ) -> Result<Vec<DeviceId>, SdsError> {
        let devices = stores.iter().zip(&self.config.devices).map(|((store, opened), file)| RegisteredDevice {
            uuid: opened.superblock.uuid.as_bytes().to_vec(),
            incarnation: opened.superblock.incarnation.0,
            capacity_bytes: u64::from(store.stats().units_total) * u64::from(CHUNK_SIZE),
            device_id: opened.superblock.device.0,
            path: file.path.display().to_string(),
            empty: opened.emptied,
            pool: file.pool.clone(),
        });
        let reply = self.register(identity, Some(devices.collect())).await?;
        if reply.device_ids.len() != stores.len() {
            let why = format!("it named {} of {} devices", reply.device_ids.len(), stores.len());
            return Err(SdsError::Refused { name: self.config.name.clone(), why });
        }
        Ok(reply.device_ids.into_iter().map(DeviceId).collect())
    }

    fn cluster_of(&self, reply: &RegisterReply) -> Result<ClusterId, SdsError> {
        ClusterId::from_slice(&reply.cluster_id)
            .map_err(|error| SdsError::Refused { name: self.config.name.clone(), why: error.to_string() })
    }

    /// Without devices it only introduces itself. Only what no waiting can cure is an error.
    async fn register(
        &self,
        identity: &Identity,
        devices: Option<Vec<RegisteredDevice>>,
    ) -> Result<RegisterReply, SdsError> {
        let request = RegisterRequest {
            request: None,
            kind: ComponentKind::Sds.into(),
            name: self.config.name.clone(),
            process_id: self.process.as_bytes().to_vec(),
            addresses: Some(self.addresses.clone()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            introduce: devices.is_none(),
            devices: devices.unwrap_or_default(),
            cluster_id: identity.cluster().map(|cluster| cluster.as_bytes().to_vec()).unwrap_or_default(),
        };
        if let Some(cluster) = identity.cluster() {
            self.client.set_cluster(cluster);
        }
        let mut told = String::new();
        loop {
            let call = |connection, id| {
                let request = RegisterRequest { request: Some(id), ..request.clone() };
                async move { DiscoveryClient::new(connection).register(request).await }
            };
            let error = match self.client.write(PATIENCE, call).await {
                Ok(reply) => {
                    let theirs = self.cluster_of(&reply)?;
                    return match identity.cluster() {
                        Some(ours) if ours != theirs => Err(self.other_cluster(ours, theirs.to_string())),
                        Some(_) | None => Ok(reply),
                    };
                }
                Err(error) => error,
            };
            self.give_up(identity, &error)?;
            // Each reason is said once, not at every try.
            let why = error.to_string();
            if why != told {
                warn!(error = why, "cannot register yet; trying until it works");
                told = why;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn give_up(&self, identity: &Identity, error: &MdmError) -> Result<(), SdsError> {
        match error.reason() {
            Some(Reason::WrongCluster) => {
                Err(self.other_cluster(identity.cluster().unwrap_or_default(), error.to_string()))
            }
            Some(Reason::Invalid | Reason::NotAllowed) => {
                Err(SdsError::Refused { name: self.config.name.clone(), why: error.to_string() })
            }
            _may_change => Ok(()),
        }
    }

    fn other_cluster(&self, ours: ClusterId, theirs: String) -> SdsError {
        let members = self.config.mdm.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        SdsError::OtherCluster { dir: self.config.data_dir.clone(), ours, members, theirs }
    }
}
