//! `cluster.toml`: what a directory of `pflex up` is, so that the next `up` continues the same cluster.
//!
//! ```toml
//! format = 1
//! cluster_id = "0b7c..."
//! complete = true
//! mdm = 3
//! sds = 3
//! sdc = 1
//! port_offset = 0
//! device_size_bytes = 17179869184
//! devices = 1
//! stores = ["91d2...", ...]
//! made = ["mdm0", "mdm1", ...]
//! ```
//! `made` names the processes whose store was made. It never shrinks: a store that is named here and is missing was lost,
//! and an MDM's is then not made again (S18).

use std::{collections::BTreeSet, path::Path};

use pflex_common::durable;
use pflex_proto::ids::{ClusterId, StoreUuid};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    layout::{Counts, Process},
    plan::Plan,
};
use crate::error::{Exit, Failure, one_line};

/// The name of the file.
pub(super) const FILE: &str = "cluster.toml";
/// The newest format this version knows.
const FORMAT: u32 = 1;

/// The file as it stands on disk.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub(super) struct Marker {
    format: u32,
    pub(super) cluster_id: ClusterId,
    /// Whether the first start came to its end, so that the demo volume and the rest are there.
    pub(super) complete: bool,
    mdm: u32,
    sds: u32,
    sdc: u32,
    pub(super) port_offset: u16,
    pub(super) device_size_bytes: u64,
    /// Of each SDS.
    #[serde(default = "one")]
    pub(super) devices: u32,
    /// The store of each MDM, in order (S18). Here before any of them is made, so that all configurations agree.
    pub(super) stores: Vec<StoreUuid>,
    made: BTreeSet<String>,
}

/// Of clusters that were made when there was no choice.
const fn one() -> u32 {
    1
}

/// Only this much of a newer file is sure to be as we know it.
#[derive(Deserialize)]
struct FormatOnly {
    format: u32,
}

impl Marker {
    /// A new cluster; `new_uuid` makes its identities.
    pub(super) fn new(plan: &Plan, new_uuid: impl Fn() -> Uuid) -> Self {
        let Plan { counts: Counts { mdm, sds, sdc }, port_offset, device_size_bytes, devices } = *plan;
        Self {
            format: FORMAT,
            cluster_id: ClusterId(new_uuid()),
            complete: false,
            mdm,
            sds,
            sdc,
            port_offset,
            device_size_bytes,
            devices,
            stores: (0..mdm).map(|_| StoreUuid(new_uuid())).collect(),
            made: BTreeSet::new(),
        }
    }

    pub(super) fn counts(&self) -> Counts {
        Counts { mdm: self.mdm, sds: self.sds, sdc: self.sdc }
    }

    pub(super) fn set_counts(&mut self, counts: Counts) {
        (self.mdm, self.sds, self.sdc) = (counts.mdm, counts.sds, counts.sdc);
    }

    pub(super) fn is_made(&self, process: Process) -> bool {
        self.made.contains(&process.to_string())
    }

    pub(super) fn set_made(&mut self, process: Process) {
        self.made.insert(process.to_string());
    }

    /// The marker of `dir`; none if it has none.
    pub(super) fn load(dir: &Path) -> Result<Option<Self>, Failure> {
        let path = dir.join(FILE);
        let read = durable::read_if_exists(&path);
        let bytes = read.map_err(|error| Failure::io(&error, error.io().kind().into()).cause(error))?;
        bytes.map(|bytes| Self::parse(&path, &String::from_utf8_lossy(&bytes))).transpose()
    }

    fn parse(path: &Path, text: &str) -> Result<Self, Failure> {
        let damaged = |error: toml::de::Error| {
            Failure::new(Exit::Failed, format!("{} is damaged: {}", path.display(), one_line(error.message())))
                .remedy("restore it, or remove the whole directory if its data is not needed")
        };
        let FormatOnly { format } = toml::from_str(text).map_err(damaged)?;
        if format > FORMAT {
            return Err(Failure::new(
                Exit::Conflict,
                format!("{} has format {format}, this version reads up to {FORMAT}", path.display()),
            )
            .remedy("start the version of pflex that wrote it, or give another --dir"));
        }
        let marker: Self = toml::from_str(text).map_err(damaged)?;
        if marker.stores.len() != marker.mdm as usize {
            return Err(damaged(serde::de::Error::custom("`stores` does not name one store for each MDM")));
        }
        Ok(marker)
    }

    pub(super) fn save(&self, dir: &Path) -> Result<(), Failure> {
        let text = toml::to_string(self).expect("the types of this file are those of TOML");
        durable::replace(&dir.join(FILE), text.as_bytes())
            .map_err(|error| Failure::io(&error, error.io().kind().into()).cause(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::layout::Kind;

    fn marker() -> Marker {
        let counts = Counts { mdm: 3, sds: 2, sdc: 1 };
        let plan = Plan { counts, port_offset: 5, device_size_bytes: 1 << 30, devices: 2 };
        let mut marker = Marker::new(&plan, Uuid::new_v4);
        marker.set_made(Process { kind: Kind::Sds, index: 1 });
        marker
    }

    #[test]
    fn what_was_saved_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Marker::load(dir.path()).unwrap(), None);
        let marker = marker();
        marker.save(dir.path()).unwrap();
        let loaded = Marker::load(dir.path()).unwrap().unwrap();
        assert_eq!(loaded, marker);
        assert!(loaded.is_made(Process { kind: Kind::Sds, index: 1 }));
        assert!(!loaded.is_made(Process { kind: Kind::Mdm, index: 0 }));
    }

    #[test]
    fn a_newer_format_is_refused_by_number_whatever_else_it_says() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), "format = 9\nsomething = \"new\"\n").unwrap();
        let failure = Marker::load(dir.path()).unwrap_err();
        assert_eq!(failure.exit(), Exit::Conflict);
        assert!(failure.to_string().contains("has format 9, this version reads up to 1"), "{failure}");
    }

    #[test]
    fn damage_is_not_taken_for_an_empty_directory() {
        let dir = tempfile::tempdir().unwrap();
        for text in ["", "format = 1\n", "\u{0}\u{0}", "format = \"x\""] {
            std::fs::write(dir.path().join(FILE), text).unwrap();
            assert!(Marker::load(dir.path()).is_err(), "{text:?}");
        }
    }
}
