//! Opening devices: those that are there, and those that are to be made.

use std::{io, path::Path, sync::Arc};

use pflex_common::durable;
use pflex_proto::ids::{ClusterId, DeviceId, DeviceUuid, SdsId};

use super::{DeviceFile, SdsConfig, SdsError};
use crate::{
    device::FileConfig,
    store::{self, FormatConfig, LocalDb, MetaStore, OpenError, OpenReport, Store, StoreConfig},
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
    // A file that does not exist is made. A raw block device is formatted by `pflex device add`, never by a start: a
    // wrong path in a configuration must not cost anybody's data.
    if !device.path.exists() {
        tracing::info!(path = %device.path.display(), bytes = device.size_bytes, "formatting a new device");
        make(device, cluster, sds, meta.as_ref())?;
    }
    Store::open_files(&FileConfig::beside(&device.path), Arc::clone(meta), StoreConfig { cluster }).map_err(refused)
}

/// Formats under other names, and then renames the journal and last the device itself: whatever the crash, a device
/// with its final name is whole.
fn make(device: &DeviceFile, cluster: ClusterId, sds: SdsId, meta: &dyn MetaStore) -> Result<(), SdsError> {
    let refused = |source| SdsError::Device { path: device.path.clone(), source };
    let file = |action, path: &Path| {
        let path = path.to_owned();
        move |source| refused(OpenError::File { action, path, source })
    };
    let mut unfinished = device.path.as_os_str().to_owned();
    unfinished.push(".unfinished");
    let (made, wanted) = (FileConfig::beside(Path::new(&unfinished)), FileConfig::beside(&device.path));
    for path in [Some(&made.path), made.journal_path.as_ref()].into_iter().flatten() {
        remove_if_exists(path).map_err(file("remove the unfinished", path))?;
    }
    if let Some(journal) = wanted.journal_path.as_ref().filter(|journal| journal.exists()) {
        // Renamed just before a crash, then no MDM has heard of it. Else its device is missing, and a new one in its
        // place would hide that.
        match store::inspect(&FileConfig { path: journal.clone(), journal_path: None }) {
            Ok(superblock) if superblock.device != DeviceId(0) => {
                let reason =
                    format!("its journal {} is here and the device is not; is its disk mounted?", journal.display());
                return Err(refused(OpenError::Damaged { reason }));
            }
            Ok(_) | Err(_) => remove_if_exists(journal).map_err(file("remove", journal))?,
        }
    }
    let uuid = DeviceUuid(uuid::Uuid::new_v4());
    let format = FormatConfig { cluster, sds, uuid, journal_bytes: device.journal_bytes };
    Store::format_files(&made, device.size_bytes, device.preallocate, meta, &format).map_err(refused)?;
    if let (Some(from), Some(to)) = (&made.journal_path, &wanted.journal_path) {
        std::fs::rename(from, to).map_err(file("rename to", to))?;
    }
    std::fs::rename(&made.path, &wanted.path).map_err(file("rename to", &wanted.path))?;
    durable::sync_parent(&wanted.path)?;
    Ok(())
}

fn remove_if_exists(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::MemoryMeta;

    fn device(dir: &Path) -> DeviceFile {
        let path = dir.join("device0");
        DeviceFile { path, size_bytes: 64 << 20, journal_bytes: 0, pool: String::new(), preallocate: false }
    }

    fn open(device: &DeviceFile, meta: &Arc<dyn MetaStore>) -> Result<(Store, OpenReport), SdsError> {
        open_one(device, ClusterId::from_bytes([1; 16]), SdsId(1), meta)
    }

    #[test]
    fn a_format_that_was_interrupted_is_done_again() {
        let dir = tempfile::tempdir().unwrap();
        let meta: Arc<dyn MetaStore> = MemoryMeta::new();
        let device = device(dir.path());
        for leftover in ["device0.unfinished", "device0.unfinished.journal", "device0.journal"] {
            std::fs::write(dir.path().join(leftover), b"half").unwrap();
        }
        let (_, report) = open(&device, &meta).unwrap();
        assert!(!report.emptied);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "device and journal, nothing else");
    }

    #[test]
    fn a_device_that_is_missing_beside_its_journal_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let meta: Arc<dyn MetaStore> = MemoryMeta::new();
        let device = device(dir.path());
        let (mut store, _) = open(&device, &meta).unwrap();
        store.registered(DeviceId(3)).unwrap();
        drop(store);
        std::fs::remove_file(&device.path).unwrap();
        let error = open(&device, &meta).map(drop).unwrap_err();
        assert!(error.to_string().contains("is its disk mounted?"), "{error}");
    }
    #[test]
    fn a_data_file_of_another_device_is_refused() {
        for (other_size, other_journal) in [(64 << 20, 0), (80 << 20, 0), (96 << 20, 32 << 20)] {
            let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            let meta: Arc<dyn MetaStore> = MemoryMeta::new();
            let ours = device(here.path());
            let theirs = DeviceFile { size_bytes: other_size, journal_bytes: other_journal, ..device(there.path()) };
            drop(open(&ours, &meta).unwrap());
            drop(open_one(&theirs, ClusterId::from_bytes([2; 16]), SdsId(1), &meta).unwrap());
            std::fs::copy(&theirs.path, &ours.path).unwrap();
            let error = open(&ours, &meta).map(drop).unwrap_err();
            assert!(error.to_string().contains("is refused"), "{error}");
        }
    }
}
