//! Volumes and mappings.

use pflex_proto::{
    ids::{Revision, VolumeId},
    pb,
};
use tonic::Status;

use crate::{
    api::{Api, convert, error},
    command::{Answer, Body, proto},
};

impl Api {
    pub(super) async fn new_volume(&self, request: pb::CreateVolumeRequest) -> Result<pb::Volume, Status> {
        let name = request.name.clone();
        let body = Body::CreateVolume(proto::CreateVolume {
            name: request.name,
            pool: request.pool,
            size_bytes: request.size_bytes,
            token_mode: request.token_mode,
            if_not_exists: request.if_not_exists,
        });
        let id = self.create(request.request, body).await?;
        Ok(self.volume_now(id, name))
    }

    /// A command that answers with the id of the volume it changed.
    pub(super) async fn change_volume(&self, request: Option<pb::RequestId>, body: Body) -> Result<pb::Volume, Status> {
        match self.propose_once(request, body).await? {
            (_, Answer::Done(done)) => Ok(self.volume_now(done.id, String::new())),
            _ => Err(error::odd_answer()),
        }
    }

    /// A mapping that is made, changed or ended. With rights that end it returns when they have.
    pub(super) async fn change_mapping(
        &self,
        request: Option<pb::RequestId>,
        name: String,
        body: Body,
    ) -> Result<pb::MappingReply, Status> {
        match self.propose_once(request, body).await? {
            (revision, Answer::Unmapped(unmapped)) => self.revoked(revision, &unmapped, name).await,
            (_, Answer::Done(done)) => {
                let (volume, log_time_ms) = (Some(self.volume_now(done.id, name)), self.log_time().get());
                Ok(pb::MappingReply { volume, log_time_ms, ..pb::MappingReply::default() })
            }
            _ => Err(error::odd_answer()),
        }
    }

    async fn revoked(
        &self,
        revision: Revision,
        unmapped: &proto::Unmapped,
        name: String,
    ) -> Result<pb::MappingReply, Status> {
        let waiting_for = self.await_revocation(revision, VolumeId(unmapped.volume_id)).await;
        let now = self.log_time().get();
        let pending = !waiting_for.is_empty() && now < unmapped.tokens_expire_log_ms;
        Ok(pb::MappingReply {
            volume: Some(self.volume_now(unmapped.volume_id, name)),
            pending_until_log_ms: if pending { unmapped.tokens_expire_log_ms } else { 0 },
            log_time_ms: now,
            waiting_for: if pending { waiting_for } else { Vec::new() },
        })
    }

    /// The volume as it is here now; when it is gone again already (a late retry), what the caller knows anyway.
    fn volume_now(&self, id: u64, name: String) -> pb::Volume {
        let row = self.look(|state| state.volume(VolumeId(id)).map(|row| convert::volume_in(state, row)));
        row.unwrap_or_else(|| pb::Volume { id, name, ..pb::Volume::default() })
    }
}
