//! The journal ring: where groups of records go, and how replay finds them again.
//!
//! Positions count bytes forever (`lsn`); a group stands at `lsn` modulo the ring's size, starts on a block, and never
//! wraps: one that does not fit before the end starts the next lap. At most one group is being written, so after a crash
//! only the last one can be torn, and a sound group with a higher sequence behind a bad one proves corruption.
//!
//! A group is a header of 128 bytes, the records, zeros up to a whole block. Header, little-endian: magic 8, header crc
//! u32 (of the 128 bytes with this field zero), payload crc u32, device uuid 16, generation u64, incarnation u64,
//! sequence u64, own lsn u64, payload bytes u32, records u32, number of the first record u64, zeros.

use bytes::Bytes;
use pflex_proto::{
    codec::{CodecError, Reader, Wire},
    ids::{DeviceUuid, Incarnation},
};

use super::{error::OpenError, superblock::Geometry};
use crate::device::{self, ALIGNMENT, AlignedBuffer, Device};

/// "pflexJNL".
const MAGIC: [u8; 8] = *b"pflexJNL";
/// Bytes of a group's header.
pub(super) const HEADER_BYTES: usize = 128;
const CRC_AT: usize = 8;
/// The largest group: bounds both the latency of one durable write and what the end of a lap may waste.
pub(super) const MAX_GROUP_BYTES: usize = 4 << 20;

/// A place in the journal: the next group has this sequence and stands here, or at the start of the next lap.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Position {
    pub(super) lsn: u64,
    pub(super) sequence: u64,
}

impl Position {
    /// Of an empty journal.
    pub(super) const START: Self = Self { lsn: 0, sequence: 1 };
}

/// Which device's journal, in which life: goes into every header.
#[derive(Clone, Copy, Debug)]
pub(super) struct Identity {
    pub(super) uuid: DeviceUuid,
    pub(super) generation: u64,
    pub(super) incarnation: Incarnation,
}

/// Space accounting. Everything between tail and head is needed; `reserved` is promised to admitted changes.
#[derive(Debug)]
pub(super) struct Ring {
    offset: u64,
    bytes: u64,
    pub(super) head: Position,
    pub(super) tail: Position,
    reserved: u64,
}

impl Ring {
    pub(super) const fn new(geometry: &Geometry, tail: Position, head: Position) -> Self {
        Self { offset: geometry.journal_offset(), bytes: geometry.journal_bytes, head, tail, reserved: 0 }
    }

    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) const fn used(&self) -> u64 {
        self.head.lsn - self.tail.lsn
    }

    /// Promises room for a change unless less than `keep` would stay free for others (S24).
    pub(super) const fn reserve(&mut self, bytes: u64, keep: u64) -> bool {
        // One largest group may be lost to the end of the lap.
        if self.used() + self.reserved + bytes + keep + MAX_GROUP_BYTES as u64 > self.bytes {
            return false;
        }
        self.reserved += bytes;
        true
    }

    /// Takes back a promise that turned out too large.
    pub(super) const fn unreserve(&mut self, bytes: u64) {
        self.reserved -= bytes;
    }

    /// What a change of this encoded size takes at most: alone in a group.
    pub(super) const fn cost(record_bytes: usize) -> u64 {
        (HEADER_BYTES + record_bytes).next_multiple_of(ALIGNMENT) as u64
    }

    /// Turns promises into a place: the group's position and its device offset; moves the head behind it.
    pub(super) fn place(&mut self, group_bytes: u64, promised: u64) -> (Position, u64) {
        let at = Position { lsn: start_of(self.head.lsn, group_bytes, self.bytes), sequence: self.head.sequence };
        self.reserved -= promised;
        self.head = Position { lsn: at.lsn + group_bytes, sequence: at.sequence + 1 };
        debug_assert!(self.used() <= self.bytes, "the head never laps the tail");
        (at, self.offset + at.lsn % self.bytes)
    }
}

const fn start_of(lsn: u64, group_bytes: u64, ring_bytes: u64) -> u64 {
    if lsn % ring_bytes + group_bytes > ring_bytes { lsn.next_multiple_of(ring_bytes) } else { lsn }
}

/// Fills in the header at the front of a group whose records stand behind it.
pub(super) fn seal(buffer: &mut AlignedBuffer, identity: &Identity, at: Position, records: u32, first_record: u64) {
    let payload_bytes = buffer.len() - HEADER_BYTES;
    let payload_crc = crc32c::crc32c(&buffer.as_slice()[HEADER_BYTES..]);
    buffer.pad();
    let header = Header {
        payload_crc,
        uuid: identity.uuid,
        generation: identity.generation,
        incarnation: identity.incarnation,
        at,
        payload_bytes: payload_bytes as u32,
        records,
        first_record,
    };
    buffer.as_mut_slice()[..HEADER_BYTES].copy_from_slice(&header.encode());
}

#[derive(Clone, Copy, Debug)]
struct Header {
    payload_crc: u32,
    uuid: DeviceUuid,
    generation: u64,
    incarnation: Incarnation,
    at: Position,
    payload_bytes: u32,
    records: u32,
    first_record: u64,
}

impl Header {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_BYTES);
        out.extend_from_slice(&MAGIC);
        0_u32.encode(&mut out);
        self.payload_crc.encode(&mut out);
        out.extend_from_slice(self.uuid.as_bytes());
        self.generation.encode(&mut out);
        self.incarnation.encode(&mut out);
        self.at.sequence.encode(&mut out);
        self.at.lsn.encode(&mut out);
        self.payload_bytes.encode(&mut out);
        self.records.encode(&mut out);
        self.first_record.encode(&mut out);
        out.resize(HEADER_BYTES, 0);
        let crc = crc32c::crc32c(&out);
        out[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// None unless it is a sound header of this device and generation.
    fn decode(block: &[u8], uuid: DeviceUuid, generation: u64) -> Option<Self> {
        if block[..8] != MAGIC {
            return None;
        }
        let mut copy = block[..HEADER_BYTES].to_vec();
        copy[CRC_AT..CRC_AT + 4].fill(0);
        let (crc, header) = Self::fields(&block[8..HEADER_BYTES]).ok()?;
        (crc == crc32c::crc32c(&copy) && header.uuid == uuid && header.generation == generation).then_some(header)
    }

    fn fields(bytes: &[u8]) -> Result<(u32, Self), CodecError> {
        let mut reader = Reader::new(bytes);
        let crc = reader.get()?;
        let (payload_crc, uuid, generation, incarnation) = (reader.get()?, reader.get()?, reader.get()?, reader.get()?);
        let (sequence, lsn) = (reader.get()?, reader.get()?);
        let (payload_bytes, records, first_record) = (reader.get()?, reader.get()?, reader.get()?);
        let at = Position { lsn, sequence };
        Ok((crc, Self { payload_crc, uuid, generation, incarnation, at, payload_bytes, records, first_record }))
    }
}

/// A group as replay found it.
pub(super) struct Group {
    /// Where it stands.
    pub(super) at: Position,
    /// Its records, encoded.
    pub(super) payload: Bytes,
    pub(super) records: u32,
    pub(super) first_record: u64,
}

/// Reads groups from a position on.
pub(super) struct Replay<'a> {
    device: &'a dyn Device,
    geometry: Geometry,
    uuid: DeviceUuid,
    generation: u64,
    /// Where the next group should be.
    pub(super) next: Position,
}

impl<'a> Replay<'a> {
    pub(super) const fn new(device: &'a dyn Device, geometry: Geometry, identity: &Identity, tail: Position) -> Self {
        Self { device, geometry, uuid: identity.uuid, generation: identity.generation, next: tail }
    }

    /// The next group; none at the journal's end.
    pub(super) fn next_group(&mut self) -> Result<Option<Group>, OpenError> {
        let ring = self.geometry.journal_bytes;
        for lsn in [self.next.lsn, self.next.lsn.next_multiple_of(ring)] {
            let at = Position { lsn, sequence: self.next.sequence };
            if let Some(group) = self.group_at(at)? {
                let bytes = (HEADER_BYTES + group.payload.len()).next_multiple_of(ALIGNMENT) as u64;
                self.next = Position { lsn: lsn + bytes, sequence: at.sequence + 1 };
                return Ok(Some(group));
            }
        }
        self.check_end()?;
        Ok(None)
    }

    fn group_at(&self, at: Position) -> Result<Option<Group>, OpenError> {
        let inside = at.lsn % self.geometry.journal_bytes;
        let offset = self.geometry.journal_offset() + inside;
        let block = device::read_now(self.device, offset, HEADER_BYTES)?;
        let Some(header) = Header::decode(&block, self.uuid, self.generation) else { return Ok(None) };
        let end = inside + HEADER_BYTES as u64 + u64::from(header.payload_bytes);
        if header.at != at || end > self.geometry.journal_bytes {
            return Ok(None);
        }
        let payload = device::read_now(self.device, offset + HEADER_BYTES as u64, header.payload_bytes as usize)?;
        if crc32c::crc32c(&payload) != header.payload_crc {
            return Ok(None);
        }
        let (records, first_record) = (header.records, header.first_record);
        Ok(Some(Group { at, payload: payload.freeze(), records, first_record }))
    }

    /// A torn last group is the normal end. A later group behind it is not: something that was acknowledged is gone,
    /// and the device must say so rather than come up without it.
    fn check_end(&self) -> Result<(), OpenError> {
        const SCAN_BYTES: u64 = 1 << 20;
        let start = self.geometry.journal_offset();
        for offset in (start..start + self.geometry.journal_bytes).step_by(SCAN_BYTES as usize) {
            let bytes = device::read_now(self.device, offset, SCAN_BYTES as usize)?;
            for block in bytes.chunks_exact(ALIGNMENT) {
                if Header::decode(block, self.uuid, self.generation)
                    .is_some_and(|header| header.at.sequence > self.next.sequence)
                {
                    let offset = start + self.next.lsn % self.geometry.journal_bytes;
                    return Err(OpenError::JournalCorrupt { sequence: self.next.sequence, offset });
                }
            }
        }
        Ok(())
    }
}

const _: () = assert!(8 + 4 + 4 + 16 + 8 + 8 + 8 + 8 + 4 + 4 + 8 <= HEADER_BYTES, "the header's fields fit");
const _: () = assert!(super::superblock::MIN_JOURNAL >= 4 * MAX_GROUP_BYTES as u64, "a ring holds several groups");
