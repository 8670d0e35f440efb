//! What the leader heard from whom and what follows from it: pure, time comes in.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use pflex_proto::ids::{DeviceId, Incarnation, KeyId, ProcessId, Revision, SdsId};

use super::{
    StreamId,
    brake::{Brake, TooMany},
    device::{DeviceEntry, HeardDevice, HeardScrub, Resync},
    homes::Refused,
    slow::Disk,
};
use crate::state::model::{DeviceFaults, Setting, Settings};

/// How often an SDS says that it is there.
const BEAT: Duration = Duration::from_secs(1);

/// What a beat said of resync is shown for this long.
const RESYNC_GOOD: Duration = Duration::from_secs(5);

/// How long who may be silent: the settings of the cluster (`pflex cluster set`).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Thresholds {
    /// An SDS silent for this long is lost. Also the grace of a new leader, who has heard nobody yet.
    pub(super) silence: Duration,
    /// A broken stream and a refused connection are believed after this long: a process that merely reconnects is back.
    pub(super) refused: Duration,
    /// A device whose IO waits without any completing for this long is lost. By default longer than S23's second: a
    /// wrong verdict on a busy disk costs a resync.
    pub(super) stalled: Duration,
    /// Whether a broken stream and a refused connection prove anything (S8).
    pub(super) proof: bool,
}

impl Thresholds {
    pub(super) fn of(settings: &Settings) -> Self {
        let ms = |setting| Duration::from_millis(settings.get(setting));
        Self {
            silence: ms(Setting::LivenessSilence),
            refused: ms(Setting::LivenessRefused),
            stalled: ms(Setting::DeviceStall),
            proof: settings.get(Setting::ProofOfDeath) != 0,
        }
    }
}

/// A tick this late means that this process slept: what it did not hear then proves nothing.
const SLEPT: Duration = Duration::from_secs(1);

/// A beat, checked.
#[derive(Clone, Debug)]
pub(crate) struct Heard {
    pub(crate) sds: SdsId,
    pub(crate) process: ProcessId,
    pub(crate) applied: Revision,
    /// It verifies tokens with every generation of the secret up to this one.
    pub(crate) newest_key: KeyId,
    pub(crate) devices: Vec<HeardDevice>,
}

/// An SDS as the state has it.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) sds: SdsId,
    pub(super) process: ProcessId,
    pub(super) alive: bool,
    /// Device, present life, in service.
    pub(super) devices: Vec<(DeviceId, Incarnation, bool)>,
    /// It keeps failing, and is not taken back yet (S23).
    pub(super) kept_out: bool,
    /// Its devices that do.
    pub(super) devices_kept_out: Vec<DeviceId>,
}

/// A conclusion about one process of an SDS.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// The whole SDS is gone.
    Lost { sds: SdsId, process: ProcessId, proven: bool, why: String },
    /// Only these devices are.
    DevicesLost { sds: SdsId, process: ProcessId, devices: Vec<(DeviceId, Incarnation)>, why: String },
    /// It is heard again, with these devices.
    Returned { sds: SdsId, process: ProcessId, devices: Vec<(DeviceId, Incarnation)> },
}

/// What follows from a look at all SDSs.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// To be executed now.
    pub(super) verdicts: Vec<Verdict>,
    /// Verdicts by silence wait, because there are too many of them.
    pub(super) held: Option<TooMany>,
}

/// What is known of one SDS process.
#[derive(Debug)]
struct Entry {
    process: ProcessId,
    last_heard: Instant,
    /// Heard in this leadership, not only known from the state.
    heard: bool,
    stream: Option<StreamId>,
    /// Since when its stream is broken.
    broken: Option<Instant>,
    /// Its control port refused a connection since then.
    refused: bool,
    applied: Revision,
    newest_key: KeyId,
    devices: BTreeMap<DeviceId, DeviceEntry>,
}

/// The leader's memory of who beats. Empty on other members.
#[derive(Debug, Default)]
pub(super) struct Tracker {
    entries: BTreeMap<SdsId, Entry>,
    brake: Brake,
    last_tick: Option<Instant>,
}

impl Tracker {
    /// A new leadership: nobody was heard yet, and everybody has the whole timeout.
    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }

    /// A beat arrived on a stream.
    pub(super) fn beat(&mut self, now: Instant, stream: StreamId, heard: &Heard) {
        let entry = self.entries.entry(heard.sds).or_insert_with(|| Entry::new(heard.process, now));
        if entry.process != heard.process {
            *entry = Entry::new(heard.process, now);
        }
        entry.last_heard = now;
        entry.heard = true;
        entry.stream = Some(stream);
        entry.broken = None;
        entry.refused = false;
        entry.applied = entry.applied.max(heard.applied);
        entry.newest_key = heard.newest_key;
        entry.devices.retain(|id, _| heard.devices.iter().any(|device| device.device == *id));
        for device in &heard.devices {
            entry.devices.entry(device.device).or_insert_with(|| DeviceEntry::new(device, now)).update(device, now);
        }
    }

    /// A stream ended, for whatever reason; an older one than the present says nothing.
    pub(super) fn stream_ended(&mut self, now: Instant, sds: SdsId, stream: StreamId) {
        if let Some(entry) = self.entries.get_mut(&sds).filter(|entry| entry.stream == Some(stream)) {
            entry.stream = None;
            entry.broken = Some(now);
        }
    }

    /// Whose control port should be tried: those whose stream is broken.
    pub(super) fn to_probe(&self) -> Vec<(SdsId, ProcessId)> {
        let broken = self.entries.iter().filter(|(_, entry)| entry.broken.is_some() && !entry.refused);
        broken.map(|(sds, entry)| (*sds, entry.process)).collect()
    }

    /// The control port answered that nobody listens there.
    pub(super) fn refused(&mut self, sds: SdsId, process: ProcessId) {
        if let Some(entry) = self.entries.get_mut(&sds).filter(|e| e.process == process && e.broken.is_some()) {
            entry.refused = true;
        }
    }

    /// How long nobody has heard it, if anybody has in this leadership.
    pub(super) fn silence(&self, now: Instant, sds: SdsId) -> Option<Duration> {
        let entry = self.entries.get(&sds).filter(|entry| entry.heard)?;
        Some(now.saturating_duration_since(entry.last_heard))
    }

    /// What the devices of those who beat say of the copies they fill.
    pub(super) fn resync(&self, now: Instant) -> BTreeMap<DeviceId, Resync> {
        let heard = self.entries.values().filter(|entry| now.saturating_duration_since(entry.last_heard) < RESYNC_GOOD);
        let devices = heard.flat_map(|entry| &entry.devices).filter(|(_, device)| device.resync != Resync::default());
        devices.map(|(id, device)| (*id, device.resync)).collect()
    }

    /// How fast the disks of those who beat are.
    pub(super) fn disks(&self) -> BTreeMap<DeviceId, Disk> {
        let devices = self.entries.values().filter(|entry| entry.heard).flat_map(|entry| &entry.devices);
        devices.map(|(id, device)| (*id, device.disk())).collect()
    }

    /// What the devices of those who beat say of their disks, and of the scrub.
    pub(super) fn faults(&self, now: Instant) -> BTreeMap<DeviceId, (DeviceFaults, HeardScrub)> {
        let heard = self.entries.values().filter(|entry| now.saturating_duration_since(entry.last_heard) < RESYNC_GOOD);
        let devices = heard.flat_map(|entry| &entry.devices);
        devices.map(|(id, device)| (*id, (device.faults, device.scrub))).collect()
    }

    /// The copies that those who beat cannot fill for want of room where they belong.
    pub(super) fn no_room(&self, now: Instant) -> Refused {
        let heard = self.entries.values().filter(|entry| now.saturating_duration_since(entry.last_heard) < RESYNC_GOOD);
        heard.flat_map(|entry| entry.devices.values()).flat_map(|device| device.no_room.iter().copied()).collect()
    }

    /// What the registered process of an SDS has in force.
    pub(super) fn applied(&self, sds: SdsId, process: ProcessId) -> Option<Revision> {
        self.entries.get(&sds).filter(|entry| entry.process == process && entry.heard).map(|entry| entry.applied)
    }

    /// Up to which generation of the secret this process has said that it verifies, in this leadership.
    pub(super) fn newest_key(&self, sds: SdsId, process: ProcessId) -> Option<KeyId> {
        self.entries.get(&sds).filter(|entry| entry.process == process && entry.heard).map(|entry| entry.newest_key)
    }

    /// What follows, given the SDSs that the state has registered. With `unbraked`, silence is believed of any number.
    pub(super) fn findings(
        &mut self,
        now: Instant,
        known: &[Known],
        thresholds: &Thresholds,
        unbraked: bool,
    ) -> Findings {
        let slept = self.last_tick.is_some_and(|last| now.saturating_duration_since(last) > SLEPT);
        self.last_tick = Some(now);
        let registered: BTreeSet<SdsId> = known.iter().map(|row| row.sds).collect();
        self.entries.retain(|sds, _| registered.contains(sds));
        let (mut verdicts, mut silent, mut doubtful) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
        for row in known {
            let entry = self.entries.entry(row.sds).or_insert_with(|| Entry::new(row.process, now));
            if entry.process != row.process {
                // Registered and not heard yet: its time begins now.
                *entry = Entry::new(row.process, now);
            }
            if slept {
                entry.last_heard = now;
                entry.devices.values_mut().for_each(|device| device.excused(now));
            }
            if row.alive && !entry.proven_dead(now, thresholds) {
                if entry.silent(now, thresholds) {
                    silent.insert(row.sds);
                }
                if entry.doubtful(now, thresholds) {
                    doubtful.insert(row.sds);
                }
            }
            verdicts.extend(entry.verdict(now, row, thresholds));
        }
        let alive = known.iter().filter(|row| row.alive).map(|row| row.sds).collect();
        let too_many = self.brake.look(now, thresholds.silence, &doubtful, &alive);
        let held = too_many.filter(|_| !unbraked && !silent.is_empty());
        if held.is_some() {
            verdicts.retain(|verdict| !matches!(verdict, Verdict::Lost { sds, .. } if silent.contains(sds)));
        }
        Findings { verdicts, held }
    }
}

impl Entry {
    fn new(process: ProcessId, now: Instant) -> Self {
        Self {
            process,
            last_heard: now,
            heard: false,
            stream: None,
            broken: None,
            refused: false,
            applied: Revision(0),
            newest_key: KeyId(0),
            devices: BTreeMap::new(),
        }
    }

    fn verdict(&self, now: Instant, row: &Known, thresholds: &Thresholds) -> Option<Verdict> {
        let (sds, process) = (row.sds, self.process);
        if row.alive
            && let Some(why) = self.lost(now, thresholds)
        {
            return Some(Verdict::Lost { sds, process, proven: self.proven_dead(now, thresholds), why });
        }
        if self.stream.is_none() || self.silent(now, thresholds) {
            return None;
        }
        let sick = |device: &(DeviceId, Incarnation, bool)| self.sick(now, device.0, device.1, thresholds);
        let welcome = |device: &DeviceId| !row.devices_kept_out.contains(device);
        if !row.alive {
            if row.kept_out {
                return None;
            }
            let well = row.devices.iter().filter(|d| welcome(&d.0) && self.has_open(d.0, d.1) && sick(d).is_none());
            return Some(Verdict::Returned { sds, process, devices: well.map(|d| (d.0, d.1)).collect() });
        }
        let lost: Vec<_> = row.devices.iter().filter(|d| d.2).filter_map(|d| Some((d.0, d.1, sick(d)?))).collect();
        if let Some((_, _, why)) = lost.first() {
            let (why, devices) = (why.clone(), lost.iter().map(|d| (d.0, d.1)).collect());
            return Some(Verdict::DevicesLost { sds, process, devices, why });
        }
        let well: Vec<_> = row
            .devices
            .iter()
            .filter(|d| !d.2 && welcome(&d.0) && self.has_open(d.0, d.1) && sick(d).is_none())
            .map(|d| (d.0, d.1))
            .collect();
        (!well.is_empty()).then_some(Verdict::Returned { sds, process, devices: well })
    }

    fn silent(&self, now: Instant, thresholds: &Thresholds) -> bool {
        now.saturating_duration_since(self.last_heard) >= thresholds.silence
    }

    /// Beats missed that nothing but bad luck explains, though it is not lost yet. Of SDSs that fall silent together the
    /// last has its timeout up to a beat after the first: by then the first would be judged alone.
    fn doubtful(&self, now: Instant, thresholds: &Thresholds) -> bool {
        let quiet = now.saturating_duration_since(self.last_heard);
        quiet >= thresholds.silence.saturating_sub(BEAT).max(thresholds.silence / 2)
    }

    /// Its stream broke and its host says that nobody listens there any more (S8).
    fn proven_dead(&self, now: Instant, thresholds: &Thresholds) -> bool {
        let broken = self.broken.filter(|_| self.refused && thresholds.proof);
        broken.is_some_and(|since| now.saturating_duration_since(since) >= thresholds.refused)
    }

    /// Why the whole SDS is lost.
    fn lost(&self, now: Instant, thresholds: &Thresholds) -> Option<String> {
        if self.proven_dead(now, thresholds) {
            Some("its connections closed and its control port refuses new ones".to_owned())
        } else if self.silent(now, thresholds) {
            Some(format!("silent for {} ms", thresholds.silence.as_millis()))
        } else {
            None
        }
    }

    fn has_open(&self, device: DeviceId, incarnation: Incarnation) -> bool {
        self.devices.get(&device).is_some_and(|entry| entry.incarnation == incarnation)
    }

    /// Why a device is lost. One that a beat does not mention is not judged by it.
    fn sick(
        &self,
        now: Instant,
        device: DeviceId,
        incarnation: Incarnation,
        thresholds: &Thresholds,
    ) -> Option<String> {
        let entry = self.devices.get(&device).filter(|entry| entry.incarnation == incarnation)?;
        entry.sick(now, thresholds.stalled).map(|why| format!("device {device} {why}"))
    }
}

#[cfg(test)]
mod tests;
