//! Rows in memory, for simulation: a crash test decides whether a batch that was on its way made it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use pflex_proto::ids::DeviceUuid;

use super::{Batch, Committed, MetaStore, Rows, Table};
use crate::store::error::MetaError;

/// See the module.
#[derive(Default)]
pub struct MemoryMeta {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    rows: BTreeMap<(Table, DeviceUuid, Vec<u8>), Vec<u8>>,
    manual: bool,
    queue: Vec<(DeviceUuid, Batch, Committed)>,
}

impl MemoryMeta {
    /// Empty.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Whether batches wait for [`Self::step`].
    pub fn set_manual(&self, manual: bool) {
        self.state().manual = manual;
    }

    /// Batches that wait.
    pub fn queued(&self) -> usize {
        self.state().queue.len()
    }

    /// Commits the oldest waiting batch; false if none waits.
    pub fn step(&self) -> bool {
        let mut state = self.state();
        if state.queue.is_empty() {
            return false;
        }
        let (device, batch, done) = state.queue.remove(0);
        state.write(device, batch);
        drop(state);
        done(Ok(()));
        true
    }

    /// What is left after a crash: the first `survive` waiting batches made it.
    pub fn crash(&self, survive: usize) -> Arc<Self> {
        let left = self.after_power_cut(survive);
        self.state().queue.clear();
        left
    }

    /// What would be left if power failed now and the first `survive` waiting batches had made it. This one goes on.
    pub fn after_power_cut(&self, survive: usize) -> Arc<Self> {
        let state = self.state();
        let mut left = State { rows: state.rows.clone(), ..State::default() };
        for (device, batch, _) in state.queue.iter().take(survive) {
            left.write(*device, batch.clone());
        }
        Arc::new(Self { state: Mutex::new(left) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn write(&mut self, device: DeviceUuid, batch: Batch) {
        for (table, key, value) in batch.rows {
            match value {
                Some(value) => drop(self.rows.insert((table, device, key), value)),
                None => drop(self.rows.remove(&(table, device, key))),
            }
        }
    }
}

impl MetaStore for MemoryMeta {
    fn rows(&self, device: DeviceUuid, table: Table) -> Result<Rows, MetaError> {
        let state = self.state();
        let of_device = state.rows.range((table, device, Vec::new())..);
        let rows = of_device.take_while(|((t, d, _), _)| *t == table && *d == device);
        Ok(rows.map(|((.., key), value)| (key.clone(), value.clone())).collect())
    }

    fn commit(&self, device: DeviceUuid, batch: Batch, done: Committed) {
        let mut state = self.state();
        if state.manual {
            return state.queue.push((device, batch, done));
        }
        state.write(device, batch);
        drop(state);
        done(Ok(()));
    }
}
