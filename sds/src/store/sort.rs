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

/// Pools of a device's row: the one it is in and those it was in, as long as groups of them are here.
const MAX_POOLS: usize = 1024;

/// Of each pool that the device has groups of; the pool that it is in comes last. A device may be given to another pool, and back
/// while its old copies are still there.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct SortedPools(Vec<Sorted>);

impl SortedPools {
    pub(super) fn of(&self, pool: PoolId) -> Option<Sorted> {
        self.0.iter().find(|sorted| sorted.into.pool == pool).copied()
    }

    pub(super) fn last(&self) -> Option<Sorted> {
        self.0.last().copied()
    }

    /// Rows and records of before a sorting name the group that the chunk was in then.
    pub(super) fn group_of(&self, pg: PgId, chunk: ChunkId) -> PgId {
        self.of(pg.pool).map_or(pg, |sorted| sorted.into.group_of(pg, chunk))
    }

    /// No record is older than this.
    pub(super) fn newest_record(&self) -> u64 {
        self.0.iter().map(|sorted| sorted.before - 1).max().unwrap_or_default()
    }

    /// With this one as the last; of pools that nothing is here of nothing is kept.
    fn with(&self, sorted: Sorted, is_here: impl Fn(PoolId) -> bool) -> Self {
        let others = self.0.iter().filter(|other| other.into.pool != sorted.into.pool && is_here(other.into.pool));
        let others: Vec<_> = others.copied().collect();
        // The oldest go if there are too many, which nobody has seen: a device keeps old copies for a minute.
        let too_many = (others.len() + 1).saturating_sub(MAX_POOLS);
        Self(others.into_iter().skip(too_many).chain([sorted]).collect())
    }

    /// The end of the device's row, and its format.
    pub(super) fn encode(&self, out: &mut Vec<u8>) -> u8 {
        match self.0.as_slice() {
            [] => 1,
            [one] => {
                one.encode(out);
                2
            }
            all => {
                (all.len() as u32).encode(out);
                all.iter().for_each(|sorted| sorted.encode(out));
                3
            }
        }
    }

    pub(super) fn decode(format: u8, reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        match format {
            1 => Ok(Self::default()),
            2 => Ok(Self(vec![reader.get()?])),
            3 => Ok(Self(reader.list(MAX_POOLS)?)),
            other => Err(CodecError::BadTag { what: "device row format", value: other.into() }),
        }
    }
}

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
        if sorted.before == 0 {
            return Err(CodecError::BadTag { what: "first record after a sorting", value: 0 });
        }
        Ok(sorted)
    }
}

impl Store {
    /// The pool that the device is in, and into how many groups its chunks are sorted; none: nobody has said yet.
    pub fn sorting(&self) -> Option<Sorting> {
        self.sorted.last().map(|sorted| sorted.into)
    }

    /// Into how many groups the chunks of a pool are sorted; none: nobody has said yet.
    pub fn sorting_of(&self, pool: PoolId) -> Option<Sorting> {
        self.sorted.of(pool).map(|sorted| sorted.into)
    }

    /// Groups of which there is anything here.
    pub fn groups(&self) -> impl Iterator<Item = PgId> {
        self.pgs.keys().copied()
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
        let sorted = self.sorted.with(sorted, |pool| self.pgs.keys().any(|pg| pg.pool == pool));
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
        let row = device_row(self.superblock.generation, self.ring.tail, &sorted);
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
        self.sorted = sorted;
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

    /// What each group of the pool knows afterwards. Everything is durable, so visible and durable are the same. A half that is
    /// here already is no half of this: it knows what it knew, and gets its chunks.
    fn tables_of(&self, into: Sorting, from: u32) -> BTreeMap<PgId, pg::Operations> {
        let mut tables = BTreeMap::new();
        for (id, entry) in self.pgs.iter().filter(|(id, _)| id.pool == into.pool) {
            let halves = into.halves(*id, from).filter(|half| !self.pgs.contains_key(half));
            for half in halves.chain([*id]) {
                let mut table = entry.durable.clone();
                table.retain_chunks(|chunk| into.group_of(half, chunk) == half);
                tables.insert(half, table);
            }
        }
        tables
    }

    fn take_apart(&mut self, into: Sorting, from: u32, tables: BTreeMap<PgId, pg::Operations>) {
        for (id, table) in tables {
            self.space.release(id);
            match self.pgs.get_mut(&id) {
                Some(entry) => (entry.visible, entry.durable) = (table.clone(), table),
                None => {
                    let record = self.pgs.get(&was(id, from)).map_or(0, |whole| whole.record);
                    self.pgs.insert(id, pg::Pg::new(record, table));
                }
            }
        }
        for (id, chunk) in &mut self.chunks {
            let (before, now) = (chunk.pg, into.group_of(chunk.pg, *id));
            if now != before {
                let state = chunk.state();
                chunk.pg = now;
                self.pgs.entry(before).or_default().reindex(*id, state, None);
                self.pgs.entry(now).or_default().reindex(*id, None, state);
            }
        }
    }
}

/// The group that one was part of when there were `from`.
pub fn was(pg: PgId, from: u32) -> PgId {
    PgId { index: PgIndex(pg.index.0 & (from - 1)), ..pg }
}
