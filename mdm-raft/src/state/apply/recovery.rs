//! After a restore from backup (S19): what SDSs knew is collected, and becomes the groups' own at the end.
//!
//! Until then groups stay closed and nothing is placed. What is chosen, and why it is safe, is in `state::recovery`.

use std::collections::{BTreeMap, BTreeSet};

use pflex_proto::ids::{
    ClusterGeneration, DeviceId, DeviceUuid, Epoch, Incarnation, Member, PgId, PgIndex, PoolId, ProcessId, SdsId,
    VolatilityId,
};

use super::{
    Effect, Refusal, done,
    validate::{self, invalid, not_found},
};
use crate::{
    command::{ErrorCode, proto},
    placement::FaultDomain,
    state::{
        State,
        limits::{MAX_COPIES, MAX_PGS_PER_POOL, MAX_REPORTED_GROUPS, MAX_UNKNOWN_GROUPS},
        model::{Cluster, GroupReports, KnownConfig, Pg, Sds},
        recovery::{Choice, choose, devices_of, still_counts},
        rows::cluster::ConfigRow,
    },
};

/// Into how many groups a device has sorted the chunks of a pool.
#[derive(Clone, Copy)]
struct Sorted {
    pool: PoolId,
    pg_count: u32,
}

impl Sorted {
    /// 0: it does not say.
    fn of(self, pool: PoolId) -> u32 {
        if pool == self.pool { self.pg_count } else { 0 }
    }
}

impl State {
    /// A part of what a device knew before the restore. A device nobody waits for any more says nothing new.
    pub(super) fn report_groups(&mut self, report: &proto::ReportGroups) -> Effect {
        let object = format!("sds {}", report.sds);
        let sds = self.sds_registering_as(&report.sds).ok_or_else(|| not_found("sds", &report.sds))?.id;
        let process = validate::process(&object, &report.process_id)?;
        let incarnation = validate::incarnation(&object, report.incarnation)?;
        let generation = self.cluster().map(|cluster| cluster.generation).unwrap_or_default();
        if generation != ClusterGeneration(report.generation) {
            let what = format!("it reports to generation {}, the cluster is of {generation}", report.generation);
            return Err(Refusal::new(ErrorCode::ReportFirst, object, what));
        }
        if report.groups.len() > MAX_REPORTED_GROUPS {
            return Err(validate::limit(object, MAX_REPORTED_GROUPS, "groups in one report"));
        }
        let uuid = DeviceUuid::from_slice(&report.device_uuid).map_err(|why| invalid(&object, why.to_string()))?;
        let known = self.names.devices.get(&uuid).and_then(|id| self.devices.get(*id));
        let device = match known {
            Some(device) if device.sds != sds => {
                let what = format!("device {} belongs to sds {}", device.id, device.sds);
                return Err(Refusal::new(ErrorCode::Precondition, object, what));
            }
            Some(device) if incarnation < device.incarnation => {
                let what =
                    format!("incarnation {incarnation} of device {} is older than {}", device.id, device.incarnation);
                return Err(Refusal::new(ErrorCode::Stale, object, what));
            }
            Some(device) if !device.awaited => return done(device.id.get()),
            Some(device) => device.id,
            // One that came after the backup keeps its id.
            None if self.is_of_after_the_backup(DeviceId(report.device_id)) => DeviceId(report.device_id),
            None => return done(report.device_id),
        };
        let groups: Vec<(PgId, KnownConfig)> =
            report.groups.iter().map(|raw| known_config(&object, raw)).collect::<Result<_, _>>()?;
        let sorted = Sorted { pool: PoolId(report.sorted_pool_id), pg_count: report.pg_count };
        let counts = self.counts_to_come(&object, sorted, &groups)?;
        let groups = self.halves_of(groups, sorted, &counts);
        let is_to_come = |pg: &PgId| {
            let placed = self.pgs_of(pg.pool).next().is_some();
            placed && counts.get(&pg.pool).is_some_and(|count| pg.index.get() < *count)
        };
        let unknown = groups.iter().filter(|(pg, _)| !self.group_reports.contains(*pg) && !is_to_come(pg)).count();
        if unknown > 0 && self.unknown_groups().count() + unknown > MAX_UNKNOWN_GROUPS {
            return Err(validate::limit(object, MAX_UNKNOWN_GROUPS, "groups that the backup does not know"));
        }
        for (pool, count) in counts {
            while self.pools.get(pool).is_some_and(|pool| pool.pg_count < count) {
                self.double(pool);
            }
        }
        for (pg, known) in groups {
            if !self.group_reports.contains(pg) {
                self.group_reports.put(GroupReports { pg, base: None, by: BTreeMap::new() });
            }
            self.group_reports.update(pg, |reports| {
                // A second try of the same device tells the same, or more.
                let newer = reports.by.get(&device).is_none_or(|before| before.order() <= known.order());
                if newer {
                    reports.by.insert(device, known);
                }
            });
        }
        if report.last {
            self.devices.update(device, |device| device.reported_by = Some(process));
        }
        done(device.get())
    }

    /// How many groups each pool is to have that a device reports of: as many as its chunks are sorted into, for then the
    /// groups have doubled after the backup (S25). One that has no copy says so of the pool it is sorted for. Once the
    /// recovery is over they stay as they are.
    fn counts_to_come(
        &self,
        object: &str,
        sorted: Sorted,
        groups: &[(PgId, KnownConfig)],
    ) -> Result<BTreeMap<PoolId, u32>, Refusal> {
        let pg_count = sorted.pg_count;
        if pg_count != 0 && (!pg_count.is_power_of_two() || pg_count > MAX_PGS_PER_POOL) {
            return Err(invalid(object, format!("its chunks cannot be sorted into {pg_count} placement groups")));
        }
        let mut counts = BTreeMap::new();
        let of_groups = groups.iter().map(|(pg, _)| pg.pool);
        for pool in of_groups.chain([sorted.pool]).filter_map(|pool| self.pools.get(pool)) {
            self.is_sorted_by_now(object, pool, sorted.of(pool.id))?;
            counts.insert(pool.id, pool.pg_count.max(sorted.of(pool.id)));
        }
        Ok(counts)
    }

    /// What a device says that is sorted into fewer groups holds for each group that has come of those since.
    fn halves_of(
        &self,
        groups: Vec<(PgId, KnownConfig)>,
        sorted: Sorted,
        counts: &BTreeMap<PoolId, u32>,
    ) -> Vec<(PgId, KnownConfig)> {
        let mut all = Vec::with_capacity(groups.len());
        for (pg, known) in groups {
            // One that never heard of doubling was sorted when the pool was made.
            let sorted = match sorted.of(pg.pool) {
                0 => self.pools.get(pg.pool).map_or(0, |pool| pool.first_pg_count),
                count => count,
            };
            let count = counts.get(&pg.pool).copied().unwrap_or_default();
            let halves = if pg.index.get() < sorted { pg.index.get()..count } else { 0..0 };
            let others = halves.step_by(sorted.max(1) as usize).skip(1);
            let others = others.map(|index| (PgId { index: PgIndex(index), ..pg }, known.clone()));
            all.extend(others);
            all.push((pg, known));
        }
        all
    }

    /// Whether an id was given out by the cluster between the backup and the restore.
    pub(super) fn is_of_after_the_backup(&self, id: DeviceId) -> bool {
        let Some(last) = self.cluster().and_then(|cluster| cluster.devices_of_backup) else { return false };
        id > last && id.get() - last.get() <= Self::RESTORE_SKIP_SHORT && !self.devices.contains(id)
    }

    /// Refuses the registration of an SDS that has not said what its devices knew before the restore.
    pub(super) fn has_reported(
        &self,
        sds: &Sds,
        process: ProcessId,
        devices: impl Iterator<Item = DeviceId>,
    ) -> Result<(), Refusal> {
        let awaited = devices.filter_map(|id| self.devices.get(id)).filter(|device| device.awaited);
        let silent = awaited.filter(|device| device.reported_by != Some(process));
        let silent: Vec<String> = silent.map(|device| device.id.to_string()).collect();
        if silent.is_empty() {
            return Ok(());
        }
        let what = format!(
            "the cluster was restored from a backup, and devices {} have not said what they knew before; start it again",
            silent.join(", ")
        );
        Err(Refusal::new(ErrorCode::ReportFirst, format!("sds {}", sds.name), what))
    }

    /// The SDS and these devices of it are here again. `emptied` ones have lost what they reported (S13).
    pub(super) fn no_longer_awaited(&mut self, sds: SdsId, opened: &BTreeMap<DeviceId, bool>) {
        self.sds.update(sds, |sds| sds.awaited = false);
        for (id, emptied) in opened {
            let awaited = self.devices.get(*id).is_some_and(|device| device.awaited);
            self.devices.update(*id, |device| {
                device.awaited = false;
                device.reported_by = None;
            });
            if *emptied {
                self.forget_reports_of(*id);
            }
            if awaited && !self.is_recovering() {
                self.leave_what_it_lost(*id);
                self.forget_reports_of(*id);
            }
        }
    }

    fn forget_reports_of(&mut self, device: DeviceId) {
        let rows: Vec<PgId> =
            self.group_reports.values().filter(|row| row.by.contains_key(&device)).map(|row| row.pg).collect();
        for pg in rows {
            self.group_reports.update(pg, |reports| drop(reports.by.remove(&device)));
            let forgotten = |row: &GroupReports| row.by.is_empty() && row.base.is_none();
            if self.group_reports.get(pg).is_some_and(forgotten) {
                self.group_reports.remove(pg);
            }
        }
    }

    /// A device comes after the recovery that nobody waited for to the end. Where it does not count any more its
    /// membership names no life that it will ever have.
    fn leave_what_it_lost(&mut self, device: DeviceId) {
        let lost: Vec<PgId> = self
            .pgs
            .values()
            .filter(|pg| pg.config.member(device).is_some())
            .filter(|pg| !still_counts(self.group_reports.get(pg.id), device))
            .map(|pg| pg.id)
            .collect();
        for id in lost {
            let Some(pg) = self.pgs.get(id) else { continue };
            let (mut in_sync, primary) = (pg.config.in_sync.clone(), pg.config.primary);
            in_sync.iter_mut().filter(|member| member.device == device).for_each(leave_behind);
            self.open_epoch(id, in_sync, primary);
            self.pgs.update(id, |pg| {
                // What it lost does not make it a holder (S11).
                let mut others = std::mem::take(&mut pg.holders);
                others.retain(|holder| holder.device != device);
                pg.carry_holders(others);
                pg.drop_forgetful();
            });
        }
    }

    /// Who has not reported since the restore: the SDS itself, or one of its devices.
    pub fn awaited_sds(&self) -> BTreeSet<SdsId> {
        let sds = self.sds.values().filter(|sds| sds.awaited).map(|sds| sds.id);
        sds.chain(self.devices.values().filter(|device| device.awaited).map(|device| device.sds)).collect()
    }

    /// Groups that devices report and the restored state does not have.
    pub fn unknown_groups(&self) -> impl Iterator<Item = &GroupReports> {
        self.group_reports.values().filter(|row| row.base.is_none() && !self.pgs.contains(row.pg))
    }

    /// What was said of a group since the restore.
    pub fn reports_of(&self, pg: PgId) -> Option<&GroupReports> {
        self.group_reports.get(pg)
    }

    /// What the reports make of a group, if the recovery ended now.
    pub fn choice_for(&self, pg: PgId) -> Option<Choice> {
        choose(self.group_reports.get(pg)?, |device| self.devices.get(device).is_some_and(|device| !device.awaited))
    }

    /// Ends the recovery: each group gets the newest configuration that was reported, with the copies that count in it.
    /// An SDS that has not reported must be named as lost.
    pub(super) fn end_recovery(&mut self, end: &proto::EndRecovery) -> Effect {
        let Some(cluster) = self.cluster().filter(|cluster| cluster.recovering).cloned() else {
            return Err(Refusal::new(ErrorCode::Precondition, "cluster", "it is not in recovery"));
        };
        let mut awaited = self.awaited_sds();
        let without: BTreeSet<&String> = end.without.iter().collect();
        for name in without {
            let sds = self.sds_by_name(name).ok_or_else(|| not_found("sds", name))?.id;
            if !awaited.remove(&sds) {
                let what = "it has reported, with all its devices; it is not lost";
                return Err(Refusal::new(ErrorCode::Precondition, format!("sds {name}"), what));
            }
        }
        if !awaited.is_empty() {
            let missing: Vec<String> = awaited.iter().map(|sds| self.what_is_awaited(*sds)).collect();
            let without: Vec<String> = awaited
                .iter()
                .filter_map(|sds| self.sds.get(*sds))
                .map(|sds| format!("--without {}", sds.name))
                .collect();
            let what = format!(
                "{} not reported since the restore; start what is not lost, and give up what is with {}",
                missing.join(", "),
                without.join(" ")
            );
            return Err(Refusal::new(ErrorCode::Precondition, "cluster", what));
        }
        // Groups may have doubled after one registered that does not follow it.
        let doubled: Vec<PoolId> = self.pools.values().filter(|pool| pool.has_doubled()).map(|pool| pool.id).collect();
        doubled.into_iter().try_for_each(|pool| self.all_follow(pool))?;
        let groups: Vec<PgId> = self.pgs.values().map(|pg| pg.id).collect();
        for pg in groups {
            self.adopt(pg);
        }
        self.config.put(ConfigRow::Cluster(Cluster { recovering: false, ..cluster }));
        let all: BTreeSet<DeviceId> = self.devices.values().map(|device| device.id).collect();
        self.settle_pgs(&all, &BTreeMap::new());
        let unused: Vec<PoolId> = self.pools.values().filter(|pool| !pool.used).map(|pool| pool.id).collect();
        for pool in unused {
            self.place_if_unplaced(pool);
        }
        self.forget_what_is_settled();
        done(0_u64)
    }

    /// As a subject of a sentence: `sds s3 (devices 4, 5) has`.
    pub fn what_is_awaited(&self, sds: SdsId) -> String {
        let devices: Vec<String> =
            self.devices_of(sds).filter(|device| device.awaited).map(|device| device.id.to_string()).collect();
        let name = self.sds_label(sds);
        if devices.is_empty() { format!("{name} has") } else { format!("{name} (devices {}) has", devices.join(", ")) }
    }

    /// Gives a group the configuration that its reports lead to, above every epoch that was ever reported.
    fn adopt(&mut self, id: PgId) {
        let Some(pg) = self.pgs.get(id).cloned() else { return };
        let Some(choice) = self.choice_for(id) else { return };
        let reports = self.group_reports.get(id);
        let said = || reports.into_iter().flat_map(|reports| reports.by.values());
        // Nothing was ever written to a pool without volumes: its copies are equal even where no device knew of them yet.
        let untouched = said().next().is_none() && self.pools.get(id.pool).is_some_and(|pool| !pool.used);
        let epoch = said().map(|known| known.epoch).max().unwrap_or_default().max(pg.config.epoch);
        let volatility = said().map(|known| known.volatility).max().unwrap_or_default().max(pg.config.volatility);
        // In the middle of a move there was one place too many: those that count stay first.
        let copies = pg.copies();
        let replicas = if self.may_hold(id.pool, &choice.newest, copies) {
            choice.newest.replicas.clone()
        } else {
            let known = Some(&choice.newest).filter(|known| known.replicas.len() > copies);
            known
                .map(|known| self.apart(id.pool, devices_first(&known.in_sync, &known.replicas)))
                .map(|apart| apart.into_iter().take(copies).collect::<Vec<_>>())
                .filter(|apart| apart.len() == copies)
                .unwrap_or_else(|| match pg.leaving {
                    None => pg.replicas.clone(),
                    Some(_) => self
                        .apart(id.pool, devices_first(&pg.config.in_sync, &pg.replicas))
                        .into_iter()
                        .take(copies)
                        .collect(),
                })
        };
        let here = |device: &DeviceId| replicas.contains(device);

        let mut in_sync: Vec<Member> = match untouched {
            true => pg.config.in_sync.iter().filter(|member| here(&member.device)).copied().collect(),
            false => choice.good.iter().filter(|device| here(device)).filter_map(|d| self.present_life(*d)).collect(),
        };
        if in_sync.is_empty() {
            // Unavailable until one of those returns that nobody heard of.
            in_sync = choice
                .silent
                .iter()
                .filter(|member| here(&member.device))
                .filter_map(|m| self.awaited_life(m))
                .collect();
        }
        if in_sync.is_empty() {
            // Nobody has it any more. The lives that had it stay named, and never come back.
            let named = choice.newest.in_sync.iter().chain(&pg.config.in_sync).map(|member| member.device);
            in_sync = named
                .chain(replicas.iter().copied())
                .filter(here)
                .filter_map(|d| self.present_life(d))
                .take(1)
                .collect();
            in_sync.iter_mut().for_each(leave_behind);
        }
        for member in &in_sync {
            // A life that the backup does not know: the device never goes back behind it (S2).
            self.devices
                .update(member.device, |device| device.incarnation = device.incarnation.max(member.incarnation));
        }
        self.pgs.update(id, |pg| {
            pg.replicas = replicas;
            pg.leaving = None;
            pg.forgot.clear();
            pg.config.epoch = epoch.next();
            pg.config.in_sync = in_sync;
            pg.config.primary = None;
            pg.config.volatility = volatility.next();
            pg.forced = false;
            pg.activate();
        });
        self.prefer(id, choice.newest.primary);
        let chosen = KnownConfig { epoch: choice.newest.epoch, ..choice.newest };
        self.group_reports.update(id, |reports| reports.base = Some(chosen));
    }

    /// The primary of before goes on, if it may.
    fn prefer(&mut self, id: PgId, primary: Option<DeviceId>) {
        let Some(pg) = self.pgs.get(id) else { return };
        let member = primary.and_then(|device| pg.config.member(device));
        if member.is_some_and(|member| self.is_alive(member)) {
            self.pgs.update(id, |pg| pg.config.primary = primary);
        }
    }

    /// A member that has not reported, in the life that others know; none on a device that the backup does not know.
    fn awaited_life(&self, member: &Member) -> Option<Member> {
        let device = self.devices.get(member.device)?;
        Some(Member { sds: device.sds, incarnation: member.incarnation.max(device.incarnation), ..*member })
    }

    /// Whether a group can have its copies where a reported configuration has them: all of the pool, and apart (I5).
    fn may_hold(&self, pool: PoolId, known: &KnownConfig, copies: usize) -> bool {
        let mut domains: BTreeSet<FaultDomain> = BTreeSet::new();
        let mut servers = BTreeSet::new();
        let fits = |id: &DeviceId, domains: &mut BTreeSet<FaultDomain>, servers: &mut BTreeSet<SdsId>| {
            let Some(device) = self.devices.get(*id) else { return false };
            let domain = self.sds.get(device.sds).map(Sds::fault_domain);
            device.pool == Some(pool)
                && servers.insert(device.sds)
                && domain.is_some_and(|domain| domains.insert(domain))
        };
        known.replicas.len() == copies
            && devices_of(known).len() == copies
            && known.replicas.iter().all(|id| fits(id, &mut domains, &mut servers))
    }

    /// Those of these devices that can hold copies of one group together (I5), the first ones first.
    fn apart(&self, pool: PoolId, devices: impl Iterator<Item = DeviceId>) -> Vec<DeviceId> {
        let mut domains: BTreeSet<FaultDomain> = BTreeSet::new();
        let of_pool = devices.filter(|id| self.devices.get(*id).is_some_and(|device| device.pool == Some(pool)));
        of_pool.filter(|id| self.devices.get(*id).is_some_and(|d| domains.insert(self.domain_of(d)))).collect()
    }

    /// Reports are kept only of groups that still wait for somebody.
    fn forget_what_is_settled(&mut self) {
        let awaited = |pg: &Pg| pg.config.primary.is_none();
        let settled: Vec<PgId> = self
            .group_reports
            .values()
            .filter(|row| self.pgs.get(row.pg).is_none_or(|pg| !awaited(pg)))
            .map(|row| row.pg)
            .collect();
        for pg in settled {
            self.group_reports.remove(pg);
        }
    }
}

fn devices_first<'a>(in_sync: &'a [Member], replicas: &'a [DeviceId]) -> impl Iterator<Item = DeviceId> + 'a {
    let members = in_sync.iter().map(|member| member.device);
    let others = replicas.iter().copied().filter(|device| in_sync.iter().all(|member| member.device != *device));
    members.chain(others)
}

/// Makes a membership name a life that is over: its device keeps the place and never counts under it again.
pub(super) fn leave_behind(member: &mut Member) {
    member.incarnation = Incarnation(member.incarnation.get().saturating_sub(1));
}

fn known_config(object: &str, raw: &proto::GroupReport) -> Result<(PgId, KnownConfig), Refusal> {
    let most = MAX_COPIES as usize * 2;
    if raw.index >= MAX_PGS_PER_POOL || raw.in_sync.len() > most || raw.replica_device_ids.len() > most {
        return Err(invalid(object, format!("it reports a group {}.{} that cannot be", raw.pool_id, raw.index)));
    }
    let pg = PgId { pool: PoolId(raw.pool_id), index: PgIndex(raw.index) };
    let member = |member: &proto::Member| Member {
        device: DeviceId(member.device_id),
        sds: SdsId(member.sds_id),
        incarnation: Incarnation(member.incarnation),
    };
    let known = KnownConfig {
        generation: ClusterGeneration(raw.generation),
        epoch: Epoch(raw.epoch),
        primary: (raw.primary_device_id != 0).then_some(DeviceId(raw.primary_device_id)),
        in_sync: raw.in_sync.iter().map(member).collect(),
        replicas: raw.replica_device_ids.iter().copied().map(DeviceId).collect(),
        volatility: VolatilityId(raw.volatility),
        served: raw.served,
    };
    Ok((pg, known))
}
