//! Keys: fixed-width big-endian integers, one after the other.

use super::RowError;

/// Integers of a key, most significant byte first.
#[derive(Default)]
pub(super) struct KeyWriter(Vec<u8>);

impl KeyWriter {
    pub(super) fn u32(mut self, part: u32) -> Self {
        self.0.extend(part.to_be_bytes());
        self
    }

    pub(super) fn u64(mut self, part: u64) -> Self {
        self.0.extend(part.to_be_bytes());
        self
    }

    pub(super) fn done(self) -> Vec<u8> {
        self.0
    }
}

/// Reads a key back and insists that it ends where it should.
pub(super) struct KeyReader<'a> {
    key: &'a [u8],
    rest: &'a [u8],
}

impl<'a> KeyReader<'a> {
    pub(super) fn new(key: &'a [u8]) -> Self {
        Self { key, rest: key }
    }

    pub(super) fn u32(&mut self) -> Result<u32, RowError> {
        self.take().map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, RowError> {
        self.take().map(u64::from_be_bytes)
    }

    pub(super) fn end(self) -> Result<(), RowError> {
        if self.rest.is_empty() { Ok(()) } else { Err(RowError::Key { key: self.key.to_vec() }) }
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], RowError> {
        let (part, rest) = self.rest.split_first_chunk().ok_or_else(|| RowError::Key { key: self.key.to_vec() })?;
        self.rest = rest;
        Ok(*part)
    }
}

/// The whole key as one 32-bit id.
pub(super) fn one_u32(key: &[u8]) -> Result<u32, RowError> {
    let mut reader = KeyReader::new(key);
    let id = reader.u32()?;
    reader.end()?;
    Ok(id)
}

/// The whole key as one 64-bit id.
pub(super) fn one_u64(key: &[u8]) -> Result<u64, RowError> {
    let mut reader = KeyReader::new(key);
    let id = reader.u64()?;
    reader.end()?;
    Ok(id)
}

/// The whole key as two ids.
pub(super) fn two_u32(key: &[u8]) -> Result<(u32, u32), RowError> {
    let mut reader = KeyReader::new(key);
    let ids = (reader.u32()?, reader.u32()?);
    reader.end()?;
    Ok(ids)
}
