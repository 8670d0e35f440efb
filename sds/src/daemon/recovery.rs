//! What this server says of its placement groups after a restore from backup, before it registers (S19).
//!
//! A device tells the newest configuration of each group that it acted in, in parts of [`PART`], and is heard with its last
//! part. It is told anew from the beginning whenever the answer does not come; the MDM takes the newest.

use std::time::Duration;

use pflex_common::mdm::{MdmClient, MdmError, Patience};
use pflex_proto::{
    ids::{ClusterGeneration, DeviceId, PgId, ProcessId},
    pb::{GroupReport, ReportGroupsRequest, recovery_client::RecoveryClient},
};

use crate::store::{KnownConfig, OpenReport};

/// Groups in one message: 100 KiB. A device of 65,536 groups sends 64 of them.
const PART: usize = 1_024;
/// For one part.
const PATIENCE: Patience = Patience::within(Duration::from_secs(10));

/// Who reports, and to which generation.
pub(super) struct Reporter<'a> {
    pub(super) client: &'a MdmClient,
    pub(super) name: &'a str,
    pub(super) process: ProcessId,
    pub(super) generation: ClusterGeneration,
}

impl Reporter<'_> {
    /// Tells all that a device knows.
    ///
    /// # Errors
    /// What the MDM says; the caller begins again.
    pub(super) async fn report(&self, opened: &OpenReport) -> Result<(), MdmError> {
        let superblock = &opened.superblock;
        // An emptied device has nothing to say, and says that.
        let mut parts: Vec<&[(PgId, KnownConfig)]> = opened.configs.chunks(PART).collect();
        if parts.is_empty() {
            parts.push(&[]);
        }
        let last = parts.len() - 1;
        for (number, part) in parts.into_iter().enumerate() {
            let call = |connection, id| {
                let request = ReportGroupsRequest {
                    request: Some(id),
                    sds: self.name.to_owned(),
                    process_id: self.process.as_bytes().to_vec(),
                    cluster_generation: self.generation.0,
                    device_uuid: superblock.uuid.as_bytes().to_vec(),
                    device_id: superblock.device.0,
                    incarnation: superblock.incarnation.0,
                    groups: part.iter().map(message).collect(),
                    last: number == last,
                    pg_count: opened.sorting.map_or(0, |sorting| sorting.pg_count),
                    sorted_pool_id: opened.sorting.map_or(0, |sorting| sorting.pool.0),
                };
                async move { RecoveryClient::new(connection).report_groups(request).await }
            };
            self.client.write(PATIENCE, call).await?;
        }
        Ok(())
    }
}

fn message((pg, known): &(PgId, KnownConfig)) -> GroupReport {
    GroupReport {
        pg: Some((*pg).into()),
        cluster_generation: known.generation.0,
        epoch: known.epoch.0,
        primary_device_id: known.primary.map_or(0, |device: DeviceId| device.0),
        in_sync: known.in_sync.iter().copied().map(Into::into).collect(),
        replica_device_ids: known.replicas.iter().map(|device| device.0).collect(),
        volatility: known.volatility.0,
        served: known.served,
    }
}
