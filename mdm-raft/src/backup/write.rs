//! Writing a backup: rows in, blocks out, a digest over everything at the end.

use std::io::{self, Write};

use prost::Message as _;
use ring::digest::{self, SHA256};

use super::{END, FORMAT, HEAD, Head, MAGIC, ROWS, checksum, proto};
use crate::state::Table;

/// Rows of one block. Small enough to be sent as one message.
const BLOCK_BYTES: usize = 256 << 10;

/// Writes one backup.
pub struct BackupWriter<W> {
    to: W,
    digest: digest::Context,
    number: u64,
    rows: u64,
    table: Option<Table>,
    block: Vec<proto::Row>,
    bytes: usize,
}

impl<W: Write> BackupWriter<W> {
    /// Begins a backup.
    ///
    /// # Errors
    /// The writer's.
    pub fn new(to: W, head: &Head) -> io::Result<Self> {
        let digest = digest::Context::new(&SHA256);
        let mut writer = Self { to, digest, number: 0, rows: 0, table: None, block: Vec::new(), bytes: 0 };
        writer.put(MAGIC)?;
        writer.put(&FORMAT.to_le_bytes())?;
        writer.write_block(HEAD, &head.encode_to_vec())?;
        Ok(writer)
    }

    /// Adds a row; rows of one table follow one another.
    ///
    /// # Errors
    /// The writer's.
    pub fn row(&mut self, table: Table, key: &[u8], value: &[u8]) -> io::Result<()> {
        if self.table != Some(table) || self.bytes >= BLOCK_BYTES {
            self.flush_rows()?;
            self.table = Some(table);
        }
        self.bytes += key.len() + value.len();
        self.rows += 1;
        self.block.push(proto::Row { key: key.to_vec(), value: value.to_vec() });
        Ok(())
    }

    /// Ends the backup; returns how many rows it has.
    ///
    /// # Errors
    /// The writer's.
    pub fn finish(mut self) -> io::Result<u64> {
        self.flush_rows()?;
        let sha256 = self.digest.clone().finish().as_ref().to_vec();
        self.write_block(END, &proto::End { rows: self.rows, sha256 }.encode_to_vec())?;
        self.to.flush()?;
        Ok(self.rows)
    }

    fn flush_rows(&mut self) -> io::Result<()> {
        let Some(table) = self.table.take() else { return Ok(()) };
        self.bytes = 0;
        let rows = proto::Rows { table: table.name().to_owned(), rows: std::mem::take(&mut self.block) };
        self.write_block(ROWS, &rows.encode_to_vec())
    }

    fn write_block(&mut self, kind: u8, payload: &[u8]) -> io::Result<()> {
        let length = u32::try_from(payload.len()).map_err(|_| io::Error::other("a row larger than 4 GiB"))?;
        let crc = checksum(self.number, kind, payload);
        self.number += 1;
        let block = [&length.to_le_bytes(), &[kind][..], payload, &crc.to_le_bytes()].concat();
        self.put(&block)
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.digest.update(bytes);
        self.to.write_all(bytes)
    }
}
