//! The cluster's identity, its counters, its secrets, and who takes part in it.

use std::{collections::BTreeMap, fmt};

use pflex_proto::ids::{
    ClientId, ClusterGeneration, ClusterId, DeviceId, DomainId, FaultSetId, KeyId, LogTime, MdmId, PoolId, Revision,
    SdcId, SdsId, StoreUuid, TokenId, VolumeId,
};

use super::{JobId, Registration, SnapshotId};

/// Who the cluster is; made once by the bootstrap command.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cluster {
    /// Checked on every connection and at every open of a store.
    pub id: ClusterId,
    /// Raised by a restore from backup (S19).
    pub generation: ClusterGeneration,
    /// The secret that signs.
    pub newest_key: KeyId,
    /// Restored from a backup, and the operator has not said yet that every SDS reported: no group is served (S19).
    pub recovering: bool,
    /// The last device id that the backup knew; none if the cluster never was restored. Ids between it and where the
    /// restore went on belong to devices that came after the backup.
    pub devices_of_backup: Option<DeviceId>,
}

/// Every id an MDM ever had. It belongs to one store for ever: a directory that was lost and made anew would forget its
/// votes (S18).
pub type MdmStores = BTreeMap<MdmId, StoreUuid>;

/// The last id given out of each space; ids are never reused.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[allow(missing_docs, reason = "each field is the space its type names")]
pub struct Counters {
    pub domain: DomainId,
    pub pool: PoolId,
    pub fault_set: FaultSetId,
    pub sds: SdsId,
    pub device: DeviceId,
    pub sdc: SdcId,
    pub node: u32,
    pub volume: VolumeId,
    pub token: TokenId,
    pub client: ClientId,
    pub snapshot: SnapshotId,
    pub job: JobId,
}

/// The last command applied.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Position {
    /// Its log index.
    pub revision: Revision,
    /// Its log time.
    pub log_time: LogTime,
}

/// The last time a leader held back verdicts that would have cost over half of the SDSs (S23).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EvictionHold {
    /// The MDM that led.
    pub by: u64,
    /// When.
    pub at: LogTime,
}

impl EvictionHold {
    /// It is believed by later leaders for this long: a few elections and their grace.
    const GOOD_MS: u64 = 60_000;

    /// Whether it is recent enough to be believed.
    pub fn is_recent(&self, now: LogTime) -> bool {
        now.get().saturating_sub(self.at.get()) < Self::GOOD_MS
    }
}

/// 32 bytes nobody but MDMs and SDSs may see; never printed (I7).
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub [u8; 32]);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// A generation of the cluster secret.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SecretRow {
    /// Its number.
    pub key: KeyId,
    /// The bytes.
    pub secret: Secret,
    /// When the last token it signed expires; none while it signs, and before.
    pub last_expiry: Option<LogTime>,
}

/// What a component is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[allow(missing_docs, reason = "the names of the four processes")]
pub enum Kind {
    Mdm,
    Sds,
    Sdc,
    Mgmt,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mdm => "mdm",
            Self::Sds => "sds",
            Self::Sdc => "sdc",
            Self::Mgmt => "mgmt",
        })
    }
}

/// One component; ids are counted per kind (MDMs and consoles share one count).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Component {
    /// What it is.
    pub kind: Kind,
    /// Its id among those.
    pub id: u32,
}

/// A registered MDM or console: found by others through the registry, not part of the map.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    /// Which one.
    pub component: Component,
    /// Its name; unique per kind.
    pub name: String,
    /// Its last registration.
    pub registration: Registration,
}

/// The machine that a component's process runs on, as it said when it registered; for people.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeMetadata {
    /// Whose.
    pub component: Component,
    /// What the machine calls itself.
    pub host_name: String,
    /// Its operating system.
    pub os: String,
    /// Its kernel's version.
    pub kernel: String,
    /// Its processors' kind.
    pub architecture: String,
    /// When it was started, by its own wall clock.
    pub booted_at_ms: u64,
    /// Processors that the process may use.
    pub cores: u32,
    /// Its memory.
    pub memory_bytes: u64,
}
