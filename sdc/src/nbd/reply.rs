//! Replies of the transmission phase, in the form that was agreed on.
//!
//! Simple: a header, and the data of a read. Structured: READ and BLOCK_STATUS are answered in chunks, and so are all errors,
//! because a chunk can say in words what is wrong; other successes stay simple replies, which are shorter. Extended:
//! everything in chunks with the longer header. A read is one chunk of data, or several where it has holes and the client
//! takes fragments; neighbours of one kind go together. No chunk is begun before all of the reply is known, so an error
//! never comes after data.

use std::borrow::Cow;

use pflex_proto::ids::ByteOffset;

use super::request::Cookie;
use super::wire::{
    BASE_ALLOCATION_ID, EXTENDED_REPLY_MAGIC, ErrorCode, MAXIMUM_STRING, Mode, SIMPLE_REPLY_MAGIC,
    STRUCTURED_REPLY_MAGIC, chunk, state,
};
use crate::block::{Extent, ExtentState, Payload, Piece};
use crate::buffers::Output;

/// Chunks are cut at multiples of this where data and holes meet, as the document asks.
const GRAIN: u64 = 512;

/// Why a request failed: a number for programs, words for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) code: ErrorCode,
    pub(super) why: Cow<'static, str>,
}

impl From<ErrorCode> for Failure {
    fn from(code: ErrorCode) -> Self {
        Self { code, why: code.text().into() }
    }
}

/// Where a reply goes and how it must look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) mode: Mode,
    pub(super) cookie: Cookie,
    /// The request's, which extended headers repeat.
    pub(super) offset: ByteOffset,
}

impl Reply {
    /// Success of what has no data.
    pub(super) fn done(self, output: &mut Output) {
        match self.mode {
            Mode::Simple | Mode::Structured => self.simple(output, None),
            Mode::Extended => self.chunk(output, chunk::FLAG_DONE, chunk::NONE, 0),
        }
    }

    /// Failure of anything.
    pub(super) fn failed(self, output: &mut Output, failure: &Failure) {
        if self.mode == Mode::Simple {
            return self.simple(output, Some(failure.code));
        }
        let mut end = failure.why.len().min(MAXIMUM_STRING);
        while !failure.why.is_char_boundary(end) {
            end -= 1;
        }
        self.chunk(output, chunk::FLAG_DONE, chunk::ERROR, 6 + end as u32);
        output.put(&(failure.code as u32).to_be_bytes());
        output.put(&(end as u16).to_be_bytes());
        output.put(&failure.why.as_bytes()[..end]);
    }

    /// The data of a read; `whole` when it must not be fragmented.
    pub(super) fn data(self, output: &mut Output, payload: Payload, whole: bool) {
        if self.mode == Mode::Simple {
            self.simple(output, None);
            return payload.pieces().for_each(|piece| output.put_bytes(piece));
        }
        if payload.is_empty() {
            // A content chunk has at least one byte.
            return self.chunk(output, chunk::FLAG_DONE, chunk::NONE, 0);
        }
        if whole || !payload.has_holes() {
            return self.content(output, self.offset.0, payload, true);
        }
        let runs = self.runs(payload);
        let last = runs.len() - 1;
        let mut at = self.offset.0;
        for (nth, run) in runs.into_iter().enumerate() {
            let length = run.len() as u64;
            match run.first {
                Piece::Hole(length) => {
                    let flags = if nth == last { chunk::FLAG_DONE } else { 0 };
                    self.chunk(output, flags, chunk::OFFSET_HOLE, 12);
                    output.put(&at.to_be_bytes());
                    output.put(&(length as u32).to_be_bytes());
                }
                Piece::Data(_) => self.content(output, at, run, nth == last),
            }
            at += length;
        }
    }

    /// Neighbouring pieces of one kind together; a hole gives up the bytes that would break the grain.
    fn runs(self, payload: Payload) -> Vec<Payload> {
        let mut runs: Vec<Payload> = Vec::new();
        let mut add = |piece: Piece| match (runs.last_mut(), piece) {
            (_, piece) if piece.is_empty() => {}
            (Some(Payload { first: Piece::Hole(before), .. }), Piece::Hole(length)) => *before += length,
            (Some(run @ Payload { first: Piece::Data(_), .. }), piece @ Piece::Data(_)) => run.rest.push(piece),
            (_, piece) => runs.push(Payload { first: piece, rest: Vec::new() }),
        };
        let (start, mut at) = (self.offset.0, self.offset.0);
        let end = start + payload.len() as u64;
        for piece in payload.into_pieces() {
            let (from, to) = (at, at + piece.len() as u64);
            at = to;
            let Piece::Hole(_) = piece else {
                add(piece);
                continue;
            };
            let first = if from == start { from } else { from.next_multiple_of(GRAIN) };
            let beyond = if to == end { to } else { to / GRAIN * GRAIN };
            if first >= beyond {
                zeros(to - from).for_each(&mut add);
                continue;
            }
            zeros(first - from).for_each(&mut add);
            add(Piece::Hole((beyond - first) as usize));
            zeros(to - beyond).for_each(&mut add);
        }
        runs
    }

    fn content(self, output: &mut Output, at: u64, payload: Payload, last: bool) {
        let flags = if last { chunk::FLAG_DONE } else { 0 };
        self.chunk(output, flags, chunk::OFFSET_DATA, 8 + payload.len() as u32);
        output.put(&at.to_be_bytes());
        payload.pieces().for_each(|piece| output.put_bytes(piece));
    }

    /// The extents of a block status request; there is at least one.
    pub(super) fn extents(self, output: &mut Output, extents: &[Extent]) {
        let flags = |extent: &Extent| match extent.state {
            ExtentState::Data => 0,
            ExtentState::Hole => state::HOLE | state::ZERO,
        };
        if self.mode == Mode::Extended {
            self.chunk(output, chunk::FLAG_DONE, chunk::BLOCK_STATUS_EXT, 8 + 16 * extents.len() as u32);
            output.put(&BASE_ALLOCATION_ID.to_be_bytes());
            output.put(&(extents.len() as u32).to_be_bytes());
            for extent in extents {
                output.put(&extent.length.0.to_be_bytes());
                output.put(&u64::from(flags(extent)).to_be_bytes());
            }
            return;
        }
        self.chunk(output, chunk::FLAG_DONE, chunk::BLOCK_STATUS, 4 + 8 * extents.len() as u32);
        output.put(&BASE_ALLOCATION_ID.to_be_bytes());
        for extent in extents {
            // The lengths add up to no more than the request's, which has 32 bits here.
            output.put(&(extent.length.0 as u32).to_be_bytes());
            output.put(&flags(extent).to_be_bytes());
        }
    }

    fn simple(self, output: &mut Output, error: Option<ErrorCode>) {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
        header[4..8].copy_from_slice(&error.map_or(0, |error| error as u32).to_be_bytes());
        header[8..].copy_from_slice(&self.cookie.0.to_be_bytes());
        output.put(&header);
    }

    /// The header of a chunk.
    fn chunk(self, output: &mut Output, flags: u16, kind: u16, length: u32) {
        let mut header = [0; 32];
        let extended = self.mode == Mode::Extended;
        let magic = if extended { EXTENDED_REPLY_MAGIC } else { STRUCTURED_REPLY_MAGIC };
        header[..4].copy_from_slice(&magic.to_be_bytes());
        header[4..6].copy_from_slice(&flags.to_be_bytes());
        header[6..8].copy_from_slice(&kind.to_be_bytes());
        header[8..16].copy_from_slice(&self.cookie.0.to_be_bytes());
        if extended {
            header[16..24].copy_from_slice(&self.offset.0.to_be_bytes());
            header[24..].copy_from_slice(&u64::from(length).to_be_bytes());
            output.put(&header);
        } else {
            header[16..20].copy_from_slice(&length.to_be_bytes());
            output.put(&header[..20]);
        }
    }
}

/// So many zeros as bytes.
fn zeros(length: u64) -> impl Iterator<Item = Piece> {
    Payload::of([Piece::Hole(length as usize)]).pieces().map(Piece::Data)
}
