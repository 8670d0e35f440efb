//! The storage data server.

pub mod device;
pub mod replication;
pub mod store;
