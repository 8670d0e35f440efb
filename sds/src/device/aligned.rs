//! A byte buffer whose first byte lies on a 4 KiB boundary, as direct IO wants it, without `unsafe`: it allocates one
//! alignment more than asked and starts at the first aligned byte.

use std::fmt;

use super::ALIGNMENT;

/// A growable-to-capacity, zero-padded, aligned buffer.
pub struct AlignedBuffer {
    /// Never reallocated after `with_capacity`, so that `start` stays aligned. Memory is not cleared before it is filled.
    storage: Vec<u8>,
    start: usize,
}

impl AlignedBuffer {
    /// Room for `capacity` bytes, rounded up to whole blocks.
    pub fn with_capacity(capacity: usize) -> Self {
        let mut storage: Vec<u8> = Vec::with_capacity(capacity.next_multiple_of(ALIGNMENT) + ALIGNMENT);
        let start = storage.as_ptr().align_offset(ALIGNMENT);
        assert!(start < ALIGNMENT, "bytes can always be aligned");
        storage.resize(start, 0);
        Self { storage, start }
    }

    /// A copy of `bytes`, padded with zeros to whole blocks.
    pub fn padded(bytes: &[u8]) -> Self {
        let mut buffer = Self::with_capacity(bytes.len());
        buffer.extend(bytes);
        buffer.pad();
        buffer
    }

    /// Appends.
    ///
    /// # Panics
    /// If the capacity is exceeded: the caller summed the sizes before.
    pub fn extend(&mut self, bytes: &[u8]) {
        assert!(
            bytes.len() <= self.storage.capacity() - self.storage.len(),
            "the buffer has room for what was announced"
        );
        self.storage.extend_from_slice(bytes);
    }

    /// Appends zeros up to the next whole block.
    pub fn pad(&mut self) {
        self.storage.resize(self.start + self.len().next_multiple_of(ALIGNMENT), 0);
    }

    /// Bytes in it.
    pub const fn len(&self) -> usize {
        self.storage.len() - self.start
    }

    /// Whether nothing is in it.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.storage[self.start..]
    }

    /// The bytes, to fill in what is known last (checksums).
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.storage[self.start..]
    }
}

impl fmt::Debug for AlignedBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AlignedBuffer({} bytes)", self.len())
    }
}
