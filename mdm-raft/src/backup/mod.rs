//! Backup files: the whole state of a cluster as of one moment, readable by later versions.
//!
//! ```text
//! "PFLEXBAK"  format u32
//! block: length u32, kind u8, payload, crc32c u32      1 head, then 2 rows (many), then 3 end
//! ```
//! Numbers are little-endian; `length` is the payload's. A block's checksum also covers its place in the file and its kind,
//! so that one that was lost, doubled or moved is noticed; the end block counts the rows and has the SHA-256 of all before
//! it. Payloads are `proto/backup.proto`.
//!
//! Rows, not database files: a row has a format of its own, the files of RocksDB are another program's. Exactly-once
//! sessions are left out, as no client may be answered by an outcome of before (S17), and so are secrets: a restored
//! cluster makes new ones, and a backup that is stolen signs nothing (S19, I7).

mod read;
mod write;

pub use read::{BackupError, BackupReader, Item};
pub use write::BackupWriter;

use crate::{pb::pflex::mdm::backup::v1 as proto, state::Table};

/// The first bytes of a backup file.
const MAGIC: &[u8; 8] = b"PFLEXBAK";
/// The newest format this version knows.
const FORMAT: u32 = 1;
/// A block larger than this is damage, not data: rows are collected to a quarter of a mebibyte, and one row is at most a
/// command.
const MOST_BLOCK_BYTES: u32 = 16 << 20;

const HEAD: u8 = 1;
const ROWS: u8 = 2;
const END: u8 = 3;

/// What a backup says of itself.
pub type Head = proto::Head;

/// Whether rows of this table belong into a backup.
pub(crate) const fn is_kept(table: Table) -> bool {
    !matches!(table, Table::Sessions | Table::SessionOutcomes | Table::Secrets)
}

/// The checksum of block `number`.
fn checksum(number: u64, kind: u8, payload: &[u8]) -> u32 {
    let crc = crc32c::crc32c(&number.to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c_append(crc, &[kind]), payload)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::StoredRow;

    fn file() -> (Vec<u8>, Vec<StoredRow>) {
        let row = |table, key: u8| -> StoredRow { (table, Box::from([key]), Box::from([key; 40])) };
        let mut rows: Vec<StoredRow> = (0..100).map(|key| row(Table::Volumes, key)).collect();
        rows.extend((0..9).map(|key| row(Table::Devices, key)));
        let mut bytes = Vec::new();
        let head = Head { cluster: vec![7; 16], revision: 9, ..Head::default() };
        let mut writer = BackupWriter::new(&mut bytes, &head).unwrap();
        for (table, key, value) in &rows {
            writer.row(*table, key, value).unwrap();
        }
        writer.finish().unwrap();
        (bytes, rows)
    }

    fn read(bytes: &[u8]) -> Result<(Head, Vec<StoredRow>), BackupError> {
        let mut reader = BackupReader::new(bytes)?;
        let mut rows = Vec::new();
        while let Some(item) = reader.next_rows()? {
            rows.extend(item.rows.into_iter().map(|(key, value)| (item.table, key.into(), value.into())));
        }
        Ok((reader.head().clone(), rows))
    }

    #[test]
    fn what_was_written_is_read() {
        let (bytes, rows) = file();
        let (head, read) = read(&bytes).unwrap();
        assert_eq!((head.revision, read), (9, rows));
    }

    #[test]
    fn any_changed_byte_is_noticed() {
        let (bytes, _) = file();
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 0x10;
            assert!(read(&changed).is_err(), "byte {at} changed unseen");
        }
    }

    #[test]
    fn any_cut_is_noticed_and_said_where() {
        let (bytes, _) = file();
        for length in 0..bytes.len() {
            let error = read(&bytes[..length]).unwrap_err();
            let said = matches!(error, BackupError::Short { at } if at <= length as u64);
            assert!(said, "cut at {length}: {error}");
        }
        let longer = [bytes.as_slice(), b"x"].concat();
        assert!(matches!(read(&longer), Err(BackupError::Damaged { .. })));
    }

    #[test]
    fn a_block_that_moved_or_came_twice_is_noticed() {
        let (bytes, _) = file();
        let mut blocks = Vec::new();
        let mut at = 12;
        while at < bytes.len() {
            let length = u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize + 9;
            blocks.push(bytes[at..at + length].to_vec());
            at += length;
        }
        let build = |order: &[usize]| {
            let blocks = order.iter().flat_map(|block| blocks[*block].clone());
            bytes[..12].iter().copied().chain(blocks).collect::<Vec<u8>>()
        };
        assert_eq!(blocks.len(), 4, "head, two tables, end");
        assert!(read(&build(&[0, 1, 2, 3])).is_ok());
        for order in [&[0, 2, 1, 3][..], &[0, 1, 1, 2, 3], &[0, 1, 3], &[1, 2, 3]] {
            assert!(read(&build(order)).is_err(), "{order:?}");
        }
    }

    #[test]
    fn another_file_and_a_newer_format_are_told_apart() {
        assert!(matches!(read(b"PK\x03\x04 a zip file"), Err(BackupError::NotABackup)));
        let (mut bytes, _) = file();
        bytes[8] = 2;
        assert!(matches!(read(&bytes), Err(BackupError::NewerFormat { found: 2, known: 1 })));
    }
}
