//! Every id, epoch, sequence, offset and count of the system as its own type, so that no signature has two bare `u64`.
//!
//! The numbers are assigned by the MDM's Raft group and never reused (ARCHITECTURE section 4). All of them travel as
//! little-endian integers in frames (see `codec`) and as plain integers in protobuf.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($raw:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $raw);

        impl $name {
            /// The bare number, for an encoder or a message to a person.
            pub const fn get(self) -> $raw {
                self.0
            }

            /// The id or count after this one.
            ///
            /// # Panics
            /// Never in practice: at one a nanosecond 2^64 takes 584 years, and 32-bit ids are counted by `limits`.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0.checked_add(1).expect("an id space is never exhausted"))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl From<$raw> for $name {
            fn from(raw: $raw) -> Self {
                Self(raw)
            }
        }
    };
}

id!(/// A member of the MDM Raft group. Never reused, not even after the member is removed.
    MdmId(u64));
id!(/// A protection domain.
    DomainId(u32));
id!(/// A storage pool.
    PoolId(u32));
id!(/// A fault set: SDSs that fail together.
    FaultSetId(u32));
id!(/// A storage data server.
    SdsId(u32));
id!(/// A device of an SDS.
    DeviceId(u32));
id!(/// A storage data client.
    SdcId(u32));
id!(/// A volume.
    VolumeId(u64));
id!(/// A tree of volumes that share chunks (a volume and its snapshots). Placement hashes this, so clones stay where
    /// their origin is. Without snapshots it equals the volume id.
    VtreeId(u64));
id!(/// A layer of a vtree: who wrote a chunk's blocks. 0 is the base layer; snapshots add layers.
    LayerId(u32));
id!(/// A placement group's number inside its pool.
    PgIndex(u32));
id!(/// A configuration of a placement group; grows by one with every change (PacificA's configuration version).
    Epoch(u64));
id!(/// The place of a write in its placement group's order. Continues across epochs (S1).
    Sequence(u64));
id!(/// Raised and synced at each device open; names one life of one copy (S2).
    Incarnation(u64));
id!(/// The same on every resend of one part of a write; unique per (SDC, volume), also across SDC restarts (S7).
    OperationId(u64));
id!(/// Changes when a placement group opens an epoch with no member that kept its memory (S14).
    VolatilityId(u64));
id!(/// The number of a 1 MiB chunk in its volume.
    ChunkIndex(u64));
id!(/// Raised to revoke every token of a volume issued before (S20).
    VolumeEpoch(u64));
id!(/// A change of the cluster map; the Raft log index of the command that made it.
    Revision(u64));
id!(/// An IO token.
    TokenId(u64));
id!(/// A generation of the cluster secret.
    KeyId(u32));
id!(/// An exactly-once session of a client with the MDM (S17).
    ClientId(u64));
id!(/// The number of a mutating request inside its exactly-once session.
    ClientSequence(u64));
id!(/// Milliseconds of log time: the leader's monotonic time, carried on from the last log entry (S17, S20).
    LogTime(u64));
id!(/// Raised by a restore from backup; lower is refused (S19).
    ClusterGeneration(u64));
id!(/// A session of an SDC for one volume on one data-plane connection.
    SessionId(u32));
id!(/// A byte offset in a volume.
    ByteOffset(u64));
id!(/// A number of bytes.
    ByteCount(u64));

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub uuid::Uuid);

        impl $name {
            /// The 16 bytes as they stand in a header on disk or wire.
            pub const fn as_bytes(&self) -> &[u8; 16] {
                self.0.as_bytes()
            }

            /// From the 16 bytes of a header.
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(uuid::Uuid::from_bytes(bytes))
            }

            /// From the bytes of a protobuf field.
            ///
            /// # Errors
            /// When there are not exactly 16 of them.
            pub fn from_slice(bytes: &[u8]) -> Result<Self, BadUuid> {
                uuid::Uuid::from_slice(bytes).map(Self).map_err(|_| BadUuid { length: bytes.len() })
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }
    };
}

/// A uuid field that is not 16 bytes long.
#[derive(Debug, thiserror::Error)]
#[error("a uuid has 16 bytes, this field has {length}")]
pub struct BadUuid {
    /// How many bytes were there.
    pub length: usize,
}

uuid_id!(/// One cluster; made at bootstrap, checked on every connection and at every open of a store.
    ClusterId);
uuid_id!(/// One MDM store directory; a lost and recreated one has another uuid and may not vote under its old id (S18).
    StoreUuid);
uuid_id!(/// One SDS device as formatted.
    DeviceUuid);
uuid_id!(/// One run of a process; tells a restarted or cloned process from the old one (S9).
    ProcessId);

/// A placement group: its pool and its number there.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct PgId {
    /// The pool.
    pub pool: PoolId,
    /// The number in the pool, below the pool's count.
    pub index: PgIndex,
}

impl fmt::Display for PgId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.pool, self.index)
    }
}

/// A chunk as its copies know it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct ChunkId {
    /// The tree of volumes.
    pub vtree: VtreeId,
    /// The layer inside the tree.
    pub layer: LayerId,
    /// The 1 MiB piece.
    pub index: ChunkIndex,
}

impl fmt::Display for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.vtree, self.layer, self.index)
    }
}

/// The (epoch, sequence) of a write; a chunk's version is that of its last write. Ordered by epoch, then sequence.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Version {
    /// The epoch the write was ordered in.
    pub epoch: Epoch,
    /// Its place in the placement group's order.
    pub sequence: Sequence,
}

impl Version {
    /// Before every write.
    pub const ZERO: Self = Self { epoch: Epoch(0), sequence: Sequence(0) };
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({}, {})", self.epoch, self.sequence)
    }
}

/// One copy in one life: what an in-sync set is made of (S2).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Member {
    /// The device that holds the copy.
    pub device: DeviceId,
    /// The server of that device.
    pub sds: SdsId,
    /// The device's life this membership names.
    pub incarnation: Incarnation,
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sds {} device {} incarnation {}", self.sds, self.device, self.incarnation)
    }
}

/// A session's place among all sessions of one SDC for one volume (S9). Ordered by boot, then counter; equal ones of
/// different processes are told apart by `process`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Generation {
    /// Boot counter of the SDC, synced before its first IO.
    pub boot: u64,
    /// Counter in the process.
    pub counter: u64,
    /// Random id of the process.
    pub process: ProcessId,
}

impl Generation {
    /// The part that orders generations; `process` only tells clones apart.
    pub const fn order(&self) -> (u64, u64) {
        (self.boot, self.counter)
    }
}
