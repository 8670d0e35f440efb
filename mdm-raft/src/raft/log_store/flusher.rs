//! The one thread that syncs `raft.db`: takes everything queued, syncs once, answers all.
//!
//! Whoever queues wrote to the write-ahead log before, so a sync that starts after the queue was taken covers all that
//! was in it. What arrives during a sync waits for the next: under load the batches grow by themselves.
//!
//! The first failed sync is the last: everything queued, then and later, fails, and the process stops.

use std::{
    io,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
};

use openraft::storage::IOFlushed;
use tokio::sync::oneshot;

use super::{Database, mark::Mark};
use crate::raft::{error::StoreError, fatal::FatalHook, types::TypeConfig};

/// Makes everything written to the write-ahead log so far durable.
pub trait WalSync: Send {
    /// Syncs, returns when the disk has it.
    ///
    /// # Errors
    /// When the disk may not have it.
    fn sync(&mut self) -> io::Result<()>;

    /// The first half of it: the system has the bytes. What the files are then is what a sync is sure to cover.
    #[cfg(test)]
    fn hand_over(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The real sync. What it made durable is noted, so that its loss would be noticed.
pub(super) struct RocksSync {
    pub(super) db: Arc<Database>,
    pub(super) mark: Mark,
}

impl WalSync for RocksSync {
    fn sync(&mut self) -> io::Result<()> {
        // Read before: what is written meanwhile may or may not be covered.
        let sequence = self.db.latest_sequence_number();
        self.db.flush_wal(true).map_err(io::Error::other)?;
        self.mark.advance(sequence)
    }

    #[cfg(test)]
    fn hand_over(&mut self) -> io::Result<()> {
        self.db.flush_wal(false).map_err(io::Error::other)
    }
}

/// How well the group commit groups.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SyncCount {
    /// Appends, votes and cuts made durable.
    pub writes: u64,
    /// Syncs it took.
    pub syncs: u64,
}

/// Reads the counts; does not keep the store open.
#[derive(Clone)]
pub struct SyncCounter(Arc<Counts>);

impl SyncCounter {
    /// The counts now.
    pub fn get(&self) -> SyncCount {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        SyncCount { writes: load(&self.0.writes), syncs: load(&self.0.syncs) }
    }
}

#[derive(Default)]
struct Counts {
    writes: AtomicU64,
    syncs: AtomicU64,
}

/// Who waits for a sync.
pub(super) enum Waiter {
    Append(IOFlushed<TypeConfig>),
    Call(oneshot::Sender<io::Result<()>>),
}

impl Waiter {
    fn answer(self, result: io::Result<()>) {
        match self {
            Self::Append(callback) => callback.io_completed(result),
            // The core task was dropped; nobody is left to tell.
            Self::Call(sender) => drop(sender.send(result)),
        }
    }
}

#[derive(Default)]
struct Queue {
    // Not bounded here: openraft bounds what it has in flight (`api_channel_size`, `max_append_entries`).
    waiters: Vec<Waiter>,
    closed: bool,
    poison: Option<String>,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    arrived: Condvar,
    counts: Arc<Counts>,
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) struct Flusher {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Flusher {
    pub(super) fn start(sync: Box<dyn WalSync>, fatal: FatalHook) -> Result<Self, StoreError> {
        let shared = Arc::new(Shared::default());
        let theirs = shared.clone();
        let thread = std::thread::Builder::new()
            .name("raft-log-flush".into())
            .spawn(move || run(&theirs, sync, &fatal))
            .map_err(StoreError::io("start the flush thread of", "raft.db"))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Refuses when a sync failed before. To be asked before a write, so that nothing is added to what may be lost.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        match &self.shared.queue().poison {
            Some(reason) => Err(StoreError::Poisoned(reason.clone())),
            None => Ok(()),
        }
    }

    /// Has the waiter answered once everything written until now is durable, or cannot be.
    pub(super) fn push(&self, waiter: Waiter) {
        let mut queue = self.shared.queue();
        if let Some(reason) = queue.poison.clone() {
            drop(queue);
            waiter.answer(Err(StoreError::Poisoned(reason).into()));
            return;
        }
        queue.waiters.push(waiter);
        drop(queue);
        self.shared.arrived.notify_one();
    }

    /// Stops taking waiters for good, as after a failed sync.
    pub(super) fn poison(&self, reason: &str) {
        self.shared.queue().poison.get_or_insert_with(|| reason.to_owned());
    }

    pub(super) fn counter(&self) -> SyncCounter {
        SyncCounter(self.shared.counts.clone())
    }
}

impl Drop for Flusher {
    /// Syncs what is still queued, so that a clean close loses nothing, and ends the thread before the database goes.
    fn drop(&mut self) {
        self.shared.queue().closed = true;
        self.shared.arrived.notify_one();
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
        {
            // A panicked flusher has nothing to tell that its waiters did not learn by their channels closing.
            drop(thread.join());
        }
    }
}

fn run(shared: &Shared, mut sync: Box<dyn WalSync>, fatal: &FatalHook) {
    while let Some(waiters) = take(shared) {
        match sync.sync() {
            Ok(()) => {
                shared.counts.writes.fetch_add(waiters.len() as u64, Ordering::Relaxed);
                shared.counts.syncs.fetch_add(1, Ordering::Relaxed);
                waiters.into_iter().for_each(|waiter| waiter.answer(Ok(())));
            }
            Err(error) => {
                fail(shared, waiters, &error, fatal);
                return;
            }
        }
    }
}

/// Waits for work; `None` when the store closes and nothing is left.
fn take(shared: &Shared) -> Option<Vec<Waiter>> {
    let mut queue = shared.queue();
    loop {
        if !queue.waiters.is_empty() {
            return Some(std::mem::take(&mut queue.waiters));
        }
        if queue.closed {
            return None;
        }
        queue = shared.arrived.wait(queue).unwrap_or_else(PoisonError::into_inner);
    }
}

fn fail(shared: &Shared, mut waiters: Vec<Waiter>, error: &io::Error, fatal: &FatalHook) {
    let reason = error.to_string();
    {
        let mut queue = shared.queue();
        queue.poison = Some(reason.clone());
        waiters.append(&mut queue.waiters);
    }
    for waiter in waiters {
        waiter.answer(Err(StoreError::Poisoned(reason.clone()).into()));
    }
    fatal.call(&format!("a sync of raft.db failed: {reason}"));
}
