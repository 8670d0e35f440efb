//! The state as readers see it. The lock stays inside: readers pass a function and get what it returns.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use pflex_proto::ids::{ClusterGeneration, LogTime, Revision};
use tokio::sync::broadcast;

use super::{Mark, StateDatabase};
use crate::{
    raft::clock::{LogClock, TooFarAhead},
    state::{MapEvent, State},
};

/// Batches of events a slow subscriber may fall behind before it is told to relist. A batch is one command's.
const EVENT_BATCHES: usize = 1_024;

/// What a subscriber is told of applied commands, in their order.
#[derive(Clone, Debug)]
pub enum Committed {
    /// A command changed the map.
    Changed {
        /// The command's revision.
        revision: Revision,
        /// What it changed.
        events: Arc<[MapEvent]>,
    },
    /// A snapshot replaced the state: list again.
    Replaced {
        /// The revision of the new state.
        revision: Revision,
    },
}

/// A handle on the applied state; clones share it.
#[derive(Clone)]
pub struct SharedState(Arc<Shared>);

struct Shared {
    // Read often and shortly, written once a batch.
    state: RwLock<Versioned>,
    /// Of the cluster in `state`, beside it: each request asks for it, and must not wait for an apply.
    generation: AtomicU64,
    clock: Mutex<LogClock>,
    /// The rows on disk, for a backup: it must not hold up applying as a read of the state would.
    database: Mutex<Arc<StateDatabase>>,
    events: broadcast::Sender<Committed>,
}

struct Versioned {
    state: State,
    revision: Revision,
}

impl SharedState {
    pub(super) fn new(state: State, mark: &Mark, database: Arc<StateDatabase>) -> Self {
        Self(Arc::new(Shared {
            generation: AtomicU64::new(generation_of(&state)),
            state: RwLock::new(Versioned { state, revision: mark.revision }),
            clock: Mutex::new(LogClock::new(mark.log_time, Instant::now())),
            database: Mutex::new(database),
            events: broadcast::channel(EVENT_BATCHES).0,
        }))
    }

    /// Runs `f` on the state as applied so far and says at which revision that was. Keep it short: applying waits.
    pub fn read<T>(&self, f: impl FnOnce(&State) -> T) -> (Revision, T) {
        let versioned = self.0.state.read().unwrap_or_else(PoisonError::into_inner);
        (versioned.revision, f(&versioned.state))
    }

    /// Everything applied from now on. Subscribe first and read the state after: what the state had already is told
    /// by its revision.
    pub fn subscribe(&self) -> broadcast::Receiver<Committed> {
        self.0.events.subscribe()
    }

    /// Log time now, as this member would stamp a command.
    pub fn log_time(&self) -> LogTime {
        self.clock().now(Instant::now())
    }

    /// Puts the clock forward to what an SDS has counted.
    pub fn catch_up(&self, heard: LogTime) -> Result<(), TooFarAhead> {
        self.clock().catch_up(heard, Instant::now())
    }

    /// Changes the state under the lock; `f` returns what it did.
    pub(super) fn apply<T>(&self, f: impl FnOnce(&mut State, &mut Revision) -> T) -> T {
        // A panic in apply ends the worker and with it the process: nobody reads a half-applied state for long.
        let mut versioned = self.0.state.write().unwrap_or_else(PoisonError::into_inner);
        let Versioned { state, revision } = &mut *versioned;
        let done = f(state, revision);
        self.0.generation.store(generation_of(state), Ordering::Release);
        done
    }

    /// The generation of the cluster (S19); 0 before its first command.
    pub fn generation(&self) -> ClusterGeneration {
        ClusterGeneration(self.0.generation.load(Ordering::Acquire))
    }

    /// Everything applied so far, as rows on disk.
    pub(in crate::raft) fn database(&self) -> Arc<StateDatabase> {
        self.0.database.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn replace(&self, state: State, mark: &Mark, database: Arc<StateDatabase>) {
        let mut versioned = self.0.state.write().unwrap_or_else(PoisonError::into_inner);
        self.0.generation.store(generation_of(&state), Ordering::Release);
        *versioned = Versioned { state, revision: mark.revision };
        drop(versioned);
        *self.0.database.lock().unwrap_or_else(PoisonError::into_inner) = database;
        self.clock().follow(mark.log_time, Instant::now());
        self.publish(Committed::Replaced { revision: mark.revision });
    }

    pub(super) fn publish(&self, committed: Committed) {
        // No subscriber is no error.
        drop(self.0.events.send(committed));
    }

    pub(super) fn clock(&self) -> MutexGuard<'_, LogClock> {
        self.0.clock.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn generation_of(state: &State) -> u64 {
    state.cluster().map_or(0, |cluster| cluster.generation.get())
}
