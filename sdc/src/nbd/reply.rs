//! Replies of the transmission phase.
//!
//! READ is answered in structured replies where these were agreed on: one chunk with all data (so "don't fragment"
//! always holds), or one with the error. Everything else has no payload, for which simple replies stay allowed.

use pflex_proto::ids::ByteOffset;

use super::request::Cookie;
use super::wire::{ErrorCode, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, chunk};
use crate::block::Payload;
use crate::buffers::Output;

/// Answers what has no data.
pub(super) fn status(output: &mut Output, cookie: Cookie, outcome: Result<(), ErrorCode>) {
    output.put(&simple_header(cookie, outcome.err()));
}

/// Answers a read.
pub(super) fn data(
    output: &mut Output,
    cookie: Cookie,
    offset: ByteOffset,
    structured: bool,
    outcome: Result<Payload, ErrorCode>,
) {
    match outcome {
        Ok(payload) if !structured => {
            output.put(&simple_header(cookie, None));
            put_payload(output, payload);
        }
        // A content chunk has at least one byte.
        Ok(payload) if payload.is_empty() => output.put(&chunk_header(chunk::NONE, cookie, 0)),
        Ok(payload) => {
            output.put(&chunk_header(chunk::OFFSET_DATA, cookie, 8 + payload.len() as u32));
            output.put(&offset.0.to_be_bytes());
            put_payload(output, payload);
        }
        Err(error) if !structured => output.put(&simple_header(cookie, Some(error))),
        Err(error) => {
            // The error number and an empty text.
            output.put(&chunk_header(chunk::ERROR, cookie, 6));
            output.put(&(error as u32).to_be_bytes());
            output.put(&0u16.to_be_bytes());
        }
    }
}

fn put_payload(output: &mut Output, payload: Payload) {
    for piece in payload.pieces() {
        output.put_bytes(piece);
    }
}

fn simple_header(cookie: Cookie, error: Option<ErrorCode>) -> [u8; 16] {
    let mut header = [0; 16];
    header[..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    header[4..8].copy_from_slice(&error.map_or(0, |error| error as u32).to_be_bytes());
    header[8..].copy_from_slice(&cookie.0.to_be_bytes());
    header
}

/// The header of the only chunk of a reply.
fn chunk_header(kind: u16, cookie: Cookie, length: u32) -> [u8; 20] {
    let mut header = [0; 20];
    header[..4].copy_from_slice(&STRUCTURED_REPLY_MAGIC.to_be_bytes());
    header[4..6].copy_from_slice(&chunk::FLAG_DONE.to_be_bytes());
    header[6..8].copy_from_slice(&kind.to_be_bytes());
    header[8..16].copy_from_slice(&cookie.0.to_be_bytes());
    header[16..].copy_from_slice(&length.to_be_bytes());
    header
}
