//! Jobs. Rebuilds: opened when a group of a pool first lacks a copy, followed as groups become whole, finished when all are.
//! Drains: as long as devices that are being emptied have copies. Rebalances: as long as other copies move or are planned to.
//!
//! No command speaks of rebuilds and drains. `follow_rebuilds` runs at the end of each apply and derives everything from the
//! groups that apply has changed, so what is recorded is what is, on every member, and progress costs no log entry of its
//! own. Of a rebalance the planner says, beside each move it begins, how much it has not begun.

use std::collections::BTreeMap;

use pflex_proto::ids::{DeviceId, LogTime, PgId, PoolId};

use super::{
    Hold, Outlook, State,
    limits::{MAX_REBUILD_WHY_BYTES, MAX_REBUILDS_KEPT},
    missing::Missing,
    model::{Device, EventPart, JobId, JobKind, JobState, Moment, Pg, RebuildJob},
    rows::cluster::ConfigRow,
};

/// Pools named one by one in an event.
const LISTED: usize = 4;
/// Pools that have a part of an event: one that hits a thousand pools must not be a row of a hundred kilobytes.
const MAX_PARTS: usize = 64;

/// What the running apply has done in a pool.
#[derive(Clone, Copy, Default)]
struct Done {
    /// Groups that were not whole and are now.
    mended: u64,
    /// Groups that have left devices that are being emptied.
    drained: u64,
    /// Groups of which another copy has moved.
    moved: u64,
}

impl Done {
    const fn of(self, kind: JobKind) -> u64 {
        match kind {
            JobKind::Rebuild => self.mended,
            JobKind::Drain => self.drained,
            JobKind::Rebalance => self.moved,
        }
    }
}

impl State {
    /// Every rebuild that is kept, by pool, the oldest first.
    pub fn all_rebuilds(&self) -> impl ExactSizeIterator<Item = &RebuildJob> {
        self.jobs.values()
    }

    /// The rebuilds of a pool, the oldest first.
    pub fn rebuilds_of(&self, pool: PoolId) -> impl DoubleEndedIterator<Item = &RebuildJob> {
        self.jobs.range((pool, JobId(0))..=(pool, JobId(u64::MAX)))
    }

    /// The rebuild of a pool that is not finished.
    pub fn open_rebuild(&self, pool: PoolId) -> Option<&RebuildJob> {
        self.open_job(pool, JobKind::Rebuild)
    }

    /// The job of this kind that is not finished.
    pub fn open_job(&self, pool: PoolId, kind: JobKind) -> Option<&RebuildJob> {
        self.rebuilds_of(pool).rev().find(|job| job.kind == kind).filter(|job| !job.is_finished())
    }

    /// What keeps a job from going on, each reason once.
    pub fn job_waits_for(&self, job: &RebuildJob, now: LogTime) -> Vec<String> {
        let waits = match job.kind {
            JobKind::Rebuild => return self.rebuild_waits_for(job.pool, now),
            JobKind::Drain => self.drain_waits_for(job.pool, &self.places_of(job.pool, now)),
            JobKind::Rebalance => self.balance_waits_for(job.pool, now),
        };
        self.paused_words(job.pool).into_iter().chain(waits).collect()
    }

    fn paused_words(&self, pool: PoolId) -> Option<String> {
        let paused = self.pools.get(pool).is_some_and(|pool| pool.rebuild.paused);
        paused.then(|| "it is paused (`pflex rebuild resume`)".to_owned())
    }

    /// The copies that groups of a pool lack; none when all are whole.
    pub fn missing_in(&self, pool: PoolId) -> Option<&Missing> {
        self.sums.missing.get(&pool)
    }

    /// What keeps missing copies of a pool from being filled, each once.
    pub fn rebuild_waits_for(&self, pool: PoolId, now: LogTime) -> Vec<String> {
        let Some(missing) = self.missing_in(pool) else { return Vec::new() };
        if self.is_recovering() {
            return vec![Hold::Recovery.to_string()];
        }
        let mut lost: BTreeMap<String, BTreeMap<Outlook, u32>> = BTreeMap::new();
        let mut unserved: u64 =
            missing.copies.iter().filter(|(id, _)| self.device_alive(**id)).map(|(_, copies)| copies.unserved()).sum();
        let told =
            |id: &DeviceId| self.devices.get(*id).is_some_and(|row| !row.alive || row.without_room(now).is_some());
        if missing.copies.keys().any(told) {
            let places = self.places_of(pool, now);
            for pg in self.pgs_of(pool) {
                for (device, outlook) in pg.missing().filter_map(|id| Some((id, self.outlook(pg, id, &places)?))) {
                    let told = lost.entry(self.out_of_service_words(device)).or_default();
                    match outlook {
                        Outlook::Unserved => unserved += 1,
                        other => *told.entry(other).or_default() += 1,
                    }
                }
            }
        }
        let mut waits: Vec<String> = self.paused_words(pool).into_iter().collect();
        waits.extend(lost.iter().map(|(who, outlooks)| waits_words(who, outlooks)));
        if unserved > 0 {
            let copies = if unserved == 1 { "1 copy belongs".to_owned() } else { format!("{unserved} copies belong") };
            waits.push(format!("{copies} to groups that nobody serves"));
        }
        waits
    }

    fn device_alive(&self, id: DeviceId) -> bool {
        self.devices.get(id).is_some_and(|device| device.alive)
    }

    /// The server that is gone with all its devices, or the one device.
    fn out_of_service_words(&self, id: DeviceId) -> String {
        let sds = self.devices.get(id).and_then(|device| self.sds.get(device.sds));
        match sds {
            Some(sds) if self.device_alive(id) => format!("device {id} of {} has had no room lately", sds.name),
            Some(sds) if sds.maintenance.is_some() => format!("{} is in maintenance", sds.name),
            Some(sds) if sds.alive => format!("device {id} of {} is out of service", sds.name),
            Some(sds) => format!("{} is DOWN", sds.name),
            None => format!("device {id} is out of service"),
        }
    }

    /// Whether a missing copy can be filled now: its device is in service and its group has a primary.
    fn rebuild_state(&self, missing: &Missing) -> JobState {
        let fillable = |(device, copies): (_, &super::missing::Copies)| {
            copies.served > 0 && self.devices.get(device).is_some_and(|device| device.alive)
        };
        let running = missing.copies.iter().any(|(device, copies)| fillable((*device, copies)));
        if running { JobState::Running } else { JobState::Waiting }
    }

    /// Groups that a job of this kind has to do with now, and whether it gets on; none: there is nothing to do.
    fn work_left(&self, pool: PoolId, kind: JobKind) -> Option<(u32, JobState)> {
        let state = |runs| if runs { JobState::Running } else { JobState::Waiting };
        match kind {
            JobKind::Rebuild => {
                let missing = self.missing_in(pool)?;
                Some((missing.groups, self.rebuild_state(missing)))
            }
            JobKind::Drain => {
                let left = self.pgs_of(pool).filter(|pg| self.is_on_draining(pg)).count();
                let runs = self.moving_in(pool).any(|(device, _)| self.is_draining(device));
                (left > 0).then_some((u32::try_from(left).unwrap_or(u32::MAX), state(runs)))
            }
            JobKind::Rebalance => {
                let planned = self.open_job(pool, kind).map_or(0, |job| job.planned);
                let moving = self.moving_in(pool).filter(|(device, _)| !self.is_draining(*device));
                let moving: u32 = moving.map(|(_, groups)| groups).sum();
                (planned > 0 || moving > 0).then_some((planned.saturating_add(moving), state(moving > 0)))
            }
        }
    }

    fn is_on_draining(&self, pg: &Pg) -> bool {
        let draining = self.sums.draining.get(&pg.id.pool);
        draining.is_some_and(|devices| pg.replicas.iter().any(|device| devices.contains(device)))
    }

    /// Makes the rebuilds say what the running apply made of the groups and devices. `self.sums` must have followed it.
    pub(super) fn follow_rebuilds(&mut self, now: Moment) {
        let mut hit: BTreeMap<PoolId, Done> = BTreeMap::new();
        for (PgId { pool, .. }, before, after) in self.pgs.changes() {
            let done = hit.entry(pool).or_default();
            let mended = before.is_some_and(|pg| !pg.is_whole()) && after.is_none_or(|pg| pg.is_whole());
            done.mended += u64::from(mended);
            let drains = |pg: &Pg| self.is_on_draining(pg);
            done.drained += u64::from(before.is_some_and(drains) && !after.is_some_and(drains));
            let left = before.and_then(|pg| pg.leaving).filter(|device| !self.is_draining(*device));
            let moved = left.is_some_and(|device| after.is_some_and(|pg| !pg.replicas.contains(&device)));
            done.moved += u64::from(moved);
        }
        for (_, before, after) in self.devices.changes() {
            let told = |row: Option<&Device>| row.map(|row| (row.alive, row.draining.is_some(), row.pool, row.owed));
            if told(before) != told(after) {
                for pool in [before, after].into_iter().filter_map(|device| device?.pool) {
                    hit.entry(pool).or_default();
                }
            }
        }
        for ((pool, _), ..) in self.jobs.changes() {
            hit.entry(pool).or_default();
        }
        let mut news = Vec::new();
        for (pool, done) in hit {
            let Some(name) = self.pools.get(pool).map(|row| row.name.clone()) else {
                self.forget_rebuilds(pool);
                continue;
            };
            self.plan_what_is_owed(pool, now);
            for kind in JobKind::ALL {
                news.extend(self.follow_job(pool, &name, kind, done.of(kind), now));
            }
        }
        self.add_to_event(now, news);
    }

    /// Opens, advances or ends a job; what there is to tell of it.
    fn follow_job(&mut self, pool: PoolId, name: &str, kind: JobKind, done: u64, now: Moment) -> Option<EventPart> {
        let part =
            |what: &str, told| EventPart { kind: format!("{kind}.{what}"), object: format!("pool {name}"), what: told };
        let open = self.open_job(pool, kind).cloned();
        match (open, self.work_left(pool, kind)) {
            (None, None) => None,
            (None, Some((groups_left, state))) => {
                let why = self.why_opened(now);
                let job = self.begin_job(pool, kind, (groups_left, state), now, why);
                Some(part("begin", format!("{kind} {job} of pool {name} begins, {groups_left} groups, {state}")))
            }
            (Some(job), Some((groups_left, state))) => {
                self.advance(&job, groups_left, done, state, now);
                None
            }
            (Some(job), None) => {
                self.advance(&job, 0, done, JobState::Done, now);
                if kind == JobKind::Rebalance {
                    self.owes_nothing(pool, Device::is_here);
                }
                let took = now.at.get().saturating_sub(job.opened.at.get());
                Some(part("done", format!("{kind} {} of pool {name} is done after {took} ms", job.id)))
            }
        }
    }

    /// Devices in service to which their shares of a pool come back now.
    fn owed_in(&self, pool: PoolId) -> impl Iterator<Item = &Device> {
        let holds = self.pools.get(pool).is_some_and(|pool| pool.used) && !self.is_recovering();
        let devices = self.devices.values().filter(move |device| holds && device.pool == Some(pool));
        devices.filter(|device| device.owed && device.is_here())
    }

    /// What left for a protected maintenance comes back: as many copies as shares say, so the planner is asked how many. A
    /// rebalance that was planned without a device that has just come goes on until it has been planned with it.
    fn plan_what_is_owed(&mut self, pool: PoolId, now: Moment) {
        if self.owed_in(pool).next().is_some() && self.open_job(pool, JobKind::Rebalance).is_none() {
            self.begin_rebalance(pool, 1, now, "a protected maintenance is over");
            return;
        }
        let is = |row: Option<&Device>| row.is_some_and(|row| row.owed && row.is_here() && row.pool == Some(pool));
        let came = self.devices.changes().any(|(_, before, after)| is(after) && !is(before));
        if let Some(job) = self.open_job(pool, JobKind::Rebalance).filter(|_| came).map(|job| (pool, job.id)) {
            self.jobs.update(job, |job| job.planned = job.planned.max(1));
        }
    }

    /// These devices of a pool have what was to come back to them, or are not to have it.
    pub(super) fn owes_nothing(&mut self, pool: PoolId, which: impl Fn(&Device) -> bool) {
        let owed = self.devices.values().filter(|device| device.owed && device.pool == Some(pool) && which(device));
        let owed: Vec<_> = owed.map(|device| device.id).collect();
        owed.into_iter().for_each(|id| self.devices.update(id, |device| device.owed = false));
    }

    /// What a rebalance waits for: what its planner looks at.
    fn balance_waits_for(&self, pool: PoolId, now: LogTime) -> Vec<String> {
        let mut waits: Vec<String> = self.places_of(pool, now).hold().iter().map(ToString::to_string).collect();
        if self.missing_in(pool).is_some() {
            waits.push("copies that are missing are filled first".to_owned());
        }
        if self.open_job(pool, JobKind::Drain).is_some_and(|job| job.state == JobState::Running) {
            waits.push("devices that are drained go first".to_owned());
        }
        for full in self.places_of(pool, now).without_room {
            waits.push(format!("device {full} has had no room lately, and is given nothing for a while"));
        }
        if self.candidates(pool).len() != self.candidates_in_the_end(pool).len() {
            waits.push("a server of the pool is in maintenance".to_owned());
        }
        waits
    }

    /// A rebalance of so many moves, which are all still to begin.
    pub(super) fn begin_rebalance(&mut self, pool: PoolId, planned: u32, opened: Moment, why: &str) {
        self.leave_alone_no_more(pool);
        let id = self.begin_job(pool, JobKind::Rebalance, (planned, JobState::Waiting), opened, why.to_owned());
        self.jobs.update((pool, id), |job| job.planned = planned);
    }

    /// Its copies may be evened out by themselves again.
    pub(super) fn leave_alone_no_more(&mut self, pool: PoolId) {
        if self.pools.get(pool).is_some_and(|pool| pool.left_alone) {
            self.pools.update(pool, |pool| pool.left_alone = false);
        }
    }

    fn begin_job(
        &mut self,
        pool: PoolId,
        kind: JobKind,
        (groups_left, state): (u32, JobState),
        opened: Moment,
        why: String,
    ) -> JobId {
        let mut counters = self.counters();
        counters.job = JobId(counters.job.0 + 1);
        let id = counters.job;
        self.config.put(ConfigRow::Counters(counters));
        self.jobs.put(RebuildJob {
            pool,
            id,
            kind,
            state,
            groups_left,
            planned: 0,
            groups_done: 0,
            opened,
            finished: None,
            since: opened.at,
            done_before: 0,
            why,
        });
        id
    }

    /// What the command did that opened a rebuild: the first part of its event, which may be gone when somebody asks.
    fn why_opened(&self, opened: Moment) -> String {
        let Some(event) = self.events.get(opened.revision) else { return String::new() };
        let mut why = match event.parts.as_slice() {
            [] => format!("{}: {}", event.object, event.what.split("; ").next().unwrap_or_default()),
            parts => {
                let said = parts.iter().take(LISTED).map(|part| format!("{}: {}", part.object, part.what));
                said.collect::<Vec<_>>().join("; ")
            }
        };
        why.truncate(why.floor_char_boundary(MAX_REBUILD_WHY_BYTES));
        why
    }

    fn advance(&mut self, job: &RebuildJob, groups_left: u32, done: u64, state: JobState, now: Moment) {
        self.jobs.update((job.pool, job.id), |job| {
            job.groups_left = groups_left;
            job.groups_done += done;
            if job.state != state {
                (job.state, job.since, job.done_before) = (state, now.at, job.groups_done);
            }
            if state == JobState::Done {
                job.finished = Some(now);
            }
        });
        if state == JobState::Done {
            let finished = |state: &Self| {
                let jobs = state.rebuilds_of(job.pool).filter(|job| job.is_finished());
                jobs.map(|job| (job.pool, job.id)).collect::<Vec<_>>()
            };
            let all = finished(self);
            for oldest in &all[..all.len().saturating_sub(MAX_REBUILDS_KEPT)] {
                self.jobs.remove(*oldest);
            }
        }
    }

    /// Its pool is gone.
    fn forget_rebuilds(&mut self, pool: PoolId) {
        let gone: Vec<_> = self.rebuilds_of(pool).map(|job| (job.pool, job.id)).collect();
        gone.into_iter().for_each(|key| drop(self.jobs.remove(key)));
    }

    /// Says in the command's event which rebuilds it began and ended: a command has one event, and a part of it for each
    /// pool, so that whoever asks for the events of a pool finds it.
    fn add_to_event(&mut self, now: Moment, mut news: Vec<EventPart>) {
        if news.is_empty() || !self.events.contains(now.revision) {
            return;
        }
        let shown = news.iter().take(LISTED).map(|part| part.what.clone()).collect::<Vec<_>>().join("; ");
        let more = match news.len().saturating_sub(LISTED) {
            0 => String::new(),
            more => format!("; and {more} jobs more"),
        };
        news.truncate(MAX_PARTS);
        self.events.update(now.revision, |event| {
            event.what = format!("{}; {shown}{more}", event.what);
            event.parts.extend(news);
        });
    }

    /// What is recorded of rebuilds is what the groups say.
    pub(super) fn check_rebuilds(&self) -> Result<(), String> {
        for job in self.jobs.values() {
            let id = job.id;
            let wrong = |what: &str| Err(format!("rebuild {id} of pool {}: {what}", job.pool));
            if !self.pools.contains(job.pool) {
                return wrong("there is no such pool");
            }
            if id > self.counters().job {
                return wrong("its number was never given out");
            }
            if job.is_finished() != job.finished.is_some() || (job.is_finished() && job.groups_left > 0) {
                return wrong("it is half finished");
            }
            if job.done_before > job.groups_done {
                return wrong("it has done less than before");
            }
            if job.planned > 0 && (job.kind != JobKind::Rebalance || job.is_finished()) {
                return wrong("it has plans and is no rebalance that goes on");
            }
            let newest = self.rebuilds_of(job.pool).rfind(|other| other.kind == job.kind).map(|job| job.id);
            if !job.is_finished() && newest != Some(id) {
                return wrong("a newer one was begun before it was done");
            }
        }
        for pool in self.pools.keys() {
            for kind in JobKind::ALL {
                match (self.open_job(pool, kind), self.work_left(pool, kind)) {
                    (None, None) => {}
                    (Some(job), Some((groups, state))) => {
                        if (job.groups_left, job.state) != (groups, state) {
                            let told = format!("{} groups, {}", job.groups_left, job.state);
                            return Err(format!("{kind} {}: says {told} of {groups} groups, {state}", job.id));
                        }
                    }
                    (Some(job), None) if kind == JobKind::Rebuild => {
                        return Err(format!("rebuild {}: pool {pool} is whole", job.id));
                    }
                    (Some(job), None) => return Err(format!("{kind} {}: pool {pool} has nothing to move", job.id)),
                    (None, Some(_)) if kind == JobKind::Rebuild => {
                        return Err(format!("pool {pool} lacks copies and has no rebuild"));
                    }
                    (None, Some(_)) => return Err(format!("pool {pool} has copies to move and no {kind}")),
                }
            }
            if self.rebuilds_of(pool).filter(|job| job.is_finished()).count() > MAX_REBUILDS_KEPT {
                return Err(format!("pool {pool} keeps too many rebuilds"));
            }
        }
        Ok(())
    }
}

/// Who is out of service, and what becomes of the copies there: the nearest first, and the longest wait of those that wait.
fn waits_words(who: &str, outlooks: &BTreeMap<Outlook, u32>) -> String {
    let mut said = vec![who.to_owned()];
    let longest = outlooks.keys().rfind(|outlook| matches!(outlook, Outlook::Later(_)));
    for (outlook, copies) in outlooks {
        match outlook {
            Outlook::Later(_) if Some(outlook) != longest => {}
            // Said by whom it is about.
            Outlook::Maintenance | Outlook::NoRoom => {}
            Outlook::NoDomain if *copies == 1 => said.push(format!("{outlook} for 1 copy")),
            Outlook::NoDomain => said.push(format!("{outlook} for {copies} copies")),
            Outlook::Due | Outlook::Held(_) | Outlook::Later(_) | Outlook::Unserved => said.push(outlook.to_string()),
        }
    }
    said.join("; ")
}
