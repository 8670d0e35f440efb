//! A device in memory: for tests, and to measure what the NBD hop costs by itself.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use pflex_proto::geometry::BLOCK_SIZE;
use pflex_proto::ids::{ByteCount, ByteOffset};
use tokio_util::sync::CancellationToken;

use super::{
    BlockBackend, ByteRange, Durability, Export, ExportInfo, ExportSummary, Exports, Extent, ExtentState, Extents,
    IoError, OpenError, Payload, Piece, ZeroOptions,
};

/// Bytes behind one lock: small enough that requests at different places rarely meet.
const SHARD_SIZE: u64 = 1 << 20;
const BLOCK: usize = BLOCK_SIZE as usize;

/// A part of the device, and which of its blocks were written: the others are holes.
#[derive(Debug)]
struct Shard {
    data: Vec<u8>,
    written: Vec<bool>,
}

impl Shard {
    fn new(length: usize) -> Self {
        Self { data: vec![0; length], written: vec![false; length.div_ceil(BLOCK)] }
    }

    /// The blocks a place touches.
    fn touched(place: &Range<usize>) -> Range<usize> {
        place.start / BLOCK..place.end.div_ceil(BLOCK)
    }

    /// Zeros a place; its whole blocks become holes unless they are to stay provisioned.
    fn zero(&mut self, place: Range<usize>, keep_provisioned: bool) {
        let whole = if place.end == self.data.len() { self.written.len() } else { place.end / BLOCK };
        let whole = place.start.div_ceil(BLOCK)..whole;
        if keep_provisioned {
            self.written[Self::touched(&place)].fill(true);
        } else if whole.start < whole.end {
            self.written[whole].fill(false);
        }
        self.data[place].fill(0);
    }
}

/// A device in memory.
#[derive(Debug)]
pub struct MemoryBackend {
    shards: Vec<RwLock<Shard>>,
}

impl MemoryBackend {
    /// A device of `size` zeros.
    pub fn new(size: ByteCount) -> Self {
        let shards = (0..size.0.div_ceil(SHARD_SIZE))
            .map(|shard| RwLock::new(Shard::new((size.0 - shard * SHARD_SIZE).min(SHARD_SIZE) as usize)))
            .collect();
        Self { shards }
    }

    /// Calls `visit` with each shard a range touches and the place in that shard.
    fn each_shard(&self, range: ByteRange, mut visit: impl FnMut(&RwLock<Shard>, Range<usize>)) {
        let mut offset = range.offset.0;
        while offset < range.end().0 {
            let within = offset % SHARD_SIZE;
            let length = (range.end().0 - offset).min(SHARD_SIZE - within);
            let shard = &self.shards[(offset / SHARD_SIZE) as usize];
            visit(shard, within as usize..(within + length) as usize);
            offset += length;
        }
    }

    fn zero(&self, range: ByteRange, keep_provisioned: bool) {
        self.each_shard(range, |shard, place| {
            shard.write().expect("no holder panics").zero(place, keep_provisioned);
        });
    }
}

impl BlockBackend for MemoryBackend {
    async fn read(&self, range: ByteRange) -> Result<Payload, IoError> {
        let mut pieces = Vec::with_capacity(1);
        self.each_shard(range, |shard, place| {
            let shard = shard.read().expect("no holder panics");
            let is_hole = !shard.written[Shard::touched(&place)].contains(&true);
            let piece = if is_hole {
                Piece::Hole(place.len())
            } else {
                Piece::Data(Bytes::copy_from_slice(&shard.data[place]))
            };
            pieces.push(piece);
        });
        Ok(Payload::of(pieces))
    }

    async fn write(&self, offset: ByteOffset, data: Bytes, _durability: Durability) -> Result<(), IoError> {
        let mut from = 0;
        self.each_shard(ByteRange { offset, length: ByteCount(data.len() as u64) }, |shard, place| {
            let upto = from + place.len();
            let mut shard = shard.write().expect("no holder panics");
            shard.written[Shard::touched(&place)].fill(true);
            shard.data[place].copy_from_slice(&data[from..upto]);
            from = upto;
        });
        Ok(())
    }

    async fn flush(&self) -> Result<(), IoError> {
        Ok(())
    }

    async fn trim(&self, range: ByteRange, _durability: Durability) -> Result<(), IoError> {
        self.zero(range, false);
        Ok(())
    }

    async fn write_zeroes(&self, range: ByteRange, options: ZeroOptions) -> Result<(), IoError> {
        self.zero(range, options.keep_provisioned);
        Ok(())
    }

    async fn extents(&self, range: ByteRange, most: usize) -> Result<Vec<Extent>, IoError> {
        let mut extents = Extents::new(most);
        self.each_shard(range, |shard, place| {
            if extents.is_full() {
                return;
            }
            let shard = shard.read().expect("no holder panics");
            for block in Shard::touched(&place) {
                let inside = place.start.max(block * BLOCK)..place.end.min((block + 1) * BLOCK);
                let state = if shard.written[block] { ExtentState::Data } else { ExtentState::Hole };
                extents.push(state, inside.len() as u64);
            }
        });
        Ok(extents.into_list())
    }
}

#[derive(Debug)]
struct Offered {
    info: ExportInfo,
    backend: Arc<MemoryBackend>,
    ended: CancellationToken,
}

/// Named devices in memory.
#[derive(Debug, Default)]
pub struct MemoryExports {
    exports: RwLock<BTreeMap<String, Offered>>,
}

impl MemoryExports {
    /// Adds a device of `size` zeros.
    #[must_use]
    pub fn with(self, name: &str, size: ByteCount, read_only: bool) -> Self {
        let info =
            ExportInfo { name: name.to_owned(), description: format!("{size} bytes in memory"), size, read_only };
        let (backend, ended) = (Arc::new(MemoryBackend::new(size)), CancellationToken::new());
        let mut exports = self.exports.into_inner().unwrap_or_else(PoisonError::into_inner);
        exports.insert(name.to_owned(), Offered { info, backend, ended });
        Self { exports: RwLock::new(exports) }
    }

    /// Takes a device away; its connections end.
    pub fn remove(&self, name: &str) {
        if let Some(gone) = self.exports.write().unwrap_or_else(PoisonError::into_inner).remove(name) {
            gone.ended.cancel();
        }
    }
}

impl Exports for MemoryExports {
    type Backend = MemoryBackend;

    fn list(&self) -> Vec<ExportSummary> {
        let summary = |Offered { info, .. }: &Offered| ExportSummary {
            name: info.name.clone(),
            description: info.description.clone(),
        };
        self.exports.read().unwrap_or_else(PoisonError::into_inner).values().map(summary).collect()
    }

    async fn open(&self, name: &str) -> Result<Export<MemoryBackend>, OpenError> {
        let exports = self.exports.read().unwrap_or_else(PoisonError::into_inner);
        let found = match name {
            "" if exports.len() == 1 => exports.values().next(),
            _ => exports.get(name),
        };
        let Offered { info, backend, ended } = found.ok_or_else(|| OpenError::Unknown { name: name.to_owned() })?;
        Ok(Export { info: info.clone(), backend: Arc::clone(backend), ended: ended.clone() })
    }
}
