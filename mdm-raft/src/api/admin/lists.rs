//! Lists, linearizable unless the caller says `stale`.

use std::collections::BTreeMap;

use pflex_proto::{
    ids::{DeviceId, SdsId},
    pb::{self, ListRequest},
};
use tonic::Status;

use crate::{
    api::{Api, convert, error},
    liveness::HeardScrub,
    state::{
        State,
        model::{Component, DeviceFaults, Kind, Pool, PoolScrub, Sds},
    },
};

/// What the last beats said of disks.
type Disks = BTreeMap<DeviceId, (DeviceFaults, HeardScrub)>;

/// The one with this name, or all; nothing at all with a name is an error of the caller.
fn named<T>(kind: &str, name: &str, one: Option<T>, all: impl Iterator<Item = T>) -> Result<Vec<T>, Status> {
    match (name, one) {
        ("", _) => Ok(all.collect()),
        (_, Some(one)) => Ok(vec![one]),
        (name, None) => Err(error::not_found(kind, name)),
    }
}

impl Api {
    pub(super) async fn domains(&self, request: ListRequest) -> Result<pb::ListDomainsReply, Status> {
        let name = request.name;
        let (_, rows) = self
            .read(request.stale, |state| {
                named("domain", &name, state.domain_by_name(&name), state.all_domains())
                    .map(|rows| rows.into_iter().map(convert::domain).collect())
            })
            .await?;
        Ok(pb::ListDomainsReply { domains: rows? })
    }

    pub(super) async fn pools(&self, request: ListRequest) -> Result<pb::ListPoolsReply, Status> {
        let name = request.name;
        let (used, disks) = (self.reports().used_bytes(), self.liveness().faults());
        let row = |state: &State, pool: &Pool| pb::PoolRow {
            devices_to_follow: self.to_follow(state, pool),
            ..pool_row(state, pool, &used, &disks)
        };
        let (_, rows) = self
            .read(request.stale, |state| {
                named("pool", &name, state.pool_by_name(&name), state.all_pools())
                    .map(|rows| rows.into_iter().map(|pool| row(state, pool)).collect())
            })
            .await?;
        Ok(pb::ListPoolsReply { pools: rows? })
    }

    /// Devices in service of a pool whose server has not put the newest configurations of its groups into force, as far as
    /// its beats say. A leader that has not heard a server yet takes it for one that has not.
    fn to_follow(&self, state: &State, pool: &Pool) -> u32 {
        let newest = state.pgs_of(pool.id).map(|pg| pg.since).max().unwrap_or_default();
        let here = state.all_devices().filter(|device| device.pool == Some(pool.id) && device.alive);
        let lags = |sds: SdsId| {
            let process = state.sds(sds).and_then(|sds| sds.registration.as_ref()).map(|start| start.process);
            process.and_then(|process| self.liveness().applied(sds, process)).is_none_or(|at| at < newest)
        };
        here.filter(|device| lags(device.sds)).count() as u32
    }

    pub(super) async fn sds_rows(&self, request: ListRequest) -> Result<pb::ListSdsReply, Status> {
        let (name, heard) = (request.name, self.heard());
        let (_, rows) = self
            .read(request.stale, |state| {
                named("sds", &name, state.sds_by_name(&name), state.all_sds())
                    .map(|rows| rows.into_iter().map(|sds| sds_row(state, &heard, sds)).collect())
            })
            .await?;
        Ok(pb::ListSdsReply { sds: rows? })
    }

    pub(super) async fn sdcs(&self, request: ListRequest) -> Result<pb::ListSdcsReply, Status> {
        let (name, heard) = (request.name, self.heard());
        let (_, rows) = self
            .read(request.stale, |state| {
                let rows = named("sdc", &name, state.sdc_by_name(&name), state.all_sdcs())?;
                let row = |sdc: &crate::state::model::Sdc| pb::SdcRow {
                    sdc: Some(convert::sdc(sdc)),
                    status: convert::status_of(
                        state,
                        Component { kind: Kind::Sdc, id: sdc.id.get() },
                        sdc.registration.is_some(),
                    ),
                    component: Some(convert::sdc_component(state, &heard, sdc)),
                    volumes: state.all_mappings().filter(|mapping| mapping.sdc == sdc.id).count() as u32,
                };
                Ok::<_, Status>(rows.into_iter().map(row).collect())
            })
            .await?;
        Ok(pb::ListSdcsReply { sdcs: rows? })
    }

    pub(super) async fn volumes(&self, request: ListRequest) -> Result<pb::ListVolumesReply, Status> {
        let name = request.name;
        let (_, rows) = self
            .read(request.stale, |state| {
                named("volume", &name, state.volume_by_name(&name), state.all_volumes())
                    .map(|rows| rows.into_iter().map(|row| convert::volume_in(state, row)).collect())
            })
            .await?;
        Ok(pb::ListVolumesReply { volumes: rows? })
    }

    pub(super) async fn pgs(&self, request: pb::ListPgsRequest) -> Result<pb::ListPgsReply, Status> {
        let name = request.pool;
        let (_, rows) = self
            .read(request.stale, |state| {
                let pools = named("pool", &name, state.pool_by_name(&name), state.all_pools())?;
                let pgs = pools.into_iter().flat_map(|pool| state.pgs_of(pool.id));
                Ok::<_, Status>(pgs.map(convert::pg).collect())
            })
            .await?;
        Ok(pb::ListPgsReply { pgs: rows? })
    }
}

fn pool_row(state: &State, pool: &Pool, used: &BTreeMap<SdsId, u64>, disks: &Disks) -> pb::PoolRow {
    let usage = state.usage_of(pool);
    pb::PoolRow {
        pool: Some(convert::pool(pool)),
        capacity_bytes: usage.capacity.get(),
        provisioned_bytes: usage.provisioned.get(),
        used_bytes: convert::used_of(state, pool, used),
        pgs_active: usage.active,
        pgs_degraded: usage.degraded,
        pgs_unavailable: usage.unavailable,
        pgs_unassigned: usage.unassigned,
        scrub: pool.scrub.map(|scrub| scrub_of(state, pool, scrub, disks)),
        devices_to_follow: 0,
    }
}

/// Of one that is under way, what the devices say of their parts.
fn scrub_of(state: &State, pool: &Pool, scrub: PoolScrub, disks: &Disks) -> pb::PoolScrub {
    let mut found = scrub.found;
    if scrub.runs() {
        for device in state.all_devices().filter(|device| device.pool == Some(pool.id)) {
            let Some((_, part)) = disks.get(&device.id).filter(|(_, part)| part.pass == scrub.pass) else { continue };
            found.chunks += part.found.chunks;
            found.bad_blocks += part.found.bad_blocks;
            found.mismatches += part.found.mismatches;
            found.unreadable_chunks += part.found.unreadable_chunks;
        }
    }
    pb::PoolScrub {
        pass: scrub.pass,
        started_at_ms: scrub.started.wall_ms,
        ended_at_ms: scrub.ended.map(|ended| ended.wall_ms),
        chunks: found.chunks,
        bad_blocks: found.bad_blocks,
        mismatches: found.mismatches,
        unreadable_chunks: found.unreadable_chunks,
    }
}

fn sds_row(state: &State, heard: &convert::Heard<'_>, sds: &Sds) -> pb::SdsRow {
    let component = Component { kind: Kind::Sds, id: sds.id.get() };
    let mut row = pb::SdsRow {
        sds: Some(convert::sds(sds)),
        devices: state.devices_of(sds.id).map(convert::device).collect(),
        status: convert::status_of(state, component, sds.registration.is_some()),
        component: Some(convert::sds_component(state, heard, sds)),
        ..pb::SdsRow::default()
    };
    let here = |device: DeviceId| state.device(device).is_some_and(|device| device.sds == sds.id);
    for pg in state.all_pgs() {
        row.pgs_primary += u32::from(pg.config.primary.is_some_and(here));
        row.pgs_in_sync += u32::from(pg.config.in_sync.iter().any(|member| member.sds == sds.id));
        row.pgs_joining += u32::from(state.joiners(pg).any(|device| device.sds == sds.id));
    }
    row
}
