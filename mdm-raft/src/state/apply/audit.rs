//! The event that each command leaves when it changed something: who did what to which object.
//!
//! Tokens, samples and sessions leave none: tokens have their own chained record, samples are one, and sessions are no
//! news.

use std::collections::BTreeSet;

use pflex_proto::ids::{ClientId, DeviceId, LogTime, PoolId, SdcId, SdsId};

use super::{Context, validate, verdict::Verdict};
use crate::{
    command::{Body, Command, proto},
    state::{
        PgState, State,
        limits::MAX_EVENTS,
        model::{Component, Event, EventPart, Severity},
    },
};

/// Transitions told one by one in an event.
const LISTED: usize = 8;

/// Who acts in commands that no session carries.
const LEADER: &str = "the leader";

/// Groups that an event lists one by one.
const LISTED_GROUPS: usize = 16;

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
        let changed: Vec<_> = self.pgs.changes().filter_map(|(_, before, now)| Some((before, now?))).collect();
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
            // The registration that follows the last part says it.
            Body::ReportGroups(report) if !report.last => return None,
            Body::ReportGroups(report) => {
                let object = format!("sds {}", report.sds);
                let what = format!("device {} has reported what it knew before the restore", report.device_id);
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
            Body::UnmapVolume(unmap) => {
                let what = format!("unmapped from sdc {}", unmap.sdc);
                Deed::new("volume.unmap", format!("volume {}", unmap.volume), what)
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
                let what = "is in maintenance: it leads no group, and its copies keep their places while it is away";
                Deed::new("sds.maintenance", format!("sds {}", enter.name), what)
            }
            Body::ExitMaintenance(exit) => {
                Deed::new("sds.maintenance", format!("sds {}", exit.name), "is not in maintenance any more")
            }
            Body::JudgeDisk(judge) => {
                let object = format!("device {}", judge.device_id);
                match judge.why.as_str() {
                    "" => Deed::new("device.well", object, "is as fast as its peers again"),
                    why => Deed::new("device.slow", object, format!("slow: {why}")).severe(Severity::Warning),
                }
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

    fn loss(&self, lost: &proto::SdsLost) -> Deed {
        let kind = if lost.whole { "sds.lost" } else { "device.lost" };
        let kept_out = if lost.whole { self.kept_out_words(SdsId(lost.sds_id)) } else { self.devices_kept_out(lost) };
        // Somebody has announced it, so it is no warning.
        let (planned, severity) = if self.is_in_maintenance(SdsId(lost.sds_id)) {
            ("in maintenance: ", Severity::Info)
        } else {
            ("", Severity::Warning)
        };
        let what = format!("{planned}{}{kept_out}", lost.why);
        Deed::new(kind, self.sds_label(SdsId(lost.sds_id)), what).severe(severity)
    }

    fn scrubbed(&self, end: &proto::EndScrub) -> Deed {
        let pool = self.pool(PoolId(end.pool_id)).map_or_else(|| "?".to_owned(), |pool| pool.name.clone());
        let found = end.found.unwrap_or_default();
        let what = format!(
            "scrub {} is over: {} chunks compared, {} unreadable blocks found, {} sound copies that differed, {} chunks \
             that no copy can read in full",
            end.pass, found.chunks, found.bad_blocks, found.mismatches, found.unreadable_chunks
        );
        let severity = match (found.mismatches + found.unreadable_chunks, found.bad_blocks) {
            (0, 0) => Severity::Info,
            (0, _) => Severity::Warning,
            _ => Severity::Critical,
        };
        Deed::new("pool.scrub", format!("pool {pool}"), what).severe(severity)
    }

    /// What has come since the last note.
    fn faults(&self, note: &proto::NoteDevice) -> Deed {
        let id = DeviceId(note.device_id);
        let mut changes = self.devices.changes().filter(|(device, ..)| *device == id);
        let new = changes
            .find_map(|(_, before, now)| Some(now?.faults?.since(before.and_then(|device| device.faults.as_ref()))));
        let new = new.unwrap_or_default();
        let severity = if new.is_critical() { Severity::Critical } else { Severity::Warning };
        Deed::new("device.faults", self.device_label(id), new.words()).severe(severity)
    }

    fn return_of(&self, returned: &proto::SdsReturned) -> Deed {
        Deed::new("sds.return", self.sds_label(SdsId(returned.sds_id)), "is heard again")
    }

    /// The verdicts of one look that changed something.
    fn judgement(&self, judge: &proto::JudgeSds) -> Option<Deed> {
        let mut changed: BTreeSet<SdsId> = self.sds.changes().map(|(id, ..)| id).collect();
        changed.extend(self.devices.changes().filter_map(|(.., now)| Some(now?.sds)));
        let effective = judge.verdicts.iter().filter_map(|verdict| verdict.verdict.as_ref());
        let mut deeds: Vec<Deed> = effective
            .filter(|verdict| changed.contains(&verdict.sds()))
            .map(|verdict| match verdict {
                Verdict::Lost(lost) => self.loss(lost),
                Verdict::Returned(returned) => self.return_of(returned),
            })
            .collect();
        if deeds.len() < 2 {
            return deeds.pop();
        }
        // The losses first: they are what people look for.
        deeds.sort_by_key(|deed| std::cmp::Reverse(deed.severity));
        let kind = deeds[0].kind;
        Some(Deed::of_several(kind, deeds))
    }

    /// Components whose status changed in one look, as one deed.
    fn transitions(&self, set: &proto::SetStatuses) -> Deed {
        let label = |entry: &proto::SetComponentStatus| {
            format!("{} {}", kind_word(entry.kind()), self.component_name(entry.kind(), entry.id))
        };
        let says = |entry: &proto::SetComponentStatus| {
            format!("is {}: {}", entry.status().as_str_name().trim_start_matches("STATUS_"), entry.why)
        };
        // Only what this command has changed.
        let changed: Vec<_> = set
            .entries
            .iter()
            .filter(|entry| {
                let component = validate::kind(entry.kind).map(|kind| Component { kind, id: entry.id });
                self.health.changes().any(|(key, ..)| component.as_ref().is_ok_and(|component| *component == key))
            })
            .collect();
        let deed = |entry: &&proto::SetComponentStatus| {
            let severity = if entry.status() == proto::Status::Active { Severity::Info } else { Severity::Warning };
            Deed::new("component.status", label(entry), says(entry)).severe(severity)
        };
        let mut deeds: Vec<Deed> = changed.iter().map(deed).collect();
        match deeds.len() {
            1 => deeds.remove(0),
            // Thousands at once would be a large row; each component's own row has its words.
            _ => Deed { parts: Vec::new(), ..Deed::of_several("component.status", deeds) },
        }
    }

    /// How long an SDS that keeps failing is kept out, as the end of a sentence.
    fn kept_out_words(&self, id: SdsId) -> String {
        let now = self.log_time();
        let losses = self.losses_of(id)[1];
        self.sds_kept_out(id, now).map_or_else(String::new, |until| kept_out_words(losses, now, until))
    }

    fn devices_kept_out(&self, lost: &proto::SdsLost) -> String {
        let now = self.log_time();
        let device = |life: &proto::DeviceLife| {
            let id = DeviceId(life.device_id);
            let until = self.device_kept_out(id, now)?;
            Some(kept_out_words(self.device(id)?.losses.counts(now)[1], now, until))
        };
        lost.devices.iter().find_map(device).unwrap_or_default()
    }

    /// Which copies left and joined the in-sync sets that primaries proposed.
    fn copies_moved(&self) -> String {
        let (mut left, mut joined) = (BTreeSet::new(), BTreeSet::new());
        let mut moved: BTreeSet<DeviceId> = BTreeSet::new();
        for (_, before, now) in self.pgs.changes() {
            let (Some(before), Some(now)) = (before, now) else { continue };
            let has = |pg: &crate::state::model::Pg, device| pg.config.member(device).is_some();
            // Whose copy has moved was not dropped.
            let gone = before.leaving.filter(|device| !now.replicas.contains(device));
            moved.extend(gone);
            let dropped = before.config.in_sync.iter().map(|m| m.device).filter(|device| Some(*device) != gone);
            left.extend(dropped.filter(|device| !has(now, *device)));
            joined.extend(now.config.in_sync.iter().map(|m| m.device).filter(|device| !has(before, *device)));
        }
        let copies = |devices: BTreeSet<DeviceId>| {
            let list = devices.iter().map(ToString::to_string).collect::<Vec<String>>().join(", ");
            if devices.len() == 1 { format!("copies on device {list}") } else { format!("copies on devices {list}") }
        };
        let from = match moved.is_empty() {
            true => String::new(),
            false => format!(", instead of {}", copies(moved)),
        };
        match (left.is_empty(), joined.is_empty()) {
            (true, true) => "as a primary changed the placement groups it serves".to_owned(),
            (false, true) => format!("as a primary dropped {}", copies(left)),
            (true, false) => format!("as a primary took in synced {}{from}", copies(joined)),
            (false, false) => format!("as a primary dropped {} and took in {}{from}", copies(left), copies(joined)),
        }
    }

    /// Which devices gave up places of copies to which others. All of a command in one sentence, however many groups.
    fn places_moved(&self) -> String {
        let (mut left, mut came) = (BTreeSet::new(), BTreeSet::new());
        let mut copies = 0;
        for (_, before, now) in self.pgs.changes() {
            let (Some(before), Some(now)) = (before, now) else { continue };
            left.extend(before.replicas.iter().copied().filter(|device| !now.replicas.contains(device)));
            let new = now.replicas.iter().copied().filter(|device| !before.replicas.contains(device));
            let new: Vec<DeviceId> = new.collect();
            copies += new.len();
            came.extend(new);
        }
        let list = |devices: &BTreeSet<DeviceId>| self.device_labels(devices);
        let copies =
            if copies == 1 { "1 copy gets a new home".to_owned() } else { format!("{copies} copies get new homes") };
        format!("{copies}: from {} to {}", list(&left), list(&came))
    }

    /// Which copies begin to move to which devices.
    fn moves_begun(&self, why: &str) -> String {
        let begun = self.pgs.changes().filter_map(|(.., now)| Some((now?.leaving?, now?.newcomer()?)));
        let begun: Vec<(DeviceId, DeviceId)> = begun.collect();
        if begun.is_empty() {
            return format!("nothing more is to move for {why}");
        }
        let list = |devices: BTreeSet<DeviceId>| self.device_labels(&devices);
        let (from, to) = (begun.iter().map(|step| step.0).collect(), begun.iter().map(|step| step.1).collect());
        let copies = u32::try_from(begun.len()).unwrap_or(u32::MAX);
        let begin = if copies == 1 { "begins" } else { "begin" };
        format!("{} {begin} to move for {why}: from {} to {}", counted_copies(copies), list(from), list(to))
    }

    /// Which devices lead more groups than before.
    fn leads_moved(&self) -> String {
        let led = self.pgs.changes().filter_map(|(.., now)| now?.config.primary);
        let to: BTreeSet<DeviceId> = led.collect();
        format!("leads even out, to {}", self.device_labels(&to))
    }

    /// Groups that were reported and are not part of the restored state.
    fn dropped_reports(&self) -> String {
        let gone = self.group_reports.changes().filter(|(id, before, now)| {
            now.is_none() && !self.pgs.contains(*id) && before.is_some_and(|before| before.base.is_none())
        });
        let gone: Vec<String> = gone.map(|(id, ..)| id.to_string()).collect();
        match gone.len() {
            0 => String::new(),
            n => {
                let shown = gone.iter().take(LISTED_GROUPS).cloned().collect::<Vec<_>>().join(", ");
                format!("; {n} groups are on devices and not in the backup, and stay closed: {shown}")
            }
        }
    }

    /// Copies that a group had in sync before and has no more.
    fn given_up(&self) -> String {
        let before = self.pgs.changes().filter_map(|(_, before, _)| before);
        let members = before.flat_map(|pg| &pg.config.in_sync).map(|member| self.device_label(member.device));
        members.collect::<Vec<_>>().join(", ")
    }

    fn group_label(&self, pool: &str, index: u32) -> String {
        self.pool_by_name(pool).map_or_else(|| format!("pg {pool}.{index}"), |pool| format!("pg {}.{index}", pool.id))
    }

    fn device_labels(&self, devices: &BTreeSet<DeviceId>) -> String {
        let mut said: Vec<String> = devices.iter().take(LISTED).map(|id| self.device_label(*id)).collect();
        if devices.len() > LISTED {
            said.push(format!("{} more", devices.len() - LISTED));
        }
        said.join(", ")
    }

    fn device_label(&self, id: DeviceId) -> String {
        let sds = self.device(id).map(|device| format!(" of {}", self.sds_label(device.sds)));
        format!("device {id}{}", sds.unwrap_or_default())
    }

    pub(super) fn sds_label(&self, id: SdsId) -> String {
        self.sds(id).map_or_else(|| format!("sds #{id}"), |sds| format!("sds {}", sds.name))
    }

    fn component_name(&self, kind: proto::Kind, id: u32) -> String {
        let name = match kind {
            proto::Kind::Sds => self.sds(SdsId(id)).map(|sds| sds.name.clone()),
            proto::Kind::Sdc => self.sdc(SdcId(id)).map(|sdc| sdc.name.clone()),
            _ => self.all_nodes().find(|node| node.component.id == id).map(|node| node.name.clone()),
        };
        name.unwrap_or_else(|| format!("#{id}"))
    }
}

fn kept_out_words(losses: u32, now: LogTime, until: LogTime) -> String {
    let wait = until.get().saturating_sub(now.get()).div_ceil(1_000);
    format!("; lost {losses} times within an hour, so it is taken back in {wait} s at the earliest")
}

fn counted_copies(copies: u32) -> String {
    if copies == 1 { "1 copy".to_owned() } else { format!("{copies} copies") }
}

/// `1 device`, `2 devices`.
fn counted(n: usize, noun: &str) -> String {
    if n == 1 { format!("1 {noun}") } else { format!("{n} {noun}s") }
}

const fn kind_word(kind: proto::Kind) -> &'static str {
    match kind {
        proto::Kind::Mdm => "mdm",
        proto::Kind::Sds => "sds",
        proto::Kind::Sdc => "sdc",
        proto::Kind::Mgmt => "mgmt",
        proto::Kind::Unspecified => "component",
    }
}
