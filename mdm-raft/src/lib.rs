//! The replicated metadata manager: one Raft group that owns topology, volumes, placement, health and authorisation.
//!
//! Reading order: [`command`], [`state`] and [`placement`] decide what a command does, without I/O; [`raft`] orders
//! commands and keeps them, the state they lead to and the snapshots of it; [`api`] takes requests, [`liveness`] watches
//! the SDSs, and [`daemon`] puts a process together.

pub mod api;
pub mod backup;
pub mod command;
pub mod daemon;
pub mod liveness;
pub mod placement;
pub mod raft;
pub mod state;
#[cfg(test)]
mod testing;

/// The types `build.rs` generates from this crate's own `.proto` files.
pub mod pb {
    #![allow(missing_docs, unreachable_pub, clippy::all, clippy::unwrap_used)]
    include!(concat!(env!("OUT_DIR"), "/mdm_proto.rs"));

    /// All of them as one descriptor set, for the reflection service.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/mdm_descriptors.bin"));
}
