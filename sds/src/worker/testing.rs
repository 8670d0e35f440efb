//! A real data thread on a device in memory, for tests of those who use its handle.

use std::sync::Arc;

use pflex_common::clock::MonotonicTime;
use pflex_proto::ids::{ClusterId, DeviceId, DeviceUuid, Member, Revision, SdsId};
use tokio::sync::mpsc;

use super::{DeviceHandle, Report, WorkerConfig, spawn};
use crate::{
    device::{Device, MemoryDevice},
    store::{FormatConfig, Geometry, MemoryMeta, Store, StoreConfig},
};

/// The cluster of these tests.
pub(crate) const CLUSTER: ClusterId = ClusterId::from_bytes([1; 16]);

/// A disk of SDS 1 of 16 units with its metadata, formatted.
pub(crate) fn disk() -> (Arc<MemoryDevice>, Arc<MemoryMeta>) {
    disk_of(1)
}

/// The same of SDS `n`.
pub(super) fn disk_of(n: u8) -> (Arc<MemoryDevice>, Arc<MemoryMeta>) {
    let cluster = CLUSTER;
    let geometry = Geometry { units: 16, ..Geometry::divide(1 << 30, 0).unwrap() };
    let (device, meta) = (MemoryDevice::new(geometry.total_bytes()), MemoryMeta::new());
    let uuid = DeviceUuid::from_bytes([n + 1; 16]);
    let format = FormatConfig { cluster, sds: SdsId(n.into()), uuid, journal_bytes: Some(0) };
    Store::format(device.as_ref(), geometry, meta.as_ref(), &format).unwrap();
    (device, meta)
}

/// Device 1 of SDS 1, formatted and opened.
pub(crate) fn device() -> (DeviceHandle, mpsc::Receiver<Report>) {
    let (device, meta) = disk();
    open(device, &meta)
}

/// Device 1 of SDS 1 on such a disk.
pub(crate) fn open(device: Arc<MemoryDevice>, meta: &Arc<MemoryMeta>) -> (DeviceHandle, mpsc::Receiver<Report>) {
    let (config, queue) = config(device, meta);
    (spawn(config).unwrap(), queue)
}

/// What its data thread is made of.
pub(super) fn config(device: Arc<dyn Device>, meta: &Arc<MemoryMeta>) -> (WorkerConfig, mpsc::Receiver<Report>) {
    config_of(1, device, meta)
}

/// The same for device `n` of SDS `n`.
pub(super) fn config_of(
    n: u8,
    device: Arc<dyn Device>,
    meta: &Arc<MemoryMeta>,
) -> (WorkerConfig, mpsc::Receiver<Report>) {
    let cluster = CLUSTER;
    let sds = SdsId(n.into());
    let (store, opened) = Store::open(device, Arc::clone(meta) as Arc<_>, StoreConfig { cluster, sds }).unwrap();
    let own = Member { device: DeviceId(n.into()), sds, incarnation: opened.superblock.incarnation };
    let (reports, queue) = mpsc::channel(16);
    let config = WorkerConfig {
        cluster,
        own,
        store,
        opened,
        opened_at: MonotonicTime::now(),
        registered: Revision(1),
        departed_grace: std::time::Duration::ZERO,
        reports,
    };
    (config, queue)
}
