//! A device in memory: for tests, and to measure what the NBD hop costs by itself.

use std::collections::BTreeMap;
use std::sync::{Arc, RwLock};

use bytes::Bytes;
use pflex_proto::ids::{ByteCount, ByteOffset};

use super::{
    BlockBackend, ByteRange, Durability, Export, ExportInfo, ExportSummary, Exports, IoError, OpenError, Payload,
    ZeroOptions,
};

/// Bytes behind one lock: small enough that requests at different places rarely meet.
const SHARD_SIZE: u64 = 1 << 20;

/// A device in memory.
#[derive(Debug)]
pub struct MemoryBackend {
    shards: Vec<RwLock<Vec<u8>>>,
}

impl MemoryBackend {
    /// A device of `size` zeros.
    pub fn new(size: ByteCount) -> Self {
        let shards = (0..size.0.div_ceil(SHARD_SIZE))
            .map(|shard| RwLock::new(vec![0; (size.0 - shard * SHARD_SIZE).min(SHARD_SIZE) as usize]))
            .collect();
        Self { shards }
    }

    /// Calls `visit` with each shard a range touches and the place in that shard.
    fn each_shard(&self, range: ByteRange, mut visit: impl FnMut(&RwLock<Vec<u8>>, std::ops::Range<usize>)) {
        let mut offset = range.offset.0;
        while offset < range.end().0 {
            let within = offset % SHARD_SIZE;
            let length = (range.end().0 - offset).min(SHARD_SIZE - within);
            let shard = &self.shards[(offset / SHARD_SIZE) as usize];
            visit(shard, within as usize..(within + length) as usize);
            offset += length;
        }
    }

    fn fill_zeros(&self, range: ByteRange) {
        self.each_shard(range, |shard, place| shard.write().expect("no holder panics")[place].fill(0));
    }
}

impl BlockBackend for MemoryBackend {
    async fn read(&self, range: ByteRange) -> Result<Payload, IoError> {
        let mut data = Vec::with_capacity(range.length.0 as usize);
        self.each_shard(range, |shard, place| {
            data.extend_from_slice(&shard.read().expect("no holder panics")[place]);
        });
        Ok(Bytes::from(data).into())
    }

    async fn write(&self, offset: ByteOffset, data: Bytes, _durability: Durability) -> Result<(), IoError> {
        let mut from = 0;
        self.each_shard(ByteRange { offset, length: ByteCount(data.len() as u64) }, |shard, place| {
            let upto = from + place.len();
            shard.write().expect("no holder panics")[place].copy_from_slice(&data[from..upto]);
            from = upto;
        });
        Ok(())
    }

    async fn flush(&self) -> Result<(), IoError> {
        Ok(())
    }

    async fn trim(&self, range: ByteRange, _durability: Durability) -> Result<(), IoError> {
        self.fill_zeros(range);
        Ok(())
    }

    async fn write_zeroes(&self, range: ByteRange, _options: ZeroOptions) -> Result<(), IoError> {
        self.fill_zeros(range);
        Ok(())
    }
}

/// Named devices in memory.
#[derive(Debug, Default)]
pub struct MemoryExports {
    exports: BTreeMap<String, (ExportInfo, Arc<MemoryBackend>)>,
}

impl MemoryExports {
    /// Adds a device of `size` zeros.
    #[must_use]
    pub fn with(mut self, name: &str, size: ByteCount, read_only: bool) -> Self {
        let info =
            ExportInfo { name: name.to_owned(), description: format!("{size} bytes in memory"), size, read_only };
        self.exports.insert(name.to_owned(), (info, Arc::new(MemoryBackend::new(size))));
        self
    }
}

impl Exports for MemoryExports {
    type Backend = MemoryBackend;

    fn list(&self) -> Vec<ExportSummary> {
        let summary =
            |info: &ExportInfo| ExportSummary { name: info.name.clone(), description: info.description.clone() };
        self.exports.values().map(|(info, _)| summary(info)).collect()
    }

    async fn open(&self, name: &str) -> Result<Export<MemoryBackend>, OpenError> {
        let found = match name {
            "" if self.exports.len() == 1 => self.exports.values().next(),
            _ => self.exports.get(name),
        };
        let (info, backend) = found.ok_or_else(|| OpenError::Unknown { name: name.to_owned() })?;
        Ok(Export { info: info.clone(), backend: Arc::clone(backend) })
    }
}
