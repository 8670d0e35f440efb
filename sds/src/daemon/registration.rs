//! What an SDS says when it registers: first who it is, then which devices it has opened.

use pflex_common::{
    host,
    mdm::MdmClient,
    registration::{self, Registered, RegistrationError},
};
use pflex_proto::{
    geometry::CHUNK_SIZE,
    ids::{ClusterId, DeviceId, ProcessId, Revision, SdsId},
    pb::{self, ComponentKind, RegisterRequest, RegisteredDevice},
};

use super::{SdsConfig, SdsError, identity::Identity};
use crate::store::{OpenReport, Store};

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
        let Registered { cluster, reply } = self.register(identity, None).await?;
        identity.join(cluster)?;
        Ok((cluster, SdsId(reply.id)))
    }

    /// Registers the opened devices and learns their ids, and the revision of the map that has this registration.
    pub(super) async fn devices(
        &self,
        identity: &Identity,
        stores: &[(Store, OpenReport)],
    ) -> Result<(Vec<DeviceId>, Revision), SdsError> {
        let devices = stores.iter().zip(&self.config.devices).map(|((store, opened), file)| RegisteredDevice {
            uuid: opened.superblock.uuid.as_bytes().to_vec(),
            incarnation: opened.superblock.incarnation.0,
            capacity_bytes: u64::from(store.stats().units_total) * u64::from(CHUNK_SIZE),
            device_id: opened.superblock.device.0,
            path: file.path.display().to_string(),
            empty: opened.emptied,
            pool: file.pool.clone(),
        });
        let Registered { reply, .. } = self.register(identity, Some(devices.collect())).await?;
        if reply.device_ids.len() != stores.len() {
            let why = format!("it named {} of {} devices", reply.device_ids.len(), stores.len());
            return Err(SdsError::Refused { name: self.config.name.clone(), why });
        }
        Ok((reply.device_ids.into_iter().map(DeviceId).collect(), Revision(reply.revision)))
    }

    /// Without devices it only introduces itself. Only what no waiting can cure is an error.
    async fn register(
        &self,
        identity: &Identity,
        devices: Option<Vec<RegisteredDevice>>,
    ) -> Result<Registered, SdsError> {
        let request = RegisterRequest {
            request: None,
            kind: ComponentKind::Sds.into(),
            name: self.config.name.clone(),
            process_id: self.process.as_bytes().to_vec(),
            addresses: Some(self.addresses.clone()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            introduce: devices.is_none(),
            host: Some(host::info()),
            devices: devices.unwrap_or_default(),
            cluster_id: Vec::new(),
        };
        let registered = registration::register(self.client, identity.cluster(), request).await;
        registered.map_err(|error| self.explain(error))
    }

    fn explain(&self, error: RegistrationError) -> SdsError {
        let name = self.config.name.clone();
        match error {
            RegistrationError::OtherCluster { ours, theirs } => {
                let members = self.config.mdm.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                SdsError::OtherCluster { dir: self.config.data_dir.clone(), ours, members, theirs }
            }
            RegistrationError::Refused { why } => SdsError::Refused { name, why },
            RegistrationError::Superseded { why } => SdsError::Superseded { name, why },
        }
    }
}
