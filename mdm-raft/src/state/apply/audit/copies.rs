//! What the audit says of placement groups and their copies, from what the running apply has changed.

use std::collections::BTreeSet;

use pflex_proto::ids::DeviceId;

use super::labels::counted_copies;
use crate::{command::proto, state::State};

/// Groups that an event lists one by one.
const LISTED_GROUPS: usize = 16;

impl State {
    /// Which copies left and joined the in-sync sets that primaries proposed.
    pub(super) fn copies_moved(&self) -> String {
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
    pub(super) fn places_moved(&self) -> String {
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

    /// Which devices had no room for copies, and what became of those.
    pub(super) fn found_no_room(&self, moves: &proto::MoveCopies) -> String {
        let full: BTreeSet<DeviceId> = moves.moves.iter().map(|step| DeviceId(step.from_device_id)).collect();
        let (mut off, mut elsewhere) = (0, BTreeSet::new());
        for (_, before, now) in self.pgs.changes() {
            let (Some(before), Some(now)) = (before, now) else { continue };
            off += u32::from(before.leaving.is_some() && now.leaving.is_none());
            elsewhere.extend(now.replicas.iter().copied().filter(|device| !before.replicas.contains(device)));
        }
        let mut what = format!("no room on {} for copies that were to be filled there", self.device_labels(&full));
        match off {
            0 => {}
            1 => what.push_str(": 1 move is called off"),
            off => what.push_str(&format!(": {off} moves are called off")),
        }
        if !elsewhere.is_empty() {
            what.push_str(&format!(": new homes on {}", self.device_labels(&elsewhere)));
        }
        if off == 0 && elsewhere.is_empty() {
            what.push_str(", and nobody else may have them: they stay incomplete until there is room");
        }
        what
    }

    /// Which copies begin to move to which devices.
    pub(super) fn moves_begun(&self, why: &str) -> String {
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
    pub(super) fn leads_moved(&self) -> String {
        let led = self.pgs.changes().filter_map(|(.., now)| now?.config.primary);
        let to: BTreeSet<DeviceId> = led.collect();
        format!("leads even out, to {}", self.device_labels(&to))
    }

    /// Which pools have more groups than before.
    pub(super) fn doubled_words(&self) -> Option<String> {
        let doubled = self.pools.changes().filter_map(|(_, before, now)| Some((before?, now?)));
        let doubled = doubled.filter(|(before, now)| before.pg_count < now.pg_count);
        let words = doubled.map(|(before, now)| {
            format!("the placement groups of pool {} doubled, from {} to {}", now.name, before.pg_count, now.pg_count)
        });
        let words = words.collect::<Vec<_>>().join(", ");
        (!words.is_empty()).then_some(words)
    }

    /// Groups that were reported and are not part of the restored state.
    pub(super) fn dropped_reports(&self) -> String {
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
    pub(super) fn given_up(&self) -> String {
        let before = self.pgs.changes().filter_map(|(_, before, _)| before);
        let members = before.flat_map(|pg| &pg.config.in_sync).map(|member| self.device_label(member.device));
        members.collect::<Vec<_>>().join(", ")
    }
}
