//! What a client remembers of memory that may hold writes it acknowledged (S14), beyond its own death.
//!
//! An application goes on through a restart of the SDC (NBD clients connect again), and its next FLUSH is to cover what was
//! acknowledged before. So before the first write under a volatility id is acknowledged, the group and the id are on disk
//! here: `DATA_DIR/unflushed-VOLUME.json`, replaced whole and synced. Ids change rarely, so this is rarely written. After a
//! restart each marked group may hold writes under its marked id, and the first FLUSH names exactly these: if a group has
//! lost that memory meanwhile, the FLUSH fails. It may have lost nothing that was not flushed before; then the client is
//! told of a loss that did not happen, never the other way.
//!
//! The marks go when everything is flushed at an orderly end or the volume is unmapped, and do not count on another boot of
//! the host: the applications of before are gone with it. One on another host that outlived it is not covered.

use std::collections::BTreeMap;
use std::path::PathBuf;

use pflex_common::durable;
use pflex_proto::ids::{PgId, VolatilityId, VolumeId};
use serde::{Deserialize, Serialize};
use tracing::error;

/// The version this code writes, and the only one there is.
const VERSION: u32 = 1;

/// Groups and the memory that may hold what was acknowledged in them.
pub(super) type Memories = BTreeMap<PgId, VolatilityId>;

#[derive(Debug, Deserialize, Serialize)]
struct Stored {
    version: u32,
    /// The kernel's id of the boot they are of.
    boot: String,
    groups: Vec<(PgId, VolatilityId)>,
}

/// Where marks are kept.
#[derive(Clone, Debug)]
pub struct Marks {
    /// None: nowhere; tests that do not restart.
    place: Option<(PathBuf, String)>,
}

impl Marks {
    /// In this directory.
    pub fn in_dir(dir: PathBuf) -> Self {
        // Where it cannot be read every boot looks like the same one, which errs on the safe side.
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Self { place: Some((dir, boot.trim().to_owned())) }
    }

    /// None are kept.
    pub const fn forgotten() -> Self {
        Self { place: None }
    }

    /// What an earlier process of this boot of the host left.
    ///
    /// # Errors
    /// With why nobody knows.
    pub(super) fn load(&self, volume: VolumeId) -> Result<Memories, String> {
        let Some((path, boot)) = self.path(volume) else { return Ok(Memories::new()) };
        let Some(content) = durable::read_if_exists(&path).map_err(|error| error.to_string())? else {
            return Ok(Memories::new());
        };
        let stored: Stored =
            serde_json::from_slice(&content).map_err(|error| format!("{}: {error}", path.display()))?;
        match stored {
            Stored { version, .. } if version != VERSION => {
                Err(format!("{} has version {version}, this release knows {VERSION}", path.display()))
            }
            Stored { boot: of, .. } if of != *boot => Ok(Memories::new()),
            Stored { groups, .. } => Ok(groups.into_iter().collect()),
        }
    }

    /// Replaces the marks of a volume, durably. Blocks on the disk.
    ///
    /// # Errors
    /// With why they are not on disk.
    pub(super) fn save(&self, volume: VolumeId, groups: &Memories) -> Result<(), String> {
        let Some((path, boot)) = self.path(volume) else { return Ok(()) };
        let groups = groups.iter().map(|(pg, memory)| (*pg, *memory)).collect();
        let stored = Stored { version: VERSION, boot: boot.to_owned(), groups };
        let content = serde_json::to_vec(&stored).expect("plain data is always JSON");
        durable::replace(&path, &content).map_err(|error| error.to_string())
    }

    /// Everything of the volume is flushed, or nobody will ask any more. A mark that stays does no harm.
    pub(super) fn remove(&self, volume: VolumeId) {
        let Some((path, _)) = self.path(volume) else { return };
        match std::fs::remove_file(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => error!(path = %path.display(), %error, "cannot remove it"),
        }
    }

    fn path(&self, volume: VolumeId) -> Option<(PathBuf, &str)> {
        let (dir, boot) = self.place.as_ref()?;
        Some((dir.join(format!("unflushed-{}.json", volume.0)), boot))
    }
}

#[cfg(test)]
mod tests {
    use pflex_proto::ids::{PgIndex, PoolId};

    use super::*;

    fn memories(ids: &[(u32, u64)]) -> Memories {
        ids.iter().map(|(index, id)| (PgId { pool: PoolId(1), index: PgIndex(*index) }, VolatilityId(*id))).collect()
    }

    #[test]
    fn marks_outlive_the_process_and_not_the_boot() {
        let dir = tempfile::tempdir().unwrap();
        let (marks, volume) = (Marks::in_dir(dir.path().to_owned()), VolumeId(7));
        assert_eq!(marks.load(volume), Ok(Memories::new()));
        marks.save(volume, &memories(&[(1, 4), (2, 9)])).unwrap();
        assert_eq!(Marks::in_dir(dir.path().to_owned()).load(volume), Ok(memories(&[(1, 4), (2, 9)])));
        assert_eq!(marks.load(VolumeId(8)), Ok(Memories::new()), "of another volume");

        let later = Marks { place: Some((dir.path().to_owned(), "another boot".into())) };
        assert_eq!(later.load(volume), Ok(Memories::new()));

        std::fs::write(dir.path().join("unflushed-7.json"), "{").unwrap();
        assert!(marks.load(volume).is_err(), "damaged is not the same as none");
        marks.remove(volume);
        marks.remove(volume);
        assert_eq!(marks.load(volume), Ok(Memories::new()));
    }
}
