//! What an SDS says when it registers: first who it is, then, to a cluster that was restored from a backup, what it knew
//! before (S19), and then which devices it has opened.

use std::time::Duration;

use pflex_common::{
    host,
    mdm::MdmClient,
    registration::{self, Registered, RegistrationError},
};
use pflex_proto::{
    geometry::CHUNK_SIZE,
    ids::{ClusterGeneration, ClusterId, DeviceId, ProcessId, Revision, SdsId},
    pb::{self, ComponentKind, RegisterRequest, RegisteredDevice},
};

use super::{SdsConfig, SdsError, devices::OpenDevice, identity::Identity, recovery::Reporter};

/// Between two attempts to report and register with a cluster that is restored meanwhile.
const PAUSE: Duration = Duration::from_millis(500);

/// What registering the devices gives.
pub(super) struct Devices {
    /// Their ids, in the order they were given in.
    pub(super) ids: Vec<DeviceId>,
    /// The revision of the map that has this registration.
    pub(super) registered: Revision,
    /// The generation of the cluster that is followed from now on.
    pub(super) generation: ClusterGeneration,
    /// As they were registered, with their ids.
    pub(super) rows: Vec<RegisteredDevice>,
}

fn row(OpenDevice { file, store, opened }: &OpenDevice) -> RegisteredDevice {
    RegisteredDevice {
        uuid: opened.superblock.uuid.as_bytes().to_vec(),
        incarnation: opened.superblock.incarnation.0,
        capacity_bytes: u64::from(store.stats().units_total) * u64::from(CHUNK_SIZE),
        device_id: opened.superblock.device.0,
        path: file.path.display().to_string(),
        empty: opened.emptied,
        pool: file.pool.clone(),
        pg_count: opened.sorting.map_or(0, |sorting| sorting.pg_count),
        sorted_pool_id: opened.sorting.map_or(0, |sorting| sorting.pool.0),
    }
}

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
        let introduced = self.register(identity, None).await;
        let Registered { cluster, reply } = introduced.map_err(|error| self.explain(error))?;
        identity.join(cluster)?;
        Ok((cluster, SdsId(reply.id)))
    }

    /// Registers the opened devices, after the cluster has heard what it waits for. From here on its generation is
    /// followed, and no older one.
    pub(super) async fn devices(&self, identity: &mut Identity, open: &[OpenDevice]) -> Result<Devices, SdsError> {
        loop {
            let why = match self.try_devices(identity, open).await {
                Ok(registered) => return registered,
                Err(RegistrationError::ReportFirst { why }) => why,
                Err(error) => return Err(self.explain(error)),
            };
            tracing::warn!(why, "reporting to the restored cluster again");
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn try_devices(
        &self,
        identity: &mut Identity,
        open: &[OpenDevice],
    ) -> Result<Result<Devices, SdsError>, RegistrationError> {
        let Registered { reply: introduced, .. } = self.register(identity, None).await?;
        let generation = ClusterGeneration(introduced.cluster_generation);
        if introduced.awaited {
            let (client, name, process) = (self.client, self.config.name.as_str(), self.process);
            let reporter = Reporter { client, name, process, generation };
            for device in open {
                let reported = reporter.report(&device.opened).await;
                reported.map_err(|error| RegistrationError::ReportFirst { why: error.to_string() })?;
            }
            tracing::info!(%generation, "told the restored cluster what was known before");
        }
        let mut rows: Vec<_> = open.iter().map(row).collect();
        let Registered { cluster, reply } = self.register(identity, Some(rows.clone())).await?;
        if reply.device_ids.len() != open.len() {
            let why = format!("it named {} of {} devices", reply.device_ids.len(), open.len());
            return Ok(Err(SdsError::Refused { name: self.config.name.clone(), why }));
        }
        let generation = ClusterGeneration(reply.cluster_generation);
        if let Err(error) = identity.follow(cluster, generation) {
            return Ok(Err(error));
        }
        for (row, id) in rows.iter_mut().zip(&reply.device_ids) {
            row.device_id = *id;
        }
        let ids = reply.device_ids.into_iter().map(DeviceId).collect();
        Ok(Ok(Devices { ids, registered: Revision(reply.revision), generation, rows }))
    }

    /// Registers one more beside those that are registered already, in the same life.
    pub(super) async fn another(
        &self,
        identity: &Identity,
        rows: &mut Vec<RegisteredDevice>,
        open: &OpenDevice,
    ) -> Result<(DeviceId, Revision), SdsError> {
        let all: Vec<_> = rows.iter().cloned().chain([row(open)]).collect();
        let registered = self.register(identity, Some(all.clone())).await;
        let Registered { reply, .. } = registered.map_err(|error| self.explain(error))?;
        let Some(id) = reply.device_ids.last().copied().filter(|_| reply.device_ids.len() == all.len()) else {
            let why = format!("it named {} of {} devices", reply.device_ids.len(), all.len());
            return Err(SdsError::Refused { name: self.config.name.clone(), why });
        };
        *rows = all;
        if let Some(row) = rows.last_mut() {
            row.device_id = id;
        }
        Ok((DeviceId(id), Revision(reply.revision)))
    }

    /// Without devices it only introduces itself. Only what no waiting can cure is an error.
    async fn register(
        &self,
        identity: &Identity,
        devices: Option<Vec<RegisteredDevice>>,
    ) -> Result<Registered, RegistrationError> {
        let request = RegisterRequest {
            request: None,
            kind: ComponentKind::Sds.into(),
            name: self.config.name.clone(),
            process_id: self.process.as_bytes().to_vec(),
            addresses: Some(self.addresses.clone()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            introduce: devices.is_none(),
            host: Some(host::info()),
            registrations_seen: 0,
            devices: devices.unwrap_or_default(),
            cluster_id: Vec::new(),
            cluster_generation: 0,
            follows_doubling: true,
        };
        registration::register(self.client, identity.cluster(), identity.generation(), request).await
    }

    fn explain(&self, error: RegistrationError) -> SdsError {
        let name = self.config.name.clone();
        match error {
            RegistrationError::OtherCluster { ours, theirs } => {
                let members = self.config.mdm.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                SdsError::OtherCluster { dir: self.config.data_dir.clone(), ours, members, theirs }
            }
            RegistrationError::Refused { why } | RegistrationError::ReportFirst { why } => {
                SdsError::Refused { name, why }
            }
            RegistrationError::Superseded { why } => SdsError::Superseded { name, why },
        }
    }
}
