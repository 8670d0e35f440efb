//! The registry: components say that they run and where; everybody can ask who there is.

use pflex_proto::{
    pb::{RegisterReply, RegisterRequest, TopologyReply, TopologyRequest, discovery_server::Discovery},
    status::{self, Reason},
};
use tonic::{Request, Response, Status};

use super::{Api, convert, error};
use crate::command::{Answer, Body, proto};

#[tonic::async_trait]
impl Discovery for Api {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<RegisterReply>, Status> {
        let request = request.into_inner();
        let ours = self.cluster();
        if !request.cluster_id.is_empty() && request.cluster_id != ours.as_bytes() {
            let what = format!("{}: its store belongs to another cluster than this one, {ours}", request.name);
            return Err(status::status(Reason::WrongCluster, what));
        }
        // Both enums number the kinds alike; the state refuses what is none.
        let body = Body::RegisterComponent(proto::RegisterComponent {
            kind: request.kind,
            name: request.name,
            process_id: request.process_id,
            addresses: request.addresses.map(convert::command_addresses),
            version: request.version,
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
        }))
    }

    async fn topology(&self, request: Request<TopologyRequest>) -> Result<Response<TopologyReply>, Status> {
        let (revision, components) = self.read(request.into_inner().stale, convert::components).await?;
        Ok(Response::new(TopologyReply {
            cluster_id: self.cluster().as_bytes().to_vec(),
            revision: revision.get(),
            components,
        }))
    }
}
