//! Accepts connections on TCP and unix sockets and gives each its task.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, info_span, warn};

use super::connection::{self, ConnectionError};
use crate::block::Exports;

/// How long a listener rests after a failed accept: it fails again at once while the process is out of descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// A silent peer is probed after this time, so that the connections of dead machines go away.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// The bounds of a server.
#[derive(Clone, Copy, Debug)]
pub struct ServerLimits {
    /// Connections at the same time, over all listeners; further ones are closed at once.
    pub max_connections: usize,
    /// Time a client has from connecting to the end of its handshake.
    pub handshake_timeout: Duration,
    /// Time that running requests have to finish after shutdown was asked for.
    pub drain_timeout: Duration,
}

impl Default for ServerLimits {
    /// 256 connections: a few hundred MiB of buffers at worst in practice. 15 s: a person at `nbdsh` is not served.
    fn default() -> Self {
        Self { max_connections: 256, handshake_timeout: Duration::from_secs(15), drain_timeout: Duration::from_secs(5) }
    }
}

/// An NBD server over some exports. Cheap to clone; clones share the limits.
#[derive(Debug)]
pub struct NbdServer<E> {
    exports: Arc<E>,
    limits: ServerLimits,
    places: Arc<Semaphore>,
}

impl<E> Clone for NbdServer<E> {
    fn clone(&self) -> Self {
        Self { exports: Arc::clone(&self.exports), limits: self.limits, places: Arc::clone(&self.places) }
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
        Self { exports, limits, places: Arc::new(Semaphore::new(limits.max_connections)) }
    }

    /// Connections being served now.
    pub fn connections(&self) -> usize {
        self.limits.max_connections - self.places.available_permits()
    }

    /// Serves TCP connections until `shutdown`, and then until what runs has finished or the drain time is over.
    pub async fn serve_tcp(self, listener: TcpListener, shutdown: CancellationToken) {
        self.serve(listener, shutdown).await;
    }

    /// The same for a unix socket.
    pub async fn serve_unix(self, listener: UnixListener, shutdown: CancellationToken) {
        self.serve(listener, shutdown).await;
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
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            warn!(peer, limit = self.limits.max_connections, "NBD connection refused: too many");
            return;
        };
        let serving =
            connection::serve(stream, Arc::clone(&self.exports), self.limits.handshake_timeout, shutdown.clone());
        let span = info_span!("nbd", peer);
        connections.spawn(
            async move {
                match serving.await {
                    Ok(()) => debug!("connection closed"),
                    Err(ConnectionError::Socket(error)) => debug!(%error, "connection lost"),
                    Err(error @ (ConnectionError::Protocol(_) | ConnectionError::HandshakeTimeout(_))) => {
                        warn!(%error, "connection closed");
                    }
                }
                drop(place);
            }
            .instrument(span),
        );
    }
}
