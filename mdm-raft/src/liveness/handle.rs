//! The tracker behind its lock, as streams, the worker and revocations use it.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use pflex_proto::ids::{DeviceId, KeyId, ProcessId, Revision, SdsId};
use tokio::sync::watch;

use super::{
    device::{HeardScrub, Resync},
    homes::Refused,
    slow::Disk,
    tracker::{Findings, Heard, Known, Thresholds, Tracker},
};
use crate::state::{State, model::DeviceFaults};

/// One liveness stream, told apart from an earlier one of the same SDS.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct StreamId(pub(super) u64);

/// What the leader knows of who is alive. Clones share it.
#[derive(Clone)]
pub struct Liveness(Arc<Inner>);

struct Inner {
    tracker: Mutex<Tracker>,
    next_stream: AtomicU64,
    /// Changes with every beat: somebody may have confirmed a revision.
    beats: watch::Sender<u64>,
}

impl Default for Liveness {
    fn default() -> Self {
        Self(Arc::new(Inner { tracker: Mutex::default(), next_stream: AtomicU64::new(1), beats: watch::channel(0).0 }))
    }
}

impl Liveness {
    pub(crate) fn open_stream(&self) -> StreamId {
        StreamId(self.0.next_stream.fetch_add(1, Ordering::Relaxed))
    }

    pub(crate) fn beat(&self, stream: StreamId, heard: &Heard) {
        self.tracker().beat(Instant::now(), stream, heard);
        self.0.beats.send_modify(|count| *count += 1);
    }

    pub(crate) fn stream_ended(&self, sds: SdsId, stream: StreamId) {
        self.tracker().stream_ended(Instant::now(), sds, stream);
    }

    /// The newest revision that this process of the SDS has said is in force there.
    pub(crate) fn applied(&self, sds: SdsId, process: ProcessId) -> Option<Revision> {
        self.tracker().applied(sds, process)
    }

    /// The live SDSs that have not said yet that they verify tokens with this generation of the secret.
    pub(crate) fn without_key(&self, state: &State, key: KeyId) -> Vec<String> {
        let tracker = self.tracker();
        let lacks = |sds, process| tracker.newest_key(sds, process).is_none_or(|newest| newest < key);
        state.live_sds().filter(|(sds, process)| lacks(sds.id, *process)).map(|(sds, _)| sds.name.clone()).collect()
    }

    /// How long nobody has heard an SDS; none of one that was not heard in this leadership.
    pub(crate) fn silence(&self, sds: SdsId) -> Option<Duration> {
        self.tracker().silence(Instant::now(), sds)
    }

    /// How fast devices fill the copies of which they are primary; only what the last beats said.
    pub(crate) fn resync(&self) -> BTreeMap<DeviceId, Resync> {
        self.tracker().resync(Instant::now())
    }

    /// See [`Tracker::no_room`].
    pub(super) fn no_room(&self) -> Refused {
        self.tracker().no_room(Instant::now())
    }

    pub(super) fn disks(&self) -> BTreeMap<DeviceId, Disk> {
        self.tracker().disks()
    }

    /// What devices say of their disks and of the scrub; only what the last beats said.
    pub(crate) fn faults(&self) -> BTreeMap<DeviceId, (DeviceFaults, HeardScrub)> {
        self.tracker().faults(Instant::now())
    }

    /// Changes with every beat.
    pub(crate) fn beats(&self) -> watch::Receiver<u64> {
        self.0.beats.subscribe()
    }

    pub(super) fn reset(&self) {
        self.tracker().reset();
    }

    pub(super) fn to_probe(&self) -> Vec<(SdsId, ProcessId)> {
        self.tracker().to_probe()
    }

    pub(super) fn refused(&self, sds: SdsId, process: ProcessId) {
        self.tracker().refused(sds, process);
    }

    pub(super) fn findings(&self, known: &[Known], thresholds: &Thresholds, unbraked: bool) -> Findings {
        self.tracker().findings(Instant::now(), known, thresholds, unbraked)
    }

    fn tracker(&self) -> MutexGuard<'_, Tracker> {
        self.0.tracker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
