//! The task of a link: connects when there is something to send, and moves bytes between the socket and the core.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use futures::Stream;
use pflex_common::net::{self, connect_data};
use pflex_proto::data::{Hello, HelloReply, PROTOCOL_VERSION, Peer, Refusal};
use pflex_proto::frame::{FrameHeader, FrameKind, HEADER_SIZE, encode_frame};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tokio_stream::wrappers::WatchStream;
use tracing::{debug, info};

use super::super::routes::Routes;
use super::super::{Generations, Patience};
use super::core::{ConnectionFault, Core, has_moved};
use super::{AttemptError, Greeting, Submission};
use crate::buffers::poll_fill;

/// How often unanswered requests are looked for.
const TICK: Duration = Duration::from_millis(250);
/// The least time between two attempts to connect: those who wait try again by themselves.
const RECONNECT_PAUSE: Duration = Duration::from_millis(20);
/// The most requests taken from the channel before the socket gets its turn.
const BATCH: usize = 256;
/// The longest body of an answer to the greeting.
const MAX_GREETING_BODY: u32 = 64 << 10;

/// Runs until all handles are dropped.
pub(super) async fn run(
    mut submissions: mpsc::Receiver<Submission>,
    greeting: Greeting,
    patience: Patience,
    routes: Arc<Routes>,
    generations: Arc<Generations>,
) {
    let mut changes = routes.subscribe();
    loop {
        let Some(first) = submissions.recv().await else { return };
        let mut parked = VecDeque::from([first]);
        let connecting = tokio::time::timeout(patience.connect_timeout, connect(greeting, &routes));
        let connected = park_while(connecting, &mut submissions, &mut parked, &mut changes, &greeting, &routes).await;
        let connected = connected.unwrap_or_else(|_elapsed| Err(ConnectError::Timeout(patience.connect_timeout)));
        match connected {
            Err(error) => {
                debug!(device = %greeting.device, %error, "cannot connect");
                while let Ok(submission) = submissions.try_recv() {
                    parked.push_back(submission);
                }
                let unreachable = AttemptError::Unreachable(error.to_string());
                parked.into_iter().for_each(|submission| submission.answer(Err(unreachable.clone())));
                tokio::time::sleep(RECONNECT_PAUSE).await;
            }
            Ok(stream) => {
                debug!(device = %greeting.device, "connected");
                let mut core = Core::new(greeting.device, Arc::clone(&generations), patience.request_timeout);
                let now = Instant::now();
                parked.into_iter().for_each(|submission| core.submit(submission, now));
                let mut connection = Connection::new(stream, core, &routes);
                let ended = poll_fn(|context| connection.poll(context, &mut submissions)).await;
                match ended {
                    Ended::Unused => return,
                    Ended::Socket(error) => info!(device = %greeting.device, %error, "connection lost"),
                    Ended::Fault(fault) => info!(device = %greeting.device, error = %fault, "connection given up"),
                }
                connection.core.end("the connection was lost");
            }
        }
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
enum ConnectError {
    #[error("{0}")]
    Connect(#[from] net::ConnectError),
    #[error("the map has no address of device {0}")]
    NoAddress(pflex_proto::ids::DeviceId),
    #[error("{0}")]
    Socket(#[from] io::Error),
    #[error("{0}")]
    Frame(#[from] pflex_proto::frame::FrameError),
    #[error("greeting answered with {0:?}")]
    Unexpected(FrameKind),
    #[error("greeting refused: {0}")]
    Refused(String),
    #[error("no connection within {0:?}")]
    Timeout(Duration),
}

/// Connects and exchanges greetings.
async fn connect(greeting: Greeting, routes: &Routes) -> Result<TcpStream, ConnectError> {
    let address = routes.address(greeting.device).ok_or(ConnectError::NoAddress(greeting.device))?;
    let mut stream = connect_data(&address).await?;
    let Greeting { cluster, sdc, process, device } = greeting;
    let (oldest, newest) = (PROTOCOL_VERSION, PROTOCOL_VERSION);
    let hello = Hello { oldest, newest, cluster, device, peer: Peer::Sdc { sdc, process } };
    let mut frame = Vec::with_capacity(128);
    encode_frame(FrameKind::Hello, 0, &hello, 0, &mut frame);
    stream.write_all(&frame).await?;

    let mut header = [0; HEADER_SIZE];
    stream.read_exact(&mut header).await?;
    let header = FrameHeader::parse(&header)?;
    if header.body_len > MAX_GREETING_BODY || header.payload_len > 0 {
        return Err(ConnectError::Unexpected(header.kind));
    }
    let mut body = vec![0; header.body_len as usize];
    stream.read_exact(&mut body).await?;
    match header.kind {
        FrameKind::HelloReply => header.decode::<HelloReply>(&body).map(|_welcome| stream).map_err(Into::into),
        FrameKind::Refusal => Err(ConnectError::Refused(header.decode::<Refusal>(&body)?.why)),
        other => Err(ConnectError::Unexpected(other)),
    }
}

/// Waits for `connecting`; meanwhile requests gather, and those leave whose primary has moved: a dead device must not hold
/// up what another one can serve by now.
async fn park_while<T>(
    connecting: impl Future<Output = T>,
    submissions: &mut mpsc::Receiver<Submission>,
    parked: &mut VecDeque<Submission>,
    changes: &mut watch::Receiver<u64>,
    greeting: &Greeting,
    routes: &Routes,
) -> T {
    tokio::pin!(connecting);
    loop {
        tokio::select! {
            connected = &mut connecting => return connected,
            Some(submission) = submissions.recv() => parked.push_back(submission),
            Ok(()) = changes.changed() => {
                for submission in std::mem::take(parked) {
                    if has_moved(&submission, greeting.device, routes) {
                        // Nothing was sent.
                        submission.answer(Err(AttemptError::Unreachable("the primary moved".to_owned())));
                    } else {
                        parked.push_back(submission);
                    }
                }
            }
        }
    }
}

/// How a connection ended.
enum Ended {
    /// Nobody holds the link any more.
    Unused,
    Socket(io::Error),
    Fault(ConnectionFault),
}

impl From<io::Error> for Ended {
    fn from(error: io::Error) -> Self {
        Self::Socket(error)
    }
}

/// A connection with its core, its clock and its view of the routes.
struct Connection<'a> {
    stream: TcpStream,
    core: Core,
    input: BytesMut,
    needed: usize,
    ticks: Interval,
    routes: &'a Routes,
    changes: WatchStream<u64>,
}

impl<'a> Connection<'a> {
    fn new(stream: TcpStream, core: Core, routes: &'a Routes) -> Self {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let changes = WatchStream::from_changes(routes.subscribe());
        Self { stream, core, input: BytesMut::new(), needed: HEADER_SIZE, ticks, routes, changes }
    }

    /// Reads once, takes what waits in the channel, and sends everything at once; again while anything moves.
    fn poll(&mut self, context: &mut Context<'_>, submissions: &mut mpsc::Receiver<Submission>) -> Poll<Ended> {
        match self.poll_inner(context, submissions) {
            Ok(pending) => pending,
            Err(ended) => Poll::Ready(ended),
        }
    }

    fn poll_inner(
        &mut self,
        context: &mut Context<'_>,
        submissions: &mut mpsc::Receiver<Submission>,
    ) -> Result<Poll<Ended>, Ended> {
        loop {
            let now = Instant::now();
            let mut progress = false;
            while Pin::new(&mut self.changes).poll_next(context).is_ready() {
                self.core.routes_changed(self.routes);
                progress = true;
            }
            if self.ticks.poll_tick(context).is_ready() {
                self.core.tick(now).map_err(Ended::Fault)?;
                progress = true;
            }
            match poll_fill(Pin::new(&mut self.stream), context, &mut self.input, self.needed)? {
                Poll::Ready(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                Poll::Ready(_) => {
                    self.needed = self.core.receive(&mut self.input, now).map_err(Ended::Fault)?;
                    progress = true;
                }
                Poll::Pending => {}
            }
            for _ in 0..BATCH {
                match submissions.poll_recv(context) {
                    Poll::Ready(Some(submission)) => {
                        self.core.submit(submission, now);
                        progress = true;
                    }
                    // Those who wait for an answer do not hold the link; their answers still count.
                    Poll::Ready(None) if self.core.is_idle() => return Ok(Poll::Ready(Ended::Unused)),
                    Poll::Ready(None) | Poll::Pending => break,
                }
            }
            let waiting = self.core.output.len();
            let _ = self.core.output.poll_send(Pin::new(&mut self.stream), context)?;
            progress |= self.core.output.len() < waiting;
            if !progress {
                return Ok(Poll::Pending);
            }
        }
    }
}
