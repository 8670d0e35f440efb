//! Devices that come while the server runs: the configuration is read again, and each entry that is not served yet is opened,
//! registered and served, as at the start. One that is refused is named, and the others serve on.
//!
//! Nothing else of the configuration changes before a restart. A device whose entry is gone stays: it is drained and removed
//! (`pflex device drain`), or lost.

use std::{fmt, future::pending, sync::Arc};

use pflex_common::{clock::MonotonicTime, map};
use pflex_proto::{
    ids::{ClusterId, Member},
    pb::RegisteredDevice,
};
use tokio::{sync::mpsc, task::JoinSet};
use tracing::{error, info, warn};

use super::{
    DeviceFile, SdsConfig, SdsError, Server,
    devices::{self, OpenDevice, RefusedDevice},
    feed_maps,
    identity::Identity,
    registration::Registration,
};
use crate::{
    store::MetaStore,
    worker::{self, Report, WorkerConfig},
};

/// When to read the configuration again, and how.
pub struct Reload {
    asked: mpsc::Receiver<()>,
    read: Box<dyn Fn() -> Result<SdsConfig, String> + Send + Sync>,
}

impl fmt::Debug for Reload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reload").finish_non_exhaustive()
    }
}

impl Reload {
    /// Reads with `read` whenever something comes.
    pub fn new(
        asked: mpsc::Receiver<()>,
        read: impl Fn() -> Result<SdsConfig, String> + Send + Sync + 'static,
    ) -> Self {
        Self { asked, read: Box::new(read) }
    }
}

/// What a device needs to serve here.
pub(super) struct Newcomers<'a> {
    pub(super) server: &'a Arc<Server>,
    pub(super) config: &'a SdsConfig,
    pub(super) cluster: ClusterId,
    pub(super) meta: Arc<dyn MetaStore>,
    pub(super) registration: Registration<'a>,
    pub(super) identity: &'a mut Identity,
    /// As last registered.
    pub(super) rows: Vec<RegisteredDevice>,
    pub(super) reports: mpsc::Sender<Report>,
    /// Has not looked at any map yet.
    pub(super) watcher: map::Watcher,
    /// The entries that are served, for when the process opens its devices anew.
    pub(super) entries: &'a mut Vec<DeviceFile>,
}

impl Newcomers<'_> {
    /// Until it is dropped.
    pub(super) async fn run(mut self, reload: &mut Reload) {
        let mut feeds = JoinSet::new();
        while reload.asked.recv().await.is_some() {
            match (reload.read)() {
                Ok(fresh) => {
                    self.compare(&fresh);
                    let known = |device: &DeviceFile| self.entries.iter().any(|entry| entry.path == device.path);
                    let refused = self.server.refused();
                    let again = |device: &DeviceFile| refused.iter().any(|refused| refused.path == device.path);
                    let new: Vec<_> =
                        fresh.devices.into_iter().filter(|device| !known(device) || again(device)).collect();
                    for device in new {
                        self.take(device, &mut feeds).await;
                    }
                }
                Err(why) => error!(why, "the configuration cannot be read again; everything stays as it is"),
            }
        }
        pending().await
    }

    /// Says what is in the file and not done.
    fn compare(&self, fresh: &SdsConfig) {
        let of = |config: &SdsConfig| {
            let SdsConfig { name, mdm, data_dir, data, control, management, devices: _ } = config.clone();
            (name, mdm, data_dir, data, control, management)
        };
        if of(fresh) != of(self.config) {
            warn!("the configuration has changed in more than its devices; the rest counts at the next start");
        }
        for entry in self.entries.iter().filter(|entry| fresh.devices.iter().all(|device| device.path != entry.path)) {
            warn!(path = %entry.path.display(), "a device is not in the configuration any more; it serves until the next start");
        }
    }

    async fn take(&mut self, device: DeviceFile, feeds: &mut JoinSet<()>) {
        let path = device.path.clone();
        if let Err(error) = self.serve(device, feeds).await {
            let why = devices::describe(&error);
            error!(path = %path.display(), why, "a device is refused; it is left as it is, and the others serve on");
            self.server.roster.refuse(RefusedDevice { path, why });
        }
    }

    async fn serve(&mut self, file: DeviceFile, feeds: &mut JoinSet<()>) -> Result<(), SdsError> {
        let (cluster, sds, meta, wanted) = (self.cluster, self.server.id, Arc::clone(&self.meta), file.clone());
        let opening = tokio::task::spawn_blocking(move || devices::open_one(&wanted, cluster, sds, &meta));
        let opened_at = MonotonicTime::now();
        let (store, opened) = opening.await.expect("opening does not panic")?;
        let mut open = OpenDevice { file, store, opened };
        let (id, registered) = self.registration.another(self.identity, &mut self.rows, &open).await?;
        let path = open.file.path.clone();
        open.store.registered(id).map_err(|source| SdsError::Device { path: path.clone(), source })?;
        let own = Member { device: id, sds, incarnation: open.opened.superblock.incarnation };
        let OpenDevice { file, store, opened } = open;
        let worker = WorkerConfig {
            cluster,
            own,
            store,
            opened,
            opened_at,
            registered,
            departed_grace: worker::DEPARTED_GRACE,
            reports: self.reports.clone(),
        };
        let handle = worker::spawn(worker).map_err(SdsError::Threads)?;
        feeds.spawn(feed_maps(Arc::clone(self.server), handle.clone(), self.watcher.clone()));
        // No await since the thread was made: whoever stops the devices finds it here.
        self.server.roster.add(handle, &path);
        self.entries.retain(|entry| entry.path != path);
        self.entries.push(file);
        info!(sds = %self.server.name, device = %id, path = %path.display(), "another device in service");
        Ok(())
    }
}
