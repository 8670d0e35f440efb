//! The store of one device: superblock, journal ring, data area, and the metadata in `sds_local.db`.
//!
//! One owner, one thread, nothing blocks: a change is visible to reads when the call returns and durable when
//! [`Store::poll_durable`] says so. The owner awaits [`Store::durable`] in its loop; that also drives the background work.
//!
//! The way of a change: `apply` validates it and shows it to readers -> a lane waits for ring space (S24) -> large data
//! goes to unreferenced blocks and is synced -> the journal takes everything queued in one durable write (group commit)
//! -> it is folded into the durable state and reported -> a checkpoint carries it to the data area and `sds_local.db`
//! and frees its ring space (S13).
//!
//! **Invariant (S13):** bytes that durable metadata references are overwritten only by bytes that the journal holds.
//! **Invariant (S4):** a change is refused whole before anything changed, or it is made; a chunk's changes become
//! durable in the order of the calls. Changes of different chunks may become durable in another order.
//! **Invariant:** a failed write, flush or commit poisons the store; nothing is retried.
//!
//! Reading order: `types`, `error`, `superblock`, `ring`, `record`, `chunk`, `pg`, `space`, `meta`, `config`, `open`, `apply`,
//! `pipeline`, `checkpoint`, `read`, `sort`.

mod apply;
mod blocks;
mod checkpoint;
mod chunk;
mod config;
mod error;
mod meta;
mod open;
mod pg;
mod pipeline;
mod read;
mod record;
mod ring;
mod sort;
mod space;
mod superblock;
#[cfg(test)]
mod tests;
mod types;

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    sync::{Arc, atomic::AtomicBool},
};

use pflex_proto::ids::{ChunkId, PgId};
use tokio::sync::mpsc;

use self::{
    chunk::Chunk,
    meta::Table as MetaTable,
    pg::Pg,
    pipeline::{Event, Pipeline},
    ring::{Position, Ring},
    sort::SortedPools,
    space::Space,
};
pub use self::{
    config::KnownConfig,
    error::{ApplyError, MetaError, OpenError, Poison, ReadError},
    meta::{Batch, Committed, LocalDb, MemoryMeta, MetaStore, Rows, Table},
    open::{FormatConfig, OpenReport, StoreConfig, inspect},
    read::Read,
    sort::{Sorting, was},
    superblock::{Geometry, Superblock},
    types::*,
};
use crate::device::{Device, Meter};

/// What a checkpoint persists one row for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum DirtyKey {
    Pg(PgId),
    Chunk(ChunkId),
}

/// What changed since it was persisted, by the oldest journal group that has to be kept for it.
#[derive(Debug, Default)]
struct DirtyIndex {
    by_position: BTreeSet<(Position, DirtyKey)>,
    of_key: BTreeMap<DirtyKey, Position>,
}

impl DirtyIndex {
    fn mark(&mut self, key: DirtyKey, position: Position) {
        if let Entry::Vacant(vacant) = self.of_key.entry(key) {
            vacant.insert(position);
            self.by_position.insert((position, key));
        }
    }

    fn oldest(&self) -> Option<Position> {
        self.by_position.first().map(|(position, _)| *position)
    }

    fn pop_oldest(&mut self) -> Option<DirtyKey> {
        let (_, key) = self.by_position.pop_first()?;
        self.of_key.remove(&key);
        Some(key)
    }

    fn is_empty(&self) -> bool {
        self.by_position.is_empty()
    }

    fn len(&self) -> usize {
        self.by_position.len()
    }
}

/// See the module.
pub struct Store {
    device: Arc<dyn Device>,
    meter: Arc<Meter>,
    meta: Arc<dyn MetaStore>,
    superblock: Superblock,
    /// Boxed: nearly half of a map's places are empty.
    chunks: BTreeMap<ChunkId, Box<Chunk>>,
    pgs: BTreeMap<PgId, Pg>,
    sorted: SortedPools,
    space: Space,
    ring: Ring,
    dirty: DirtyIndex,
    pipeline: Pipeline,
    checkpoint: checkpoint::Checkpoint,
    readers: read::Readers,
    events: mpsc::UnboundedReceiver<Event>,
    /// Handed to completions. Not bounded by itself: there is one event for each operation in flight, and those are.
    sender: mpsc::UnboundedSender<Event>,
    /// Set while someone waits for readers to finish; see `read`.
    awaits_readers: Arc<AtomicBool>,
    poison: Option<Poison>,
    poison_reported: bool,
}

/// How far [`Store::drop_some`] is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Dropped {
    /// Some chunks are on their way out, others are left.
    Some,
    /// The last of it is on its way out.
    Last,
    /// Nothing is left, durably.
    All,
}

/// Opened on one thread, owned by another.
const _: () = {
    const fn is_send<T: Send>() {}
    is_send::<Store>();
};

/// Counts and sizes, for telemetry and admission.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// 1 MiB units of the data area.
    pub units_total: u32,
    /// Neither used nor reserved nor in quarantine.
    pub units_available: u32,
    /// Not in use either, but what holds the device has no space for them.
    pub units_refused: u32,
    /// Set aside by `reserve`.
    pub units_reserved: u32,
    /// Let go and not free yet.
    pub units_quarantined: u32,
    /// Bytes of the journal ring.
    pub journal_bytes: u64,
    /// Bytes of it that a crash now would replay.
    pub journal_used_bytes: u64,
    /// Changes that wait for ring space; the owner stops taking requests while this is not zero.
    pub waiting_changes: u64,
    /// Changes asked for that are not durable.
    pub pending_changes: u64,
    /// Chunks known, tombstones included.
    pub chunks: u64,
    /// Chunks and placement groups that the next checkpoints will persist.
    pub dirty: u64,
    /// Checkpoints done since the open.
    pub checkpoints: u64,
    /// Journal groups written since the open.
    pub groups: u64,
    /// Changes in them.
    pub grouped_changes: u64,
}
