//! Free units, what is reserved of them (S4), and what is on its way to being free.
//!
//! A unit that a chunk let go is not free at once: a running checkpoint may still write into it and readers may still
//! read from it. It waits in quarantine until both are over.

use std::collections::{BTreeMap, BTreeSet};

use pflex_proto::ids::{ChunkId, PgId};

use super::{chunk::Freed, record::UnitId};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Space {
    total: u32,
    /// The last one is taken first; formatted so that low units go first.
    free: Vec<UnitId>,
    reserved: BTreeMap<PgId, BTreeSet<ChunkId>>,
    reserved_count: usize,
    pub(super) quarantine: Vec<Quarantined>,
    /// Units whose discard is running.
    pub(super) discarding: usize,
}

/// A unit that nobody references any more.
#[derive(Clone, Copy, Debug)]
pub(super) struct Quarantined {
    pub(super) freed: Freed,
    /// Not free before this checkpoint is over.
    pub(super) checkpoint: u64,
}

impl Space {
    /// With these units in use; the duplicate if one is used twice.
    pub(super) fn new(total: u32, used: impl Iterator<Item = UnitId>) -> Result<Self, UnitId> {
        let mut taken = vec![false; total as usize];
        for unit in used {
            match taken.get_mut(unit.0 as usize) {
                Some(slot @ false) => *slot = true,
                Some(true) | None => return Err(unit),
            }
        }
        let free = (0..total).rev().filter(|unit| !taken[*unit as usize]).map(UnitId).collect();
        Ok(Self { total, free, ..Self::default() })
    }

    pub(super) const fn total(&self) -> u32 {
        self.total
    }

    /// Units that are neither used nor reserved.
    pub(super) fn available(&self) -> usize {
        self.free.len().saturating_sub(self.reserved_count)
    }

    pub(super) const fn reserved(&self) -> usize {
        self.reserved_count
    }

    /// Sets a unit aside for a chunk, if more than `keep` are left; once for each, however often it is asked.
    pub(super) fn reserve(&mut self, pg: PgId, chunk: ChunkId, keep: usize) -> bool {
        if self.reserved.get(&pg).is_some_and(|chunks| chunks.contains(&chunk)) {
            return true;
        }
        if self.available() <= keep {
            return false;
        }
        self.reserved.entry(pg).or_default().insert(chunk);
        self.reserved_count += 1;
        true
    }

    pub(super) fn release_one(&mut self, pg: PgId, chunk: ChunkId) {
        if let Some(chunks) = self.reserved.get_mut(&pg)
            && chunks.remove(&chunk)
        {
            self.reserved_count -= 1;
            if chunks.is_empty() {
                self.reserved.remove(&pg);
            }
        }
    }

    pub(super) fn release(&mut self, pg: PgId) {
        self.reserved_count -= self.reserved.remove(&pg).map_or(0, |chunks| chunks.len());
    }

    /// A unit for a chunk that has none: the reserved one, else any.
    pub(super) fn take(&mut self, pg: PgId, chunk: ChunkId) -> Option<UnitId> {
        if let Some(chunks) = self.reserved.get_mut(&pg)
            && chunks.remove(&chunk)
        {
            self.reserved_count -= 1;
            if chunks.is_empty() {
                self.reserved.remove(&pg);
            }
        } else if self.available() == 0 {
            return None;
        }
        self.free.pop()
    }

    /// A unit to write a whole chunk to instead of over its old one. Optional work, so it leaves some for new chunks.
    pub(super) fn take_spare(&mut self) -> Option<UnitId> {
        let keep = (self.total as usize / 64).max(1);
        if self.available() <= keep { None } else { self.free.pop() }
    }

    pub(super) fn give_back(&mut self, unit: UnitId) {
        self.free.push(unit);
    }
}
