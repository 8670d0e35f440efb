//! A volume as one connection of one mapping uses it: within the mapping's limits, timed and counted.
//!
//! An operation is a request of the client, and its bytes are those that travel: a TRIM or WRITE_ZEROES counts as one
//! operation without bytes, FLUSH, CACHE and BLOCK_STATUS are free. The time of a request is what the client sees, with the
//! time that it was held back; its deadline begins when it has passed.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use pflex_common::histogram::Histogram;
use pflex_proto::ids::ByteOffset;

use super::limits::Throttle;
use super::limits::queue::{Cost, Lane};
use super::volume::VolumeBackend;
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

/// See the module.
#[derive(Debug)]
pub struct MeteredBackend {
    volume: VolumeBackend,
    usage: Arc<Usage>,
    lane: Lane,
}

impl MeteredBackend {
    /// The volume for one more connection.
    pub fn new(volume: VolumeBackend, usage: Arc<Usage>) -> Self {
        let lane = usage.throttle.lane();
        Self { volume, usage, lane }
    }

    async fn done<T>(
        &self,
        bytes: u64,
        took: &Histogram,
        request: impl Future<Output = Result<T, IoError>>,
    ) -> Result<T, IoError> {
        let began = Instant::now();
        self.usage.throttle.pass(self.lane, Cost { operations: 1, bytes }).await;
        let outcome = request.await;
        took.record(began.elapsed());
        outcome
    }
}

impl Drop for MeteredBackend {
    fn drop(&mut self) {
        self.usage.throttle.leave(self.lane);
    }
}

impl BlockBackend for MeteredBackend {
    async fn read(&self, range: ByteRange) -> Result<Payload, IoError> {
        self.done(range.length.0, &self.usage.reads, self.volume.read(range)).await
    }

    async fn write(&self, offset: ByteOffset, data: Bytes, durability: Durability) -> Result<(), IoError> {
        let bytes = data.len() as u64;
        self.done(bytes, &self.usage.writes, self.volume.write(offset, data, durability)).await
    }

    async fn flush(&self) -> Result<(), IoError> {
        let began = Instant::now();
        let outcome = self.volume.flush().await;
        self.usage.flushes.record(began.elapsed());
        outcome
    }

    async fn trim(&self, range: ByteRange, durability: Durability) -> Result<(), IoError> {
        self.done(0, &self.usage.writes, self.volume.trim(range, durability)).await
    }

    async fn write_zeroes(&self, range: ByteRange, options: ZeroOptions) -> Result<(), IoError> {
        self.done(0, &self.usage.writes, self.volume.write_zeroes(range, options)).await
    }

    async fn cache(&self, range: ByteRange) -> Result<(), IoError> {
        self.volume.cache(range).await
    }

    async fn extents(&self, range: ByteRange, most: usize) -> Result<Vec<Extent>, IoError> {
        self.volume.extents(range, most).await
    }
}
