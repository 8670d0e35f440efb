//! Rows of rebuilds and of snapshots.

use pflex_proto::ids::{ByteCount, LogTime, PoolId, Revision, VolumeId};

use super::{
    Row, RowError, bad,
    key::{KeyReader, KeyWriter},
    open, proto, seal,
};
use crate::state::{
    model::{JobId, JobKind, JobState, Moment, RebuildJob, Snapshot, SnapshotId, SnapshotState},
    table::Table,
};

pub(super) fn moment_row(moment: Moment) -> proto::Moment {
    proto::Moment { revision: moment.revision.get(), log_time_ms: moment.at.get(), wall_ms: moment.wall_ms }
}

pub(super) fn moment(row: proto::Moment) -> Moment {
    Moment { revision: Revision(row.revision), at: LogTime(row.log_time_ms), wall_ms: row.wall_ms }
}

impl Row for RebuildJob {
    const TABLE: Table = Table::RebuildJobs;
    type Key = (PoolId, JobId);

    fn key(&self) -> (PoolId, JobId) {
        (self.pool, self.id)
    }

    fn encode_key((pool, job): (PoolId, JobId)) -> Vec<u8> {
        KeyWriter::default().u32(pool.get()).u64(job.0).done()
    }

    fn encode(&self) -> Vec<u8> {
        seal(&proto::RebuildJob {
            state: match self.state {
                JobState::Waiting => 1,
                JobState::Running => 2,
                JobState::Done => 3,
            },
            groups_left: self.groups_left,
            groups_done: self.groups_done,
            opened: Some(moment_row(self.opened)),
            finished: self.finished.map(moment_row),
            since_log_ms: self.since.get(),
            done_before: self.done_before,
            why: self.why.clone(),
            kind: match self.kind {
                JobKind::Rebuild => 0,
                JobKind::Drain => 1,
                JobKind::Rebalance => 2,
            },
            planned: self.planned,
        })
    }

    fn decode(key: &[u8], value: &[u8]) -> Result<Self, RowError> {
        let mut reader = KeyReader::new(key);
        let (pool, id) = (PoolId(reader.u32()?), JobId(reader.u64()?));
        reader.end()?;
        let row: proto::RebuildJob = open(value)?;
        Ok(Self {
            pool,
            id,
            state: match row.state {
                1 => JobState::Waiting,
                2 => JobState::Running,
                3 => JobState::Done,
                other => return Err(bad("rebuild state", other)),
            },
            kind: match row.kind {
                0 => JobKind::Rebuild,
                1 => JobKind::Drain,
                2 => JobKind::Rebalance,
                other => return Err(bad("job kind", other)),
            },
            planned: row.planned,
            groups_left: row.groups_left,
            groups_done: row.groups_done,
            opened: row.opened.map(moment).ok_or_else(|| bad("rebuild", "without a beginning"))?,
            finished: row.finished.map(moment),
            since: LogTime(row.since_log_ms),
            done_before: row.done_before,
            why: row.why,
        })
    }
}

impl Row for Snapshot {
    const TABLE: Table = Table::Snapshots;
    type Key = (VolumeId, SnapshotId);

    fn key(&self) -> (VolumeId, SnapshotId) {
        (self.volume, self.id)
    }

    fn encode_key((volume, snapshot): (VolumeId, SnapshotId)) -> Vec<u8> {
        KeyWriter::default().u64(volume.get()).u64(snapshot.0).done()
    }

    fn encode(&self) -> Vec<u8> {
        seal(&proto::Snapshot {
            name: self.name.clone(),
            size_bytes: self.size.get(),
            state: match self.state {
                SnapshotState::Preparing => 1,
                SnapshotState::Ready => 2,
                SnapshotState::Deleting => 3,
            },
            created_log_ms: self.created.get(),
            created_wall_ms: self.created_wall_ms,
        })
    }

    fn decode(key: &[u8], value: &[u8]) -> Result<Self, RowError> {
        let mut reader = KeyReader::new(key);
        let (volume, id) = (VolumeId(reader.u64()?), SnapshotId(reader.u64()?));
        reader.end()?;
        let row: proto::Snapshot = open(value)?;
        Ok(Self {
            id,
            volume,
            name: row.name,
            size: ByteCount(row.size_bytes),
            state: match row.state {
                1 => SnapshotState::Preparing,
                2 => SnapshotState::Ready,
                3 => SnapshotState::Deleting,
                other => return Err(bad("snapshot state", other)),
            },
            created: LogTime(row.created_log_ms),
            created_wall_ms: row.created_wall_ms,
        })
    }
}
