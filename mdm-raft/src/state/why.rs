//! Why an object is in the state it is in: the fault, rule or limit behind it, with the command that made it so.
//!
//! Everything here is derived from rows; nothing is guessed. What has no command behind it says so.

use std::collections::BTreeMap;

use pflex_proto::ids::{DeviceId, LogTime, PgId, PgIndex, PoolId, Revision, SdsId};

use super::{
    Outlook, PgState, State,
    model::{Component, Device, JobKind, Kind, Pg, Pool, Sdc, Sds, Told, Volume},
};

/// One reason.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cause {
    /// A sentence.
    pub what: String,
    /// The command that made it so, if one did.
    pub revision: Option<Revision>,
}

/// The state of an object and what is behind it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Explanation {
    /// As `noun name`.
    pub object: String,
    /// One or two words.
    pub state: String,
    /// The most important first.
    pub causes: Vec<Cause>,
}

/// Groups listed one by one; more of them are counted.
const LISTED: usize = 8;

fn says(what: impl Into<String>) -> Cause {
    Cause { what: what.into(), revision: None }
}

fn by(what: impl Into<String>, revision: Revision) -> Cause {
    Cause { what: what.into(), revision: Some(revision).filter(|revision| revision.get() != 0) }
}

impl State {
    /// Explains the objects that `words` name: `noun name`, or a name alone, which may fit several.
    pub fn why(&self, words: &str) -> Vec<Explanation> {
        self.why_at(words, self.log_time())
    }

    /// The same, with waits reckoned from `now`, which may be well after the last command.
    pub fn why_at(&self, words: &str, now: LogTime) -> Vec<Explanation> {
        let (noun, name) = match words.trim().split_once(char::is_whitespace) {
            Some((noun, name)) => (Some(noun), name.trim()),
            None => (None, words.trim()),
        };
        let asks = |kind: &str| noun.is_none_or(|noun| noun == kind);
        let mut found = Vec::new();
        if asks("cluster") && name == "cluster" {
            found.push(self.why_cluster());
        }
        if asks("volume") {
            found.extend(self.volume_by_name(name).map(|volume| self.why_volume(volume)));
        }
        if asks("pool") {
            found.extend(self.pool_by_name(name).map(|pool| self.why_pool(pool, now)));
        }
        if asks("sds") {
            found.extend(self.sds_by_name(name).map(|sds| self.why_sds(sds, now)));
        }
        if asks("sdc") {
            found.extend(self.sdc_by_name(name).map(|sdc| self.why_sdc(sdc)));
        }
        if asks("domain") {
            found.extend(self.domain_by_name(name).map(|domain| Explanation {
                object: format!("domain {name}"),
                state: "in use".to_owned(),
                causes: self.pools.values().filter(|p| p.domain == domain.id).map(|p| self.pool_cause(p)).collect(),
            }));
        }
        if asks("fault-set") {
            found.extend(self.fault_set_by_name(name).map(|set| Explanation {
                object: format!("fault-set {name}"),
                state: if self.sds_in(set.id).next().is_some() { "in use" } else { "empty" }.to_owned(),
                causes: self.sds_in(set.id).map(|sds| self.sds_cause(sds)).collect(),
            }));
        }
        if noun == Some("device")
            && let Some(device) = name.parse().ok().and_then(|id| self.device(DeviceId(id)))
        {
            found.push(self.why_device(device, now));
        }
        if asks("pg")
            && let Some(pg) = pg_id(name).and_then(|id| self.pg(id))
        {
            found.push(self.why_pg(pg, now));
        }
        if asks("mdm") || asks("mgmt") {
            let named = self.all_nodes().filter(|node| node.name == name && asks(&node.component.kind.to_string()));
            found.extend(named.map(|node| self.why_component(node.component, &node.name)));
        }
        found
    }

    fn why_cluster(&self) -> Explanation {
        let mut causes: Vec<Cause> = self.recovery_causes();
        causes.extend(self.frozen_causes());
        let lost = self.sds.values().filter(|sds| !sds.alive && sds.registration.is_some()).map(|s| self.sds_cause(s));
        causes.extend(lost);
        causes.extend(self.pools.values().filter(|pool| self.pool_state(pool) != "ok").map(|p| self.pool_cause(p)));
        let state = match self.pools.values().map(|pool| self.pool_state(pool)).max_by_key(|state| severity(state)) {
            _ if self.is_recovering() => "recovering",
            Some("ok") | None if causes.is_empty() => "ok",
            Some("ok") | None => "degraded",
            Some(state) => state,
        };
        if causes.is_empty() {
            causes.push(says("every server that ever registered is alive and every group has all its copies"));
        }
        Explanation { object: "cluster".to_owned(), state: state.to_owned(), causes }
    }

    /// S19: what a restored cluster waits for.
    fn recovery_causes(&self) -> Vec<Cause> {
        let restored = self.last_event("cluster", &["cluster.restore"]).map_or(Revision(0), |event| event.revision);
        let mut causes = Vec::new();
        if self.is_recovering() {
            let what = "it was restored from a backup: what the backup calls in sync may have left its group since, so no \
                        group is served until every SDS has reported and `pflex cluster end-recovery` was said (S19)";
            causes.push(by(what, restored));
        }
        causes.extend(
            self.awaited_sds()
                .into_iter()
                .map(|sds| by(format!("{} not reported since the restore", self.what_is_awaited(sds)), restored)),
        );
        let unknown: Vec<String> = self.unknown_groups().map(|row| row.pg.to_string()).take(LISTED).collect();
        if !unknown.is_empty() {
            let what = format!("groups {} are on devices and not in the backup; their chunks stay", unknown.join(", "));
            causes.push(says(what));
        }
        causes
    }

    /// S12: promotions by force that are on their way.
    fn frozen_causes(&self) -> Vec<Cause> {
        let frozen =
            self.pools.values().flat_map(|pool| pool.frozen.iter().map(move |(index, freeze)| (pool, index, freeze)));
        frozen
            .map(|(pool, index, freeze)| {
                let what = format!(
                    "pg {}.{index} is frozen: its copy on device {} is being promoted by force, and nobody gets a token for \
                     pool {} meanwhile (S12)",
                    pool.id, freeze.device, pool.name
                );
                by(what, freeze.at)
            })
            .collect()
    }

    /// What a restore makes of a group (S19).
    fn reported_causes(&self, pg: &Pg) -> Vec<Cause> {
        let Some(choice) = self.choice_for(pg.id) else { return Vec::new() };
        let known = &choice.newest;
        let list = |devices: &mut dyn Iterator<Item = DeviceId>| {
            devices.map(|device| device.to_string()).collect::<Vec<_>>().join(", ")
        };
        let mut causes = vec![says(format!(
            "the newest configuration known from before the restore is epoch {} of generation {}, in sync on devices {}",
            known.epoch,
            known.generation,
            list(&mut known.in_sync.iter().map(|member| member.device))
        ))];
        if !choice.silent.is_empty() {
            let devices = list(&mut choice.silent.iter().map(|member| member.device));
            causes.push(says(format!("of those, devices {devices} have not reported since the restore")));
        }
        if !choice.emptied.is_empty() {
            let devices = list(&mut choice.emptied.iter().map(|member| member.device));
            causes.push(says(format!("of those, devices {devices} have no copy any more and never count again (S13)")));
        }
        causes
    }

    fn why_volume(&self, volume: &Volume) -> Explanation {
        let mut causes = Vec::new();
        let mut state = "ok";
        match self.pool(volume.pool) {
            Some(pool) => {
                state = self.pool_state(pool);
                causes.push(self.pool_cause(pool));
                causes.extend(self.worst_groups(pool));
            }
            None => causes.push(says("its pool is gone")),
        }
        let mapped: Vec<String> = self
            .mappings_of(volume.id)
            .filter_map(|mapping| self.sdc(mapping.sdc).map(|sdc| sdc.name.clone()))
            .collect();
        causes.push(match mapped.as_slice() {
            [] => says("it is mapped to no SDC, so nobody can use it; `pflex volume map` changes that"),
            names => says(format!("it is mapped to {}", names.join(", "))),
        });
        causes.extend(self.last_deed(&format!("volume {}", volume.name)));
        Explanation { object: format!("volume {}", volume.name), state: state.to_owned(), causes }
    }

    fn why_pool(&self, pool: &Pool, now: LogTime) -> Explanation {
        let mut causes = vec![self.pool_cause(pool)];
        for job in JobKind::ALL.into_iter().filter_map(|kind| self.open_job(pool.id, kind)) {
            let waits = self.job_waits_for(job, now).into_iter().map(|wait| format!(": {wait}"));
            let what = format!("its {} {} is {}{}", job.kind, job.id, job.state, waits.collect::<String>());
            causes.push(by(what, job.opened.revision));
        }
        if pool.left_alone {
            causes.push(says(
                "an operator ended its rebalance, so none begins by itself; `pflex pool rebalance`, or a device that comes, \
                 changes that",
            ));
        }
        causes.extend(self.worst_groups(pool));
        if let Some(scrub) = &pool.scrub {
            let how = match scrub.ended {
                None => "is under way".to_owned(),
                Some(_) => format!(
                    "compared {} chunks and found {} unreadable blocks, {} sound copies that differed and {} chunks that \
                     no copy can read in full",
                    scrub.found.chunks, scrub.found.bad_blocks, scrub.found.mismatches, scrub.found.unreadable_chunks
                ),
            };
            let moment = scrub.ended.unwrap_or(scrub.started);
            causes.push(by(format!("scrub {} {how}", scrub.pass), moment.revision));
        }
        let usage = self.usage_of(pool);
        causes.push(says(format!(
            "its volumes may add up to {} bytes (the over-commit limit) and have {}",
            usage.limit(),
            usage.provisioned
        )));
        Explanation { object: format!("pool {}", pool.name), state: self.pool_state(pool).to_owned(), causes }
    }

    fn pool_state(&self, pool: &Pool) -> &'static str {
        let usage = self.usage_of(pool);
        if usage.unavailable > 0 {
            "unavailable"
        } else if usage.unassigned > 0 {
            "unplaced"
        } else if usage.degraded > 0 {
            "degraded"
        } else {
            "ok"
        }
    }

    fn pool_cause(&self, pool: &Pool) -> Cause {
        let usage = self.usage_of(pool);
        let (name, all) = (&pool.name, pool.pg_count);
        match self.pool_state(pool) {
            "unavailable" => says(format!(
                "{} of {all} groups of pool {name} have no live in-sync copy; a stale copy is never promoted (I3)",
                usage.unavailable
            )),
            "unplaced" => says(format!(
                "pool {name} has no place: its {} copies need as many SDSs (or fault sets) with a device in service (I5)",
                pool.copies
            )),
            "degraded" => says(format!(
                "{} of {all} groups of pool {name} serve with fewer copies than {}",
                usage.degraded, pool.copies
            )),
            _ => says(format!("all {all} groups of pool {name} have {} live in-sync copies", pool.copies)),
        }
    }

    /// Groups that are not well, by the command that made them so: the newest first.
    fn worst_groups(&self, pool: &Pool) -> Vec<Cause> {
        let mut by_command: BTreeMap<Revision, Vec<&Pg>> = BTreeMap::new();
        for pg in self.pgs_of(pool.id).filter(|pg| self.pg_state(pg) != PgState::Active) {
            by_command.entry(pg.since).or_default().push(pg);
        }
        let mut causes: Vec<Cause> = by_command
            .into_iter()
            .rev()
            .map(|(revision, groups)| {
                let ids = groups.iter().take(LISTED).map(|pg| pg.id.to_string()).collect::<Vec<_>>().join(", ");
                let more = groups.len().saturating_sub(LISTED);
                let more = if more > 0 { format!(" and {more} more") } else { String::new() };
                let why = self.event(revision).map(|e| format!(": {}: {}", e.object, e.what)).unwrap_or_default();
                by(format!("groups {ids}{more} changed last at revision {revision}{why}"), revision)
            })
            .collect();
        causes.truncate(LISTED);
        causes
    }

    fn why_sds(&self, sds: &Sds, now: LogTime) -> Explanation {
        let state = match (&sds.registration, sds.alive) {
            _ if sds.maintenance.is_some() => "in maintenance",
            _ if sds.is_preparing() => "being prepared for maintenance",
            (Some(_), true) if self.is_sds_draining(sds.id) => {
                match self.devices_of(sds.id).any(|d| self.copies_on(d.id) > 0) {
                    true => "being drained",
                    false => "drained",
                }
            }
            (None, _) => "never seen",
            (Some(_), true) => "alive",
            (Some(_), false) => "lost",
        };
        let mut causes = vec![self.sds_cause(sds)];
        causes.extend(sds.protected.filter(|_| sds.is_preparing()).map(|since| {
            let what = "all its copies move elsewhere, and then it is in maintenance (protected); `pflex sds maintenance \
                        exit` ends that";
            by(what, since.revision)
        }));
        causes.extend(sds.maintenance.map(|since| {
            let what = "it is in maintenance: it leads no group that another can lead, no copies are placed on it, and those \
                        it has keep their places while it is away; `pflex sds maintenance exit` ends that";
            by(what, since.revision)
        }));
        causes.extend(self.devices_of(sds.id).flat_map(|device| self.drain_causes(device, now)));
        causes.extend(self.flapping(Component { kind: Kind::Sds, id: sds.id.get() }));
        if self.awaited_sds().contains(&sds.id) {
            causes.insert(
                0,
                says(format!(
                    "{} not reported since the cluster was restored from a backup",
                    self.what_is_awaited(sds.id)
                )),
            );
        }
        causes.extend(self.devices_of(sds.id).map(|device| self.device_cause(device)));
        causes.extend(self.last_deed(&format!("sds {}", sds.name)));
        Explanation { object: format!("sds {}", sds.name), state: state.to_owned(), causes }
    }

    fn sds_cause(&self, sds: &Sds) -> Cause {
        let name = &sds.name;
        let Some(registration) = &sds.registration else {
            return says(format!("sds {name} was created and has never registered; is it started with this name?"));
        };
        let component = Component { kind: Kind::Sds, id: sds.id.get() };
        let health = self.health_of(component).map(|health| health.why.clone()).unwrap_or_default();
        let last = self.last_event(&format!("sds {name}"), &["sds.lost", "sds.return", "component.register"]);
        let revision = last.map_or(Revision(0), |event| event.revision);
        if sds.alive {
            by(format!("sds {name} is heard (process {}): {health}", registration.process), revision)
        } else {
            let planned = sds.maintenance.map_or("", |_| "in maintenance and ");
            by(format!("sds {name} is {planned}lost: {health}"), revision)
        }
    }

    fn why_device(&self, device: &Device, now: LogTime) -> Explanation {
        let mut causes = vec![self.device_cause(device)];
        causes.extend(self.drain_causes(device, now));
        if let Some(until) = self.device_kept_out(device.id, self.log_time()).filter(|_| !device.alive) {
            let losses = device.losses.counts(self.log_time())[1];
            causes.push(says(format!(
                "it was lost {losses} times within an hour and is kept out until log time {until} (S23)"
            )));
        }
        if let Some(until) = device.without_room(now) {
            causes.push(says(format!("it had no room for a copy, and is given none until log time {until}")));
        }
        causes.extend(device.slow.as_ref().map(|why| says(format!("it is slow: {why}"))));
        if let Some(faults) = &device.faults {
            causes.push(says(format!("counted in its life {}: {}", faults.incarnation, faults.words())));
        }
        let (mut in_sync, mut joining) = (0, 0);
        let places = device.pool.map(|pool| self.places_of(pool, now));
        let mut outlooks: BTreeMap<Outlook, u32> = BTreeMap::new();
        for pg in self.pgs.values().filter(|pg| pg.replicas.contains(&device.id)) {
            match pg.config.member(device.id) {
                Some(_) => in_sync += 1,
                None => joining += 1,
            }
            if let Some(outlook) = places.as_ref().and_then(|places| self.outlook(pg, device.id, places)) {
                *outlooks.entry(outlook).or_default() += 1;
            }
        }
        causes
            .push(says(format!("{in_sync} groups have an in-sync copy on it; {joining} copies on it are not in sync")));
        causes.extend(outlooks.iter().map(|(outlook, copies)| match copies {
            1 => says(format!("of 1 copy on it: {outlook}")),
            copies => says(format!("of {copies} copies on it: {outlook}")),
        }));
        causes.extend(self.sds(device.sds).filter(|sds| !sds.alive).map(|sds| self.sds_cause(sds)));
        let state = if device.alive { "in service" } else { "out of service" };
        Explanation { object: format!("device {}", device.id), state: state.to_owned(), causes }
    }

    /// That a device is being emptied, and what that waits for.
    fn drain_causes(&self, device: &Device, now: LogTime) -> Vec<Cause> {
        let Some(since) = device.draining else {
            let what = "its share of the pool comes back once it is in service: a protected maintenance is over";
            return device.owed.then(|| says(what.to_owned())).into_iter().collect();
        };
        let left = self.copies_on(device.id);
        let what = match left {
            0 if device.lent => format!("device {} is empty until the protected maintenance is over", device.id),
            0 => format!("device {} is drained and empty: it may be removed", device.id),
            left => format!(
                "device {} is being drained: it gets no copies, and {left} of its copies are still to move",
                device.id
            ),
        };
        let mut causes = vec![by(what, since.revision)];
        let waits = device.pool.filter(|_| left > 0).map(|pool| self.drain_waits_for(pool, &self.places_of(pool, now)));
        causes.extend(waits.into_iter().flatten().map(says));
        causes
    }

    fn device_cause(&self, device: &Device) -> Cause {
        let sds = self.sds(device.sds).map_or_else(|| device.sds.to_string(), |sds| sds.name.clone());
        if device.alive {
            return says(format!("device {} ({}) of sds {sds} is in service", device.id, device.path));
        }
        let last = self.last_event(&format!("sds {sds}"), &["device.lost", "sds.lost", "component.register"]);
        let why = last.map(|event| format!(": {}", event.what)).unwrap_or_default();
        by(
            format!("device {} ({}) of sds {sds} is out of service{why}", device.id, device.path),
            last.map_or(Revision(0), |event| event.revision),
        )
    }

    fn why_pg(&self, pg: &Pg, now: LogTime) -> Explanation {
        let places = self.places_of(pg.id.pool, now);
        let state = match self.pg_state(pg) {
            PgState::Active => "active",
            PgState::Degraded => "degraded",
            PgState::Unavailable => "unavailable",
        };
        let config = &pg.config;
        let event = self.event(pg.since).map(|e| format!(": {}: {}", e.object, e.what)).unwrap_or_default();
        let mut causes =
            vec![by(format!("it has its epoch {} since revision {}{event}", config.epoch, pg.since), pg.since)];
        if let Some(freeze) = self.freeze_of(pg.id) {
            let what = format!("it is frozen: its copy on device {} is being promoted by force (S12)", freeze.device);
            causes.push(by(what, freeze.at));
        }
        if !pg.is_activated() {
            let others = pg.fallback().map(|member| member.device.to_string()).collect::<Vec<_>>().join(", ");
            let what = "its primary has answered nothing in this epoch yet";
            causes.push(by(
                format!("{what}: the copy on device {others} has everything, too, and may still be chosen (S11)"),
                pg.since,
            ));
        }
        if pg.forced {
            causes.push(by(
                "its copy was promoted by force: what only earlier in-sync copies had is lost (S12)",
                pg.since,
            ));
        }
        causes.extend(self.reported_causes(pg));
        for device in &pg.replicas {
            let member = config.member(*device);
            let role = match member {
                Some(_) if config.primary == Some(*device) => "the primary",
                Some(_) if pg.forgot.contains(device) => {
                    "in sync but restarted: it waits for another copy, which may still hold writes that were not flushed \
                     (S14); `pflex pg force-promote` gives those up"
                }
                None if pg.is_complete_on(*device) => {
                    "not in sync, and has everything until the present epoch is activated"
                }
                None if pg.newcomer() == Some(*device) => "being filled: a copy moves there",
                Some(member) if self.is_alive(member) => "in sync",
                Some(_) => "in sync, and lost: it holds writes that others may miss",
                None => "not in sync: it misses writes until it has joined again",
            };
            let device_cause = self.device(*device).map(|device| self.device_cause(device));
            let Cause { what, revision } = device_cause.unwrap_or_else(|| says("it is gone"));
            let outlook = self.outlook(pg, *device, &places).map(|outlook| format!("; {outlook}")).unwrap_or_default();
            let moves = match (pg.leaving, pg.newcomer()) {
                (Some(leaving), Some(to)) if leaving == *device => format!(", and moves to device {to}"),
                _ => String::new(),
            };
            causes.push(Cause {
                what: format!("its copy on device {device} is {role}{moves}; {what}{outlook}"),
                revision,
            });
        }
        Explanation { object: format!("pg {}", pg.id), state: state.to_owned(), causes }
    }

    fn why_sdc(&self, sdc: &Sdc) -> Explanation {
        let component = Component { kind: Kind::Sdc, id: sdc.id.get() };
        let mut explanation = self.why_component(component, &sdc.name);
        if sdc.registration.is_none() {
            explanation.state = "never seen".to_owned();
            explanation
                .causes
                .insert(0, says("it was created and has never registered; is it started with this name?"));
        }
        let volumes = self.mappings.values().filter(|mapping| mapping.sdc == sdc.id).count();
        explanation.causes.push(says(format!("{volumes} volumes are mapped to it")));
        explanation
    }

    fn why_component(&self, component: Component, name: &str) -> Explanation {
        let object = format!("{} {name}", component.kind);
        let health = self.health_of(component);
        let mut causes: Vec<Cause> =
            health.map(|h| by(format!("it is {}: {}", h.status, h.why), h.revision)).into_iter().collect();
        causes.extend(self.flapping(component));
        causes.extend(self.last_deed(&object));
        let state = health.map_or_else(|| "unknown".to_owned(), |health| health.status.to_string());
        Explanation { object, state, causes }
    }

    fn last_event(&self, object: &str, kinds: &[&str]) -> Option<Told<'_>> {
        let mut told = self.events.values().rev().filter_map(|event| event.told_of(object));
        told.find(|told| kinds.is_empty() || kinds.contains(&told.kind))
    }

    /// What last happened to the object itself.
    fn last_deed(&self, object: &str) -> Option<Cause> {
        let event = self.last_event(object, &[])?;
        Some(by(format!("last change: {} ({}), by {}", event.what, event.kind, event.who), event.revision))
    }

    /// How often an SDS was lost in the last minute, hour and day of log time: one that flaps shows.
    pub fn losses_of(&self, sds: SdsId) -> [u32; 3] {
        self.oscillation_of(Component { kind: Kind::Sds, id: sds.get() }, self.log_time())
    }

    /// That a component was not well more than once lately, and that it is kept out for it.
    fn flapping(&self, component: Component) -> Vec<Cause> {
        let now = self.log_time();
        let [minute, hour, day] = self.oscillation_of(component, now);
        let mut causes = Vec::new();
        if day > 1 {
            let what = format!(
                "it stopped being ACTIVE {minute} times in the last minute, {hour} in the last hour, {day} in the last day"
            );
            causes.push(says(what));
        }
        let sds = self.sds(component.id.into()).filter(|sds| component.kind == Kind::Sds && !sds.alive);
        if let Some(until) = sds.and_then(|sds| self.sds_kept_out(sds.id, now)) {
            let wait = until.get().saturating_sub(now.get()).div_ceil(1_000);
            let what = format!(
                "lost so often it is kept out until log time {until}, {wait} s from now, though it may be heard (S23); \
                 setting readmission.most_ms bounds that"
            );
            causes.push(says(what));
        }
        causes
    }
}

fn severity(state: &str) -> u8 {
    match state {
        "unavailable" => 3,
        "unplaced" => 2,
        "degraded" => 1,
        _ => 0,
    }
}

/// `pool.index`, as groups are printed.
fn pg_id(text: &str) -> Option<PgId> {
    let (pool, index) = text.split_once('.')?;
    Some(PgId { pool: PoolId(pool.parse().ok()?), index: PgIndex(index.parse().ok()?) })
}
