//! The operation table of one placement group (S7): which resendable operations were executed, and by which write.
//!
//! The store persists the same table with the writes; this copy in memory answers without a disk read. It is bounded:
//! each write carries its client's low-water mark, and what lies below is forgotten and refused from then on.

use std::collections::{BTreeMap, HashMap};

use pflex_proto::ids::{ChunkId, OperationId, Version};

use super::limits::{MAX_CLIENTS_PER_PG, MAX_OPERATIONS_PER_CLIENT, MAX_OPERATIONS_PER_PG};
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
    /// The table has as many operations or clients as can be sent and stored.
    TableFull,
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
    /// Operations of all clients together.
    executed: usize,
}

impl Operations {
    pub(super) fn lookup(&self, client: ClientKey, operation: OperationId) -> Lookup {
        let Some(known) = self.clients.get(&client) else {
            let room = self.clients.len() < MAX_CLIENTS_PER_PG && self.executed < MAX_OPERATIONS_PER_PG;
            return if room { Lookup::New } else { Lookup::TableFull };
        };
        match known.executed.get(&operation) {
            Some(&(version, _)) => Lookup::Executed(version),
            None if operation < known.low_water => Lookup::Old,
            None if known.executed.len() >= MAX_OPERATIONS_PER_CLIENT => Lookup::Full,
            None if self.executed >= MAX_OPERATIONS_PER_PG => Lookup::TableFull,
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
                self.executed -= 1;
            }
        }
        if known.executed.insert(write.operation, (write.version, write.chunk)).is_none() {
            self.executed += 1;
        }
    }

    /// All that wrote this chunk. Walks the table: for reconciliation only.
    pub(super) fn of_chunk(&self, chunk: ChunkId) -> Vec<OperationEntry> {
        self.entries().filter(|entry| entry.chunk == chunk).collect()
    }

    /// Undoes and redoes ids together with the chunk's writes.
    pub(super) fn replace_chunk(&mut self, chunk: ChunkId, entries: &[OperationEntry]) {
        for known in self.clients.values_mut() {
            let before = known.executed.len();
            known.executed.retain(|_, (_, of)| *of != chunk);
            self.executed -= before - known.executed.len();
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
        self.executed = 0;
        for &(client, low_water) in &snapshot.low_waters {
            self.clients.entry(client).or_default().low_water = low_water;
        }
        self.insert(&snapshot.entries);
    }

    /// Forgets what was done to other chunks.
    pub(super) fn retain_chunks(&mut self, here: impl Fn(ChunkId) -> bool) {
        for known in self.clients.values_mut() {
            known.executed.retain(|_, (_, chunk)| here(*chunk));
        }
        self.executed = self.clients.values().map(|known| known.executed.len()).sum();
    }

    /// Forgets clients that will never ask again.
    pub(super) fn forget(&mut self, gone: impl Fn(ClientKey) -> bool) {
        self.clients.retain(|client, _| !gone(*client));
        self.executed = self.clients.values().map(|known| known.executed.len()).sum();
    }

    fn insert(&mut self, entries: &[OperationEntry]) {
        for entry in entries {
            let known = self.clients.entry(entry.client).or_default();
            if known.executed.insert(entry.operation, (entry.version, entry.chunk)).is_none() {
                self.executed += 1;
            }
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

#[cfg(test)]
mod tests {
    use pflex_proto::ids::{SdcId, VolumeId};

    use super::*;

    fn client(volume: u64) -> ClientKey {
        ClientKey { sdc: SdcId(1), volume: VolumeId(volume) }
    }

    fn entry(client: ClientKey, operation: u64) -> OperationEntry {
        OperationEntry { client, operation: OperationId(operation), version: Version::ZERO, chunk: ChunkId::default() }
    }

    #[test]
    fn a_table_that_could_not_be_sent_any_more_takes_nothing_new() {
        let mut table = Operations::default();
        let per_client = MAX_OPERATIONS_PER_CLIENT as u64;
        let volumes = (MAX_OPERATIONS_PER_PG / MAX_OPERATIONS_PER_CLIENT) as u64;
        for volume in 0..volumes {
            assert_eq!(table.lookup(client(volume), OperationId(1)), Lookup::New);
            table.insert(&(0..per_client).map(|id| entry(client(volume), id)).collect::<Vec<_>>());
        }
        assert_eq!(table.executed, MAX_OPERATIONS_PER_PG);
        assert_eq!(table.lookup(client(volumes), OperationId(1)), Lookup::TableFull);
        assert_eq!(table.lookup(client(0), OperationId(1)), Lookup::Executed(Version::ZERO), "resends are answered");
        table.forget(|client| client.volume == VolumeId(0));
        assert_eq!(table.lookup(client(volumes), OperationId(1)), Lookup::New, "a volume was deleted");
        table.replace_chunk(ChunkId::default(), &[]);
        assert_eq!(table.executed, 0);
    }

    #[test]
    fn there_is_a_bound_on_clients_too() {
        let mut table = Operations::default();
        let low_waters = (0..MAX_CLIENTS_PER_PG as u64).map(|volume| (client(volume), OperationId(1))).collect();
        table.replace(&OperationSnapshot { entries: Vec::new(), low_waters });
        assert_eq!(table.lookup(client(u64::MAX), OperationId(1)), Lookup::TableFull);
        assert_eq!(table.lookup(client(3), OperationId(1)), Lookup::New);
    }
}
