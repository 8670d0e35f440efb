//! A real data thread on a device in memory, for tests of those who use its handle.

use std::sync::Arc;

use pflex_common::clock::MonotonicTime;
use pflex_proto::ids::{ClusterId, DeviceId, DeviceUuid, Member, Revision, SdsId};
use tokio::sync::mpsc;

use super::{DeviceHandle, Report, WorkerConfig, spawn};
use crate::{
    device::MemoryDevice,
    store::{FormatConfig, Geometry, MemoryMeta, Store, StoreConfig},
};

/// Device 1 of SDS 1, formatted and opened.
pub(crate) fn device() -> (DeviceHandle, mpsc::Receiver<Report>) {
    let cluster = ClusterId::from_bytes([1; 16]);
    let geometry = Geometry { units: 16, ..Geometry::divide(1 << 30, 0).unwrap() };
    let (device, meta) = (MemoryDevice::new(geometry.total_bytes()), MemoryMeta::new());
    let format = FormatConfig { cluster, sds: SdsId(1), uuid: DeviceUuid::from_bytes([2; 16]), journal_bytes: 0 };
    Store::format(device.as_ref(), geometry, meta.as_ref(), &format).unwrap();
    let (store, opened) =
        Store::open(device, Arc::clone(&meta) as Arc<_>, StoreConfig { cluster, sds: SdsId(1) }).unwrap();
    let own = Member { device: DeviceId(1), sds: SdsId(1), incarnation: opened.superblock.incarnation };
    let (reports, queue) = mpsc::channel(16);
    let config =
        WorkerConfig { cluster, own, store, opened, opened_at: MonotonicTime::now(), registered: Revision(1), reports };
    (spawn(config).unwrap(), queue)
}
