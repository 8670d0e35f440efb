//! Which cluster a data directory belongs to: `identity.json`, written once. Version 1: `{"version":1,"cluster":UUID}`.

use std::path::{Path, PathBuf};

use pflex_common::durable;
use pflex_proto::ids::ClusterId;
use serde::{Deserialize, Serialize};

use super::SdsError;

const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Persisted {
    version: u32,
    cluster: ClusterId,
}

/// The cluster, once known.
#[derive(Debug)]
pub(super) struct Identity {
    path: PathBuf,
    cluster: Option<ClusterId>,
}

impl Identity {
    /// Reads it, or makes the data directory.
    pub(super) fn open(dir: &Path) -> Result<Self, SdsError> {
        durable::create_dir(dir)?;
        let path = dir.join("identity.json");
        let Some(content) = durable::read_if_exists(&path)? else { return Ok(Self { path, cluster: None }) };
        let damaged = |why: String| SdsError::Identity { path: path.clone(), why };
        let found: Persisted = serde_json::from_slice(&content).map_err(|error| damaged(error.to_string()))?;
        if found.version != VERSION {
            return Err(damaged(format!("it has version {}, this release knows {VERSION}", found.version)));
        }
        Ok(Self { cluster: Some(found.cluster), path })
    }

    pub(super) const fn cluster(&self) -> Option<ClusterId> {
        self.cluster
    }

    /// Remembers the cluster for good.
    pub(super) fn join(&mut self, cluster: ClusterId) -> Result<(), SdsError> {
        if self.cluster != Some(cluster) {
            let content = serde_json::to_vec(&Persisted { version: VERSION, cluster }).expect("plain data serialises");
            durable::replace(&self.path, &content)?;
            self.cluster = Some(cluster);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cluster_is_remembered_and_a_damaged_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let cluster = ClusterId::from_bytes([3; 16]);
        let mut identity = Identity::open(dir.path()).unwrap();
        assert_eq!(identity.cluster(), None);
        identity.join(cluster).unwrap();
        assert_eq!(Identity::open(dir.path()).unwrap().cluster(), Some(cluster));
        for bad in ["{", r#"{"version":2,"cluster":"03030303-0303-0303-0303-030303030303"}"#] {
            std::fs::write(dir.path().join("identity.json"), bad).unwrap();
            assert!(matches!(Identity::open(dir.path()), Err(SdsError::Identity { .. })));
        }
    }
}
