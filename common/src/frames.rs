//! Frames over a socket: a reader that cuts them out of large reads without copying, and a writer that sends many with
//! one system call.

use std::io::{self, IoSlice};

use bytes::{Buf, Bytes, BytesMut};
use pflex_proto::{
    codec::Wire,
    frame::{FrameError, FrameHeader, FrameKind, HEADER_SIZE, encode_frame, mac_header},
    token::SessionKey,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// How much a reader asks for at once: many small frames, or a good part of a large one.
const READ_SIZE: usize = 128 << 10;
/// Room below which a fresh buffer is taken: a read of less would cost a system call for little. A buffer for each read
/// would be worse still, because frames that are still being worked on hold the one before.
const LEAST_READ_SIZE: usize = 16 << 10;

/// Why no more frames come.
#[derive(Debug, thiserror::Error)]
pub enum FramesError {
    /// The socket failed.
    #[error("connection lost")]
    Io(#[from] io::Error),
    /// The stream is not, or no longer, what both sides agreed on.
    #[error("bad frame")]
    Frame(#[from] FrameError),
    /// The peer went away inside a frame.
    #[error("connection closed inside a frame")]
    Truncated,
}

/// One received frame. Body and payload share the reader's buffer.
#[derive(Clone, Debug)]
pub struct Frame {
    /// The checked header.
    pub header: FrameHeader,
    /// The header as received, for the MAC.
    raw_header: [u8; HEADER_SIZE],
    /// The encoded message, checksum verified.
    pub body: Bytes,
    /// The raw bytes after it.
    pub payload: Bytes,
}

impl Frame {
    /// Decodes the body.
    ///
    /// # Errors
    /// [`FrameError::BadBody`].
    pub fn message<T: Wire>(&self) -> Result<T, FrameError> {
        T::from_bytes(&self.body).map_err(|source| FrameError::BadBody { kind: self.header.kind, source })
    }

    /// Whether the MAC at the end of the body is the session's.
    pub fn opens(&self, key: &SessionKey) -> bool {
        key.opens(&mac_header(&self.raw_header), &self.body)
    }
}

/// Cuts frames out of a byte stream.
#[derive(Debug)]
pub struct FrameReader<R> {
    stream: R,
    buffer: BytesMut,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Over a stream at a frame's start.
    pub fn new(stream: R) -> Self {
        Self { stream, buffer: BytesMut::with_capacity(READ_SIZE) }
    }

    /// Over a stream of which `buffered` was read already.
    pub const fn with_buffered(stream: R, buffered: BytesMut) -> Self {
        Self { stream, buffer: buffered }
    }

    /// The stream, to write to where it goes both ways.
    pub const fn stream_mut(&mut self) -> &mut R {
        &mut self.stream
    }

    /// Gives the stream back, with what was read of it and not returned.
    pub fn into_parts(self) -> (R, BytesMut) {
        (self.stream, self.buffer)
    }

    /// The next frame; none when the peer closed between frames. Cancel-safe: what was read stays in the buffer.
    ///
    /// # Errors
    /// See [`FramesError`]; the connection cannot go on.
    pub async fn next(&mut self) -> Result<Option<Frame>, FramesError> {
        loop {
            if let Some(frame) = self.buffered()? {
                return Ok(Some(frame));
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return if self.buffer.is_empty() { Ok(None) } else { Err(FramesError::Truncated) };
            }
        }
    }

    /// A frame that is already in the buffer, so that a caller can take all that one read brought before it acts.
    ///
    /// # Errors
    /// [`FramesError::Frame`].
    pub fn buffered(&mut self) -> Result<Option<Frame>, FramesError> {
        let Some(raw_header) = self.buffer.first_chunk::<HEADER_SIZE>().copied() else {
            self.make_room(0);
            return Ok(None);
        };
        let header = FrameHeader::parse(&raw_header)?;
        let total = HEADER_SIZE + header.rest_len();
        if self.buffer.len() < total {
            self.make_room(total - self.buffer.len());
            return Ok(None);
        }
        let mut frame = self.buffer.split_to(total).freeze();
        frame.advance(HEADER_SIZE);
        let body = frame.split_to(header.body_len as usize);
        header.check_body(&body)?;
        Ok(Some(Frame { header, raw_header, body, payload: frame }))
    }

    /// Room for the next read, which brings at least `missing` bytes sooner or later.
    fn make_room(&mut self, missing: usize) {
        if self.buffer.capacity() - self.buffer.len() < missing.max(LEAST_READ_SIZE) {
            self.buffer.reserve(missing.max(READ_SIZE));
        }
    }
}

/// Frames waiting to be sent, and how far the first one got.
///
/// Heads (header and body) are gathered in one buffer as long as no payload comes between.
#[derive(Debug, Default)]
pub struct FrameQueue {
    pieces: std::collections::VecDeque<Bytes>,
    heads: Vec<u8>,
    waiting_bytes: usize,
}

/// The most pieces one `writev` takes; Linux allows 1,024, more than 64 gains nothing.
const MAX_SLICES: usize = 64;
/// A payload up to this is copied behind its head: cheaper than a slice of its own.
const COPY_LIMIT: usize = 512;

impl FrameQueue {
    /// Adds a frame without MAC.
    pub fn push(&mut self, kind: FrameKind, request_id: u64, message: &impl Wire, payload: Bytes) {
        self.push_with(payload, |payload_len, heads| encode_frame(kind, request_id, message, payload_len, heads));
    }

    /// Adds a frame that `encode` appends to the buffer it is given, knowing the payload's length.
    pub fn push_with(&mut self, payload: Bytes, encode: impl FnOnce(u32, &mut Vec<u8>)) {
        let before = self.heads.len();
        encode(u32::try_from(payload.len()).expect("a payload is one chunk at most"), &mut self.heads);
        self.waiting_bytes += self.heads.len() - before + payload.len();
        if payload.len() <= COPY_LIMIT {
            self.heads.extend_from_slice(&payload);
        } else {
            self.seal_heads();
            self.pieces.push_back(payload);
        }
    }

    fn seal_heads(&mut self) {
        if !self.heads.is_empty() {
            self.pieces.push_back(Bytes::from(std::mem::take(&mut self.heads)));
        }
    }

    /// Bytes not sent yet: the caller's bound.
    pub const fn waiting_bytes(&self) -> usize {
        self.waiting_bytes
    }

    /// Whether there is nothing to send.
    pub const fn is_empty(&self) -> bool {
        self.waiting_bytes == 0
    }

    /// Sends once, as much as the socket takes. Cancel-safe: nothing is lost between calls.
    ///
    /// # Errors
    /// The socket's.
    pub async fn send_some<W: AsyncWrite + Unpin>(&mut self, stream: &mut W) -> io::Result<()> {
        self.seal_heads();
        let mut slices = [IoSlice::new(&[]); MAX_SLICES];
        let count = self.pieces.len().min(MAX_SLICES);
        for (slice, piece) in slices.iter_mut().zip(&self.pieces) {
            *slice = IoSlice::new(piece);
        }
        let mut sent = stream.write_vectored(&slices[..count]).await?;
        if sent == 0 && !self.is_empty() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.waiting_bytes -= sent;
        while sent > 0 {
            let first = self.pieces.front_mut().expect("no more is sent than was queued");
            let taken = sent.min(first.len());
            first.advance(taken);
            sent -= taken;
            if first.is_empty() {
                self.pieces.pop_front();
            }
        }
        Ok(())
    }

    /// Sends everything.
    ///
    /// # Errors
    /// The socket's.
    pub async fn send_all<W: AsyncWrite + Unpin>(&mut self, stream: &mut W) -> io::Result<()> {
        while !self.is_empty() {
            self.send_some(stream).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use pflex_proto::token;

    use super::*;

    #[tokio::test]
    async fn frames_arrive_as_sent_whatever_the_socket_splits() {
        let (mut near, far) = tokio::io::duplex(100);
        let sender = tokio::spawn(async move {
            let mut queue = FrameQueue::default();
            for i in 0..50_u64 {
                queue.push(FrameKind::Read, i, &i, Bytes::from(vec![i as u8; (i * 37) as usize]));
            }
            queue.send_all(&mut near).await.unwrap();
            assert_eq!(queue.waiting_bytes(), 0);
        });
        let mut reader = FrameReader::new(far);
        for i in 0..50_u64 {
            let frame = reader.next().await.unwrap().unwrap();
            assert_eq!((frame.header.request_id, frame.message::<u64>().unwrap()), (i, i));
            assert_eq!(frame.payload, vec![i as u8; (i * 37) as usize]);
        }
        assert!(reader.next().await.unwrap().is_none());
        sender.await.unwrap();
    }

    #[tokio::test]
    async fn a_stream_cut_inside_a_frame_is_an_error() {
        let mut queue = FrameQueue::default();
        queue.push(FrameKind::Read, 1, &1_u64, Bytes::new());
        let mut bytes = Vec::new();
        queue.send_all(&mut bytes).await.unwrap();
        let mut reader = FrameReader::new(&bytes[..bytes.len() - 1]);
        assert!(matches!(reader.next().await, Err(FramesError::Truncated)));
    }

    #[tokio::test]
    async fn a_sealed_frame_opens_with_its_session_key() {
        let key = token::TokenKey::from_bytes([3; 32]).session_key(&[0; 16], &Default::default(), Default::default());
        let mut queue = FrameQueue::default();
        queue.push_with(Bytes::from_static(b"xyz"), |payload_len, out| {
            pflex_proto::frame::encode_frame_with(FrameKind::Write, 9, payload_len, out, |header, body| {
                key.seal(header, &77_u64, body);
            });
        });
        let mut bytes = Vec::new();
        queue.send_all(&mut bytes).await.unwrap();
        let frame = FrameReader::new(&bytes[..]).next().await.unwrap().unwrap();
        assert!(frame.opens(&key));
        assert_eq!(token::unsealed::<u64>(&frame.body), Ok(77));
    }
}
