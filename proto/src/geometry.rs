//! Sizes that disk, wire and placement share, and where a byte of a volume lives.

use crate::ids::{ByteOffset, ChunkIndex, PgIndex, VtreeId};

/// Bytes of a block: the unit of checksums and of atomic writes.
pub const BLOCK_SIZE: u32 = 4096;
/// Bytes of a chunk: the unit of placement, versions and space.
pub const CHUNK_SIZE: u32 = 1 << 20;
/// Blocks of a chunk.
pub const BLOCKS_PER_CHUNK: u32 = CHUNK_SIZE / BLOCK_SIZE;

/// The placement group of a chunk: `mix(vtree, chunk) & (count - 1)` (ARCHITECTURE section 5).
///
/// `mix` is the finaliser of MurmurHash3 over both numbers (Appleby, public domain): every input bit reaches every
/// output bit, so neighbouring chunks of one volume spread over all groups. This function is part of the format:
/// changing it moves every chunk.
///
/// `pg_count` is a power of two, at least 1.
pub const fn pg_of(vtree: VtreeId, chunk: ChunkIndex, pg_count: u32) -> PgIndex {
    debug_assert!(pg_count.is_power_of_two());
    let mixed = fmix64(fmix64(vtree.0).wrapping_add(chunk.0));
    PgIndex((mixed as u32) & (pg_count - 1))
}

const fn fmix64(mut k: u64) -> u64 {
    k = k.wrapping_add(0x9e37_79b9_7f4a_7c15);
    k ^= k >> 33;
    k = k.wrapping_mul(0xff51_afd7_ed55_8ccd);
    k ^= k >> 33;
    k = k.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    k ^ (k >> 33)
}

/// The chunk a byte of a volume lies in, and where in that chunk.
pub const fn locate(offset: ByteOffset) -> (ChunkIndex, u32) {
    (ChunkIndex(offset.0 / CHUNK_SIZE as u64), (offset.0 % CHUNK_SIZE as u64) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placement_is_part_of_the_format() {
        // These values are on disks: a change here is a change of format.
        assert_eq!(pg_of(VtreeId(1), ChunkIndex(0), 1024), PgIndex(pg_of(VtreeId(1), ChunkIndex(0), 1 << 31).0 & 1023));
        let spread: std::collections::BTreeSet<_> = (0..1024).map(|c| pg_of(VtreeId(7), ChunkIndex(c), 64)).collect();
        assert_eq!(spread.len(), 64, "1,024 neighbouring chunks reach all 64 groups");
    }

    #[test]
    fn a_byte_is_located_in_its_chunk() {
        assert_eq!(locate(ByteOffset(0)), (ChunkIndex(0), 0));
        assert_eq!(locate(ByteOffset(u64::from(CHUNK_SIZE) + 5)), (ChunkIndex(1), 5));
    }
}
