//! Rebuilds: opened when a group of a pool first lacks a copy, followed as groups become whole, finished when all are.
//!
//! No command speaks of them. `follow_rebuilds` runs at the end of each apply and derives everything from the groups that
//! apply has changed, so what is recorded is what is, on every member, and progress costs no log entry of its own.

use std::collections::BTreeMap;

use pflex_proto::ids::{DeviceId, LogTime, PgId, PoolId};

use super::{
    Hold, Outlook, State,
    limits::{MAX_REBUILD_WHY_BYTES, MAX_REBUILDS_KEPT},
    missing::Missing,
    model::{EventPart, JobId, JobState, Moment, RebuildJob},
    rows::cluster::ConfigRow,
};

/// Pools named one by one in an event.
const LISTED: usize = 4;
/// Pools that have a part of an event: one that hits a thousand pools must not be a row of a hundred kilobytes.
const MAX_PARTS: usize = 64;

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
        self.rebuilds_of(pool).next_back().filter(|job| !job.is_finished())
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
        let paused = self.pools.get(pool).is_some_and(|pool| pool.rebuild.paused);
        let mut lost: BTreeMap<String, BTreeMap<Outlook, u32>> = BTreeMap::new();
        let mut unserved: u64 =
            missing.copies.iter().filter(|(id, _)| self.device_alive(**id)).map(|(_, copies)| copies.unserved()).sum();
        if missing.copies.keys().any(|id| !self.device_alive(*id)) {
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
        let mut waits: Vec<String> =
            paused.then(|| "it is paused (`pflex rebuild resume`)".to_owned()).into_iter().collect();
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

    /// Makes the rebuilds say what the running apply made of the groups and devices. `self.sums` must have followed it.
    pub(super) fn follow_rebuilds(&mut self, now: Moment) {
        // Groups that were not whole and are now.
        let mut mended: BTreeMap<PoolId, u64> = BTreeMap::new();
        for (PgId { pool, .. }, before, after) in self.pgs.changes() {
            let done = before.is_some_and(|pg| !pg.is_whole()) && after.is_none_or(|pg| pg.is_whole());
            *mended.entry(pool).or_default() += u64::from(done);
        }
        for (_, before, after) in self.devices.changes() {
            let alive = |row: Option<&super::model::Device>| row.is_some_and(|device| device.alive);
            if alive(before) != alive(after)
                && let Some(pool) = after.and_then(|device| device.pool)
            {
                mended.entry(pool).or_default();
            }
        }
        let part = |kind: &str, pool: &str, what| EventPart { kind: kind.into(), object: format!("pool {pool}"), what };
        let mut news = Vec::new();
        for (pool, done) in mended {
            let Some(row) = self.pools.get(pool) else {
                self.forget_rebuilds(pool);
                continue;
            };
            let name = row.name.clone();
            let open = self.open_rebuild(pool).cloned();
            match (open, self.missing_in(pool)) {
                (None, None) => {}
                (None, Some(missing)) => {
                    let (groups_left, state) = (missing.groups, self.rebuild_state(missing));
                    let job = self.open_job(pool, groups_left, state, now);
                    let what = format!("rebuild {job} of pool {name} begins, {groups_left} groups, {state}");
                    news.push(part("rebuild.begin", &name, what));
                }
                (Some(job), Some(missing)) => {
                    let (groups_left, state) = (missing.groups, self.rebuild_state(missing));
                    self.advance(&job, groups_left, done, state, now);
                }
                (Some(job), None) => {
                    self.advance(&job, 0, done, JobState::Done, now);
                    let took = now.at.get().saturating_sub(job.opened.at.get());
                    let what = format!("rebuild {} of pool {name} is done after {took} ms", job.id);
                    news.push(part("rebuild.done", &name, what));
                }
            }
        }
        self.add_to_event(now, news);
    }

    fn open_job(&mut self, pool: PoolId, groups_left: u32, state: JobState, opened: Moment) -> JobId {
        let mut counters = self.counters();
        counters.job = JobId(counters.job.0 + 1);
        let id = counters.job;
        self.config.put(ConfigRow::Counters(counters));
        self.jobs.put(RebuildJob {
            pool,
            id,
            state,
            groups_left,
            groups_done: 0,
            opened,
            finished: None,
            since: opened.at,
            done_before: 0,
            why: self.why_opened(opened),
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
            while self.rebuilds_of(job.pool).count() > MAX_REBUILDS_KEPT {
                let Some(oldest) = self.rebuilds_of(job.pool).next().map(|job| (job.pool, job.id)) else { return };
                self.jobs.remove(oldest);
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
            more => format!("; and {more} rebuilds more"),
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
            let newest = self.rebuilds_of(job.pool).next_back().map(|job| job.id);
            if !job.is_finished() && newest != Some(id) {
                return wrong("a newer one was begun before it was done");
            }
        }
        for pool in self.pools.keys() {
            let (open, missing) = (self.open_rebuild(pool), self.missing_in(pool));
            match (open, missing) {
                (None, None) => {}
                (Some(job), Some(missing)) => {
                    let (groups, state) = (missing.groups, self.rebuild_state(missing));
                    if (job.groups_left, job.state) != (groups, state) {
                        let told = format!("{} groups, {}", job.groups_left, job.state);
                        return Err(format!("rebuild {}: says {told} of {groups} groups, {state}", job.id));
                    }
                }
                (Some(job), None) => return Err(format!("rebuild {}: pool {pool} is whole", job.id)),
                (None, Some(_)) => return Err(format!("pool {pool} lacks copies and has no rebuild")),
            }
            if self.rebuilds_of(pool).count() > MAX_REBUILDS_KEPT + 1 {
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
            Outlook::Maintenance => {}
            Outlook::NoDomain if *copies == 1 => said.push(format!("{outlook} for 1 copy")),
            Outlook::NoDomain => said.push(format!("{outlook} for {copies} copies")),
            Outlook::Due | Outlook::Held(_) | Outlook::Later(_) | Outlook::Unserved => said.push(outlook.to_string()),
        }
    }
    said.join("; ")
}
