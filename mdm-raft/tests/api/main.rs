//! Three members in this process, and everything through their real client ports.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod backup;
mod bad_input;
mod cluster;
mod doubling;
mod exactly_once;
mod guard;
mod health;
mod homes;
mod insight;
mod liveness;
mod log_time;
mod maintenance;
mod map;
mod membership;
mod metadata;
mod ports;
mod registration;
mod revocation;
mod sds;
mod secrets;
mod told;
mod topology;
mod watch;
mod work;
