//! A volume as one connection of one mapping uses it: within the mapping's limits, timed and counted.
//!
//! An operation is a request of the client, and its bytes are those that travel: a TRIM or WRITE_ZEROES counts as one
//! operation without bytes, FLUSH, CACHE and BLOCK_STATUS are free. The time of a request is what the client sees, with the
//! time that it was held back; its deadline begins when it has passed. A write that is held back has its place among
//! overlapping writes already; what is held back when its client is gone is not begun any more.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use pflex_common::histogram::Histogram;
use pflex_proto::ids::ByteOffset;
use tokio_util::sync::CancellationToken;

use super::limits::Throttle;
use super::limits::queue::{Cost, Lane};
use super::volume::{Gate, Volume, VolumeBackend};
use crate::block::{BlockBackend, ByteRange, Durability, Extent, IoError, Payload, ZeroOptions};

/// What all connections of a mapping share.
#[derive(Debug)]
pub struct Usage {
    /// The limits.
    pub throttle: Arc<Throttle>,
    /// How long reads took.
    pub reads: Histogram,
    /// Writes, trims and zeros.
    pub writes: Histogram,
    /// Flushes.
    pub flushes: Histogram,
}

impl Usage {
    /// Nothing yet, without limits.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            throttle: Throttle::new(),
            reads: Histogram::default(),
            writes: Histogram::default(),
            flushes: Histogram::default(),
        })
    }
}

/// The limits of a mapping, as one connection meets them.
#[derive(Debug)]
struct Limited {
    throttle: Arc<Throttle>,
    lane: Lane,
    gone: CancellationToken,
}

impl Gate for Limited {
    async fn pass(&self, bytes: u64) -> Result<(), IoError> {
        let pass = self.throttle.pass(self.lane, Cost { operations: 1, bytes });
        self.gone.run_until_cancelled(pass).await.ok_or(IoError::ShuttingDown)
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        self.throttle.leave(self.lane);
    }
}

/// See the module.
#[derive(Debug)]
pub struct MeteredBackend {
    volume: VolumeBackend<Limited>,
    usage: Arc<Usage>,
}

/// Bytes that a connection of a limited mapping may have under way: what is held back is memory that others need.
const LIMITED_ROOM: usize = 4 << 20;

impl MeteredBackend {
    /// The volume for one more connection of this [`Volume::session`].
    pub fn new(volume: Arc<Volume>, session: CancellationToken, usage: Arc<Usage>) -> Self {
        let (throttle, lane) = (Arc::clone(&usage.throttle), usage.throttle.lane());
        let gate = Limited { throttle, lane, gone: CancellationToken::new() };
        Self { volume: VolumeBackend::new(volume, session, gate), usage }
    }

    async fn timed<T>(&self, took: &Histogram, request: impl Future<Output = T>) -> T {
        let began = Instant::now();
        let outcome = request.await;
        took.record(began.elapsed());
        outcome
    }
}

impl BlockBackend for MeteredBackend {
    fn hang_up(&self) {
        self.volume.gate().gone.cancel();
    }

    fn room(&self) -> usize {
        if self.usage.throttle.is_limited() { LIMITED_ROOM } else { usize::MAX }
    }

    async fn read(&self, range: ByteRange) -> Result<Payload, IoError> {
        self.timed(&self.usage.reads, self.volume.read(range)).await
    }

    async fn write(&self, offset: ByteOffset, data: Bytes, durability: Durability) -> Result<(), IoError> {
        self.timed(&self.usage.writes, self.volume.write(offset, data, durability)).await
    }

    async fn flush(&self) -> Result<(), IoError> {
        self.timed(&self.usage.flushes, self.volume.flush()).await
    }

    async fn trim(&self, range: ByteRange, durability: Durability) -> Result<(), IoError> {
        self.timed(&self.usage.writes, self.volume.trim(range, durability)).await
    }

    async fn write_zeroes(&self, range: ByteRange, options: ZeroOptions) -> Result<(), IoError> {
        self.timed(&self.usage.writes, self.volume.write_zeroes(range, options)).await
    }

    async fn cache(&self, range: ByteRange) -> Result<(), IoError> {
        self.volume.cache(range).await
    }

    async fn extents(&self, range: ByteRange, most: usize) -> Result<Vec<Extent>, IoError> {
        self.volume.extents(range, most).await
    }
}
