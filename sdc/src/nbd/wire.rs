//! The numbers of the protocol, under the document's own names without their `NBD_` prefix. All integers are big-endian.

use crate::block::{ExportInfo, IoError};

/// `NBDMAGIC`: the first 8 bytes a server sends.
pub const INIT_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// `IHAVEOPT`: follows it in newstyle, and opens every option a client sends.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Opens every reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Opens every request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Opens a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Opens each chunk of a structured reply.
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

/// Opens every request once extended headers were agreed on.
pub const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
/// Opens every reply then.
pub const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;

/// Handshake flag of the server and the client flag that answers it.
pub const FLAG_FIXED_NEWSTYLE: u16 = 1 << 0;
/// Likewise: no 124 zeros after EXPORT_NAME.
pub const FLAG_NO_ZEROES: u16 = 1 << 1;

/// Options of the handshake.
pub mod option {
    #![allow(missing_docs, reason = "the document's names")]
    pub const EXPORT_NAME: u32 = 1;
    pub const ABORT: u32 = 2;
    pub const LIST: u32 = 3;
    pub const STARTTLS: u32 = 5;
    pub const INFO: u32 = 6;
    pub const GO: u32 = 7;
    pub const STRUCTURED_REPLY: u32 = 8;
    pub const LIST_META_CONTEXT: u32 = 9;
    pub const SET_META_CONTEXT: u32 = 10;
    pub const EXTENDED_HEADERS: u32 = 11;
}

/// Replies to options; errors have the top bit.
pub mod rep {
    #![allow(missing_docs, reason = "the document's names")]
    pub const ACK: u32 = 1;
    pub const SERVER: u32 = 2;
    pub const INFO: u32 = 3;
    pub const META_CONTEXT: u32 = 4;
    pub const ERR_UNSUP: u32 = 0x8000_0001;
    pub const ERR_POLICY: u32 = 0x8000_0002;
    pub const ERR_INVALID: u32 = 0x8000_0003;
    pub const ERR_TLS_REQD: u32 = 0x8000_0005;
    pub const ERR_UNKNOWN: u32 = 0x8000_0006;
    pub const ERR_SHUTDOWN: u32 = 0x8000_0007;
    pub const ERR_TOO_BIG: u32 = 0x8000_0009;
    pub const ERR_EXT_HEADER_REQD: u32 = 0x8000_000a;
}

/// What INFO and GO can tell of an export.
pub mod info {
    #![allow(missing_docs, reason = "the document's names")]
    pub const EXPORT: u16 = 0;
    pub const NAME: u16 = 1;
    pub const DESCRIPTION: u16 = 2;
    pub const BLOCK_SIZE: u16 = 3;
}

/// Transmission flags: what an export can do.
pub mod transmission {
    #![allow(missing_docs, reason = "the document's names")]
    pub const HAS_FLAGS: u16 = 1 << 0;
    pub const READ_ONLY: u16 = 1 << 1;
    pub const SEND_FLUSH: u16 = 1 << 2;
    pub const SEND_FUA: u16 = 1 << 3;
    pub const SEND_TRIM: u16 = 1 << 5;
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub const SEND_DF: u16 = 1 << 7;
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    pub const SEND_CACHE: u16 = 1 << 10;
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
}

/// Requests of the transmission phase.
pub mod command {
    #![allow(missing_docs, reason = "the document's names")]
    pub const READ: u16 = 0;
    pub const WRITE: u16 = 1;
    pub const DISC: u16 = 2;
    pub const FLUSH: u16 = 3;
    pub const TRIM: u16 = 4;
    pub const CACHE: u16 = 5;
    pub const WRITE_ZEROES: u16 = 6;
    pub const BLOCK_STATUS: u16 = 7;
}

/// Flags of a request.
pub mod command_flag {
    #![allow(missing_docs, reason = "the document's names")]
    pub const FUA: u16 = 1 << 0;
    pub const NO_HOLE: u16 = 1 << 1;
    pub const DF: u16 = 1 << 2;
    pub const REQ_ONE: u16 = 1 << 3;
    pub const FAST_ZERO: u16 = 1 << 4;
    pub const PAYLOAD_LEN: u16 = 1 << 5;
}

/// Types of a chunk of a structured reply, and its flag.
pub mod chunk {
    #![allow(missing_docs, reason = "the document's names")]
    pub const FLAG_DONE: u16 = 1 << 0;
    pub const NONE: u16 = 0;
    pub const OFFSET_DATA: u16 = 1;
    pub const OFFSET_HOLE: u16 = 2;
    pub const BLOCK_STATUS: u16 = 5;
    pub const BLOCK_STATUS_EXT: u16 = 6;
    pub const ERROR: u16 = 0x8001;
}

/// The only metadata context: which parts of an export take space.
pub const BASE_ALLOCATION: &str = "base:allocation";
/// Its id on every connection.
pub const BASE_ALLOCATION_ID: u32 = 1;
/// Status flags of that context.
pub mod state {
    #![allow(missing_docs, reason = "the document's names")]
    pub const HOLE: u32 = 1 << 0;
    pub const ZERO: u32 = 1 << 1;
}

/// What was agreed on for the messages of the transmission phase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// Simple replies only.
    #[default]
    Simple,
    /// Structured replies to READ and BLOCK_STATUS, and for errors.
    Structured,
    /// 32-byte headers in both directions, and nothing but chunks as replies.
    Extended,
}

/// The smallest addressable piece: a byte (docs/nbd.md says why not 512). The primary read-modify-writes what is smaller than a block (S15), so a
/// client need not do it, which two clients of one volume could not do safely.
pub const MINIMUM_BLOCK_SIZE: u32 = 1;
/// The size from which a write needs no read before it: the block of checksums.
pub const PREFERRED_BLOCK_SIZE: u32 = pflex_proto::geometry::BLOCK_SIZE;
/// The largest payload of a read or write: what the document asks every server to accept.
pub const MAXIMUM_PAYLOAD: u32 = 32 << 20;
/// The longest option that is looked at: the longest name (4,096 bytes) with a list of requests, many times over.
pub const MAXIMUM_OPTION_LENGTH: u32 = 64 << 10;
/// The longest option that is skipped and refused; a longer one costs more than a new connection.
pub const MAXIMUM_SKIPPED_OPTION: u32 = 1 << 20;
/// Extents of one reply to BLOCK_STATUS: 256 KiB in the longer form. The document allows 2^20; clients ask again anyway.
pub const MAXIMUM_EXTENTS: usize = 16 << 10;
/// The longest string the document allows.
pub const MAXIMUM_STRING: usize = 4096;

/// Error numbers of replies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ErrorCode {
    /// A change of a read-only export.
    Eperm = 1,
    /// The device failed.
    Eio = 5,
    /// The request is malformed or out of range.
    Einval = 22,
    /// No space, or a write beyond the end.
    Enospc = 28,
    /// A read longer than the maximum payload.
    Eoverflow = 75,
    /// FAST_ZERO that would not be fast.
    Enotsup = 95,
    /// The server is ending.
    Eshutdown = 108,
}

impl ErrorCode {
    /// What it means, for people.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Eperm => "not permitted",
            Self::Eio => "the device failed",
            Self::Einval => "the request is malformed or out of range",
            Self::Enospc => "no space, or beyond the end",
            Self::Eoverflow => "longer than the maximum payload",
            Self::Enotsup => "it would not be fast",
            Self::Eshutdown => "the export or the server is ending",
        }
    }
}

impl From<&IoError> for ErrorCode {
    fn from(error: &IoError) -> Self {
        match error {
            IoError::ReadOnly | IoError::NotAllowed(_) => Self::Eperm,
            IoError::Invalid(_) => Self::Einval,
            IoError::NoSpace => Self::Enospc,
            IoError::NotSupported(_) => Self::Enotsup,
            IoError::ShuttingDown | IoError::Unmapped(_) => Self::Eshutdown,
            IoError::Failed(_) | IoError::LostMemory(_) => Self::Eio,
        }
    }
}

/// The flags of an export. Every connection sees what another one flushed (the cluster is the only cache), hence
/// CAN_MULTI_CONN.
pub fn transmission_flags(info: &ExportInfo, mode: Mode) -> u16 {
    use transmission::{
        CAN_MULTI_CONN, HAS_FLAGS, READ_ONLY, SEND_CACHE, SEND_DF, SEND_FAST_ZERO, SEND_FLUSH, SEND_FUA, SEND_TRIM,
        SEND_WRITE_ZEROES,
    };
    let mut flags = HAS_FLAGS | SEND_FLUSH | SEND_FUA | CAN_MULTI_CONN | SEND_CACHE;
    if info.read_only {
        flags |= READ_ONLY;
    } else {
        flags |= SEND_TRIM | SEND_WRITE_ZEROES | SEND_FAST_ZERO;
    }
    if mode == Mode::Simple { flags } else { flags | SEND_DF }
}

/// What a client may not do; its connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Client flags this server did not offer.
    #[error("client flags {0:#x} were not offered")]
    ClientFlags(u32),
    /// An option without its magic.
    #[error("an option starts with {0:#018x}, not with its magic")]
    OptionMagic(u64),
    /// An option longer than any could be.
    #[error("option {option} has {length} bytes, the limit is {MAXIMUM_SKIPPED_OPTION}")]
    OptionLength {
        /// Which option.
        option: u32,
        /// Its length.
        length: u32,
    },
    /// EXPORT_NAME for what cannot be opened, or after extended headers: the option has no error reply.
    #[error("EXPORT_NAME for an export that cannot be opened, or with extended headers")]
    ExportName,
    /// Bytes behind STARTTLS that came before TLS began: whoever put them there is not the one that the handshake proves.
    #[error("bytes came behind STARTTLS, before TLS")]
    PlaintextBeforeTls,
    /// EXPORT_NAME before STARTTLS where that is required: the option has no error reply.
    #[error("EXPORT_NAME without the TLS that is required")]
    TlsRequired,
    /// A request without its magic: the stream is out of step.
    #[error("a request starts with {0:#010x}, not with its magic")]
    RequestMagic(u32),
    /// A payload larger than any may be.
    #[error("a payload of {0} bytes, the limit is {MAXIMUM_PAYLOAD}")]
    PayloadLength(u64),
    /// The peer closed its side in the middle of a message.
    #[error("the connection ended inside a message")]
    Truncated,
}
