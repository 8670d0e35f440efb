//! A look at a database's write-ahead log and manifest, which has the same format, before RocksDB reads them.
//!
//! RocksDB 11 reads for ever when one bit of a record's type turns it into a type of recycled logs. Ours are never
//! recycled, so such a record is damage, and a member that says so beats one that hangs. Nothing else is judged here:
//! checksums and torn tails are RocksDB's.
//!
//! Format (RocksDB wiki, "Write Ahead Log File Format"): blocks of 32 KiB; in each, records of CRC (4 bytes), length (2,
//! little-endian), type (1), data; less than 7 bytes at the end of a block are padding.

use std::{fs, path::Path};

use crate::raft::error::StoreError;

const BLOCK: usize = 32 << 10;
const HEADER: usize = 7;
/// Full, first, middle, last record of a recycled log.
const RECYCLED: std::ops::RangeInclusive<u8> = 5..=8;

/// Refuses a database with a record that only a recycled log may have.
pub(super) fn check(database: &Path) -> Result<(), StoreError> {
    for file in fs::read_dir(database).map_err(StoreError::io("list", database))? {
        let path = file.map_err(StoreError::io("list", database))?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if !name.ends_with(".log") && !name.starts_with("MANIFEST-") {
            continue;
        }
        let bytes = fs::read(&path).map_err(StoreError::io("read", &path))?;
        if let Some(at) = recycled_record(&bytes) {
            let what = format!("{name} has a record of an impossible type at byte {at}");
            return Err(StoreError::Damaged { path, what });
        }
    }
    Ok(())
}

/// Where the first record of a recycled log begins.
fn recycled_record(log: &[u8]) -> Option<usize> {
    for (number, block) in log.chunks(BLOCK).enumerate() {
        let mut at = 0;
        while let Some([_, _, _, _, low, high, kind]) = block.get(at..at + HEADER) {
            if RECYCLED.contains(kind) {
                return Some(number * BLOCK + at);
            }
            let length = usize::from(u16::from_le_bytes([*low, *high]));
            // Nothing was written from here on, or the length leads nowhere: RocksDB judges that.
            if *kind == 0 && length == 0 {
                break;
            }
            at += HEADER + length;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: u8, length: u16) -> Vec<u8> {
        let mut bytes = vec![0xaa; HEADER + usize::from(length)];
        bytes[4..6].copy_from_slice(&length.to_le_bytes());
        bytes[6] = kind;
        bytes
    }

    #[test]
    fn only_recycled_records_are_refused() {
        let good = [record(1, 100), record(2, 32_000), record(4, 7), record(1, 0)].concat();
        assert_eq!(recycled_record(&good), None);
        assert_eq!(recycled_record(&[]), None);
        for cut in 0..40 {
            assert_eq!(recycled_record(&good[..good.len() - cut]), None, "a torn tail is none");
        }
        for kind in RECYCLED {
            assert_eq!(recycled_record(&[record(1, 100), record(kind, 9)].concat()), Some(107));
        }
        let mut second_block = good.clone();
        second_block.resize(BLOCK, 0);
        second_block.extend(record(5, 1));
        assert_eq!(recycled_record(&second_block), Some(BLOCK));
    }
}
