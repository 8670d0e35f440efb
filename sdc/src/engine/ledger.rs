//! The writes of one volume that are under way: their order where they overlap, and their operation ids.
//!
//! A write enters with its byte range and gets ids for its parts; it may run once no earlier one overlaps it, and
//! leaves when nothing of it can happen any more. Ids rise in the order of entering, so the first id of the oldest write
//! is the low-water mark below which the SDSs may forget (S7).

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use pflex_proto::ids::OperationId;
use tokio::sync::oneshot;

use crate::block::ByteRange;

/// Bits of an operation id below the boot counter: 2^40 parts of writes per start of the process.
const COUNTER_BITS: u32 = 40;

/// Gives out operation ids: boot counter, then a counter over all volumes. Unique also across restarts (S7).
#[derive(Debug)]
pub struct OperationIds {
    next: AtomicU64,
}

impl OperationIds {
    /// The ids of one start of the process.
    pub const fn new(boot: u64) -> Self {
        Self { next: AtomicU64::new((boot << COUNTER_BITS) + 1) }
    }

    /// Goes on with the ids of a later start.
    pub(super) fn raise(&self, boot: u64) {
        self.next.fetch_max((boot << COUNTER_BITS) + 1, Ordering::Relaxed);
    }

    fn take(&self, count: usize) -> OperationId {
        OperationId(self.next.fetch_add(count as u64, Ordering::Relaxed))
    }
}

#[derive(Debug)]
struct Entry {
    range: ByteRange,
    /// Set while it waits for an earlier one.
    turn: Option<oneshot::Sender<()>>,
}

/// The writes under way, by their first operation id.
#[derive(Debug, Default)]
pub struct Ledger {
    entries: Mutex<BTreeMap<OperationId, Entry>>,
}

/// A write's place in the ledger.
#[derive(Debug)]
pub struct Admission {
    /// The id of its first part; the others follow.
    pub first: OperationId,
    /// Resolves when it may run; `None` when it may at once.
    pub turn: Option<oneshot::Receiver<()>>,
}

impl Ledger {
    /// Enters a write of `parts` parts.
    pub fn enter(&self, range: ByteRange, parts: usize, ids: &OperationIds) -> Admission {
        let mut entries = self.entries.lock().expect("no holder panics");
        // Under the lock, so that ids rise in the order of entering.
        let first = ids.take(parts);
        let blocked = entries.values().any(|earlier| overlap(earlier.range, range));
        let (sender, receiver) = if blocked { Some(oneshot::channel()).unzip() } else { (None, None) };
        entries.insert(first, Entry { range, turn: sender });
        Admission { first, turn: receiver }
    }

    /// Takes a write out, and lets those run that waited for it alone.
    pub fn leave(&self, first: OperationId) {
        let mut entries = self.entries.lock().expect("no holder panics");
        let Some(gone) = entries.remove(&first) else { return };
        let waiting: Vec<_> = entries
            .range(first..)
            .filter(|(_, entry)| entry.turn.is_some() && overlap(entry.range, gone.range))
            .map(|(id, entry)| (*id, entry.range))
            .collect();
        for (id, range) in waiting {
            let free = !entries.range(..id).any(|(_, earlier)| overlap(earlier.range, range));
            if free && let Some(turn) = entries.get_mut(&id).and_then(|entry| entry.turn.take()) {
                // One that gave up waiting leaves by itself.
                let _ = turn.send(());
            }
        }
    }

    /// Every operation below this one is over. `None` when nothing is under way.
    pub fn low_water(&self) -> Option<OperationId> {
        self.entries.lock().expect("no holder panics").first_key_value().map(|(first, _)| *first)
    }

    /// How many writes are under way.
    pub fn len(&self) -> usize {
        self.entries.lock().expect("no holder panics").len()
    }

    /// Whether no write is under way.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

fn overlap(a: ByteRange, b: ByteRange) -> bool {
    a.offset < b.end() && b.offset < a.end()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn may_run(admission: &mut Admission) -> bool {
        admission.turn.as_mut().is_none_or(|turn| turn.try_recv().is_ok())
    }

    #[test]
    fn overlapping_writes_run_in_the_order_of_entering() {
        let (ledger, ids) = (Ledger::default(), OperationIds::new(1));
        let enter = |offset, length| ledger.enter(ByteRange::new(offset, length), 1, &ids);
        let (mut a, mut b, mut c, mut apart) = (enter(0, 10), enter(5, 10), enter(12, 2), enter(20, 1));
        assert!(may_run(&mut a) && may_run(&mut apart) && !may_run(&mut b) && !may_run(&mut c));
        ledger.leave(a.first);
        assert!(may_run(&mut b), "its only obstacle is gone");
        assert!(!may_run(&mut c), "it overlaps one that entered before and runs");
        ledger.leave(b.first);
        assert!(may_run(&mut c));
    }

    #[test]
    fn one_that_gives_up_waiting_frees_those_behind_it() {
        let (ledger, ids) = (Ledger::default(), OperationIds::new(1));
        let a = ledger.enter(ByteRange::new(0, 10), 1, &ids);
        let b = ledger.enter(ByteRange::new(5, 10), 1, &ids);
        let mut c = ledger.enter(ByteRange::new(12, 2), 1, &ids);
        ledger.leave(b.first);
        assert!(may_run(&mut c));
        ledger.leave(a.first);
        ledger.leave(c.first);
        assert!(ledger.is_empty());
    }

    #[test]
    fn the_low_water_mark_is_the_oldest_write_under_way() {
        let (ledger, ids) = (Ledger::default(), OperationIds::new(3));
        assert_eq!(ledger.low_water(), None);
        let a = ledger.enter(ByteRange::new(0, 1), 5, &ids);
        let b = ledger.enter(ByteRange::new(9, 1), 1, &ids);
        assert_eq!((a.first.0, b.first.0), ((3 << 40) + 1, (3 << 40) + 6));
        ledger.leave(b.first);
        assert_eq!(ledger.low_water(), Some(a.first));
        ledger.leave(a.first);
        assert_eq!(ledger.low_water(), None);
    }

    proptest! {
        #[test]
        fn no_two_overlapping_writes_run_and_all_get_their_turn(
            script in proptest::collection::vec((0u64..40, 1u64..10, any::<bool>(), any::<prop::sample::Index>()), 1..60),
        ) {
            let (ledger, ids) = (Ledger::default(), OperationIds::new(1));
            let mut inside: Vec<(ByteRange, Admission, bool)> = Vec::new();
            let mut steps: Vec<_> = script.into_iter().map(Some).collect();
            loop {
                let step = if steps.is_empty() { None } else { steps.remove(0) };
                if let Some((offset, length, enter, index)) = step {
                    if enter || inside.is_empty() {
                        let range = ByteRange::new(offset, length);
                        inside.push((range, ledger.enter(range, 1, &ids), false));
                    } else {
                        // A runner that is done or a waiter that gives up.
                        let (_, admission, _) = inside.remove(index.index(inside.len()));
                        ledger.leave(admission.first);
                    }
                } else if inside.is_empty() {
                    break;
                } else {
                    let runner = inside.iter().position(|(_, _, runs)| *runs).expect("somebody can always run");
                    ledger.leave(inside.remove(runner).1.first);
                }
                for (_, admission, runs) in &mut inside {
                    *runs = *runs || may_run(admission);
                }
                for (i, (a, _, a_runs)) in inside.iter().enumerate() {
                    prop_assert!(!inside[..i].iter().any(|(b, _, b_runs)| *a_runs && *b_runs && overlap(*a, *b)));
                }
            }
            prop_assert!(ledger.is_empty());
        }
    }
}
