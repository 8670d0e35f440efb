//! Volumes and who may use them.

use pflex_proto::ids::{ByteCount, LayerId, PoolId, SdcId, VolumeEpoch, VolumeId, VtreeId};

/// How IO on a volume is authorised (ARCHITECTURE section 8).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TokenMode {
    /// A token is good for any IO until it expires.
    Lease,
    /// A token is good for one IO.
    PerIo,
}

/// What a mapping allows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Access {
    ReadOnly,
    ReadWrite,
}

/// A volume.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Volume {
    /// Its id.
    pub id: VolumeId,
    /// Unique.
    pub name: String,
    /// Where its chunks are.
    pub pool: PoolId,
    /// A multiple of 4 KiB.
    pub size: ByteCount,
    /// What placement hashes.
    pub vtree: VtreeId,
    /// The layer it writes.
    pub layer: LayerId,
    /// Raised to revoke every token issued before (S20).
    pub epoch: VolumeEpoch,
    /// How its IO is authorised.
    pub token_mode: TokenMode,
    /// By the proposer's wall clock; for people.
    pub created_wall_ms: u64,
}

/// An SDC's right to a volume.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mapping {
    /// The volume.
    pub volume: VolumeId,
    /// The client.
    pub sdc: SdcId,
    /// What it may do.
    pub access: Access,
    /// IOs per second; 0 is no limit.
    pub iops_limit: u64,
    /// Bytes per second; 0 is no limit.
    pub bandwidth_limit: u64,
}
