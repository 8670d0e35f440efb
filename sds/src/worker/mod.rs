//! The data thread of one device: one thread, one loop, one owner of its sockets, placement groups and store.
//!
//! `handle` is what the rest of the process sees; `connection` tasks only carry frames; [`worker::Worker`] takes them one
//! at a time, lets the pure cores decide (`admission`, `replication`), and carries their effects out.
//!
//! **Invariant:** nothing on the IO path takes a lock or waits for another thread.

mod clients;
mod command;
mod connection;
mod convert;
mod deaths;
mod departed;
mod effects;
mod handle;
mod links;
mod memory;
mod orphans;
#[cfg(test)]
mod pair;
mod pending;
mod placement;
mod rates;
mod resync;
mod scrub;
mod sorting;
#[cfg(test)]
pub(crate) mod testing;
mod thread;
mod wire;
#[expect(clippy::module_inception, reason = "the worker of this folder, as the house style has it")]
mod worker;

pub(crate) use command::{Accepted, Command, Report};
pub(crate) use departed::GRACE as DEPARTED_GRACE;
pub(crate) use handle::DeviceHandle;
pub(crate) use scrub::ScrubOrder;
pub(crate) use thread::{WorkerConfig, spawn};
