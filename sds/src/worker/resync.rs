//! How fast this device fills other copies: which group may copy its next chunk, and when.
//!
//! Groups ask (`replication::Demand`), this decides by the pool's policy (`RebuildPolicy`): so many chunks at once over
//! all groups, and so many bytes a second from a bucket that may go into debt, because what a chunk costs is known only
//! when it is sent. Groups take turns. A device that serves applications alone is not asked to hurry less: under
//! `favor-app-io` the limits hold only while clients' reads and writes go on here.
//!
//! Without any limit of bytes applications still come first where both wait in one queue, be it that of a disk, of a connection or
//! of this loop: what is there already is served before them, so while they are there only a few chunks are under way at once
//! ([`BESIDE`]), and while requests wait a turn of the loop begins one.

use std::{
    collections::{BTreeSet, HashMap},
    ops::Bound,
    time::Duration,
};

use pflex_proto::{geometry::CHUNK_SIZE, ids::PgId, rebuild::RebuildMode, rebuild::RebuildPolicy};

use crate::replication::{Demand, Time};

/// Without a client's request for this long a device has its time for filling copies.
const QUIET: Duration = Duration::from_millis(500);
/// A bucket holds no more than this time's worth: after a pause nothing rushes.
const BURST: Duration = Duration::from_millis(200);

/// Chunks under way without a limit, while clients' requests are carried out here. Each is 1 MiB that a request may find before it
/// in the queues of two disks and a connection. Four keep them all busy: one is read, one sent, one written, one synced.
const BESIDE: u32 = 4;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Resync {
    policy: RebuildPolicy,
    /// Groups that have a chunk to copy and no permit.
    waiting: BTreeSet<PgId>,
    /// The one that had its turn last.
    last: PgId,
    /// Chunks being copied; only groups that copy some.
    syncing: HashMap<PgId, usize>,
    in_flight: usize,
    /// Bytes that may be sent; below zero: so many were sent too soon.
    credit: f64,
    refilled: Time,
    /// A client's request was carried out since the last look.
    used: bool,
    last_used: Option<Time>,
    /// What the chunks of late have cost on the average.
    cost: Option<f64>,
}

impl Resync {
    pub(super) fn set_policy(&mut self, policy: RebuildPolicy) {
        if self.policy != policy {
            tracing::info!(mode = %policy.mode, paused = policy.paused, rate = policy.bytes_per_second, chunks = policy.concurrency, "copies are filled by a new policy");
            self.policy = policy;
            self.credit = 0.0;
        }
    }

    /// Units of a device with so many that no client gets: they are for copies that lose their place elsewhere.
    pub(super) fn spare_units(&self, of: u32) -> usize {
        (u64::from(of) * u64::from(self.policy.spare_percent) / 100) as usize
    }

    /// A client's read or write was carried out.
    pub(super) fn application(&mut self) {
        self.used = true;
    }

    /// What a group asks for after an event; the last word counts.
    pub(super) fn note(&mut self, pg: PgId, demand: Demand) {
        let before = match demand.syncing {
            0 => self.syncing.remove(&pg),
            chunks => self.syncing.insert(pg, chunks),
        };
        self.in_flight = self.in_flight + demand.syncing - before.unwrap_or(0);
        if demand.wants {
            self.waiting.insert(pg);
        } else {
            self.waiting.remove(&pg);
        }
    }

    /// A chunk was sent, so many bytes of it.
    pub(super) fn sent(&mut self, bytes: u64) {
        self.credit -= bytes as f64;
        let cost = self.cost.get_or_insert(bytes as f64);
        *cost += (bytes as f64 - *cost) / 32.0;
    }

    /// About how many bytes so many chunks will cost: whole chunks until some were sent.
    pub(super) fn estimate(&self, chunks: u64) -> u64 {
        (chunks as f64 * self.cost.unwrap_or(f64::from(CHUNK_SIZE))) as u64
    }

    /// Nothing is being filled: the next time may be quite another.
    pub(super) fn rest(&mut self) {
        self.cost = None;
    }

    /// Whose turn it is, if there is one now; asked again after that group has used it.
    pub(super) fn grant(&mut self, now: Time) -> Option<PgId> {
        let busy = self.serves(now);
        let limited = match self.policy.mode {
            RebuildMode::Unlimited => false,
            RebuildMode::Limit => true,
            RebuildMode::FavorAppIo => busy,
        };
        self.refill(now, limited);
        let most = match (limited, busy) {
            (true, _) => self.policy.concurrency,
            (false, true) => BESIDE,
            (false, false) => RebuildPolicy::MAX_CONCURRENCY,
        };
        let spent = limited && self.policy.bytes_per_second > 0 && self.credit < 0.0;
        if self.policy.paused || spent || self.in_flight >= most as usize {
            return None;
        }
        let after = (Bound::Excluded(self.last), Bound::Unbounded);
        let next = self.waiting.range(after).next().or_else(|| self.waiting.first()).copied()?;
        self.waiting.remove(&next);
        self.last = next;
        Some(next)
    }

    /// Whether clients' requests are carried out here.
    fn serves(&mut self, now: Time) -> bool {
        if std::mem::take(&mut self.used) {
            self.last_used = Some(now);
        }
        self.last_used.is_some_and(|used| now.since(used) < QUIET)
    }

    /// Without a limit no debt is left behind either.
    fn refill(&mut self, now: Time, limited: bool) {
        let passed = now.since(self.refilled).as_secs_f64();
        self.refilled = now;
        let rate = self.policy.bytes_per_second as f64;
        let most = rate * BURST.as_secs_f64();
        let owes = limited && rate > 0.0;
        self.credit = if owes { (self.credit + rate * passed).min(most) } else { self.credit.clamp(0.0, most) };
    }
}

#[cfg(test)]
mod tests {
    use pflex_proto::ids::{PgIndex, PoolId};

    use super::*;

    const CHUNK: u64 = 1 << 20;
    const WANTS: Demand = Demand { syncing: 0, wants: true };

    fn pg(index: u32) -> PgId {
        PgId { pool: PoolId(1), index: PgIndex(index) }
    }

    fn ms(ms: u64) -> Time {
        Time((1_000_000 + ms) * 1_000_000)
    }

    fn with(mode: RebuildMode, mib_per_second: u64, concurrency: u32) -> Resync {
        let mut resync = Resync::default();
        resync.set_policy(RebuildPolicy {
            mode,
            bytes_per_second: mib_per_second << 20,
            concurrency,
            ..RebuildPolicy::default()
        });
        resync
    }

    /// Each group copies a whole chunk at a time, at once; returns the chunks of each.
    fn run(resync: &mut Resync, groups: u32, from: u64, until: u64, used: bool) -> Vec<u32> {
        let mut copied = vec![0; groups as usize];
        (0..groups).for_each(|index| resync.note(pg(index), WANTS));
        for at in from..until {
            if used {
                resync.application();
            }
            for _ in 0..4 {
                let Some(next) = resync.grant(ms(at)) else { break };
                resync.sent(CHUNK);
                copied[next.index.get() as usize] += 1;
                resync.note(next, WANTS);
            }
        }
        copied
    }

    #[test]
    fn a_limit_is_kept_and_groups_take_turns() {
        let mut resync = with(RebuildMode::Limit, 10, 4);
        let copied = run(&mut resync, 5, 0, 10_000, false);
        let total: u32 = copied.iter().sum();
        assert!((98..=104).contains(&total), "10 MiB/s for 10 s: {total}");
        assert!(copied.iter().max().unwrap() - copied.iter().min().unwrap() <= 1, "{copied:?}");
        let after_a_pause: u32 = run(&mut resync, 5, 60_000, 60_100, false).iter().sum();
        assert!(after_a_pause <= 5, "what was not used is not saved up: {after_a_pause}");
    }

    #[test]
    fn applications_come_first_while_they_are_there() {
        let mut resync = with(RebuildMode::FavorAppIo, 10, 1);
        let quiet: u32 = run(&mut resync, 3, 0, 1_000, false).iter().sum();
        assert_eq!(quiet, 4_000, "all there is");
        let busy: u32 = run(&mut resync, 3, 1_000, 3_000, true).iter().sum();
        assert!((18..=24).contains(&busy), "{busy}");
        let still: u32 = run(&mut resync, 3, 3_000, 3_400, false).iter().sum();
        assert!(still <= 6, "they may come back: {still}");
        let quiet: u32 = run(&mut resync, 3, 3_600, 3_700, false).iter().sum();
        assert_eq!(quiet, 400);
        let mut resync = with(RebuildMode::Unlimited, 10, 1);
        assert_eq!(run(&mut resync, 3, 0, 100, true).iter().sum::<u32>(), 400);
    }

    #[test]
    fn no_more_chunks_at_once_than_allowed_however_groups_end() {
        let mut resync = with(RebuildMode::Limit, 0, 2);
        (0..4).for_each(|index| resync.note(pg(index), WANTS));
        let mut granted = Vec::new();
        while let Some(next) = resync.grant(ms(0)) {
            resync.note(next, Demand { syncing: 1, wants: true });
            granted.push(next);
        }
        assert_eq!(granted.len(), 2);
        resync.note(granted[0], Demand::default());
        assert!(resync.grant(ms(1)).is_some(), "its place is free");
        let mut paused = with(RebuildMode::Unlimited, 0, 2);
        paused.set_policy(RebuildPolicy { paused: true, ..RebuildPolicy::default() });
        paused.note(pg(1), WANTS);
        assert_eq!(paused.grant(ms(0)), None);
        paused.set_policy(RebuildPolicy::default());
        assert_eq!(paused.grant(ms(0)), Some(pg(1)));
        assert_eq!(paused.grant(ms(0)), None, "nobody waits");
    }

    #[test]
    fn without_limits_few_chunks_are_in_the_way_of_applications_while_they_are_there() {
        let mut resync = with(RebuildMode::Unlimited, 0, 1);
        (0..100).for_each(|index| resync.note(pg(index), WANTS));
        let mut grant = |at, used| {
            let mut granted = 0;
            if used {
                resync.application();
            }
            while let Some(next) = resync.grant(ms(at)) {
                resync.note(next, Demand { syncing: 1, wants: false });
                granted += 1;
            }
            granted
        };
        assert_eq!(grant(0, true), BESIDE);
        assert_eq!(grant(499, false), 0, "they may come back");
        assert_eq!(grant(500, false), RebuildPolicy::MAX_CONCURRENCY - BESIDE, "all there is");
        (0..100).for_each(|index| resync.note(pg(index), Demand { syncing: 0, wants: true }));
        resync.application();
        assert_eq!(
            std::iter::from_fn(|| resync.grant(ms(600))).count(),
            100,
            "they are not slowed down, only kept few"
        );
    }

    #[test]
    fn without_a_limit_of_bytes_no_debt_grows_that_a_later_limit_would_have_to_wait_out() {
        let mut resync = with(RebuildMode::Limit, 0, 1);
        assert_eq!(run(&mut resync, 2, 0, 1_000, true).iter().sum::<u32>(), 4_000);
        let limit = RebuildPolicy { mode: RebuildMode::Limit, bytes_per_second: 10 << 20, ..RebuildPolicy::default() };
        resync.set_policy(limit);
        let copied: u32 = run(&mut resync, 2, 1_000, 2_000, true).iter().sum();
        assert!((9..=13).contains(&copied), "{copied}");
    }

    #[test]
    fn what_is_left_is_reckoned_from_what_chunks_cost() {
        let mut resync = Resync::default();
        assert_eq!(resync.estimate(3), 3 * CHUNK);
        (0..500).for_each(|_| resync.sent(4096));
        assert_eq!(resync.estimate(100) / 4096, 100);
        resync.rest();
        assert_eq!(resync.estimate(1), CHUNK);
    }
}
