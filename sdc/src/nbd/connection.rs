//! One client connection: a single task that moves bytes between the socket, the protocol and the backend.
//!
//! Each time it wakes it reads once, starts every whole request that has arrived, collects every reply that is
//! ready and sends all of them in one call: at depth 32 that is few system calls for many requests, and no task is
//! spawned per request. Requests run at the same time and are answered in the order they finish.
//!
//! Bounded: requests and bytes in flight ([`MAX_REQUESTS`], [`MAX_BYTES`]), and the bytes of all connections together
//! (`budget`); where a bound is met the connection stops reading, and TCP makes the client wait.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::{Stream, stream::FuturesUnordered};
use pflex_common::clock::MonotonicTime;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, Sleep};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use super::budget::{Account, Budget};
use super::busy_poll::{BusyPoll, poll_again};
use super::handshake::{Agreed, Tls};
use super::negotiation::{Negotiated, negotiate};
use super::reply::{Failure, Reply};
use super::request::{self, Answer, Command, Parsed, Request};
use super::wire::{ErrorCode, Violation};
use crate::block::{BlockBackend, Export, Exports, Extent, ExtentState, IoError, Payload};
use crate::buffers::{Output, poll_fill};

/// Requests of one connection that run at the same time. Clients keep at most 64 to 128 in flight.
const MAX_REQUESTS: usize = 512;
/// Payload bytes of one connection that are held for running requests and unsent replies: two of the largest.
const MAX_BYTES: usize = 64 << 20;
/// A request from this size on leaves a buffer behind that is worth giving back.
const LARGE_REQUEST: usize = 1 << 20;
/// How long requests are still refused in words after the export or the server has ended, before the connection is closed:
/// closing with unread requests would make TCP throw away the last replies.
const REFUSING: Duration = Duration::from_millis(250);
/// A client that holds memory which others wait for moves at least so many bytes in each stall period, or is closed.
const LEAST_PROGRESS: u64 = 1 << 20;

/// Why a connection ended other than by the client's wish.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// The socket failed.
    #[error("the socket failed")]
    Socket(#[from] io::Error),
    /// No TLS: a client without a certificate that is trusted here, or none that speaks TLS 1.3.
    #[error("TLS failed")]
    Tls(#[source] io::Error),
    /// The client broke the protocol.
    #[error("the client broke the protocol: {0}")]
    Protocol(#[from] Violation),
    /// The handshake did not end in time.
    #[error("the handshake took longer than {0:?}")]
    HandshakeTimeout(Duration),
    /// Newer handshakes needed the place of this one, the oldest.
    #[error("its handshake was the oldest of too many")]
    HandshakeEvicted,
    /// It held memory that others waited for, and hardly read or sent.
    #[error("it moved less than {LEAST_PROGRESS} bytes in {0:?} while others waited for the memory it holds")]
    TooSlow(Duration),
}

/// What a connection is served with.
pub(super) struct Service<E, A> {
    pub(super) exports: Arc<E>,
    pub(super) handshake_timeout: Duration,
    pub(super) budget: Budget,
    /// How long an answered client's next request is looked for before the task sleeps.
    pub(super) busy_poll: Duration,
    pub(super) shutdown: CancellationToken,
    /// Every client must speak TLS.
    pub(super) tls: Option<TlsAcceptor>,
    /// Ends a handshake whose place is needed.
    pub(super) evicted: CancellationToken,
    /// Gives a place in the transmission phase, if there is one.
    pub(super) admit: A,
}

/// Serves one connection until the client leaves, breaks the protocol, or the server or the export ends.
pub(super) async fn serve<S, E, A, P>(mut stream: S, service: Service<E, A>) -> Result<(), ConnectionError>
where
    S: AsyncRead + AsyncWrite + Unpin,
    E: Exports,
    A: Fn() -> Option<P>,
{
    let Service { exports, handshake_timeout, budget, busy_poll, shutdown, tls, evicted, admit } = service;
    let means = (budget, BusyPoll::new(busy_poll));
    let bounds = Bounds { until: Instant::now() + handshake_timeout, handshake_timeout, shutdown: &shutdown, evicted };
    let mut input = BytesMut::new();
    let mode = if tls.is_some() { Tls::Forced } else { Tls::No };
    let plain = negotiate(&mut stream, &mut input, &*exports, (mode, None), &admit);
    match (bounds.hold(plain).await?, tls) {
        (Negotiated::Left, _) => Ok(()),
        (Negotiated::Opened(export, agreed, _place), _) => {
            debug!(export = export.info.name, mode = ?agreed.mode, "export opened");
            Transmission::new(stream, input, export, agreed, means).run(&shutdown).await
        }
        (Negotiated::StartTls(_), None) => unreachable!("it is offered where there is TLS"),
        (Negotiated::StartTls(handshake), Some(acceptor)) => {
            let mut secured = None;
            let negotiating = async {
                let accepted = acceptor.accept(stream).await.map_err(ConnectionError::Tls)?;
                let stream = secured.insert(accepted);
                negotiate(stream, &mut input, &*exports, (mode, Some(handshake)), &admit).await
            };
            let negotiated = bounds.hold(negotiating).await?;
            let (Negotiated::Opened(export, agreed, _place), Some(stream)) = (negotiated, secured) else {
                return Ok(());
            };
            debug!(export = export.info.name, mode = ?agreed.mode, "export opened over TLS");
            Transmission::new(stream, input, export, agreed, means).run(&shutdown).await
        }
    }
}

/// What ends a handshake early.
struct Bounds<'a> {
    until: Instant,
    handshake_timeout: Duration,
    shutdown: &'a CancellationToken,
    evicted: CancellationToken,
}

impl Bounds<'_> {
    async fn hold<B, P>(
        &self,
        negotiating: impl Future<Output = Result<Negotiated<B, P>, ConnectionError>>,
    ) -> Result<Negotiated<B, P>, ConnectionError> {
        tokio::select! {
            () = self.shutdown.cancelled() => Ok(Negotiated::Left),
            () = self.evicted.cancelled() => Err(ConnectionError::HandshakeEvicted),
            done = tokio::time::timeout_at(self.until, negotiating) => {
                done.map_err(|_elapsed| ConnectionError::HandshakeTimeout(self.handshake_timeout))?
            }
        }
    }
}

/// What a command brought.
enum Brought {
    Payload(Payload),
    Extents(Vec<Extent>),
}

/// A request that has run.
struct Completion {
    reply: Reply,
    answer: Answer,
    weight: usize,
    outcome: Result<Brought, IoError>,
}

/// Whether more requests are taken.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Intake {
    /// Read and start requests.
    Open,
    /// The client said goodbye or closed its side: finish what runs.
    Closed,
    /// The process or the export ends: what arrives is refused, what runs is finished.
    Refusing,
}

/// A request that may run.
struct Startable {
    reply: Reply,
    answer: Answer,
    command: Command,
}

/// The transmission phase of one connection.
struct Transmission<S, B> {
    stream: S,
    export: Export<B>,
    agreed: Agreed,
    input: BytesMut,
    /// Bytes the input must hold for the next request to be whole.
    needed: usize,
    output: Output,
    /// A whole request that waits until there is room for it.
    held_back: Option<Request>,
    running: usize,
    running_bytes: usize,
    intake: Intake,
    account: Account,
    budget: Budget,
    /// Bytes read and sent so far.
    moved: u64,
    /// Looks at `moved` while the account holds something.
    watch: Option<(Pin<Box<Sleep>>, u64)>,
    /// Until when requests are refused in words.
    refusing: Option<Pin<Box<Sleep>>>,
    busy_poll: BusyPoll,
}

impl<S, B> Transmission<S, B>
where
    S: AsyncRead + AsyncWrite + Unpin,
    B: BlockBackend,
{
    fn new(
        stream: S,
        input: BytesMut,
        export: Export<B>,
        agreed: Agreed,
        (budget, busy_poll): (Budget, BusyPoll),
    ) -> Self {
        Self {
            stream,
            export,
            agreed,
            input,
            needed: request::header_size(agreed.mode),
            output: Output::default(),
            held_back: None,
            running: 0,
            running_bytes: 0,
            intake: Intake::Open,
            account: budget.account(),
            budget,
            moved: 0,
            watch: None,
            refusing: None,
            busy_poll,
        }
    }

    async fn run(mut self, shutdown: &CancellationToken) -> Result<(), ConnectionError> {
        let mut futures = FuturesUnordered::new();
        let ended = self.export.ended.clone();
        let mut stop = pin!(async {
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = ended.cancelled() => {}
            }
        });
        poll_fn(|context| {
            loop {
                if self.intake == Intake::Open && stop.as_mut().poll(context).is_ready() {
                    self.intake = Intake::Refusing;
                    self.refusing = Some(Box::pin(tokio::time::sleep(REFUSING)));
                }
                let mut progress = self.poll_fill(context)?;
                while let Some(Startable { reply, answer, command }) = self.next_to_start(context)? {
                    futures.push(execute(Arc::clone(&self.export.backend), reply, answer, command));
                }
                while let Poll::Ready(Some(done)) = Pin::new(&mut futures).poll_next(context) {
                    self.finish(done);
                    progress = true;
                }
                let waiting = self.output.len();
                let sent = self.output.poll_send(Pin::new(&mut self.stream), context)?;
                self.moved += (waiting - self.output.len()) as u64;
                progress |= self.output.len() < waiting;
                self.account.shrink(self.held() + self.incoming());
                // A TLS stream holds what its socket did not take.
                let flushed = Pin::new(&mut self.stream).poll_flush(context)?;
                let is_quiet = sent.is_ready() && flushed.is_ready() && self.running == 0 && self.held_back.is_none();
                if is_quiet && self.poll_is_over(context) {
                    return Poll::Ready(Ok::<(), ConnectionError>(()));
                }
                // Nothing to do until the socket or a future wakes this task: each was polled since it last moved.
                if progress {
                    self.note_work();
                } else {
                    self.look_again(context);
                    return self.poll_watch(context).map(Err);
                }
            }
        })
        .await?;
        self.stream.shutdown().await?;
        Ok(())
    }

    fn note_work(&mut self) {
        if self.busy_poll.is_on() {
            self.busy_poll.came(MonotonicTime::now());
        }
    }

    /// Before this task sleeps: looks for the next request of a client that has all its answers.
    fn look_again(&mut self, context: &mut Context<'_>) {
        let is_answered = self.running == 0 && self.output.len() == 0 && self.intake == Intake::Open;
        if self.busy_poll.is_on() && is_answered && self.busy_poll.looks_again(MonotonicTime::now()) {
            poll_again(context);
        }
    }

    /// With nothing left to do: whether nothing more may come.
    fn poll_is_over(&mut self, context: &mut Context<'_>) -> bool {
        match self.intake {
            Intake::Open => false,
            Intake::Closed => true,
            Intake::Refusing => {
                self.refusing.as_mut().is_none_or(|refusing| refusing.as_mut().poll(context).is_ready())
            }
        }
    }

    /// Ready when the client is too slow for what it holds.
    fn poll_watch(&mut self, context: &mut Context<'_>) -> Poll<ConnectionError> {
        // What waits for the backend is not the client's fault.
        if self.account.held() == 0 || (self.output.len() == 0 && self.incoming() == 0) {
            self.watch = None;
            return Poll::Pending;
        }
        let (stall, moved) = (self.budget.stall(), self.moved);
        let (timer, before) = self.watch.get_or_insert_with(|| (Box::pin(tokio::time::sleep(stall)), moved));
        while timer.as_mut().poll(context).is_ready() {
            if self.budget.is_wanted() && moved - *before < LEAST_PROGRESS {
                return Poll::Ready(ConnectionError::TooSlow(stall));
            }
            *before = moved;
            timer.as_mut().reset(Instant::now() + stall);
        }
        Poll::Pending
    }

    /// Bytes held for running requests and unsent replies.
    fn held(&self) -> usize {
        self.running_bytes + self.output.len()
    }

    /// Bytes of a payload that is arriving.
    fn incoming(&self) -> usize {
        if self.needed > request::EXTENDED_HEADER_SIZE { self.needed } else { 0 }
    }

    /// Whether this connection may hold so many more bytes, and whether all connections together may.
    fn has_room(&mut self, context: &mut Context<'_>, more: usize) -> bool {
        let held = self.held();
        let most = MAX_BYTES.min(self.export.backend.room());
        (held == 0 || (self.running < MAX_REQUESTS && held + more <= most))
            && self.account.poll_cover(context, held + more).is_ready()
    }

    /// Reads once from the socket, where there is room for what may come. Whether anything came.
    fn poll_fill(&mut self, context: &mut Context<'_>) -> Result<bool, ConnectionError> {
        let incoming = self.incoming();
        if self.intake == Intake::Closed || self.held_back.is_some() || !self.has_room(context, incoming) {
            return Ok(false);
        }
        match poll_fill(Pin::new(&mut self.stream), context, &mut self.input, self.needed)? {
            Poll::Pending => Ok(false),
            Poll::Ready(0) if self.input.is_empty() => {
                self.intake = Intake::Closed;
                self.export.backend.hang_up();
                Ok(true)
            }
            Poll::Ready(0) => Err(Violation::Truncated.into()),
            Poll::Ready(read) => {
                self.moved += read as u64;
                Ok(true)
            }
        }
    }

    /// The next command to run; refusals are answered here.
    fn next_to_start(&mut self, context: &mut Context<'_>) -> Result<Option<Startable>, ConnectionError> {
        while self.intake != Intake::Closed {
            let request = match self.held_back.take() {
                Some(request) => request,
                // Replies to refused requests are bounded like others.
                None if self.output.len() > MAX_BYTES => return Ok(None),
                None => match request::parse(&mut self.input, &self.export.info, self.agreed)? {
                    Parsed::Request(request) => request,
                    Parsed::Need(bytes) => {
                        self.needed = bytes;
                        return Ok(None);
                    }
                },
            };
            if self.needed > LARGE_REQUEST {
                // Else what is left of the input would keep the whole buffer for as long as the client is quiet.
                self.input = BytesMut::from(&self.input[..]);
            }
            self.needed = request::header_size(self.agreed.mode);
            let Request { cookie, offset, answer, command } = request;
            let reply = Reply { mode: self.agreed.mode, cookie, offset };
            let command = match command {
                Ok(Command::Disconnect) => {
                    self.intake = Intake::Closed;
                    return Ok(None);
                }
                _any if self.intake == Intake::Refusing => Err(ErrorCode::Eshutdown),
                checked => checked,
            };
            match command {
                Ok(Command::Nothing) => self.answer(reply, answer, Ok(Brought::Payload(Payload::default()))),
                Err(refused) => reply.failed(&mut self.output, &refused.into()),
                Ok(command) if self.has_room(context, command.weight()) => {
                    self.running += 1;
                    self.running_bytes += command.weight();
                    return Ok(Some(Startable { reply, answer, command }));
                }
                Ok(command) => {
                    self.held_back = Some(Request { cookie, offset, answer, command: Ok(command) });
                    return Ok(None);
                }
            }
        }
        Ok(None)
    }

    fn finish(&mut self, done: Completion) {
        self.running -= 1;
        self.running_bytes -= done.weight;
        let export = &self.export.info.name;
        let outcome = match (done.outcome, done.answer) {
            (Ok(Brought::Payload(payload)), Answer::Data { length, .. }) if payload.len() != length => {
                error!(export, asked = length, got = payload.len(), "a read of another length");
                Err(ErrorCode::Eio.into())
            }
            (Ok(brought), _) => Ok(brought),
            (Err(reason), _) => {
                let code = ErrorCode::from(&reason);
                if code == ErrorCode::Eshutdown || code == ErrorCode::Enotsup {
                    debug!(export, %reason, "request refused");
                } else {
                    warn!(export, %reason, "request failed");
                }
                Err(Failure { code, why: reason.to_string().into() })
            }
        };
        self.answer(done.reply, done.answer, outcome);
    }

    fn answer(&mut self, reply: Reply, answer: Answer, outcome: Result<Brought, Failure>) {
        let output = &mut self.output;
        match (outcome, answer) {
            (Err(failure), _) => reply.failed(output, &failure),
            (Ok(Brought::Payload(payload)), Answer::Data { whole, .. }) => reply.data(output, payload, whole),
            (Ok(Brought::Extents(extents)), Answer::Extents) => reply.extents(output, &extents),
            (Ok(Brought::Payload(_) | Brought::Extents(_)), _) => reply.done(output),
        }
    }
}

/// Runs one command on the backend.
async fn execute<B: BlockBackend>(backend: Arc<B>, reply: Reply, answer: Answer, command: Command) -> Completion {
    let weight = command.weight();
    let nothing = |()| Payload::from(Bytes::new());
    let outcome = match command {
        Command::Read(range) => backend.read(range).await,
        Command::Write(offset, data, durability) => backend.write(offset, data, durability).await.map(nothing),
        Command::Flush => backend.flush().await.map(nothing),
        Command::Trim(range, durability) => backend.trim(range, durability).await.map(nothing),
        Command::WriteZeroes(range, options) => backend.write_zeroes(range, options).await.map(nothing),
        Command::Cache(range) => backend.cache(range).await.map(nothing),
        Command::BlockStatus(range, most) => {
            let extents = match backend.extents(range, most).await {
                Ok(extents) if !extents.is_empty() => Ok(extents),
                Err(error @ (IoError::ShuttingDown | IoError::Unmapped(_))) => Err(error),
                // What cannot be known is data: the document allows to say so at any time.
                Ok(_) | Err(_) => Ok(vec![Extent { length: range.length, state: ExtentState::Data }]),
            };
            return Completion { reply, answer, weight, outcome: extents.map(Brought::Extents) };
        }
        // Both are answered before anything runs.
        Command::Nothing | Command::Disconnect => Ok(Payload::default()),
    };
    Completion { reply, answer, weight, outcome: outcome.map(Brought::Payload) }
}
