//! A device whose operations are timed: how long each kind took, and since when the oldest one is under way.
//!
//! Slow disks and disks that hang look alike to those who wait for them; this tells them apart. What the page cache
//! answers at once is no operation of the disk and is not counted.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use pflex_common::{clock::MonotonicTime, histogram::Histogram};

use super::{Completion, Device, Op, OpKind};

/// What is known of a device's speed.
#[derive(Debug, Default)]
pub struct Meter {
    /// [`Op::Read`], from submission to completion, as all of these.
    pub reads: Histogram,
    /// [`Op::Write`].
    pub writes: Histogram,
    /// [`Op::WriteDurable`]: the journal.
    pub durable_writes: Histogram,
    /// [`Op::Sync`].
    pub syncs: Histogram,
    completed: AtomicU64,
    /// Of all kinds that were completed, in microseconds.
    spent_us: AtomicU64,
    next: AtomicU64,
    under_way: Mutex<BTreeMap<u64, MonotonicTime>>,
}

impl Meter {
    /// What nobody waits for is no sign of a disk that hangs.
    fn begin(&self, kind: OpKind, now: MonotonicTime) -> u64 {
        let number = self.next.fetch_add(1, Relaxed);
        if kind.is_waited_for() {
            self.under_way.lock().unwrap_or_else(PoisonError::into_inner).insert(number, now);
        }
        number
    }

    fn end(&self, number: u64, kind: OpKind, now: MonotonicTime) {
        let begun = self.under_way.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
        let took = begun.map(|begun| now.since(begun)).unwrap_or_default();
        match kind {
            OpKind::Read => self.reads.record(took),
            OpKind::Write => self.writes.record(took),
            OpKind::WriteDurable => self.durable_writes.record(took),
            OpKind::Sync => self.syncs.record(took),
            OpKind::Allocate | OpKind::Discard => {}
        }
        if !kind.is_waited_for() {
            return;
        }
        self.completed.fetch_add(1, Relaxed);
        self.spent_us.fetch_add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Relaxed);
    }

    /// Operations that somebody waits for that have ended, however, and the microseconds that all of them took together.
    pub fn completed(&self) -> (u64, u64) {
        (self.completed.load(Relaxed), self.spent_us.load(Relaxed))
    }

    /// For how long the oldest operation is under way.
    pub fn oldest(&self, now: MonotonicTime) -> Option<Duration> {
        let under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        under_way.first_key_value().map(|(_, begun)| now.since(*begun))
    }
}

/// See the module.
pub struct TimedDevice {
    inner: Arc<dyn Device>,
    meter: Arc<Meter>,
}

impl TimedDevice {
    /// Times what is asked of `inner` from now on.
    pub fn new(inner: Arc<dyn Device>) -> (Arc<Self>, Arc<Meter>) {
        let meter = Arc::<Meter>::default();
        (Arc::new(Self { inner, meter: Arc::clone(&meter) }), meter)
    }
}

impl Device for TimedDevice {
    fn capacity(&self) -> u64 {
        self.inner.capacity()
    }

    fn split(&self) -> Option<u64> {
        self.inner.split()
    }

    fn is_thin(&self) -> bool {
        self.inner.is_thin()
    }

    fn submit(&self, op: Op, done: Completion) {
        let kind = op.kind();
        let number = self.meter.begin(kind, MonotonicTime::now());
        let meter = Arc::clone(&self.meter);
        let timed = move |outcome| {
            meter.end(number, kind, MonotonicTime::now());
            done(outcome);
        };
        self.inner.submit(op, Box::new(timed));
    }

    fn try_read(&self, offset: u64, buffer: &mut [u8]) -> bool {
        self.inner.try_read(offset, buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{Fault, FaultyDevice, Injected, MemoryDevice, run};

    #[test]
    fn each_kind_is_counted_and_what_hangs_is_seen_until_it_ends() {
        let faulty = FaultyDevice::new(MemoryDevice::new(1 << 20));
        let (device, meter) = TimedDevice::new(Arc::clone(&faulty) as _);
        let read = || Op::Read { offset: 0, length: 4096 };
        run(device.as_ref(), read()).unwrap();
        run(device.as_ref(), Op::Sync).unwrap();
        run(device.as_ref(), Op::Discard { offset: 0, length: 4096 }).unwrap();
        run(device.as_ref(), Op::Read { offset: 1 << 20, length: 1 }).unwrap_err();
        let counts = [&meter.reads, &meter.writes, &meter.syncs].map(|kind| kind.snapshot().count());
        assert_eq!((counts, meter.completed().0), ([2, 0, 1], 3), "a discard says nothing of a disk");
        let now = MonotonicTime::now();
        assert_eq!(meter.oldest(now), None);
        faulty.inject(Fault { kind: OpKind::Read, after: 0, within: None, injected: Injected::Delay });
        device.submit(read(), Box::new(drop));
        run(device.as_ref(), Op::Sync).unwrap();
        let later = MonotonicTime::from_start(now.since_boot() + Duration::from_secs(3600));
        assert!(meter.oldest(later).is_some_and(|age| age > Duration::from_secs(3500)), "others went past it");
        faulty.release();
        assert_eq!((meter.oldest(later), meter.reads.snapshot().count()), (None, 3));
    }
}
