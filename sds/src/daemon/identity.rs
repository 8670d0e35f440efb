//! Which cluster a data directory belongs to, and the newest generation of it that was followed (S19): `identity.json`,
//! replaced when either changes. Version 1: `{"version":1,"cluster":UUID,"generation":N}`.

use std::path::{Path, PathBuf};

use pflex_common::durable;
use pflex_proto::ids::{ClusterGeneration, ClusterId};
use serde::{Deserialize, Serialize};

use super::SdsError;

const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Persisted {
    version: u32,
    cluster: ClusterId,
    /// 0, as in older files: none was noted.
    #[serde(default)]
    generation: ClusterGeneration,
}

/// The cluster, once known.
#[derive(Debug)]
pub(super) struct Identity {
    path: PathBuf,
    cluster: Option<ClusterId>,
    generation: ClusterGeneration,
}

impl Identity {
    /// Reads it, or makes the data directory.
    pub(super) fn open(dir: &Path) -> Result<Self, SdsError> {
        durable::create_dir(dir)?;
        let path = dir.join("identity.json");
        let Some(content) = durable::read_if_exists(&path)? else { return Ok(Self::new(path)) };
        let damaged = |why: String| SdsError::Identity { path: path.clone(), why };
        let found: Persisted = serde_json::from_slice(&content).map_err(|error| damaged(error.to_string()))?;
        if found.version != VERSION {
            return Err(damaged(format!("it has version {}, this release knows {VERSION}", found.version)));
        }
        Ok(Self { cluster: Some(found.cluster), generation: found.generation, path })
    }

    const fn new(path: PathBuf) -> Self {
        Self { path, cluster: None, generation: ClusterGeneration(0) }
    }

    pub(super) const fn cluster(&self) -> Option<ClusterId> {
        self.cluster
    }

    /// The newest generation of the cluster that was followed; 0: none.
    pub(super) const fn generation(&self) -> ClusterGeneration {
        self.generation
    }

    /// Remembers the cluster for good.
    pub(super) fn join(&mut self, cluster: ClusterId) -> Result<(), SdsError> {
        self.replace(cluster, self.generation)
    }

    /// Remembers that this generation is followed: no older one ever is again.
    pub(super) fn follow(&mut self, cluster: ClusterId, generation: ClusterGeneration) -> Result<(), SdsError> {
        self.replace(cluster, generation.max(self.generation))
    }

    fn replace(&mut self, cluster: ClusterId, generation: ClusterGeneration) -> Result<(), SdsError> {
        if self.cluster != Some(cluster) || self.generation != generation {
            let persisted = Persisted { version: VERSION, cluster, generation };
            let content = serde_json::to_vec(&persisted).expect("plain data serialises");
            durable::replace(&self.path, &content)?;
            (self.cluster, self.generation) = (Some(cluster), generation);
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
        identity.follow(cluster, ClusterGeneration(7)).unwrap();
        identity.follow(cluster, ClusterGeneration(5)).unwrap();
        assert_eq!(Identity::open(dir.path()).unwrap().generation(), ClusterGeneration(7), "never an older one again");
        std::fs::write(
            dir.path().join("identity.json"),
            r#"{"version":1,"cluster":"03030303-0303-0303-0303-030303030303"}"#,
        )
        .unwrap();
        assert_eq!(Identity::open(dir.path()).unwrap().generation(), ClusterGeneration(0), "as older files say");
        for bad in ["{", r#"{"version":2,"cluster":"03030303-0303-0303-0303-030303030303"}"#] {
            std::fs::write(dir.path().join("identity.json"), bad).unwrap();
            assert!(matches!(Identity::open(dir.path()), Err(SdsError::Identity { .. })));
        }
    }
}
