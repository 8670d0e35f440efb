//! The part of `sds_local.db` that a device store needs: four tables of rows, read whole at open, changed by atomic
//! synced batches. RocksDB in daemons, a map in memory in crash tests.

mod memory;
mod rocks;

use pflex_proto::ids::DeviceUuid;

pub use self::{memory::MemoryMeta, rocks::LocalDb};
use super::error::MetaError;

/// A table; each device's rows are apart.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Table {
    /// One row for each device: generation and journal tail.
    Devices,
    /// One row for each placement group.
    Pgs,
    /// One row for each chunk.
    Chunks,
    /// One row for each placement group: its newest configuration (S19).
    Configs,
}

impl Table {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Devices, Self::Pgs, Self::Chunks, Self::Configs];

    /// Its column family.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Devices => "devices",
            Self::Pgs => "pgs",
            Self::Chunks => "chunks",
            Self::Configs => "configs",
        }
    }
}

/// Rows to set (or remove, where the value is none), all or nothing.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Table, key without the device, value.
    pub rows: Vec<(Table, Vec<u8>, Option<Vec<u8>>)>,
}

/// Keys without the device, and values.
pub type Rows = Vec<(Vec<u8>, Vec<u8>)>;

/// Called once, on any thread, when a batch is durable or failed.
pub type Committed = Box<dyn FnOnce(Result<(), MetaError>) + Send>;

/// See the module.
pub trait MetaStore: Send + Sync + 'static {
    /// All rows of a table of a device, in key order.
    ///
    /// # Errors
    /// When the database fails.
    fn rows(&self, device: DeviceUuid, table: Table) -> Result<Rows, MetaError>;

    /// Makes a batch durable; batches commit in the order of submission. Blocks at most while a bounded queue is full.
    fn commit(&self, device: DeviceUuid, batch: Batch, done: Committed);
}

/// Commits and waits; for open and format.
pub(super) fn commit_now(meta: &dyn MetaStore, device: DeviceUuid, batch: Batch) -> Result<(), MetaError> {
    let (sender, receiver) = std::sync::mpsc::channel();
    meta.commit(device, batch, Box::new(move |result| drop(sender.send(result))));
    receiver.recv().unwrap_or_else(|_| Err(MetaError { message: "the database is closed".into() }))
}
