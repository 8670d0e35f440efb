//! Tokens that SDSs refused: counted by source in a bounded table, and told by at most one event per source and minute of
//! log time. What comes later within that minute is told by the next event of the source, and is in the table at once.

use std::net::{IpAddr, Ipv6Addr};

use pflex_proto::ids::{LogTime, SdcId, SdsId};

use super::{Context, Effect, Refusal, done, validate};
use crate::{
    command::{ErrorCode, proto},
    state::{
        State,
        limits::{BAD_SOURCE_RETENTION_MS, BAD_SOURCE_TOLD_EVERY_MS, MAX_BAD_SOURCES, MAX_BATCH},
        model::{BadSource, BadTokens, Flaws},
    },
};

impl State {
    /// Adds what an SDS counted.
    pub(super) fn note_bad_tokens(&mut self, context: Context, note: &proto::NoteBadTokens) -> Effect {
        let by = SdsId(note.sds_id);
        let object = format!("sds {by}");
        if !self.sds.contains(by) {
            return Err(Refusal::new(ErrorCode::NotFound, object, "there is no SDS of this id"));
        }
        if note.sources.len() > MAX_BATCH {
            return Err(validate::limit(object, MAX_BATCH, "sources of refused tokens in one report"));
        }
        let named = note.sources.iter().map(|more| Ok((source(&object, more)?, flaws(more))));
        let named: Vec<(BadSource, Flaws)> = named.collect::<Result<_, Refusal>>()?;
        let mut sources: Vec<_> =
            named.into_iter().map(|(source, more)| self.add_bad(context, by, source, more)).collect();
        sources.sort_unstable();
        sources.dedup();
        for source in sources {
            self.bad_tokens.update(source, |row| {
                let due = |told: LogTime| context.log_time.get() >= told.get() + BAD_SOURCE_TOLD_EVERY_MS;
                if row.told_at.is_none_or(due) {
                    (row.told, row.told_at) = (row.refused, Some(context.log_time));
                }
            });
        }
        done(0_u64)
    }

    /// Returns under which source it was counted.
    fn add_bad(&mut self, context: Context, by: SdsId, source: BadSource, more: Flaws) -> BadSource {
        let now = context.log_time;
        if !self.bad_tokens.contains(source) && self.bad_tokens.len() >= MAX_BAD_SOURCES {
            self.forget_bad_sources(now);
        }
        let full = self.bad_tokens.len() >= MAX_BAD_SOURCES;
        let source = if full && !self.bad_tokens.contains(source) { BadSource::OTHERS } else { source };
        if !self.bad_tokens.contains(source) {
            let (refused, told) = (Flaws::default(), Flaws::default());
            self.bad_tokens.put(BadTokens { source, refused, told, told_at: None, first: now, last: now, by });
        }
        self.bad_tokens.update(source, |row| {
            row.refused = row.refused.plus(more);
            (row.last, row.by) = (now, by);
        });
        source
    }

    /// Those that were not heard of for long. Somebody who makes up names cannot push out others before that.
    fn forget_bad_sources(&mut self, now: LogTime) {
        let old = |row: &&BadTokens| row.last.get() + BAD_SOURCE_RETENTION_MS < now.get();
        let old: Vec<BadSource> = self.bad_tokens.values().filter(old).map(|row| row.source).collect();
        for source in old {
            self.bad_tokens.remove(source);
        }
    }
}

fn source(object: &str, more: &proto::BadTokens) -> Result<BadSource, Refusal> {
    match <[u8; 16]>::try_from(more.address.as_slice()) {
        Ok(bytes) => {
            let address = IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical();
            Ok(BadSource { sdc: SdcId(more.sdc_id), address })
        }
        Err(_) if more.address.is_empty() => Ok(BadSource::OTHERS),
        Err(_) => Err(Refusal::new(ErrorCode::Invalid, object, "an address of a source is not of 16 bytes")),
    }
}

fn flaws(more: &proto::BadTokens) -> Flaws {
    let proto::BadTokens { forged, expired, revoked, replayed, foreign, unknown_key, .. } = *more;
    Flaws { forged, expired, revoked, replayed, foreign, unknown_key }
}
