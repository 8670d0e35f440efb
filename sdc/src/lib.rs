//! The storage data client: shows volumes of the cluster as NBD exports.
//!
//! Reading order: [`block`] (what both halves agree on), [`nbd`] (the front: sockets and protocol).

pub mod block;
pub mod nbd;
