//! What the rest of the process sees of a data thread.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use pflex_common::{clock::MonotonicTime, histogram::Histogram};
use pflex_proto::{
    ids::{DeviceId, Member, PgId, Revision},
    pb::DeviceRates,
};
use tokio::sync::{mpsc, oneshot};

use super::{
    command::Command,
    rates::{Look, Rates},
};
use crate::device::Meter;

/// Commands that may wait for a data thread. Maps and stamps come a few times a second, connections in bursts when a
/// server returns.
pub(super) const MAX_COMMANDS: usize = 1024;

/// A disk that works answers within this; after it the leader is told that something waits.
const DISK_WAITS: Duration = Duration::from_secs(1);
/// One that lets an operation wait this long while others go past it is out of service.
const DISK_HANGS: Duration = Duration::from_secs(15);

/// Counters that the data thread writes and anyone reads.
#[derive(Debug, Default)]
pub(crate) struct DeviceCounters {
    pub(crate) reads: AtomicU64,
    pub(crate) read_bytes: AtomicU64,
    pub(crate) writes: AtomicU64,
    pub(crate) written_bytes: AtomicU64,
    pub(crate) completed: AtomicU64,
    /// Requests refused for their token's sake.
    pub(crate) bad_tokens: AtomicU64,
    pub(crate) waiting: AtomicBool,
    /// Why the store does not work any more; never again empty.
    pub(crate) poison: OnceLock<String>,
    /// Groups of which the only copy in sync is here, and could not apply a write (S4).
    pub(crate) stuck_groups: AtomicU32,
    /// No room for another chunk.
    pub(crate) full: AtomicBool,
    /// What the device is on has no space left.
    pub(crate) starved: AtomicBool,
    /// The chunks are sorted into more placement groups than the newest map has, of which nothing is followed (S19, S25).
    pub(crate) ahead_of_map: AtomicBool,
    /// Why a copy that this device should fill stays incomplete. Written when it changes, at most once in a tick.
    join_trouble: Mutex<Option<String>>,
    /// Copies that this device should fill, and the devices that have no room for them. Written as that.
    no_room: Mutex<Vec<(PgId, DeviceId)>>,
    /// Turns of the loop: it stands still only if the thread hangs.
    pub(crate) turns: AtomicU64,
    /// For how long it has not turned; 0 unless that is too long. Written by the watchdog, not by the thread.
    pub(crate) hung_ms: AtomicU64,
    pub(crate) capacity_bytes: AtomicU64,
    pub(crate) used_bytes: AtomicU64,
    pub(crate) journal_bytes: AtomicU64,
    pub(crate) journal_used_bytes: AtomicU64,
    pub(crate) pgs_primary: AtomicU32,
    pub(crate) pgs_backup: AtomicU32,
    pub(crate) pgs_joining: AtomicU32,
    /// Of the copies this device fills as primary: the chunks still to be compared, whole.
    pub(crate) resync_left_bytes: AtomicU64,
    /// To such copies, since the process started.
    pub(crate) resync_sent_bytes: AtomicU64,
    /// Blocks that could not be read here and were put back from another copy (S13).
    pub(crate) repaired_blocks: AtomicU64,
    /// Blocks that could not be read here and that no other copy had, each time one was asked for.
    pub(crate) unreadable_blocks: AtomicU64,
    /// The pass of the scrub that this device is at, and whether it has done its part of it.
    pub(crate) scrub_pass: AtomicU64,
    pub(crate) scrub_done: AtomicBool,
    /// Of that pass: chunks looked at, and those left in the group that is being looked at and the groups to come.
    pub(crate) scrubbed_chunks: AtomicU64,
    pub(crate) scrub_left_chunks: AtomicU64,
    /// Blocks that a scrub found unreadable on some copy, since the process started.
    pub(crate) scrub_bad_blocks: AtomicU64,
    /// Copies that a scrub found to differ from the one of this primary, since the process started: I4 was broken.
    pub(crate) scrub_mismatches: AtomicU64,
    /// Both of the present pass alone.
    pub(crate) scrub_pass_bad_blocks: AtomicU64,
    pub(crate) scrub_pass_mismatches: AtomicU64,
    /// Chunks of groups that this device leads of which something is known to be unreadable on every copy.
    pub(crate) unreadable_chunks: AtomicU64,
    /// Map changes up to here are in force and older admissions have drained (S20).
    pub(crate) confirmed: AtomicU64,
    /// Tokens are verified with every generation of the secret up to this one; 0: with none yet.
    pub(crate) newest_key: AtomicU32,
    /// Clients' reads that were answered with data: from admission to answer.
    pub(crate) read_latency: Histogram,
    /// Clients' writes that were acknowledged.
    pub(crate) write_latency: Histogram,
    /// Its disk's operations.
    pub(crate) meter: Arc<Meter>,
    rates: Mutex<Rates>,
}

impl DeviceCounters {
    pub(super) fn new(meter: Arc<Meter>) -> Self {
        Self { meter, ..Self::default() }
    }

    /// Something waits: a client's request, or the disk for longer than a working one takes.
    pub(crate) fn waits(&self, now: MonotonicTime) -> bool {
        self.waiting.load(Ordering::Relaxed) || self.meter.oldest(now).is_some_and(|age| age > DISK_WAITS)
    }

    /// Whatever was completed: with something that waits and nothing completed, a device makes no progress.
    pub(crate) fn progress(&self) -> u64 {
        self.completed.load(Ordering::Relaxed).wrapping_add(self.meter.completed().0)
    }

    /// Written and read by the process's own runtime, not by the data thread.
    fn rates(&self) -> MutexGuard<'_, Rates> {
        self.rates.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Said each second, for [`Self::rates_now`].
    pub(crate) fn look_at_rates(&self) {
        let of = [&self.reads, &self.read_bytes, &self.writes, &self.written_bytes, &self.resync_sent_bytes];
        let counts = of.map(|counter| counter.load(Ordering::Relaxed));
        self.rates().add(Look { at: MonotonicTime::now(), counts });
    }

    /// Of the last ten seconds.
    pub(crate) fn rates_now(&self) -> DeviceRates {
        self.rates().get()
    }

    pub(crate) fn confirmed(&self) -> Revision {
        Revision(self.confirmed.load(Ordering::Acquire))
    }

    pub(super) fn say_join_trouble(&self, trouble: Option<String>) {
        let mut said = self.join_trouble.lock().unwrap_or_else(PoisonError::into_inner);
        if *said != trouble {
            if let Some(why) = &trouble {
                tracing::warn!(why, "a copy is not filled; it is tried again, less and less often");
            }
            *said = trouble;
        }
    }

    pub(super) fn say_no_room(&self, copies: Vec<(PgId, DeviceId)>) {
        *self.no_room.lock().unwrap_or_else(PoisonError::into_inner) = copies;
    }

    /// Copies that this device should fill, and the devices that have no room for them.
    pub(crate) fn no_room(&self) -> Vec<(PgId, DeviceId)> {
        self.no_room.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What keeps a device that works from doing its part, for a person: it follows no map, or a copy that it should fill stays
    /// incomplete; none while all goes well.
    pub(crate) fn trouble(&self) -> Option<String> {
        if self.ahead_of_map.load(Ordering::Relaxed) {
            let why = "its chunks are sorted into more placement groups than its pool has by the newest map, so it follows nothing \
                       of that: the map is of before the groups doubled, or of a backup from before; if it stays so, remove the \
                       device, and add it anew and empty";
            return Some(why.to_owned());
        }
        self.join_trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many groups nobody serves before this device is opened anew; none while there are none.
    pub(crate) fn stuck(&self) -> Option<u32> {
        Some(self.stuck_groups.load(Ordering::Relaxed)).filter(|groups| *groups > 0)
    }

    /// Why the device is out of service; none while it works.
    pub(crate) fn sick(&self, now: MonotonicTime) -> Option<String> {
        match self.hung_ms.load(Ordering::Relaxed) {
            0 => self.poison.get().cloned().or_else(|| {
                let hung = self.meter.oldest(now).filter(|age| *age > DISK_HANGS)?;
                Some(format!("an operation of its disk has not ended for {} s", hung.as_secs()))
            }),
            hung_ms => Some(format!("its data thread has hung for {} s", hung_ms / 1000)),
        }
    }
}

/// A data thread.
#[derive(Clone, Debug)]
pub(crate) struct DeviceHandle {
    pub(crate) own: Member,
    pub(crate) counters: Arc<DeviceCounters>,
    pub(super) commands: mpsc::Sender<Command>,
    /// Until it is joined.
    pub(super) thread: Arc<Mutex<Option<JoinHandle<()>>>>,
}

impl DeviceHandle {
    /// Hands a command over; waits while too many are before it. A thread that has ended takes none.
    pub(crate) async fn send(&self, command: Command) {
        if self.commands.send(command).await.is_err() {
            tracing::debug!(device = %self.own.device, "the data thread has ended");
        }
    }

    /// Hands a command over if there is room; a thread that hangs must not hold up those who serve other devices.
    pub(crate) fn offer(&self, command: Command) -> bool {
        let offered = self.commands.try_send(command);
        if offered.is_err() {
            tracing::debug!(device = %self.own.device, "the data thread takes no more commands");
        }
        offered.is_ok()
    }

    /// Ends the thread after everything it holds is on disk.
    pub(crate) async fn stop(&self) {
        let (done, ended) = oneshot::channel();
        self.send(Command::Stop(done)).await;
        // An error means that it had ended already.
        drop(ended.await);
    }

    /// Waits until a thread that was stopped has let go of its device and database.
    pub(crate) async fn join(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // A thread that panicked has ended the process.
            drop(tokio::task::spawn_blocking(move || thread.join()).await);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{Device as _, Fault, FaultyDevice, Injected, MemoryDevice, Op, OpKind, TimedDevice, run};

    #[test]
    fn a_disk_that_hangs_is_waited_for_and_then_out_of_service_until_it_answers() {
        let faulty = FaultyDevice::new(MemoryDevice::new(1 << 20));
        let (device, meter) = TimedDevice::new(Arc::clone(&faulty) as _);
        let counters = DeviceCounters::new(meter);
        let after = |ms| MonotonicTime::from_start(MonotonicTime::now().since_boot() + Duration::from_millis(ms));
        let told = |ms| (counters.waits(after(ms)), counters.sick(after(ms)).is_some());
        run(device.as_ref(), Op::Sync).unwrap();
        assert_eq!((told(60_000), counters.progress()), ((false, false), 1));
        faulty.inject(Fault { kind: OpKind::Sync, after: 0, within: None, injected: Injected::Delay });
        device.submit(Op::Sync, Box::new(drop));
        assert_eq!([told(500), told(5_000), told(20_000)], [(false, false), (true, false), (true, true)]);
        assert_eq!(counters.progress(), 1, "the leader finds no progress before that");
        faulty.release();
        assert_eq!((told(20_000), counters.progress()), ((false, false), 2));
    }
}

#[cfg(test)]
mod stuck_tests {
    use std::sync::Arc;

    use pflex_proto::ids::{ChunkId, DeviceId, Epoch, OperationId, PgId, SdcId, VolatilityId, VolumeId};

    use super::*;
    use crate::{
        device::{Fault, FaultyDevice, Injected, OpKind},
        payload::Payload,
        replication::{ClientKey, ClientWrite, Event, Extent, PgConfig, RequestId, WriteKind},
        worker::{testing, worker::Worker},
    };

    /// The only copy in sync, on a disk that fails a write.
    #[tokio::test]
    async fn a_group_whose_only_copy_cannot_apply_a_write_is_stuck() {
        let (device, meta) = testing::disk();
        let device = FaultyDevice::new(device);
        let (config, _reports) = testing::config(device.clone(), &meta);
        let (_commands, commands) = mpsc::channel(1);
        let counters = Arc::new(DeviceCounters::default());
        let mut worker = Worker::new(config, Arc::clone(&counters), commands);
        let (pg, own) = (PgId::default(), worker.own);
        worker.slot(pg);
        let config = |others: &[Member]| PgConfig {
            pg,
            epoch: Epoch(1),
            primary: Some(own.device),
            in_sync: [&[own], others].concat(),
            volatility: VolatilityId(1),
            writeback: false,
            forced: false,
            to_activate: false,
        };
        worker.events.push_back((pg, Event::Config { config: config(&[]), joiners: Vec::new() }));
        worker.decide();
        assert!(worker.slots[&pg].core.is_serving());
        device.inject(Fault { kind: OpKind::WriteDurable, after: 0, within: None, injected: Injected::Error });
        let write = ClientWrite {
            request: RequestId(1),
            epoch: Epoch(1),
            client: ClientKey { sdc: SdcId(1), volume: VolumeId(1) },
            operation: OperationId(1),
            low_water: OperationId(0),
            chunk: ChunkId::default(),
            extent: Extent::block(0),
            kind: WriteKind::Data(Payload::computed(vec![7; 4096].into())),
            merge: false,
            creates_chunk: true,
            fua: false,
        };
        worker.events.push_back((pg, Event::Write(write)));
        worker.decide();
        worker.publish();
        assert_eq!(counters.stuck(), None, "it is being written");
        while worker.store.poison().is_none() {
            let durable = worker.store.durable().await;
            worker.on_durable(durable);
        }
        worker.decide();
        worker.publish();
        assert!(worker.slots[&pg].core.status().failed);
        assert_eq!(counters.stuck(), Some(1));
        // As soon as another copy is in sync the group is served without this one.
        let other = Member { device: DeviceId(2), ..own };
        let next = PgConfig { epoch: Epoch(2), primary: Some(other.device), ..config(&[other]) };
        worker.events.push_back((pg, Event::Config { config: next, joiners: Vec::new() }));
        worker.decide();
        worker.publish();
        assert_eq!(counters.stuck(), None);
    }
}
