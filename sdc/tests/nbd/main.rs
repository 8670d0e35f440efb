//! The rules that an NBD server must keep, over real sockets: each test is named after its rule (docs/nbd.md has the table).
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod breaches;
mod changes;
mod client;
mod device;
mod documented;
mod ending;
mod garbage;
mod limits;
mod reads;
mod status;
