//! Reading the whole state out, and building snapshots when somebody asks.

use std::{io, time::Duration};

use openraft::async_runtime::watch::WatchReceiver as _;

use super::Group;
use crate::raft::error::StoreError;

/// A snapshot of the largest cluster takes seconds; the disk may be busy.
const BUILD: Duration = Duration::from_secs(60);

impl Group {
    /// Writes a backup of everything applied here so far; returns how many rows it has. Blocks: not for async code. Call
    /// [`read_barrier`](Self::read_barrier) before, or it may lack what others were told is done.
    ///
    /// # Errors
    /// When the store cannot be read, or `to` takes no more.
    pub fn back_up(&self, to: impl io::Write, wall_time_ms: u64) -> Result<u64, StoreError> {
        let (_, generation) = self.read_stale(|state| state.cluster().map(|cluster| cluster.generation));
        self.0.shared.database().back_up(to, generation.unwrap_or_default(), wall_time_ms)
    }

    /// Builds a snapshot that covers everything applied until now. Returns its last index and size, or nothing when it is
    /// not there in time.
    pub async fn snapshot_now(&self) -> Option<(u64, u64)> {
        let goal = self.status().applied.map_or(0, |applied| applied.index);
        let mut metrics = self.0.raft.metrics();
        let covered = |group: &Self| group.status().snapshot.is_some_and(|snapshot| snapshot.index >= goal);
        if !covered(self) {
            self.build_snapshot().await.ok()?;
        }
        let built = async {
            while !covered(self) {
                metrics.changed().await.ok()?;
            }
            Some(())
        };
        tokio::time::timeout(BUILD, built).await.ok()??;
        let handle = self.0.snapshots.current()?;
        let bytes = handle.manifest().files.iter().map(|file| file.size).sum();
        Some((handle.last_log().map_or(0, |last| last.index), bytes))
    }
}
