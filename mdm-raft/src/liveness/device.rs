//! One device as the beats of its process tell of it: whether it makes progress, and how fast it fills other copies. Pure.

use std::time::{Duration, Instant};

use pflex_proto::ids::{DeviceId, Incarnation, PgId, Revision};

use super::slow::Disk;
use crate::state::model::{DeviceFaults, ScrubFound};

/// Two beats nearer than this give no rate.
const LEAST_INTERVAL_MS: u128 = 100;

/// What a beat says of a device.
#[derive(Clone, Debug)]
pub(crate) struct HeardDevice {
    pub(crate) device: DeviceId,
    pub(crate) incarnation: Incarnation,
    pub(crate) completed_ios: u64,
    pub(crate) waiting: bool,
    pub(crate) failed: Option<String>,
    /// Bytes that its groups' new copies may still lack, and those sent to them since its process started.
    pub(crate) resync: (u64, u64),
    /// Operations of its disk and the microseconds they took, since its process started.
    pub(crate) disk: (u64, u64),
    /// What it has counted of its disk in this life.
    pub(crate) faults: DeviceFaults,
    pub(crate) scrub: HeardScrub,
    /// Copies of groups that it leads, on devices that have no room for them.
    pub(crate) no_room: Vec<(PgId, DeviceId)>,
}

/// How far a device is with its part of a scrub.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct HeardScrub {
    /// The order it is at; 0: none.
    pub(crate) pass: u64,
    pub(crate) done: bool,
    /// The map that this follows from: who led what then.
    pub(crate) as_of: Revision,
    /// Of this pass.
    pub(crate) found: ScrubFound,
}

/// How fast a device fills the copies of which it is primary.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Resync {
    /// At most this much is still to be sent.
    pub(crate) left_bytes: u64,
    /// Of the last beats, the newest counting most.
    pub(crate) bytes_per_second: u64,
}

/// What is known of one device of a process.
#[derive(Debug)]
pub(super) struct DeviceEntry {
    pub(super) incarnation: Incarnation,
    completed_ios: u64,
    /// When it last completed something or had nothing to do.
    progress: Instant,
    failed: Option<String>,
    pub(super) resync: Resync,
    pub(super) faults: DeviceFaults,
    pub(super) scrub: HeardScrub,
    pub(super) no_room: Vec<(PgId, DeviceId)>,
    /// Bytes sent as of the last beat, and when that was.
    resync_sent: (u64, Instant),
    disk: (u64, u64),
}

impl DeviceEntry {
    pub(super) fn new(heard: &HeardDevice, now: Instant) -> Self {
        Self {
            incarnation: heard.incarnation,
            completed_ios: heard.completed_ios,
            progress: now,
            failed: None,
            resync: Resync::default(),
            faults: heard.faults,
            scrub: heard.scrub,
            no_room: Vec::new(),
            resync_sent: (heard.resync.1, now),
            disk: heard.disk,
        }
    }

    pub(super) fn update(&mut self, heard: &HeardDevice, now: Instant) {
        if !heard.waiting || heard.completed_ios != self.completed_ios || heard.incarnation != self.incarnation {
            self.progress = now;
        }
        let (left_bytes, sent) = heard.resync;
        let (sent_before, at) = self.resync_sent;
        let took_ms = now.saturating_duration_since(at).as_millis();
        self.resync.left_bytes = left_bytes;
        if took_ms >= LEAST_INTERVAL_MS {
            let rate = u128::from(sent.saturating_sub(sent_before)) * 1_000 / took_ms;
            let rate = u64::try_from(rate).unwrap_or(u64::MAX);
            let before = self.resync.bytes_per_second;
            // A steady figure, and nothing at once when all is sent.
            let smooth = if before == 0 { rate } else { before / 10 * 7 + rate / 10 * 3 };
            self.resync.bytes_per_second = if left_bytes == 0 && rate == 0 { 0 } else { smooth };
            self.resync_sent = (sent, now);
        }
        self.disk = heard.disk;
        (self.faults, self.scrub) = (heard.faults, heard.scrub);
        self.incarnation = heard.incarnation;
        self.completed_ios = heard.completed_ios;
        self.failed.clone_from(&heard.failed);
        self.no_room.clone_from(&heard.no_room);
    }

    pub(super) const fn disk(&self) -> Disk {
        Disk { incarnation: self.incarnation, ios: self.disk.0, us: self.disk.1 }
    }

    /// The time until now does not count: nobody looked.
    pub(super) const fn excused(&mut self, now: Instant) {
        self.progress = now;
    }

    /// What is wrong with it, to be read after its name.
    pub(super) fn sick(&self, now: Instant, stalled_after: Duration) -> Option<String> {
        if let Some(why) = &self.failed {
            return Some(format!("failed: {why}"));
        }
        let stalled = now.saturating_duration_since(self.progress);
        (stalled >= stalled_after).then(|| format!("completed nothing for {} s", stalled.as_secs()))
    }
}
