//! IO tokens: who may use which volume until when. The record is made here; signing it is the service's (section 8).

use pflex_proto::ids::{ByteCount, LogTime, PgId, ProcessId, SdcId, TokenId, VolumeId};

use super::{Context, Effect, Refusal, done, validate};
use crate::{
    command::{Answer, ErrorCode, proto},
    state::{
        State,
        limits::{MAX_BATCH, MAX_TOKENS, TOKEN_LIFE_MS, TOKEN_RETENTION_MS},
        model::{IoToken, Link, Registration, TokenUse},
    },
};

impl State {
    /// One command for all volumes of an SDC (S20); each volume is granted or refused by itself.
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
        if issue.volume_ids.len() > MAX_BATCH {
            return Err(validate::limit(object, MAX_BATCH, "volumes in one command"));
        }
        self.drop_old_tokens(context, issue.volume_ids.len());
        let mut issued = proto::TokensIssued::default();
        for volume in &issue.volume_ids {
            match self.issue_token(context, (id, process), VolumeId(*volume)) {
                Ok(token) => issued.token_ids.push(token.get()),
                Err(why) => issued.refused.push(proto::TokenRefusal { volume_id: *volume, why }),
            }
        }
        Ok(Answer::TokensIssued(issued))
    }

    fn issue_token(
        &mut self,
        context: Context,
        (sdc, process): (SdcId, ProcessId),
        id: VolumeId,
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
            length: volume.size,
            volume_epoch: volume.epoch,
            issued: context.log_time,
            expires: LogTime(context.log_time.get() + TOKEN_LIFE_MS),
            mode: volume.token_mode,
            used: TokenUse::default(),
            link: Link::default(),
        };
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

    /// Keeps the table bounded (I10): records go some time after they expired, or when there are too many. The chain's
    /// anchor moves with them, so the rest still verifies (S21).
    fn drop_old_tokens(&mut self, context: Context, coming: usize) {
        let excess = (self.tokens.len() + coming).saturating_sub(MAX_TOKENS);
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
