//! A set of a chunk's blocks, as a bit for each, and the constants of a block of zeros.

use std::sync::LazyLock;

use bytes::Bytes;
use pflex_proto::geometry::{BLOCK_SIZE, BLOCKS_PER_CHUNK, CHUNK_SIZE};

use super::types::BlockRange;

const WORDS: usize = BLOCKS_PER_CHUNK as usize / 64;

/// Blocks of one chunk.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct BlockSet(pub(super) [u64; WORDS]);

impl BlockSet {
    pub(super) const fn insert(&mut self, block: u16) {
        self.0[block as usize / 64] |= 1 << (block % 64);
    }

    pub(super) const fn remove(&mut self, block: u16) {
        self.0[block as usize / 64] &= !(1 << (block % 64));
    }

    pub(super) const fn contains(&self, block: u16) -> bool {
        self.0[block as usize / 64] >> (block % 64) & 1 == 1
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    pub(super) fn intersects(&self, other: &Self) -> bool {
        self.0.iter().zip(&other.0).any(|(a, b)| a & b != 0)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = u16> {
        (0..BLOCKS_PER_CHUNK as u16).filter(|block| self.contains(*block))
    }

    pub(super) fn of(range: BlockRange) -> Self {
        let mut set = Self::default();
        range.blocks().for_each(|block| set.insert(block));
        set
    }
}

/// CRC32C of a block of zeros.
pub(super) fn zero_crc() -> u32 {
    static CRC: LazyLock<u32> = LazyLock::new(|| crc32c::crc32c(&[0; BLOCK_SIZE as usize]));
    *CRC
}

/// `length` zeros, at most a chunk of them, without copying.
pub(super) fn zeros(length: usize) -> Bytes {
    static ZEROS: LazyLock<Bytes> = LazyLock::new(|| Bytes::from(vec![0; CHUNK_SIZE as usize]));
    ZEROS.slice(..length)
}
