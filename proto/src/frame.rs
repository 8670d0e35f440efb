//! The envelope of everything on the data plane: a fixed header, a small body, a raw payload.
//!
//! ```text
//!  0 magic        u32  "PFX1"
//!  4 version      u8   1
//!  5 kind         u8   FrameKind
//!  6 flags        u16  0; a receiver refuses what it does not know
//!  8 body_len     u32  bytes of the encoded message
//! 12 payload_len  u32  raw bytes after the body
//! 16 request_id   u64  a reply bears its request's; 0 where there is no reply
//! 24 body_crc     u32  CRC32C of the body
//! 28 header_crc   u32  CRC32C of bytes 0..28
//! ```
//!
//! The payload is covered by the block checksums that the body carries, so it is summed once and not again for the
//! envelope. A frame that fails any check ends its connection: after it nothing in the stream can be trusted.

use crate::codec::{CodecError, Wire};

/// Bytes of a header.
pub const HEADER_SIZE: usize = 32;
/// Body limit: the version list of a full placement group fits, nothing absurd does.
pub const MAX_BODY: u32 = 4 << 20;
/// Payload limit: one chunk.
pub const MAX_PAYLOAD: u32 = 1 << 20;
/// The version this code writes; it reads this one only, there is no older.
pub const FRAME_VERSION: u8 = 1;
const MAGIC: [u8; 4] = *b"PFX1";

/// What a frame's body is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum FrameKind {
    /// `data::Hello`, the first frame of every connection.
    Hello = 1,
    /// `data::HelloReply`.
    HelloReply = 2,
    /// `data::OpenSession`.
    OpenSession = 3,
    /// `data::SessionOpened`.
    SessionOpened = 4,
    /// `data::ReadRequest`.
    Read = 5,
    /// `data::ReadReply`, payload the data.
    ReadReply = 6,
    /// `data::WriteRequest`, payload the data.
    Write = 7,
    /// `data::WriteReply`.
    WriteReply = 8,
    /// `data::FlushRequest`.
    Flush = 9,
    /// `data::FlushReply`.
    FlushReply = 10,
    /// `data::Refusal`, the other answer to any request.
    Refusal = 11,
    /// `data::AllocationRequest`.
    Allocation = 12,
    /// `data::AllocationReply`.
    AllocationReply = 13,
    /// `data::WithToken` of a `ReadRequest`.
    ReadWithToken = 14,
    /// `data::WithToken` of a `WriteRequest`, payload the data.
    WriteWithToken = 15,
    /// `data::WithToken` of an `AllocationRequest`.
    AllocationWithToken = 16,
    /// A message between two copies of a placement group; the SDS defines it.
    Replication = 32,
    /// A lease request or grant between two SDSs; the SDS defines it.
    Lease = 33,
}

impl FrameKind {
    const fn from_u8(value: u8) -> Option<Self> {
        Some(match value {
            1 => Self::Hello,
            2 => Self::HelloReply,
            3 => Self::OpenSession,
            4 => Self::SessionOpened,
            5 => Self::Read,
            6 => Self::ReadReply,
            7 => Self::Write,
            8 => Self::WriteReply,
            9 => Self::Flush,
            10 => Self::FlushReply,
            11 => Self::Refusal,
            12 => Self::Allocation,
            13 => Self::AllocationReply,
            14 => Self::ReadWithToken,
            15 => Self::WriteWithToken,
            16 => Self::AllocationWithToken,
            32 => Self::Replication,
            33 => Self::Lease,
            _ => return None,
        })
    }
}

/// Why a frame cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Not our protocol.
    #[error("not a pflex data-plane frame (magic {found:02x?})")]
    BadMagic {
        /// The first four bytes.
        found: [u8; 4],
    },
    /// Damaged, or of another sender.
    #[error("{part} checksum is {found:08x}, computed {computed:08x}")]
    BadChecksum {
        /// "header" or "body".
        part: &'static str,
        /// As sent.
        found: u32,
        /// As computed here.
        computed: u32,
    },
    /// A peer of another release.
    #[error("frame version {found}, this side speaks {FRAME_VERSION}")]
    BadVersion {
        /// As sent.
        found: u8,
    },
    /// A kind or flag this side does not know.
    #[error("unknown frame kind {kind} or flags {flags:#x}")]
    Unknown {
        /// The kind byte.
        kind: u8,
        /// The flags.
        flags: u16,
    },
    /// Longer than any honest frame.
    #[error("a {part} of {length} bytes, at most {limit} are allowed")]
    TooLarge {
        /// "body" or "payload".
        part: &'static str,
        /// What the header claims.
        length: u32,
        /// The bound.
        limit: u32,
    },
    /// The body does not decode.
    #[error("malformed {kind:?} body")]
    BadBody {
        /// The frame's kind.
        kind: FrameKind,
        /// What is wrong with it.
        #[source]
        source: CodecError,
    },
}

/// A validated header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameHeader {
    /// What the body is.
    pub kind: FrameKind,
    /// Bytes of the body.
    pub body_len: u32,
    /// Bytes of the payload.
    pub payload_len: u32,
    /// Pairs replies with requests.
    pub request_id: u64,
    body_crc: u32,
}

impl FrameHeader {
    /// Parses and checks a header.
    ///
    /// # Errors
    /// See [`FrameError`]; the connection cannot go on.
    pub fn parse(bytes: &[u8; HEADER_SIZE]) -> Result<Self, FrameError> {
        let magic = four(bytes, 0);
        if magic != MAGIC {
            return Err(FrameError::BadMagic { found: magic });
        }
        let found = u32::from_le_bytes(four(bytes, 28));
        let computed = crc32c::crc32c(&bytes[..28]);
        if found != computed {
            return Err(FrameError::BadChecksum { part: "header", found, computed });
        }
        if bytes[4] != FRAME_VERSION {
            return Err(FrameError::BadVersion { found: bytes[4] });
        }
        let flags = u16::from_le_bytes([bytes[6], bytes[7]]);
        let kind = FrameKind::from_u8(bytes[5]).filter(|_| flags == 0);
        let kind = kind.ok_or(FrameError::Unknown { kind: bytes[5], flags })?;
        let body_len = u32::from_le_bytes(four(bytes, 8));
        let payload_len = u32::from_le_bytes(four(bytes, 12));
        for (part, length, limit) in [("body", body_len, MAX_BODY), ("payload", payload_len, MAX_PAYLOAD)] {
            if length > limit {
                return Err(FrameError::TooLarge { part, length, limit });
            }
        }
        let request_id = u64::from_le_bytes(bytes[16..24].try_into().expect("eight bytes"));
        Ok(Self { kind, body_len, payload_len, request_id, body_crc: u32::from_le_bytes(four(bytes, 24)) })
    }

    /// Bytes that follow the header.
    pub const fn rest_len(&self) -> usize {
        self.body_len as usize + self.payload_len as usize
    }

    /// Checks the body's checksum.
    ///
    /// # Errors
    /// [`FrameError::BadChecksum`].
    pub fn check_body(&self, body: &[u8]) -> Result<(), FrameError> {
        let computed = crc32c::crc32c(body);
        if computed != self.body_crc {
            return Err(FrameError::BadChecksum { part: "body", found: self.body_crc, computed });
        }
        Ok(())
    }

    /// Checks and decodes the body.
    ///
    /// # Errors
    /// [`FrameError::BadChecksum`] or [`FrameError::BadBody`].
    pub fn decode<T: Wire>(&self, body: &[u8]) -> Result<T, FrameError> {
        self.check_body(body)?;
        T::from_bytes(body).map_err(|source| FrameError::BadBody { kind: self.kind, source })
    }
}

fn four(bytes: &[u8; HEADER_SIZE], at: usize) -> [u8; 4] {
    bytes[at..at + 4].try_into().expect("four bytes")
}

/// Appends header and body to `out`; the caller sends `payload_len` raw bytes right after.
///
/// # Panics
/// When body or payload exceed their limits, which is a bug of the caller.
pub fn encode_frame(kind: FrameKind, request_id: u64, message: &impl Wire, payload_len: u32, out: &mut Vec<u8>) {
    encode_frame_with(kind, request_id, payload_len, out, |_, body| message.encode(body));
}

/// Like [`encode_frame`] with the body written by `write_body`, which is shown the header's first 24 bytes (a MAC
/// covers them; see `token::SessionKey`) with the body length still zero, and the buffer to append to.
///
/// # Panics
/// As [`encode_frame`].
pub fn encode_frame_with(
    kind: FrameKind,
    request_id: u64,
    payload_len: u32,
    out: &mut Vec<u8>,
    write_body: impl FnOnce(&[u8; MAC_HEADER_SIZE], &mut Vec<u8>),
) {
    assert!(payload_len <= MAX_PAYLOAD, "a payload is one chunk at most");
    let start = out.len();
    let mut header = [0_u8; HEADER_SIZE];
    header[..4].copy_from_slice(&MAGIC);
    header[4] = FRAME_VERSION;
    header[5] = kind as u8;
    header[12..16].copy_from_slice(&payload_len.to_le_bytes());
    header[16..24].copy_from_slice(&request_id.to_le_bytes());
    out.extend_from_slice(&header);
    write_body(&header[..MAC_HEADER_SIZE].try_into().expect("24 of 32 bytes"), out);
    let body = start + HEADER_SIZE;
    let body_len = u32::try_from(out.len() - body).expect("bodies are far below 4 GiB");
    assert!(body_len <= MAX_BODY, "a body of {body_len} bytes");
    header[8..12].copy_from_slice(&body_len.to_le_bytes());
    header[24..28].copy_from_slice(&crc32c::crc32c(&out[body..]).to_le_bytes());
    let header_crc = crc32c::crc32c(&header[..28]);
    header[28..].copy_from_slice(&header_crc.to_le_bytes());
    out[start..body].copy_from_slice(&header);
}

/// The part of a header that a request's MAC covers.
pub const MAC_HEADER_SIZE: usize = 24;

/// The first 24 bytes of a received header as its MAC was made over them: with the body length zero, because the
/// sender made the MAC before the body was complete (the MAC's own length check covers it).
pub fn mac_header(header: &[u8; HEADER_SIZE]) -> [u8; MAC_HEADER_SIZE] {
    let mut part: [u8; MAC_HEADER_SIZE] = header[..MAC_HEADER_SIZE].try_into().expect("24 of 32 bytes");
    part[8..12].fill(0);
    part
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame() -> Vec<u8> {
        let mut out = Vec::new();
        encode_frame(FrameKind::Read, 7, &42_u64, 5, &mut out);
        out
    }

    fn header_of(bytes: &[u8]) -> [u8; HEADER_SIZE] {
        bytes[..HEADER_SIZE].try_into().unwrap()
    }

    #[test]
    fn a_frame_is_read_as_written() {
        let bytes = frame();
        let header = FrameHeader::parse(&header_of(&bytes)).unwrap();
        assert_eq!((header.kind, header.request_id, header.payload_len, header.body_len), (FrameKind::Read, 7, 5, 8));
        assert_eq!(header.decode::<u64>(&bytes[HEADER_SIZE..]), Ok(42));
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let bytes = frame();
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let read = FrameHeader::parse(&header_of(&bad)).and_then(|h| h.decode::<u64>(&bad[HEADER_SIZE..]));
            assert!(read.is_err(), "bit {bit}");
        }
    }

    proptest! {
        #[test]
        fn garbage_is_an_error(bytes: [u8; HEADER_SIZE]) {
            prop_assert!(FrameHeader::parse(&bytes).is_err());
        }
    }
}
