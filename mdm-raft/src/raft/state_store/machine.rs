//! Applying entries, and installing a snapshot.

use std::{
    any::Any,
    fs, io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::Arc,
    time::Instant,
};

use futures::{Stream, StreamExt as _};
use openraft::{
    EntryPayload,
    storage::{ApplyResponder, EntryResponder, RaftStateMachine},
};
use pflex_proto::ids::Revision;

use super::{Committed, Mark, StateDatabase, StateStore, directory};
use crate::{
    raft::{
        durable,
        error::StoreError,
        snapshot::{self, SnapshotBuilder, SnapshotHandle},
        types::{Entry, LogId, Reply, SnapshotMeta, StoredMembership, TypeConfig},
    },
    state::{RowChange, State},
};

/// Entries applied under one write lock and written as one batch: readers wait this long at most.
const BATCH_ENTRIES: usize = 256;
/// Entries that may take longer than a heartbeat should wait.
const LONG_BATCH: usize = 32;

type Responder = Option<ApplyResponder<TypeConfig>>;
type Snapshot = openraft::alias::SnapshotOf<TypeConfig, SnapshotHandle>;

impl RaftStateMachine<TypeConfig> for StateStore {
    type SnapshotData = SnapshotHandle;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok((self.mark.last_applied, self.mark.membership.clone()))
    }

    async fn apply<S>(&mut self, entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + Send,
    {
        // Everything comes out of one read of the log, so waiting for a full batch does not delay the first.
        let mut batches = entries.chunks(BATCH_ENTRIES);
        while let Some(batch) = batches.next().await {
            let batch: Vec<EntryResponder<TypeConfig>> = batch.into_iter().collect::<Result<_, _>>()?;
            if batch.len() > LONG_BATCH {
                giving_the_thread_away(|| self.apply_batch(batch))?;
            } else {
                self.apply_batch(batch)?;
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        let database = self.database.clone();
        let copy = move |to: &Path| database.checkpoint(to);
        SnapshotBuilder::new(self.snapshots.clone(), Arc::new(copy), self.fatal.clone())
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, handle: SnapshotHandle) -> Result<(), io::Error> {
        let started = Instant::now();
        giving_the_thread_away(|| self.install(meta, &handle)).inspect_err(|error| {
            // The old state is whole, but openraft cut the log for the new one; only a restart sorts that out.
            self.fatal.call(&format!("cannot install a snapshot: {error}"));
        })?;
        tracing::info!(last_log = ?meta.last_log_id, took = ?started.elapsed(), "installed a snapshot");
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        Ok(self.snapshots.current().map(|handle| Snapshot { meta: handle.meta(), snapshot: handle }))
    }
}

/// What one batch leads to.
#[derive(Default)]
struct Effects {
    rows: Vec<RowChange>,
    replies: Vec<(Responder, Reply)>,
    committed: Vec<Committed>,
}

impl StateStore {
    fn apply_batch(&mut self, batch: Vec<EntryResponder<TypeConfig>>) -> io::Result<()> {
        let mark = &mut self.mark;
        let shared = &self.shared;
        let effects = || {
            shared.apply(|state, revision| {
                let mut effects = Effects::default();
                for (entry, responder) in batch {
                    apply_entry(state, mark, entry, responder, &mut effects);
                }
                *revision = mark.revision;
                effects
            })
        };
        // The state panics rather than diverge (a command of a newer version, a broken invariant). openraft would only
        // lose its worker; the process must stop.
        let effects = catch_unwind(AssertUnwindSafe(effects)).inspect_err(|panic| {
            self.fatal.call(&format!("cannot apply the log: {}", panic_text(&**panic)));
        });
        let effects = effects.map_err(|panic| io::Error::other(panic_text(&*panic)))?;
        if self.mark.membership.membership().get_joint_config().len() > 1 {
            // Nobody was answered yet: the second step is not proposed.
            self.links.between_two_sets_of_voters();
        }
        let mark = &self.mark;
        let led = effects.replies.iter().any(|(responder, _)| responder.is_some());
        let mut clock = shared.clock();
        if led {
            clock.lead(mark.log_time, Instant::now())
        } else {
            clock.follow(mark.log_time, Instant::now())
        }
        drop(clock);

        self.database.write(effects.rows, &self.mark).inspect_err(|error| {
            self.fatal.call(&format!("cannot write the applied state: {error}"));
        })?;
        effects.committed.into_iter().for_each(|committed| self.shared.publish(committed));
        // Last: who is answered finds the state there, in memory and in the database.
        for (responder, reply) in effects.replies {
            if let Some(responder) = responder {
                responder.send(reply);
            }
        }
        Ok(())
    }

    fn install(&mut self, meta: &SnapshotMeta, handle: &SnapshotHandle) -> Result<(), StoreError> {
        // First the snapshot is kept: a crash from here on finds it at start-up and installs it.
        let step = |number| self.links.installed(number).map_err(StoreError::io("install into", self.dir.clone()));
        self.snapshots.adopt(handle)?;
        step(1)?;
        let name = directory::next(&self.database.name());
        let path = self.dir.join(&name);
        stage(handle, &path)?;
        step(2)?;
        let (database, mark, state) = StateDatabase::open(&path, self.identity.cluster)?;
        if mark.last_applied != meta.last_log_id {
            let what = format!("it is at {:?}, the leader said {:?}", mark.last_applied, meta.last_log_id);
            return Err(StoreError::Damaged { path, what });
        }
        step(3)?;
        directory::set_current(&self.dir, &name)?;
        step(4)?;
        let database = Arc::new(database);
        let old = std::mem::replace(&mut self.database, database.clone());
        old.mark_replaced();
        self.shared.replace(state, &mark, database);
        self.mark = mark;
        Ok(())
    }
}

/// Runs what takes long; the other tasks of the Raft thread go on on another one.
fn giving_the_thread_away<T>(work: impl FnOnce() -> T) -> T {
    use tokio::runtime::{Handle, RuntimeFlavor};
    match Handle::try_current().map(|handle| handle.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        // A test's own thread: nobody else is on it.
        _ => work(),
    }
}

fn apply_entry(state: &mut State, mark: &mut Mark, entry: Entry, responder: Responder, effects: &mut Effects) {
    mark.last_applied = Some(entry.log_id);
    let reply = match entry.payload {
        EntryPayload::Blank => None,
        EntryPayload::Membership(membership) => {
            mark.membership = StoredMembership::new(Some(entry.log_id), membership);
            None
        }
        EntryPayload::Normal(proposal) => {
            let revision = Revision(entry.log_id.index);
            // Proposals race to the log after they are stamped; log time itself never goes back.
            mark.log_time = mark.log_time.max(proposal.log_time);
            mark.revision = revision;
            let applied = state.apply(revision, mark.log_time, &proposal.command);
            effects.rows.extend(applied.rows);
            if !applied.events.is_empty() {
                effects.committed.push(Committed::Changed { revision, events: applied.events.into() });
            }
            Some(applied.outcome)
        }
    };
    effects.replies.push((responder, reply));
}

/// Makes a state directory out of a snapshot. Table files never change and are linked; the rest RocksDB writes to.
fn stage(handle: &SnapshotHandle, to: &Path) -> Result<(), StoreError> {
    durable::remove_dir(to).map_err(StoreError::io("clear", to))?;
    durable::make_dir(to).map_err(StoreError::io("create", to))?;
    let from = handle.path();
    for name in handle.file_names() {
        let (source, target) = (from.join(&name), to.join(&name));
        if !(snapshot::is_table_file(&name) && fs::hard_link(&source, &target).is_ok()) {
            fs::copy(&source, &target).map_err(StoreError::io("copy to", target))?;
        }
    }
    durable::sync_files(to).map_err(StoreError::io("sync", to))
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_else(|| "a panic".into())
}
