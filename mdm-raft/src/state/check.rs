//! The invariants as code: after every apply in debug builds and simulation (I3, I5, S17 and plain consistency).
//!
//! `check` looks at one state; `check_step` compares it with the one before, for what may only grow.

use std::collections::{BTreeMap, BTreeSet};

use pflex_proto::ids::{ClientId, DeviceId, Member, PgId, PgIndex};

use super::{State, names::Names, sums::Sums};
use crate::{
    placement::FaultDomain,
    state::{
        limits::{
            MAX_BAD_SOURCES, MAX_HEARTBEAT_SAMPLES, MAX_METRIC_SAMPLES, MAX_OUTCOMES_PER_SESSION, MAX_PGS_PER_POOL,
            MAX_REGISTRATIONS_KEPT, MAX_SNAPSHOTS_PER_VOLUME,
        },
        model::{Component, Kind, MAX_LOSSES_KEPT, Pg, WritePolicy},
    },
};

/// Fails with a sentence unless the condition holds.
macro_rules! hold {
    ($condition:expr, $($why:tt)+) => {
        if !$condition {
            return Err(format!($($why)+));
        }
    };
}

impl State {
    /// Whether every invariant holds.
    ///
    /// # Errors
    /// A sentence that says which does not, and for what.
    pub fn check(&self) -> Result<(), String> {
        self.check_names()?;
        self.check_topology()?;
        self.check_pgs()?;
        self.check_recovery()?;
        self.check_volumes()?;
        self.check_components()?;
        self.check_sessions()?;
        self.check_secrets()?;
        self.check_tokens()?;
        let sums = Sums::of(self);
        hold!(self.sums.missing == sums.missing, "the copies that pools lack differ from the groups");
        self.check_rebuilds()?;
        hold!(self.sums == sums, "the bytes of pools differ from the tables");
        Ok(())
    }

    /// S21: one generation signs; besides it there is one on its way in or one on its way out, never both.
    fn check_secrets(&self) -> Result<(), String> {
        let Some(cluster) = self.cluster() else { return Ok(()) };
        let signing = self.secrets.get(cluster.newest_key);
        hold!(signing.is_some_and(|row| row.last_expiry.is_none()), "the generation that signs is missing or retired");
        hold!(self.secrets.len() <= 2, "{} generations of the secret are valid", self.secrets.len());
        for row in self.secrets.values() {
            let retiring = row.key < cluster.newest_key;
            hold!(retiring == row.last_expiry.is_some(), "generation {} of the secret is in a strange state", row.key);
        }
        let retiring = self.retiring_key();
        let orphan = self
            .tokens
            .values()
            .find(|token| retiring.is_some_and(|(key, until)| token.key == key && token.expires > until));
        hold!(orphan.is_none(), "token {} outlives its secret", orphan.map_or(0, |token| token.id.get()));
        Ok(())
    }

    fn check_names(&self) -> Result<(), String> {
        hold!(self.names == Names::of(self), "the name index differs from the tables");
        for (table, rows, names) in [
            ("domains", self.domains.len(), self.names.domains.len()),
            ("pools", self.pools.len(), self.names.pools.len()),
            ("fault sets", self.fault_sets.len(), self.names.fault_sets.len()),
            ("SDSs", self.sds.len(), self.names.sds.len()),
            ("SDCs", self.sdcs.len(), self.names.sdcs.len()),
            ("volumes", self.volumes.len(), self.names.volumes.len()),
            ("devices", self.devices.len(), self.names.devices.len()),
        ] {
            hold!(rows == names, "{rows} {table} share {names} names");
        }
        Ok(())
    }

    fn check_topology(&self) -> Result<(), String> {
        for pool in self.pools.values() {
            hold!(self.domains.contains(pool.domain), "pool {} is in no domain", pool.name);
            // S25: they only double.
            let (first, now) = (pool.first_pg_count, pool.pg_count);
            let came_so = first.is_power_of_two() && now.is_power_of_two() && first <= now && now <= MAX_PGS_PER_POOL;
            hold!(came_so, "pool {} was made with {first} groups and has {now}", pool.name);
        }
        for set in self.fault_sets.values() {
            hold!(self.domains.contains(set.domain), "fault set {} is in no domain", set.name);
        }
        // Sets, not a search for each: a check follows each apply of a test.
        let former_sds: BTreeSet<&str> = self.sds.values().filter_map(|sds| sds.former_name.as_deref()).collect();
        let former_sdcs: BTreeSet<&str> = self.sdcs.values().filter_map(|sdc| sdc.former_name.as_deref()).collect();
        for sds in self.sds.values() {
            let free = !former_sds.contains(sds.name.as_str());
            hold!(free, "sds {} has the name that another answers to until it restarts", sds.name);
            hold!(self.domains.contains(sds.domain), "sds {} is in no domain", sds.name);
            if let Some(set) = sds.fault_set {
                let set = self.fault_sets.get(set);
                hold!(set.is_some_and(|set| set.domain == sds.domain), "sds {} is in a strange fault set", sds.name);
            }
            hold!(!sds.alive || sds.registration.is_some(), "sds {} is alive and was never seen", sds.name);
        }
        for sdc in self.sdcs.values() {
            let free = !former_sdcs.contains(sdc.name.as_str());
            hold!(free, "sdc {} has the name that another answers to until it restarts", sdc.name);
        }
        for device in self.devices.values() {
            let Some(sds) = self.sds.get(device.sds) else {
                return Err(format!("device {} is on no SDS", device.id));
            };
            hold!(!device.alive || sds.alive, "device {} is alive on a lost SDS", device.id);
            hold!(!device.alive || device.lost_at.is_none(), "device {} is alive and lost", device.id);
            let lent = sds.protected.is_some() && device.draining.is_some();
            hold!(!device.lent || lent, "device {} is lent to no protected maintenance", device.id);
            if let Some(pool) = device.pool {
                let pool = self.pools.get(pool);
                hold!(pool.is_some_and(|p| p.domain == sds.domain), "device {} is in a strange pool", device.id);
            }
        }
        Ok(())
    }

    fn check_pgs(&self) -> Result<(), String> {
        let mut placed: BTreeMap<_, u32> = BTreeMap::new();
        for pg in self.pgs.values() {
            let id = pg.id;
            let Some(pool) = self.pools.get(id.pool) else { return Err(format!("pg {id} is in no pool")) };
            *placed.entry(id.pool).or_default() += 1;
            hold!(id.index.get() < pool.pg_count, "pg {id} is beyond its pool");
            hold!(pg.copies() == pool.copies as usize, "pg {id} has {} replicas", pg.replicas.len());
            hold!(pg.config.in_sync.len() <= pg.copies(), "pg {id} has more copies in sync than it should have");
            self.check_move(pg)?;

            // I5: no two copies in one SDS or fault set, but for one that leaves.
            let mut domains: BTreeSet<FaultDomain> = BTreeSet::new();
            let mut servers = BTreeSet::new();
            for replica in &pg.replicas {
                let Some(device) = self.devices.get(*replica) else {
                    return Err(format!("pg {id} has a copy on device {replica}, which is not there"));
                };
                hold!(device.pool == Some(pool.id), "pg {id} has a copy on device {replica} of another pool");
                if pg.leaving == Some(*replica) {
                    continue;
                }
                hold!(servers.insert(device.sds), "pg {id} has two copies on sds {}", device.sds);
                let domain = self.sds.get(device.sds).map(super::model::Sds::fault_domain);
                hold!(domain.is_some_and(|d| domains.insert(d)), "pg {id} has two copies in one fault set");
            }

            let config = &pg.config;
            hold!(config.epoch.get() > 0, "pg {id} has no epoch");
            hold!(!config.in_sync.is_empty(), "pg {id} has no in-sync copy");
            let mut members: BTreeSet<DeviceId> = BTreeSet::new();
            for member in &config.in_sync {
                hold!(members.insert(member.device), "pg {id} has device {} in sync twice", member.device);
                hold!(pg.replicas.contains(&member.device), "pg {id}: {member} is in sync and no replica");
                let device = self.devices.get(member.device);
                hold!(
                    device.is_some_and(|d| d.sds == member.sds && d.incarnation >= member.incarnation),
                    "pg {id}: {member} is a life its device has not had"
                );
            }
            for holder in &pg.holders {
                hold!(pg.replicas.contains(&holder.device), "pg {id}: {holder} has everything and is no replica");
                let device = self.devices.get(holder.device);
                hold!(
                    device.is_some_and(|d| d.sds == holder.sds && d.incarnation >= holder.incarnation),
                    "pg {id}: {holder} is a life its device has not had"
                );
            }
            hold!(
                pg.is_activated() || config.in_sync.iter().all(|member| pg.holders.contains(member)),
                "pg {id} has a copy in sync that may lack something"
            );
            hold!(
                pg.is_activated() || pg.holders.len() > config.in_sync.len(),
                "pg {id} is to be activated for nothing"
            );
            if pool.frozen.contains_key(&id.index) {
                hold!(config.primary.is_none(), "pg {id} is frozen and has a primary");
            }
            let serves = |pg: &Pg, member: &Member| self.is_alive(member) && !pg.forgot.contains(&member.device);
            match config.primary {
                // I3 and S2: the primary is an in-sync copy in its present life.
                Some(primary) => hold!(
                    config.member(primary).is_some_and(|member| self.is_alive(member)),
                    "pg {id}: primary {primary} is not an in-sync copy that is alive"
                ),
                None => hold!(
                    self.is_recovering() || !pg.complete().iter().any(|member| serves(pg, member)),
                    "pg {id} is unavailable although an in-sync copy is alive"
                ),
            }
            // S14: who waits for another one's memory counts, and nobody serves meanwhile.
            hold!(
                pg.forgot.iter().all(|device| pg.is_complete_on(*device)),
                "pg {id}: a copy that does not count has forgotten something"
            );
            hold!(
                config.primary.is_none() || !config.in_sync.iter().any(|member| pg.forgot.contains(&member.device)),
                "pg {id} is served and waits for memory"
            );
        }
        for (pool, count) in placed {
            let all = self.pools.get(pool).map_or(0, |pool| pool.pg_count);
            hold!(count == all, "pool {pool} has {count} of {all} groups placed");
        }
        Ok(())
    }

    /// A copy that moves has a place to go to, where it can be filled.
    fn check_move(&self, pg: &Pg) -> Result<(), String> {
        let (Some(leaving), Some(newcomer)) = (pg.leaving, pg.newcomer()) else { return Ok(()) };
        let id = pg.id;
        hold!(leaving != newcomer, "pg {id} has a copy that moves to where it is");
        hold!(pg.replicas.contains(&leaving), "pg {id} has a copy that moves from device {leaving}, where none is");
        let others = pg.replicas.iter().filter(|device| **device == newcomer).count();
        hold!(others == 1, "pg {id} has a copy that moves to where another one is");
        let there = pg.is_complete_on(newcomer) || self.devices.get(newcomer).is_some_and(|d| d.alive);
        hold!(there || self.is_recovering(), "pg {id} has a copy that moves to device {newcomer}, which is lost");
        hold!(
            self.is_recovering() || pg.config.primary.is_some() || pg.is_complete_on(newcomer),
            "pg {id} has a copy that moves and nobody who could fill it"
        );
        Ok(())
    }

    /// S19: nobody serves during a recovery, and each group is compared with what the backup says of it.
    fn check_recovery(&self) -> Result<(), String> {
        if self.is_recovering() {
            for pg in self.pgs.values() {
                hold!(pg.config.primary.is_none(), "pg {} has a primary during a recovery", pg.id);
                let base = self.group_reports.get(pg.id).is_some_and(|row| row.base.is_some());
                hold!(base, "pg {}: nobody knows what the backup said of it", pg.id);
            }
        }
        for device in self.devices.values().filter(|device| device.awaited) {
            hold!(!device.alive, "device {} is alive and has not reported since the restore", device.id);
        }
        for sds in self.sds.values().filter(|sds| sds.awaited) {
            hold!(!sds.alive, "sds {} is alive and has not registered since the restore", sds.name);
        }
        Ok(())
    }

    fn check_volumes(&self) -> Result<(), String> {
        for volume in self.volumes.values() {
            let Some(pool) = self.pools.get(volume.pool) else {
                return Err(format!("volume {} is in no pool", volume.name));
            };
            hold!(pool.used, "pool {} has a volume and may still be placed anew", pool.name);
            hold!(volume.size.get() > 0 && volume.size.get() % 4096 == 0, "volume {} has a bad size", volume.name);
        }
        for mapping in self.mappings.values() {
            hold!(self.volumes.contains(mapping.volume), "volume {} is mapped and not there", mapping.volume);
            hold!(self.sdcs.contains(mapping.sdc), "sdc {} has a volume and is not there", mapping.sdc);
        }
        let mut names: BTreeMap<_, BTreeSet<&str>> = BTreeMap::new();
        for snapshot in self.snapshots.values() {
            let (volume, name) = (snapshot.volume, snapshot.name.as_str());
            hold!(self.volumes.contains(volume), "snapshot {name} is of volume {volume}, which is not there");
            let of_volume = names.entry(volume).or_default();
            hold!(of_volume.insert(name), "volume {volume} has two snapshots {name}");
            hold!(of_volume.len() <= MAX_SNAPSHOTS_PER_VOLUME, "volume {volume} has too many snapshots");
            hold!(snapshot.id <= self.counters().snapshot, "snapshot {name} has a number that was never given out");
        }
        Ok(())
    }

    /// What is kept of components is of those there are, and bounded (I10).
    fn check_components(&self) -> Result<(), String> {
        let known = |component: Component| match component.kind {
            Kind::Sds => self.sds.contains(component.id.into()),
            Kind::Sdc => self.sdcs.contains(component.id.into()),
            Kind::Mdm | Kind::Mgmt => self.nodes.contains(component),
        };
        for health in self.health.values() {
            let (component, losses) = (health.component, health.losses.times());
            hold!(known(component), "health of {} {} is kept, which is gone", component.kind, component.id);
            hold!(losses.len() <= MAX_LOSSES_KEPT, "{} {} has {} losses", component.kind, component.id, losses.len());
            hold!(losses.is_sorted(), "losses of {} {} are out of order", component.kind, component.id);
        }
        for metadata in self.metadata.values() {
            let component = metadata.component;
            hold!(known(component), "the machine of {} {} is kept, which is gone", component.kind, component.id);
        }
        let mut kept: BTreeMap<Component, usize> = BTreeMap::new();
        for row in self.history.values() {
            hold!(known(row.component), "history of {} {} is kept", row.component.kind, row.component.id);
            *kept.entry(row.component).or_default() += 1;
        }
        hold!(kept.values().all(|count| *count <= MAX_REGISTRATIONS_KEPT), "too much history is kept: {kept:?}");
        hold!(self.heartbeats.len() <= MAX_HEARTBEAT_SAMPLES, "{} samples of heartbeats", self.heartbeats.len());
        hold!(self.metrics.len() <= MAX_METRIC_SAMPLES, "{} samples of metrics", self.metrics.len());
        Ok(())
    }

    fn check_sessions(&self) -> Result<(), String> {
        let mut kept: BTreeMap<ClientId, (u32, u32)> = BTreeMap::new();
        for outcome in self.outcomes.values() {
            let Some(session) = self.sessions.get(outcome.client) else {
                return Err(format!("an outcome is kept for client {}, who has no session", outcome.client));
            };
            hold!(outcome.sequence >= session.low_water, "client {} has forgotten outcomes kept", session.client);
            let (sum, heaviest) = kept.entry(outcome.client).or_default();
            *sum += outcome.weight();
            *heaviest = outcome.weight().max(*heaviest);
        }
        for session in self.sessions.values() {
            let (sum, heaviest) = kept.get(&session.client).copied().unwrap_or_default();
            hold!(session.kept == sum, "client {} counts {} outcomes of {sum}", session.client, session.kept);
            // What is over the limit was not when the last one was executed.
            hold!(sum - heaviest < MAX_OUTCOMES_PER_SESSION, "client {} has {sum} outcomes kept", session.client);
        }
        Ok(())
    }

    /// Only the newest links: the whole chain is the audit's business.
    fn check_tokens(&self) -> Result<(), String> {
        let mut newest = self.tokens.values().rev();
        let chain = self.token_chain();
        if let Some(last) = newest.next() {
            let before = newest.next().map_or(chain.anchor, |token| token.link);
            hold!(last.link == last.link_after(before), "token {} breaks the hash chain", last.id);
            hold!(last.link == chain.head, "the hash chain does not end at token {}", last.id);
        }
        // One row more holds all that found no room.
        let sources = self.bad_tokens.len();
        hold!(sources <= MAX_BAD_SOURCES + 1, "{sources} sources of refused tokens are kept");
        let untold = self.bad_tokens.values().find(|row| row.told_at.is_none());
        hold!(untold.is_none(), "nobody was told of the tokens refused of {:?}", untold.map(|row| row.source));
        Ok(())
    }

    /// What the running apply changed may only have grown.
    pub(super) fn check_step(&self) -> Result<(), String> {
        // The end of a recovery chooses anew who was in sync (S19), and in a pool without volumes there is nothing to lose.
        let chosen = self.config.changes().any(|(key, ..)| key == super::rows::cluster::ConfigKey::Cluster);
        let holds_data = |id: PgId| !chosen && self.pools.get(id.pool).is_some_and(|pool| pool.used);
        for (id, before, now) in self.pgs.changes() {
            if let (Some(before), Some(now)) = (before, now) {
                let given_up = before.config.in_sync.iter().filter(|member| !now.replicas.contains(&member.device));
                let come = now.config.in_sync.iter().filter(|member| before.config.member(member.device).is_none());
                hold!(
                    !holds_data(id) || given_up.count() <= come.count(),
                    "pg {id} gave up the place of a copy that was in sync"
                );
                // A copy that moved leaves when nothing is lost by it.
                let gone = before.leaving.filter(|device| !now.replicas.contains(device));
                hold!(
                    gone.is_none()
                        || !holds_data(id)
                        || now.forced
                        || now.config.in_sync.len() >= before.config.in_sync.len(),
                    "pg {id} has fewer copies after one has moved"
                );
                let (old, new) = (&before.config, &now.config);
                // S11: the same configuration may only be activated, or its holders restart.
                let same =
                    Pg { holders: before.holders.clone(), forgot: before.forgot.clone(), ..now.clone() } == *before;
                let devices = |pg: &Pg| pg.holders.iter().map(|member| member.device).collect::<Vec<_>>();
                if same && (now.is_activated() || devices(now) == devices(before)) {
                    continue;
                }
                // Copies are chosen from those that have everything, or come by a primary that answers.
                let known = |member: &Member| before.is_complete_on(member.device);
                hold!(
                    !holds_data(id) || now.forced || before.is_activated() || new.in_sync.iter().all(known),
                    "pg {id} takes in a copy while its configuration is not activated"
                );
                hold!(new.epoch > old.epoch, "pg {id} changed from epoch {} to {}", old.epoch, new.epoch);
                hold!(new.volatility >= old.volatility, "pg {id} went back in volatility");
                // S14: a copy serves that kept its memory, or the id is another one.
                let kept = |member: &Member| old.in_sync.contains(member) && !before.forgot.contains(&member.device);
                let policy = self.pools.get(id.pool).map(|pool| pool.write_policy);
                hold!(
                    policy != Some(WritePolicy::Writeback)
                        || !holds_data(id)
                        || new.primary.is_none()
                        || new.volatility > old.volatility
                        || new.in_sync.iter().any(kept),
                    "pg {id} is served without its memory under volatility id {}",
                    new.volatility
                );
            }
        }
        self.check_doubled()?;
        for (id, before, now) in self.devices.changes() {
            if let (Some(before), Some(now)) = (before, now) {
                hold!(now.incarnation >= before.incarnation, "device {id} went back to an older life");
                let lost = before.alive && !now.alive;
                hold!(!lost || now.lost_at.is_some(), "device {id} was lost and nobody knows since when");
                // Who was in maintenance until now is missed since now.
                let (sds, missed) = (now.sds, Some(self.log_time()));
                let left = |sds: &super::model::Sds| sds.maintenance.is_some() && !self.is_in_maintenance(sds.id);
                let left = self.sds.changes().any(|(id, was, _)| id == sds && was.is_some_and(left));
                if left && now.lost_at == missed {
                    continue;
                }
                let aged = !before.alive && !now.alive && before.lost_at != now.lost_at;
                hold!(!aged, "device {id} is lost since another time than before");
            }
        }
        for (id, before, now) in self.sds.changes() {
            let maintained = |sds: Option<&super::model::Sds>| sds.is_some_and(|sds| sds.maintenance.is_some());
            if maintained(before) || !maintained(now) {
                continue;
            }
            let here = || self.pgs.values().filter(|pg| pg.config.in_sync.iter().any(|member| member.sds == id));
            for pg in here() {
                hold!(
                    !self.stays_without(pg, id).is_empty(),
                    "sds {id} may stop and has the only copy of pg {}",
                    pg.id
                );
            }
            for pg in here() {
                let leads = pg.config.primary.and_then(|device| self.sds_of(device)) == Some(id);
                hold!(!leads, "sds {id} may stop and leads pg {}", pg.id);
            }
        }
        for (_, before, now) in self.jobs.changes() {
            if let (Some(before), Some(now)) = (before, now) {
                hold!(!before.is_finished(), "rebuild {} changed after it was done", now.id);
                hold!(now.groups_done >= before.groups_done, "rebuild {} has undone groups", now.id);
            }
        }
        for (key, before, now) in self.snapshots.changes() {
            if let (Some(before), Some(now)) = (before, now) {
                hold!(before.state < now.state, "snapshot {} went from {} to {}", key.1, before.state, now.state);
            }
        }
        for (id, before, now) in self.volumes.changes() {
            if let (Some(before), Some(now)) = (before, now) {
                hold!(now.epoch >= before.epoch, "volume {id} went back to an older epoch");
                hold!(now.pool == before.pool, "volume {id} changed its pool");
            }
        }
        Ok(())
    }

    /// S25: groups only double, all of a pool at once, in a new epoch; and each is what that was which it is a part of.
    fn check_doubled(&self) -> Result<(), String> {
        for (id, before, now) in self.pools.changes() {
            let (Some(before), Some(now)) = (before, now) else { continue };
            let (name, was, is) = (&now.name, before.pg_count, now.pg_count);
            hold!(before.first_pg_count == now.first_pg_count, "pool {name} was made with another number of groups");
            if was == is {
                continue;
            }
            hold!(was < is, "pool {name} went from {was} groups to {is}");
            let opened = self.pgs.changes().filter(|(pg, before, now)| {
                pg.pool == id && before.zip(*now).is_some_and(|(before, now)| before.config.epoch < now.config.epoch)
            });
            let placed = self.pgs_of(id).filter(|pg| pg.id.index.get() < was).count();
            hold!(opened.count() == placed, "pool {name} doubled and has groups of an epoch of before");
            for pg in self.pgs_of(id) {
                let whole = PgId { index: PgIndex(pg.id.index.get() & (was - 1)), ..pg.id };
                let same = self.pgs.get(whole).is_some_and(|whole| Pg { id: pg.id, ..whole.clone() } == *pg);
                hold!(same, "pg {} differs from pg {whole}, of which it is a part", pg.id);
            }
        }
        Ok(())
    }

    /// Whether the running apply changed anything but sessions and its own position.
    pub(super) fn has_effects(&self) -> bool {
        let config = self.config.changes().any(|(key, ..)| key != super::rows::cluster::ConfigKey::Position);
        config
            || self.secrets.changes().next().is_some()
            || self.domains.changes().next().is_some()
            || self.pools.changes().next().is_some()
            || self.fault_sets.changes().next().is_some()
            || self.sds.changes().next().is_some()
            || self.devices.changes().next().is_some()
            || self.sdcs.changes().next().is_some()
            || self.nodes.changes().next().is_some()
            || self.history.changes().next().is_some()
            || self.metadata.changes().next().is_some()
            || self.health.changes().next().is_some()
            || self.heartbeats.changes().next().is_some()
            || self.metrics.changes().next().is_some()
            || self.pgs.changes().next().is_some()
            || self.volumes.changes().next().is_some()
            || self.snapshots.changes().next().is_some()
            || self.mappings.changes().next().is_some()
            || self.tokens.changes().next().is_some()
            || self.bad_tokens.changes().next().is_some()
            || self.group_reports.changes().next().is_some()
            || self.jobs.changes().next().is_some()
    }
}
