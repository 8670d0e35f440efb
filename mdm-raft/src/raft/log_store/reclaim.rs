//! Giving back the disk space of entries that were cut.
//!
//! A cut writes one range tombstone; files and write-ahead logs stay until RocksDB has a reason to rewrite them, which a log
//! of long entries and a quiet one after it never give. So after every so many bytes both column families are flushed,
//! which frees the write-ahead logs, and the cut range is compacted away. On a thread of its own: nobody waits for it.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
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
    appended: Arc<AtomicU64>,
    rounds: Arc<Mutex<Rounds>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct Rounds {
    /// Where the log began at the newest cut that asked for a round. A round that runs on a slow disk while the log grows
    /// by another one's worth is followed by that one: the next cut may be hours away.
    wanted: Option<u64>,
    running: bool,
}

impl Reclaimer {
    /// So many bytes were appended.
    pub(super) fn appended(&self, bytes: usize) {
        self.appended.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// The entries below `end` were cut: begins a round if it is time.
    pub(super) fn cut(&self, db: &Arc<Database>, end: u64) {
        let db = Arc::clone(db);
        self.cut_with(end, move |end| {
            // A disk that fails here fails the next append as well, which ends the process.
            if let Err(error) = reclaim(&db, end) {
                tracing::warn!("cannot give back the disk space of the log: {error}");
            }
        });
    }

    fn cut_with(&self, end: u64, reclaim: impl Fn(u64) + Send + 'static) {
        if self.appended.load(Ordering::Relaxed) < EVERY_BYTES {
            return;
        }
        let mut rounds = lock(&self.rounds);
        rounds.wanted = Some(end);
        if rounds.running {
            return;
        }
        let (appended, shared) = (Arc::clone(&self.appended), Arc::clone(&self.rounds));
        let thread = std::thread::Builder::new().name("raft-log-reclaim".into()).spawn(move || {
            while let Some(end) = next(&shared) {
                appended.store(0, Ordering::Relaxed);
                reclaim(end);
            }
        });
        let thread = thread.inspect_err(|error| tracing::warn!("cannot start the reclaim thread: {error}")).ok();
        rounds.running = thread.is_some();
        *lock(&self.thread) = thread;
    }
}

/// The round to do now. Without one the thread ends, which is noted under the same lock: no cut falls in between.
fn next(rounds: &Mutex<Rounds>) -> Option<u64> {
    let mut rounds = lock(rounds);
    let end = rounds.wanted.take();
    rounds.running = end.is_some();
    end
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Reclaimer {
    /// Waits for the round that runs, so that the database is closed when its store is.
    fn drop(&mut self) {
        lock(&self.rounds).wanted = None;
        let thread = lock(&self.thread).take();
        if let Some(thread) = thread.filter(|thread| thread.thread().id() != std::thread::current().id()) {
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

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn what_was_cut_during_a_slow_round_gets_a_round_of_its_own() {
        let reclaimer = Reclaimer::default();
        let (begin, began) = mpsc::channel();
        let (finish, finished) = mpsc::channel();
        let finished = Mutex::new(finished);
        let slow = move |end| {
            begin.send(end).unwrap();
            lock(&finished).recv().unwrap();
        };
        reclaimer.appended(EVERY_BYTES as usize);
        reclaimer.cut_with(10, slow);
        assert_eq!(began.recv(), Ok(10));

        reclaimer.appended(EVERY_BYTES as usize);
        reclaimer.cut_with(20, |_| unreachable!("one round at a time"));
        reclaimer.cut_with(30, |_| unreachable!("one round at a time"));
        finish.send(()).unwrap();
        assert_eq!(began.recv(), Ok(30), "the newest cut of the two");
        finish.send(()).unwrap();
        drop(reclaimer);
        assert!(began.recv().is_err(), "nothing more was wanted");
    }
}
