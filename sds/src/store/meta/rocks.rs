//! `sds_local.db`: the SDS's own RocksDB. Shared by the devices of one process, and by whoever else in the SDS needs
//! rows (verified tokens, health log): those name their column families at open.
//!
//! Batches are written with the WAL synced, by one thread, so that the data thread never waits for a disk. They commit
//! in the order of submission.

use std::{
    path::Path,
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
};

use pflex_proto::ids::DeviceUuid;
use rocksdb::{DB, IteratorMode, Options, WriteBatch, WriteOptions};

use super::{Batch, Committed, MetaStore, Rows, Table};
use crate::store::error::MetaError;

/// Batches that may wait: each device has one checkpoint at a time.
const QUEUE_BATCHES: usize = 256;
/// Rows are rewritten by each checkpoint: a small buffer, compacted away, is enough.
const WRITE_BUFFER_BYTES: usize = 16 << 20;

type Job = (DeviceUuid, Batch, Committed);

/// See the module.
pub struct LocalDb {
    db: Arc<DB>,
    /// None only while it is dropped.
    queue: Option<mpsc::SyncSender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl LocalDb {
    /// Opens or makes it, with the device tables and `extra` column families.
    ///
    /// # Errors
    /// When RocksDB cannot open it, for instance because another process has.
    pub fn open(path: &Path, extra: &[&str]) -> Result<Arc<Self>, MetaError> {
        let mut options = Options::default();
        options.create_if_missing(true);
        options.create_missing_column_families(true);
        options.set_write_buffer_size(WRITE_BUFFER_BYTES);
        options.set_keep_log_file_num(4);
        // An unsynced tail may be torn; everything acknowledged was synced before it.
        options.set_wal_recovery_mode(rocksdb::DBRecoveryMode::TolerateCorruptedTailRecords);
        let names = Table::ALL.map(Table::name).into_iter().chain(extra.iter().copied()).chain(["default"]);
        let families = names.map(|name| (name, options.clone()));
        let db = Arc::new(DB::open_cf_with_opts(&options, path, families).map_err(failed)?);
        let (queue, jobs) = mpsc::sync_channel::<Job>(QUEUE_BATCHES);
        let writer = Arc::clone(&db);
        let body = move || {
            for (device, batch, done) in jobs {
                done(write(&writer, device, batch));
            }
        };
        let thread = thread::Builder::new()
            .name("local-db".into())
            .spawn(body)
            .map_err(|error| MetaError { message: error.to_string() })?;
        Ok(Arc::new(Self { db, queue: Some(queue), thread: Some(thread) }))
    }

    /// The database, for the owner of another column family.
    pub const fn db(&self) -> &Arc<DB> {
        &self.db
    }
}

impl Drop for LocalDb {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != thread::current().id()
        {
            drop(thread.join());
        }
    }
}

impl MetaStore for LocalDb {
    fn rows(&self, device: DeviceUuid, table: Table) -> Result<Rows, MetaError> {
        let family = family(&self.db, table)?;
        let prefix = device.as_bytes();
        let mut rows = Vec::new();
        for row in self.db.iterator_cf(family, IteratorMode::From(prefix, rocksdb::Direction::Forward)) {
            let (key, value) = row.map_err(failed)?;
            let Some(rest) = key.strip_prefix(prefix) else { break };
            rows.push((rest.to_vec(), value.into_vec()));
        }
        Ok(rows)
    }

    fn commit(&self, device: DeviceUuid, batch: Batch, done: Committed) {
        let closed = || MetaError { message: "the database is closed".into() };
        let Some(queue) = &self.queue else { return done(Err(closed())) };
        if let Err(mpsc::SendError((.., done))) = queue.send((device, batch, done)) {
            done(Err(closed()));
        }
    }
}

fn write(db: &DB, device: DeviceUuid, batch: Batch) -> Result<(), MetaError> {
    let mut writes = WriteBatch::default();
    for (table, key, value) in batch.rows {
        let family = family(db, table)?;
        let key = [device.as_bytes().as_slice(), &key].concat();
        match value {
            Some(value) => writes.put_cf(family, key, value),
            None => writes.delete_cf(family, key),
        }
    }
    let mut options = WriteOptions::default();
    options.set_sync(true);
    db.write_opt(writes, &options).map_err(failed)
}

fn family(db: &DB, table: Table) -> Result<&rocksdb::ColumnFamily, MetaError> {
    let missing = || MetaError { message: format!("column family {} is missing", table.name()) };
    db.cf_handle(table.name()).ok_or_else(missing)
}

fn failed(error: rocksdb::Error) -> MetaError {
    MetaError { message: error.into_string() }
}
