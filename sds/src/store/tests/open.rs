//! What is refused at open and format, and that it is left untouched; what a restart brings back.

use tempfile::TempDir;

use super::*;
use crate::device::{self, AlignedBuffer, Device, FileConfig, Op};

fn open(device: &Arc<MemoryDevice>, meta: &Arc<MemoryMeta>) -> Result<(Store, OpenReport), OpenError> {
    Store::open(device.clone(), meta.clone(), CONFIG)
}

fn superblock_bytes(device: &MemoryDevice) -> Vec<u8> {
    device::read_now(device, 0, 4096).unwrap().to_vec()
}

#[test]
fn a_device_of_another_cluster_is_refused_and_untouched() {
    let (device, meta) = formatted(4);
    let before = superblock_bytes(&device);
    let other = StoreConfig { cluster: ClusterId::from_bytes([9; 16]), ..CONFIG };
    let error = Store::open(device.clone(), meta.clone(), other).map(drop).unwrap_err();
    assert!(matches!(error, OpenError::OtherCluster { found: CLUSTER, .. }), "{error}");
    let error = Store::format(device.as_ref(), geometry(4), meta.as_ref(), &FORMAT).unwrap_err();
    assert!(matches!(error, OpenError::AlreadyFormatted { cluster: CLUSTER }), "{error}");
    assert_eq!(superblock_bytes(&device), before);
}

#[test]
fn a_device_of_another_server_is_refused_and_untouched_unless_it_is_known_here() {
    let (device, meta) = formatted(4);
    let before = superblock_bytes(&device);
    let other = StoreConfig { sds: SdsId(8), ..CONFIG };
    let error = Store::open(device.clone(), MemoryMeta::new(), other).map(drop).unwrap_err();
    let expected = (SdsId(7), SdsId(8));
    assert!(matches!(error, OpenError::OtherServer { found, expected: ours } if (found, ours) == expected), "{error}");
    assert_eq!(superblock_bytes(&device), before);
    // The server was made again under another id; its data directory knows the device.
    assert!(!Store::open(device, meta, other).unwrap().1.emptied);
}

#[test]
fn a_blank_or_small_device_is_refused() {
    let meta = MemoryMeta::new();
    let error = Store::open(MemoryDevice::new(64 << 20), meta.clone(), CONFIG).map(drop).unwrap_err();
    assert!(matches!(error, OpenError::NotFormatted), "{error}");
    let error = Store::open(MemoryDevice::new(4096), meta.clone(), CONFIG).map(drop).unwrap_err();
    assert!(matches!(error, OpenError::TooSmall { bytes: 4096, .. }), "{error}");
    let small = MemoryDevice::new(30 << 20);
    let error = Store::format(small.as_ref(), geometry(100), meta.as_ref(), &FORMAT).unwrap_err();
    assert!(matches!(error, OpenError::TooSmall { .. }), "{error}");
    assert!(matches!(Geometry::divide(1 << 20, 0), Err(OpenError::TooSmall { .. })));
}

#[test]
fn one_damaged_superblock_copy_is_survived_two_are_not() {
    let (device, meta) = formatted(4);
    drop(open(&device, &meta).unwrap());
    device.corrupt(100);
    let (store, report) = open(&device, &meta).unwrap();
    assert_eq!(report.superblock.incarnation, Incarnation(2), "from the other copy");
    drop(store);
    device.corrupt(100);
    device.corrupt(geometry(4).front_bytes() + 40);
    let before = superblock_bytes(&device);
    let error = open(&device, &meta).map(drop).unwrap_err();
    assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
    assert_eq!(superblock_bytes(&device), before);
}

#[test]
fn a_newer_format_is_refused() {
    let (device, meta) = formatted(4);
    let mut block = superblock_bytes(&device);
    block[8..12].copy_from_slice(&99_u32.to_le_bytes());
    block[12..16].fill(0);
    let crc = crc32c::crc32c(&block);
    block[12..16].copy_from_slice(&crc.to_le_bytes());
    device::run(device.as_ref(), Op::WriteDurable { offset: 0, data: AlignedBuffer::padded(&block) }).unwrap();
    let error = open(&device, &meta).map(drop).unwrap_err();
    assert!(matches!(error, OpenError::NewerFormat { found: 99, known: 1 }), "{error}");
}

#[test]
fn a_lost_local_database_makes_an_empty_joiner() {
    let (device, meta) = formatted(4);
    let (mut store, _) = open(&device, &meta).unwrap();
    store.registered(DeviceId(12)).unwrap();
    store.apply(write(pg(0), chunk(0), 1, run(0, 1, 5))).unwrap();
    settle(&mut store);
    drop(store);
    let (mut store, report) = open(&device, &MemoryMeta::new()).unwrap();
    assert!(report.emptied && report.pgs.is_empty());
    assert_eq!(report.superblock.device, DeviceId(12), "it is still the same device");
    assert_eq!(report.superblock.incarnation, Incarnation(2));
    assert_eq!(store.chunk(chunk(0)), None);
    store.apply(write(pg(0), chunk(0), 1, run(0, 1, 6))).unwrap();
    settle(&mut store);
    drop(store);
    // The old database comes back: it is of another generation now, and must not be believed.
    let (store, report) = open(&device, &meta).unwrap();
    assert!(report.emptied);
    assert_eq!(store.chunk(chunk(0)), None);
}

#[test]
fn a_loss_is_reported_until_the_mdm_knows_it() {
    let (device, _) = formatted(4);
    let meta = MemoryMeta::new();
    for _crash_before_registering in 0..2 {
        let (_, report) = open(&device, &meta).unwrap();
        assert!(report.emptied, "the database is this device's again, what it held is not");
    }
    let (mut store, _) = open(&device, &meta).unwrap();
    store.registered(DeviceId(1)).unwrap();
    drop(store);
    assert!(!open(&device, &meta).unwrap().1.emptied);
}

#[test]
fn a_corrupt_journal_group_in_the_middle_is_refused() {
    let (device, meta) = formatted(4);
    let (mut store, _) = open(&device, &meta).unwrap();
    for sequence in 1..=3 {
        store.apply(write(pg(0), chunk(0), sequence, run(0, 1, 5))).unwrap();
        settle(&mut store);
    }
    drop(store);
    // Groups of two blocks each: the payload of the second.
    device.corrupt(geometry(4).journal_offset() + 8192 + 1000);
    let error = open(&device, &meta).map(drop).unwrap_err();
    assert!(matches!(error, OpenError::JournalCorrupt { sequence: 2, .. }), "{error}");
}

#[test]
fn a_restart_brings_back_versions_ids_and_watermarks() {
    let directory = TempDir::new().unwrap();
    let files = FileConfig::beside(&directory.path().join("device"));
    let meta = || LocalDb::open(&directory.path().join("sds_local.db"), &["verified_tokens"]).unwrap();
    Store::format_files(&files, 64 << 20, false, meta().as_ref(), &FORMAT).unwrap();
    for clean in [false, true, false] {
        let (mut store, report) = Store::open_files(&files, meta(), CONFIG).unwrap();
        let highest = report.pgs.first().map_or(0, |pg| pg.highest.sequence.0);
        let busy = Store::open_files(&files, MemoryMeta::new(), CONFIG).map(drop).unwrap_err();
        assert!(matches!(busy, OpenError::Busy { .. }), "{busy}");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            if highest > 0 {
                let data = store.read(chunk(1), BlockRange::WHOLE).await.unwrap();
                assert_eq!(tags(&data.data)[..2], [highest as u32 - 1, highest as u32]);
                assert_eq!(data.version, Some(version(highest)));
                assert_eq!(
                    store.find_operation(pg(0), CLIENT, OperationId(highest)),
                    Some((version(highest), chunk(1)))
                );
                assert_eq!(store.watermark(pg(0)).unwrap().0, Sequence(highest - 3));
            }
            let mut last = Ticket(0);
            for run in [run(0, 256, highest as u32 + 4), run(1, 1, highest as u32 + 5)] {
                let sequence = u64::from(u32::from_le_bytes(run.data.as_ref().unwrap()[..4].try_into().unwrap()));
                last = store.apply(write(pg(0), chunk(1), sequence, run)).unwrap();
            }
            while store.durable().await.unwrap().last().unwrap().through < last {}
            if clean {
                store.close().await.unwrap();
            }
        });
    }
    let again = Store::format_files(&files, 64 << 20, false, meta().as_ref(), &FORMAT).unwrap_err();
    assert!(matches!(again, OpenError::AlreadyFormatted { cluster: CLUSTER }), "{again}");
    std::fs::remove_file(directory.path().join("device.journal")).unwrap();
    let error = Store::open_files(&files, meta(), CONFIG).map(drop).unwrap_err();
    assert!(error.to_string().ends_with("device.journal"), "{error}");
    assert!(meta().rows(FORMAT.uuid, Table::Chunks).unwrap().len() == 1);
    assert_eq!(MemoryDevice::new(1).split(), None);
}
