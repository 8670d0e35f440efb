//! What the audit says of components, servers and devices: who came, who is lost, what failed on them.

use std::collections::BTreeSet;

use pflex_proto::ids::{DeviceId, LogTime, PoolId, SdsId};

use super::{Deed, labels::kind_word};
use crate::{
    command::proto,
    state::{
        State,
        apply::{validate, verdict::Verdict},
        model::{Component, Health, Severity, clock_words},
    },
};

const CLOCK: &str = "component.clock";

impl State {
    pub(super) fn loss(&self, lost: &proto::SdsLost) -> Deed {
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

    pub(super) fn scrubbed(&self, end: &proto::EndScrub) -> Deed {
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
    pub(super) fn faults(&self, note: &proto::NoteDevice) -> Deed {
        let id = DeviceId(note.device_id);
        let mut changes = self.devices.changes().filter(|(device, ..)| *device == id);
        let new = changes
            .find_map(|(_, before, now)| Some(now?.faults?.since(before.and_then(|device| device.faults.as_ref()))));
        let new = new.unwrap_or_default();
        let severity = if new.is_critical() { Severity::Critical } else { Severity::Warning };
        Deed::new("device.faults", self.device_label(id), new.words()).severe(severity)
    }

    pub(super) fn return_of(&self, returned: &proto::SdsReturned) -> Deed {
        Deed::new("sds.return", self.sds_label(SdsId(returned.sds_id)), "is heard again")
    }

    /// The verdicts of one look that changed something.
    pub(super) fn judgement(&self, judge: &proto::JudgeSds) -> Option<Deed> {
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
    pub(super) fn transitions(&self, set: &proto::SetStatuses) -> Deed {
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

    /// Clocks of which something new is known, as one deed.
    pub(super) fn clocks(&self) -> Option<Deed> {
        let deed = |(component, before, now): (Component, Option<&Health>, Option<&Health>)| {
            let (before, now) = (before.and_then(|health| health.clock_ahead_ms), now?.clock_ahead_ms);
            let object = self.component_label(component)?;
            let (what, severity) = match now {
                Some(ahead) => (clock_words(ahead), Severity::Warning),
                None => ("its clock agrees with the leader's again".to_owned(), Severity::Info),
            };
            (before != now).then(|| Deed::new(CLOCK, object, what).severe(severity))
        };
        let mut deeds: Vec<Deed> = self.health.changes().filter_map(deed).collect();
        if deeds.len() > 1 { Some(Deed { parts: Vec::new(), ..Deed::of_several(CLOCK, deeds) }) } else { deeds.pop() }
    }

    /// How long an SDS that keeps failing is kept out, as the end of a sentence.
    pub(super) fn kept_out_words(&self, id: SdsId) -> String {
        let now = self.log_time();
        let losses = self.losses_of(id)[1];
        self.sds_kept_out(id, now).map_or_else(String::new, |until| kept_out_words(losses, now, until))
    }

    pub(super) fn devices_kept_out(&self, lost: &proto::SdsLost) -> String {
        let now = self.log_time();
        let device = |life: &proto::DeviceLife| {
            let id = DeviceId(life.device_id);
            let until = self.device_kept_out(id, now)?;
            Some(kept_out_words(self.device(id)?.losses.counts(now)[1], now, until))
        };
        lost.devices.iter().find_map(device).unwrap_or_default()
    }
}

fn kept_out_words(losses: u32, now: LogTime, until: LogTime) -> String {
    let wait = until.get().saturating_sub(now.get()).div_ceil(1_000);
    format!("; lost {losses} times within an hour, so it is taken back in {wait} s at the earliest")
}
