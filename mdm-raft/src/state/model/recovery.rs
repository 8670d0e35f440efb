//! What was known of placement groups before the cluster was restored from a backup (S19).

use std::collections::BTreeMap;

use pflex_proto::ids::{ClusterGeneration, DeviceId, Epoch, Member, PgId, VolatilityId};

/// A configuration as the backup has it, or as a device knew it last.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KnownConfig {
    /// The generation of the cluster that made it.
    pub generation: ClusterGeneration,
    /// Its epoch there.
    pub epoch: Epoch,
    /// Who could serve.
    pub primary: Option<DeviceId>,
    /// Who held every acknowledged write.
    pub in_sync: Vec<Member>,
    /// Where copies belonged.
    pub replicas: Vec<DeviceId>,
    /// Travels with acknowledgements (S14).
    pub volatility: VolatilityId,
    /// The device that reports it was the primary and may have answered IO in it. Kept for people: what decides is that
    /// a device makes a configuration durable before it acts in it.
    pub served: bool,
}

impl KnownConfig {
    /// Which of two is newer: a restore begins another count of epochs.
    pub const fn order(&self) -> (ClusterGeneration, Epoch) {
        (self.generation, self.epoch)
    }

    /// Whether it names a copy on the device.
    pub fn names(&self, device: DeviceId) -> bool {
        self.in_sync.iter().any(|member| member.device == device)
    }
}

/// All that is known of one group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GroupReports {
    /// Which group; the restored state may not know it.
    pub pg: PgId,
    /// As the backup has it. After the recovery: what was chosen, kept as long as a copy is waited for.
    pub base: Option<KnownConfig>,
    /// What each device said that holds a copy, or held one.
    pub by: BTreeMap<DeviceId, KnownConfig>,
}
