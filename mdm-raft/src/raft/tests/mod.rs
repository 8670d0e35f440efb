//! The Raft layer on real disks and sockets: openraft's own suite, crashes, failing disks, and whole groups.

mod catch_up;
mod cluster;
mod crash;
mod faults;
mod five;
pub(super) mod kit;
mod log_store;
mod membership;
mod refusals;
mod suite;
