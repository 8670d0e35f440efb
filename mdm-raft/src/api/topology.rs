//! Fault sets, names, devices, maintenance, drains, and what a rebalance moves.

use std::collections::{BTreeMap, BTreeSet};

use pflex_proto::{
    ids::{DeviceId, FaultSetId, LogTime, PgId, SdsId},
    pb::{self, topology_server::Topology},
    status::{self, Reason},
};
use tonic::{Request, Response, Status};

use super::{Api, convert, error};
use crate::{
    command::{Body, proto},
    placement::{self, Candidate, Copies, Plan},
    state::{
        State,
        model::{FaultSet, JobKind, Pool},
    },
};

#[tonic::async_trait]
impl Topology for Api {
    async fn create_fault_set(
        &self,
        request: Request<pb::CreateFaultSetRequest>,
    ) -> Result<Response<pb::FaultSetRow>, Status> {
        let pb::CreateFaultSetRequest { request, name, domain, if_not_exists } = request.into_inner();
        let body = Body::CreateFaultSet(proto::CreateFaultSet { name: name.clone(), domain, if_not_exists });
        let id = self.create(request, body).await? as u32;
        let row = self.look(|state| state.fault_set(FaultSetId(id)).map(|set| fault_set_row(state, set)));
        Ok(Response::new(row.unwrap_or_else(|| pb::FaultSetRow { id, name, ..pb::FaultSetRow::default() })))
    }

    async fn list_fault_sets(
        &self,
        request: Request<pb::ListRequest>,
    ) -> Result<Response<pb::ListFaultSetsReply>, Status> {
        let pb::ListRequest { stale, name } = request.into_inner();
        let (_, rows) = self
            .read(stale, |state| match (name.as_str(), state.fault_set_by_name(&name)) {
                ("", _) => Ok(state.all_fault_sets().map(|set| fault_set_row(state, set)).collect()),
                (_, Some(set)) => Ok(vec![fault_set_row(state, set)]),
                (name, None) => Err(error::not_found("fault-set", name)),
            })
            .await?;
        Ok(Response::new(pb::ListFaultSetsReply { fault_sets: rows? }))
    }

    async fn delete_fault_set(&self, request: Request<pb::DeleteRequest>) -> Result<Response<pb::DeleteReply>, Status> {
        self.delete(request.into_inner(), proto::Object::FaultSet).await
    }

    async fn rename(
        &self,
        request: Request<pb::RenameObjectRequest>,
    ) -> Result<Response<pb::RenameObjectReply>, Status> {
        let request = request.into_inner();
        let kind = match request.kind() {
            pb::RenameKind::Domain => proto::Object::Domain,
            pb::RenameKind::Pool => proto::Object::Pool,
            pb::RenameKind::Sds => proto::Object::Sds,
            pb::RenameKind::Sdc => proto::Object::Sdc,
            pb::RenameKind::FaultSet => proto::Object::FaultSet,
            pb::RenameKind::Unspecified => proto::Object::Unspecified,
        };
        let body = Body::Rename(proto::Rename { kind: kind.into(), name: request.name, new_name: request.new_name });
        self.propose_once(request.request, body).await?;
        Ok(Response::new(pb::RenameObjectReply {}))
    }

    async fn assign_device(&self, request: Request<pb::AssignDeviceRequest>) -> Result<Response<pb::Device>, Status> {
        let pb::AssignDeviceRequest { request, device_id, pool, if_not_exists } = request.into_inner();
        let body = Body::AssignDevice(proto::AssignDevice { device_id, pool, if_not_exists });
        self.propose_once(request, body).await?;
        let row = self.look(|state| state.device(DeviceId(device_id)).map(convert::device));
        Ok(Response::new(row.unwrap_or(pb::Device { id: device_id, ..pb::Device::default() })))
    }

    async fn remove_device(
        &self,
        request: Request<pb::RemoveDeviceRequest>,
    ) -> Result<Response<pb::RemoveDeviceReply>, Status> {
        let pb::RemoveDeviceRequest { request, device_id } = request.into_inner();
        self.propose_once(request, Body::RemoveDevice(proto::RemoveDevice { device_id })).await?;
        Ok(Response::new(pb::RemoveDeviceReply {}))
    }

    async fn plan_rebalance(
        &self,
        request: Request<pb::PlanRebalanceRequest>,
    ) -> Result<Response<pb::PlanRebalanceReply>, Status> {
        let pb::PlanRebalanceRequest { stale, pool } = request.into_inner();
        let used = self.reports().used_bytes();
        let (revision, inputs) = self
            .read(stale, |state| {
                let row = state.pool_by_name(&pool).ok_or_else(|| error::not_found("pool", &pool))?;
                // An average over reports that are not all there would be too small.
                let known = state.all_devices().filter(|d| d.pool == Some(row.id)).all(|d| used.contains_key(&d.sds));
                let bytes = convert::used_of(state, row, &used) / u64::from(row.pg_count);
                Ok::<_, Status>(Inputs { bytes_per_copy: known.then_some(bytes), ..Inputs::of(state, row) })
            })
            .await?;
        let inputs = inputs?;
        let (pgs, out_of_service, bytes_per_copy) =
            (inputs.pgs.clone(), inputs.out_of_service.clone(), inputs.bytes_per_copy);
        let copies = (inputs.groups.len() * inputs.copies) as u32;
        // Thousands of groups over hundreds of devices take a while: nobody else waits for it.
        let plan = tokio::task::spawn_blocking(move || inputs.plan()).await;
        let plan = plan.map_err(|why| status::status(Reason::Internal, why.to_string()))?.ok_or_else(|| {
            let what = format!(
                "pool {pool}: its copies need as many SDSs (or fault sets) with a device in service, so there is no plan"
            );
            status::status(Reason::Precondition, what)
        })?;
        let step = |step: &placement::Move| pb::CopyMove {
            pg: Some(pb::PgId { pool_id: pgs[step.group].pool.get(), index: pgs[step.group].index.get() }),
            from_device_id: step.from.get(),
            to_device_id: step.to.get(),
        };
        Ok(Response::new(pb::PlanRebalanceReply {
            revision: revision.get(),
            moves: plan.moves.iter().map(step).collect(),
            least: plan.least,
            copies,
            imbalance_before_permille: plan.imbalance_before,
            imbalance_after_permille: plan.imbalance_after,
            bytes_per_copy,
            out_of_service_device_ids: out_of_service.iter().map(|device| device.get()).collect(),
        }))
    }

    async fn rebalance(&self, request: Request<pb::RebalanceRequest>) -> Result<Response<pb::RebalanceReply>, Status> {
        let pb::RebalanceRequest { request, pool, cancel } = request.into_inner();
        let planned = if cancel {
            0
        } else {
            let plan = self.plan_rebalance(Request::new(pb::PlanRebalanceRequest { stale: false, pool: pool.clone() }));
            u32::try_from(plan.await?.into_inner().moves.len()).unwrap_or(u32::MAX)
        };
        let body = Body::Rebalance(proto::Rebalance { pool: pool.clone(), planned, cancel });
        self.propose_once(request, body).await?;
        // A pool that holds nothing has none.
        let used = self.look(|state| state.pool_by_name(&pool).is_some_and(|pool| pool.used));
        Ok(Response::new(pb::RebalanceReply { moves: if used { planned } else { 0 } }))
    }

    async fn drain(&self, request: Request<pb::DrainRequest>) -> Result<Response<pb::DrainReply>, Status> {
        let pb::DrainRequest { request, sds, device_id, cancel } = request.into_inner();
        let heard = self.reports().used_bytes();
        let used = self.look(|state| used_of_pools(state, &heard));
        let body = Body::Drain(proto::Drain { sds: sds.clone(), device_id, cancel, used });
        self.propose_once(request, body).await?;
        self.show_drain(Request::new(pb::ShowDrainRequest { stale: false, sds, device_id })).await
    }

    async fn show_drain(&self, request: Request<pb::ShowDrainRequest>) -> Result<Response<pb::DrainReply>, Status> {
        let pb::ShowDrainRequest { stale, sds, device_id } = request.into_inner();
        let now = self.log_time();
        let (_, reply) = self
            .read(stale, |state| {
                let devices: Vec<DeviceId> = match (sds.as_str(), state.sds_by_name(&sds)) {
                    ("", _) => match state.device(DeviceId(device_id)) {
                        Some(device) => vec![device.id],
                        None => return Err(error::not_found("device", &device_id.to_string())),
                    },
                    (_, Some(sds)) => state.devices_of(sds.id).map(|device| device.id).collect(),
                    (name, None) => return Err(error::not_found("sds", name)),
                };
                Ok(drain_reply(state, &devices, now))
            })
            .await?;
        Ok(Response::new(reply?))
    }

    async fn enter_maintenance(
        &self,
        request: Request<pb::MaintenanceRequest>,
    ) -> Result<Response<pb::MaintenanceReply>, Status> {
        let pb::MaintenanceRequest { request, sds, protected } = request.into_inner();
        let heard = self.reports().used_bytes();
        let used = if protected { self.look(|state| used_of_pools(state, &heard)) } else { Vec::new() };
        let enter = proto::EnterMaintenance { name: sds.clone(), protected, used, prepared: false };
        self.propose_once(request, Body::EnterMaintenance(enter)).await?;
        Ok(Response::new(self.look(|state| maintenance_reply(state, &sds))))
    }

    async fn exit_maintenance(
        &self,
        request: Request<pb::MaintenanceRequest>,
    ) -> Result<Response<pb::MaintenanceReply>, Status> {
        let pb::MaintenanceRequest { request, sds, protected: _ } = request.into_inner();
        self.propose_once(request, Body::ExitMaintenance(proto::ExitMaintenance { name: sds })).await?;
        Ok(Response::new(pb::MaintenanceReply::default()))
    }

    async fn start_scrub(
        &self,
        request: Request<pb::StartScrubRequest>,
    ) -> Result<Response<pb::StartScrubReply>, Status> {
        let pb::StartScrubRequest { request, pool } = request.into_inner();
        self.propose_once(request, Body::StartScrub(proto::StartScrub { pool })).await?;
        Ok(Response::new(pb::StartScrubReply {}))
    }
}

/// What a plan is made from, taken from one state.
#[derive(Default)]
struct Inputs {
    pgs: Vec<PgId>,
    groups: Vec<Copies>,
    copies: usize,
    candidates: Vec<Candidate>,
    out_of_service: Vec<DeviceId>,
    bytes_per_copy: Option<u64>,
}

impl Inputs {
    fn of(state: &State, pool: &Pool) -> Self {
        let candidates = state.candidates_in_the_end(pool.id);
        let able: BTreeSet<DeviceId> = candidates.iter().map(|candidate| candidate.device).collect();
        Self {
            pgs: state.pgs_of(pool.id).map(|pg| pg.id).collect(),
            groups: state.pgs_of(pool.id).map(|pg| pg.places().collect()).collect(),
            copies: pool.copies as usize,
            out_of_service: state
                .all_devices()
                .filter(|device| device.pool == Some(pool.id) && !able.contains(&device.id))
                .map(|device| device.id)
                .collect(),
            candidates,
            bytes_per_copy: None,
        }
    }

    fn plan(&self) -> Option<Plan> {
        placement::plan(&self.groups, self.copies, &self.candidates)
    }
}

/// What the copies of each pool hold, where all its SDSs have said it.
fn used_of_pools(state: &State, used: &BTreeMap<SdsId, u64>) -> Vec<proto::PoolUse> {
    let known = |pool: &&Pool| {
        let mut devices = state.all_devices().filter(|device| device.pool == Some(pool.id));
        devices.all(|device| used.contains_key(&device.sds))
    };
    let row = |pool: &Pool| proto::PoolUse {
        pool_id: pool.id.get(),
        bytes: convert::used_of(state, pool, used).saturating_mul(pool.copies.into()),
    };
    state.all_pools().filter(known).map(row).collect()
}

fn maintenance_reply(state: &State, name: &str) -> pb::MaintenanceReply {
    let sds = state.sds_by_name(name);
    pb::MaintenanceReply {
        entered: sds.is_some_and(|sds| sds.maintenance.is_some()),
        copies_left: sds.map_or(0, |sds| state.copies_of(sds.id) as u64),
    }
}

fn drain_reply(state: &State, devices: &[DeviceId], now: LogTime) -> pb::DrainReply {
    let draining = devices.iter().any(|device| state.is_draining(*device));
    let pools: BTreeSet<_> = devices.iter().filter_map(|id| state.device(*id)?.pool).collect();
    let jobs = pools.into_iter().filter_map(|pool| state.open_job(pool, JobKind::Drain));
    pb::DrainReply {
        draining,
        copies_left: devices.iter().map(|device| state.copies_on(*device) as u64).sum(),
        waits_for: jobs.filter(|_| draining).flat_map(|job| state.job_waits_for(job, now)).collect(),
    }
}

fn fault_set_row(state: &State, set: &FaultSet) -> pb::FaultSetRow {
    pb::FaultSetRow {
        id: set.id.get(),
        name: set.name.clone(),
        domain_id: set.domain.get(),
        sds: state.sds_in(set.id).map(|sds| sds.name.clone()).collect(),
    }
}
