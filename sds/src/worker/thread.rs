//! Starting a data thread.

use std::{
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use pflex_common::clock::MonotonicTime;
use pflex_proto::ids::{ClusterId, Member, Revision};
use tokio::{sync::mpsc, task::LocalSet};

use super::{
    command::Report,
    handle::{DeviceCounters, DeviceHandle, MAX_COMMANDS},
    worker::Worker,
};
use crate::store::{OpenReport, Store};

/// A device that was opened and registered.
pub(crate) struct WorkerConfig {
    pub(crate) cluster: ClusterId,
    pub(crate) own: Member,
    pub(crate) store: Store,
    pub(crate) opened: OpenReport,
    /// When the device was opened: what it granted before is forgotten and waited out (S6).
    pub(crate) opened_at: MonotonicTime,
    /// The revision of the map that has this registration.
    pub(crate) registered: Revision,
    /// How long a copy that lost its place is kept.
    pub(crate) departed_grace: Duration,
    pub(crate) reports: mpsc::Sender<Report>,
}

/// A data thread that panicked has left its groups between two states, and nobody would notice: its beats would go on.
/// The process ends instead, the MDM moves the groups, and a new start recovers from the journal.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!("a data thread panicked; ending the process");
            std::process::abort();
        }
    }
}

/// Starts the thread. It ends with `Command::Stop` or when the handle and all its clones are gone.
///
/// # Errors
/// When the system gives no thread or runtime.
pub(crate) fn spawn(config: WorkerConfig) -> io::Result<DeviceHandle> {
    let (commands, receiver) = mpsc::channel(MAX_COMMANDS);
    let counters = Arc::new(DeviceCounters::new(config.store.meter()));
    let (own, for_thread) = (config.own, Arc::clone(&counters));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let thread = std::thread::Builder::new().name(format!("pflex-dev{}", own.device)).spawn(move || {
        let _ends_with_us = AbortOnPanic;
        LocalSet::new().block_on(&runtime, Worker::new(config, for_thread, receiver).run());
    })?;
    Ok(DeviceHandle { own, counters, commands, thread: Arc::new(Mutex::new(Some(thread))) })
}
