//! The groups of a pool double (S25): with n of them, group i becomes the groups i and i + n.
//!
//! A chunk's group is its hash modulo the number of groups, so each chunk of group i is from now on in one of those two,
//! whatever it was written as. Both halves are what the whole was: same places, copies in sync, primary, holders (S11),
//! volatility id (S14), same move under way. So every copy that had everything has everything of both halves, no chunk
//! changes its place, and nobody need activate what was activated: the copies in sync include all that were before. Both
//! are of a new epoch, one above the whole's, so a request, a proposal or a lease that means the whole is of an older
//! epoch and is refused; whoever learns the new one knows from the same revision of the map how chunks are to be sorted.
//!
//! One command does it, for no group may double without the others: a client goes by the pool's number alone. It never
//! goes back: two groups that have served apart have orders of writes that no common epoch could continue.
//!
//! Whoever does not follow would go on to look for chunks in the groups they have left, so while one does not, no pool that
//! concerns it doubles, and it does not register for one that has.

use std::collections::BTreeSet;

use pflex_proto::ids::{PgId, PgIndex, PoolId, SdcId};

use super::{Effect, Refusal, done, validate};
use crate::{
    command::{ErrorCode, proto},
    state::{
        State,
        limits::MAX_PGS_PER_POOL,
        model::{GroupReports, Pg, Pool, Registration},
    },
};

/// Components that a refusal names.
const LISTED: usize = 8;

impl State {
    /// As many groups as there are is a command said again.
    pub(super) fn double_groups(&mut self, double: &proto::DoubleGroups) -> Effect {
        let pool = self.named_pool(&double.pool)?;
        let (id, count, object) = (pool.id, pool.pg_count, format!("pool {}", pool.name));
        if double.pg_count == count {
            return done(id.get());
        }
        may_become(&object, count, double.pg_count)?;
        self.not_recovering(&object)?;
        if let Some((index, freeze)) = pool.frozen.first_key_value() {
            let what = format!(
                "group {id}.{index} of it is frozen, because its copy on device {} is being promoted by force; carry that \
                 out, or give it up with `pflex pg unfreeze`",
                freeze.device
            );
            return Err(Refusal::new(ErrorCode::Precondition, object, what));
        }
        self.all_follow(id)?;
        self.double(id);
        done(id.get())
    }

    /// Makes twice as many groups of those a pool has.
    pub(in crate::state) fn double(&mut self, id: PoolId) {
        let Some(count) = self.pools.get(id).map(|pool| pool.pg_count) else { return };
        self.pools.update(id, |pool| pool.pg_count = count * 2);
        let wholes: Vec<Pg> = self.pgs_of(id).cloned().collect();
        for mut half in wholes {
            let whole = half.id;
            let other = PgId { pool: id, index: PgIndex(whole.index.get() + count) };
            half.config.epoch = half.config.epoch.next();
            self.pgs.put(Pg { id: other, ..half.clone() });
            self.pgs.put(half);
            // S19: what was known of the whole is known of both.
            if let Some(reports) = self.group_reports.get(whole).cloned() {
                self.group_reports.put(GroupReports { pg: other, ..reports });
            }
        }
    }

    /// Refuses while somebody who is concerned by the groups of a pool would not notice that they double.
    pub(super) fn all_follow(&self, id: PoolId) -> Result<(), Refusal> {
        let Some(pool) = self.pools.get(id) else { return Ok(()) };
        let lags = |process: &Option<Registration>| process.as_ref().is_some_and(Registration::ignores_doubling);
        let servers: BTreeSet<_> =
            self.devices.values().filter(|device| device.pool == Some(id)).map(|device| device.sds).collect();
        let servers = servers.into_iter().filter_map(|sds| self.sds.get(sds)).filter(|sds| lags(&sds.registration));
        let mapped = self.mappings.values().filter(|mapping| self.pool_of(mapping.volume) == Some(id));
        let clients: BTreeSet<SdcId> = mapped.map(|mapping| mapping.sdc).collect();
        let clients = clients.into_iter().filter_map(|sdc| self.sdcs.get(sdc)).filter(|sdc| lags(&sdc.registration));
        let names: Vec<String> = servers
            .map(|sds| format!("sds {}", sds.name))
            .chain(clients.map(|sdc| format!("sdc {}", sdc.name)))
            .collect();
        if names.is_empty() {
            return Ok(());
        }
        let more = names.len().saturating_sub(LISTED);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let what = format!(
            "its placement groups cannot double while processes do not follow that, those of {}{more}; upgrade them first, \
             or start them again if they were upgraded before the MDMs",
            names.iter().take(LISTED).map(String::as_str).collect::<Vec<_>>().join(", ")
        );
        Err(Refusal::new(ErrorCode::Precondition, format!("pool {}", pool.name), what))
    }

    /// A pool whose groups have doubled, with a volume that is mapped to the SDC.
    pub(super) fn doubled_pool_of(&self, sdc: SdcId) -> Option<&Pool> {
        let mapped = self.mappings.values().filter(|mapping| mapping.sdc == sdc);
        let pools = mapped.filter_map(|mapping| self.pools.get(self.pool_of(mapping.volume)?));
        pools.into_iter().find(|pool| pool.has_doubled())
    }

    fn pool_of(&self, volume: pflex_proto::ids::VolumeId) -> Option<PoolId> {
        self.volumes.get(volume).map(|volume| volume.pool)
    }

    /// Refuses a device whose chunks are sorted into more groups than its pool has. While a recovery lasts the pool may
    /// still get them, by what devices report.
    pub(super) fn is_sorted_by_now(&self, object: &str, pool: &Pool, pg_count: u32) -> Result<(), Refusal> {
        if pg_count <= pool.pg_count || self.is_recovering() {
            return Ok(());
        }
        Err(sorted_too_finely(object, pool, pg_count))
    }
}

/// The refusal of a device that knows more groups of its pool than there are: they never become fewer but by a restore.
pub(super) fn sorted_too_finely(object: &str, pool: &Pool, pg_count: u32) -> Refusal {
    let what = format!(
        "its chunks are sorted into {pg_count} placement groups, pool {} has {}: it comes from after the backup that the \
         cluster was restored from, and its recovery ended without it; remove it, and add it anew and empty",
        pool.name, pool.pg_count
    );
    Refusal::new(ErrorCode::Precondition, object, what)
}

/// The refusal of a process that would look for chunks of a pool in the wrong groups.
pub(super) fn does_not_follow(object: impl Into<String>, pool: &Pool) -> Refusal {
    let what = format!(
        "the placement groups of pool {} have doubled, from {} to {}, and its process does not follow that; upgrade it \
         first",
        pool.name, pool.first_pg_count, pool.pg_count
    );
    Refusal::new(ErrorCode::Precondition, object, what)
}

/// Whether a pool with `count` groups may be given `asked`.
fn may_become(object: &str, count: u32, asked: u32) -> Result<(), Refusal> {
    if asked > MAX_PGS_PER_POOL {
        let what = format!("{asked} placement groups: it has {count}, and {MAX_PGS_PER_POOL} is the most there may be");
        return Err(Refusal::new(ErrorCode::Limit, object, what));
    }
    let twice = count.saturating_mul(2);
    if asked == twice {
        return Ok(());
    }
    let what = if twice > MAX_PGS_PER_POOL {
        format!("{asked} placement groups: it has {count}, the most there may be, and they never become fewer")
    } else {
        format!("{asked} placement groups: it has {count}, which can only double; give {twice}")
    };
    Err(validate::invalid(object, what))
}
