//! One MDM process: its configuration, its start, its clean end.
//!
//! Start order: store, Raft (own runtime), map feed, API port, upkeep. End: leadership goes over while the API still
//! answers, then streams end, then the API, then Raft and the stores.

mod announce;
mod config;
mod join;
mod restore;
mod run;

pub use crate::api::Limits;
pub use config::{ConfigError, JoinFile, MdmConfig, MdmConfigFile, MemberFile};
pub use restore::{RestoreError, Restored, restore};
pub use run::{DaemonError, init, run};
