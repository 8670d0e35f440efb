//! What the front end (NBD) and the back end (the cluster) agree on: a block device addressed by byte ranges.
//!
//! The front end has checked every range against the size of the export before it calls a backend, and the rights
//! against its read-only flag. Ranges need not be aligned to blocks: sub-block edges are the primary's work (S15).

mod extents;
mod memory;
mod payload;

use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use pflex_proto::ids::{ByteCount, ByteOffset};
use tokio_util::sync::CancellationToken;

pub use extents::{Extent, ExtentState, Extents};
pub use memory::{MemoryBackend, MemoryExports};
pub use payload::{Payload, Piece};

/// Consecutive bytes of a device. Never reaches past 2^64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteRange {
    /// Where it starts.
    pub offset: ByteOffset,
    /// How long it is; not zero when a backend is called.
    pub length: ByteCount,
}

impl ByteRange {
    /// The range of `length` bytes from `offset`.
    pub const fn new(offset: u64, length: u64) -> Self {
        Self { offset: ByteOffset(offset), length: ByteCount(length) }
    }

    /// The first byte after it.
    pub const fn end(&self) -> ByteOffset {
        ByteOffset(self.offset.0 + self.length.0)
    }
}

/// When a change may be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// As the pool's write policy says.
    Policy,
    /// Only when it is on non-volatile storage of every in-sync copy (NBD's FUA).
    Stable,
}

/// How zeros may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ZeroOptions {
    /// When it may be answered.
    pub durability: Durability,
    /// The area stays provisioned: no hole is made of it (NBD's NO_HOLE).
    pub keep_provisioned: bool,
    /// Refuse with [`IoError::NotSupported`] if it were not faster than writing the zeros (NBD's FAST_ZERO).
    pub only_if_fast: bool,
}

/// Why a request failed for good. Whatever waiting and retrying can cure has been waited for and retried before.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IoError {
    /// The mapping or the export allows no change.
    #[error("the export is read-only")]
    ReadOnly,
    /// The cluster does not let this client do it.
    #[error("not allowed: {0}")]
    NotAllowed(String),
    /// The request makes no sense to the backend.
    #[error("invalid request: {0}")]
    Invalid(String),
    /// No space is left in the pool.
    #[error("the pool has no space left")]
    NoSpace,
    /// The request cannot be served in the way asked for.
    #[error("not supported: {0}")]
    NotSupported(&'static str),
    /// The process is ending.
    #[error("shutting down")]
    ShuttingDown,
    /// The device is no longer there for this client.
    #[error("{0} is no longer mapped to this client")]
    Unmapped(String),
    /// Acknowledged writes that were not flushed may be lost (S14).
    #[error("acknowledged writes that were not flushed may be lost: {0}")]
    LostMemory(String),
    /// Anything else: the deadline passed, a right was withdrawn, data is unreadable.
    #[error("{0}")]
    Failed(String),
}

/// A block device. Calls run at the same time; overlapping ones are ordered by the backend in some one order.
///
/// Dropping a returned future abandons the wait, not the change: a write may still happen.
pub trait BlockBackend: Send + Sync + 'static {
    /// The client of this handle is gone without a word: what has not begun is not wanted any more.
    fn hang_up(&self) {}

    /// How many bytes one connection may have under way here, if that is less than others may.
    fn room(&self) -> usize {
        usize::MAX
    }

    /// Reads a range; the payload has exactly its length.
    fn read(&self, range: ByteRange) -> impl Future<Output = Result<Payload, IoError>> + Send;

    /// Writes `data` at `offset`.
    fn write(
        &self,
        offset: ByteOffset,
        data: Bytes,
        durability: Durability,
    ) -> impl Future<Output = Result<(), IoError>> + Send;

    /// Returns once every change answered before the call is on non-volatile storage.
    fn flush(&self) -> impl Future<Output = Result<(), IoError>> + Send;

    /// Says that a range is no longer needed. Only whole blocks of it may be dropped; they then read as zeros.
    fn trim(&self, range: ByteRange, durability: Durability) -> impl Future<Output = Result<(), IoError>> + Send;

    /// Makes a range read as zeros, to the byte.
    fn write_zeroes(&self, range: ByteRange, options: ZeroOptions) -> impl Future<Output = Result<(), IoError>> + Send;

    /// Says that a range will be read soon. Doing nothing is right.
    fn cache(&self, _range: ByteRange) -> impl Future<Output = Result<(), IoError>> + Send {
        std::future::ready(Ok(()))
    }

    /// Which parts of a range take space: consecutive extents from its start, at least one and at most `most`, not
    /// beyond its end; they may cover less of it. Data is always a right answer; a hole must have been one, with every
    /// change answered before the call.
    fn extents(&self, range: ByteRange, _most: usize) -> impl Future<Output = Result<Vec<Extent>, IoError>> + Send {
        std::future::ready(Ok(vec![Extent { length: range.length, state: ExtentState::Data }]))
    }
}

/// An export as a list shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportSummary {
    /// The name that opens it.
    pub name: String,
    /// A line for people.
    pub description: String,
}

/// What a client must know of an export before it sends requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportInfo {
    /// Its canonical name (a client may have asked for the default export by an empty one).
    pub name: String,
    /// A line for people.
    pub description: String,
    /// Its size.
    pub size: ByteCount,
    /// Whether changes are refused.
    pub read_only: bool,
}

/// An opened export.
#[derive(Debug)]
pub struct Export<B> {
    /// What the client is told of it.
    pub info: ExportInfo,
    /// Where its requests go.
    pub backend: Arc<B>,
    /// Cancelled when it is no longer offered: its connections answer what runs, and close.
    pub ended: CancellationToken,
}

/// Why an export cannot be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// No such volume is mapped to this client.
    #[error("no export is named {name:?}")]
    Unknown {
        /// The name asked for.
        name: String,
    },
    /// The volume is mapped, and has no such snapshot.
    #[error("volume {volume} has no snapshot {snapshot:?}")]
    NoSnapshot {
        /// The volume of the name asked for.
        volume: String,
        /// The snapshot in it.
        snapshot: String,
    },
    /// It exists, and may not be used now.
    #[error("export {name:?} cannot be opened: {reason}")]
    Refused {
        /// The name asked for.
        name: String,
        /// Why, in words for the client.
        reason: String,
    },
    /// The process is ending.
    #[error("shutting down")]
    ShuttingDown,
}

/// The devices that are there to be opened.
pub trait Exports: Send + Sync + 'static {
    /// The kind of device behind them.
    type Backend: BlockBackend;

    /// All exports, in the order of their names.
    fn list(&self) -> Vec<ExportSummary>;

    /// Opens one by name. The empty name is the default export: the only one where there is only one.
    fn open(&self, name: &str) -> impl Future<Output = Result<Export<Self::Backend>, OpenError>> + Send;
}
