//! A device in memory that knows what a crash would leave: every page has a durable content and the unsynced writes
//! since. By itself it completes everything at once; in manual mode operations wait until [`MemoryDevice::step`] runs
//! one of them, in any order the seed says.
//!
//! A crash keeps, for each 512-byte sector on its own, either the durable bytes or those of any unsynced write: lost,
//! torn and reordered writes are all in that set. Operations that were submitted but not run may have happened partly.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::{Bytes, BytesMut};
use rand::{Rng, RngExt};

use super::{ALIGNMENT, Completion, Device, Done, Op, OpKind};

/// What disks write without tearing.
const SECTOR: usize = 512;
/// Of a page.
pub const SECTORS: usize = ALIGNMENT / SECTOR;

/// A page that was written and not synced when power failed.
#[derive(Clone, Copy, Debug)]
pub struct Unsynced {
    /// Its place in the order of writing.
    pub number: usize,
    /// So many there are.
    pub of: usize,
}

/// How often a slow operation has to be chosen in a row to run.
const SLOW_TRIES: usize = 4;

type Page = Box<[u8; ALIGNMENT]>;

/// See the module.
pub struct MemoryDevice {
    capacity: u64,
    state: Mutex<State>,
}

/// What a lying device only pretends to do; a crash checker that does not notice is broken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lie {
    /// Durable writes are not.
    WriteDurable,
    /// Syncs do nothing.
    Sync,
}

#[derive(Default)]
struct State {
    lie: Option<Lie>,
    durable: BTreeMap<u64, Page>,
    /// What reads see; pages not here are as in `durable`.
    visible: BTreeMap<u64, Page>,
    /// Page images since the last sync, oldest first, each with the number of the write that made it.
    unsynced: Vec<(u64, u64, Page)>,
    writes: u64,
    boundary: u64,
    manual: bool,
    slow: Option<OpKind>,
    dead: bool,
    /// Submitted and not run; a sync remembers which writes it covers.
    queue: Vec<(Op, u64, Completion)>,
}

impl MemoryDevice {
    /// All zeros.
    pub fn new(capacity: u64) -> Arc<Self> {
        Arc::new(Self { capacity, state: Mutex::default() })
    }

    /// Whether operations wait for [`Self::step`].
    pub fn set_manual(&self, manual: bool) {
        self.state().manual = manual;
    }

    /// Operations of this kind mostly wait for all others, so that rare orders become common ones.
    pub fn set_slow(&self, kind: Option<OpKind>) {
        self.state().slow = kind;
    }

    /// Makes it lie from now on.
    pub fn set_lie(&self, lie: Lie) {
        self.state().lie = Some(lie);
    }

    /// Operations that wait.
    pub fn queued(&self) -> usize {
        self.state().queue.len()
    }

    /// Runs one waiting operation of the random generator's choice (durable writes keep their order); false if none.
    pub fn step(&self, random: &mut impl Rng) -> bool {
        let mut state = self.state();
        if state.queue.is_empty() {
            return false;
        }
        let mut choice = random.random_range(0..state.queue.len());
        for _ in 0..SLOW_TRIES {
            if state.slow == Some(state.queue[choice].0.kind()) {
                choice = random.random_range(0..state.queue.len());
            }
        }
        if let Op::WriteDurable { .. } = state.queue[choice].0 {
            let first = state.queue.iter().position(|(op, ..)| matches!(op, Op::WriteDurable { .. }));
            choice = first.unwrap_or(choice);
        }
        state.boundary += 1;
        let (op, covers, done) = state.queue.remove(choice);
        let outcome = state.execute(op, covers);
        drop(state);
        done(Ok(outcome));
        true
    }

    /// Power fails: this device answers nothing any more; the returned one holds what survived.
    pub fn crash(&self, random: &mut impl Rng) -> Arc<Self> {
        let survivor = self.after_power_cut(|_| {
            let (all, none) = (random.random_ratio(1, 3), random.random_ratio(1, 3));
            let mut kept = [all; SECTORS];
            kept.iter_mut().for_each(|kept| *kept = *kept || (!none && random.random()));
            kept
        });
        let mut state = self.state();
        state.dead = true;
        state.queue.clear();
        survivor
    }

    /// What would be there if power failed now. `keep` says which sectors of a page that was not synced make it; it is
    /// asked in the order in which the pages were written, those of operations under way last. This device goes on.
    pub fn after_power_cut(&self, mut keep: impl FnMut(Unsynced) -> [bool; SECTORS]) -> Arc<Self> {
        let state = self.state();
        let mut cut = State {
            durable: state.durable.clone(),
            visible: state.visible.clone(),
            unsynced: state.unsynced.clone(),
            writes: state.writes,
            ..State::default()
        };
        for (op, ..) in &state.queue {
            cut.execute_as_unsynced(op);
        }
        drop(state);
        let of = cut.unsynced.len();
        for (number, (_, page, content)) in cut.unsynced.into_iter().enumerate() {
            let target = cut.durable.entry(page).or_insert_with(|| Box::new([0; ALIGNMENT]));
            for (sector, kept) in keep(Unsynced { number, of }).into_iter().enumerate() {
                let bytes = sector * SECTOR..(sector + 1) * SECTOR;
                if kept {
                    target[bytes.clone()].copy_from_slice(&content[bytes]);
                }
            }
        }
        Arc::new(Self {
            capacity: self.capacity,
            state: Mutex::new(State { durable: cut.durable, ..State::default() }),
        })
    }

    /// Rises with every operation that is submitted or done: two equal numbers, no boundary in between.
    pub fn boundary(&self) -> u64 {
        self.state().boundary
    }

    /// Changes bytes behind everyone's back, as a bad disk does.
    pub fn corrupt(&self, offset: u64) {
        let mut state = self.state();
        let mut byte = [0];
        state.read(offset, &mut byte);
        let number = state.write(offset, &[byte[0] ^ 0x40]);
        state.make_durable(number);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Device for MemoryDevice {
    fn capacity(&self) -> u64 {
        self.capacity
    }

    fn submit(&self, op: Op, done: Completion) {
        if let Err(error) = op.check(self.capacity) {
            return done(Err(error));
        }
        let mut state = self.state();
        if state.dead {
            return;
        }
        let covers = state.writes;
        state.boundary += 1;
        if state.manual {
            return state.queue.push((op, covers, done));
        }
        let outcome = state.execute(op, covers);
        drop(state);
        done(Ok(outcome));
    }
}

impl State {
    fn execute(&mut self, op: Op, covers: u64) -> Done {
        match op {
            Op::Read { offset, length } => {
                let mut buffer = BytesMut::zeroed(length);
                self.read(offset, &mut buffer);
                return Done::Read(buffer);
            }
            Op::WriteDurable { .. } if self.lie == Some(Lie::WriteDurable) => self.execute_as_unsynced(&op),
            Op::Sync if self.lie == Some(Lie::Sync) => {}
            Op::WriteDurable { offset, data } => {
                let first = self.writes;
                self.write(offset, data.as_slice());
                // Only its own pages become durable: other unsynced writes stay so.
                for (number, page, content) in std::mem::take(&mut self.unsynced) {
                    if number >= first {
                        self.durable.insert(page, content);
                    } else if !self.unsynced_superseded(page, offset, data.len() as u64) {
                        self.unsynced.push((number, page, content));
                    }
                }
            }
            Op::Sync => self.make_durable(covers),
            // There is room for all of it from the start.
            Op::Allocate { .. } => {}
            other @ (Op::Write { .. } | Op::WriteMany { .. } | Op::Discard { .. }) => self.execute_as_unsynced(&other),
        }
        Done::Ok
    }

    fn execute_as_unsynced(&mut self, op: &Op) {
        match op {
            Op::Write { offset, data } => self.write_pieces(*offset, data),
            Op::WriteMany { writes } => writes.iter().for_each(|(offset, data)| self.write_pieces(*offset, data)),
            Op::WriteDurable { offset, data } => {
                self.write(*offset, data.as_slice());
            }
            Op::Discard { offset, length } => {
                self.write(*offset, &vec![0; *length as usize]);
            }
            Op::Read { .. } | Op::Sync | Op::Allocate { .. } => {}
        }
    }

    fn write_pieces(&mut self, mut offset: u64, data: &[Bytes]) {
        for piece in data {
            self.write(offset, piece);
            offset += piece.len() as u64;
        }
    }

    const fn unsynced_superseded(&self, page: u64, offset: u64, length: u64) -> bool {
        let at = page * ALIGNMENT as u64;
        at >= offset && at < offset + length
    }

    /// Makes durable every page image with a number below `covers`.
    fn make_durable(&mut self, covers: u64) {
        for (number, page, content) in std::mem::take(&mut self.unsynced) {
            if number < covers {
                self.durable.insert(page, content);
            } else {
                self.unsynced.push((number, page, content));
            }
        }
    }

    fn page(&self, page: u64) -> Option<&Page> {
        self.visible.get(&page).or_else(|| self.durable.get(&page))
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) {
        let mut done = 0;
        while done < buffer.len() {
            let at = offset + done as u64;
            let (page, inside) = (at / ALIGNMENT as u64, (at % ALIGNMENT as u64) as usize);
            let length = (ALIGNMENT - inside).min(buffer.len() - done);
            if let Some(content) = self.page(page) {
                buffer[done..done + length].copy_from_slice(&content[inside..inside + length]);
            }
            done += length;
        }
    }

    /// Returns the number after the last page image it made.
    fn write(&mut self, offset: u64, bytes: &[u8]) -> u64 {
        let mut done = 0;
        while done < bytes.len() {
            let at = offset + done as u64;
            let (page, inside) = (at / ALIGNMENT as u64, (at % ALIGNMENT as u64) as usize);
            let length = (ALIGNMENT - inside).min(bytes.len() - done);
            let mut content = self.page(page).cloned().unwrap_or_else(|| Box::new([0; ALIGNMENT]));
            content[inside..inside + length].copy_from_slice(&bytes[done..done + length]);
            self.visible.insert(page, content.clone());
            self.unsynced.push((self.writes, page, content));
            self.writes += 1;
            done += length;
        }
        self.writes
    }
}
