//! An NBD server: fixed newstyle, OPT_GO/INFO/LIST, simple and structured replies, over TCP and unix sockets.
//!
//! From the protocol document of the NBD project (doc/proto.md of 2026-05; its words are used for names). The protocol itself
//! does no I/O: [`handshake`], [`request`] and `reply` turn bytes into values and back, `connection` moves the
//! bytes, [`server`] accepts. What a client sends is never trusted: a breach of the protocol ends its connection only.
//!
//! Not spoken, and answered as the document asks: TLS, metadata contexts (base:allocation), extended headers.

pub mod handshake;
pub mod request;
pub mod server;
pub mod wire;

mod connection;
mod reply;

pub use connection::ConnectionError;
pub use server::{NbdServer, ServerLimits};
