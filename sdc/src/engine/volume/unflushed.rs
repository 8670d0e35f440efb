//! FLUSH in writeback pools (S14): what was acknowledged and not flushed, and in whose memory it is.
//!
//! Acknowledgements carry the group's volatility id. A group is noted with it from its first write after a FLUSH, whatever
//! connection it came on. A FLUSH goes to every noted group and names the noted id; a primary whose memory is another one
//! refuses it, and so does this client when it sees two ids itself. Then some acknowledged write may be lost: the FLUSH is
//! EIO, all connections of the export end, and whoever connects anew begins with nothing owed. Until it has ended, an old
//! connection's FLUSHes fail as well: its handle carries the token that was cancelled first.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, PoisonError};

use futures::{StreamExt, TryStreamExt, future, stream};
use pflex_proto::ids::{ChunkId, OperationId, PgId, VolatilityId};
use pflex_proto::token::Rights;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use super::super::link::{Answer, Operation};
use super::super::marks::Memories;
use super::super::plan::Part;
use super::{Attempts, PARTS_AT_ONCE, Target, Volume};
use crate::block::IoError;

/// A group that owes durability.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Owed {
    memory: VolatilityId,
    /// The number of the last acknowledgement.
    last: u64,
}

/// See the module. No I/O.
#[derive(Debug, Default)]
struct Owing {
    groups: HashMap<PgId, Owed>,
    acknowledged: u64,
}

impl Owing {
    fn of_before(memories: &Memories) -> Self {
        let groups = memories.iter().map(|(pg, memory)| (*pg, Owed { memory: *memory, last: 0 })).collect();
        Self { groups, acknowledged: 0 }
    }

    /// A write was acknowledged. False: an earlier one that was not flushed is in other memory.
    fn acknowledge(&mut self, pg: PgId, memory: VolatilityId) -> bool {
        self.acknowledged += 1;
        let last = self.acknowledged;
        match self.groups.entry(pg) {
            Entry::Vacant(place) => {
                place.insert(Owed { memory, last });
                true
            }
            Entry::Occupied(mut known) => {
                known.get_mut().last = last;
                known.get().memory == memory
            }
        }
    }

    fn all(&self) -> Vec<(PgId, Owed)> {
        self.groups.iter().map(|(pg, owed)| (*pg, *owed)).collect()
    }

    /// What it owed then is durable; it may have been written since.
    fn flushed(&mut self, pg: PgId, then: Owed) {
        if self.groups.get(&pg) == Some(&then) {
            self.groups.remove(&pg);
        }
    }
}

/// What a volume of a writeback pool keeps.
#[derive(Debug)]
pub(super) struct Unflushed {
    owing: Mutex<Owing>,
    /// What is on disk.
    marked: Mutex<Memories>,
    /// What is to be; whoever comes next saves for all that wait.
    wanted: Mutex<Memories>,
    saving: tokio::sync::Mutex<()>,
    /// Of the connections that are open; none before the first.
    session: Mutex<Option<CancellationToken>>,
    /// Nobody knows what an earlier process left.
    unknown: Mutex<Option<String>>,
}

impl Unflushed {
    pub(super) fn new(left: Result<Memories, String>) -> Self {
        let (marked, unknown) = match left {
            Ok(memories) => (memories, None),
            Err(why) => (Memories::new(), Some(why)),
        };
        Self {
            owing: Mutex::new(Owing::of_before(&marked)),
            wanted: Mutex::new(marked.clone()),
            marked: Mutex::new(marked),
            saving: tokio::sync::Mutex::default(),
            session: Mutex::default(),
            unknown: Mutex::new(unknown),
        }
    }
}

fn held<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A FLUSH keeps nothing: it may be sent any number of times.
struct Flushing(VolatilityId);

impl Attempts for Flushing {
    fn next(&mut self, _target: Target) -> Operation {
        Operation::Flush(self.0)
    }

    fn plan(&self) -> Option<(OperationId, Rights)> {
        None
    }
}

impl Volume {
    /// For a connection: cancelled when memory was lost, or with `mapped`. All connections of one export have the same.
    pub fn session(&self, mapped: &CancellationToken) -> CancellationToken {
        let mut session = held(&self.unflushed.session);
        match &*session {
            Some(open) if !open.is_cancelled() => open.clone(),
            Some(_) | None => session.insert(mapped.child_token()).clone(),
        }
    }

    /// Groups that owe durability.
    pub fn unflushed_groups(&self) -> usize {
        held(&self.unflushed.owing).groups.len()
    }

    /// A write was answered by its primary, not durably: notes it before the application hears of it.
    ///
    /// # Errors
    /// When it cannot be noted on disk.
    pub(super) async fn acknowledged(self: &Arc<Self>, pg: PgId, memory: VolatilityId) -> Result<(), IoError> {
        if held(&self.unflushed.marked).get(&pg) != Some(&memory) {
            self.mark(pg, memory).await?;
        }
        let same = held(&self.unflushed.owing).acknowledge(pg, memory);
        if !same {
            self.lost(&format!("placement group {pg} has another memory, {memory}, than writes before had"));
        }
        Ok(())
    }

    /// Makes everything durable that was acknowledged before the call, on any connection.
    ///
    /// # Errors
    /// EIO when it did not happen in time, which may be asked again; and when memory was lost.
    pub(super) async fn flush(self: &Arc<Self>, session: &CancellationToken) -> Result<(), IoError> {
        // In this order: a loss first ends the session, and then forgets what is owed.
        let owed = held(&self.unflushed.owing).all();
        if session.is_cancelled() {
            return Err(IoError::Failed("writes that were not flushed were lost; open the export anew".to_owned()));
        }
        let unknown = held(&self.unflushed.unknown).clone();
        if let Some(why) = unknown {
            self.lost(&why);
            return Err(IoError::Failed(format!("it is not known what was written before the restart: {why}")));
        }
        let flushes = stream::iter(owed).map(|(pg, owed)| self.flush_group(pg, owed)).buffer_unordered(PARTS_AT_ONCE);
        flushes.try_for_each(|()| future::ready(Ok(()))).await?;
        self.tidy_marks().await;
        Ok(())
    }

    /// At an orderly end: if all of it can be flushed, nothing is left to remember.
    pub(in crate::engine) async fn settle(self: &Arc<Self>) {
        let session = self.session(&CancellationToken::new());
        match self.flush(&session).await {
            Ok(()) => self.engine.marks.remove(self.id),
            Err(error) => warn!(volume = self.spec().name, %error, "acknowledged writes may not be durable yet"),
        }
    }

    async fn flush_group(self: &Arc<Self>, pg: PgId, owed: Owed) -> Result<(), IoError> {
        let part = Part { pg, chunk: ChunkId::default(), offset: 0, length: 0 };
        let allowed = self.engine.patience.io_deadline;
        match self.attempt(part, allowed, &mut Flushing(owed.memory)).await {
            Ok(Answer::Flushed(memory)) if memory == owed.memory => {
                held(&self.unflushed.owing).flushed(pg, owed);
                Ok(())
            }
            Ok(_other) => Err(IoError::Failed("a flush was answered as something else".to_owned())),
            Err(IoError::LostMemory(why)) => {
                self.lost(&format!("placement group {pg}: {why}"));
                Err(IoError::LostMemory(why))
            }
            Err(error) => Err(error),
        }
    }

    /// S14: some acknowledged write may be gone. Whoever wrote it is cut off; who comes next starts anew.
    fn lost(&self, why: &str) {
        let session = held(&self.unflushed.session).take();
        error!(volume = self.spec().name, why, "writes that were not flushed may be lost; the export is closed");
        if let Some(session) = session {
            session.cancel();
        }
        held(&self.unflushed.owing).groups.clear();
        *held(&self.unflushed.unknown) = None;
    }

    /// Has the group's present memory on disk, together with what others want there.
    async fn mark(&self, pg: PgId, memory: VolatilityId) -> Result<(), IoError> {
        held(&self.unflushed.wanted).insert(pg, memory);
        let _one_at_a_time = self.unflushed.saving.lock().await;
        if held(&self.unflushed.marked).get(&pg) == Some(&memory) {
            return Ok(());
        }
        self.save_marks().await
    }

    /// Forgets marks of memory that is gone and owed nothing: a restart would take them for a loss.
    async fn tidy_marks(&self) {
        let stale = |pg: &PgId, memory: &VolatilityId| {
            let present = self.engine.routes.route(*pg).map(|route| route.volatility);
            present.is_some_and(|present| present > *memory) && !held(&self.unflushed.owing).groups.contains_key(pg)
        };
        if !held(&self.unflushed.marked).iter().any(|(pg, memory)| stale(pg, memory)) {
            return;
        }
        let _one_at_a_time = self.unflushed.saving.lock().await;
        held(&self.unflushed.wanted).retain(|pg, memory| !stale(pg, memory));
        if let Err(error) = self.save_marks().await {
            warn!(volume = self.spec().name, %error, "old marks stay");
        }
    }

    /// Under `saving`.
    async fn save_marks(&self) -> Result<(), IoError> {
        let wanted = held(&self.unflushed.wanted).clone();
        // What is not wanted any more is not on disk from here on, whatever becomes of the write.
        held(&self.unflushed.marked).retain(|pg, memory| wanted.get(pg) == Some(memory));
        let (marks, volume, groups) = (self.engine.marks.clone(), self.id, wanted.clone());
        let saved = tokio::task::spawn_blocking(move || marks.save(volume, &groups)).await;
        saved
            .map_err(|_ended| IoError::ShuttingDown)?
            .map_err(|why| IoError::Failed(format!("cannot note what is not durable yet: {why}")))?;
        *held(&self.unflushed.marked) = wanted;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use pflex_proto::ids::{PgIndex, PoolId};

    use super::*;

    #[test]
    fn what_is_written_during_a_flush_is_owed_after_it() {
        let pg = |index| PgId { pool: PoolId(1), index: PgIndex(index) };
        let mut owing = Owing::of_before(&Memories::from([(pg(3), VolatilityId(7))]));
        assert!(owing.acknowledge(pg(1), VolatilityId(1)) && owing.acknowledge(pg(2), VolatilityId(1)));
        let flush = owing.all();
        assert_eq!(flush.len(), 3, "what an earlier process left is owed");
        assert!(owing.acknowledge(pg(2), VolatilityId(1)));
        flush.iter().for_each(|(pg, owed)| owing.flushed(*pg, *owed));
        assert_eq!(owing.all().iter().map(|(pg, _)| *pg).collect::<Vec<_>>(), [pg(2)]);
        assert!(!owing.acknowledge(pg(2), VolatilityId(2)), "its memory is another one than the write's before");
        assert!(owing.acknowledge(pg(1), VolatilityId(2)), "nothing was owed there");
    }
}
