//! Opens exactly-once sessions (S17).

use pflex_proto::pb::{OpenClientReply, OpenClientRequest, sessions_server::Sessions};
use tonic::{Request, Response, Status};

use super::{Api, error};
use crate::{
    command::{Answer, Body, proto},
    state::limits::SESSION_IDLE_MS,
};

#[tonic::async_trait]
impl Sessions for Api {
    async fn open_client(&self, request: Request<OpenClientRequest>) -> Result<Response<OpenClientReply>, Status> {
        let name = request.into_inner().name;
        let body = Body::OpenClientSession(proto::OpenClientSession { name });
        match self.propose(None, body).await? {
            (_, Answer::SessionOpened(opened)) => {
                Ok(Response::new(OpenClientReply { client_id: opened.client_id, idle_timeout_ms: SESSION_IDLE_MS }))
            }
            _ => Err(error::odd_answer()),
        }
    }
}
