//! Connections that a listener takes: not more than it may have, and none that says nothing.
//!
//! A connection beyond the limit is closed at once, so that who was refused hears it and asks another member, instead of
//! waiting in the kernel's queue. One that does not greet in time (HTTP/2's preface and settings) is ended: until then no
//! ping of the server can find out whether anybody is there.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Sleep,
};
use tonic::{
    codegen::tokio_stream::Stream,
    transport::server::{Connected, TcpConnectInfo},
};

/// Bytes of HTTP/2's connection preface with the empty settings frame that must follow it.
const GREETING_BYTES: usize = 24 + 9;
/// For a client on the other side of the world, over a bad line.
const GREETING_TIME: Duration = Duration::from_secs(5);
/// After the system refused a connection, out of file descriptors most likely.
const PAUSE: Duration = Duration::from_millis(50);
/// A flood is one line, not one line a connection.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// What a listener takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ConnectionLimits {
    /// Connections at a time.
    pub connections: usize,
    /// For the first bytes of each.
    pub greeting: Duration,
}

impl ConnectionLimits {
    /// So many connections, with the usual time to greet.
    pub const fn of(connections: usize) -> Self {
        Self { connections, greeting: GREETING_TIME }
    }
}

/// A stream of connections within limits, as tonic's server takes it.
#[derive(Debug)]
pub struct Incoming {
    listener: TcpListener,
    limits: ConnectionLimits,
    places: Arc<Semaphore>,
    pause: Option<Pin<Box<Sleep>>>,
    said: Option<Instant>,
}

impl Incoming {
    pub(super) fn new(listener: TcpListener, limits: ConnectionLimits) -> Self {
        let places = Arc::new(Semaphore::new(limits.connections));
        Self { listener, limits, places, pause: None, said: None }
    }

    fn admit(&mut self, stream: TcpStream, peer: SocketAddr) -> Option<Guarded> {
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            if self.said.is_none_or(|at| at.elapsed() > SAY_EVERY) {
                self.said = Some(Instant::now());
                let most = self.limits.connections;
                tracing::warn!(%peer, "{most} connections are open, as many as this port takes; further ones are closed");
            }
            return None;
        };
        // Only latency suffers without it.
        drop(stream.set_nodelay(true));
        let due = Box::pin(tokio::time::sleep(self.limits.greeting));
        Some(Guarded { stream, greeting: Some((due, GREETING_BYTES)), _place: place })
    }
}

impl Stream for Incoming {
    type Item = io::Result<Guarded>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(context));
                self.pause = None;
            }
            match ready!(self.listener.poll_accept(context)) {
                Ok((stream, peer)) => {
                    if let Some(guarded) = self.admit(stream, peer) {
                        return Poll::Ready(Some(Ok(guarded)));
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection was not accepted");
                    self.pause = Some(Box::pin(tokio::time::sleep(PAUSE)));
                }
            }
        }
    }
}

/// A connection that holds its place.
#[derive(Debug)]
pub struct Guarded {
    stream: TcpStream,
    /// Until when how many bytes are missing; none once they have come.
    greeting: Option<(Pin<Box<Sleep>>, usize)>,
    _place: OwnedSemaphorePermit,
}

impl Connected for Guarded {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Guarded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some((due, _)) = &mut self.greeting
            && due.as_mut().poll(context).is_ready()
        {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client did not greet in time")));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        let read = buffer.filled().len() - before;
        self.greeting = match self.greeting.take() {
            Some((due, missing)) if missing > read => Some((due, missing - read)),
            Some(_) | None => None,
        };
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    async fn incoming(connections: usize, greeting: Duration) -> (Incoming, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (Incoming::new(listener, ConnectionLimits { connections, greeting }), address)
    }

    async fn next(incoming: &mut Incoming) -> Guarded {
        poll_fn(|context| Pin::new(&mut *incoming).poll_next(context)).await.unwrap().unwrap()
    }

    #[tokio::test]
    async fn who_is_too_many_is_closed_and_a_freed_place_is_taken_again() {
        let (mut incoming, address) = incoming(1, GREETING_TIME).await;
        let mut clients = Vec::new();
        for _ in 0..3 {
            clients.push(TcpStream::connect(address).await.unwrap());
        }
        let first = next(&mut incoming).await;
        let serving = tokio::spawn(async move { next(&mut incoming).await });
        for mut refused in clients.drain(1..) {
            assert!(matches!(refused.read(&mut [0; 1]).await, Ok(0) | Err(_)), "closed without a word");
        }
        drop(first);
        let mut late = TcpStream::connect(address).await.unwrap();
        late.write_all(b"x").await.unwrap();
        let mut taken = serving.await.unwrap();
        let mut byte = [0; 1];
        taken.read_exact(&mut byte).await.unwrap();
        assert_eq!(&byte, b"x");
    }

    #[tokio::test]
    async fn who_does_not_greet_in_time_is_ended_and_who_does_is_not() {
        let (mut incoming, address) = incoming(4, Duration::from_millis(100)).await;
        let mut slow = TcpStream::connect(address).await.unwrap();
        slow.write_all(&[b'P'; GREETING_BYTES - 1]).await.unwrap();
        let mut held = next(&mut incoming).await;
        let ended = held.read_to_end(&mut Vec::new()).await.unwrap_err();
        assert_eq!(ended.kind(), io::ErrorKind::TimedOut);

        let mut prompt = TcpStream::connect(address).await.unwrap();
        prompt.write_all(&[b'P'; GREETING_BYTES]).await.unwrap();
        let mut served = next(&mut incoming).await;
        served.read_exact(&mut [0; GREETING_BYTES]).await.unwrap();
        let silent = tokio::time::timeout(Duration::from_millis(300), served.read(&mut [0; 1])).await;
        assert!(silent.is_err(), "a connection that greeted may be silent");
    }
}
