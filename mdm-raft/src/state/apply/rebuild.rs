//! How fast the copies of a pool are filled, and the space that is kept for it. The devices that fill them learn it from the map.

use pflex_proto::{
    ids::PoolId,
    rebuild::{RebuildMode, RebuildPolicy},
};

use super::{Effect, done, validate};
use crate::{command::proto, state::State};

impl State {
    /// All pools or none: a bad value changes nothing.
    pub(super) fn set_rebuild_policy(&mut self, set: &proto::SetRebuildPolicy) -> Effect {
        let pools: Vec<PoolId> = match set.pool.as_str() {
            "" => self.pools.values().map(|pool| pool.id).collect(),
            name => vec![self.pool_by_name(name).ok_or_else(|| validate::not_found("pool", name))?.id],
        };
        let policies: Vec<(PoolId, RebuildPolicy)> = pools
            .iter()
            .filter_map(|id| self.pools.get(*id))
            .map(|pool| Ok((pool.id, changed(pool.rebuild, set)?)))
            .collect::<Result<_, _>>()?;
        for (id, policy) in policies {
            if self.pools.get(id).is_some_and(|pool| pool.rebuild != policy) {
                self.pools.update(id, |pool| pool.rebuild = policy);
            }
        }
        done(0_u64)
    }
}

/// For the audit.
pub(super) fn words(set: &proto::SetRebuildPolicy) -> String {
    let mut words = Vec::new();
    words.extend(set.paused.map(|paused| if paused { "paused".to_owned() } else { "resumed".to_owned() }));
    words.extend(set.mode.and_then(RebuildMode::from_number).map(|mode| format!("mode {mode}")));
    words.extend(set.bytes_per_second.map(|bytes| match bytes {
        0 => "no limit of bytes".to_owned(),
        bytes => format!("{bytes} bytes a second"),
    }));
    words.extend(set.concurrency.map(|chunks| format!("{chunks} chunks at once")));
    words.extend(set.spare_percent.map(|percent| format!("{percent} percent of each device kept")));
    format!("filling copies: {}", if words.is_empty() { "as before".to_owned() } else { words.join(", ") })
}

fn changed(before: RebuildPolicy, set: &proto::SetRebuildPolicy) -> Result<RebuildPolicy, super::Refusal> {
    let refused = |what: String| validate::invalid("rebuild policy", what);
    let mut policy = before;
    if let Some(mode) = set.mode {
        policy.mode = RebuildMode::from_number(mode).ok_or_else(|| refused(format!("there is no mode {mode}")))?;
    }
    if let Some(bytes) = set.bytes_per_second {
        let least = RebuildPolicy::LEAST_BYTES_PER_SECOND;
        if bytes > 0 && bytes < least {
            return Err(refused(format!("{bytes} bytes a second is less than {least}; 0 is no limit")));
        }
        policy.bytes_per_second = bytes;
    }
    if let Some(chunks) = set.concurrency {
        let most = RebuildPolicy::MAX_CONCURRENCY;
        if !(1..=most).contains(&chunks) {
            return Err(refused(format!("{chunks} chunks at once is not from 1 to {most}")));
        }
        policy.concurrency = chunks;
    }
    if let Some(percent) = set.spare_percent {
        let most = RebuildPolicy::MAX_SPARE_PERCENT;
        if percent > most {
            return Err(refused(format!("{percent} percent of spare space is more than {most}")));
        }
        policy.spare_percent = percent;
    }
    policy.paused = set.paused.unwrap_or(policy.paused);
    Ok(policy)
}
