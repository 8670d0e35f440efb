//! Making and opening `raft.db`, and the check of every record in it before it is used.

use std::path::Path;

use pflex_proto::ids::{ClusterId, MdmId, StoreUuid};
use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamilyDescriptor, DBRecoveryMode, IteratorMode, Options, WriteBatch, WriteOptions,
};

use super::{Cached, Database, LOG, META, mark::Mark};
use crate::{
    pb::pflex::mdm::raft::v1 as pb,
    raft::{
        codec::{self, RecordError},
        durable,
        error::StoreError,
        identity::{FORMAT, StoreIdentity},
        types::{LogId, Vote},
        wal,
    },
};

pub(super) const NAME: &str = "raft.db";
pub(super) const HEADER: &[u8] = b"header";
pub(super) const VOTE: &[u8] = b"vote";
pub(super) const COMMITTED: &[u8] = b"committed";
pub(super) const PURGED: &[u8] = b"purged";

/// A log between two snapshots is some megabytes; it should stay in the memtable and this cache.
const BLOCK_CACHE_BYTES: usize = 8 << 20;
const MEMTABLE_BYTES: usize = 16 << 20;
/// RocksDB's own text logs, not the Raft log.
const INFO_LOGS: usize = 4;
const INFO_LOG_BYTES: usize = 4 << 20;

/// The options whose defaults would lose or hide something.
fn options(create: bool) -> Options {
    let mut options = Options::default();
    options.create_if_missing(create);
    options.create_missing_column_families(create);
    // A torn last record was never acknowledged; anything wrong before the tail refuses to open.
    options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
    // In a recycled file old records follow the tail and could be taken for new ones.
    options.set_recycle_log_file_num(0);
    // A write only goes to memory; the flusher's thread hands it to the system and syncs. The file system makes a write
    // wait for the journal commit of somebody's fsync, 100 ms and more on a busy disk, and writes are on the Raft thread.
    options.set_manual_wal_flush(true);
    // Syncs happen when the flusher says so; background ones would only compete with them.
    options.set_wal_bytes_per_sync(0);
    // A synced write-ahead log that went missing or got shorter refuses to open.
    options.set_track_and_verify_wals_in_manifest(true);
    options.set_paranoid_checks(true);
    options.set_keep_log_file_num(INFO_LOGS);
    options.set_max_log_file_size(INFO_LOG_BYTES);
    options
}

fn column_options() -> Options {
    let mut options = Options::default();
    options.set_write_buffer_size(MEMTABLE_BYTES);
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(&Cache::new_lru_cache(BLOCK_CACHE_BYTES));
    options.set_block_based_table_factory(&blocks);
    options
}

pub(super) fn database(path: &Path, create: bool) -> Result<Database, StoreError> {
    if !create && !path.join("CURRENT").exists() {
        return Err(StoreError::Damaged { path: path.into(), what: "the database is gone".into() });
    }
    if !create {
        wal::check(path)?;
    }
    let columns = [LOG, META].map(|name| ColumnFamilyDescriptor::new(name, column_options()));
    Database::open_cf_descriptors(&options(create), path, columns).map_err(StoreError::database("open", path))
}

pub(super) fn create(path: &Path, identity: StoreIdentity) -> Result<(), StoreError> {
    durable::remove_dir(path).map_err(StoreError::io("clear", path))?;
    durable::make_dir(path).map_err(StoreError::io("create", path))?;
    let db = database(path, true)?;
    Mark::create(path)?;
    let header = pb::StoreHeader {
        format: FORMAT,
        cluster: identity.cluster.as_bytes().to_vec(),
        node: identity.node.get(),
        store: identity.store.as_bytes().to_vec(),
    };
    let mut synced = WriteOptions::default();
    synced.set_sync(true);
    let meta = db.cf_handle(META).expect("opened with this column family");
    db.put_cf_opt(&meta, HEADER, codec::seal(HEADER, &header), &synced).map_err(StoreError::database("write", path))
}

/// Writes into an empty log where it begins, synced.
pub(super) fn begin_behind(path: &Path, purged: LogId, vote: Vote) -> Result<(), StoreError> {
    let db = database(path, false)?;
    let meta = db.cf_handle(META).expect("opened with this column family");
    let mut batch = WriteBatch::default();
    batch.put_cf(&meta, PURGED, codec::seal(PURGED, &codec::log_id_to_pb(&purged)));
    batch.put_cf(&meta, COMMITTED, codec::seal(COMMITTED, &codec::log_id_to_pb(&purged)));
    batch.put_cf(&meta, VOTE, codec::seal(VOTE, &codec::vote_to_pb(&vote)));
    let mut synced = WriteOptions::default();
    synced.set_sync(true);
    db.write_opt(batch, &synced).map_err(StoreError::database("write", path))
}

/// Compares the database's own header with the directory's: a directory put together from two is refused.
pub(super) fn check_header(db: &Database, path: &Path, dir: &Path, mine: StoreIdentity) -> Result<(), StoreError> {
    let damaged = |what: String| StoreError::Damaged { path: path.into(), what };
    let Some(header) = get::<pb::StoreHeader>(db, path, HEADER)? else {
        return Err(damaged("it has no header".into()));
    };
    if header.format > FORMAT {
        return Err(StoreError::NewerFormat { path: path.into(), found: header.format, known: FORMAT });
    }
    let uuid = |error: pflex_proto::ids::BadUuid| damaged(format!("its header: {error}"));
    let dir = dir.to_path_buf();
    let cluster = ClusterId::from_slice(&header.cluster).map_err(uuid)?;
    if cluster != mine.cluster {
        return Err(StoreError::OtherCluster { dir, expected: mine.cluster, found: cluster });
    }
    let node = MdmId(header.node);
    if node != mine.node {
        return Err(StoreError::OtherNode { dir, expected: mine.node, found: node });
    }
    let part = StoreUuid::from_slice(&header.store).map_err(uuid)?;
    if part != mine.store {
        return Err(StoreError::Mixed { dir, header: mine.store, part });
    }
    Ok(())
}

/// Reads every record once: a bad or missing one is found now and not when a peer needs it.
pub(super) fn read_all(db: &Database, path: &Path) -> Result<Cached, StoreError> {
    let damaged = |what: String| StoreError::Damaged { path: path.into(), what };
    let purged = get::<pb::LogId>(db, path, PURGED)?.map(codec::log_id_from_pb);
    let mut cached = Cached {
        vote: get::<pb::VoteValue>(db, path, VOTE)?.map(codec::vote_from_pb),
        committed: get::<pb::LogId>(db, path, COMMITTED)?.map(codec::log_id_from_pb),
        last: purged,
        purged,
        ..Cached::default()
    };
    let log = db.cf_handle(LOG).expect("opened with this column family");
    // Without a purged entry the log starts where it starts: at 0, or at 1 after a bootstrap from elsewhere.
    let mut expected = purged.map(|id| id.index + 1);
    for item in db.iterator_cf(&log, IteratorMode::Start) {
        let (key, value) = item.map_err(StoreError::database("read", path))?;
        let index = u64::from_be_bytes(key.as_ref().try_into().map_err(|_| damaged("a key is not an index".into()))?);
        if let Some(expected) = expected
            && index != expected
        {
            return Err(damaged(format!("log entry {expected} is missing, the next is {index}")));
        }
        let entry: pb::Entry =
            codec::unseal(&key, &value).map_err(|error| damaged(format!("log entry {index}: {error}")))?;
        let entry = codec::entry_from_pb(entry).map_err(|error| damaged(format!("log entry {index}: {error}")))?;
        cached.last = Some(entry.log_id);
        expected = Some(index + 1);
    }
    Ok(cached)
}

fn get<M: prost::Message + Default>(db: &Database, path: &Path, key: &'static [u8]) -> Result<Option<M>, StoreError> {
    let meta = db.cf_handle(META).expect("opened with this column family");
    let value = db.get_pinned_cf(&meta, key).map_err(StoreError::database("read", path))?;
    let decoded = value.map(|value| codec::unseal(key, &value)).transpose();
    decoded.map_err(|error: RecordError| StoreError::Damaged {
        path: path.into(),
        what: format!("record {}: {error}", String::from_utf8_lossy(key)),
    })
}
