//! Proposals of primaries (S3).

use pflex_proto::pb::{PgProposalResult, ReconfigureReply, ReconfigureRequest, placement_server::Placement};
use tonic::{Request, Response, Status};

use super::{Api, convert, error};
use crate::command::{Answer, Body, proto};

#[tonic::async_trait]
impl Placement for Api {
    async fn reconfigure(&self, request: Request<ReconfigureRequest>) -> Result<Response<ReconfigureReply>, Status> {
        let request = request.into_inner();
        let proposals = request
            .proposals
            .into_iter()
            .map(|proposal| {
                let pg = proposal.pg.unwrap_or_default();
                proto::Proposal {
                    pool_id: pg.pool_id,
                    index: pg.index,
                    expected_epoch: proposal.expected_epoch,
                    in_sync: proposal
                        .in_sync
                        .into_iter()
                        .map(|member| proto::Member {
                            device_id: member.device_id,
                            sds_id: member.sds_id,
                            incarnation: member.incarnation,
                        })
                        .collect(),
                    primary_device_id: proposal.primary_device_id,
                    activate: proposal.activate,
                }
            })
            .collect();
        let body = Body::ReconfigurePgs(proto::ReconfigurePgs {
            sds_id: request.sds_id,
            process_id: request.process_id,
            proposals,
        });
        let (revision, answer) = self.propose(request.request, body).await?;
        let Answer::Reconfigured(reconfigured) = answer else { return Err(error::odd_answer()) };
        let results = reconfigured
            .results
            .into_iter()
            .map(|result| PgProposalResult {
                accepted: result.accepted,
                why: result.why,
                current: result.current.as_ref().map(convert::pg_config),
            })
            .collect();
        Ok(Response::new(ReconfigureReply { revision: revision.get(), results }))
    }
}
