//! Reading entries and the vote: replication, apply and start-up.

use std::{
    fmt::Debug,
    io,
    ops::{Bound, RangeBounds},
};

use openraft::RaftLogReader;
use rocksdb::{Direction, IteratorMode, ReadOptions};

use super::{Inner, LOG, LogStore};
use crate::{
    pb::pflex::mdm::raft::v1 as pb,
    raft::{
        codec,
        error::StoreError,
        network::APPEND_PAYLOAD_BYTES,
        types::{Entry, TypeConfig, Vote},
    },
};

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + Send>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let (start, end) = bounds(&range);
        Ok(self.0.entries(start, end, usize::MAX)?)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.0.cached().vote)
    }

    /// As many as one RPC can carry, at least one.
    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        Ok(self.0.entries(start, end, APPEND_PAYLOAD_BYTES)?)
    }
}

/// A range of indexes as `start..end`.
fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(before) => before.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(last) => last.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    (start, end)
}

impl Inner {
    /// The entries of `start..end` the log has, up to `limit_bytes` but at least one. A gap is an error: openraft would
    /// apply over it.
    fn entries(&self, start: u64, end: u64, limit_bytes: usize) -> Result<Vec<Entry>, StoreError> {
        if let Some(entries) = self.cached().recent.read(start, end, limit_bytes) {
            return Ok(entries);
        }
        let damaged = |what: String| StoreError::Damaged { path: self.path.clone(), what };
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(end.to_be_bytes());
        let mode_key = start.to_be_bytes();
        let mode = IteratorMode::From(&mode_key, Direction::Forward);

        let mut entries: Vec<Entry> = Vec::new();
        let mut bytes = 0;
        for item in self.db.iterator_cf_opt(&self.column(LOG), options, mode) {
            let (key, value) = item.map_err(StoreError::database("read", self.path.clone()))?;
            bytes += value.len();
            if bytes > limit_bytes && !entries.is_empty() {
                break;
            }
            let entry: Result<Entry, _> = codec::unseal::<pb::Entry>(&key, &value).and_then(codec::entry_from_pb);
            let entry = entry.map_err(|error| damaged(format!("log entry {key:?}: {error}")))?;
            if let Some(last) = entries.last()
                && entry.log_id.index != last.log_id.index + 1
            {
                return Err(damaged(format!("log entry {} is missing", last.log_id.index + 1)));
            }
            entries.push(entry);
        }
        Ok(entries)
    }
}
