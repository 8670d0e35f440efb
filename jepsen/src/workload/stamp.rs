//! The content of a block: one 32-byte stamp, repeated to its end, so that a read shows which write it saw, whether it is
//! of this block and of this run, and whether two writes are mixed.
//!
//! Stamp (little-endian): magic u64, run u64, block u64, value u64. A block of zeros was never written.

use std::{collections::BTreeMap, fmt::Write as _};

use super::BLOCK_BYTES;
use crate::history::{Block, Content, Value};

const STAMP_BYTES: usize = 32;
const STAMPS: usize = BLOCK_BYTES / STAMP_BYTES;
/// "pflexjep" as bytes.
const MAGIC: u64 = u64::from_le_bytes(*b"pflexjep");
/// More kinds of parts than this in one block are not listed.
const MOST_PARTS: usize = 6;

const _: () = assert!(STAMP_BYTES * STAMPS == BLOCK_BYTES);

/// The content that writes `value` to `block`.
pub fn write(run: u64, block: Block, value: Value) -> [u8; BLOCK_BYTES] {
    let mut data = [0; BLOCK_BYTES];
    for stamp in data.chunks_exact_mut(STAMP_BYTES) {
        for (place, word) in stamp.chunks_exact_mut(8).zip([MAGIC, run, block.0, value.0]) {
            place.copy_from_slice(&word.to_le_bytes());
        }
    }
    data
}

/// What a block's content says.
pub fn read(run: u64, block: Block, data: &[u8; BLOCK_BYTES]) -> Content {
    // What the stamps are, in words only if they are not all alike: this runs for every read.
    let first = &data[..STAMP_BYTES];
    if data.chunks_exact(STAMP_BYTES).all(|stamp| stamp == first) {
        return match parse(run, block, first) {
            Ok(value) => Content::Whole(value),
            Err(what) => Content::Broken(format!("all of it is {what}")),
        };
    }
    let mut parts: BTreeMap<String, usize> = BTreeMap::new();
    for stamp in data.chunks_exact(STAMP_BYTES) {
        let what = match parse(run, block, stamp) {
            Ok(value) => format!("value {value}"),
            Err(what) => what,
        };
        *parts.entry(what).or_default() += 1;
    }
    let mut text = format!("torn, {} kinds of parts:", parts.len());
    for (what, count) in parts.iter().take(MOST_PARTS) {
        write!(text, " {count}/{STAMPS} {what};").expect("writing to a string does not fail");
    }
    Content::Broken(text)
}

/// The value of a stamp that belongs here, or what else it is.
fn parse(run: u64, block: Block, stamp: &[u8]) -> Result<Value, String> {
    let mut words = stamp.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().expect("eight bytes")));
    let mut next = || words.next().expect("a stamp has four words");
    let (magic, its_run, its_block, value) = (next(), next(), Block(next()), Value(next()));
    match () {
        () if stamp.iter().all(|byte| *byte == 0) => Ok(Value::INITIAL),
        () if magic != MAGIC => Err(format!("no stamp ({magic:#018x}...)")),
        () if its_run != run => Err(format!("value {value} of another run")),
        () if its_block != block => Err(format!("value {value} of block {}", its_block.0)),
        () => Ok(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: u64 = 7;
    const BLOCK: Block = Block(3);

    fn broken(data: &[u8; BLOCK_BYTES]) -> String {
        match read(RUN, BLOCK, data) {
            Content::Broken(text) => text,
            Content::Whole(value) => panic!("taken for {value}"),
        }
    }

    #[test]
    fn a_whole_block_names_its_write() {
        let value = Value::of(2, 9);
        assert_eq!(read(RUN, BLOCK, &write(RUN, BLOCK, value)), Content::Whole(value));
        assert_eq!(read(RUN, BLOCK, &[0; BLOCK_BYTES]), Content::Whole(Value::INITIAL));
    }

    #[test]
    fn a_mixed_block_is_torn_wherever_the_tear_is() {
        let (old, new) = (write(RUN, BLOCK, Value::of(1, 1)), write(RUN, BLOCK, Value::of(2, 2)));
        // Inside the first value, between stamps, half-way, inside the last value.
        for tear in [26, 512, 2048, BLOCK_BYTES - 6] {
            let mut data = old;
            data[..tear].copy_from_slice(&new[..tear]);
            let text = broken(&data);
            assert!(text.starts_with("torn, 2 kinds"), "{text}");
        }
        let mut half_zero = old;
        half_zero[2048..].fill(0);
        assert_eq!(broken(&half_zero), "torn, 2 kinds of parts: 64/128 value 1.1; 64/128 value zeros;");
    }

    #[test]
    fn foreign_content_is_named() {
        assert_eq!(broken(&write(RUN, Block(4), Value::of(1, 2))), "all of it is value 1.2 of block 4");
        assert_eq!(broken(&write(8, BLOCK, Value::of(1, 2))), "all of it is value 1.2 of another run");
        assert!(broken(&[0xff; BLOCK_BYTES]).starts_with("all of it is no stamp"));
    }
}
