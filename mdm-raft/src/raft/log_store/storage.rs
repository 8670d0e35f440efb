//! The writing side, as openraft calls it from its core task: one call at a time, in order.

use std::io;

use openraft::{
    LogState,
    storage::{IOFlushed, RaftLogStorage},
};
use rocksdb::WriteBatch;
use tokio::sync::oneshot;

use super::{
    Inner, LOG, LogStore, META,
    flusher::Waiter,
    open::{COMMITTED, PURGED, VOTE},
};
use crate::raft::{
    codec,
    error::StoreError,
    types::{Entry, LogId, TypeConfig, Vote},
};

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let cached = self.0.cached();
        Ok(LogState { last_purged_log_id: cached.purged, last_log_id: cached.last })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    /// Written in its turn and waited for: the core task may tell a candidate only what is on disk.
    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let mut batch = WriteBatch::default();
        batch.put_cf(&self.0.column(META), VOTE, codec::seal(VOTE, &codec::vote_to_pb(vote)));
        self.0.write(batch)?;
        self.0.cached().vote = Some(*vote);
        self.0.synced().await
    }

    /// Not synced: it is a hint that spares a restart the wait for the leader; an older one is as right.
    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        let mut batch = WriteBatch::default();
        let meta = self.0.column(META);
        match &committed {
            Some(id) => batch.put_cf(&meta, COMMITTED, codec::seal(COMMITTED, &codec::log_id_to_pb(id))),
            None => batch.delete_cf(&meta, COMMITTED),
        }
        self.0.write(batch)?;
        self.0.cached().committed = committed;
        Ok(())
    }

    /// At most the last entry: the log may have been cut back to what was synced, and openraft would want to apply
    /// entries that are not there.
    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        let cached = self.0.cached();
        Ok(cached.committed.min(cached.last))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        let mut batch = WriteBatch::default();
        {
            let log = self.0.column(LOG);
            for entry in &entries {
                let key = entry.log_id.index.to_be_bytes();
                batch.put_cf(&log, key, codec::seal(&key, &codec::entry_to_pb(entry)));
            }
        }
        self.0.reclaimer.appended(batch.size_in_bytes());
        self.0.write(batch)?;
        {
            let mut cached = self.0.cached();
            for entry in entries {
                cached.last = Some(entry.log_id);
                cached.recent.push(entry);
            }
        }
        self.0.flusher.push(Waiter::Append(callback));
        Ok(())
    }

    /// Synced: a snapshot may be installed next, and a cut entry that came back after a power cut would contradict it.
    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        let keep_until = last.map_or(0, |id| id.index + 1);
        let mut batch = WriteBatch::default();
        batch.delete_range_cf(&self.0.column(LOG), keep_until.to_be_bytes(), u64::MAX.to_be_bytes());
        self.0.write(batch)?;
        {
            let mut cached = self.0.cached();
            cached.last = cached.last.min(last);
            cached.recent.truncate_after(last.map(|last| last.index));
        }
        self.0.synced().await
    }

    /// openraft asks only below a snapshot that was built or installed, and both return once it is on disk.
    async fn purge(&mut self, upto: LogId) -> Result<(), io::Error> {
        let mut batch = WriteBatch::default();
        batch.put_cf(&self.0.column(META), PURGED, codec::seal(PURGED, &codec::log_id_to_pb(&upto)));
        // One batch with the mark: there is no moment in which the log starts later than it says.
        batch.delete_range_cf(&self.0.column(LOG), 0_u64.to_be_bytes(), (upto.index + 1).to_be_bytes());
        self.0.write(batch)?;
        let mut cached = self.0.cached();
        cached.purged = Some(upto);
        cached.recent.purge(upto.index);
        if cached.last.is_none_or(|last| last.index <= upto.index) {
            cached.last = Some(upto);
        }
        drop(cached);
        self.0.reclaimer.cut(&self.0.db, upto.index + 1);
        Ok(())
    }
}

impl Inner {
    /// Waits in the queue for the sync that covers everything written until now.
    async fn synced(&self) -> io::Result<()> {
        let (sender, synced) = oneshot::channel();
        self.flusher.push(Waiter::Call(sender));
        synced.await.map_err(|_| io::Error::other("the flush thread ended"))?
    }

    /// Writes unsynced. A failed write poisons like a failed sync: what of it reached the disk is not known.
    fn write(&self, batch: WriteBatch) -> Result<(), StoreError> {
        self.flusher.check()?;
        self.db.write(batch).map_err(|error| {
            self.flusher.poison(error.as_ref());
            self.fatal.call(&format!("a write to raft.db failed: {error}"));
            StoreError::database("write", self.path.clone())(error)
        })
    }
}
