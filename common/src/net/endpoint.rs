//! Where a peer listens, and connecting to it.

use std::{fmt, io, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tonic::transport::Channel;

/// A connect that takes longer has failed; loopback and LAN answer in a millisecond.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// HTTP/2 pings find a peer that vanished without a FIN.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(3);

/// `host:port`, checked when parsed.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Endpoint {
    host: String,
    port: u16,
}

/// Text that is not `host:port`.
#[derive(Debug, thiserror::Error)]
#[error("`{text}` is not HOST:PORT")]
pub struct ParseEndpointError {
    text: String,
}

impl FromStr for Endpoint {
    type Err = ParseEndpointError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed = text.rsplit_once(':').and_then(|(host, port)| {
            let bracketed = host.starts_with('[') && host.ends_with(']');
            let valid = !host.is_empty() && (bracketed || !host.contains([':', '/', ' ', '@']));
            Some(Self { host: host.to_owned(), port: port.parse().ok()? }).filter(|_| valid)
        });
        parsed.ok_or_else(|| ParseEndpointError { text: text.to_owned() })
    }
}

impl TryFrom<String> for Endpoint {
    type Error = ParseEndpointError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Endpoint> for String {
    fn from(endpoint: Endpoint) -> Self {
        endpoint.to_string()
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// A peer that cannot be reached.
#[derive(Debug, thiserror::Error)]
#[error("cannot connect to {endpoint}")]
pub struct ConnectError {
    endpoint: Endpoint,
    #[source]
    source: io::Error,
}

impl ConnectError {
    /// The peer's kernel answered that nobody listens there: half of a proof of death (S8).
    pub fn refused(&self) -> bool {
        self.source.kind() == io::ErrorKind::ConnectionRefused
    }
}

impl Endpoint {
    /// From its parts, as configured.
    pub fn new(host: impl Into<String>, port: u16) -> Self {
        Self { host: host.into(), port }
    }

    /// The port.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// The host, an address in brackets if IPv6.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// A gRPC channel that connects at first use and again after each loss.
    ///
    /// # Panics
    /// Never: what parsed as an endpoint is a valid authority.
    pub fn channel(&self) -> Channel {
        tonic::transport::Endpoint::from_shared(format!("http://{self}"))
            .expect("host and port were checked when parsed")
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .tcp_nodelay(true)
            .connect_lazy()
    }
}

/// Probes of an idle data-plane connection start after this and follow each other by it.
const DATA_KEEPALIVE: Duration = Duration::from_secs(2);
/// Bytes that the peer's machine has not confirmed for so long: it is gone. A frozen process does not count, its kernel
/// still confirms.
const DATA_UNCONFIRMED: Duration = Duration::from_secs(6);

/// Sets what every data-plane connection needs, on both ends: no delay, and an end when the peer's machine vanished
/// without a word.
///
/// # Errors
/// The socket's.
pub fn tune_data(stream: &TcpStream) -> io::Result<()> {
    let socket = SockRef::from(stream);
    socket.set_tcp_nodelay(true)?;
    let keepalive = TcpKeepalive::new().with_time(DATA_KEEPALIVE).with_interval(DATA_KEEPALIVE).with_retries(3);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(DATA_UNCONFIRMED))
}

/// Connects to a data plane.
///
/// # Errors
/// [`ConnectError`], also when it takes longer than two seconds.
pub async fn connect_data(endpoint: &Endpoint) -> Result<TcpStream, ConnectError> {
    let connecting = async {
        let stream = TcpStream::connect(endpoint.to_string()).await?;
        tune_data(&stream)?;
        Ok(stream)
    };
    tokio::time::timeout(CONNECT_TIMEOUT, connecting)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(|source| ConnectError { endpoint: endpoint.clone(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_and_port_are_parsed() {
        for good in ["127.0.0.1:8001", "mdm-1.example:80", "[::1]:9"] {
            assert_eq!(good.parse::<Endpoint>().unwrap().to_string(), good);
        }
        for bad in ["", "127.0.0.1", ":80", "host:", "host:99999", "::1:80", "http://x:1", "a b:1", "u@h:1"] {
            assert!(bad.parse::<Endpoint>().is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn nobody_listening_is_a_refusal() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = Endpoint::new("127.0.0.1", listener.local_addr().unwrap().port());
        drop(listener);
        assert!(connect_data(&endpoint).await.unwrap_err().refused());
    }
}
