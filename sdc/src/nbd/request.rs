//! Requests of the transmission phase: 28 bytes (32 with extended headers), and the payload of a write.
//!
//! Parsing and checking are one step: what comes out is either a command that fits the export or the error the client
//! gets for it. Only what leaves the stream out of step is a [`Violation`].

use bytes::{Buf, Bytes, BytesMut};
use pflex_proto::ids::{ByteCount, ByteOffset};

use super::handshake::Agreed;
use super::wire::{
    EXTENDED_REQUEST_MAGIC, ErrorCode, MAXIMUM_EXTENTS, MAXIMUM_PAYLOAD, Mode, REQUEST_MAGIC, Violation, command,
    command_flag,
};
use crate::block::{ByteRange, Durability, ExportInfo, ZeroOptions};

/// Magic, flags, type, cookie, offset, length of 32 bits.
pub const HEADER_SIZE: usize = 28;
/// The same with a length of 64 bits.
pub const EXTENDED_HEADER_SIZE: usize = 32;
/// Bytes of an extent in a reply, at most.
const EXTENT_SIZE: usize = 16;

/// The client's name of a request, returned with its reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cookie(pub u64);

/// A request that fits the export it was sent to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Read a range.
    Read(ByteRange),
    /// Write bytes at an offset.
    Write(ByteOffset, Bytes, Durability),
    /// Make what was answered durable.
    Flush,
    /// Drop a range.
    Trim(ByteRange, Durability),
    /// Zero a range.
    WriteZeroes(ByteRange, ZeroOptions),
    /// A range will be read soon.
    Cache(ByteRange),
    /// Which parts of a range take space: so many extents at most.
    BlockStatus(ByteRange, usize),
    /// Nothing to do (a length of 0): answered with success.
    Nothing,
    /// Finish what runs, then close.
    Disconnect,
}

impl Command {
    /// Bytes held in memory while it runs.
    pub fn weight(&self) -> usize {
        match self {
            Self::Read(range) => range.length.0 as usize,
            Self::Write(_, data, _) => data.len(),
            Self::BlockStatus(_, most) => most * EXTENT_SIZE,
            Self::Flush
            | Self::Trim(..)
            | Self::WriteZeroes(..)
            | Self::Cache(_)
            | Self::Nothing
            | Self::Disconnect => 0,
        }
    }
}

/// What the reply brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Whether it was done.
    Status,
    /// Data.
    Data {
        /// How many bytes.
        length: usize,
        /// In one chunk.
        whole: bool,
    },
    /// Extents.
    Extents,
}

/// A request off the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Its name.
    pub cookie: Cookie,
    /// Where it starts, as sent.
    pub offset: ByteOffset,
    /// How it is answered.
    pub answer: Answer,
    /// What to do, or what is wrong with it.
    pub command: Result<Command, ErrorCode>,
}

/// What a look at the input gives.
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed {
    /// A whole request, taken off the input.
    Request(Request),
    /// The input must hold this many bytes first.
    Need(usize),
}

/// The fields of a header in either form.
#[derive(Clone, Copy)]
struct Header {
    flags: u16,
    kind: u16,
    offset: u64,
    length: u64,
}

/// Bytes of a header.
pub const fn header_size(mode: Mode) -> usize {
    match mode {
        Mode::Simple | Mode::Structured => HEADER_SIZE,
        Mode::Extended => EXTENDED_HEADER_SIZE,
    }
}

/// Takes one request off the input.
///
/// # Errors
/// When the stream is out of step or a payload is larger than allowed.
pub fn parse(input: &mut BytesMut, export: &ExportInfo, agreed: Agreed) -> Result<Parsed, Violation> {
    let size = header_size(agreed.mode);
    // A wrong magic is refused as soon as it is there: garbage need not be waited for.
    if let Some(magic) = input.first_chunk::<4>() {
        check_magic(u32::from_be_bytes(*magic), agreed.mode)?;
    }
    let Some(mut bytes) = input.get(4..size) else { return Ok(Parsed::Need(size)) };
    let (flags, kind, cookie) = (bytes.get_u16(), bytes.get_u16(), Cookie(bytes.get_u64()));
    let offset = bytes.get_u64();
    let length = if agreed.mode == Mode::Extended { bytes.get_u64() } else { u64::from(bytes.get_u32()) };
    let header = Header { flags, kind, offset, length };

    let has_payload = match agreed.mode {
        Mode::Simple | Mode::Structured => kind == command::WRITE,
        // A write always has one, also without the flag that the extension asks for: QEMU's client forgets it, and its
        // server takes such a write as it is meant.
        Mode::Extended => flags & command_flag::PAYLOAD_LEN != 0 || kind == command::WRITE,
    };
    let payload_length = if has_payload { length } else { 0 };
    if payload_length > u64::from(MAXIMUM_PAYLOAD) {
        return Err(Violation::PayloadLength(payload_length));
    }
    let whole = size + payload_length as usize;
    if input.len() < whole {
        return Ok(Parsed::Need(whole));
    }
    input.advance(size);
    let payload = input.split_to(payload_length as usize).freeze();
    let answer = match kind {
        command::READ => Answer::Data { length: length as usize, whole: flags & command_flag::DF != 0 },
        command::BLOCK_STATUS => Answer::Extents,
        _other => Answer::Status,
    };
    let command = check(&header, payload, export, agreed);
    Ok(Parsed::Request(Request { cookie, offset: ByteOffset(offset), answer, command }))
}

const fn check_magic(magic: u32, mode: Mode) -> Result<(), Violation> {
    match (mode, magic) {
        (Mode::Simple | Mode::Structured, REQUEST_MAGIC) | (Mode::Extended, EXTENDED_REQUEST_MAGIC) => Ok(()),
        (_, other) => Err(Violation::RequestMagic(other)),
    }
}

/// The flags that a command may have, none where the command is unknown.
const fn allowed_flags(kind: u16, agreed: Agreed) -> Option<u16> {
    let own = match kind {
        // Whether fragments are taken can only be said where there could be any.
        command::READ if !matches!(agreed.mode, Mode::Simple) => command_flag::DF,
        command::WRITE if matches!(agreed.mode, Mode::Extended) => command_flag::PAYLOAD_LEN,
        command::WRITE_ZEROES => command_flag::NO_HOLE | command_flag::FAST_ZERO,
        command::BLOCK_STATUS if agreed.allocation => command_flag::REQ_ONE,
        command::READ | command::WRITE | command::TRIM | command::FLUSH | command::CACHE => 0,
        _unknown => return None,
    };
    // FUA is valid with every command and means nothing where nothing is changed.
    Some(own | command_flag::FUA)
}

/// Checks flags, rights and range, and makes the command.
fn check(header: &Header, payload: Bytes, export: &ExportInfo, agreed: Agreed) -> Result<Command, ErrorCode> {
    let Header { flags, kind, offset, length } = *header;
    // There is no reply to it, hence no error either.
    if kind == command::DISC {
        return Ok(Command::Disconnect);
    }
    let allowed = allowed_flags(kind, agreed).ok_or(ErrorCode::Einval)?;
    if flags & !allowed != 0 {
        return Err(ErrorCode::Einval);
    }
    let changes = matches!(kind, command::WRITE | command::TRIM | command::WRITE_ZEROES);
    if changes && export.read_only {
        return Err(ErrorCode::Eperm);
    }
    if kind == command::FLUSH {
        return if offset == 0 && length == 0 { Ok(Command::Flush) } else { Err(ErrorCode::Einval) };
    }
    if offset.checked_add(length).is_none_or(|end| end > export.size.0) {
        let beyond_end =
            if matches!(kind, command::WRITE | command::WRITE_ZEROES) { ErrorCode::Enospc } else { ErrorCode::Einval };
        return Err(beyond_end);
    }
    if kind == command::READ && length > u64::from(MAXIMUM_PAYLOAD) {
        // EOVERFLOW is for clients that know of DF.
        return Err(if agreed.mode == Mode::Simple { ErrorCode::Einval } else { ErrorCode::Eoverflow });
    }
    if length == 0 {
        // Extents of nothing cannot be told: a reply has one at least, of at least a byte.
        return if kind == command::BLOCK_STATUS { Err(ErrorCode::Einval) } else { Ok(Command::Nothing) };
    }
    let range = ByteRange::new(offset, length);
    let durability = if flags & command_flag::FUA != 0 { Durability::Stable } else { Durability::Policy };
    Ok(match kind {
        command::READ => Command::Read(range),
        command::WRITE => Command::Write(ByteOffset(offset), payload, durability),
        command::TRIM => Command::Trim(range, durability),
        command::CACHE => Command::Cache(range),
        command::BLOCK_STATUS => {
            Command::BlockStatus(range, if flags & command_flag::REQ_ONE != 0 { 1 } else { MAXIMUM_EXTENTS })
        }
        _write_zeroes => Command::WriteZeroes(
            range,
            ZeroOptions {
                durability,
                keep_provisioned: flags & command_flag::NO_HOLE != 0,
                only_if_fast: flags & command_flag::FAST_ZERO != 0,
            },
        ),
    })
}

/// The bytes of a request header, for tests and clients.
pub fn encode_header(
    kind: u16,
    flags: u16,
    cookie: Cookie,
    offset: ByteOffset,
    length: ByteCount,
) -> [u8; HEADER_SIZE] {
    let mut header = [0; HEADER_SIZE];
    header[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
    header[4..6].copy_from_slice(&flags.to_be_bytes());
    header[6..8].copy_from_slice(&kind.to_be_bytes());
    header[8..16].copy_from_slice(&cookie.0.to_be_bytes());
    header[16..24].copy_from_slice(&offset.0.to_be_bytes());
    header[24..].copy_from_slice(&(length.0 as u32).to_be_bytes());
    header
}

/// The same with extended headers.
pub fn encode_extended_header(
    kind: u16,
    flags: u16,
    cookie: Cookie,
    offset: ByteOffset,
    length: ByteCount,
) -> [u8; EXTENDED_HEADER_SIZE] {
    let mut header = [0; EXTENDED_HEADER_SIZE];
    header[..HEADER_SIZE].copy_from_slice(&encode_header(kind, flags, cookie, offset, length));
    header[..4].copy_from_slice(&EXTENDED_REQUEST_MAGIC.to_be_bytes());
    header[24..].copy_from_slice(&length.0.to_be_bytes());
    header
}

#[cfg(test)]
mod tests;
