//! The storage data server: pools a host's disks and keeps copies that agree.
//!
//! Reading order, from the socket to the disk: [`daemon`] (the process), `worker` (the data thread of a device: one
//! loop), `admission` (who may do which IO), [`replication`] (what copies say to one another, without I/O), [`store`]
//! (journal, chunks, checksums), [`device`] (files and disks).

mod admission;
pub mod daemon;
pub mod device;
mod payload;
pub mod replication;
pub mod store;
mod worker;

pub use payload::Payload;
