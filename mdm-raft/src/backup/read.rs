//! Reading a backup, and refusing one that is not whole. Nothing of a file is believed before all of it was checked: who
//! acts on it reads to the end first.

use std::io::{self, Read};

use prost::Message as _;
use ring::digest::{self, SHA256};

use super::{END, FORMAT, HEAD, Head, MAGIC, MOST_BLOCK_BYTES, ROWS, checksum, proto};
use crate::state::Table;

/// Why a file is not taken for a backup. Each `Display` is one line that says what and where.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// It is something else.
    #[error("it is not a pflex backup")]
    NotABackup,
    /// A newer version made it.
    #[error("it has backup format {found}, this version reads up to {known}; restore with the version that made it")]
    NewerFormat {
        /// Its format.
        found: u32,
        /// The newest this version knows.
        known: u32,
    },
    /// It ends before its end block.
    #[error("it is cut short: it ends in the block at byte {at}; take another copy of it")]
    Short {
        /// Where the last, incomplete block begins.
        at: u64,
    },
    /// What is there is not what was written.
    #[error("it is damaged at byte {at}: {what}; take another copy of it")]
    Damaged {
        /// Where the bad block begins.
        at: u64,
        /// What is wrong.
        what: String,
    },
    /// It has a table that this version does not know.
    #[error("it has the table {table}, which this version does not know; restore with the version that made it")]
    NewerTable {
        /// The table's name.
        table: String,
    },
    /// It cannot be read.
    #[error("it cannot be read: {0}")]
    Io(#[source] io::Error),
}

/// Rows of one table.
#[derive(Debug)]
pub struct Item {
    /// The table.
    pub table: Table,
    /// Keys and values.
    pub rows: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Reads one backup.
pub struct BackupReader<R> {
    from: R,
    digest: digest::Context,
    at: u64,
    number: u64,
    rows: u64,
    head: Head,
    ended: bool,
}

impl<R: Read> BackupReader<R> {
    /// Reads as far as the head.
    ///
    /// # Errors
    /// See [`BackupError`].
    pub fn new(from: R) -> Result<Self, BackupError> {
        let digest = digest::Context::new(&SHA256);
        let head = Head::default();
        let mut reader = Self { from, digest, at: 0, number: 0, rows: 0, head, ended: false };
        let magic = reader.take(MAGIC.len(), 0)?;
        if magic != MAGIC {
            return Err(BackupError::NotABackup);
        }
        let format = reader.take_u32(0)?;
        if format > FORMAT {
            return Err(BackupError::NewerFormat { found: format, known: FORMAT });
        }
        let (at, kind, payload) = reader.block()?;
        let head = (kind == HEAD).then(|| Head::decode(payload.as_slice()).ok()).flatten();
        reader.head = head.ok_or_else(|| damaged(at, "it does not begin with a head"))?;
        Ok(reader)
    }

    /// What it says of itself.
    pub const fn head(&self) -> &Head {
        &self.head
    }

    /// The next rows; none after the end block, which must be the last thing in the file.
    ///
    /// # Errors
    /// See [`BackupError`].
    pub fn next_rows(&mut self) -> Result<Option<Item>, BackupError> {
        if self.ended {
            return Ok(None);
        }
        let before = self.digest.clone();
        let (at, kind, payload) = self.block()?;
        match kind {
            ROWS => {
                let rows = proto::Rows::decode(payload.as_slice()).map_err(|error| damaged(at, error))?;
                let table = Table::ALL.iter().find(|table| table.name() == rows.table);
                let table = *table.ok_or(BackupError::NewerTable { table: rows.table })?;
                self.rows += rows.rows.len() as u64;
                let rows = rows.rows.into_iter().map(|row| (row.key, row.value)).collect();
                Ok(Some(Item { table, rows }))
            }
            END => {
                let end = proto::End::decode(payload.as_slice()).map_err(|error| damaged(at, error))?;
                if end.rows != self.rows || end.sha256 != before.finish().as_ref() {
                    return Err(damaged(at, "its digest is not that of what comes before"));
                }
                if self.from.read(&mut [0]).map_err(BackupError::Io)? != 0 {
                    return Err(damaged(self.at, "something follows its end"));
                }
                self.ended = true;
                Ok(None)
            }
            other => Err(damaged(at, format!("a block of kind {other}"))),
        }
    }

    fn block(&mut self) -> Result<(u64, u8, Vec<u8>), BackupError> {
        let at = self.at;
        let length = self.take_u32(at)?;
        if length > MOST_BLOCK_BYTES {
            return Err(damaged(at, format!("a block of {length} bytes")));
        }
        let kind = self.take(1, at)?[0];
        let payload = self.take(length as usize, at)?;
        let crc = self.take_u32(at)?;
        if crc != checksum(self.number, kind, &payload) {
            return Err(damaged(at, format!("the checksum of block {} is wrong", self.number)));
        }
        self.number += 1;
        Ok((at, kind, payload))
    }

    fn take_u32(&mut self, block: u64) -> Result<u32, BackupError> {
        let bytes = self.take(4, block)?;
        Ok(u32::from_le_bytes(bytes.try_into().expect("four were taken")))
    }

    /// Exactly `length` bytes of the block that begins at `block`.
    fn take(&mut self, length: usize, block: u64) -> Result<Vec<u8>, BackupError> {
        let mut bytes = vec![0; length];
        match self.from.read_exact(&mut bytes) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(BackupError::Short { at: block }),
            Err(error) => return Err(BackupError::Io(error)),
        }
        self.digest.update(&bytes);
        self.at += length as u64;
        Ok(bytes)
    }
}

fn damaged(at: u64, what: impl ToString) -> BackupError {
    BackupError::Damaged { at, what: what.to_string() }
}
