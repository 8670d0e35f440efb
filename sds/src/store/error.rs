//! What can go wrong at the store's boundary: at open, at a change, at a read, and for good.

use std::{io, path::PathBuf, sync::Arc};

use pflex_proto::{
    codec::CodecError,
    ids::{ChunkId, ClusterId, DeviceUuid, PgId, SdsId, Version},
};

use crate::device::DeviceError;

/// A device that is not opened or not formatted. It is left untouched.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The operating system refused.
    #[error("cannot {action} {path}")]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Its error.
        source: io::Error,
    },
    /// Another process has it.
    #[error("{path} is in use by another process")]
    Busy {
        /// The file.
        path: PathBuf,
    },
    /// No superblock at all.
    #[error("this is not a device of pflex: no superblock")]
    NotFormatted,
    /// Formatting would destroy what is there.
    #[error("this is already a device of cluster {cluster}")]
    AlreadyFormatted {
        /// Whose.
        cluster: ClusterId,
    },
    /// It belongs elsewhere.
    #[error("the device belongs to cluster {found}, not to {expected}")]
    OtherCluster {
        /// In the superblock.
        found: ClusterId,
        /// Of this process.
        expected: ClusterId,
    },
    /// It was made for another server, and nothing here knows it.
    #[error("the device belongs to SDS {found}, this is SDS {expected}; attach it there, or erase it to use it here")]
    OtherServer {
        /// In the superblock.
        found: SdsId,
        /// Of this process.
        expected: SdsId,
    },
    /// Written by a later release.
    #[error("the device has format {found}, this release knows up to {known}")]
    NewerFormat {
        /// In the superblock.
        found: u32,
        /// The newest known.
        known: u32,
    },
    /// A superblock is there and neither copy is sound.
    #[error("the superblock is damaged: {reason}")]
    Damaged {
        /// How.
        reason: String,
    },
    /// A sound superblock copy that was made for another place: of another device.
    #[error("the superblock copy at {at} was written for {own}")]
    Misplaced {
        /// Where it is.
        at: u64,
        /// Where it belongs.
        own: u64,
    },
    /// Smaller than the superblock says, or than a device can be.
    #[error("the device has {bytes} bytes where {needed} are needed")]
    TooSmall {
        /// Its size.
        bytes: u64,
        /// The least.
        needed: u64,
    },
    /// A part of the journal that was acknowledged cannot be replayed.
    #[error("the journal is corrupt: group {sequence} at {offset} cannot be read, yet later ones exist")]
    JournalCorrupt {
        /// The group that should be there.
        sequence: u64,
        /// Where.
        offset: u64,
    },
    /// A journal record or metadata row that says something impossible.
    #[error("the store's metadata is inconsistent: {reason}")]
    Inconsistent {
        /// What.
        reason: String,
    },
    /// A record or row does not decode.
    #[error("a {what} does not decode")]
    Codec {
        /// Of which kind.
        what: &'static str,
        /// How.
        source: CodecError,
    },
    /// The disk failed.
    #[error("the device failed while it was opened")]
    Device(#[from] DeviceError),
    /// `sds_local.db` failed.
    #[error(transparent)]
    Meta(#[from] MetaError),
}

/// `sds_local.db` failed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the local metadata store failed: {message}")]
pub struct MetaError {
    /// What it said.
    pub message: String,
}

/// A change that was not made. Nothing was changed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ApplyError {
    /// No unit is free for another chunk (S4).
    #[error("no space for another chunk on device {device}")]
    NoSpace {
        /// Which device.
        device: DeviceUuid,
    },
    /// Versions only grow by writes (S4).
    #[error("chunk {chunk} is at version {present}, the write has {offered}")]
    StaleVersion {
        /// Which chunk.
        chunk: ChunkId,
        /// What it has.
        present: Version,
        /// What the write has.
        offered: Version,
    },
    /// Ordered writes go to synced chunks, synced blocks to unsynced ones, repairs to the version they were read at.
    #[error("chunk {chunk} is not in the state this change needs: {needs}")]
    WrongState {
        /// Which chunk.
        chunk: ChunkId,
        /// What it should be.
        needs: &'static str,
    },
    /// A chunk belongs to one placement group.
    #[error("chunk {chunk} is in placement group {present}, not in {offered}")]
    WrongPg {
        /// Which chunk.
        chunk: ChunkId,
        /// Where it is.
        present: PgId,
        /// What the change says.
        offered: PgId,
    },
    /// Lengths of blocks, data and checksums that do not agree.
    #[error("a run of chunk {chunk} has data or checksums of another length than its blocks")]
    BadRun {
        /// Which chunk.
        chunk: ChunkId,
    },
    /// The placement group is being dropped.
    #[error("placement group {pg} is being dropped")]
    Dropping {
        /// Which.
        pg: PgId,
    },
    /// One change that no journal group can hold.
    #[error("a change of {bytes} bytes exceeds the journal's largest group of {limit}")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The bound.
        limit: usize,
    },
    /// The device is out of service.
    #[error("the device is out of service")]
    Poisoned(#[from] Poison),
}

/// A read that has no data.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReadError {
    /// The bytes on disk are not those that were written. They are never returned.
    #[error("block {block} of chunk {chunk} is corrupt: checksum {found:08x}, expected {expected:08x}")]
    Corrupt {
        /// Which chunk.
        chunk: ChunkId,
        /// Which block of it.
        block: u16,
        /// What was written.
        expected: u32,
        /// What is there.
        found: u32,
    },
    /// The disk failed to read.
    #[error("chunk {chunk} cannot be read")]
    Device {
        /// Which chunk.
        chunk: ChunkId,
        /// Why.
        source: DeviceError,
    },
    /// The device is out of service.
    #[error("the device is out of service")]
    Poisoned(#[from] Poison),
}

/// A write, flush or metadata commit failed: what is durable is not known any more, so the store stops. Never retried.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{during} failed; the device is out of service until it is opened again")]
pub struct Poison {
    /// What was going on.
    pub during: &'static str,
    /// Why.
    #[source]
    pub cause: Arc<dyn std::error::Error + Send + Sync>,
}
