//! IO tokens: who may use which volume until when. The record is made here; signing it is the service's (section 8).

use pflex_proto::{
    geometry::{CHUNK_SIZE, pg_of},
    ids::{
        ByteCount, ByteOffset, ChunkIndex, DeviceId, LogTime, OperationId, PgId, ProcessId, SdcId, TokenId, VolumeId,
    },
    token::Plan,
};

use super::{Context, Effect, Refusal, done, validate};
use crate::{
    command::{Answer, ErrorCode, proto},
    state::{
        State,
        limits::{MAX_BATCH, MAX_PLANS, MAX_TOKENS, TOKEN_LIFE_MS, TOKEN_RETENTION_MS},
        model::{Access, IoToken, Link, Mapping, Pg, Registration, TokenMode, TokenUse, Volume},
    },
};

impl State {
    /// One command for all volumes of an SDC (S20) and for all operations that wait in per-io mode (S21); each is granted or
    /// refused by itself.
    pub(super) fn issue_tokens(&mut self, context: Context, issue: &proto::IssueTokens) -> Effect {
        let id = SdcId(issue.sdc_id);
        let object = format!("sdc {id}");
        let sdc = self.sdcs.get(id);
        let sdc = sdc.ok_or_else(|| Refusal::new(ErrorCode::NotFound, &object, "there is no SDC of this id"))?;
        let process = validate::process(&object, &issue.process_id)?;
        // S9: two processes with one id would hold each other's rights.
        if sdc.registration.as_ref().is_some_and(Registration::is_void) {
            let what = "the cluster was restored from a backup; it registers first";
            return Err(Refusal::new(ErrorCode::Precondition, object, what));
        }
        if sdc.registration.as_ref().is_none_or(|registration| registration.process != process) {
            let what = format!("process {process} is not the one that registered last; register first");
            return Err(Refusal::new(ErrorCode::Stale, object, what));
        }
        if !sdc.approved {
            return Err(Refusal::new(ErrorCode::Precondition, object, "an operator has not approved it"));
        }
        let coming = issue.volume_ids.len() + issue.plans.len();
        if coming > MAX_BATCH {
            return Err(validate::limit(object, MAX_BATCH, "volumes and operations in one command"));
        }
        if issue.plans.len() > MAX_PLANS {
            return Err(validate::limit(object, MAX_PLANS, "operations in one command"));
        }
        let mut issued = proto::TokensIssued::default();
        for volume in &issue.volume_ids {
            match self.issue_token(context, (id, process), VolumeId(*volume), None) {
                Ok(token) => issued.token_ids.push(token.get()),
                Err(why) => issued.refused.push(proto::TokenRefusal { volume_id: *volume, why }),
            }
        }
        let planned = issue.plans.iter().map(|plan| {
            match self.issue_token(context, (id, process), VolumeId(plan.volume_id), Some(plan)) {
                Ok(token) => proto::PlannedToken { token_id: token.get(), why: String::new() },
                Err(why) => proto::PlannedToken { token_id: 0, why },
            }
        });
        issued.planned = planned.collect();
        // Afterwards, because only what was granted needs room.
        self.drop_old_tokens(context);
        Ok(Answer::TokensIssued(issued))
    }

    fn issue_token(
        &mut self,
        context: Context,
        (sdc, process): (SdcId, ProcessId),
        id: VolumeId,
        plan: Option<&proto::IoPlan>,
    ) -> Result<TokenId, String> {
        let volume = self.volumes.get(id).ok_or("there is no such volume")?;
        // S12: who holds a token may still reach the copy that is being given up.
        let frozen = self.pools.get(volume.pool).and_then(|pool| pool.frozen.keys().next());
        if let Some(index) = frozen {
            let pg = PgId { pool: volume.pool, index: *index };
            return Err(format!("placement group {pg} of its pool is frozen: an operator is promoting a copy of it"));
        }
        let mapping = self.mapping(id, sdc).ok_or("the volume is not mapped to this SDC")?;
        let key = self.cluster().ok_or("the cluster has no secret yet")?.newest_key;
        let mut token = IoToken {
            id: self.counters().token.next(),
            key,
            sdc,
            process,
            volume: id,
            access: mapping.access,
            from: ByteOffset(0),
            to: ByteOffset(volume.size.get()),
            plan: None,
            volume_epoch: volume.epoch,
            issued: context.log_time,
            expires: LogTime(context.log_time.get() + TOKEN_LIFE_MS),
            mode: volume.token_mode,
            used: TokenUse::default(),
            link: Link::default(),
        };
        if let Some(wanted) = plan {
            token.plan = Some(self.plan(volume, mapping, wanted)?);
            (token.from, token.to) = (ByteOffset(wanted.from_byte), ByteOffset(wanted.to_byte));
            token.access = if wanted.write { Access::ReadWrite } else { Access::ReadOnly };
        }
        let mut chain = self.token_chain();
        token.link = token.link_after(chain.head);
        chain.head = token.link;
        let id = self.take_id(|counters| {
            counters.token = counters.token.next();
            counters.token
        });
        self.put_token_chain(chain);
        self.tokens.put(token);
        Ok(id)
    }

    /// What a token for one operation says of it.
    fn plan(&self, volume: &Volume, mapping: &Mapping, wanted: &proto::IoPlan) -> Result<Plan, String> {
        if volume.token_mode != TokenMode::PerIo {
            return Err("the volume is in lease mode: its token is good for any operation".into());
        }
        let (from, to) = (wanted.from_byte, wanted.to_byte);
        let chunk = u64::from(CHUNK_SIZE);
        if from >= to || to > volume.size.get() || from / chunk != (to - 1) / chunk {
            return Err(format!("bytes {from} to {to} are not within one chunk of the volume"));
        }
        if wanted.write && mapping.access != Access::ReadWrite {
            return Err("the mapping is read-only".into());
        }
        let device = DeviceId(wanted.device_id);
        let device = self.devices.get(device).ok_or_else(|| format!("there is no device {device}"))?;
        let serves = |pg: &Pg| pg.replicas.contains(&device.id);
        // Else a client could use up the room for used tokens at devices that it has no business with.
        if !self.group_of(volume, ChunkIndex(from / chunk)).is_some_and(serves) {
            return Err(format!("device {} has no copy of the chunk that bytes {from} to {to} are in", device.id));
        }
        let operation = OperationId(if wanted.write { wanted.operation_id } else { 0 });
        Ok(Plan { device: device.id, incarnation: device.incarnation, operation })
    }

    fn group_of(&self, volume: &Volume, chunk: ChunkIndex) -> Option<&Pg> {
        let pool = self.pools.get(volume.pool)?;
        self.pgs.get(PgId { pool: pool.id, index: pg_of(volume.vtree, chunk, pool.pg_count) })
    }

    /// Keeps the table bounded (I10): records go some time after they expired, or when there are too many. The chain's
    /// anchor moves with them, so the rest still verifies (S21).
    fn drop_old_tokens(&mut self, context: Context) {
        let excess = self.tokens.len().saturating_sub(MAX_TOKENS);
        let old: Vec<(TokenId, Link)> = self
            .tokens
            .values()
            .enumerate()
            .take_while(|(position, token)| {
                *position < excess || token.expires.get() + TOKEN_RETENTION_MS < context.log_time.get()
            })
            .map(|(_, token)| (token.id, token.link))
            .collect();
        if let Some((_, link)) = old.last() {
            let mut chain = self.token_chain();
            chain.anchor = *link;
            self.put_token_chain(chain);
        }
        for (id, _) in old {
            self.tokens.remove(id);
        }
    }

    /// Adds what an SDS counted; tokens whose record is gone are passed over.
    pub(super) fn ack_tokens(&mut self, ack: &proto::AckTokens) -> Effect {
        let object = format!("sds {}", ack.sds_id);
        if !self.sds.contains(ack.sds_id.into()) {
            return Err(Refusal::new(ErrorCode::NotFound, object, "there is no SDS of this id"));
        }
        if ack.uses.len() > MAX_BATCH {
            return Err(validate::limit(object, MAX_BATCH, "tokens in one ACK"));
        }
        for more in &ack.uses {
            self.tokens.update(TokenId(more.token_id), |token| {
                let used = &mut token.used;
                used.reads = used.reads.saturating_add(more.reads);
                used.writes = used.writes.saturating_add(more.writes);
                used.read_bytes = ByteCount(used.read_bytes.get().saturating_add(more.read_bytes));
                used.written_bytes = ByteCount(used.written_bytes.get().saturating_add(more.written_bytes));
            });
        }
        done(0_u64)
    }
}
