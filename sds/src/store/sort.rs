//! The chunks of a device are sorted into more placement groups than before (S25).
//!
//! With `n` groups a chunk belongs to group `hash & (n - 1)`, so with twice as many group `i` becomes `i` and `i + n`. Both go
//! on from what the one knew: its watermark, the sequences it gave, its clients' low-water marks, and of its operations those on
//! their own chunks.
//!
//! One batch of rows makes it so, while nothing is on its way to the journal and no checkpoint runs: every group of the pool,
//! the configurations of the new ones (data without one counts as half a copy), and the count in the device's row. Chunk rows and
//! journal records stay as they are: the count says which group their chunk is in, whatever group they name.

use std::{
    collections::BTreeMap,
    task::{Context, Poll},
};

use pflex_proto::{
    codec::{CodecError, Reader, Wire},
    geometry::pg_of,
    ids::{ChunkId, PgId, PgIndex, PoolId},
    wire_fields,
};
use tokio::sync::oneshot;

use super::{
    Store,
    checkpoint::device_row,
    config::KnownConfig,
    error::Poison,
    meta::{Batch, Table},
    pg,
    types::Durable,
};

/// Into how many groups the chunks of a pool are sorted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sorting {
    /// The pool.
    pub pool: PoolId,
    /// A power of two.
    pub pg_count: u32,
}

impl Sorting {
    /// The group of a chunk that was in this one when there were fewer.
    pub fn group_of(&self, pg: PgId, chunk: ChunkId) -> PgId {
        if pg.pool != self.pool {
            return pg;
        }
        PgId { pool: pg.pool, index: pg_of(chunk.vtree, chunk.index, self.pg_count) }
    }

    /// The groups that one of `from` groups has become, itself aside.
    pub fn halves(&self, pg: PgId, from: u32) -> impl Iterator<Item = PgId> + use<> {
        let (pool, to) = (self.pool, self.pg_count);
        let others = (1..).map_while(move |step: u32| from.checked_mul(step)?.checked_add(pg.index.0));
        let others = others.take_while(move |index| *index < to);
        others
            .filter(move |_| pg.pool == pool && pg.index.0 < from)
            .map(move |index| PgId { pool, index: PgIndex(index) })
    }
}

/// As the device's row has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Sorted {
    pub(super) into: Sorting,
    /// The first journal record after it. Of a group without a row, what earlier ones say of the group is over.
    pub(super) before: u64,
}

wire_fields!(Sorting { pool, pg_count });

impl Wire for Sorted {
    fn encode(&self, out: &mut Vec<u8>) {
        self.into.encode(out);
        self.before.encode(out);
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        let sorted = Self { into: reader.get()?, before: reader.get()? };
        if !sorted.into.pg_count.is_power_of_two() {
            let value = u64::from(sorted.into.pg_count);
            return Err(CodecError::BadTag { what: "number of placement groups", value });
        }
        Ok(sorted)
    }
}

impl Store {
    /// Into how many groups the chunks are sorted; none: nobody has said yet.
    pub fn sorting(&self) -> Option<Sorting> {
        self.sorted.map(|sorted| sorted.into)
    }

    /// A sorting is due, or is not any more. While it is, no checkpoint begins that nobody waits for.
    pub const fn expect_sort(&mut self, due: bool) {
        self.checkpoint.hold(due);
    }

    /// Neither runs a checkpoint nor waits a change for one: what is still on its way has its place in the ring.
    pub fn is_quiet(&self) -> bool {
        !self.checkpoint.is_active() && !self.pipeline.has_waiting()
    }

    /// Everything asked for is durable, too.
    pub fn is_at_rest(&self) -> bool {
        self.is_quiet() && self.pipeline.is_idle()
    }

    /// Sorts the chunks of a pool, of `from` groups until now, and remembers `configs`, which are the new groups'. The owner asks
    /// for no change meanwhile, and has none set aside space. Waits until every earlier change is durable; returns those.
    ///
    /// # Errors
    /// When the device is or goes out of service.
    pub async fn sort(
        &mut self,
        into: Sorting,
        from: u32,
        configs: &[(PgId, KnownConfig)],
    ) -> Result<Vec<Durable>, Poison> {
        let mut durable = Vec::new();
        self.checkpoint.hold(true);
        std::future::poll_fn(|context| self.poll_rest(context, &mut durable)).await?;
        let sorted = Sorted { into, before: self.pipeline.records() };
        let tables = self.tables_of(into, from);
        let mut rows = Vec::with_capacity(tables.len() + configs.len() + 1);
        for (id, table) in &tables {
            let record = self.pgs.get(id).or_else(|| self.pgs.get(&was(*id, from))).map_or(0, |pg| pg.record);
            rows.push((Table::Pgs, pg::row_key(*id), Some(table.encode_row(record))));
        }
        #[cfg(test)]
        if super::tests::is_planted(super::tests::Bug::SortCountAlone) {
            rows.clear();
        }
        rows.extend(configs.iter().map(|(id, known)| (Table::Configs, pg::row_key(*id), Some(known.encode_row()))));
        let row = device_row(self.superblock.generation, self.ring.tail, Some(sorted));
        rows.push((Table::Devices, Vec::new(), Some(row)));
        let (sender, committed) = oneshot::channel();
        self.meta.commit(self.superblock.uuid, Batch { rows }, Box::new(move |result| drop(sender.send(result))));
        match committed.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => self.fail("a metadata commit", error),
            Err(closed) => self.fail("a metadata commit", closed),
        }
        if let Some(poison) = &self.poison {
            return Err(poison.clone());
        }
        self.sorted = Some(sorted);
        self.take_apart(into, from, tables);
        self.checkpoint.hold(false);
        self.settle();
        Ok(durable)
    }

    /// Ready when everything asked for is durable and no checkpoint runs.
    fn poll_rest(&mut self, context: &mut Context<'_>, durable: &mut Vec<Durable>) -> Poll<Result<(), Poison>> {
        loop {
            if let Some(poison) = &self.poison {
                return Poll::Ready(Err(poison.clone()));
            }
            match self.poll_durable(context) {
                Poll::Ready(Ok(more)) => durable.extend(more),
                Poll::Ready(Err(poison)) => return Poll::Ready(Err(poison)),
                #[cfg(test)]
                Poll::Pending if super::tests::is_planted(super::tests::Bug::SortBesideCheckpoint) => {
                    return Poll::Ready(Ok(()));
                }
                Poll::Pending if self.is_at_rest() => return Poll::Ready(Ok(())),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// What each group of the pool knows afterwards. Everything is durable, so visible and durable are the same.
    fn tables_of(&self, into: Sorting, from: u32) -> BTreeMap<PgId, pg::Operations> {
        let mut tables = BTreeMap::new();
        for (id, entry) in self.pgs.iter().filter(|(id, _)| id.pool == into.pool) {
            for half in into.halves(*id, from).chain([*id]) {
                let mut table = entry.durable.clone();
                table.retain_chunks(|chunk| into.group_of(half, chunk) == half);
                tables.insert(half, table);
            }
        }
        tables
    }

    fn take_apart(&mut self, into: Sorting, from: u32, tables: BTreeMap<PgId, pg::Operations>) {
        for (id, table) in tables {
            let parent = was(id, from);
            self.space.release(id);
            if id != parent
                && let Some(entry) = self.pgs.get_mut(&parent)
            {
                let half = entry.part(table, |chunk| into.group_of(id, chunk) == id);
                self.pgs.insert(id, half);
            } else if let Some(entry) = self.pgs.get_mut(&id) {
                (entry.visible, entry.durable) = (table.clone(), table);
            }
        }
        for (id, chunk) in &mut self.chunks {
            chunk.pg = into.group_of(chunk.pg, *id);
        }
    }
}

/// The group that one was part of when there were `from`.
pub fn was(pg: PgId, from: u32) -> PgId {
    PgId { index: PgIndex(pg.index.0 & (from - 1)), ..pg }
}
