//! Between the store's types and the core's: runs of blocks, operations, and what differs between two copies.

use pflex_proto::geometry::BLOCK_SIZE;

use crate::{
    payload::Payload,
    replication::{self, BlockRun, BlockSums, Extent, OperationEntry, WriteKind},
    store::{self, BlockRange, ReadData, Run},
};

/// The bytes asked for out of the whole blocks read. Checksums stay only if whole blocks were asked for.
pub(super) fn cut(read: &ReadData, range: BlockRange, extent: Extent) -> Payload {
    let start = (extent.offset - u32::from(range.first()) * BLOCK_SIZE) as usize;
    let data = read.data.slice(start..start + extent.length as usize);
    if data.len() == read.data.len() {
        Payload::verified(data, read.checksums.as_slice())
    } else {
        Payload::verified(data, [])
    }
}

/// A block of a list that may be short: nothing there is zeros.
fn sum_of(sums: &BlockSums, block: usize, zero: u32) -> u32 {
    sums.0.get(block).copied().unwrap_or(zero)
}

/// From the first to the last block in which two copies of a chunk differ; none: they are equal.
pub(super) fn hull(own: &BlockSums, theirs: &BlockSums) -> Option<BlockRange> {
    let zero = store::zero_checksums(1)[0];
    let differs = |block: &u16| sum_of(own, (*block).into(), zero) != sum_of(theirs, (*block).into(), zero);
    let first = BlockRange::WHOLE.blocks().find(differs)?;
    let last = BlockRange::WHOLE.blocks().rev().find(differs)?;
    BlockRange::new(first, last + 1 - first)
}

/// The blocks of `read`, from this block of the chunk on, that differ from `theirs`, neighbours together.
pub(super) fn difference(read: &ReadData, from: u16, theirs: &BlockSums) -> Vec<BlockRun<Payload>> {
    let zero = store::zero_checksums(1)[0];
    let differs = |block: usize| read.checksums[block] != sum_of(theirs, usize::from(from) + block, zero);
    let mut runs = Vec::new();
    let mut block = 0;
    while block < read.checksums.len() {
        if !differs(block) {
            block += 1;
            continue;
        }
        let first = block;
        while block < read.checksums.len() && differs(block) {
            block += 1;
        }
        let bytes = read.data.slice(first * BLOCK_SIZE as usize..block * BLOCK_SIZE as usize);
        let zeros = bytes.iter().all(|byte| *byte == 0);
        runs.push(BlockRun {
            first_block: from + first as u16,
            blocks: (block - first) as u16,
            data: (!zeros).then(|| Payload::verified(bytes, &read.checksums[first..block])),
        });
    }
    runs
}

pub(super) fn run_of(extent: Extent, kind: WriteKind<Payload>) -> Option<Run> {
    let blocks = BlockRange::from_bytes(extent.offset, extent.length)?;
    Some(match kind {
        WriteKind::Zeroes => Run::zeros(blocks),
        WriteKind::Data(payload) => Run { blocks, checksums: payload.checksums.to_vec(), data: Some(payload.data) },
    })
}

pub(super) fn run_of_blocks(run: BlockRun<Payload>) -> Option<Run> {
    let blocks = BlockRange::new(run.first_block, run.blocks)?;
    Some(match run.data {
        None => Run::zeros(blocks),
        Some(payload) => Run { blocks, checksums: payload.checksums.to_vec(), data: Some(payload.data) },
    })
}

pub(super) fn client(key: replication::ClientKey) -> store::Client {
    store::Client { sdc: key.sdc, volume: key.volume }
}

pub(super) fn operation(entry: OperationEntry) -> store::Operation {
    store::Operation { client: client(entry.client), id: entry.operation, version: entry.version, chunk: entry.chunk }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(changed: &[usize]) -> ReadData {
        let mut data = vec![0_u8; BlockRange::WHOLE.bytes()];
        for block in changed {
            data[block * BLOCK_SIZE as usize] = 1;
        }
        let checksums = data.chunks(BLOCK_SIZE as usize).map(crc32c::crc32c).collect();
        ReadData { data: data.into(), checksums, version: None }
    }

    #[test]
    fn only_differing_blocks_travel_and_neighbours_travel_together() {
        let (own, theirs) = (chunk(&[3, 4, 9]), BlockSums(chunk(&[9, 200]).checksums));
        assert_eq!(hull(&BlockSums(own.checksums.clone()), &theirs), BlockRange::new(3, 198));
        assert_eq!(hull(&BlockSums(own.checksums.clone()), &BlockSums(own.checksums.clone())), None);
        let part = ReadData {
            data: own.data.slice(3 * BLOCK_SIZE as usize..),
            checksums: own.checksums[3..].to_vec(),
            version: None,
        };
        let runs = difference(&part, 3, &theirs);
        let places: Vec<_> = runs.iter().map(|run| (run.first_block, run.blocks, run.data.is_some())).collect();
        assert_eq!(places, [(3, 2, true), (200, 1, false)]);
        assert!(difference(&chunk(&[]), 0, &BlockSums::default()).is_empty(), "no chunk there equals zeros here");
    }
}
