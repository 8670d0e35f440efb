//! Between the members: a tonic client and server on the Raft port.
//!
//! Each request names the cluster and, for both ends, the member and its store; the server refuses one that is not meant
//! for it or comes from a store the membership does not know under that id (S18). Every call has a deadline; replication
//! is one call for as long as it goes well, with a deadline for each answer (`stream`). Heartbeats, replication and
//! snapshots have connections of their own, so that a large one never delays a small one.

mod client;
pub(in crate::raft) mod heard;
pub mod links;
mod server;
pub(in crate::raft) mod standing;
mod stream;

use std::time::Duration;

pub(in crate::raft) use client::PeerFactory;
pub(in crate::raft) use server::PeerService;

/// Entries' bytes in one append. An entry larger than this travels alone.
pub(in crate::raft) const APPEND_PAYLOAD_BYTES: usize = 1 << 20;
/// The largest command: with its envelope it must pass `MESSAGE_BYTES`.
pub(in crate::raft) const COMMAND_BYTES: usize = 4 << 20;
/// The largest message either side decodes; tonic's own limit of 4 MiB is too near to the largest command.
const MESSAGE_BYTES: usize = 8 << 20;
/// Bytes of a snapshot in one message.
const SNAPSHOT_PART_BYTES: usize = 1 << 20;

/// For an append with entries. Longer than openraft's (a heartbeat interval): the answer waits for the follower's sync,
/// and a slow disk should not make the leader send everything again.
const APPEND_DEADLINE: Duration = Duration::from_secs(1);
const CONNECT_DEADLINE: Duration = Duration::from_millis(300);
/// Between two messages of a snapshot.
const SNAPSHOT_IDLE: Duration = Duration::from_secs(10);
/// What the server gives any request, should its client be gone.
const SERVE_DEADLINE: Duration = Duration::from_secs(10);
