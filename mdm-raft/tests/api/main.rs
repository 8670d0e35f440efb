//! Three members in this process, and everything through their real client ports.

mod cluster;
mod liveness;
mod map;
mod metadata;
mod revocation;
mod sds;
