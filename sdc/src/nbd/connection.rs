//! One client connection: a single task that moves bytes between the socket, the protocol and the backend.
//!
//! Each time it wakes it reads once, starts every whole request that has arrived, collects every reply that is
//! ready and sends all of them in one call: at depth 32 that is few system calls for many requests, and no task is
//! spawned per request. Requests run at the same time and are answered in the order they finish.
//!
//! Bounded: requests and bytes in flight ([`MAX_REQUESTS`], [`MAX_BYTES`]); where a bound is met the connection stops
//! reading, and TCP makes the client wait.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::{Stream, stream::FuturesUnordered};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use super::handshake::{Agreed, Event, Handshake};
use super::reply;
use super::request::{self, Answer, Command, Cookie, Parsed, Request};
use super::wire::{ErrorCode, Violation};
use crate::block::{BlockBackend, Export, Exports, IoError, Payload};
use crate::buffers::{Output, poll_fill};

/// Requests of one connection that run at the same time. Clients keep at most 64 to 128 in flight.
const MAX_REQUESTS: usize = 512;
/// Payload bytes of one connection that are held for running requests and unsent replies: two of the largest.
const MAX_BYTES: usize = 64 << 20;

/// Why a connection ended other than by the client's wish.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// The socket failed.
    #[error("the socket failed")]
    Socket(#[from] io::Error),
    /// The client broke the protocol.
    #[error("the client broke the protocol: {0}")]
    Protocol(#[from] Violation),
    /// The handshake did not end in time.
    #[error("the handshake took longer than {0:?}")]
    HandshakeTimeout(Duration),
}

/// Serves one connection until the client leaves, breaks the protocol, or `shutdown`.
pub(super) async fn serve<S, E>(
    mut stream: S,
    exports: Arc<E>,
    handshake_timeout: Duration,
    shutdown: CancellationToken,
) -> Result<(), ConnectionError>
where
    S: AsyncRead + AsyncWrite + Unpin,
    E: Exports,
{
    let mut input = BytesMut::new();
    let negotiated = tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        done = tokio::time::timeout(handshake_timeout, negotiate(&mut stream, &mut input, &*exports)) => {
            done.map_err(|_elapsed| ConnectionError::HandshakeTimeout(handshake_timeout))??
        }
    };
    let Some((export, agreed)) = negotiated else { return Ok(()) };
    debug!(export = export.info.name, structured = agreed.structured_replies, "export opened");
    Transmission::new(stream, input, export, agreed).run(&shutdown).await
}

/// Drives the handshake; `None` when the client left.
async fn negotiate<S, E>(
    stream: &mut S,
    input: &mut BytesMut,
    exports: &E,
) -> Result<Option<(Export<E::Backend>, Agreed)>, ConnectionError>
where
    S: AsyncRead + AsyncWrite + Unpin,
    E: Exports,
{
    let mut output = BytesMut::new();
    let mut handshake = Handshake::begin(&mut output);
    loop {
        let event = handshake.advance(input, &mut output);
        // What was answered before a violation is still sent: it may say why.
        let event = match event {
            Ok(Event::List) => {
                handshake.listed(&exports.list(), &mut output);
                continue;
            }
            Ok(Event::Open(request)) => {
                let outcome = exports.open(&request.name).await;
                handshake.opened(&request, outcome.as_ref().map(|export| &export.info), &mut output)?;
                match outcome {
                    Ok(export) if request.enters_transmission() => {
                        stream.write_all(&output).await?;
                        return Ok(Some((export, handshake.agreed())));
                    }
                    _told => continue,
                }
            }
            other => other,
        };
        stream.write_all(&output).await?;
        output.clear();
        if event? == Event::Close {
            stream.shutdown().await?;
            return Ok(None);
        }
        if stream.read_buf(input).await? == 0 {
            return if input.is_empty() { Ok(None) } else { Err(Violation::Truncated.into()) };
        }
    }
}

/// A request that has run.
struct Completion {
    cookie: Cookie,
    answer: Answer,
    weight: usize,
    outcome: Result<Payload, IoError>,
}

/// Whether more requests are taken.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Intake {
    /// Read and start requests.
    Open,
    /// The client said goodbye or closed its side: finish what runs.
    Closed,
    /// The process ends: what has arrived is refused, what runs is finished.
    Refusing,
}

/// The transmission phase of one connection.
struct Transmission<S, B> {
    stream: S,
    export: Export<B>,
    structured: bool,
    input: BytesMut,
    /// Bytes the input must hold for the next request to be whole.
    needed: usize,
    output: Output,
    /// A whole request that waits until there is room for it.
    held_back: Option<Request>,
    running: usize,
    running_bytes: usize,
    intake: Intake,
}

impl<S, B> Transmission<S, B>
where
    S: AsyncRead + AsyncWrite + Unpin,
    B: BlockBackend,
{
    fn new(stream: S, input: BytesMut, export: Export<B>, agreed: Agreed) -> Self {
        Self {
            stream,
            export,
            structured: agreed.structured_replies,
            input,
            needed: request::HEADER_SIZE,
            output: Output::default(),
            held_back: None,
            running: 0,
            running_bytes: 0,
            intake: Intake::Open,
        }
    }

    async fn run(mut self, shutdown: &CancellationToken) -> Result<(), ConnectionError> {
        let mut futures = FuturesUnordered::new();
        let mut stop = pin!(shutdown.cancelled());
        poll_fn(|context| {
            loop {
                if self.intake == Intake::Open && stop.as_mut().poll(context).is_ready() {
                    self.intake = Intake::Refusing;
                }
                let mut progress = self.poll_fill(context)?;
                while let Some((cookie, answer, command)) = self.next_to_start()? {
                    futures.push(execute(Arc::clone(&self.export.backend), cookie, answer, command));
                }
                while let Poll::Ready(Some(done)) = Pin::new(&mut futures).poll_next(context) {
                    self.finish(done);
                    progress = true;
                }
                let waiting = self.output.len();
                let sent = self.output.poll_send(Pin::new(&mut self.stream), context)?;
                progress |= self.output.len() < waiting;
                if sent.is_ready() && self.running == 0 && self.held_back.is_none() && self.intake != Intake::Open {
                    return Poll::Ready(Ok::<(), ConnectionError>(()));
                }
                // Nothing to do until the socket or a future wakes this task: each was polled since it last moved.
                if !progress {
                    return Poll::Pending;
                }
            }
        })
        .await?;
        self.stream.shutdown().await?;
        Ok(())
    }

    fn has_room(&self, weight: usize) -> bool {
        let held = self.running_bytes + self.output.len();
        held == 0 || (self.running < MAX_REQUESTS && held + weight <= MAX_BYTES)
    }

    /// Reads once from the socket, where there is room for what may come. Whether anything came.
    fn poll_fill(&mut self, context: &mut Context<'_>) -> Result<bool, ConnectionError> {
        if self.intake != Intake::Open || self.held_back.is_some() || !self.has_room(0) {
            return Ok(false);
        }
        match poll_fill(Pin::new(&mut self.stream), context, &mut self.input, self.needed)? {
            Poll::Pending => Ok(false),
            Poll::Ready(0) if self.input.is_empty() => {
                self.intake = Intake::Closed;
                Ok(true)
            }
            Poll::Ready(0) => Err(Violation::Truncated.into()),
            Poll::Ready(_read) => Ok(true),
        }
    }

    /// The next command to run; refusals are answered here.
    fn next_to_start(&mut self) -> Result<Option<(Cookie, Answer, Command)>, ConnectionError> {
        while self.intake != Intake::Closed {
            let request = match self.held_back.take() {
                Some(request) => request,
                None => match request::parse(&mut self.input, &self.export.info)? {
                    Parsed::Request(request) => request,
                    Parsed::Need(bytes) => {
                        self.needed = bytes;
                        return Ok(None);
                    }
                },
            };
            self.needed = request::HEADER_SIZE;
            let Request { cookie, answer, command } = request;
            let command = match command {
                Ok(Command::Disconnect) => {
                    self.intake = Intake::Closed;
                    return Ok(None);
                }
                _any if self.intake == Intake::Refusing => Err(ErrorCode::Eshutdown),
                checked => checked,
            };
            match command {
                Ok(Command::Nothing) => self.answer(cookie, answer, Ok(Payload::default())),
                Err(refused) => self.answer(cookie, answer, Err(refused)),
                Ok(command) if self.has_room(command.weight()) => {
                    self.running += 1;
                    self.running_bytes += command.weight();
                    return Ok(Some((cookie, answer, command)));
                }
                Ok(command) => {
                    self.held_back = Some(Request { cookie, answer, command: Ok(command) });
                    return Ok(None);
                }
            }
        }
        Ok(None)
    }

    fn finish(&mut self, done: Completion) {
        self.running -= 1;
        self.running_bytes -= done.weight;
        let outcome = match (done.outcome, done.answer) {
            (Ok(payload), Answer::Data(_)) if payload.len() != done.weight => {
                error!(
                    export = self.export.info.name,
                    asked = done.weight,
                    got = payload.len(),
                    "a read of another length"
                );
                Err(ErrorCode::Eio)
            }
            (Ok(payload), _) => Ok(payload),
            (Err(reason), _) => {
                warn!(export = self.export.info.name, %reason, "request failed");
                Err(ErrorCode::from(&reason))
            }
        };
        self.answer(done.cookie, done.answer, outcome);
    }

    fn answer(&mut self, cookie: Cookie, answer: Answer, outcome: Result<Payload, ErrorCode>) {
        match answer {
            Answer::Status => reply::status(&mut self.output, cookie, outcome.map(|_nothing| ())),
            Answer::Data(offset) => reply::data(&mut self.output, cookie, offset, self.structured, outcome),
        }
    }
}

/// Runs one command on the backend.
async fn execute<B: BlockBackend>(backend: Arc<B>, cookie: Cookie, answer: Answer, command: Command) -> Completion {
    let weight = command.weight();
    let nothing = |()| Payload::from(Bytes::new());
    let outcome = match command {
        Command::Read(range) => backend.read(range).await,
        Command::Write(offset, data, durability) => backend.write(offset, data, durability).await.map(nothing),
        Command::Flush => backend.flush().await.map(nothing),
        Command::Trim(range, durability) => backend.trim(range, durability).await.map(nothing),
        Command::WriteZeroes(range, options) => backend.write_zeroes(range, options).await.map(nothing),
        Command::Cache(range) => backend.cache(range).await.map(nothing),
        // Both are answered before anything runs.
        Command::Nothing | Command::Disconnect => Ok(Payload::default()),
    };
    Completion { cookie, answer, weight, outcome }
}
