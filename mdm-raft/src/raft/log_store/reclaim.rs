//! Giving back the disk space of entries that were cut.
//!
//! A cut writes one range tombstone; files and write-ahead logs stay until RocksDB has a reason to rewrite them, which a log
//! of long entries and a quiet one after it never give. So after every so many bytes both column families are flushed,
//! which frees the write-ahead logs, and the cut range is compacted away. On a thread of its own: nobody waits for it.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
};

use super::{Database, LOG, META};

/// Bytes appended between two rounds. A round rewrites at most what is left of the log, some megabytes.
const EVERY_BYTES: u64 = 16 << 20;

/// Counts what is appended, and reclaims now and then.
#[derive(Default)]
pub(super) struct Reclaimer {
    appended: AtomicU64,
    running: Mutex<Option<JoinHandle<()>>>,
}

impl Reclaimer {
    /// So many bytes were appended.
    pub(super) fn appended(&self, bytes: usize) {
        self.appended.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// The entries below `end` were cut: begins a round if it is time and none runs.
    pub(super) fn cut(&self, db: &Arc<Database>, end: u64) {
        if self.appended.load(Ordering::Relaxed) < EVERY_BYTES {
            return;
        }
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if running.as_ref().is_some_and(|thread| !thread.is_finished()) {
            return;
        }
        self.appended.store(0, Ordering::Relaxed);
        let db = Arc::clone(db);
        let round = std::thread::Builder::new().name("raft-log-reclaim".into()).spawn(move || {
            // A disk that fails here fails the next append as well, which ends the process.
            if let Err(error) = reclaim(&db, end) {
                tracing::warn!("cannot give back the disk space of the log: {error}");
            }
        });
        *running = round.inspect_err(|error| tracing::warn!("cannot start the reclaim thread: {error}")).ok();
    }
}

impl Drop for Reclaimer {
    /// Waits, so that the database is closed when its store is.
    fn drop(&mut self) {
        let running = self.running.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = running.filter(|thread| thread.thread().id() != std::thread::current().id()) {
            drop(thread.join());
        }
    }
}

fn reclaim(db: &Database, end: u64) -> Result<(), rocksdb::Error> {
    let column = |name| db.cf_handle(name).expect("opened with this column family");
    // The log first: what it flushes is mostly cut. Then what keeps its write-ahead logs alive.
    for name in [LOG, META] {
        db.flush_cf(&column(name))?;
    }
    db.compact_range_cf(&column(LOG), None::<&[u8]>, Some(end.to_be_bytes()));
    Ok(())
}
