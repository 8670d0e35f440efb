//! The devices of this process: those that serve, which only become more, and those that were refused.

use std::sync::{Arc, PoisonError, RwLock};

use super::devices::RefusedDevice;
use crate::worker::DeviceHandle;

/// See the module. Whoever asks gets those of this moment.
#[derive(Debug)]
pub(crate) struct Roster(RwLock<Rows>);

#[derive(Debug)]
struct Rows {
    open: Arc<[DeviceHandle]>,
    refused: Vec<RefusedDevice>,
}

impl Roster {
    pub(super) fn new(open: Vec<DeviceHandle>, refused: Vec<RefusedDevice>) -> Self {
        Self(RwLock::new(Rows { open: open.into(), refused }))
    }

    fn look<T>(&self, at: impl FnOnce(&Rows) -> T) -> T {
        at(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn change(&self, how: impl FnOnce(&mut Rows)) {
        how(&mut self.0.write().unwrap_or_else(PoisonError::into_inner));
    }

    /// Those that serve, the newest last.
    pub(super) fn open(&self) -> Arc<[DeviceHandle]> {
        self.look(|rows| Arc::clone(&rows.open))
    }

    /// Configured, and out of service.
    pub(super) fn refused(&self) -> Vec<RefusedDevice> {
        self.look(|rows| rows.refused.clone())
    }

    /// Another one serves; if it was refused before, it is no more.
    pub(super) fn add(&self, device: DeviceHandle, path: &std::path::Path) {
        self.change(|rows| {
            rows.open = rows.open.iter().cloned().chain([device]).collect();
            rows.refused.retain(|refused| refused.path != path);
        });
    }

    pub(super) fn refuse(&self, device: RefusedDevice) {
        self.change(|rows| {
            rows.refused.retain(|refused| refused.path != device.path);
            rows.refused.push(device);
        });
    }
}
