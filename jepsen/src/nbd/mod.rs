//! A small synchronous NBD client: one connection, one request at a time. Fixed newstyle, `NBD_OPT_GO`, simple replies,
//! READ, WRITE and FLUSH (NBD protocol document, "Newstyle negotiation" and "Transmission phase").
//!
//! Whether a failed request was executed is for the caller to decide; [`NbdError`] says how far it got.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

const INIT_MAGIC: &[u8; 8] = b"NBDMAGIC";
const OPTION_MAGIC: &[u8; 8] = b"IHAVEOPT";
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// `NBD_FLAG_C_FIXED_NEWSTYLE`; without `NO_ZEROES`, which only matters to the older `EXPORT_NAME`.
const FIXED_NEWSTYLE: u32 = 1;
const OPT_GO: u32 = 7;
const REP_ACK: u32 = 1;
/// Replies with this bit set are refusals.
const REP_ERROR: u32 = 1 << 31;
/// No reply to `NBD_OPT_GO` is longer.
const MOST_REPLY_BYTES: u32 = 64 << 10;
const COMMAND_READ: u16 = 0;
const COMMAND_WRITE: u16 = 1;
const COMMAND_FLUSH: u16 = 3;
const FLAG_FUA: u16 = 1;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// For the handshake, where nothing waits for storage.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum NbdError {
    /// The connection: refused, closed, timed out.
    #[error("connection: {0}")]
    Connection(#[from] io::Error),
    /// The server does not open this export now.
    #[error("export {export} is refused with reply type {kind:#x}")]
    Refused {
        /// The export asked for.
        export: String,
        /// The type of the server's reply.
        kind: u32,
    },
    /// The request ended with an error number.
    #[error("NBD error {0}")]
    Request(u32),
    /// The server breaks the protocol.
    #[error("protocol: {0}")]
    Protocol(&'static str),
}

/// A connection in its transmission phase.
#[derive(Debug)]
pub struct NbdClient {
    stream: TcpStream,
    cookie: u64,
}

impl NbdClient {
    /// Connects and opens `export`. `patience` bounds the wait for each answer afterwards.
    ///
    /// # Errors
    /// Any; nothing was requested yet.
    pub fn open(address: SocketAddr, export: &str, patience: Duration) -> Result<Self, NbdError> {
        let mut stream = TcpStream::connect_timeout(&address, CONNECT_TIMEOUT)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(HANDSHAKE_TIMEOUT))?;
        stream.set_write_timeout(Some(HANDSHAKE_TIMEOUT))?;
        let greeting: [u8; 18] = take(&mut stream)?;
        if &greeting[..8] != INIT_MAGIC || &greeting[8..16] != OPTION_MAGIC {
            return Err(NbdError::Protocol("the greeting is not that of fixed newstyle"));
        }
        let mut hello = FIXED_NEWSTYLE.to_be_bytes().to_vec();
        hello.extend(OPTION_MAGIC);
        hello.extend(OPT_GO.to_be_bytes());
        hello.extend((export.len() as u32 + 6).to_be_bytes());
        hello.extend((export.len() as u32).to_be_bytes());
        hello.extend(export.as_bytes());
        hello.extend(0_u16.to_be_bytes()); // no information is asked for
        stream.write_all(&hello)?;
        loop {
            match take_option_reply(&mut stream)? {
                REP_ACK => break,
                kind if kind & REP_ERROR != 0 => return Err(NbdError::Refused { export: export.to_owned(), kind }),
                _ => {} // information about the export, before the ACK
            }
        }
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        Ok(Self { stream, cookie: 0 })
    }

    /// Fills `data` from `offset`.
    ///
    /// # Errors
    /// Any.
    pub fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), NbdError> {
        self.ask(COMMAND_READ, 0, offset, data.len() as u32, &[])?;
        Ok(self.stream.read_exact(data)?)
    }

    /// Writes `data` at `offset`; `fua` asks for it to be durable first.
    ///
    /// # Errors
    /// Any; the write may have been executed all the same, or may be later.
    pub fn write(&mut self, offset: u64, data: &[u8], fua: bool) -> Result<(), NbdError> {
        self.ask(COMMAND_WRITE, if fua { FLAG_FUA } else { 0 }, offset, data.len() as u32, data)
    }

    /// Makes all acknowledged writes durable.
    ///
    /// # Errors
    /// Any.
    pub fn flush(&mut self) -> Result<(), NbdError> {
        self.ask(COMMAND_FLUSH, 0, 0, 0, &[])
    }

    /// Sends a request and takes the header of its reply.
    fn ask(&mut self, command: u16, flags: u16, offset: u64, length: u32, data: &[u8]) -> Result<(), NbdError> {
        self.cookie += 1;
        let mut request = Vec::with_capacity(28 + data.len());
        request.extend(REQUEST_MAGIC.to_be_bytes());
        request.extend(flags.to_be_bytes());
        request.extend(command.to_be_bytes());
        request.extend(self.cookie.to_be_bytes());
        request.extend(offset.to_be_bytes());
        request.extend(length.to_be_bytes());
        request.extend(data);
        self.stream.write_all(&request)?;
        let reply: [u8; 16] = take(&mut self.stream)?;
        if word(&reply, 0) != SIMPLE_REPLY_MAGIC {
            return Err(NbdError::Protocol("not a simple reply"));
        }
        if long(&reply, 8) != self.cookie {
            return Err(NbdError::Protocol("a reply to another request"));
        }
        match word(&reply, 4) {
            0 => Ok(()),
            error => Err(NbdError::Request(error)),
        }
    }
}

fn take<const N: usize>(stream: &mut TcpStream) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Takes one reply to an option and returns its type.
fn take_option_reply(stream: &mut TcpStream) -> Result<u32, NbdError> {
    let header: [u8; 20] = take(stream)?;
    let length = word(&header, 16);
    if long(&header, 0) != OPTION_REPLY_MAGIC || length > MOST_REPLY_BYTES {
        return Err(NbdError::Protocol("not a reply to an option"));
    }
    let skipped = io::copy(&mut stream.take(length.into()), &mut io::sink())?;
    if skipped < length.into() { Err(NbdError::Protocol("a reply cut short")) } else { Ok(word(&header, 12)) }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests;
