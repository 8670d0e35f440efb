//! IO tokens: the command records them, this file signs them. An SDC gets tokens and their keys, never the secret (I7).

use pflex_proto::{
    ids::{ClusterId, KeyId, SdsId, TokenId},
    pb::{
        AckTokensReply, AckTokensRequest, AuditTokensReply, AuditTokensRequest, IoPlan, IssueTokensReply,
        IssueTokensRequest, IssuedToken, KeysReply, KeysRequest, ListTokensReply, ListTokensRequest, PlannedToken,
        RotateSecretReply, RotateSecretRequest, SecretKey, SecretKeyState, TokenRefusal, TokenRow, TokenUse,
        tokens_server::Tokens,
    },
    status::{self, Reason},
    token::{self, Rights, Secret, Token},
};
use ring::rand::{SecureRandom as _, SystemRandom};
use tonic::{Request, Response, Status};

use super::{Api, error};
use crate::{
    command::{Answer, Body, proto},
    state::{
        State,
        model::{Access, IoToken, Link, TokenMode, TokenUse as Used},
    },
};

/// Rows of one list answer; more are asked for by volume.
const MAX_ROWS: usize = 10_000;
/// What a list without a limit gives.
const DEFAULT_ROWS: usize = 1_000;
const SECRET_BYTES: usize = 32;

#[tonic::async_trait]
impl Tokens for Api {
    async fn issue(&self, request: Request<IssueTokensRequest>) -> Result<Response<IssueTokensReply>, Status> {
        let request = request.into_inner();
        let body = Body::IssueTokens(proto::IssueTokens {
            sdc_id: request.sdc_id,
            process_id: request.process_id,
            volume_ids: request.volume_ids,
            plans: request.plans.into_iter().map(plan).collect(),
        });
        let (_, answer) = self.propose(request.request, body).await?;
        let Answer::TokensIssued(issued) = answer else { return Err(error::odd_answer()) };
        let cluster = self.cluster();
        let (tokens, planned) = self.look(|state| {
            let signed = |id: u64| state.token(TokenId(id)).and_then(|record| sign(state, cluster, record));
            let tokens = issued.token_ids.iter().filter_map(|id| signed(*id)).collect();
            let planned = issued.planned.iter().map(|planned| {
                // A record that is gone already has been crowded out: asked for again, it is issued again.
                let token = signed(planned.token_id).map(|issued| issued.token).unwrap_or_default();
                PlannedToken { token, why: planned.why.clone() }
            });
            (tokens, planned.collect())
        });
        let refused = issued.refused.into_iter().map(|r| TokenRefusal { volume_id: r.volume_id, why: r.why }).collect();
        Ok(Response::new(IssueTokensReply { tokens, refused, log_time_ms: self.log_time().get(), planned }))
    }

    async fn ack(&self, request: Request<AckTokensRequest>) -> Result<Response<AckTokensReply>, Status> {
        let request = request.into_inner();
        let uses = request
            .uses
            .into_iter()
            .map(|used| proto::TokenUse {
                token_id: used.token_id,
                reads: used.reads,
                writes: used.writes,
                read_bytes: used.read_bytes,
                written_bytes: used.written_bytes,
            })
            .collect();
        self.propose(request.request, Body::AckTokens(proto::AckTokens { sds_id: request.sds_id, uses })).await?;
        Ok(Response::new(AckTokensReply {}))
    }

    /// Only the registered process of an SDS gets the secrets.
    async fn keys(&self, request: Request<KeysRequest>) -> Result<Response<KeysReply>, Status> {
        let request = request.into_inner();
        let (_, keys) = self
            .read(false, |state| {
                let sds = state.sds(SdsId(request.sds_id))?;
                let process = sds.registration.as_ref()?.process;
                (process.as_bytes().as_slice() == request.process_id).then(|| {
                    let key = |(id, secret): (KeyId, &crate::state::model::Secret)| SecretKey {
                        key_id: id.get(),
                        secret: secret.0.to_vec(),
                    };
                    state.all_secrets().map(key).collect()
                })
            })
            .await?;
        let what = format!("sds {}: only its registered process gets the keys; register first", request.sds_id);
        let keys = keys.ok_or_else(|| status::status(Reason::NotAllowed, what))?;
        Ok(Response::new(KeysReply { keys }))
    }

    async fn list(&self, request: Request<ListTokensRequest>) -> Result<Response<ListTokensReply>, Status> {
        let request = request.into_inner();
        let now = self.log_time();
        let limit = match request.limit {
            0 => DEFAULT_ROWS,
            limit => MAX_ROWS.min(limit as usize),
        };
        let (_, tokens) = self
            .read(request.stale, |state| {
                state
                    .tokens_newest_first()
                    .filter(|token| request.volume_id == 0 || token.volume.get() == request.volume_id)
                    .filter(|token| request.token_id == 0 || token.id.get() == request.token_id)
                    .take(limit)
                    .map(|token| row(token, token.expires <= now))
                    .collect()
            })
            .await?;
        Ok(Response::new(ListTokensReply { tokens, log_time_ms: now.get() }))
    }

    async fn audit(&self, request: Request<AuditTokensRequest>) -> Result<Response<AuditTokensReply>, Status> {
        let (revision, (chain, records)) = self.read(request.into_inner().stale, State::token_records).await?;
        let audit = move || AuditTokensReply {
            records: records.len() as u64,
            oldest_id: records.first().map_or(0, |token| token.id.get()),
            newest_id: records.last().map_or(0, |token| token.id.get()),
            broken_at: chain.verify(&records).err().map_or(0, TokenId::get),
            revision: revision.get(),
            anchor: hexadecimal(chain.anchor),
            head: hexadecimal(chain.head),
        };
        // A quarter of a million hashes: not on a thread that serves others.
        let audited = tokio::task::spawn_blocking(audit).await;
        audited.map(Response::new).map_err(|error| status::status(Reason::Internal, error.to_string()))
    }
}

fn hexadecimal(link: Link) -> String {
    link.0.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Api {
    /// Makes a new generation of the secret. The leader's upkeep does the rest.
    pub(super) async fn make_secret(&self, request: RotateSecretRequest) -> Result<RotateSecretReply, Status> {
        self.leading()?;
        let mut secret = vec![0; SECRET_BYTES];
        let random = SystemRandom::new().fill(&mut secret);
        random.map_err(|_| status::status(Reason::Internal, "the system gives no randomness for a secret"))?;
        let rotate = Body::RotateSecret(proto::RotateSecret { secret });
        match self.propose_once(request.request, rotate).await? {
            (_, Answer::Done(made)) => Ok(RotateSecretReply { key_id: u32::try_from(made.id).unwrap_or(0) }),
            _ => Err(error::odd_answer()),
        }
    }

    /// Every generation of the secret and what it is doing, oldest first.
    pub(super) fn key_states(&self, state: &State) -> Vec<SecretKeyState> {
        let (signing, next, retiring) =
            (state.cluster().map(|cluster| cluster.newest_key), state.next_key(), state.retiring_key());
        let of = |(key, _): (KeyId, &crate::state::model::Secret)| {
            let (word, waiting_for, until) = match () {
                () if Some(key) == next => ("next", self.liveness().without_key(state, key), 0),
                () if Some(key) == signing => ("signing", Vec::new(), 0),
                () => ("retiring", Vec::new(), retiring.map_or(0, |(_, until)| until.get())),
            };
            SecretKeyState { key_id: key.get(), state: word.to_owned(), waiting_for, until_log_ms: until }
        };
        state.all_secrets().map(of).collect()
    }
}

fn plan(plan: IoPlan) -> proto::IoPlan {
    let IoPlan { volume_id, device_id, operation_id, write, from_byte, to_byte } = plan;
    proto::IoPlan { volume_id, device_id, operation_id, write, from_byte, to_byte }
}

/// The signed token of a record: a pure function of it and the secret, so a retry signs the same bytes.
fn sign(state: &State, cluster: ClusterId, record: &IoToken) -> Option<IssuedToken> {
    let secret = Secret::new(record.key, &state.secret(record.key)?.0);
    let token = Token {
        cluster,
        key: record.key,
        id: record.id,
        sdc: record.sdc,
        process: record.process,
        volume: record.volume,
        rights: match record.access {
            Access::ReadOnly => Rights::Read,
            Access::ReadWrite => Rights::ReadWrite,
        },
        from: record.from,
        to: record.to,
        volume_epoch: record.volume_epoch,
        issued: record.issued,
        expires: record.expires,
        mode: match record.mode {
            TokenMode::Lease => token::TokenMode::Lease,
            TokenMode::PerIo => token::TokenMode::PerIo,
        },
        plan: record.plan,
    };
    let (signed, key) = secret.sign(&token);
    Some(IssuedToken {
        volume_id: record.volume.get(),
        token: signed,
        token_key: key.as_bytes().to_vec(),
        expires_log_ms: record.expires.get(),
    })
}

fn row(token: &IoToken, expired: bool) -> TokenRow {
    let Used { reads, writes, read_bytes, written_bytes } = token.used;
    let state = match (expired, token.used == Used::default()) {
        (true, _) => "expired",
        (false, false) => "used",
        (false, true) => "issued",
    };
    TokenRow {
        token_id: token.id.get(),
        sdc_id: token.sdc.get(),
        volume_id: token.volume.get(),
        state: state.to_owned(),
        key_id: token.key.get(),
        issued_log_ms: token.issued.get(),
        expires_log_ms: token.expires.get(),
        from_byte: token.from.0,
        to_byte: token.to.0,
        device_id: token.plan.map_or(0, |plan| plan.device.get()),
        operation_id: token.plan.map_or(0, |plan| plan.operation.get()),
        r#use: Some(TokenUse {
            token_id: token.id.get(),
            reads,
            writes,
            read_bytes: read_bytes.get(),
            written_bytes: written_bytes.get(),
        }),
    }
}
