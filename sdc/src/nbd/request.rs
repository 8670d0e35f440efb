//! Requests of the transmission phase: 28 bytes, and the payload of a write.
//!
//! Parsing and checking are one step: what comes out is either a command that fits the export or the error the client
//! gets for it. Only what leaves the stream out of step is a [`Violation`].

use bytes::{Buf, Bytes, BytesMut};
use pflex_proto::ids::{ByteCount, ByteOffset};

use super::wire::{ErrorCode, MAXIMUM_PAYLOAD, REQUEST_MAGIC, Violation, command, command_flag};
use crate::block::{ByteRange, Durability, ExportInfo, ZeroOptions};

/// Magic, flags, type, cookie, offset, length.
pub const HEADER_SIZE: usize = 28;

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
            Self::Flush
            | Self::Trim(..)
            | Self::WriteZeroes(..)
            | Self::Cache(_)
            | Self::Nothing
            | Self::Disconnect => 0,
        }
    }
}

/// How the reply must look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// An error number only.
    Status,
    /// Data from this offset, structured where that was agreed on.
    Data(ByteOffset),
}

/// A request off the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Its name.
    pub cookie: Cookie,
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

/// Takes one request off the input.
///
/// # Errors
/// When the stream is out of step or a payload is larger than allowed.
pub fn parse(input: &mut BytesMut, export: &ExportInfo) -> Result<Parsed, Violation> {
    let Some(header) = input.first_chunk::<HEADER_SIZE>() else {
        // A wrong magic is refused as soon as it is there: garbage need not be waited for.
        if let Some(magic) = input.first_chunk::<4>() {
            check_magic(u32::from_be_bytes(*magic))?;
        }
        return Ok(Parsed::Need(HEADER_SIZE));
    };
    let mut header = &header[..];
    check_magic(header.get_u32())?;
    let (flags, kind) = (header.get_u16(), header.get_u16());
    let cookie = Cookie(header.get_u64());
    let (offset, length) = (header.get_u64(), header.get_u32());

    let payload = if kind == command::WRITE {
        if length > MAXIMUM_PAYLOAD {
            return Err(Violation::PayloadLength(length));
        }
        let whole = HEADER_SIZE + length as usize;
        if input.len() < whole {
            return Ok(Parsed::Need(whole));
        }
        input.advance(HEADER_SIZE);
        input.split_to(length as usize).freeze()
    } else {
        input.advance(HEADER_SIZE);
        Bytes::new()
    };
    let answer = if kind == command::READ { Answer::Data(ByteOffset(offset)) } else { Answer::Status };
    let command = check(kind, flags, offset, length, payload, export);
    Ok(Parsed::Request(Request { cookie, answer, command }))
}

fn check_magic(magic: u32) -> Result<(), Violation> {
    if magic == REQUEST_MAGIC { Ok(()) } else { Err(Violation::RequestMagic(magic)) }
}

/// Checks flags, rights and range, and makes the command.
fn check(
    kind: u16,
    flags: u16,
    offset: u64,
    length: u32,
    payload: Bytes,
    export: &ExportInfo,
) -> Result<Command, ErrorCode> {
    // FUA is valid with every command and means nothing where nothing is changed.
    let allowed = command_flag::FUA
        | match kind {
            // There is no reply to it, hence no error either.
            command::DISC => return Ok(Command::Disconnect),
            command::READ => command_flag::DF,
            command::WRITE_ZEROES => command_flag::NO_HOLE | command_flag::FAST_ZERO,
            command::WRITE | command::TRIM | command::FLUSH | command::CACHE => 0,
            // BLOCK_STATUS needs a metadata context, and none is offered.
            _unknown => return Err(ErrorCode::Einval),
        };
    if flags & !allowed != 0 {
        return Err(ErrorCode::Einval);
    }
    let changes = matches!(kind, command::WRITE | command::TRIM | command::WRITE_ZEROES);
    if changes && export.read_only {
        return Err(ErrorCode::Eperm);
    }
    let range = ByteRange::new(offset, u64::from(length));
    if kind == command::FLUSH {
        return if offset == 0 && length == 0 { Ok(Command::Flush) } else { Err(ErrorCode::Einval) };
    }
    if offset.checked_add(u64::from(length)).is_none_or(|end| end > export.size.0) {
        let beyond_end =
            if matches!(kind, command::WRITE | command::WRITE_ZEROES) { ErrorCode::Enospc } else { ErrorCode::Einval };
        return Err(beyond_end);
    }
    if kind == command::READ && length > MAXIMUM_PAYLOAD {
        return Err(ErrorCode::Eoverflow);
    }
    if length == 0 {
        return Ok(Command::Nothing);
    }
    let durability = if flags & command_flag::FUA != 0 { Durability::Stable } else { Durability::Policy };
    Ok(match kind {
        command::READ => Command::Read(range),
        command::WRITE => Command::Write(ByteOffset(offset), payload, durability),
        command::TRIM => Command::Trim(range, durability),
        command::CACHE => Command::Cache(range),
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

#[cfg(test)]
mod tests;
