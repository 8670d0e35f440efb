//! The event that each command leaves when it changed something: who did what to which object.
//!
//! Tokens, samples and sessions leave none: tokens have their own chained record, samples are one, and sessions are no
//! news.

mod bad_token;
mod copies;
mod health;
mod labels;

use pflex_proto::ids::{ClientId, DeviceId, PoolId, SdsId};

use labels::{counted, counted_copies, kind_word};

use super::Context;
use crate::{
    command::{Body, Command, proto},
    state::{
        PgState, State,
        limits::MAX_EVENTS,
        model::{Event, EventPart, Severity},
    },
};

/// Transitions told one by one in an event.
const LISTED: usize = 8;

/// Who acts in commands that no session carries.
const LEADER: &str = "the leader";

/// What a command was about.
struct Deed {
    kind: &'static str,
    object: String,
    what: String,
    /// In commands without a session.
    who: String,
    severity: Severity,
    parts: Vec<EventPart>,
}

impl Deed {
    fn new(kind: &'static str, object: impl Into<String>, what: impl Into<String>) -> Self {
        let (object, what) = (object.into(), what.into());
        Self { kind, object, what, who: LEADER.to_owned(), severity: Severity::Info, parts: Vec::new() }
    }

    /// One deed of several, in the words of the first few; each part keeps its own.
    fn of_several(kind: &'static str, deeds: Vec<Self>) -> Self {
        let severity = deeds.iter().map(|deed| deed.severity).max().unwrap_or(Severity::Info);
        let mut said: Vec<String> =
            deeds.iter().take(LISTED).map(|deed| format!("{} {}", deed.object, deed.what)).collect();
        if deeds.len() > LISTED {
            said.push(format!("and {} more", deeds.len() - LISTED));
        }
        let part = |Self { kind, object, what, .. }| EventPart { kind: kind.to_owned(), object, what };
        let what = said.join("; ");
        Self { parts: deeds.into_iter().map(part).collect(), ..Self::new(kind, "cluster", what).severe(severity) }
    }

    fn by(self, who: impl Into<String>) -> Self {
        Self { who: who.into(), ..self }
    }

    fn severe(self, severity: Severity) -> Self {
        Self { severity, ..self }
    }
}

impl State {
    /// Notes what the running apply did, if it did anything.
    pub(super) fn note_event(&mut self, context: Context, command: &Command, body: &Body) {
        if !self.has_effects() {
            return;
        }
        let Some(mut deed) = self.deed(body) else { return };
        if let Some(session) = self.sessions.get(ClientId(command.client_id)) {
            deed.who.clone_from(&session.name);
        }
        if let Some((groups, severity)) = self.group_changes() {
            deed.what = format!("{}; {groups}", deed.what);
            deed.severity = deed.severity.max(severity);
        }
        self.events.put(Event {
            revision: context.revision,
            at: context.log_time,
            at_wall_ms: context.wall_time_ms,
            severity: deed.severity,
            kind: deed.kind.to_owned(),
            object: deed.object,
            what: deed.what,
            who: deed.who,
            parts: deed.parts,
        });
        while self.events.len() > MAX_EVENTS {
            let Some(oldest) = self.events.values().next().map(|event| event.revision) else { return };
            self.events.remove(oldest);
        }
    }

    /// What the configurations of groups became, if any changed.
    fn group_changes(&self) -> Option<(String, Severity)> {
        // One that was only activated (S11) is what it was.
        let changed = self.pgs.changes().filter_map(|(_, before, now)| Some((before, now?)));
        let changed: Vec<_> = changed
            .filter(|(before, now)| before.is_none_or(|before| before.config.epoch != now.config.epoch))
            .collect();
        if changed.is_empty() {
            return None;
        }
        let count = |state| changed.iter().filter(|(_, now)| self.pg_state(now) == state).count();
        let (degraded, unavailable) = (count(PgState::Degraded), count(PgState::Unavailable));
        let moved =
            changed.iter().filter(|(before, now)| before.is_some_and(|b| b.config.primary != now.config.primary));
        let mut parts = vec![format!("{} in a new configuration", counted(changed.len(), "placement group"))];
        for (count, what) in
            [(moved.count(), "with another primary"), (degraded, "degraded"), (unavailable, "unavailable")]
        {
            if count > 0 {
                parts.push(format!("{count} {what}"));
            }
        }
        let severity = if unavailable > 0 { Severity::Critical } else { Severity::Info };
        Some((parts.join(", "), severity))
    }

    fn deed(&self, body: &Body) -> Option<Deed> {
        let limits = |map: &proto::MapVolume| match (map.iops_limit, map.bandwidth_limit) {
            (0, 0) => String::new(),
            (iops, bandwidth) => format!(", at most {iops} operations and {bandwidth} bytes a second (0: any)"),
        };
        Some(match body {
            Body::OpenClientSession(_)
            | Body::CloseClientSession(_)
            | Body::IssueTokens(_)
            | Body::AckTokens(_)
            | Body::RecordSample(_) => {
                return None;
            }
            Body::ReconfigurePgs(_) if self.group_changes().is_none() => return None,
            // The registration that follows the last part says it.
            Body::ReportGroups(report) if !report.last && self.pools.changes().next().is_none() => return None,
            Body::ReportGroups(report) => {
                let object = format!("sds {}", report.sds);
                let what = match self.doubled_words() {
                    Some(doubled) => {
                        format!("device {} knows, from after the backup, that {doubled}", report.device_id)
                    }
                    None => format!("device {} has reported what it knew before the restore", report.device_id),
                };
                Deed::new("cluster.report", object.clone(), what).by(object)
            }
            Body::FreezePg(freeze) => {
                let object = self.group_label(&freeze.pool, freeze.index);
                let what = format!(
                    "frozen: the copy on device {} is to be promoted; no tokens for pool {} meanwhile",
                    freeze.device_id, freeze.pool
                );
                Deed::new("pg.freeze", object, what).severe(Severity::Critical)
            }
            Body::PromotePg(promote) => {
                let object = self.group_label(&promote.pool, promote.index);
                let what = format!(
                    "promoted by force to its copy on {}: whatever only {} had is lost; {}",
                    self.device_label(DeviceId(promote.device_id)),
                    self.given_up(),
                    promote.why_safe
                );
                Deed::new("pg.promote", object, what).severe(Severity::Critical)
            }
            Body::UnfreezePg(unfreeze) => {
                let object = self.group_label(&unfreeze.pool, unfreeze.index);
                Deed::new("pg.unfreeze", object, "the forced promotion was given up").severe(Severity::Warning)
            }
            Body::BootstrapCluster(_) => Deed::new("cluster.bootstrap", "cluster", "got its identity and first secret"),
            Body::RegisterComponent(register) => {
                // By its present name, which its process may not know yet.
                let name = match register.kind() {
                    proto::Kind::Sds => self.sds_registering_as(&register.name).map(|sds| sds.name.as_str()),
                    proto::Kind::Sdc => self.sdc_registering_as(&register.name).map(|sdc| sdc.name.as_str()),
                    proto::Kind::Mdm | proto::Kind::Mgmt | proto::Kind::Unspecified => None,
                };
                let object = format!("{} {}", kind_word(register.kind()), name.unwrap_or(&register.name));
                let devices = match register.devices.len() {
                    0 => String::new(),
                    n => format!(" with {}", counted(n, "device")),
                };
                let on = match register.host.as_ref().map_or("", |host| host.name.as_str()) {
                    "" => String::new(),
                    host => format!(" on {host}"),
                };
                let kept_out = match self.sds_by_name(name.unwrap_or_default()) {
                    Some(sds) if register.kind() == proto::Kind::Sds && !sds.alive => self.kept_out_words(sds.id),
                    Some(_) | None => String::new(),
                };
                let what = format!("started{on}, version {}{devices}{kept_out}", register.version);
                Deed::new("component.register", object.clone(), what).by(object)
            }
            Body::SetComponentStatus(set) => {
                let object = format!("{} {}", kind_word(set.kind()), self.component_name(set.kind(), set.id));
                let severity = if set.status() == proto::Status::Active { Severity::Info } else { Severity::Warning };
                let status = set.status().as_str_name().trim_start_matches("STATUS_");
                Deed::new("component.status", object, format!("is {status}: {}", set.why)).severe(severity)
            }
            Body::SetStatuses(set) => self.transitions(set),
            Body::JudgeClock(_) => self.clocks()?,
            Body::ChangeSettings(change) => {
                let entries = change.entries.iter().map(|entry| match entry.to_default {
                    true => format!("{} to its default", entry.key),
                    false => format!("{} to {}", entry.key, entry.value),
                });
                let what = format!("set {}", entries.collect::<Vec<_>>().join(", "));
                Deed::new("settings.change", "settings", what)
            }
            Body::CreateDomain(create) => Deed::new("domain.create", format!("domain {}", create.name), "created"),
            Body::CreatePool(create) => {
                let what = format!("created with {} copies", create.copies);
                Deed::new("pool.create", format!("pool {}", create.name), what)
            }
            Body::CreateSds(create) => {
                let set = match create.fault_set.as_str() {
                    "" => String::new(),
                    set => format!(" in fault set {set}"),
                };
                Deed::new("sds.create", format!("sds {}", create.name), format!("created{set}"))
            }
            Body::CreateFaultSet(create) => {
                Deed::new("fault-set.create", format!("fault-set {}", create.name), "created")
            }
            Body::AssignDevice(assign) => {
                let what = format!("given to pool {}", assign.pool);
                Deed::new("device.assign", format!("device {}", assign.device_id), what)
            }
            Body::CreateSdc(create) => Deed::new("sdc.create", format!("sdc {}", create.name), "created"),
            Body::Delete(delete) => {
                let (kind, word) = match delete.kind() {
                    proto::Object::Domain => ("domain.delete", "domain"),
                    proto::Object::Pool => ("pool.delete", "pool"),
                    proto::Object::Sds => ("sds.delete", "sds"),
                    proto::Object::Sdc => ("sdc.delete", "sdc"),
                    proto::Object::Volume => ("volume.delete", "volume"),
                    proto::Object::FaultSet => ("fault-set.delete", "fault-set"),
                    proto::Object::Device | proto::Object::Unspecified => ("object.delete", "object"),
                };
                Deed::new(kind, format!("{word} {}", delete.name), "deleted")
            }
            Body::Rename(rename) => {
                let (kind, word) = match rename.kind() {
                    proto::Object::Volume => ("volume.rename", "volume"),
                    proto::Object::Pool => ("pool.rename", "pool"),
                    proto::Object::FaultSet => ("fault-set.rename", "fault-set"),
                    proto::Object::Domain => ("domain.rename", "domain"),
                    proto::Object::Sds => ("sds.rename", "sds"),
                    proto::Object::Sdc => ("sdc.rename", "sdc"),
                    proto::Object::Device | proto::Object::Unspecified => ("object.rename", "object"),
                };
                Deed::new(kind, format!("{word} {}", rename.new_name), format!("renamed from {}", rename.name))
            }
            Body::RemoveDevice(remove) => Deed::new("device.remove", format!("device {}", remove.device_id), "removed"),
            Body::CreateSnapshot(create) => {
                Deed::new("snapshot.create", format!("snapshot {}@{}", create.volume, create.name), "being prepared")
            }
            Body::SetSnapshotState(set) => {
                let state = set.state().as_str_name().trim_start_matches("SNAPSHOT_STATE_").to_lowercase();
                Deed::new("snapshot.state", format!("snapshot {}", set.snapshot_id), format!("is {state}"))
            }
            Body::CreateVolume(create) => {
                let what = format!("created with {} bytes", create.size_bytes);
                Deed::new("volume.create", format!("volume {}", create.name), what)
            }
            Body::ResizeVolume(resize) => {
                let what = format!("resized to {} bytes", resize.size_bytes);
                Deed::new("volume.resize", format!("volume {}", resize.name), what)
            }
            Body::MapVolume(map) => {
                let access = if map.access() == proto::Access::ReadOnly { "read-only" } else { "read-write" };
                let what = format!("mapped to sdc {}, {access}{}", map.sdc, limits(map));
                Deed::new("volume.map", format!("volume {}", map.volume), what)
            }
            Body::LimitMapping(limit) => {
                let said = |what: &str, limit: Option<u64>| limit.map(|limit| format!("{limit} {what} a second"));
                let limits = [said("operations", limit.iops_limit), said("bytes", limit.bandwidth_limit)];
                let limits = limits.into_iter().flatten().collect::<Vec<_>>().join(", ");
                let what = format!("sdc {} limited to {limits} (0: any)", limit.sdc);
                Deed::new("volume.limits", format!("volume {}", limit.volume), what)
            }
            Body::UnmapVolume(unmap) => {
                let what = format!("unmapped from sdc {}", unmap.sdc);
                Deed::new("volume.unmap", format!("volume {}", unmap.volume), what)
            }
            Body::ApproveSdc(approve) => {
                let what = match approve.approved {
                    true => "approved: it may use what is mapped to it",
                    false => "its approval was taken back: it gets no tokens, and those it had are void",
                };
                Deed::new("sdc.approve", format!("sdc {}", approve.name), what)
            }
            Body::ReconfigurePgs(reconfigure) => {
                let object = self.sds_label(SdsId(reconfigure.sds_id));
                Deed::new("pg.reconfigure", object.clone(), self.copies_moved()).by(object)
            }
            Body::MoveCopies(moves) => {
                let pool = self.pool(PoolId(moves.pool_id)).map_or_else(|| "?".to_owned(), |pool| pool.name.clone());
                let what = match moves.kind() {
                    proto::MoveKind::Lost | proto::MoveKind::Unspecified => self.places_moved(),
                    proto::MoveKind::Drain => self.moves_begun("a drain"),
                    proto::MoveKind::Balance => self.moves_begun("a rebalance"),
                    proto::MoveKind::NoRoom => self.found_no_room(moves),
                };
                Deed::new("pg.move", format!("pool {pool}"), what)
            }
            Body::MoveLeads(moves) => {
                let pool = self.pool(PoolId(moves.pool_id)).map_or_else(|| "?".to_owned(), |pool| pool.name.clone());
                Deed::new("pg.lead", format!("pool {pool}"), self.leads_moved())
            }
            Body::Drain(drain) => {
                let (kind, object) = match drain.sds.as_str() {
                    "" => ("device.drain", format!("device {}", drain.device_id)),
                    name => ("sds.drain", format!("sds {name}")),
                };
                let what = match drain.cancel {
                    false => "is drained: it gets no copies any more, and those it has move to other devices",
                    true => "is not drained any more: copies that have not moved stay",
                };
                Deed::new(kind, object, what)
            }
            Body::Rebalance(rebalance) => {
                let what = match rebalance.cancel {
                    false => format!("is rebalanced: {} to move", counted_copies(rebalance.planned)),
                    true => "is not rebalanced any more: copies that have not moved stay".to_owned(),
                };
                Deed::new("pool.rebalance", format!("pool {}", rebalance.pool), what)
            }
            Body::EnterMaintenance(enter) => {
                let sds = self.sds_by_name(&enter.name);
                let what = match sds.map_or((false, false), |sds| (sds.is_preparing(), sds.protected.is_some())) {
                    (true, _) => "is prepared for maintenance: its copies move to other devices first",
                    (false, true) => "is in maintenance, and every group has all of its copies elsewhere",
                    (false, false) => {
                        "is in maintenance: it leads no group, and its copies keep their places while it is away"
                    }
                };
                Deed::new("sds.maintenance", format!("sds {}", enter.name), what)
            }
            Body::ExitMaintenance(exit) => {
                Deed::new("sds.maintenance", format!("sds {}", exit.name), "is not in maintenance any more")
            }
            Body::JudgeDisk(judge) => {
                let object = format!("device {}", judge.device_id);
                match judge.why.as_str() {
                    "" => Deed::new(
                        "device.well",
                        object,
                        "is not called slow any more: it is as fast as its peers again, or nobody has used it for long",
                    ),
                    why => Deed::new("device.slow", object, format!("slow: {why}")).severe(Severity::Warning),
                }
            }
            Body::DoubleGroups(double) => {
                let what = self.doubled_words().unwrap_or_default();
                Deed::new("pool.double", format!("pool {}", double.pool), what)
            }
            Body::SetRebuildPolicy(set) => {
                let what = super::rebuild::words(set);
                let object = if set.pool.is_empty() { "all pools".to_owned() } else { format!("pool {}", set.pool) };
                Deed::new("rebuild.policy", object, what)
            }
            Body::StartScrub(start) => {
                let what = "every chunk is read on every copy, and the copies are compared";
                Deed::new("pool.scrub", format!("pool {}", start.pool), what)
            }
            Body::EndScrub(end) => self.scrubbed(end),
            Body::NoteDevice(note) => self.faults(note),
            Body::SdsLost(lost) => self.loss(lost),
            Body::SdsReturned(returned) => self.return_of(returned),
            Body::JudgeSds(judge) => self.judgement(judge)?,
            Body::NoteBadTokens(note) => self.bad_tokens_told(note)?,
            Body::RecordMdms(record) => Deed::new("cluster.members", "cluster", record.what.clone()),
            Body::EndRecovery(end) => {
                let how = match end.without.as_slice() {
                    [] => String::new(),
                    names => format!(", without {}: what only they knew or held is lost", names.join(", ")),
                };
                let what = format!("the recovery after a restore is over{how}{}", self.dropped_reports());
                let severity = if end.without.is_empty() { Severity::Warning } else { Severity::Critical };
                Deed::new("cluster.end-recovery", "cluster", what).severe(severity)
            }
            Body::RotateSecret(_) => {
                let key = self.next_key().unwrap_or_default();
                let what = format!("generation {key} was made; it signs tokens once every live SDS has it");
                Deed::new("cluster.rotate-secret", "secret", what)
            }
            Body::SignWithSecret(sign) => {
                Deed::new("cluster.rotate-secret", "secret", format!("generation {} signs tokens", sign.key_id))
            }
            Body::DropSecret(drop) => {
                let what = format!("generation {} was dropped; its last token has expired", drop.key_id);
                Deed::new("cluster.rotate-secret", "secret", what)
            }
            Body::HoldEvictions(hold) => {
                let object = format!("mdm {}", hold.node_id);
                Deed::new("eviction.hold", object, hold.why.clone()).severe(Severity::Warning)
            }
        })
    }
}
