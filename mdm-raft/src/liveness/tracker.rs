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
mod tests {
    use pflex_proto::ids::ProcessId;

    use super::*;

    const ONE: StreamId = StreamId(1);

    fn process(n: u8) -> ProcessId {
        ProcessId::from_bytes([n; 16])
    }

    fn known(alive: bool) -> Vec<Known> {
        vec![Known {
            sds: SdsId(1),
            process: process(1),
            alive,
            devices: vec![(DeviceId(1), Incarnation(1), alive)],
            kept_out: false,
            devices_kept_out: Vec::new(),
        }]
    }

    #[test]
    fn the_pace_of_resync_is_read_from_beats_and_forgotten_with_them() {
        let start = Instant::now();
        let at = |s: u64| start + Duration::from_secs(s);
        let mut tracker = Tracker::default();
        let mut beat = |s, left, sent| {
            let mut heard = heard(0, false);
            heard.devices[0].resync = (left, sent);
            tracker.beat(at(s), ONE, &heard);
            tracker.resync(at(s)).get(&DeviceId(1)).map(|resync| (resync.left_bytes, resync.bytes_per_second))
        };
        assert_eq!(beat(0, 0, 5_000), None, "what it sent to others before is not of now");
        assert_eq!(beat(1, 9_000, 5_000), Some((9_000, 0)));
        assert_eq!(beat(2, 8_000, 6_000), Some((8_000, 1_000)));
        assert_eq!(beat(3, 6_000, 8_000), Some((6_000, 1_300)), "the newest counts, and not alone");
        assert_eq!(beat(4, 0, 8_000), None, "all is sent");
        beat(5, 6_000, 9_000);
        assert!(tracker.resync(at(60)).is_empty(), "old news are none");
    }

    fn heard(completed_ios: u64, waiting: bool) -> Heard {
        let device = HeardDevice {
            device: DeviceId(1),
            incarnation: Incarnation(1),
            completed_ios,
            waiting,
            failed: None,
            resync: (0, 0),
            disk: (0, 0),
            faults: DeviceFaults::default(),
            scrub: HeardScrub::default(),
        };
        Heard { sds: SdsId(1), process: process(1), applied: Revision(5), newest_key: KeyId(1), devices: vec![device] }
    }

    /// As by default, and unbraked: these are about one SDS.
    fn verdicts(tracker: &mut Tracker, now: Instant, known: &[Known]) -> Vec<Verdict> {
        tracker.findings(now, known, &Thresholds::of(&Settings::default()), true).verdicts
    }

    /// Ticks each 100 ms from 0 until a verdict comes, at most `until`; beats come when `beat` says so.
    fn first(
        tracker: &mut Tracker,
        start: Instant,
        until: u64,
        known: &[Known],
        mut beat: impl FnMut(&mut Tracker, u64),
    ) -> Option<(u64, Verdict)> {
        for ms in (0..=until).step_by(100) {
            beat(tracker, ms);
            if let Some(verdict) = verdicts(tracker, start + Duration::from_millis(ms), known).pop() {
                return Some((ms, verdict));
            }
        }
        None
    }

    #[test]
    fn a_new_leader_gives_everybody_the_whole_timeout() {
        let found = first(&mut Tracker::default(), Instant::now(), 5_000, &known(true), |_, _| {});
        assert!(matches!(found, Some((3_000, Verdict::Lost { .. }))), "{found:?}");
    }

    #[test]
    fn who_beats_is_not_lost() {
        let start = Instant::now();
        let found = first(&mut Tracker::default(), start, 10_000, &known(true), |tracker, ms| {
            if ms % 1_000 == 0 {
                tracker.beat(start + Duration::from_millis(ms), ONE, &heard(0, false));
            }
        });
        assert_eq!(found, None);
    }

    #[test]
    fn a_refused_connection_after_a_broken_stream_is_believed_early() {
        let start = Instant::now();
        let found = first(&mut Tracker::default(), start, 5_000, &known(true), |tracker, ms| match ms {
            0 => tracker.beat(start, ONE, &heard(0, false)),
            100 => {
                tracker.refused(SdsId(1), process(1));
                assert!(tracker.to_probe().is_empty(), "a stream that stands is not probed");
                tracker.stream_ended(start + Duration::from_millis(ms), SdsId(1), ONE);
                assert_eq!(tracker.to_probe(), [(SdsId(1), process(1))]);
            }
            200 => tracker.refused(SdsId(1), process(1)),
            _ => {}
        });
        assert!(matches!(found, Some((400, Verdict::Lost { proven: true, .. }))), "{found:?}");
    }

    #[test]
    fn where_firewalls_refuse_only_silence_counts() {
        let (start, mut tracker) = (Instant::now(), Tracker::default());
        let thresholds = Thresholds { proof: false, ..Thresholds::of(&Settings::default()) };
        tracker.beat(start, ONE, &heard(0, false));
        tracker.stream_ended(start, SdsId(1), ONE);
        tracker.refused(SdsId(1), process(1));
        let mut look =
            |ms| tracker.findings(start + Duration::from_millis(ms), &known(true), &thresholds, true).verdicts;
        assert!((0..3_000).step_by(500).all(|ms| look(ms).is_empty()));
        assert!(matches!(look(3_000).as_slice(), [Verdict::Lost { proven: false, .. }]));
    }

    #[test]
    fn a_broken_stream_alone_proves_nothing() {
        let start = Instant::now();
        let found = first(&mut Tracker::default(), start, 5_000, &known(true), |tracker, ms| match ms {
            0 => tracker.beat(start, ONE, &heard(0, false)),
            100 => tracker.stream_ended(start + Duration::from_millis(ms), SdsId(1), ONE),
            // Back on another stream; the end of the old one, told late, is no news.
            500 => tracker.beat(start + Duration::from_millis(ms), StreamId(2), &heard(0, false)),
            600 => tracker.stream_ended(start + Duration::from_millis(ms), SdsId(1), ONE),
            _ => {}
        });
        assert!(matches!(found, Some((3_500, Verdict::Lost { .. }))), "{found:?}");
    }

    #[test]
    fn a_leader_that_slept_judges_nobody_by_it() {
        let start = Instant::now();
        let mut tracker = Tracker::default();
        tracker.beat(start, ONE, &heard(0, false));
        assert!(verdicts(&mut tracker, start, &known(true)).is_empty());
        assert!(verdicts(&mut tracker, start + Duration::from_secs(60), &known(true)).is_empty());
    }

    #[test]
    fn a_lost_sds_that_beats_again_returns() {
        let start = Instant::now();
        let mut tracker = Tracker::default();
        assert!(verdicts(&mut tracker, start, &known(false)).is_empty(), "unheard it stays lost");
        tracker.beat(start, ONE, &heard(0, false));
        let devices = vec![(DeviceId(1), Incarnation(1))];
        let returned = Verdict::Returned { sds: SdsId(1), process: process(1), devices };
        assert_eq!(verdicts(&mut tracker, start, &known(false)), [returned]);
    }

    #[test]
    fn a_device_that_only_waits_is_lost_and_returns_with_progress() {
        let start = Instant::now();
        let mut tracker = Tracker::default();
        let found = first(&mut tracker, start, 10_000, &known(true), |tracker, ms| {
            if ms % 1_000 == 0 {
                // Busy until 2 s, then stuck.
                tracker.beat(start + Duration::from_millis(ms), ONE, &heard(ms.min(2_000), true));
            }
        });
        assert!(matches!(found, Some((7_000, Verdict::DevicesLost { .. }))), "{found:?}");
        let later = start + Duration::from_millis(7_500);
        tracker.beat(later, ONE, &heard(3_000, true));
        let mut partly = known(true);
        partly[0].devices[0].2 = false;
        assert!(matches!(verdicts(&mut tracker, later, &partly).as_slice(), [Verdict::Returned { .. }]));
    }

    #[test]
    fn a_new_process_starts_afresh() {
        let start = Instant::now();
        let mut tracker = Tracker::default();
        tracker.beat(start, ONE, &heard(0, false));
        let mut restarted = known(true);
        restarted[0].process = process(2);
        assert!(verdicts(&mut tracker, start + Duration::from_millis(900), &restarted).is_empty());
        assert_eq!(tracker.applied(SdsId(1), process(1)), None);
        assert_eq!(tracker.applied(SdsId(1), process(2)), None, "nothing is confirmed before it is heard");
    }

    #[test]
    fn those_that_fell_silent_together_are_held_together_though_their_beats_differ() {
        let start = Instant::now();
        let known: Vec<Known> = (1..=3)
            .map(|n| Known {
                sds: SdsId(n),
                process: process(1),
                alive: true,
                devices: Vec::new(),
                kept_out: false,
                devices_kept_out: Vec::new(),
            })
            .collect();
        let thresholds = Thresholds::of(&Settings::default());
        let mut tracker = Tracker::default();
        for ms in (0..=12_000_u64).step_by(50) {
            let now = start + Duration::from_millis(ms);
            // Beats 400 ms apart in phase; 2 and 3 stop at the same time.
            for n in 1..=3_u32 {
                if (ms + 400 * u64::from(n)).is_multiple_of(1_000) && (n == 1 || ms <= 5_000) {
                    let heard = Heard { sds: SdsId(n), devices: Vec::new(), ..heard(0, false) };
                    tracker.beat(now, StreamId(n.into()), &heard);
                }
            }
            let findings = tracker.findings(now, &known, &thresholds, false);
            assert!(findings.verdicts.is_empty(), "at {ms} ms: {findings:?}");
            if let Some(held) = findings.held {
                assert_eq!(held, TooMany { silent: 2, of: 3 });
                return;
            }
        }
        panic!("two of three are silent and nothing was held");
    }

    #[test]
    fn silence_of_most_is_held_and_a_proof_of_death_is_not() {
        let start = Instant::now();
        let late = start + Duration::from_millis(3_000);
        let known: Vec<Known> = (1..=3)
            .map(|n| Known {
                sds: SdsId(n),
                process: process(1),
                alive: true,
                devices: Vec::new(),
                kept_out: false,
                devices_kept_out: Vec::new(),
            })
            .collect();
        let thresholds = Thresholds::of(&Settings::default());
        let mut tracker = Tracker::default();
        for n in 1..=3 {
            let heard = Heard { sds: SdsId(n), devices: Vec::new(), ..heard(0, false) };
            tracker.beat(start, StreamId(n.into()), &heard);
        }
        let mut at = |now, unbraked| {
            // Ticks come often, or the leader slept.
            tracker.last_tick = Some(now);
            tracker.findings(now, &known, &thresholds, unbraked)
        };
        assert!(at(start, false).verdicts.is_empty());
        let findings = at(late, false);
        assert_eq!(findings.held, Some(TooMany { silent: 3, of: 3 }));
        assert!(findings.verdicts.is_empty());
        assert_eq!(at(late, true).verdicts.len(), 3, "a successor believes it");

        for n in 1..=3 {
            tracker.stream_ended(start, SdsId(n), StreamId(n.into()));
            tracker.refused(SdsId(n), process(1));
        }
        tracker.last_tick = Some(late);
        let findings = tracker.findings(late, &known, &thresholds, false);
        assert_eq!((findings.held, findings.verdicts.len()), (None, 3), "dead is dead, however many");
    }
}
