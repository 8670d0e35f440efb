//! The handshake as a state machine: bytes in, bytes and questions out.
//!
//! Opening an export may take a while, so the machine asks ([`Event::List`], [`Event::Open`]) and stands still until
//! it is answered. A client sends no option before the last one was answered, yet may send requests right behind
//! GO's; these bytes stay in the input.

use bytes::{Buf, BufMut, BytesMut};

use super::wire::{
    FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES, INIT_MAGIC, MAXIMUM_OPTION_LENGTH, MAXIMUM_PAYLOAD, MAXIMUM_STRING,
    MINIMUM_BLOCK_SIZE, OPTION_MAGIC, OPTION_REPLY_MAGIC, PREFERRED_BLOCK_SIZE, Violation, info, option, rep,
    transmission_flags,
};
use crate::block::{ExportInfo, ExportSummary, OpenError};

/// Magic, option, length.
const OPTION_HEADER: usize = 16;

/// What the driver must do next.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// Read more input.
    NeedInput,
    /// Answer with [`Handshake::listed`].
    List,
    /// Answer with [`Handshake::opened`].
    Open(OpenRequest),
    /// Send the output and close.
    Close,
}

/// An export a client asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenRequest {
    /// Its name; empty means the default export.
    pub name: String,
    how: How,
    requests: Vec<u16>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Info,
    Go,
    ExportName,
}

impl OpenRequest {
    /// Whether success leads to the transmission phase.
    pub const fn enters_transmission(&self) -> bool {
        !matches!(self.how, How::Info)
    }
}

/// What was agreed on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Agreed {
    /// READ is answered in structured replies.
    pub structured_replies: bool,
}

/// One connection's handshake.
#[derive(Debug)]
pub struct Handshake {
    flags_seen: bool,
    no_zeroes: bool,
    agreed: Agreed,
}

impl Handshake {
    /// Begins: writes the server's greeting.
    pub fn begin(output: &mut BytesMut) -> Self {
        output.put_u64(INIT_MAGIC);
        output.put_u64(OPTION_MAGIC);
        output.put_u16(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES);
        Self { flags_seen: false, no_zeroes: false, agreed: Agreed::default() }
    }

    /// What was agreed on so far; final once an export was opened for transmission.
    pub const fn agreed(&self) -> Agreed {
        self.agreed
    }

    /// Works on the input until it needs something.
    ///
    /// # Errors
    /// When the client breaks the protocol.
    pub fn advance(&mut self, input: &mut BytesMut, output: &mut BytesMut) -> Result<Event, Violation> {
        if !self.flags_seen {
            let Some(flags) = peek_u32(input, 0) else { return Ok(Event::NeedInput) };
            if flags & !u32::from(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES) != 0 {
                return Err(Violation::ClientFlags(flags));
            }
            input.advance(4);
            self.no_zeroes = flags & u32::from(FLAG_NO_ZEROES) != 0;
            self.flags_seen = true;
        }
        loop {
            let Some((kind, mut data)) = next_option(input, output)? else { return Ok(Event::NeedInput) };
            if let Some(event) = self.option(kind, &mut data, output) {
                return Ok(event);
            }
        }
    }

    /// Handles one option; `None` when it is answered already.
    fn option(&mut self, kind: u32, data: &mut BytesMut, output: &mut BytesMut) -> Option<Event> {
        match kind {
            option::EXPORT_NAME => match string(data) {
                Some(name) => Some(Event::Open(OpenRequest { name, how: How::ExportName, requests: Vec::new() })),
                // There is no error reply to this option.
                None => Some(Event::Close),
            },
            // Data with it is to be ignored.
            option::ABORT => {
                reply(output, kind, rep::ACK, &[]);
                Some(Event::Close)
            }
            option::LIST if data.is_empty() => Some(Event::List),
            option::INFO | option::GO => match open_request(kind, data) {
                Some(request) => Some(Event::Open(request)),
                None => {
                    refuse(output, kind, rep::ERR_INVALID, "malformed request for an export");
                    None
                }
            },
            option::STRUCTURED_REPLY if data.is_empty() => {
                self.agreed.structured_replies = true;
                reply(output, kind, rep::ACK, &[]);
                None
            }
            option::STARTTLS if data.is_empty() => {
                refuse(output, kind, rep::ERR_UNSUP, "TLS is not configured");
                None
            }
            option::LIST | option::STRUCTURED_REPLY | option::STARTTLS => {
                refuse(output, kind, rep::ERR_INVALID, "this option has no data");
                None
            }
            unknown => {
                refuse(output, unknown, rep::ERR_UNSUP, "unknown option");
                None
            }
        }
    }

    /// Answers [`Event::List`].
    pub fn listed(&mut self, exports: &[ExportSummary], output: &mut BytesMut) {
        for export in exports {
            let mut data = BytesMut::with_capacity(4 + export.name.len() + export.description.len());
            data.put_u32(export.name.len() as u32);
            data.put_slice(export.name.as_bytes());
            data.put_slice(export.description.as_bytes());
            reply(output, option::LIST, rep::SERVER, &data);
        }
        reply(output, option::LIST, rep::ACK, &[]);
    }

    /// Answers [`Event::Open`]. After a success of a request that [enters
    /// transmission](OpenRequest::enters_transmission) the handshake is over.
    ///
    /// # Errors
    /// When EXPORT_NAME asked for what cannot be opened: the connection must be closed.
    pub fn opened(
        &mut self,
        request: &OpenRequest,
        outcome: Result<&ExportInfo, &OpenError>,
        output: &mut BytesMut,
    ) -> Result<(), Violation> {
        let kind = match request.how {
            How::ExportName => return self.opened_by_name(outcome.ok(), output),
            How::Info => option::INFO,
            How::Go => option::GO,
        };
        match outcome {
            Ok(export) => {
                self.tell(kind, export, &request.requests, output);
                reply(output, kind, rep::ACK, &[]);
            }
            Err(error) => {
                let code = match error {
                    OpenError::Unknown { .. } => rep::ERR_UNKNOWN,
                    OpenError::Refused { .. } => rep::ERR_POLICY,
                    OpenError::ShuttingDown => rep::ERR_SHUTDOWN,
                };
                refuse(output, kind, code, &error.to_string());
            }
        }
        Ok(())
    }

    fn opened_by_name(&mut self, export: Option<&ExportInfo>, output: &mut BytesMut) -> Result<(), Violation> {
        let export = export.ok_or(Violation::ExportName)?;
        output.put_u64(export.size.0);
        output.put_u16(transmission_flags(export, self.agreed.structured_replies));
        if !self.no_zeroes {
            output.put_bytes(0, 124);
        }
        Ok(())
    }

    /// The INFO replies: EXPORT and the size constraints always, name and description when asked for.
    fn tell(&self, kind: u32, export: &ExportInfo, requests: &[u16], output: &mut BytesMut) {
        let mut data = BytesMut::new();
        data.put_u16(info::EXPORT);
        data.put_u64(export.size.0);
        data.put_u16(transmission_flags(export, self.agreed.structured_replies));
        reply(output, kind, rep::INFO, &data);

        data.clear();
        data.put_u16(info::BLOCK_SIZE);
        data.put_u32(MINIMUM_BLOCK_SIZE);
        data.put_u32(PREFERRED_BLOCK_SIZE);
        data.put_u32(MAXIMUM_PAYLOAD);
        reply(output, kind, rep::INFO, &data);

        for (what, text) in [(info::NAME, &export.name), (info::DESCRIPTION, &export.description)] {
            if requests.contains(&what) {
                data.clear();
                data.put_u16(what);
                data.put_slice(text.as_bytes());
                reply(output, kind, rep::INFO, &data);
            }
        }
    }
}

/// Takes one whole option off the input.
fn next_option(input: &mut BytesMut, output: &mut BytesMut) -> Result<Option<(u32, BytesMut)>, Violation> {
    if let Some(magic) = input.get(..8) {
        let magic = u64::from_be_bytes(magic.try_into().expect("8 bytes"));
        if magic != OPTION_MAGIC {
            return Err(Violation::OptionMagic(magic));
        }
    }
    let (Some(option), Some(length)) = (peek_u32(input, 8), peek_u32(input, 12)) else { return Ok(None) };
    if length > MAXIMUM_OPTION_LENGTH {
        refuse(output, option, rep::ERR_TOO_BIG, "no option is that long");
        return Err(Violation::OptionLength { option, length });
    }
    if input.len() < OPTION_HEADER + length as usize {
        return Ok(None);
    }
    input.advance(OPTION_HEADER);
    Ok(Some((option, input.split_to(length as usize))))
}

/// Parses the data of INFO and GO: a length and that name, a count and that many requests, nothing behind them.
fn open_request(kind: u32, data: &mut BytesMut) -> Option<OpenRequest> {
    let length = data.try_get_u32().ok()? as usize;
    if length > data.len() {
        return None;
    }
    let name = string(&data.split_to(length))?;
    let count = usize::from(data.try_get_u16().ok()?);
    if data.len() != 2 * count {
        return None;
    }
    let requests = (0..count).map(|_| data.get_u16()).collect();
    Some(OpenRequest { name, how: if kind == option::GO { How::Go } else { How::Info }, requests })
}

/// A string as the document defines it: UTF-8 without NUL, at most 4,096 bytes.
fn string(data: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(data).ok()?;
    (text.len() <= MAXIMUM_STRING && !text.contains('\0')).then(|| text.to_owned())
}

fn reply(output: &mut BytesMut, option: u32, kind: u32, data: &[u8]) {
    output.put_u64(OPTION_REPLY_MAGIC);
    output.put_u32(option);
    output.put_u32(kind);
    output.put_u32(data.len() as u32);
    output.put_slice(data);
}

/// An error reply, whose data is a text for people.
fn refuse(output: &mut BytesMut, option: u32, error: u32, why: &str) {
    let mut end = why.len().min(MAXIMUM_STRING);
    while !why.is_char_boundary(end) {
        end -= 1;
    }
    reply(output, option, error, &why.as_bytes()[..end]);
}

fn peek_u32(input: &BytesMut, at: usize) -> Option<u32> {
    input.get(at..at + 4).map(|bytes| u32::from_be_bytes(bytes.try_into().expect("4 bytes")))
}

#[cfg(test)]
mod tests;
