//! Cuts byte ranges of a volume into parts of one chunk each.

use pflex_proto::geometry::{BLOCK_SIZE, CHUNK_SIZE, locate, pg_of};
use pflex_proto::ids::{ChunkId, LayerId, PgId, PoolId, VtreeId};

use crate::block::ByteRange;

/// What decides where the chunks of a volume are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The pool of the volume.
    pub pool: PoolId,
    /// Placement groups of the pool: a power of two.
    pub pg_count: u32,
    /// The volume's tree.
    pub vtree: VtreeId,
    /// The layer it writes.
    pub layer: LayerId,
}

/// A piece of a request inside one chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Where the chunk is.
    pub pg: PgId,
    /// The chunk.
    pub chunk: ChunkId,
    /// First byte in the chunk.
    pub offset: u32,
    /// Bytes; at least one.
    pub length: u32,
}

impl Layout {
    /// The placement group of a chunk.
    pub const fn group_of(self, chunk: ChunkId) -> PgId {
        PgId { pool: self.pool, index: pg_of(self.vtree, chunk.index, self.pg_count) }
    }

    /// The parts of a range, in order.
    pub fn parts(self, range: ByteRange) -> impl ExactSizeIterator<Item = Part> + Clone {
        let first = range.offset.0 / u64::from(CHUNK_SIZE);
        let beyond = range.end().0.div_ceil(u64::from(CHUNK_SIZE)).max(first);
        (0..(beyond - first) as usize).map(move |nth| {
            let chunk_start = (first + nth as u64) * u64::from(CHUNK_SIZE);
            let start = range.offset.0.max(chunk_start);
            let end = range.end().0.min(chunk_start + u64::from(CHUNK_SIZE));
            let (index, offset) = locate(start.into());
            let chunk = ChunkId { vtree: self.vtree, layer: self.layer, index };
            Part { pg: self.group_of(chunk), chunk, offset, length: (end - start) as u32 }
        })
    }
}

/// A range in up to three pieces: its whole blocks, and the bytes before and after them, in order. Zeros in whole blocks
/// become holes; in a piece with them, the edges would make all of it a write of bytes.
pub fn at_block_borders(range: ByteRange) -> impl Iterator<Item = ByteRange> {
    let (start, end) = (range.offset.0, range.end().0);
    let middle = whole_blocks(range).unwrap_or(ByteRange::new(end, 0));
    [(start, middle.offset.0), (middle.offset.0, middle.end().0), (middle.end().0, end)]
        .into_iter()
        .filter(|(from, to)| from < to)
        .map(|(from, to)| ByteRange::new(from, to - from))
}

/// The whole blocks of a range, which are all that a TRIM drops; `None` when there is not one.
pub fn whole_blocks(range: ByteRange) -> Option<ByteRange> {
    let block = u64::from(BLOCK_SIZE);
    let start = range.offset.0.next_multiple_of(block);
    let end = range.end().0 / block * block;
    (start < end).then(|| ByteRange::new(start, end - start))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LAYOUT: Layout = Layout { pool: PoolId(1), pg_count: 64, vtree: VtreeId(7), layer: LayerId(0) };

    #[test]
    fn a_range_inside_a_chunk_is_one_part() {
        let parts: Vec<_> = LAYOUT.parts(ByteRange::new((5 << 20) + 100, 4096)).collect();
        assert_eq!(parts.len(), 1);
        assert_eq!((parts[0].chunk.index.0, parts[0].offset, parts[0].length), (5, 100, 4096));
    }

    #[test]
    fn trim_keeps_partial_blocks() {
        assert_eq!(whole_blocks(ByteRange::new(1, 4096)), None);
        assert_eq!(whole_blocks(ByteRange::new(1, 8191)), Some(ByteRange::new(4096, 4096)));
        assert_eq!(whole_blocks(ByteRange::new(4096, 4095)), None);
        assert_eq!(whole_blocks(ByteRange::new(0, 9000)), Some(ByteRange::new(0, 8192)));
    }

    #[test]
    fn zeros_are_cut_where_their_whole_blocks_begin_and_end() {
        let cut = |offset, length| -> Vec<_> {
            at_block_borders(ByteRange::new(offset, length)).map(|piece| (piece.offset.0, piece.length.0)).collect()
        };
        assert_eq!(cut(0, 8192), [(0, 8192)]);
        assert_eq!(cut(100, 8192), [(100, 3996), (4096, 4096), (8192, 100)]);
        assert_eq!(cut(4096, 5000), [(4096, 4096), (8192, 904)]);
        assert_eq!(cut(100, 200), [(100, 200)]);
        assert_eq!(cut(4000, 200), [(4000, 200)], "no whole block");
    }

    proptest! {
        #[test]
        fn parts_cover_the_range_once_and_in_order(offset in 0u64..1 << 40, length in 1u64..40 << 20) {
            let mut at = offset;
            for part in LAYOUT.parts(ByteRange::new(offset, length)) {
                prop_assert_eq!(part.chunk.index.0 * u64::from(CHUNK_SIZE) + u64::from(part.offset), at);
                prop_assert!(part.length > 0 && part.offset + part.length <= CHUNK_SIZE);
                at += u64::from(part.length);
            }
            prop_assert_eq!(at, offset + length);
        }
    }
}
