//! Listening: one call that says clearly when a port is taken.

use std::io;

use tokio::net::TcpListener;

use super::{
    Endpoint,
    guard::{ConnectionLimits, Incoming},
};

/// Connections of a control or management port: people, consoles, probes and the MDM's own.
const FEW: usize = 512;

/// A port that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another process has it.
    #[error("{plane} port {endpoint} is taken; stop the process that has it or configure another port")]
    Taken {
        /// What the port is for.
        plane: &'static str,
        /// Where.
        endpoint: Endpoint,
    },
    /// Anything else: no such address, no permission.
    #[error("cannot listen on {plane} port {endpoint}")]
    Failed {
        /// What the port is for.
        plane: &'static str,
        /// Where.
        endpoint: Endpoint,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Binds and listens. `plane` is what a person calls the port ("data", "client API").
///
/// # Errors
/// See [`ListenError`].
pub async fn listen(plane: &'static str, endpoint: &Endpoint) -> Result<TcpListener, ListenError> {
    TcpListener::bind(endpoint.to_string()).await.map_err(|source| {
        let endpoint = endpoint.clone();
        match source.kind() {
            io::ErrorKind::AddrInUse => ListenError::Taken { plane, endpoint },
            _ => ListenError::Failed { plane, endpoint, source },
        }
    })
}

/// A listener as tonic's server takes it, for a port that few connect to.
pub fn incoming(listener: TcpListener) -> Incoming {
    incoming_within(listener, ConnectionLimits::of(FEW))
}

/// A listener as tonic's server takes it, with its own limits.
pub fn incoming_within(listener: TcpListener, limits: ConnectionLimits) -> Incoming {
    Incoming::new(listener, limits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_taken_port_is_named() {
        let first = listen("data", &Endpoint::new("127.0.0.1", 0)).await.unwrap();
        let endpoint = Endpoint::new("127.0.0.1", first.local_addr().unwrap().port());
        let error = listen("data", &endpoint).await.unwrap_err();
        assert!(error.to_string().starts_with(&format!("data port {endpoint} is taken")));
    }
}
