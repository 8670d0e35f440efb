//! Tokens that SDSs refused, and from whom.

use std::net::IpAddr;

use pflex_proto::{
    pb::{
        BadTokens, BadTokensRow, ListBadTokensReply, ListBadTokensRequest, NoteBadTokensReply, NoteBadTokensRequest,
        refused_tokens_server::RefusedTokens,
    },
    status::{self, Reason},
};
use tonic::{Request, Response, Status};

use super::Api;
use crate::{
    command::{Body, proto},
    state::model::{self, BadSource, Flaws},
};

#[tonic::async_trait]
impl RefusedTokens for Api {
    async fn note(&self, request: Request<NoteBadTokensRequest>) -> Result<Response<NoteBadTokensReply>, Status> {
        let request = request.into_inner();
        let sources = request.sources.iter().map(logged).collect::<Result<_, _>>()?;
        let note = proto::NoteBadTokens { sds_id: request.sds_id, sources };
        self.propose(request.request, Body::NoteBadTokens(note)).await?;
        Ok(Response::new(NoteBadTokensReply {}))
    }

    async fn list(&self, request: Request<ListBadTokensRequest>) -> Result<Response<ListBadTokensReply>, Status> {
        let (_, rows) = self
            .read(request.into_inner().stale, |state| state.bad_tokens_newest_first().into_iter().map(row).collect())
            .await?;
        Ok(Response::new(ListBadTokensReply { rows, log_time_ms: self.log_time().get() }))
    }
}

fn logged(source: &BadTokens) -> Result<proto::BadTokens, Status> {
    let address = match source.address.as_str() {
        "" => Vec::new(),
        address => match address.parse() {
            Ok(IpAddr::V4(v4)) => v4.to_ipv6_mapped().octets().to_vec(),
            Ok(IpAddr::V6(v6)) => v6.octets().to_vec(),
            Err(_) => return Err(status::status(Reason::Invalid, "the address of a source is no IP address")),
        },
    };
    Ok(proto::BadTokens {
        sdc_id: source.sdc_id,
        address,
        forged: source.forged,
        expired: source.expired,
        revoked: source.revoked,
        replayed: source.replayed,
        foreign: source.foreign,
        unknown_key: source.unknown_key,
    })
}

fn row(row: &model::BadTokens) -> BadTokensRow {
    let Flaws { forged, expired, revoked, replayed, foreign, unknown_key } = row.refused;
    let address = if row.source == BadSource::OTHERS { String::new() } else { row.source.address.to_string() };
    let sdc_id = row.source.sdc.get();
    BadTokensRow {
        refused: Some(BadTokens { sdc_id, address, forged, expired, revoked, replayed, foreign, unknown_key }),
        sds_id: row.by.get(),
        first_log_ms: row.first.get(),
        last_log_ms: row.last.get(),
    }
}
