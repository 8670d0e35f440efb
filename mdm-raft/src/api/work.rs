//! Rebuilds and snapshots, as the state records them. How fast rebuilds are only the leader knows, from the beats.

use std::collections::BTreeMap;

use pflex_proto::{
    ids::{LogTime, PoolId},
    pb::{
        ListRebuildsReply, ListRebuildsRequest, ListSnapshotsReply, ListSnapshotsRequest, RebuildRow,
        SetRebuildPolicyReply, SetRebuildPolicyRequest, SnapshotRow, work_server::Work,
    },
    rebuild::RebuildMode,
};
use tonic::{Request, Response, Status};

use super::{Api, convert, error};
use crate::{
    command::{Body, proto},
    liveness::Resync,
    state::{
        State,
        model::{JobKind, RebuildJob, Snapshot},
    },
};

#[tonic::async_trait]
impl Work for Api {
    async fn list_rebuilds(
        &self,
        request: Request<ListRebuildsRequest>,
    ) -> Result<Response<ListRebuildsReply>, Status> {
        let ListRebuildsRequest { stale, pool, unfinished } = request.into_inner();
        let (now, beats) = (self.log_time(), self.liveness().resync());
        let (_, rows) = self
            .read(stale, |state| {
                let only = match pool.as_str() {
                    "" => None,
                    name => Some(state.pool_by_name(name).ok_or_else(|| error::not_found("pool", name))?.id),
                };
                // By pool, from the devices that fill copies in it.
                let mut filling: BTreeMap<PoolId, Resync> = BTreeMap::new();
                for (device, resync) in &beats {
                    let Some(pool) = state.device(*device).and_then(|device| device.pool) else { continue };
                    let sum = filling.entry(pool).or_default();
                    sum.left_bytes = sum.left_bytes.saturating_add(resync.left_bytes);
                    sum.bytes_per_second = sum.bytes_per_second.saturating_add(resync.bytes_per_second);
                }
                let wanted =
                    |job: &&RebuildJob| only.is_none_or(|pool| job.pool == pool) && !(unfinished && job.is_finished());
                let row = |job: &RebuildJob| rebuild_row(state, job, now, filling.get(&job.pool).copied());
                Ok::<_, Status>(state.all_rebuilds().filter(wanted).map(row).collect())
            })
            .await?;
        Ok(Response::new(ListRebuildsReply { rebuilds: rows? }))
    }

    async fn set_rebuild_policy(
        &self,
        request: Request<SetRebuildPolicyRequest>,
    ) -> Result<Response<SetRebuildPolicyReply>, Status> {
        let SetRebuildPolicyRequest { request, pool, mode, bytes_per_second, concurrency, paused, spare_percent } =
            request.into_inner();
        let mode =
            mode.map(RebuildMode::try_from).transpose().map_err(|bad| Status::invalid_argument(bad.to_string()))?;
        let set = proto::SetRebuildPolicy {
            pool: pool.clone(),
            mode: mode.map(RebuildMode::number),
            bytes_per_second,
            concurrency,
            paused,
            spare_percent,
        };
        self.propose_once(request, Body::SetRebuildPolicy(set)).await?;
        let pools = self.look(|state| {
            let said = state.all_pools().filter(|row| pool.is_empty() || row.name == pool);
            said.map(convert::pool).collect()
        });
        Ok(Response::new(SetRebuildPolicyReply { pools }))
    }

    async fn list_snapshots(
        &self,
        request: Request<ListSnapshotsRequest>,
    ) -> Result<Response<ListSnapshotsReply>, Status> {
        let ListSnapshotsRequest { stale, volume } = request.into_inner();
        let (_, rows) = self
            .read(stale, |state| {
                let row = |snapshot| snapshot_row(state, snapshot);
                match volume.as_str() {
                    "" => Ok(state.all_snapshots().map(row).collect()),
                    name => {
                        let id = state.volume_by_name(name).ok_or_else(|| error::not_found("volume", name))?.id;
                        Ok::<_, Status>(state.snapshots_of(id).map(row).collect())
                    }
                }
            })
            .await?;
        Ok(Response::new(ListSnapshotsReply { snapshots: rows? }))
    }
}

fn rebuild_row(state: &State, job: &RebuildJob, now: LogTime, filling: Option<Resync>) -> RebuildRow {
    let open = !job.is_finished();
    let filling = filling.filter(|_| open);
    let by_bytes = filling
        .filter(|filling| filling.bytes_per_second > 0 && filling.left_bytes > 0)
        .map(|filling| filling.left_bytes.saturating_mul(1_000) / filling.bytes_per_second);
    let finished = job.finished.unwrap_or_default();
    let paused = open && state.pool(job.pool).is_some_and(|pool| pool.rebuild.paused);
    RebuildRow {
        id: job.id.0,
        pool: state.pool(job.pool).map_or_else(|| format!("#{}", job.pool), |pool| pool.name.clone()),
        state: if paused { "paused".to_owned() } else { job.state.to_string() },
        groups_left: job.groups_left.into(),
        groups_done: job.groups_done,
        opened_at_ms: job.opened.wall_ms,
        opened_revision: job.opened.revision.get(),
        why: job.why.clone(),
        finished_at_ms: finished.wall_ms,
        finished_revision: finished.revision.get(),
        duration_ms: job.duration_ms(now),
        waits_for: if open { state.job_waits_for(job, now) } else { Vec::new() },
        kind: job.kind.to_string(),
        copies_left: match job.kind {
            JobKind::Rebuild => state.missing_in(job.pool).filter(|_| open).map_or(0, |missing| missing.total()),
            // One of each group.
            JobKind::Drain | JobKind::Rebalance => job.groups_left.into(),
        },
        bytes_left: filling.map(|filling| filling.left_bytes),
        bytes_per_second: filling.map(|filling| filling.bytes_per_second),
        eta_ms: by_bytes.or_else(|| job.eta_ms(now)).filter(|_| !paused),
    }
}

fn snapshot_row(state: &State, snapshot: &Snapshot) -> SnapshotRow {
    let volume = state.volume(snapshot.volume).map_or_else(|| format!("#{}", snapshot.volume), |row| row.name.clone());
    SnapshotRow {
        id: snapshot.id.0,
        volume,
        name: snapshot.name.clone(),
        size_bytes: snapshot.size.get(),
        state: snapshot.state.to_string(),
        created_at_ms: snapshot.created_wall_ms,
    }
}

#[cfg(test)]
mod tests {
    use pflex_proto::ids::Revision;

    use super::*;
    use crate::state::model::{JobId, JobState, Moment};

    #[test]
    fn the_end_is_reckoned_from_bytes_and_without_them_from_groups() {
        let moment = |at: u64| Moment { revision: Revision(at), at: LogTime(at), wall_ms: at };
        let job = RebuildJob {
            pool: PoolId(1),
            id: JobId(1),
            kind: JobKind::Rebuild,
            planned: 0,
            state: JobState::Running,
            groups_left: 30,
            groups_done: 15,
            opened: moment(1_000),
            finished: None,
            since: LogTime(5_000),
            done_before: 5,
            why: "sds sds3: silent".into(),
        };
        let (state, now) = (State::default(), LogTime(7_000));
        let row = |filling| rebuild_row(&state, &job, now, filling);
        assert_eq!(row(None).eta_ms, Some(6_000), "ten groups took two seconds, and thirty are left");
        assert_eq!((row(None).bytes_left, row(None).duration_ms), (None, 6_000));
        let filling = Resync { left_bytes: 4_000, bytes_per_second: 500 };
        assert_eq!((row(Some(filling)).eta_ms, row(Some(filling)).bytes_left), (Some(8_000), Some(4_000)));
        let listing = Resync { left_bytes: 0, bytes_per_second: 500 };
        assert_eq!(row(Some(listing)).eta_ms, Some(6_000), "nobody knows yet how much there is");
        let waits = RebuildJob { state: JobState::Waiting, ..job.clone() };
        assert_eq!(rebuild_row(&state, &waits, now, None).eta_ms, None);
        let done = RebuildJob { state: JobState::Done, groups_left: 0, finished: Some(moment(6_500)), ..job };
        let row = rebuild_row(&state, &done, now, Some(filling));
        assert_eq!((row.eta_ms, row.bytes_left, row.duration_ms, row.finished_at_ms), (None, None, 5_500, 6_500));
    }
}
