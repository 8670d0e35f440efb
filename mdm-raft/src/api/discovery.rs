//! The registry: components say that they run and where; everybody can ask who there is.

use pflex_proto::{
    pb::{ComponentKind, RegisterReply, RegisterRequest, TopologyReply, TopologyRequest, discovery_server::Discovery},
    status::{self, Reason},
};
use tonic::{Request, Response, Status};

use super::{Api, convert, error};
use crate::{
    command::{Answer, Body, proto},
    state::{State, model::Registration},
};

#[tonic::async_trait]
impl Discovery for Api {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<RegisterReply>, Status> {
        let request = request.into_inner();
        let ours = self.cluster();
        if !request.cluster_id.is_empty() && request.cluster_id != ours.as_bytes() {
            let what = format!("{}: its store belongs to another cluster than this one, {ours}", request.name);
            return Err(status::status(Reason::WrongCluster, what));
        }
        self.is_not_older(request.cluster_generation)?;
        if request.introduce {
            return self.introduce(&request).await.map(Response::new);
        }
        if request.kind() == ComponentKind::Mdm && !self.is_member_name(&request.name) {
            let what =
                format!("{}: it is not a member of this cluster; add it with `pflex cluster add-node`", request.name);
            return Err(status::status(Reason::Precondition, what));
        }
        // Both enums number the kinds alike; the state refuses what is none.
        let body = Body::RegisterComponent(proto::RegisterComponent {
            kind: request.kind,
            name: request.name,
            process_id: request.process_id,
            addresses: request.addresses.map(convert::command_addresses),
            version: request.version,
            host: request.host.map(convert::command_host),
            registrations_seen: request.registrations_seen,
            follows_doubling: request.follows_doubling,
            devices: request
                .devices
                .into_iter()
                .map(|device| proto::OpenedDevice {
                    uuid: device.uuid,
                    incarnation: device.incarnation,
                    capacity_bytes: device.capacity_bytes,
                    device_id: device.device_id,
                    path: device.path,
                    empty: device.empty,
                    pool: device.pool,
                    pg_count: device.pg_count,
                    sorted_pool_id: device.sorted_pool_id,
                })
                .collect(),
        });
        let (revision, answer) = self.propose(request.request, body).await?;
        let Answer::Registered(registered) = answer else { return Err(error::odd_answer()) };
        Ok(Response::new(RegisterReply {
            cluster_id: ours.as_bytes().to_vec(),
            id: registered.id,
            device_ids: registered.device_ids,
            cluster_generation: self.look(|state| state.cluster().map_or(0, |c| c.generation.get())),
            revision: revision.get(),
            registrations: registered.registrations,
            recovering: self.look(State::is_recovering),
            awaited: false,
        }))
    }

    async fn topology(&self, request: Request<TopologyRequest>) -> Result<Response<TopologyReply>, Status> {
        let heard = self.heard();
        let (revision, components) =
            self.read(request.into_inner().stale, |state| convert::components(state, &heard)).await?;
        Ok(Response::new(TopologyReply {
            cluster_id: self.cluster().as_bytes().to_vec(),
            revision: revision.get(),
            components,
        }))
    }
}

impl Api {
    /// Whether an MDM of that name belongs to the group: one that was removed must not come back into the registry.
    fn is_member_name(&self, name: &str) -> bool {
        self.group().status().members.keys().any(|id| format!("mdm{id}") == name)
    }

    /// Tells an SDS or SDC its id and cluster and changes nothing. An SDS has no device open yet; registered without
    /// them it would lose its place in every group, though its copies may be as good as before (S2).
    async fn introduce(&self, request: &RegisterRequest) -> Result<RegisterReply, Status> {
        let (kind, name) = (request.kind(), request.name.as_str());
        let find = |state: &State| {
            let cluster = state.cluster()?;
            let generation = (cluster.generation.get(), cluster.recovering);
            let count = |registration: &Option<Registration>| registration.as_ref().map_or(0, |r| r.count);
            let known = match kind {
                ComponentKind::Sds => state.sds_registering_as(name).map(|sds| {
                    let awaited = sds.awaited || state.devices_of(sds.id).any(|device| device.awaited);
                    (sds.id.get(), count(&sds.registration), awaited)
                }),
                ComponentKind::Sdc => {
                    state.sdc_registering_as(name).map(|sdc| (sdc.id.get(), count(&sdc.registration), false))
                }
                ComponentKind::Mdm | ComponentKind::Mgmt | ComponentKind::Unspecified => None,
            };
            Some((generation, known))
        };
        let kind = match kind {
            ComponentKind::Sds => "sds",
            ComponentKind::Sdc => "sdc",
            ComponentKind::Mdm | ComponentKind::Mgmt | ComponentKind::Unspecified => {
                return Err(status::status(
                    Reason::Invalid,
                    format!("{name}: only SDSs and SDCs introduce themselves"),
                ));
            }
        };
        // With a quorum: an answer that is too old could miss an SDS that was just created, or name a removed one.
        let (revision, found) = self.read(false, find).await?;
        let ((cluster_generation, recovering), known) = found.ok_or_else(error::not_bootstrapped)?;
        let (id, registrations, awaited) = known.ok_or_else(|| error::not_found(kind, name))?;
        Ok(RegisterReply {
            cluster_id: self.cluster().as_bytes().to_vec(),
            id,
            device_ids: Vec::new(),
            cluster_generation,
            revision: revision.get(),
            registrations,
            recovering,
            awaited,
        })
    }
}
