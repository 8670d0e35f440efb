//! Opening devices: those that are there, and those that are to be made. One that is refused is left as it is and named;
//! the others serve.

use std::{
    fs::File,
    io::{self, Seek as _, SeekFrom},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use pflex_common::durable;
use pflex_proto::ids::{ClusterId, DeviceId, DeviceUuid, SdsId};

use super::{DeviceFile, SdsConfig, SdsError};
use crate::{
    device::FileConfig,
    store::{self, FormatConfig, LocalDb, MetaStore, OpenError, OpenReport, Store, StoreConfig},
};

/// Bytes of a block device that are looked at together.
const BLANK_PIECE: usize = 1 << 20;

/// One that may serve.
pub(super) struct OpenDevice {
    pub(super) file: DeviceFile,
    pub(super) store: Store,
    pub(super) opened: OpenReport,
}

/// One that may not.
#[derive(Clone, Debug)]
pub(crate) struct RefusedDevice {
    pub(crate) path: PathBuf,
    pub(crate) why: String,
}

/// What became of the configured devices.
pub(super) struct Devices {
    pub(super) open: Vec<OpenDevice>,
    pub(super) refused: Vec<RefusedDevice>,
    /// What they share.
    pub(super) meta: Arc<dyn MetaStore>,
}

/// Opens the configured devices, all at the same time; formats those that do not exist.
///
/// # Errors
/// When none can be opened: a server without a device is of no use, and its configuration or its disks need a person.
pub(super) async fn open_all(config: &SdsConfig, cluster: ClusterId, sds: SdsId) -> Result<Devices, SdsError> {
    let path = config.data_dir.join("sds_local.db");
    // Formatting writes the whole journal, opening replays it: not for a thread that serves.
    let opening = tokio::task::spawn_blocking(move || {
        LocalDb::open(&path, &[]).map_err(|source| SdsError::Meta { path, source })
    });
    let meta: Arc<dyn MetaStore> = opening.await.expect("opening does not panic")?;
    let opening: Vec<_> = config
        .devices
        .iter()
        .map(|device| {
            let (device, meta) = (device.clone(), Arc::clone(&meta));
            tokio::task::spawn_blocking(move || {
                let opened = open_one(&device, cluster, sds, &meta);
                (device, opened)
            })
        })
        .collect();
    let mut devices = Devices { open: Vec::new(), refused: Vec::new(), meta: Arc::clone(&meta) };
    let mut first = None;
    for opening in opening {
        match opening.await.expect("opening does not panic") {
            (file, Ok((store, opened))) => devices.open.push(OpenDevice { file, store, opened }),
            (file, Err(error)) => {
                let why = describe(&error);
                tracing::error!(path = %file.path.display(), why, "a device is refused; it is left as it is");
                devices.refused.push(RefusedDevice { path: file.path, why });
                first.get_or_insert(error);
            }
        }
    }
    match first {
        Some(error) if devices.open.is_empty() => Err(error),
        Some(_) | None => Ok(devices),
    }
}

/// An error with all that caused it, in one line.
pub(super) fn describe(error: &SdsError) -> String {
    let mut said = error.to_string();
    let mut cause = std::error::Error::source(error).and_then(std::error::Error::source);
    while let Some(error) = cause {
        said = format!("{said}: {error}");
        cause = error.source();
    }
    said
}

pub(super) fn open_one(
    device: &DeviceFile,
    cluster: ClusterId,
    sds: SdsId,
    meta: &Arc<dyn MetaStore>,
) -> Result<(Store, OpenReport), SdsError> {
    let refused = |source| SdsError::Device { path: device.path.clone(), source };
    let files = FileConfig { sparse: device.sparse, ..FileConfig::beside(&device.path) };
    let is_block = device.path.exists() && files.journal_path.is_none();
    // A file that does not exist is made. A raw block device is formatted only if the configuration says so for this
    // device, and if it is blank: a wrong path must not cost anybody's data.
    if !device.path.exists() {
        tracing::info!(path = %device.path.display(), bytes = device.size_bytes, "formatting a new device");
        make(device, cluster, sds, meta.as_ref())?;
    } else if is_block && device.format_if_blank && is_blank(&device.path).map_err(refused)? {
        tracing::info!(path = %device.path.display(), "formatting a blank block device");
        let format = new_format(device, cluster, sds);
        Store::format_files(&files, 0, false, meta.as_ref(), &format).map_err(refused)?;
    }
    Store::open_files(&files, Arc::clone(meta), StoreConfig { cluster, sds }).map_err(refused)
}

fn new_format(device: &DeviceFile, cluster: ClusterId, sds: SdsId) -> FormatConfig {
    let uuid = DeviceUuid(uuid::Uuid::new_v4());
    FormatConfig { cluster, sds, uuid, journal_bytes: device.journal_bytes }
}

/// Whether a block device holds nothing that anybody would recognise: partition tables, file systems and volume managers
/// have their marks in the first megabytes or the last one.
fn is_blank(path: &Path) -> Result<bool, OpenError> {
    let look = || -> io::Result<bool> {
        let mut file = File::open(path)?;
        let end = file.seek(SeekFrom::End(0))?;
        let mut piece = vec![0; BLANK_PIECE];
        for at in
            [0, 1, 2, 3].map(|n| n * BLANK_PIECE as u64).into_iter().chain([end.saturating_sub(BLANK_PIECE as u64)])
        {
            let length = usize::try_from(end.saturating_sub(at)).unwrap_or(BLANK_PIECE).min(BLANK_PIECE);
            file.read_exact_at(&mut piece[..length], at)?;
            if piece[..length].iter().any(|byte| *byte != 0) {
                return Ok(false);
            }
        }
        Ok(true)
    };
    look().map_err(|source| OpenError::File { action: "look at", path: path.to_owned(), source })
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
        match store::inspect(&FileConfig { path: journal.clone(), journal_path: None, sparse: false }) {
            Ok(superblock) if superblock.device != DeviceId(0) => {
                let reason =
                    format!("its journal {} is here and the device is not; is its disk mounted?", journal.display());
                return Err(refused(OpenError::Damaged { reason }));
            }
            Ok(_) | Err(_) => remove_if_exists(journal).map_err(file("remove", journal))?,
        }
    }
    let format = new_format(device, cluster, sds);
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
    use pflex_common::net::Endpoint;

    use super::*;
    use crate::store::MemoryMeta;

    fn device(dir: &Path) -> DeviceFile {
        let path = dir.join("device0");
        DeviceFile {
            path,
            size_bytes: 64 << 20,
            journal_bytes: Some(0),
            pool: String::new(),
            preallocate: false,
            sparse: false,
            format_if_blank: false,
        }
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

    #[tokio::test]
    async fn a_device_that_is_refused_does_not_keep_the_others_from_serving() {
        let dir = tempfile::tempdir().unwrap();
        let devices: Vec<_> =
            (0..3).map(|n| DeviceFile { path: dir.path().join(format!("device{n}")), ..device(dir.path()) }).collect();
        let config = SdsConfig {
            name: "s".to_owned(),
            mdm: Vec::new(),
            data_dir: dir.path().to_owned(),
            data: Endpoint::new("127.0.0.1", 0),
            control: Endpoint::new("127.0.0.1", 0),
            management: Endpoint::new("127.0.0.1", 0),
            devices,
        };
        let open = || open_all(&config, ClusterId::from_bytes([1; 16]), SdsId(1));
        let all = open().await.unwrap();
        assert_eq!((all.open.len(), all.refused.len()), (3, 0));
        drop(all);
        let garbage = vec![7; 64 << 20];
        std::fs::write(&config.devices[1].path, &garbage).unwrap();
        let some = open().await.unwrap();
        let paths: Vec<_> = some.open.iter().map(|device| &device.file.path).collect();
        assert_eq!(paths, [&config.devices[0].path, &config.devices[2].path]);
        assert_eq!(some.refused[0].path, config.devices[1].path);
        assert!(some.refused[0].why.contains("is refused: "), "{}", some.refused[0].why);
        assert!(std::fs::read(&config.devices[1].path).unwrap() == garbage, "it is left as it is");
        drop(some);
        for device in &config.devices {
            std::fs::write(&device.path, &garbage).unwrap();
        }
        assert!(matches!(open().await.map(drop), Err(SdsError::Device { path, .. }) if path == config.devices[0].path));
    }

    /// A loop device on a sparse file, as a raw disk.
    struct Disk(PathBuf);

    impl Disk {
        fn on(file: &Path) -> Self {
            File::create(file).unwrap().set_len(300 << 20).unwrap();
            let made = std::process::Command::new("losetup").args(["--find", "--show"]).arg(file).output().unwrap();
            assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
            Self(PathBuf::from(String::from_utf8(made.stdout).unwrap().trim()))
        }
    }

    impl Drop for Disk {
        fn drop(&mut self) {
            let _ = std::process::Command::new("losetup").arg("--detach").arg(&self.0).status();
        }
    }

    #[test]
    fn a_raw_disk_is_formatted_if_it_is_blank_and_that_is_wanted() {
        use std::os::unix::fs::MetadataExt as _;
        if std::fs::metadata("/proc/self").unwrap().uid() != 0 {
            println!("not tried: a loop device takes root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let meta: Arc<dyn MetaStore> = MemoryMeta::new();
        let disk = Disk::on(&dir.path().join("disk"));
        let wanted = DeviceFile { path: disk.0.clone(), format_if_blank: true, ..device(dir.path()) };
        let error = open(&DeviceFile { format_if_blank: false, ..wanted.clone() }, &meta).map(drop).unwrap_err();
        assert!(matches!(error, SdsError::Device { source: OpenError::NotFormatted, .. }), "{error}");

        let write = |at: u64, byte: u8| {
            let file = File::options().write(true).open(&disk.0).unwrap();
            file.write_all_at(&[byte], at).unwrap();
            file.sync_all().unwrap();
        };
        // As the backup of a partition table in the last sector would.
        write((300 << 20) - 100, 1);
        assert!(open(&wanted, &meta).is_err(), "somebody's data");
        write((300 << 20) - 100, 0);
        let (store, report) = open(&wanted, &meta).unwrap();
        assert!(!report.emptied && store.stats().units_total > 100);
        drop(store);
        let (_, again) = open(&wanted, &meta).unwrap();
        assert_eq!(again.superblock.uuid, report.superblock.uuid, "it is formatted once");
    }

    #[test]
    fn a_data_file_of_another_device_is_refused() {
        for (other_size, other_journal) in [(64 << 20, 0), (80 << 20, 0), (96 << 20, 32 << 20)] {
            let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            let meta: Arc<dyn MetaStore> = MemoryMeta::new();
            let ours = device(here.path());
            let theirs =
                DeviceFile { size_bytes: other_size, journal_bytes: Some(other_journal), ..device(there.path()) };
            drop(open(&ours, &meta).unwrap());
            drop(open_one(&theirs, ClusterId::from_bytes([2; 16]), SdsId(1), &meta).unwrap());
            std::fs::copy(&theirs.path, &ours.path).unwrap();
            let error = open(&ours, &meta).map(drop).unwrap_err();
            assert!(error.to_string().contains("is refused"), "{error}");
        }
    }
}
