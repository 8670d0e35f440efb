//! What SDSs knew before a restore (S19), and forced promotion (S12): the service; waiting is in `promotion`.

use pflex_proto::{
    ids::{DeviceId, PgId, PgIndex},
    pb::{
        FreezePgRequest, FrozenPg, Pg as PgMessage, PromotePgReply, PromotePgRequest, ReportGroupsReply,
        ReportGroupsRequest, UnfreezePgRequest, recovery_server::Recovery,
    },
    status::{self, Reason},
};
use tonic::{Request, Response, Status};

use super::{Api, convert, error};
use crate::{
    command::{Body, proto},
    state::{State, model::Pg},
};

#[tonic::async_trait]
impl Recovery for Api {
    async fn report_groups(
        &self,
        request: Request<ReportGroupsRequest>,
    ) -> Result<Response<ReportGroupsReply>, Status> {
        let request = request.into_inner();
        let body = Body::ReportGroups(proto::ReportGroups {
            sds: request.sds,
            process_id: request.process_id,
            generation: request.cluster_generation,
            device_uuid: request.device_uuid,
            device_id: request.device_id,
            incarnation: request.incarnation,
            groups: request.groups.into_iter().map(report).collect(),
            last: request.last,
            pg_count: request.pg_count,
            sorted_pool_id: request.sorted_pool_id,
        });
        self.propose(request.request, body).await?;
        Ok(Response::new(ReportGroupsReply {}))
    }

    async fn freeze_pg(&self, request: Request<FreezePgRequest>) -> Result<Response<FrozenPg>, Status> {
        let FreezePgRequest { request, pool, index, device_id } = request.into_inner();
        let body = Body::FreezePg(proto::FreezePg { pool: pool.clone(), index, device_id });
        self.propose_once(request, body).await?;
        let frozen = self.look(|state| {
            let pg = group(state, &pool, index)?;
            let lost = pg.config.in_sync.iter().map(|member| {
                let sds = state.sds(member.sds).map_or_else(|| member.sds.to_string(), |sds| sds.name.clone());
                format!("device {} of sds {sds}", member.device)
            });
            let volumes = state.all_volumes().filter(|volume| volume.pool == pg.id.pool);
            Some(FrozenPg {
                pg: Some(convert::pg(pg)),
                lost: lost.collect(),
                volumes: volumes.map(|volume| volume.name.clone()).collect(),
            })
        });
        // Counting begins here, where the freeze is certainly in force.
        self.look(|state| self.freezes().see(state));
        frozen.map(Response::new).ok_or_else(error::odd_answer)
    }

    async fn promote_pg(&self, request: Request<PromotePgRequest>) -> Result<Response<PromotePgReply>, Status> {
        let PromotePgRequest { request, pool, index, device_id } = request.into_inner();
        self.leading()?;
        // With a quorum: a leader that has just been elected may not know of the freeze yet.
        let (_, judged) = self
            .read(false, |state| {
                self.freezes().see(state);
                let pg = group(state, &pool, index)?;
                let freeze = state.freeze_of(pg.id)?;
                Some((freeze, self.freezes().judge(pg.id, freeze, state.old_copies_are_dead(pg))))
            })
            .await?;
        let Some((freeze, judged)) = judged else {
            let what = format!("pg {index} of pool {pool}: it is not frozen; freeze it first, or it was given up");
            return Err(status::status(Reason::Precondition, what));
        };
        let why_safe = match judged {
            Ok(why_safe) => why_safe,
            Err(left) => {
                let pg = self.look(|state| group(state, &pool, index).map(convert::pg));
                let wait_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX).max(1);
                return Ok(Response::new(PromotePgReply { pg, wait_ms }));
            }
        };
        if freeze.device != DeviceId(device_id) {
            let what = format!("pg {index} of pool {pool}: it is frozen for device {}", freeze.device);
            return Err(status::status(Reason::Precondition, what));
        }
        let body = Body::PromotePg(proto::PromotePg {
            pool: pool.clone(),
            index,
            device_id,
            frozen_at: freeze.at.get(),
            why_safe,
        });
        self.propose_once(request, body).await?;
        let pg = self.group_message(&pool, index)?.into_inner();
        Ok(Response::new(PromotePgReply { pg: Some(pg), wait_ms: 0 }))
    }

    async fn unfreeze_pg(&self, request: Request<UnfreezePgRequest>) -> Result<Response<PgMessage>, Status> {
        let UnfreezePgRequest { request, pool, index } = request.into_inner();
        self.propose_once(request, Body::UnfreezePg(proto::UnfreezePg { pool: pool.clone(), index })).await?;
        self.group_message(&pool, index)
    }
}

impl Api {
    fn group_message(&self, pool: &str, index: u32) -> Result<Response<PgMessage>, Status> {
        let pg = self.look(|state| group(state, pool, index).map(convert::pg));
        pg.map(Response::new).ok_or_else(error::odd_answer)
    }
}

fn group<'a>(state: &'a State, pool: &str, index: u32) -> Option<&'a Pg> {
    state.pg(PgId { pool: state.pool_by_name(pool)?.id, index: PgIndex(index) })
}

fn report(report: pflex_proto::pb::GroupReport) -> proto::GroupReport {
    let pg = report.pg.unwrap_or_default();
    let member = |member: pflex_proto::pb::Member| proto::Member {
        device_id: member.device_id,
        sds_id: member.sds_id,
        incarnation: member.incarnation,
    };
    proto::GroupReport {
        pool_id: pg.pool_id,
        index: pg.index,
        generation: report.cluster_generation,
        epoch: report.epoch,
        primary_device_id: report.primary_device_id,
        in_sync: report.in_sync.into_iter().map(member).collect(),
        replica_device_ids: report.replica_device_ids,
        volatility: report.volatility,
        served: report.served,
    }
}
