//! The handshake as a state machine: bytes in, bytes and questions out.
//!
//! Opening an export may take a while, so the machine asks ([`Event::List`], [`Event::Open`]) and stands still until
//! it is answered. A client sends no option before the last one was answered, yet may send requests right behind
//! GO's; these bytes stay in the input.

mod meta;

use bytes::{Buf, BufMut, BytesMut};

pub use self::meta::MetaRequest;
use super::wire::{
    BASE_ALLOCATION, BASE_ALLOCATION_ID, FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES, INIT_MAGIC, MAXIMUM_OPTION_LENGTH,
    MAXIMUM_PAYLOAD, MAXIMUM_SKIPPED_OPTION, MAXIMUM_STRING, MINIMUM_BLOCK_SIZE, Mode, OPTION_MAGIC,
    OPTION_REPLY_MAGIC, PREFERRED_BLOCK_SIZE, Violation, info, option, rep, transmission_flags,
};
use crate::block::{ExportInfo, ExportSummary, OpenError};

/// Magic, option, length.
const OPTION_HEADER: usize = 16;

/// What the driver must do next.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// Read more input.
    NeedInput,
    /// Answer with [`Handshake::listed`], as often as there are exports to add, and [`Handshake::list_ends`].
    List,
    /// Answer with [`Handshake::found`].
    Meta(MetaRequest),
    /// Answer with [`Handshake::opened`].
    Open(OpenRequest),
    /// Send the output, make the stream a TLS stream, and go on with it.
    StartTls,
    /// Send the output and close.
    Close,
}

/// Which of the document's modes of TLS (its section "TLS versions" has no other that is safe from downgrades).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tls {
    /// NOTLS: STARTTLS is refused.
    #[default]
    No,
    /// FORCEDTLS: nothing but STARTTLS and ABORT is done before it.
    Forced,
    /// It has begun.
    Begun,
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
    /// The form of requests and replies.
    pub mode: Mode,
    /// Whether BLOCK_STATUS tells of `base:allocation`.
    pub allocation: bool,
}

/// One connection's handshake.
#[derive(Debug)]
pub struct Handshake {
    tls: Tls,
    flags_seen: bool,
    no_zeroes: bool,
    mode: Mode,
    /// The export for which `base:allocation` was chosen, by its canonical name.
    allocation_of: Option<String>,
    allocation: bool,
    /// Bytes of a refused option that are still to come.
    skipping: u32,
}

impl Handshake {
    /// Begins: writes the server's greeting.
    pub fn begin(tls: Tls, output: &mut BytesMut) -> Self {
        output.put_u64(INIT_MAGIC);
        output.put_u64(OPTION_MAGIC);
        output.put_u16(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES);
        Self {
            tls,
            flags_seen: false,
            no_zeroes: false,
            mode: Mode::Simple,
            allocation_of: None,
            allocation: false,
            skipping: 0,
        }
    }

    /// What was agreed on so far; final once an export was opened for transmission.
    pub const fn agreed(&self) -> Agreed {
        Agreed { mode: self.mode, allocation: self.allocation }
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
            let Some((kind, mut data)) = self.next_option(input, output)? else { return Ok(Event::NeedInput) };
            if kind == option::EXPORT_NAME && self.tls == Tls::Forced {
                return Err(Violation::TlsRequired);
            }
            match self.option(kind, &mut data, output) {
                Some(Event::StartTls) if !input.is_empty() => return Err(Violation::PlaintextBeforeTls),
                Some(event) => return Ok(event),
                None => {}
            }
        }
    }

    /// Handles one option; `None` when it is answered already.
    fn option(&mut self, kind: u32, data: &mut BytesMut, output: &mut BytesMut) -> Option<Event> {
        match kind {
            option::STARTTLS if data.is_empty() => return self.start_tls(output),
            option::STARTTLS | option::ABORT => {}
            other if self.tls == Tls::Forced => {
                refuse(output, other, rep::ERR_TLS_REQD, "this server speaks TLS only; begin with STARTTLS");
                return None;
            }
            _any => {}
        }
        match kind {
            option::EXPORT_NAME => match string(data).filter(|_name| self.mode != Mode::Extended) {
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
            option::STRUCTURED_REPLY if data.is_empty() && self.mode == Mode::Extended => {
                refuse(output, kind, rep::ERR_EXT_HEADER_REQD, "extended headers were agreed on already");
                None
            }
            option::STRUCTURED_REPLY | option::EXTENDED_HEADERS if data.is_empty() => {
                self.mode = if kind == option::EXTENDED_HEADERS { Mode::Extended } else { Mode::Structured };
                reply(output, kind, rep::ACK, &[]);
                None
            }
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
                if kind == option::SET_META_CONTEXT {
                    // Also one that fails replaces what was chosen before.
                    self.allocation_of = None;
                }
                // A list is harmless; other servers give it too.
                if self.mode == Mode::Simple && kind == option::SET_META_CONTEXT {
                    refuse(output, kind, rep::ERR_INVALID, "structured replies or extended headers come first");
                    return None;
                }
                let request = meta::parse(kind, data);
                if request.is_none() {
                    refuse(output, kind, rep::ERR_INVALID, "malformed request for metadata contexts");
                }
                request.map(Event::Meta)
            }
            option::LIST | option::STRUCTURED_REPLY | option::EXTENDED_HEADERS | option::STARTTLS => {
                refuse(output, kind, rep::ERR_INVALID, "this option has no data");
                None
            }
            unknown => {
                refuse(output, unknown, rep::ERR_UNSUP, "unknown option");
                None
            }
        }
    }

    /// What was agreed on before TLS may be another's: it is forgotten.
    fn start_tls(&mut self, output: &mut BytesMut) -> Option<Event> {
        match self.tls {
            Tls::No => refuse(output, option::STARTTLS, rep::ERR_UNSUP, "TLS is not configured"),
            Tls::Begun => refuse(output, option::STARTTLS, rep::ERR_INVALID, "TLS has begun already"),
            Tls::Forced => {
                reply(output, option::STARTTLS, rep::ACK, &[]);
                (self.tls, self.mode, self.allocation_of) = (Tls::Begun, Mode::Simple, None);
                return Some(Event::StartTls);
            }
        }
        None
    }

    /// Takes one whole option off the input.
    fn next_option(
        &mut self,
        input: &mut BytesMut,
        output: &mut BytesMut,
    ) -> Result<Option<(u32, BytesMut)>, Violation> {
        let skipped = (self.skipping as usize).min(input.len());
        input.advance(skipped);
        self.skipping -= skipped as u32;
        if let Some(magic) = input.get(..8) {
            let magic = u64::from_be_bytes(magic.try_into().expect("8 bytes"));
            if magic != OPTION_MAGIC {
                return Err(Violation::OptionMagic(magic));
            }
        }
        let (Some(option), Some(length)) = (peek_u32(input, 8), peek_u32(input, 12)) else { return Ok(None) };
        if length > MAXIMUM_OPTION_LENGTH {
            refuse(output, option, rep::ERR_TOO_BIG, "no option is that long");
            if length > MAXIMUM_SKIPPED_OPTION || option == option::EXPORT_NAME {
                return Err(Violation::OptionLength { option, length });
            }
            input.advance(OPTION_HEADER);
            self.skipping = length;
            return self.next_option(input, output);
        }
        if input.len() < OPTION_HEADER + length as usize {
            return Ok(None);
        }
        input.advance(OPTION_HEADER);
        Ok(Some((option, input.split_to(length as usize))))
    }

    /// Answers [`Event::Meta`] with the export that was named.
    pub fn found(&mut self, request: &MetaRequest, outcome: Result<&ExportInfo, &OpenError>, output: &mut BytesMut) {
        let kind = if request.sets { option::SET_META_CONTEXT } else { option::LIST_META_CONTEXT };
        let export = match outcome {
            Ok(export) => export,
            Err(error) => return refuse_open(output, kind, error),
        };
        if request.finds_allocation {
            let id = if request.sets { BASE_ALLOCATION_ID } else { 0 };
            let mut data = BytesMut::with_capacity(4 + BASE_ALLOCATION.len());
            data.put_u32(id);
            data.put_slice(BASE_ALLOCATION.as_bytes());
            reply(output, kind, rep::META_CONTEXT, &data);
        }
        if request.sets && request.finds_allocation {
            self.allocation_of = Some(export.name.clone());
        }
        reply(output, kind, rep::ACK, &[]);
    }

    /// Adds exports to the answer of [`Event::List`].
    pub fn listed(&self, exports: &[ExportSummary], output: &mut BytesMut) {
        for export in exports {
            let mut data = BytesMut::with_capacity(4 + export.name.len() + export.description.len());
            data.put_u32(export.name.len() as u32);
            data.put_slice(export.name.as_bytes());
            data.put_slice(export.description.as_bytes());
            reply(output, option::LIST, rep::SERVER, &data);
        }
    }

    /// Ends that answer.
    pub fn list_ends(&self, output: &mut BytesMut) {
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
        self.allocation = outcome.is_ok_and(|export| self.allocation_of.as_deref() == Some(&export.name));
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
            Err(error) => refuse_open(output, kind, error),
        }
        Ok(())
    }

    fn opened_by_name(&mut self, export: Option<&ExportInfo>, output: &mut BytesMut) -> Result<(), Violation> {
        let export = export.ok_or(Violation::ExportName)?;
        output.put_u64(export.size.0);
        output.put_u16(transmission_flags(export, self.mode));
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
        data.put_u16(transmission_flags(export, self.mode));
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

fn refuse_open(output: &mut BytesMut, option: u32, error: &OpenError) {
    let code = match error {
        OpenError::Unknown { .. } | OpenError::NoSnapshot { .. } => rep::ERR_UNKNOWN,
        OpenError::Refused { .. } => rep::ERR_POLICY,
        OpenError::ShuttingDown => rep::ERR_SHUTDOWN,
    };
    refuse(output, option, code, &error.to_string());
}

fn peek_u32(input: &BytesMut, at: usize) -> Option<u32> {
    input.get(at..at + 4).map(|bytes| u32::from_be_bytes(bytes.try_into().expect("4 bytes")))
}

#[cfg(test)]
mod tests;
