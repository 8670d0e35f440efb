//! The cluster map as SDSs, SDCs and tools know it: validated types, whole updates, and the task that keeps it fresh.

mod cluster_map;
mod kept;
mod objects;
mod table;
mod watcher;

pub use cluster_map::ClusterMap;
pub use objects::{Access, DeviceInfo, Limits, Mapping, PoolInfo, SdcInfo, SdsInfo, VolumeInfo};
pub use table::{Table, TableKey};
pub use watcher::{Watcher, watch, watch_from};
