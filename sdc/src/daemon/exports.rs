//! The volumes mapped to this client, as the map has them, offered as NBD exports under their names.
//!
//! `volume@snapshot` names a snapshot of one ([`name`]). No cluster has any yet, so each is answered as unknown, with the
//! volume looked up first: what is wrong is said precisely.

mod name;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use pflex_common::map::{Access, ClusterMap, Limits, VolumeInfo, Watcher};
use pflex_common::shutdown::Shutdown;
use pflex_proto::ids::{SdcId, VolumeEpoch, VolumeId};
use pflex_proto::token::TokenMode;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::info;

use self::name::ExportName;
use crate::block::{Export, ExportInfo, ExportSummary, Exports, OpenError};
use crate::engine::metered::{MeteredBackend, Usage};
use crate::engine::plan::Layout;
use crate::engine::{Engine, TokenKeeper, VolumeSpec};

/// How long a name that is not there is waited for: the map reaches this client a moment after `volume map` has returned.
const NAME_GRACE: Duration = Duration::from_millis(500);

#[derive(Clone, Debug)]
struct Mapped {
    spec: VolumeSpec,
    info: ExportInfo,
    epoch: VolumeEpoch,
    limits: Limits,
    /// Limits and times, as long as it is mapped.
    usage: Arc<Usage>,
    /// Cancelled when it is no longer mapped.
    ended: CancellationToken,
}

/// The volumes mapped to one client.
#[derive(Debug)]
pub struct MappedVolumes {
    engine: Arc<Engine>,
    keeper: Arc<TokenKeeper>,
    sdc: SdcId,
    volumes: RwLock<BTreeMap<String, Mapped>>,
    /// The map they are from: what is the same in the next one is not looked at again.
    followed: Mutex<ClusterMap>,
    changes: watch::Sender<u64>,
}

/// Follows the map until `shutdown`.
pub(super) async fn follow(volumes: Arc<MappedVolumes>, mut watcher: Watcher, shutdown: Shutdown) {
    let work = async {
        while watcher.changed().await.is_ok() {
            let map = watcher.borrow_and_update().clone();
            volumes.follow(map.as_deref());
        }
    };
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = work => {}
    }
}

impl MappedVolumes {
    /// No volumes yet.
    pub fn new(engine: Arc<Engine>, keeper: Arc<TokenKeeper>, sdc: SdcId) -> Self {
        Self {
            engine,
            keeper,
            sdc,
            volumes: RwLock::default(),
            followed: Mutex::default(),
            changes: watch::Sender::new(0),
        }
    }

    /// The engine behind them.
    pub const fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// Takes a map: routes first, so that a volume that appears can be used.
    pub fn follow(&self, map: Option<&ClusterMap>) {
        let Some(map) = map else { return };
        let before = std::mem::replace(&mut *self.followed.lock().unwrap_or_else(PoisonError::into_inner), map.clone());
        let same_routes =
            map.pgs.is_same(&before.pgs) && map.devices.is_same(&before.devices) && map.sds.is_same(&before.sds);
        if !same_routes {
            let addresses = map.devices.values().filter_map(|device| {
                let sds = map.sds.get(&device.sds)?;
                Some((device.id, sds.data.clone()?))
            });
            self.engine.routes().replace(map.pgs.values().map(AsRef::as_ref), addresses);
        }

        let mut present = self.present(&before, map);
        let known: HashMap<_, _> = self.read().values().map(|old| (old.spec.id, old.clone())).collect();
        for new in present.values_mut() {
            let auth = self.keeper.auth(new.spec.id);
            let known = known.get(&new.spec.id);
            if let Some(known) = known {
                // Its connections go on, whatever else changed.
                new.ended = known.ended.clone();
                new.usage = Arc::clone(&known.usage);
            }
            new.usage.throttle.set(new.limits);
            if known.is_none() {
                info!(volume = new.spec.name, size = new.info.size.0, read_only = new.info.read_only, "volume mapped");
            }
            // A raised epoch voids the token (S20), and one from before the volume grew does not cover what is new: another
            // one is asked for before an IO is refused.
            if known.is_some_and(|known| known.epoch != new.epoch || known.info.size != new.info.size) {
                drop(auth.want_newer(auth.version()));
            }
            // Counted from now on, opened or not; one that is open follows its new name or place.
            if known.is_none_or(|known| known.spec != new.spec) {
                self.engine.volume(new.spec.clone(), &auth);
            }
        }
        let mut volumes = self.volumes.write().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *volumes, present);
        let still: HashSet<_> = volumes.values().map(|new| new.spec.id).collect();
        let gone: Vec<_> = before.values().filter(|old| !still.contains(&old.spec.id)).cloned().collect();
        drop(volumes);
        for old in gone {
            info!(volume = old.spec.name, "volume unmapped");
            let opened = self.engine.volumes().into_iter().find(|volume| volume.id() == old.spec.id);
            if let Some(volume) = opened {
                volume.close();
            }
            old.ended.cancel();
            // What is held back is refused like the rest, not kept.
            old.usage.throttle.set(Limits::default());
            self.engine.forget(old.spec.id);
            self.keeper.forget(old.spec.id);
        }
        self.changes.send_modify(|count| *count += 1);
    }

    /// The volumes that are mapped here now; those that did not change since `before` are as they were.
    fn present(&self, before: &ClusterMap, map: &ClusterMap) -> BTreeMap<String, Mapped> {
        let mapped = |volume: &VolumeInfo| self.mapped(map, volume).map(|mapped| (mapped.spec.name.clone(), mapped));
        if !map.pools.is_same(&before.pools) {
            return map.volumes.values().filter_map(|volume| mapped(volume)).collect();
        }
        let changed: HashSet<_> = map.volumes.changed_since(&before.volumes).into_iter().collect();
        let mut present = self.read().clone();
        present.retain(|_, known| !changed.contains(&known.spec.id));
        present.extend(changed.iter().filter_map(|id| map.volumes.get(id)).filter_map(|volume| mapped(volume)));
        present
    }

    fn mapped(&self, map: &ClusterMap, volume: &VolumeInfo) -> Option<Mapped> {
        let mapping = volume.mapping(self.sdc)?;
        let pool = map.pools.get(&volume.pool)?;
        let layout = Layout { pool: pool.id, pg_count: pool.pg_count, vtree: volume.vtree, layer: volume.layer };
        let info = ExportInfo {
            name: volume.name.clone(),
            description: format!("pflex volume {} in pool {}", volume.id, pool.name),
            size: volume.size,
            read_only: mapping.access == Access::ReadOnly,
        };
        let per_io = volume.token_mode == TokenMode::PerIo;
        let spec = VolumeSpec { id: volume.id, name: volume.name.clone(), layout, writeback: pool.writeback, per_io };
        let (epoch, limits, ended) = (volume.epoch, mapping.limits, CancellationToken::new());
        let usage = self.engine.enter(Usage::new);
        Some(Mapped { spec, info, epoch, limits, usage, ended })
    }

    /// How each volume may be used and is, by its id; whether it is read-only.
    pub(super) fn usage(&self) -> HashMap<VolumeId, (Arc<Usage>, bool)> {
        let volumes = self.read();
        volumes.values().map(|one| (one.spec.id, (Arc::clone(&one.usage), one.info.read_only))).collect()
    }

    /// The volume that a name speaks of.
    fn find(&self, name: ExportName<'_>) -> Option<Mapped> {
        let volumes = self.read();
        match name {
            ExportName::Default if volumes.len() == 1 => volumes.values().next().cloned(),
            ExportName::Default => None,
            ExportName::Volume(volume) | ExportName::Snapshot { volume, .. } => volumes.get(volume).cloned(),
        }
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<String, Mapped>> {
        self.volumes.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Exports for MappedVolumes {
    type Backend = MeteredBackend;

    fn list(&self) -> Vec<ExportSummary> {
        let summary =
            |info: &ExportInfo| ExportSummary { name: info.name.clone(), description: info.description.clone() };
        self.read().values().map(|mapped| summary(&mapped.info)).collect()
    }

    async fn open(&self, name: &str) -> Result<Export<MeteredBackend>, OpenError> {
        let mut changes = self.changes.subscribe();
        let parsed = ExportName::parse(name);
        let found = async {
            loop {
                if let Some(mapped) = self.find(parsed) {
                    return mapped;
                }
                if changes.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        let unknown = |_elapsed| OpenError::Unknown { name: name.to_owned() };
        let mapped = tokio::time::timeout(NAME_GRACE, found).await.map_err(unknown)?;
        if let ExportName::Snapshot { volume, snapshot } = parsed {
            return Err(OpenError::NoSnapshot { volume: volume.to_owned(), snapshot: snapshot.to_owned() });
        }
        let auth = self.keeper.auth(mapped.spec.id);
        let (id, volume) = (mapped.spec.id, self.engine.volume(mapped.spec, &auth));
        if mapped.ended.is_cancelled() {
            // Unmapped in the same moment: what was just made again must not stay.
            self.engine.forget(id);
            self.keeper.forget(id);
            return Err(OpenError::Unknown { name: name.to_owned() });
        }
        let ended = volume.session(&mapped.ended);
        let backend = Arc::new(MeteredBackend::new(volume, ended.clone(), mapped.usage));
        Ok(Export { info: mapped.info, backend, ended })
    }
}
