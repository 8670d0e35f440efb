//! One `state-*` directory: the RocksDB with a column family a table and the `Applied` record that says how far it is.

use std::{
    collections::HashSet,
    io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use pflex_proto::ids::{ClusterGeneration, ClusterId, LogTime, Revision};
use rocksdb::{
    ColumnFamilyDescriptor, DB, DBRecoveryMode, DEFAULT_COLUMN_FAMILY_NAME, IteratorMode, Options, WriteBatch,
    WriteOptions, checkpoint::Checkpoint,
};

use crate::{
    backup::{self, BackupWriter, Head},
    pb::pflex::mdm::raft::v1 as pb,
    raft::{
        codec::{self, RecordError},
        durable,
        error::StoreError,
        types::{LogId, StoredMembership, log_id},
        wal,
    },
    state::{RowChange, State, Table},
};

const APPLIED: &[u8] = b"applied";
const FORMAT: u32 = 1;

/// How far a state has come.
#[derive(Clone, Debug, Default)]
pub(in crate::raft) struct Mark {
    pub(in crate::raft) last_applied: Option<LogId>,
    /// The index of the last command; below `last_applied` when blank or membership entries followed.
    pub(in crate::raft) revision: Revision,
    pub(in crate::raft) log_time: LogTime,
    pub(in crate::raft) membership: StoredMembership,
}

pub(in crate::raft) struct StateDatabase {
    // An option only so that `drop` can close it before the directory goes.
    db: Option<DB>,
    path: PathBuf,
    cluster: ClusterId,
    replaced: AtomicBool,
}

impl StateDatabase {
    pub(super) fn create(path: &Path, cluster: ClusterId) -> Result<Self, StoreError> {
        durable::make_dir(path).map_err(StoreError::io("create", path))?;
        let db =
            DB::open_cf_descriptors(&options(true), path, columns()).map_err(StoreError::database("open", path))?;
        let mut batch = WriteBatch::default();
        batch.put(APPLIED, codec::seal(APPLIED, &mark_to_pb(&Mark::default(), cluster)));
        let mut synced = WriteOptions::default();
        synced.set_sync(true);
        db.write_opt(batch, &synced).map_err(StoreError::database("write", path))?;
        Ok(Self::new(db, path, cluster))
    }

    pub(super) fn open(path: &Path, cluster: ClusterId) -> Result<(Self, Mark, State), StoreError> {
        check_tables(path)?;
        let db =
            DB::open_cf_descriptors(&options(false), path, columns()).map_err(StoreError::database("open", path))?;
        let mark = read_mark(&db, path, cluster)?;
        let state = load(&db, path)?;
        Ok((Self::new(db, path, cluster), mark, state))
    }

    fn new(db: DB, path: &Path, cluster: ClusterId) -> Self {
        Self { db: Some(db), path: path.into(), cluster, replaced: AtomicBool::new(false) }
    }

    pub(super) fn name(&self) -> String {
        self.path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }

    fn db(&self) -> &DB {
        self.db.as_ref().expect("closed only by drop")
    }

    /// Writes what a batch of entries changed and how far the state now is: all or nothing, unsynced.
    pub(super) fn write(&self, rows: Vec<RowChange>, mark: &Mark) -> Result<(), StoreError> {
        let mut batch = WriteBatch::default();
        for row in rows {
            let column = self.db().cf_handle(row.table.name()).expect("opened with every table");
            match row.value {
                Some(value) => batch.put_cf(column, row.key, value),
                None => batch.delete_cf(column, row.key),
            }
        }
        batch.put(APPLIED, codec::seal(APPLIED, &mark_to_pb(mark, self.cluster)));
        self.db().write(batch).map_err(StoreError::database("write", self.path.clone()))
    }

    /// Puts a whole state into an empty database, durably.
    pub(super) fn fill(&self, state: &State, mark: &Mark) -> Result<(), StoreError> {
        let rows = state.dump().into_iter().map(|(table, key, value)| RowChange {
            table,
            key: key.into_vec(),
            value: Some(value.into_vec()),
        });
        self.write(rows.collect(), mark)?;
        self.db().flush_wal(true).map_err(StoreError::database("sync", self.path.clone()))
    }

    /// Writes a backup of the database as of now; apply goes on meanwhile.
    pub(in crate::raft) fn back_up(
        &self,
        to: impl io::Write,
        generation: ClusterGeneration,
        wall_time_ms: u64,
    ) -> Result<u64, StoreError> {
        let snapshot = self.db().snapshot();
        let read = |error| StoreError::database("read", self.path.clone())(error);
        let sent = |error| StoreError::io("send a backup of", self.path.clone())(error);
        let mark = snapshot.get(APPLIED).map_err(read)?;
        let mark = decode_mark(mark, &self.path, self.cluster)?;
        let last = mark.last_applied.unwrap_or_else(|| log_id(0, 0));
        let head = Head {
            cluster: self.cluster.as_bytes().to_vec(),
            generation: generation.get(),
            revision: mark.revision.get(),
            log_time_ms: mark.log_time.get(),
            term: last.leader_id.term,
            index: last.index,
            wall_time_ms,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let mut writer = BackupWriter::new(to, &head).map_err(sent)?;
        for table in Table::ALL.iter().copied().filter(|table| backup::is_kept(*table)) {
            for row in snapshot.iterator_cf(self.column(table), IteratorMode::Start) {
                let (key, value) = row.map_err(read)?;
                writer.row(table, &key, &value).map_err(sent)?;
            }
        }
        writer.finish().map_err(sent)
    }

    fn column(&self, table: Table) -> &rocksdb::ColumnFamily {
        self.db().cf_handle(table.name()).expect("opened with every table")
    }

    /// A copy of the database as of now in `to`, which must not exist. Flushes first, so that the copy is files only.
    pub(in crate::raft) fn checkpoint(&self, to: &Path) -> Result<(), StoreError> {
        let failed = |error| StoreError::database("copy", self.path.clone())(error);
        Checkpoint::new(self.db()).map_err(failed)?.create_checkpoint(to).map_err(failed)
    }

    /// Has the directory removed once nobody uses the database any more.
    pub(super) fn mark_replaced(&self) {
        self.replaced.store(true, Ordering::Relaxed);
    }
}

impl Drop for StateDatabase {
    fn drop(&mut self) {
        drop(self.db.take());
        if self.replaced.load(Ordering::Relaxed)
            && let Err(error) = durable::remove_dir(&self.path)
        {
            // The next open removes it.
            tracing::warn!(path = %self.path.display(), "cannot remove a replaced state: {error}");
        }
    }
}

/// Opens a copy read-only, only to see how far it is.
pub(in crate::raft) fn read_checkpoint(path: &Path, cluster: ClusterId) -> Result<Mark, StoreError> {
    check_tables(path)?;
    let db = DB::open_cf_descriptors_read_only(&options(false), path, columns(), false)
        .map_err(StoreError::database("open", path))?;
    read_mark(&db, path, cluster)
}

fn options(create: bool) -> Options {
    let mut options = Options::default();
    options.create_if_missing(create);
    options.create_missing_column_families(true);
    // Any prefix of the batches is a state; the Raft log replays the rest.
    options.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
    // So what a killed process had not handed to the system is no loss, and the Raft thread need not wait for the file
    // system, whose writes wait for other files' fsyncs. The log is purged only below a checkpoint, which has it all.
    options.set_manual_wal_flush(true);
    options.set_recycle_log_file_num(0);
    options.set_paranoid_checks(true);
    options.set_keep_log_file_num(4);
    options.set_max_log_file_size(4 << 20);
    options
}

fn columns() -> Vec<ColumnFamilyDescriptor> {
    let tables = Table::ALL.iter().map(|table| table.name());
    tables.chain([DEFAULT_COLUMN_FAMILY_NAME]).map(|name| ColumnFamilyDescriptor::new(name, table_options())).collect()
}

/// Small: there are dozens of tables and all rows are in memory anyway.
fn table_options() -> Options {
    let mut options = Options::default();
    options.set_write_buffer_size(4 << 20);
    options
}

/// A table this version does not have: a newer one wrote it. One it has and the database lacks is made at open.
fn check_tables(path: &Path) -> Result<(), StoreError> {
    if !path.join("CURRENT").exists() {
        return Err(StoreError::Damaged { path: path.into(), what: "the database is gone".into() });
    }
    wal::check(path)?;
    let known: HashSet<&str> =
        Table::ALL.iter().map(|table| table.name()).chain([DEFAULT_COLUMN_FAMILY_NAME]).collect();
    let found = DB::list_cf(&options(false), path).map_err(StoreError::database("open", path))?;
    match found.iter().find(|name| !known.contains(name.as_str())) {
        Some(_) => Err(StoreError::NewerFormat { path: path.into(), found: FORMAT + 1, known: FORMAT }),
        None => Ok(()),
    }
}

fn load(db: &DB, path: &Path) -> Result<State, StoreError> {
    let mut failure = None;
    let rows = Table::ALL.iter().flat_map(|table| {
        let column = db.cf_handle(table.name()).expect("opened with every table");
        db.iterator_cf(column, IteratorMode::Start).map(|row| row.map(|(key, value)| (*table, key, value)))
    });
    // The state takes an iterator of rows; an unreadable one ends it and is looked at after.
    let rows = rows.map_while(|row| row.map_err(|error| failure = Some(error)).ok());
    let state = State::load(rows);
    if let Some(error) = failure {
        return Err(StoreError::database("read", path)(error));
    }
    state.map_err(|error| StoreError::Damaged { path: path.into(), what: error.to_string() })
}

fn read_mark(db: &DB, path: &Path, cluster: ClusterId) -> Result<Mark, StoreError> {
    decode_mark(db.get(APPLIED).map_err(StoreError::database("read", path))?, path, cluster)
}

fn decode_mark(record: Option<Vec<u8>>, path: &Path, cluster: ClusterId) -> Result<Mark, StoreError> {
    let damaged = |what: String| StoreError::Damaged { path: path.into(), what };
    let record = record.ok_or_else(|| damaged("it does not say how far it is".into()))?;
    let applied: pb::Applied = codec::unseal(APPLIED, &record).map_err(|error| damaged(error.to_string()))?;
    if applied.format > FORMAT {
        return Err(StoreError::NewerFormat { path: path.into(), found: applied.format, known: FORMAT });
    }
    let found = ClusterId::from_slice(&applied.cluster).map_err(|error| damaged(error.to_string()))?;
    if found != cluster {
        return Err(StoreError::OtherCluster { dir: path.into(), expected: cluster, found });
    }
    mark_from_pb(applied).map_err(|error| damaged(error.to_string()))
}

fn mark_to_pb(mark: &Mark, cluster: ClusterId) -> pb::Applied {
    pb::Applied {
        format: FORMAT,
        cluster: cluster.as_bytes().to_vec(),
        last_applied: mark.last_applied.as_ref().map(codec::log_id_to_pb),
        revision: mark.revision.get(),
        log_time_ms: mark.log_time.get(),
        membership: Some(codec::stored_membership_to_pb(&mark.membership)),
    }
}

fn mark_from_pb(applied: pb::Applied) -> Result<Mark, RecordError> {
    Ok(Mark {
        last_applied: applied.last_applied.map(codec::log_id_from_pb),
        revision: Revision(applied.revision),
        log_time: LogTime(applied.log_time_ms),
        membership: codec::stored_membership_from_pb(applied.membership.unwrap_or_default())?,
    })
}
