//! The changes a store takes. Each is validated whole before anything changes (S4), then visible to every later read
//! and list, and handed to the pipeline that makes it durable.

use std::sync::Arc;

use pflex_proto::ids::{ChunkId, OperationId, PgId, Sequence, Version, VolatilityId, VtreeId};

use super::{
    DirtyKey, Dropped, Stats, Store,
    chunk::{Chunk, Pending, Stable},
    error::ApplyError,
    pipeline::Work,
    record::{Kind, MAX_OPERATIONS, Record},
    ring::{HEADER_BYTES, MAX_GROUP_BYTES, Ring},
    types::{BlockRange, ChunkEntry, Client, Fix, Lane, Operation, OperationSnapshot, OrderedWrite, Run, Ticket},
};

impl Store {
    /// Applies an ordered write: data, version and operation id in one atomic step (S4, S7).
    ///
    /// # Errors
    /// Nothing has changed then.
    pub fn apply(&mut self, write: OrderedWrite) -> Result<Ticket, ApplyError> {
        let state = self.chunk_state(write.pg, write.chunk)?;
        match state {
            Some(None) => return Err(ApplyError::WrongState { chunk: write.chunk, needs: "synced" }),
            Some(Some(present)) if present >= write.version => {
                return Err(ApplyError::StaleVersion { chunk: write.chunk, present, offered: write.version });
            }
            Some(Some(_)) | None => {}
        }
        let mut record = Record::new(Kind::Write, write.pg, write.chunk);
        record.version = write.version;
        record.watermark = write.watermark;
        record.volatility = write.volatility;
        record.runs = vec![write.run];
        let Client { sdc, volume } = write.origin.client;
        let client = Client { sdc, volume };
        record.operations = OperationSnapshot {
            entries: vec![Operation { client, id: write.origin.operation, version: write.version, chunk: write.chunk }],
            low_waters: vec![(client, write.origin.low_water)],
        };
        self.submit(record, write.lane)
    }

    /// Makes a chunk of an in-sync copy equal to the primary's, operation ids included, in one atomic step (S1, S7).
    ///
    /// # Errors
    /// Nothing has changed then.
    pub fn fix_chunk(&mut self, fix: Fix) -> Result<Ticket, ApplyError> {
        self.chunk_state(fix.pg, fix.chunk)?;
        let kind = if fix.version.is_some() { Kind::Fix } else { Kind::Remove };
        let mut record = Record::new(kind, fix.pg, fix.chunk);
        if let Some(version) = fix.version {
            record.version = version;
            record.runs = fix.runs;
        }
        record.operations.entries = fix.operations;
        self.submit(record, Lane::Replication)
    }

    /// Marks a joiner's chunk unsynced: it equals nothing until [`Self::set_version`] (S10). Created when missing.
    ///
    /// # Errors
    /// Nothing has changed then.
    pub fn mark_unsynced(&mut self, pg: PgId, chunk: ChunkId) -> Result<Ticket, ApplyError> {
        self.chunk_state(pg, chunk)?;
        self.submit(Record::new(Kind::MarkUnsynced, pg, chunk), Lane::Replication)
    }

    /// Changes blocks of an unsynced chunk. They become durable after the mark, whether or not that was waited for.
    ///
    /// # Errors
    /// Nothing has changed then.
    pub fn write_blocks(&mut self, pg: PgId, chunk: ChunkId, runs: Vec<Run>) -> Result<Ticket, ApplyError> {
        if self.chunk_state(pg, chunk)? != Some(None) {
            return Err(ApplyError::WrongState { chunk, needs: "unsynced" });
        }
        let mut record = Record::new(Kind::Blocks, pg, chunk);
        record.runs = runs;
        self.submit(record, Lane::Replication)
    }

    /// Ends syncing a chunk: it now equals the primary's at this version. None removes it.
    ///
    /// # Errors
    /// Nothing has changed then.
    pub fn set_version(&mut self, pg: PgId, chunk: ChunkId, version: Option<Version>) -> Result<Ticket, ApplyError> {
        self.chunk_state(pg, chunk)?;
        let kind = if version.is_some() { Kind::SetVersion } else { Kind::Remove };
        let mut record = Record::new(kind, pg, chunk);
        record.version = version.unwrap_or(Version::ZERO);
        self.submit(record, Lane::Replication)
    }

    /// Puts back blocks that were found corrupt, from another copy that had this version (S13). The version stays.
    ///
    /// # Errors
    /// Nothing has changed then; [`ApplyError::WrongState`] if the chunk has moved on.
    pub fn repair(&mut self, pg: PgId, chunk: ChunkId, version: Version, run: Run) -> Result<Ticket, ApplyError> {
        if self.chunk_state(pg, chunk)? != Some(Some(version)) {
            return Err(ApplyError::WrongState { chunk, needs: "at the version of the repair" });
        }
        let mut record = Record::new(Kind::Blocks, pg, chunk);
        record.runs = vec![run];
        self.submit(record, Lane::Replication)
    }

    /// Replaces the operation table and sets the watermark, which may fall (S1), and what it is about (S14, S25).
    /// Recovery finds no highest sequence below `last`.
    ///
    /// # Errors
    /// Nothing has changed then.
    pub fn replace_operations(
        &mut self,
        pg: PgId,
        operations: OperationSnapshot,
        watermark: Sequence,
        volatility: VolatilityId,
        last: Sequence,
    ) -> Result<Ticket, ApplyError> {
        let mut record = Record::new(Kind::ReplaceOperations, pg, ChunkId::default());
        (record.operations, record.watermark, record.volatility) = (operations, watermark, volatility);
        record.version.sequence = last;
        self.submit(record, Lane::Replication)
    }

    /// Forgets every chunk of a volume tree in a placement group, without tombstones: for volumes that are deleted.
    /// Returns the last ticket; none if there was nothing.
    ///
    /// # Errors
    /// Only when the store is poisoned or the group is being dropped.
    pub fn trim_volume(&mut self, pg: PgId, vtree: VtreeId) -> Result<Option<Ticket>, ApplyError> {
        let first = ChunkId { vtree, ..ChunkId::default() };
        let of_tree = self.chunks.range(first..).take_while(|(chunk, _)| chunk.vtree == vtree);
        let chunks: Vec<_> = of_tree.filter(|(_, entry)| entry.pg == pg).map(|(chunk, _)| *chunk).collect();
        self.remove_chunks(pg, &chunks)
    }

    /// Forgets up to `most` chunks of a deleted volume's tree, in whatever group, without tombstones. Returns how many: none
    /// are left to forget at 0. Unsynced ones stay, somebody is filling them.
    ///
    /// # Errors
    /// Only when the store is poisoned.
    pub fn trim_tree(&mut self, vtree: VtreeId, most: usize) -> Result<usize, ApplyError> {
        let first = ChunkId { vtree, ..ChunkId::default() };
        let of_tree = self.chunks.range(first..).take_while(|(chunk, _)| chunk.vtree == vtree);
        let here = |pg: PgId| self.pgs.get(&pg).is_none_or(|pg| !pg.dropping);
        let synced = of_tree.filter(|(_, entry)| matches!(entry.state(), Some(Some(_))) && here(entry.pg));
        let chunks: Vec<_> = synced.take(most).map(|(chunk, entry)| (entry.pg, *chunk)).collect();
        for (pg, chunk) in &chunks {
            self.remove_chunks(*pg, &[*chunk])?;
        }
        Ok(chunks.len())
    }

    /// Forgets what clients did that will never ask again: their volumes are deleted. Persisted with the next checkpoint; a
    /// crash before brings it back, to be forgotten again.
    pub fn forget_clients(&mut self, gone: impl Fn(Client) -> bool) {
        for (pg, entry) in &mut self.pgs {
            if entry.visible.forget(&gone) | entry.durable.forget(&gone) {
                self.dirty.mark(DirtyKey::Pg(*pg), self.pipeline.folded);
            }
        }
    }

    /// Forgets a placement group: chunks, operation ids, watermark. No change of it is taken until this is durable.
    ///
    /// # Errors
    /// Only when the store is poisoned or the group is being dropped.
    pub fn drop_pg(&mut self, pg: PgId) -> Result<Ticket, ApplyError> {
        let chunks = self.some_chunks(pg, usize::MAX);
        self.remove_chunks(pg, &chunks)?;
        self.space.release(pg);
        let ticket = self.submit(Record::new(Kind::DropPg, pg, ChunkId::default()), Lane::Replication)?;
        if let Some(entry) = self.pgs.get_mut(&pg) {
            entry.dropping = true;
        }
        Ok(ticket)
    }

    /// Forgets up to `most` chunks of a placement group, without tombstones, and when none are left the group itself: to be
    /// called again until nothing is left. [`Self::forget_config`] comes before.
    ///
    /// # Errors
    /// Only when the store is poisoned.
    pub fn drop_some(&mut self, pg: PgId, most: usize) -> Result<Dropped, ApplyError> {
        let Some(entry) = self.pgs.get(&pg) else { return Ok(Dropped::All) };
        if entry.dropping {
            return Ok(Dropped::Last);
        }
        let chunks = self.some_chunks(pg, most);
        if chunks.is_empty() {
            return self.drop_pg(pg).map(|_| Dropped::Last);
        }
        self.remove_chunks(pg, &chunks).map(|_| Dropped::Some)
    }

    /// Forgets tombstones at or below a sequence. Only when every copy of the group is past it: a copy that is behind
    /// would keep the old chunk otherwise.
    ///
    /// # Errors
    /// Only when the store is poisoned or the group is being dropped.
    pub fn forget_tombstones(&mut self, pg: PgId, through: Sequence) -> Result<Option<Ticket>, ApplyError> {
        let is_tombstone = |entry: &Chunk| {
            entry.pg == pg
                && entry.pending.is_empty()
                && !entry.claimed
                && !entry.stable.unsynced
                && entry.stable.version.sequence <= through
        };
        let of_pg = self.chunks.iter().filter(|(_, entry)| is_tombstone(entry));
        let chunks: Vec<_> = of_pg.map(|(chunk, _)| *chunk).collect();
        let mut last = None;
        for chunk in chunks {
            // Their operations are still needed: a tombstone goes, not the memory of who made it.
            let operations =
                self.operations(pg).entries.into_iter().filter(|operation| operation.chunk == chunk).collect();
            last = Some(self.fix_chunk(Fix { pg, chunk, version: None, runs: Vec::new(), operations })?);
        }
        Ok(last)
    }

    /// Chunks of a group, tombstones and unsynced ones included.
    fn some_chunks(&self, pg: PgId, most: usize) -> Vec<ChunkId> {
        let Some(pg) = self.pgs.get(&pg) else { return Vec::new() };
        let synced = pg.above(None).map(|(chunk, _)| chunk);
        pg.unsynced().iter().copied().chain(synced).take(most).collect()
    }

    fn remove_chunks(&mut self, pg: PgId, chunks: &[ChunkId]) -> Result<Option<Ticket>, ApplyError> {
        let mut last = None;
        for chunk in chunks {
            last = Some(self.submit(Record::new(Kind::Remove, pg, *chunk), Lane::Replication)?);
        }
        Ok(last)
    }

    /// Notes a newer committed watermark. Persisted with the next write or checkpoint, or never: it is a hint.
    pub fn set_watermark(&mut self, pg: PgId, watermark: Sequence, volatility: VolatilityId) {
        if let Some(entry) = self.pgs.get_mut(&pg)
            && watermark > entry.visible.watermark().0
        {
            entry.visible.note(watermark, volatility);
            entry.durable.note(watermark, volatility);
            self.dirty.mark(DirtyKey::Pg(pg), self.pipeline.folded);
        }
    }

    /// Sets a unit aside for a chunk unless it has one (S4), and leaves so many untouched: whether there is room. Kept until the chunk is written or
    /// [`Self::release_reservations`]; asking twice reserves once. Not persisted: it ends with the process.
    pub fn reserve(&mut self, pg: PgId, chunk: ChunkId, keep: usize) -> bool {
        self.chunks.get(&chunk).is_some_and(|entry| entry.claimed) || self.space.reserve(pg, chunk, keep)
    }

    /// Whether a change of this group still waits for journal space: reads see it, and it is in no hurry to become durable.
    pub fn is_waiting(&self, pg: PgId) -> bool {
        self.pgs.get(&pg).is_some_and(|pg| pg.queued > 0)
    }

    /// Whether the chunk has a unit of its own, so that writing to it needs no space.
    pub fn has_unit(&self, chunk: ChunkId) -> bool {
        self.chunks.get(&chunk).is_some_and(|entry| entry.claimed)
    }

    /// Frees what was reserved for a chunk and not used.
    pub fn release_reservation(&mut self, pg: PgId, chunk: ChunkId) {
        self.space.release_one(pg, chunk);
    }

    /// Frees what was reserved for a placement group and not used.
    pub fn release_reservations(&mut self, pg: PgId) {
        self.space.release(pg);
    }

    /// Chunks of a placement group with a version above the sequence, or all, and in both cases all unsynced ones.
    /// Tombstones are among them. As after every change asked for so far.
    pub fn versions(&self, pg: PgId, above: Option<Sequence>) -> Vec<ChunkEntry> {
        let Some(pg) = self.pgs.get(&pg) else { return Vec::new() };
        let synced = pg.above(above).map(|(chunk, version)| ChunkEntry { chunk, version: Some(version) });
        synced.chain(pg.unsynced().iter().map(|chunk| ChunkEntry { chunk: *chunk, version: None })).collect()
    }

    /// A chunk's entry, as after every change asked for so far; none if there is no such chunk.
    pub fn chunk(&self, chunk: ChunkId) -> Option<ChunkEntry> {
        let version = self.chunks.get(&chunk)?.state()?;
        Some(ChunkEntry { chunk, version })
    }

    /// The write that executed an operation, if it is known (S7).
    pub fn find_operation(&self, pg: PgId, client: Client, id: OperationId) -> Option<(Version, ChunkId)> {
        self.pgs.get(&pg)?.visible.find(client, id)
    }

    /// A placement group's operation table.
    pub fn operations(&self, pg: PgId) -> OperationSnapshot {
        self.pgs.get(&pg).map(|pg| pg.visible.snapshot()).unwrap_or_default()
    }

    /// The last watermark noted.
    pub fn watermark(&self, pg: PgId) -> Option<(Sequence, VolatilityId)> {
        Some(self.pgs.get(&pg)?.visible.watermark())
    }

    /// Counts and sizes.
    pub fn stats(&self) -> Stats {
        let mut stats = self.pipeline.stats();
        stats.units_total = self.space.total();
        stats.units_available = self.space.available() as u32;
        stats.units_refused = self.space.refused() as u32;
        stats.units_reserved = self.space.reserved() as u32;
        stats.units_quarantined = (self.space.quarantine.len() + self.space.discarding) as u32;
        stats.journal_bytes = self.ring.bytes();
        stats.journal_used_bytes = self.ring.used();
        stats.chunks = self.chunks.len() as u64;
        stats.dirty = self.dirty.len() as u64;
        stats.checkpoints = self.checkpoint.completed();
        stats
    }

    /// The volume trees of which there are chunks here.
    pub fn vtrees(&self) -> Vec<VtreeId> {
        let (mut trees, mut from) = (Vec::new(), Some(ChunkId::default()));
        while let Some((chunk, _)) = from.and_then(|from| self.chunks.range(from..).next()) {
            trees.push(chunk.vtree);
            // From tree to tree: there may be a million chunks in each.
            from = chunk.vtree.0.checked_add(1).map(|next| ChunkId { vtree: VtreeId(next), ..ChunkId::default() });
        }
        trees
    }

    /// The chunk's visible state, after the checks that every change of a chunk needs.
    fn chunk_state(&self, pg: PgId, chunk: ChunkId) -> Result<Option<Option<Version>>, ApplyError> {
        match self.chunks.get(&chunk) {
            Some(entry) if entry.pg != pg && entry.state().is_some() => {
                Err(ApplyError::WrongPg { chunk, present: entry.pg, offered: pg })
            }
            Some(entry) => Ok(entry.state()),
            None => Ok(None),
        }
    }

    /// The one way in: checks what remains, takes a unit if one is needed, shows the change and queues it.
    fn submit(&mut self, mut record: Record, lane: Lane) -> Result<Ticket, ApplyError> {
        if let Some(poison) = &self.poison {
            return Err(poison.clone().into());
        }
        if self.pgs.get(&record.pg).is_some_and(|pg| pg.dropping) {
            return Err(ApplyError::Dropping { pg: record.pg });
        }
        if !record.runs.iter().all(Run::is_sound) {
            return Err(ApplyError::BadRun { chunk: record.chunk });
        }
        if self.chunks.get(&record.chunk).is_some_and(|entry| entry.is_emptied_by(&record)) {
            // In the form that gives the unit back.
            record.runs = vec![Run::zeros(BlockRange::WHOLE)];
        }
        let bytes = record.encoded_bytes(false);
        let limit = MAX_GROUP_BYTES - HEADER_BYTES;
        if bytes > limit || record.operations.entries.len() > MAX_OPERATIONS {
            return Err(ApplyError::TooLarge { bytes, limit });
        }
        if record.kind.is_of_chunk() {
            self.claim(&mut record)?;
        }
        let ticket = self.pipeline.next_ticket();
        let record = Arc::new(record);
        self.show(ticket, &record);
        let pg = self.pgs.entry(record.pg).or_default();
        pg.begin(ticket);
        // While earlier changes of the group wait in a lane, later ones stand behind them.
        let lane = if pg.queued > 0 { pg.lane.unwrap_or(lane) } else { lane };
        pg.queued += 1;
        pg.lane = Some(lane);
        self.pipeline.queue(Work { ticket, promised: Ring::cost(bytes), record, lane });
        self.settle();
        Ok(ticket)
    }

    /// Finds a unit for a chunk that gets its first data, or keeps track of one that gives it up (S4).
    fn claim(&mut self, record: &mut Record) -> Result<(), ApplyError> {
        let claimed = self.chunks.get(&record.chunk).is_some_and(|entry| entry.claimed);
        if record.has_data() && (!claimed || record.empties_chunk()) {
            let taken = self.space.take(record.pg, record.chunk);
            record.unit = Some(taken.ok_or(ApplyError::NoSpace { device: self.superblock.uuid })?);
        }
        let entry =
            self.chunks.entry(record.chunk).or_insert_with(|| Box::new(Chunk::new(record.pg, Stable::default())));
        entry.pg = record.pg;
        if record.empties_chunk() {
            entry.claimed = false;
        }
        entry.claimed |= record.has_data();
        Ok(())
    }

    /// Makes a change visible.
    fn show(&mut self, ticket: Ticket, record: &Arc<Record>) {
        let pg = self.pgs.entry(record.pg).or_default();
        pg.visible.apply(record);
        if let Some(chunk) = self.chunks.get_mut(&record.chunk)
            && record.kind.is_of_chunk()
        {
            let old = chunk.state();
            chunk.pending.push_back(Pending { ticket, record: Arc::clone(record) });
            pg.reindex(record.chunk, old, chunk.state());
        }
    }
}
