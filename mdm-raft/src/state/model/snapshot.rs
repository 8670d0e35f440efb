//! Snapshots as they are recorded: which there are, not what is in them.
//!
//! The data path makes none yet (S22), so nothing but tests proposes the commands that write these rows: there is no API
//! and no verb that would promise a snapshot.

use std::fmt;

use pflex_proto::ids::{ByteCount, LogTime, VolumeId};

/// A snapshot; also its number: those of a volume are ordered by it, and none is given out twice (S22).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct SnapshotId(pub u64);

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How far it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum SnapshotState {
    /// Not every client writes to the next layer yet.
    Preparing,
    /// Fixed.
    Ready,
    /// Its layer is being merged.
    Deleting,
}

impl fmt::Display for SnapshotState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Preparing => "preparing",
            Self::Ready => "ready",
            Self::Deleting => "deleting",
        })
    }
}

/// A volume as it was.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Snapshot {
    /// Its id and number.
    pub id: SnapshotId,
    /// Of which volume.
    pub volume: VolumeId,
    /// Unique in the volume.
    pub name: String,
    /// Of the volume then.
    pub size: ByteCount,
    /// How far it is.
    pub state: SnapshotState,
    /// When, in log time.
    pub created: LogTime,
    /// When, by the proposer's wall clock; for people.
    pub created_wall_ms: u64,
}
