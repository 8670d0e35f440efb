//! Replication and resync: one placement group's replica on this device as a state machine without I/O.
//!
//! The primary/backup protocol of PacificA (Lin et al., 2008) with the MDM as its configuration manager, and the rules
//! S1-S7 and S10 of the data-safety document, each named at its code. [`Pg::handle`] takes the time and one [`Event`]
//! and appends [`Effect`]s; the driver owns sockets, timers and the store. `sim` runs whole clusters of it by seed.
//!
//! Reading order: [`types`], [`event`], [`effect`], [`message`], then [`pg`], and the roles it dispatches to.
//!
//! **Invariant:** nothing here knows a socket, a file, a clock or randomness.
//! **Invariant:** no chunk table here; per-group state is the in-flight window and the operation table.

mod backoff;
mod backup;
mod base;
mod durability;
pub mod effect;
pub mod event;
mod flight;
mod gate;
mod holds;
mod join;
mod joiner;
pub mod lease;
pub mod limits;
mod membership;
pub mod message;
mod operations;
mod ordering;
mod pg;
mod planted;
mod primary;
mod reads;
mod reconcile;
mod repairs;
mod reservations;
mod scrub;
mod split;
mod stream;
pub mod types;
mod waits;

#[cfg(test)]
mod conversations;
#[cfg(test)]
mod sim;

pub use effect::Effect;
pub use event::{ClientFlush, ClientRead, ClientWrite, Event};
pub use join::Demand;
pub use lease::{LeaseGrant, LeaseRequest, Leases};
pub use message::{Body, Message};
pub use pg::{Pg, PgStatus, RoleName};
pub use types::*;
