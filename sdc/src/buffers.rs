//! Both directions of a socket: [`Output`] gathers what is to be sent, [`poll_fill`] reads.
//!
//! All that is ready at one moment leaves in one `writev`: small things copied together, large ones by reference. A copy
//! of a few KiB is cheaper than another entry of an I/O vector and the reference count behind it; a copy of a chunk is
//! not. Reading takes as much as there is into one buffer, off which messages and their payloads are split without a copy.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::io::poll_read_buf;

/// Pieces up to this size are copied into the tail.
const COPY_LIMIT: usize = 16 << 10;
/// Entries of one I/O vector; more than a few dozen gain nothing.
const MAX_SLICES: usize = 32;

/// Room for each read of a socket: 32 writes of 4 KiB at once, and then some.
const READ_SIZE: usize = 256 << 10;
/// Room below which a fresh buffer is taken: a read of less would cost a system call for little.
const LEAST_READ_SIZE: usize = 32 << 10;

/// Reads once, with room for the next message, which is `needed` bytes long. How many bytes came; 0 is the end.
pub(crate) fn poll_fill<R: AsyncRead>(
    io: Pin<&mut R>,
    context: &mut Context<'_>,
    input: &mut BytesMut,
    needed: usize,
) -> Poll<io::Result<usize>> {
    let missing = needed.saturating_sub(input.len());
    let room = input.capacity() - input.len();
    if room < missing.max(LEAST_READ_SIZE) {
        input.reserve(missing.max(READ_SIZE));
    }
    poll_read_buf(io, context, input)
}

/// Bytes to be sent, in order.
#[derive(Debug, Default)]
pub(crate) struct Output {
    /// Sent before the tail.
    pieces: VecDeque<Bytes>,
    /// Where small pieces are gathered.
    tail: BytesMut,
    queued: usize,
}

impl Output {
    /// Bytes that wait.
    pub(crate) const fn len(&self) -> usize {
        self.queued
    }

    /// Adds a copy of `bytes`.
    pub(crate) fn put(&mut self, bytes: &[u8]) {
        self.tail.extend_from_slice(bytes);
        self.queued += bytes.len();
    }

    /// Adds `bytes` without a copy, unless they are few.
    pub(crate) fn put_bytes(&mut self, bytes: Bytes) {
        if bytes.len() <= COPY_LIMIT {
            return self.put(&bytes);
        }
        self.queued += bytes.len();
        if !self.tail.is_empty() {
            self.pieces.push_back(self.tail.split().freeze());
        }
        self.pieces.push_back(bytes);
    }

    /// Sends until nothing waits or the socket takes no more. Cancel-safe: what was sent is forgotten at once.
    pub(crate) fn poll_send<W: AsyncWrite>(
        &mut self,
        mut io: Pin<&mut W>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while self.queued > 0 {
            let sent = if self.pieces.is_empty() {
                ready!(io.as_mut().poll_write(context, &self.tail))?
            } else {
                let mut slices = [IoSlice::new(&[]); MAX_SLICES];
                let waiting = self.pieces.iter().map(|piece| &piece[..]).chain(std::iter::once(&self.tail[..]));
                let count = slices.iter_mut().zip(waiting).map(|(slice, piece)| *slice = IoSlice::new(piece)).count();
                ready!(io.as_mut().poll_write_vectored(context, &slices[..count]))?
            };
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.forget(sent);
        }
        Poll::Ready(Ok(()))
    }

    fn forget(&mut self, mut sent: usize) {
        self.queued -= sent;
        while let Some(piece) = self.pieces.front_mut() {
            if piece.len() > sent {
                return piece.advance(sent);
            }
            sent -= piece.len();
            self.pieces.pop_front();
        }
        self.tail.advance(sent);
    }
}
