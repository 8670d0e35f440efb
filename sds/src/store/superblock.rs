//! The superblock: which device this is, of which cluster, how it is divided, and how often it was opened.
//!
//! Two copies, at the start of the front part and at the start of the data part. Both are rewritten, one synced after
//! the other, whenever it changes; the sound one with the higher sequence counts, so a torn write loses nothing.
//!
//! A copy is 4,096 bytes, little-endian, the first 512 of which are used:
//! magic 8, format u32, crc u32 (CRC32C of all 4,096 with this field zero), own address u64, sequence u64, cluster 16,
//! device uuid 16, device id u32, sds id u32, generation u64, incarnation u64, journal bytes u64, units u32, flags u32.

use pflex_proto::{
    codec::{CodecError, Reader, Wire},
    geometry::CHUNK_SIZE,
    ids::{ClusterId, DeviceId, DeviceUuid, Incarnation, SdsId},
};

use super::error::OpenError;
use crate::device::{self, ALIGNMENT, AlignedBuffer, Device, Op};

/// "pflexSDS".
const MAGIC: [u8; 8] = *b"pflexSDS";
/// The format this release writes; it reads up to it.
pub(super) const FORMAT: u32 = 1;
const CRC_AT: usize = 12;
const UNIT: u64 = CHUNK_SIZE as u64;
/// The smallest journal: a few of the largest groups.
pub(super) const MIN_JOURNAL: u64 = 24 << 20;

/// How a device is divided: `[copy 0 | journal ring] [copy 1 | unit 0 | unit 1 ...]`, each `[]` starting with 1 MiB of
/// which the copy takes the first block. The first `[]` may be a file of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    /// Bytes of the ring.
    pub journal_bytes: u64,
    /// 1 MiB units of data.
    pub units: u32,
}

impl Geometry {
    /// The journal of a device of `total` bytes unless the operator says otherwise: a 64th, 64 MiB to 1 GiB.
    ///
    /// It holds back up to half of itself before blocks go to their places (`checkpoint`), so a larger one meets more
    /// blocks of one chunk at a time and absorbs longer bursts. As much may be in memory, which is what bounds it; a
    /// start reads all of it.
    pub const fn usual_journal(total: u64) -> u64 {
        const LEAST: u64 = 64 << 20;
        const MOST: u64 = 1 << 30;
        let share = total / 64;
        if share < LEAST {
            LEAST
        } else if share > MOST {
            MOST
        } else {
            share
        }
    }

    /// For a device of `total` bytes.
    ///
    /// # Errors
    /// If that is too small for the journal and one unit.
    pub fn divide(total: u64, journal_bytes: u64) -> Result<Self, OpenError> {
        let journal_bytes = journal_bytes.next_multiple_of(UNIT).max(MIN_JOURNAL);
        let front = 2 * UNIT + journal_bytes;
        let needed = front + UNIT;
        if total < needed {
            return Err(OpenError::TooSmall { bytes: total, needed });
        }
        let units = u32::try_from((total - front) / UNIT).unwrap_or(u32::MAX - 1);
        Ok(Self { journal_bytes, units })
    }

    /// Where the ring starts.
    pub const fn journal_offset(&self) -> u64 {
        UNIT
    }

    /// Where the second part, with copy 1, starts.
    pub const fn front_bytes(&self) -> u64 {
        UNIT + self.journal_bytes
    }

    /// Where a unit starts.
    pub const fn unit_offset(&self, unit: u32) -> u64 {
        self.front_bytes() + UNIT + unit as u64 * UNIT
    }

    /// What the device must have at least.
    pub const fn total_bytes(&self) -> u64 {
        self.unit_offset(self.units)
    }
}

/// See the module.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Superblock {
    /// Rises with every rewrite.
    pub sequence: u64,
    /// The cluster it belongs to.
    pub cluster: ClusterId,
    /// This device as formatted.
    pub uuid: DeviceUuid,
    /// 0 until the MDM assigned one.
    pub device: DeviceId,
    /// The server it was formatted for.
    pub sds: SdsId,
    /// Shared with `sds_local.db` (S13).
    pub generation: u64,
    /// Raised at each open (S2).
    pub incarnation: Incarnation,
    /// How it is divided.
    pub geometry: Geometry,
    /// It lost what it held (S13) and the MDM has not been told yet. Kept until it has: a crash in between must not
    /// make the device look as if it still held what its membership promises.
    pub emptied: bool,
}

/// In `flags`: see [`Superblock::emptied`].
const EMPTIED: u32 = 1;

impl Superblock {
    fn addresses(geometry: &Geometry) -> [u64; 2] {
        [0, geometry.front_bytes()]
    }

    fn encode(&self, address: u64) -> AlignedBuffer {
        let mut out = Vec::with_capacity(ALIGNMENT);
        out.extend_from_slice(&MAGIC);
        FORMAT.encode(&mut out);
        0_u32.encode(&mut out);
        address.encode(&mut out);
        self.sequence.encode(&mut out);
        out.extend_from_slice(self.cluster.as_bytes());
        out.extend_from_slice(self.uuid.as_bytes());
        self.device.encode(&mut out);
        self.sds.encode(&mut out);
        self.generation.encode(&mut out);
        self.incarnation.encode(&mut out);
        self.geometry.journal_bytes.encode(&mut out);
        self.geometry.units.encode(&mut out);
        (if self.emptied { EMPTIED } else { 0 }).encode(&mut out);
        debug_assert_eq!(out.len(), ENCODED_BYTES);
        let mut buffer = AlignedBuffer::padded(&out);
        let crc = crc32c::crc32c(buffer.as_slice());
        buffer.as_mut_slice()[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
        buffer
    }

    fn decode(block: &[u8], address: u64) -> Result<Self, OpenError> {
        if block[..MAGIC.len()] != MAGIC {
            return Err(OpenError::NotFormatted);
        }
        let mut copy = block.to_vec();
        copy[CRC_AT..CRC_AT + 4].fill(0);
        let fields = |error: CodecError| OpenError::Damaged { reason: error.to_string() };
        let mut reader = Reader::new(&block[MAGIC.len()..]);
        let (format, crc): (u32, u32) = (reader.get().map_err(fields)?, reader.get().map_err(fields)?);
        if crc != crc32c::crc32c(&copy) {
            return Err(OpenError::Damaged { reason: format!("the copy at {address} has a wrong checksum") });
        }
        if format > FORMAT {
            return Err(OpenError::NewerFormat { found: format, known: FORMAT });
        }
        let (superblock, own) = Self::decode_fields(&mut reader).map_err(fields)?;
        if own != address {
            return Err(OpenError::Misplaced { at: address, own });
        }
        Ok(superblock)
    }

    fn decode_fields(reader: &mut Reader<'_>) -> Result<(Self, u64), CodecError> {
        let own = reader.get()?;
        let mut superblock = Self {
            sequence: reader.get()?,
            cluster: reader.get()?,
            uuid: reader.get()?,
            device: reader.get()?,
            sds: reader.get()?,
            generation: reader.get()?,
            incarnation: reader.get()?,
            geometry: Geometry { journal_bytes: reader.get()?, units: reader.get()? },
            emptied: false,
        };
        superblock.emptied = reader.get::<u32>()? & EMPTIED != 0;
        Ok((superblock, own))
    }

    /// Reads both copies and returns the one that counts. Where copy 1 stands, the files say if there are two, else
    /// copy 0.
    pub(super) fn read(device: &dyn Device) -> Result<Self, OpenError> {
        let (capacity, front_bytes) = (device.capacity(), device.split());
        if capacity < 2 * UNIT {
            return Err(OpenError::TooSmall { bytes: capacity, needed: 2 * UNIT });
        }
        let first = Self::decode(&device::read_now(device, 0, ALIGNMENT)?, 0);
        let second_at = match (&first, front_bytes) {
            (_, Some(front)) => Some(front),
            (Ok(superblock), None) => Some(superblock.geometry.front_bytes()),
            // Copy 0 is gone and nothing says where copy 1 is: look at each unit boundary, as journals are whole MiB.
            (Err(OpenError::Damaged { .. }), None) => Self::find_second(device)?,
            (Err(_), None) => None,
        };
        let second = match second_at {
            Some(at) if at + ALIGNMENT as u64 <= capacity => {
                Self::decode(&device::read_now(device, at, ALIGNMENT)?, at)
            }
            _ => Err(OpenError::NotFormatted),
        };
        match (first, second) {
            (Ok(a), Ok(b)) if a.uuid != b.uuid => {
                Err(OpenError::Damaged { reason: format!("the copies are of devices {} and {}", a.uuid, b.uuid) })
            }
            (Ok(a), Ok(b)) => Ok(if b.sequence > a.sequence { b } else { a }),
            (Err(newer @ OpenError::NewerFormat { .. }), _) | (_, Err(newer @ OpenError::NewerFormat { .. })) => {
                Err(newer)
            }
            // A blank or misplaced copy is not a torn one: with two files it means that one of them is not this device's.
            (Ok(_), Err(OpenError::NotFormatted | OpenError::Misplaced { .. }))
            | (Err(OpenError::NotFormatted | OpenError::Misplaced { .. }), Ok(_))
                if front_bytes.is_some() =>
            {
                Err(OpenError::Damaged { reason: "journal and data file do not belong together".into() })
            }
            (Ok(sound), Err(_)) | (Err(_), Ok(sound)) => Ok(sound),
            (Err(error), Err(_)) => Err(error),
        }
    }

    fn find_second(device: &dyn Device) -> Result<Option<u64>, OpenError> {
        const MAX_JOURNAL_UNITS: u64 = 4096;
        for unit in 1..(device.capacity() / UNIT).min(MAX_JOURNAL_UNITS) {
            let block = device::read_now(device, unit * UNIT, ALIGNMENT)?;
            if Self::decode(&block, unit * UNIT).is_ok() {
                return Ok(Some(unit * UNIT));
            }
        }
        Ok(None)
    }

    /// Writes both copies, each durable before the other is touched.
    pub(super) fn write(&self, device: &dyn Device) -> Result<(), OpenError> {
        for address in Self::addresses(&self.geometry) {
            device::run(device, Op::WriteDurable { offset: address, data: self.encode(address) })?;
        }
        Ok(())
    }
}

const ENCODED_BYTES: usize = 8 + 4 + 4 + 8 + 8 + 16 + 16 + 4 + 4 + 8 + 8 + 8 + 4 + 4;
const _: () = assert!(ENCODED_BYTES == 104 && ENCODED_BYTES <= 512, "the first sector holds everything");
