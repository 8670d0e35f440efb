//! The Raft layer: a log on one RocksDB, the state it leads to on another, snapshots, and the traffic between members.
//!
//! Reading order: `types` (what openraft is parametrised by), `codec` (records on disk and wire), `durable`, `identity`
//! and `fatal` (a store's ground rules), `log_store`, `clock`, `state_store`, `snapshot`, `network`, and `group`, the
//! only part the rest of the MDM uses.
//!
//! Invariants:
//! - a vote or an entry is on disk before anybody is told of it, in the order openraft wrote them;
//! - the log is cut only below a snapshot that is on disk;
//! - nothing is retried after a failed sync: the process stops.

pub mod clock;
pub mod codec;
mod durable;
mod error;
mod fatal;
pub mod group;
mod identity;
pub mod log_store;
pub mod network;
mod restore;
pub mod snapshot;
pub mod state_store;
#[cfg(test)]
mod tests;
pub mod types;
mod wal;

pub use error::StoreError;
pub use fatal::{FatalHook, stop_process};
pub use group::{
    Committed, Group as RaftGroup, GroupConfig, GroupStatus, LeaderInfo, LeaderView, MembershipError, OpenError,
    ProposeError, ReadError, Role, Standing,
};
pub use identity::StoreIdentity;
pub use network::links::Links;
pub(crate) use types::EncodedCommand;
pub use types::MdmNode;
