//! How far `raft.db` was synced: tells a torn tail, which was never acknowledged, from acknowledged writes that are gone.
//!
//! RocksDB takes a record whose length points past the end of the write-ahead log for the tail of a crash, and opens
//! with what stands before it. One flipped bit in a length would so lose votes and entries in silence. Every write raises
//! the database's sequence number, so after each sync the number that it covers is written here, and a database that
//! opens with a lower one has lost something that was durable.
//!
//! The mark is not synced itself: it is written after the sync that it tells of, so whatever of it reaches the disk is
//! true. A stale one only notices less.
//!
//! File `synced-up-to`, 16 bytes, within one sector: magic `PFSY`, sequence number (u64), CRC32C of both; little-endian.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use crate::raft::{durable, error::StoreError};

const NAME: &str = "synced-up-to";
const MAGIC: [u8; 4] = *b"PFSY";
const LENGTH: usize = 16;

/// The open file.
pub(super) struct Mark(File);

impl Mark {
    /// A mark for a new database.
    pub(super) fn create(database: &Path) -> Result<(), StoreError> {
        let path = path_in(database);
        durable::write_file(&path, &encode(0)).map_err(StoreError::io("write", &path))
    }

    /// Opens the mark of a database that has just been opened with this sequence number.
    ///
    /// # Errors
    /// When the database has less than was synced, or the mark is damaged.
    pub(super) fn open(database: &Path, sequence: u64) -> Result<Self, StoreError> {
        let path = path_in(database);
        let damaged = |what: String| StoreError::Damaged { path: database.into(), what };
        match fs::read(&path) {
            Ok(bytes) => {
                let synced =
                    decode(&bytes).ok_or_else(|| damaged(format!("{NAME} does not tell how far it was synced")))?;
                if sequence < synced {
                    let what = format!(
                        "it ends at write {sequence} and {synced} were synced: acknowledged ones are missing at its end"
                    );
                    return Err(damaged(what));
                }
            }
            // A store of before marks were kept.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::create(database)?,
            Err(error) => return Err(StoreError::io("read", &path)(error)),
        }
        let file = OpenOptions::new().write(true).open(&path).map_err(StoreError::io("open", &path))?;
        Ok(Self(file))
    }

    /// To be called after a sync that covers everything up to `sequence`.
    pub(super) fn advance(&self, sequence: u64) -> io::Result<()> {
        self.0.write_all_at(&encode(sequence), 0)
    }
}

fn path_in(database: &Path) -> PathBuf {
    database.join(NAME)
}

fn encode(sequence: u64) -> [u8; LENGTH] {
    let mut bytes = [0; LENGTH];
    bytes[..4].copy_from_slice(&MAGIC);
    bytes[4..12].copy_from_slice(&sequence.to_le_bytes());
    let crc = crc32c::crc32c(&bytes[..12]);
    bytes[12..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn decode(bytes: &[u8]) -> Option<u64> {
    let (head, crc) = bytes.split_at_checked(12)?;
    let sequence = u64::from_le_bytes(head.strip_prefix(&MAGIC)?.try_into().ok()?);
    (crc == crc32c::crc32c(head).to_le_bytes()).then_some(sequence)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_reads_back_and_any_flipped_bit_is_noticed() {
        let good = encode(0x0123_4567_89ab_cdef);
        assert_eq!(decode(&good), Some(0x0123_4567_89ab_cdef));
        for bit in 0..LENGTH * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(&bad), None, "bit {bit}");
        }
        assert_eq!((decode(&[]), decode(&good[..15]), decode(&[0; LENGTH])), (None, None, None));
    }

    #[test]
    fn a_database_that_ends_before_what_was_synced_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        Mark::create(dir.path()).unwrap();
        Mark::open(dir.path(), 5).unwrap().advance(7).unwrap();
        assert!(Mark::open(dir.path(), 7).is_ok() && Mark::open(dir.path(), 8).is_ok());
        assert!(matches!(Mark::open(dir.path(), 6), Err(StoreError::Damaged { .. })));
        fs::remove_file(path_in(dir.path())).unwrap();
        assert!(Mark::open(dir.path(), 6).is_ok(), "a store of before marks were kept");
    }
}
