//! Bytes on their way through the data thread, together with their checksums, so that no block is summed twice.

use std::sync::Arc;

use bytes::Bytes;
use pflex_proto::geometry::BLOCK_SIZE;

/// Bytes of a chunk with the CRC32C of each 4 KiB block if they are whole blocks, else without.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Payload {
    /// The bytes.
    pub data: Bytes,
    /// One for each block; empty where an end is not block-aligned.
    pub checksums: Arc<[u32]>,
}

impl Payload {
    /// Takes bytes whose checksums were verified.
    pub fn verified(data: Bytes, checksums: impl Into<Arc<[u32]>>) -> Self {
        Self { data, checksums: checksums.into() }
    }

    /// Computes the checksums, if the bytes are whole blocks.
    pub fn computed(data: Bytes) -> Self {
        let whole = data.len().is_multiple_of(BLOCK_SIZE as usize);
        let blocks =
            if whole { data.chunks_exact(BLOCK_SIZE as usize).map(crc32c::crc32c).collect() } else { [].into() };
        Self { data, checksums: blocks }
    }

    /// Whether the checksums, if there are any, are those of the bytes.
    pub fn is_sound(&self) -> bool {
        self.checksums.is_empty()
            || (self.data.len() == self.checksums.len() * BLOCK_SIZE as usize
                && self
                    .data
                    .chunks_exact(BLOCK_SIZE as usize)
                    .zip(self.checksums.iter())
                    .all(|(b, c)| crc32c::crc32c(b) == *c))
    }
}
