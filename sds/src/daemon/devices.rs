//! Opening devices: those that are there, and those that are to be made.

use std::sync::Arc;

use pflex_proto::ids::{ClusterId, DeviceUuid, SdsId};

use super::{DeviceFile, SdsConfig, SdsError};
use crate::{
    device::FileConfig,
    store::{FormatConfig, LocalDb, MetaStore, OpenError, OpenReport, Store, StoreConfig},
};

/// Opens every configured device; formats those that do not exist. None is opened if one is refused.
pub(super) async fn open_all(
    config: &SdsConfig,
    cluster: ClusterId,
    sds: SdsId,
) -> Result<Vec<(Store, OpenReport)>, SdsError> {
    let path = config.data_dir.join("sds_local.db");
    let devices = config.devices.clone();
    let open = move || {
        let meta: Arc<dyn MetaStore> = LocalDb::open(&path, &[]).map_err(|source| SdsError::Meta { path, source })?;
        let open = |device| open_one(device, cluster, sds, &meta);
        devices.iter().map(open).collect()
    };
    // Formatting writes the whole journal, opening replays it: not for a thread that serves.
    tokio::task::spawn_blocking(open).await.expect("opening does not panic")
}

fn open_one(
    device: &DeviceFile,
    cluster: ClusterId,
    sds: SdsId,
    meta: &Arc<dyn MetaStore>,
) -> Result<(Store, OpenReport), SdsError> {
    let refused = |source| SdsError::Device { path: device.path.clone(), source };
    let files = FileConfig::beside(&device.path);
    if needs_format(device).map_err(refused)? {
        tracing::info!(path = %device.path.display(), bytes = device.size_bytes, "formatting a new device");
        let uuid = DeviceUuid(uuid::Uuid::new_v4());
        let format = FormatConfig { cluster, sds, uuid, journal_bytes: device.journal_bytes };
        Store::format_files(&files, device.size_bytes, device.preallocate, meta.as_ref(), &format).map_err(refused)?;
    }
    Store::open_files(&files, Arc::clone(meta), StoreConfig { cluster }).map_err(refused)
}

/// A file that does not exist is made. A raw block device is formatted by `pflex device add`, never by a start: a wrong
/// path in a configuration must not cost anybody's data.
fn needs_format(device: &DeviceFile) -> Result<bool, OpenError> {
    match std::fs::metadata(&device.path) {
        Ok(_) => Ok(false),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(true),
        Err(source) => Err(OpenError::File { action: "look at", path: device.path.clone(), source }),
    }
}
