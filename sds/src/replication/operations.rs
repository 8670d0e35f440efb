//! The operation table of one placement group (S7): which resendable operations were executed, and by which write.
//!
//! The store persists the same table with the writes; this copy in memory answers without a disk read. It is bounded:
//! each write carries its client's low-water mark, and what lies below is forgotten and refused from then on.

use std::collections::{BTreeMap, HashMap};

use pflex_proto::ids::{ChunkId, OperationId, Version};

use super::limits::MAX_OPERATIONS_PER_CLIENT;
use super::types::{ClientKey, OperationEntry, OperationSnapshot, OrderedWrite};

/// What the table says about an operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Lookup {
    /// Never executed.
    New,
    /// Executed by this write.
    Executed(Version),
    /// Below the low-water mark: a straggler from the network.
    Old,
    /// The client keeps too many operations open.
    Full,
}

#[derive(Debug, Default, Clone)]
struct ClientOperations {
    low_water: OperationId,
    executed: BTreeMap<OperationId, (Version, ChunkId)>,
}

/// See the module.
#[derive(Debug, Default, Clone)]
pub(super) struct Operations {
    clients: HashMap<ClientKey, ClientOperations>,
}

impl Operations {
    pub(super) fn lookup(&self, client: ClientKey, operation: OperationId) -> Lookup {
        let Some(known) = self.clients.get(&client) else { return Lookup::New };
        match known.executed.get(&operation) {
            Some(&(version, _)) => Lookup::Executed(version),
            None if operation < known.low_water => Lookup::Old,
            None if known.executed.len() >= MAX_OPERATIONS_PER_CLIENT => Lookup::Full,
            None => Lookup::New,
        }
    }

    /// Notes that this write executed its operation, and forgets what its low-water mark releases.
    pub(super) fn record<D>(&mut self, write: &OrderedWrite<D>) {
        let known = self.clients.entry(write.client).or_default();
        if write.low_water > known.low_water {
            known.low_water = write.low_water;
            while let Some(first) = known.executed.first_entry()
                && *first.key() < write.low_water
            {
                first.remove();
            }
        }
        known.executed.insert(write.operation, (write.version, write.chunk));
    }

    /// All that wrote this chunk. Walks the table: for reconciliation only.
    pub(super) fn of_chunk(&self, chunk: ChunkId) -> Vec<OperationEntry> {
        self.entries().filter(|entry| entry.chunk == chunk).collect()
    }

    /// Undoes and redoes ids together with the chunk's writes.
    pub(super) fn replace_chunk(&mut self, chunk: ChunkId, entries: &[OperationEntry]) {
        for known in self.clients.values_mut() {
            known.executed.retain(|_, (_, of)| *of != chunk);
        }
        self.insert(entries);
    }

    pub(super) fn snapshot(&self) -> OperationSnapshot {
        OperationSnapshot {
            entries: self.entries().collect(),
            low_waters: self.clients.iter().map(|(client, known)| (*client, known.low_water)).collect(),
        }
    }

    pub(super) fn replace(&mut self, snapshot: &OperationSnapshot) {
        self.clients.clear();
        for &(client, low_water) in &snapshot.low_waters {
            self.clients.entry(client).or_default().low_water = low_water;
        }
        self.insert(&snapshot.entries);
    }

    fn insert(&mut self, entries: &[OperationEntry]) {
        for entry in entries {
            let known = self.clients.entry(entry.client).or_default();
            known.executed.insert(entry.operation, (entry.version, entry.chunk));
        }
    }

    fn entries(&self) -> impl Iterator<Item = OperationEntry> + '_ {
        self.clients.iter().flat_map(|(&client, known)| {
            known.executed.iter().map(move |(&operation, &(version, chunk))| OperationEntry {
                client,
                operation,
                version,
                chunk,
            })
        })
    }
}
