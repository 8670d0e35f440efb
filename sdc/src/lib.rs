//! The storage data client: shows volumes of the cluster as NBD exports.
//!
//! Reading order: [`block`] (what both halves agree on), [`nbd`] (the front: sockets and protocol), [`engine`] (the back:
//! splitting, routing, sessions, retries), `buffers` (what both do with sockets), [`daemon`] (the process around them).

pub mod block;
pub mod daemon;
pub mod engine;
pub mod nbd;

mod buffers;
