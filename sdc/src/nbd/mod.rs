//! An NBD server: fixed newstyle; simple, structured and extended replies; block status; over TCP and unix sockets.
//!
//! From the protocol document of the NBD project (doc/proto.md of 2026-05, and its extension-ext-header branch for extended
//! headers; its words are used for names). The protocol itself does no I/O: [`handshake`], [`request`] and `reply` turn bytes
//! into values and back; `negotiation` and `connection` move the bytes, `budget` bounds their memory, `busy_poll` saves
//! wake-ups, [`server`] accepts.
//! What a client sends is never trusted: a breach of the protocol ends its connection only.
//!
//! Each rule that a server must keep, and the test named after it: docs/nbd.md. Not spoken, and answered as the document
//! asks: BLOCK_STATUS with a payload, resize.

pub mod handshake;
pub mod request;
pub mod server;
pub mod wire;

mod budget;
mod busy_poll;
mod connection;
mod negotiation;
mod reply;

pub use connection::ConnectionError;
pub(crate) use server::BUSY_POLL_US;
pub use server::{NbdServer, ServerLimits};
