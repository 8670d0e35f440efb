//! The newest entries of the log, in memory: what was just appended is what replication and apply read next, and reading it
//! from the database would mean to look it up, check it and decode it once for each of them.
//!
//! Always a run without gaps that ends with the last entry of the log. Kept small: who lags further reads the database.

use std::collections::VecDeque;

use openraft::EntryPayload;

use crate::raft::types::Entry;

/// Entries kept: some rounds of what replication sends at a time.
const ENTRIES: usize = 2_048;
/// Bytes of commands kept.
const BYTES: usize = 8 << 20;
/// What an entry takes besides its command.
const ENVELOPE: usize = 64;

/// The newest entries, oldest first.
pub(super) struct Recent {
    entries: VecDeque<Entry>,
    bytes: usize,
    most: usize,
}

impl Default for Recent {
    fn default() -> Self {
        Self::of(ENTRIES)
    }
}

impl Recent {
    /// That many entries at most.
    pub(super) const fn of(most: usize) -> Self {
        Self { entries: VecDeque::new(), bytes: 0, most }
    }

    /// An entry was appended. One that does not follow the last one starts a new run.
    pub(super) fn push(&mut self, entry: Entry) {
        if self.entries.back().is_some_and(|last| last.log_id.index + 1 != entry.log_id.index) {
            *self = Self::of(self.most);
        }
        self.bytes += size(&entry);
        self.entries.push_back(entry);
        while self.entries.len() > self.most || (self.bytes > BYTES && self.entries.len() > 1) {
            self.pop_front();
        }
    }

    /// The log was cut after `last`.
    pub(super) fn truncate_after(&mut self, last: Option<u64>) {
        while self.entries.back().is_some_and(|entry| Some(entry.log_id.index) > last) {
            let entry = self.entries.pop_back();
            self.bytes -= entry.as_ref().map_or(0, size);
        }
    }

    /// The log was cut up to `upto`.
    pub(super) fn purge(&mut self, upto: u64) {
        while self.entries.front().is_some_and(|entry| entry.log_id.index <= upto) {
            self.pop_front();
        }
    }

    /// The entries of `start..end`, up to `limit_bytes` but at least one; `None` if some may be in the database only.
    pub(super) fn read(&self, start: u64, end: u64, limit_bytes: usize) -> Option<Vec<Entry>> {
        let first = self.entries.front()?.log_id.index;
        let from = usize::try_from(start.checked_sub(first)?).ok()?;
        let mut bytes = 0;
        let mut found = Vec::new();
        for entry in self.entries.iter().skip(from).take_while(|entry| entry.log_id.index < end) {
            bytes += size(entry);
            if bytes > limit_bytes && !found.is_empty() {
                break;
            }
            found.push(entry.clone());
        }
        Some(found)
    }

    fn pop_front(&mut self) {
        let entry = self.entries.pop_front();
        self.bytes -= entry.as_ref().map_or(0, size);
    }
}

fn size(entry: &Entry) -> usize {
    let command = match &entry.payload {
        EntryPayload::Normal(proposal) => proposal.command.bytes().len(),
        EntryPayload::Blank | EntryPayload::Membership(_) => 0,
    };
    command + ENVELOPE
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::{tests::kit::entry, types::log_id};

    fn filled(range: std::ops::Range<u64>) -> Recent {
        let mut recent = Recent::default();
        range.for_each(|index| recent.push(entry(1, index)));
        recent
    }

    fn indexes(found: Option<Vec<Entry>>) -> Option<Vec<u64>> {
        found.map(|entries| entries.iter().map(|entry| entry.log_id.index).collect())
    }

    #[test]
    fn what_is_older_than_it_keeps_is_left_to_the_database() {
        let recent = filled(5..10);
        assert_eq!(indexes(recent.read(5, 8, usize::MAX)), Some(vec![5, 6, 7]));
        assert_eq!(indexes(recent.read(8, 99, usize::MAX)), Some(vec![8, 9]));
        assert_eq!(indexes(recent.read(8, 99, 1)), Some(vec![8]), "at least one");
        assert_eq!(indexes(recent.read(10, 11, usize::MAX)), Some(vec![]));
        assert_eq!(recent.read(4, 8, usize::MAX), None);
        assert_eq!(Recent::default().read(1, 2, usize::MAX), None);
        let many = filled(0..ENTRIES as u64 + 3);
        assert_eq!((many.read(2, 4, usize::MAX), indexes(many.read(3, 4, usize::MAX))), (None, Some(vec![3])));
    }

    #[test]
    fn it_is_cut_like_the_log() {
        let mut recent = filled(5..10);
        recent.truncate_after(Some(7));
        recent.push(Entry { log_id: log_id(2, 8), ..entry(1, 8) });
        assert_eq!(recent.read(8, 9, usize::MAX).unwrap()[0].log_id, log_id(2, 8), "not the one that was cut");
        recent.purge(6);
        assert_eq!((recent.read(6, 9, usize::MAX), indexes(recent.read(7, 9, usize::MAX))), (None, Some(vec![7, 8])));
        recent.push(entry(3, 20));
        assert_eq!((recent.read(8, 21, usize::MAX), indexes(recent.read(20, 21, usize::MAX))), (None, Some(vec![20])));
        recent.truncate_after(None);
        assert_eq!((recent.bytes, recent.entries.len()), (0, 0));
    }
}
