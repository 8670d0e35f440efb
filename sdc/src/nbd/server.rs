//! Accepts connections on TCP and unix sockets and gives each its task.

mod handshakes;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, info_span, warn};

use self::handshakes::Handshakes;
use super::budget::{Budget, STALL};
use super::connection::{self, ConnectionError, Service};
use crate::block::Exports;

/// How long a listener rests after a failed accept: it fails again at once while the process is out of descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// A silent peer is probed after this time, so that the connections of dead machines go away.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// `ServerLimits::busy_poll` by default.
pub(crate) const BUSY_POLL_US: u64 = 100;

/// The bounds of a server.
#[derive(Clone, Copy, Debug)]
pub struct ServerLimits {
    /// Connections past their handshake at the same time, over all listeners; further ones are closed at once.
    pub max_connections: usize,
    /// Connections in their handshake at the same time; one more ends the oldest of them.
    pub max_handshakes: usize,
    /// Bytes that all connections together hold for requests and replies, beyond 1 MiB for each of them.
    pub max_bytes: usize,
    /// A client that holds some of these bytes, while others wait for them, is closed when it hardly moves for this time.
    pub stall_timeout: Duration,
    /// How long the next request of a client that has all its answers is looked for before its task sleeps; zero is never.
    pub busy_poll: Duration,
    /// Time a client has from connecting to the end of its handshake.
    pub handshake_timeout: Duration,
    /// Time that running requests have to finish after shutdown was asked for.
    pub drain_timeout: Duration,
}

impl Default for ServerLimits {
    /// 256 connections and as many handshakes: together within the usual 1,024 descriptors. 512 MiB: sixteen of the largest
    /// requests at once. 15 s: a person at `nbdsh` is not served.
    /// 100 us: twice what a client takes between two requests in a virtual machine.
    fn default() -> Self {
        Self {
            max_connections: 256,
            max_handshakes: 256,
            max_bytes: 512 << 20,
            stall_timeout: STALL,
            busy_poll: Duration::from_micros(BUSY_POLL_US),
            handshake_timeout: Duration::from_secs(15),
            drain_timeout: Duration::from_secs(5),
        }
    }
}

/// An NBD server over some exports. Cheap to clone; clones share the limits.
pub struct NbdServer<E> {
    exports: Arc<E>,
    limits: ServerLimits,
    places: Arc<Semaphore>,
    handshakes: Handshakes,
    budget: Budget,
    tls: Option<TlsAcceptor>,
}

impl<E> std::fmt::Debug for NbdServer<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NbdServer")
            .field("limits", &self.limits)
            .field("tls", &self.tls.is_some())
            .finish_non_exhaustive()
    }
}

impl<E> Clone for NbdServer<E> {
    fn clone(&self) -> Self {
        Self {
            exports: Arc::clone(&self.exports),
            limits: self.limits,
            places: Arc::clone(&self.places),
            handshakes: self.handshakes.clone(),
            budget: self.budget.clone(),
            tls: self.tls.clone(),
        }
    }
}

/// What TCP and unix listeners have alike.
trait Accept: Send + Sync {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// The next connection and a name for its peer. Cancel-safe, as the listeners' own `accept` is.
    fn accept_one(&self) -> impl Future<Output = io::Result<(Self::Stream, String)>> + Send;
}

impl Accept for TcpListener {
    type Stream = TcpStream;

    async fn accept_one(&self) -> io::Result<(TcpStream, String)> {
        let (stream, peer) = self.accept().await?;
        // Both fail only on a connection that has ended already; serving it will notice.
        let _ = stream.set_nodelay(true);
        let probes = socket2::TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 3);
        let _ = socket2::SockRef::from(&stream).set_tcp_keepalive(&probes);
        Ok((stream, peer.to_string()))
    }
}

impl Accept for UnixListener {
    type Stream = UnixStream;

    async fn accept_one(&self) -> io::Result<(UnixStream, String)> {
        Ok((self.accept().await?.0, "unix".to_owned()))
    }
}

impl<E: Exports> NbdServer<E> {
    /// A server of `exports`.
    pub fn new(exports: Arc<E>, limits: ServerLimits) -> Self {
        Self {
            exports,
            limits,
            places: Arc::new(Semaphore::new(limits.max_connections)),
            handshakes: Handshakes::new(limits.max_handshakes),
            budget: Budget::new(limits.max_bytes, limits.stall_timeout),
            tls: None,
        }
    }

    /// Requires TLS of every client that comes by TCP. Who may open the unix socket is decided by its file.
    #[must_use]
    pub fn with_tls(self, config: Arc<ServerConfig>) -> Self {
        Self { tls: Some(config.into()), ..self }
    }

    /// Connections being served now, those in their handshake too.
    pub fn connections(&self) -> usize {
        self.limits.max_connections - self.places.available_permits() + self.handshakes.count()
    }

    /// Serves TCP connections until `shutdown`, and then until what runs has finished or the drain time is over.
    pub async fn serve_tcp(self, listener: TcpListener, shutdown: CancellationToken) {
        self.serve(listener, shutdown).await;
    }

    /// The same for a unix socket, without TLS.
    pub async fn serve_unix(self, listener: UnixListener, shutdown: CancellationToken) {
        Self { tls: None, ..self }.serve(listener, shutdown).await;
    }

    async fn serve(self, listener: impl Accept, shutdown: CancellationToken) {
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => break,
                Some(_ended) = connections.join_next() => continue,
                accepted = listener.accept_one() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => self.admit(&mut connections, stream, peer, &shutdown),
                Err(error) => {
                    warn!(%error, "accepting an NBD connection failed");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            }
        }
        let drained = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(self.limits.drain_timeout, drained).await.is_err() {
            warn!("NBD requests were still running at the end of the drain time");
        }
    }

    fn admit<S>(&self, connections: &mut JoinSet<()>, stream: S, peer: String, shutdown: &CancellationToken)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        if self.places.available_permits() == 0 {
            warn!(peer, limit = self.limits.max_connections, "NBD connection refused: too many");
            return;
        }
        let (handshake, places) = (self.handshakes.enter(), Arc::clone(&self.places));
        let evicted = handshake.evicted();
        let admit = move || {
            let place = Arc::clone(&places).try_acquire_owned().ok()?;
            // From here on it counts among the others.
            handshake.leave();
            Some(place)
        };
        let service = Service {
            exports: Arc::clone(&self.exports),
            handshake_timeout: self.limits.handshake_timeout,
            budget: self.budget.clone(),
            busy_poll: self.limits.busy_poll,
            shutdown: shutdown.clone(),
            tls: self.tls.clone(),
            evicted,
            admit,
        };
        let serving = connection::serve(stream, service);
        let span = info_span!("nbd", peer);
        connections.spawn(
            async move {
                match serving.await {
                    Ok(()) => debug!("connection closed"),
                    Err(ConnectionError::Socket(error)) => debug!(%error, "connection lost"),
                    // Many at once under an attack: one line each would be another one.
                    Err(error @ (ConnectionError::HandshakeTimeout(_) | ConnectionError::HandshakeEvicted)) => {
                        debug!(%error, "connection closed");
                    }
                    Err(ConnectionError::Tls(error)) => warn!(%error, "TLS failed; connection closed"),
                    Err(error @ (ConnectionError::Protocol(_) | ConnectionError::TooSlow(_))) => {
                        warn!(%error, "connection closed");
                    }
                }
            }
            .instrument(span),
        );
    }
}
