//! What operators ask for. Each call makes one command; names are resolved when it is applied, so nothing can change in
//! between.

mod lists;
mod revocation;
mod volumes;

use pflex_proto::pb::{self, RequestId, admin_server::Admin};
use tonic::{Request, Response, Status};

use super::{Api, convert, error};
use crate::command::{Answer, Body, proto};

/// Copies of a pool whose creator does not say.
const DEFAULT_COPIES: u32 = 2;
/// Placement groups of a pool whose creator does not say: some twenty per device in a small cluster, so that shares come
/// out even and a lost device is rebuilt from all others.
const DEFAULT_PGS: u32 = 64;

impl Api {
    /// Creates an object and returns its id; an existing one's when the caller allows that.
    pub(super) async fn create(&self, request: Option<RequestId>, body: Body) -> Result<u64, Status> {
        match self.propose_once(request, body).await? {
            (_, Answer::Created(created)) => Ok(created.id),
            _ => Err(error::odd_answer()),
        }
    }

    pub(super) async fn delete(
        &self,
        request: pb::DeleteRequest,
        kind: proto::Object,
    ) -> Result<Response<pb::DeleteReply>, Status> {
        let body = Body::Delete(proto::Delete { kind: kind.into(), name: request.name });
        self.propose_once(request.request, body).await?;
        Ok(Response::new(pb::DeleteReply {}))
    }
}

#[tonic::async_trait]
impl Admin for Api {
    async fn create_domain(&self, request: Request<pb::CreateDomainRequest>) -> Result<Response<pb::Domain>, Status> {
        let pb::CreateDomainRequest { request, name, if_not_exists } = request.into_inner();
        let body = Body::CreateDomain(proto::CreateDomain { name: name.clone(), if_not_exists });
        // Wide enough for its own counter: ids of this space were given out as 32 bits.
        let id = self.create(request, body).await? as u32;
        // Gone again already, when this is a late retry: then what is known of it is its id and name.
        let row = self.look(|state| state.domain(id.into()).map(convert::domain));
        Ok(Response::new(row.unwrap_or(pb::Domain { id, name })))
    }

    async fn list_domains(&self, request: Request<pb::ListRequest>) -> Result<Response<pb::ListDomainsReply>, Status> {
        self.domains(request.into_inner()).await.map(Response::new)
    }

    async fn delete_domain(&self, request: Request<pb::DeleteRequest>) -> Result<Response<pb::DeleteReply>, Status> {
        self.delete(request.into_inner(), proto::Object::Domain).await
    }

    async fn create_pool(&self, request: Request<pb::CreatePoolRequest>) -> Result<Response<pb::Pool>, Status> {
        let request = request.into_inner();
        let name = request.name.clone();
        let or_default = |value: u32, default: u32| if value == 0 { default } else { value };
        let body = Body::CreatePool(proto::CreatePool {
            name: request.name,
            domain: request.domain,
            copies: or_default(request.copies, DEFAULT_COPIES),
            pg_count: or_default(request.pg_count, DEFAULT_PGS),
            write_policy: request.write_policy,
            if_not_exists: request.if_not_exists,
        });
        let id = self.create(request.request, body).await? as u32;
        let row = self.look(|state| state.pool(id.into()).map(convert::pool));
        Ok(Response::new(row.unwrap_or_else(|| pb::Pool { id, name, ..pb::Pool::default() })))
    }

    async fn list_pools(&self, request: Request<pb::ListRequest>) -> Result<Response<pb::ListPoolsReply>, Status> {
        self.pools(request.into_inner()).await.map(Response::new)
    }

    async fn delete_pool(&self, request: Request<pb::DeleteRequest>) -> Result<Response<pb::DeleteReply>, Status> {
        self.delete(request.into_inner(), proto::Object::Pool).await
    }

    async fn set_pg_count(&self, request: Request<pb::SetPgCountRequest>) -> Result<Response<pb::Pool>, Status> {
        let pb::SetPgCountRequest { request, pool: name, pg_count } = request.into_inner();
        let body = Body::DoubleGroups(proto::DoubleGroups { pool: name.clone(), pg_count });
        let (_, answer) = self.propose_once(request, body).await?;
        let Answer::Done(proto::Done { id }) = answer else { return Err(error::odd_answer()) };
        let id = id as u32;
        let row = self.look(|state| state.pool(id.into()).map(convert::pool));
        Ok(Response::new(row.unwrap_or_else(|| pb::Pool { id, name, pg_count, ..pb::Pool::default() })))
    }

    async fn create_sds(&self, request: Request<pb::CreateSdsRequest>) -> Result<Response<pb::Sds>, Status> {
        let pb::CreateSdsRequest { request, name, domain, fault_set, if_not_exists } = request.into_inner();
        let body = Body::CreateSds(proto::CreateSds { name: name.clone(), domain, fault_set, if_not_exists });
        let id = self.create(request, body).await? as u32;
        let row = self.look(|state| state.sds(id.into()).map(convert::sds));
        Ok(Response::new(row.unwrap_or_else(|| pb::Sds { id, name, ..pb::Sds::default() })))
    }

    async fn list_sds(&self, request: Request<pb::ListRequest>) -> Result<Response<pb::ListSdsReply>, Status> {
        self.sds_rows(request.into_inner()).await.map(Response::new)
    }

    async fn delete_sds(&self, request: Request<pb::DeleteRequest>) -> Result<Response<pb::DeleteReply>, Status> {
        self.delete(request.into_inner(), proto::Object::Sds).await
    }

    async fn create_sdc(&self, request: Request<pb::CreateSdcRequest>) -> Result<Response<pb::Sdc>, Status> {
        let pb::CreateSdcRequest { request, name, if_not_exists } = request.into_inner();
        let body = Body::CreateSdc(proto::CreateSdc { name: name.clone(), if_not_exists });
        let id = self.create(request, body).await? as u32;
        let row = self.look(|state| state.sdc(id.into()).map(convert::sdc));
        Ok(Response::new(row.unwrap_or_else(|| pb::Sdc { id, name, ..pb::Sdc::default() })))
    }

    async fn list_sdcs(&self, request: Request<pb::ListRequest>) -> Result<Response<pb::ListSdcsReply>, Status> {
        self.sdcs(request.into_inner()).await.map(Response::new)
    }

    async fn delete_sdc(&self, request: Request<pb::DeleteRequest>) -> Result<Response<pb::DeleteReply>, Status> {
        self.delete(request.into_inner(), proto::Object::Sdc).await
    }

    async fn approve_sdc(&self, request: Request<pb::ApproveSdcRequest>) -> Result<Response<pb::MappingReply>, Status> {
        let pb::ApproveSdcRequest { request, name, approved } = request.into_inner();
        let body = Body::ApproveSdc(proto::ApproveSdc { name, approved });
        let reply = self.change_mapping(request, String::new(), body).await?;
        Ok(Response::new(pb::MappingReply { volume: None, ..reply }))
    }

    async fn create_volume(&self, request: Request<pb::CreateVolumeRequest>) -> Result<Response<pb::Volume>, Status> {
        self.new_volume(request.into_inner()).await.map(Response::new)
    }

    async fn list_volumes(&self, request: Request<pb::ListRequest>) -> Result<Response<pb::ListVolumesReply>, Status> {
        self.volumes(request.into_inner()).await.map(Response::new)
    }

    async fn rename_volume(&self, request: Request<pb::RenameRequest>) -> Result<Response<pb::Volume>, Status> {
        let pb::RenameRequest { request, name, new_name } = request.into_inner();
        let kind = proto::Object::Volume.into();
        let body = Body::Rename(proto::Rename { kind, name, new_name });
        self.change_volume(request, body).await.map(Response::new)
    }

    async fn resize_volume(&self, request: Request<pb::ResizeVolumeRequest>) -> Result<Response<pb::Volume>, Status> {
        let pb::ResizeVolumeRequest { request, name, size_bytes } = request.into_inner();
        let body = Body::ResizeVolume(proto::ResizeVolume { name, size_bytes });
        self.change_volume(request, body).await.map(Response::new)
    }

    async fn map_volume(&self, request: Request<pb::MapVolumeRequest>) -> Result<Response<pb::MappingReply>, Status> {
        let pb::MapVolumeRequest { request, volume, sdc, access, iops_limit, bandwidth_limit } = request.into_inner();
        let name = volume.clone();
        let body = Body::MapVolume(proto::MapVolume { volume, sdc, access, iops_limit, bandwidth_limit });
        self.change_mapping(request, name, body).await.map(Response::new)
    }

    async fn limit_mapping(&self, request: Request<pb::LimitMappingRequest>) -> Result<Response<pb::Volume>, Status> {
        let pb::LimitMappingRequest { request, volume, sdc, iops_limit, bandwidth_limit } = request.into_inner();
        let body = Body::LimitMapping(proto::LimitMapping { volume, sdc, iops_limit, bandwidth_limit });
        self.change_volume(request, body).await.map(Response::new)
    }

    async fn unmap_volume(
        &self,
        request: Request<pb::UnmapVolumeRequest>,
    ) -> Result<Response<pb::MappingReply>, Status> {
        let pb::UnmapVolumeRequest { request, volume, sdc } = request.into_inner();
        let name = volume.clone();
        self.change_mapping(request, name, Body::UnmapVolume(proto::UnmapVolume { volume, sdc }))
            .await
            .map(Response::new)
    }

    async fn delete_volume(&self, request: Request<pb::DeleteRequest>) -> Result<Response<pb::DeleteReply>, Status> {
        self.delete(request.into_inner(), proto::Object::Volume).await
    }

    async fn list_pgs(&self, request: Request<pb::ListPgsRequest>) -> Result<Response<pb::ListPgsReply>, Status> {
        self.pgs(request.into_inner()).await.map(Response::new)
    }
}
