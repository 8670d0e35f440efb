//! A table in memory that remembers what the running apply has changed in it, so that rows, events and step checks all
//! come from the same place and none can be forgotten.

use std::{
    collections::{BTreeMap, btree_map},
    ops::RangeBounds,
};

use super::{
    rows::{Row, RowError},
    table::{RowChange, Table},
};

/// The rows of one table, ordered by key.
#[derive(Clone)]
pub struct Tracked<R: Row> {
    rows: BTreeMap<R::Key, R>,
    /// The row as it was before this apply first touched it.
    before: BTreeMap<R::Key, Option<R>>,
}

impl<R: Row> Default for Tracked<R> {
    fn default() -> Self {
        Self { rows: BTreeMap::new(), before: BTreeMap::new() }
    }
}

impl<R: Row> PartialEq for Tracked<R> {
    fn eq(&self, other: &Self) -> bool {
        self.rows == other.rows
    }
}

impl<R: Row> Tracked<R> {
    /// The row of a key.
    pub fn get(&self, key: R::Key) -> Option<&R> {
        self.rows.get(&key)
    }

    /// Whether the key has a row.
    pub fn contains(&self, key: R::Key) -> bool {
        self.rows.contains_key(&key)
    }

    /// Every row in key order.
    pub fn values(&self) -> btree_map::Values<'_, R::Key, R> {
        self.rows.values()
    }

    /// Every key, in order.
    pub fn keys(&self) -> impl Iterator<Item = R::Key> {
        self.rows.keys().copied()
    }

    /// The rows of a range of keys.
    pub fn range(&self, keys: impl RangeBounds<R::Key>) -> impl DoubleEndedIterator<Item = &R> {
        self.rows.range(keys).map(|(_, row)| row)
    }

    /// How many rows.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Writes a row.
    pub(super) fn put(&mut self, row: R) {
        let key = row.key();
        self.remember(key);
        self.rows.insert(key, row);
    }

    /// Changes a row in place, if it is there.
    pub(super) fn update(&mut self, key: R::Key, change: impl FnOnce(&mut R)) {
        self.remember(key);
        if let Some(row) = self.rows.get_mut(&key) {
            change(row);
            debug_assert!(row.key() == key, "an update never changes a key");
        }
    }

    /// Removes a row.
    pub(super) fn remove(&mut self, key: R::Key) -> Option<R> {
        self.remember(key);
        self.rows.remove(&key)
    }

    fn remember(&mut self, key: R::Key) {
        self.before.entry(key).or_insert_with(|| self.rows.get(&key).cloned());
    }

    /// What this apply has really changed: key, row before, row now.
    pub(super) fn changes(&self) -> impl Iterator<Item = (R::Key, Option<&R>, Option<&R>)> {
        self.before
            .iter()
            .map(|(key, before)| (*key, before.as_ref(), self.rows.get(key)))
            .filter(|(_, before, now)| before != now)
    }

    /// Hands the changes to the store and forgets them.
    pub(super) fn drain(&mut self, into: &mut Vec<RowChange>) {
        into.extend(self.changes().map(|(key, _, now)| RowChange {
            table: R::TABLE,
            key: R::encode_key(key),
            value: now.map(Row::encode),
        }));
        self.before.clear();
    }

    /// Puts in a row read from the store.
    pub(super) fn load(&mut self, key: &[u8], value: &[u8]) -> Result<(), RowError> {
        let row = R::decode(key, value)?;
        self.rows.insert(row.key(), row);
        Ok(())
    }

    /// Every row as the store has it.
    pub(super) fn dump(&self) -> impl Iterator<Item = (Table, Box<[u8]>, Box<[u8]>)> {
        self.rows.iter().map(|(key, row)| (R::TABLE, R::encode_key(*key).into(), row.encode().into()))
    }
}
