//! `pflex cluster init`: the empty store of one of a new cluster's first MDMs.
//!
//! Run once on each of them. A store lost later is never made again under its old id (S18): it would vote twice.

use std::path::Path;

use pflex_mdm::{
    daemon::{self, DaemonError},
    raft::StoreError,
};

use super::{Tool, mdm_file::MdmFile};
use crate::{
    error::{Exit, Failure},
    output::{Document, Record},
};

/// Makes the store of the MDM that `config` configures.
pub(super) async fn init(tool: &Tool, config: &Path) -> Result<(), Failure> {
    let file = MdmFile::load(config)?;
    let refuse = |why: String| Failure::new(Exit::Conflict, format!("make a store for {}: {why}", config.display()));
    if file.file.join.is_some() {
        let why = "an MDM that joins a cluster makes its store itself at its first start".to_owned();
        return Err(refuse(why).remedy("start it with `pflex mdm --config FILE`, then `pflex cluster add-node`"));
    }
    if let Some(mdm) = file.who_has_a_leader().await {
        let why = format!("the cluster has a leader already, says the MDM at {mdm}; nothing was changed");
        return Err(refuse(why).remedy("an MDM that lost its store comes back with `pflex cluster replace-node`"));
    }
    daemon::init(&file.resolved).map_err(|error| {
        let exit = match &error {
            DaemonError::Store(StoreError::Exists { .. }) => Exit::Conflict,
            _ => Exit::Failed,
        };
        Failure::new(exit, format!("make a store for {}: {error}", config.display())).cause(error)
    })?;
    eprintln!("next, once each MDM of the configuration has its store: pflex mdm --config {}", config.display());
    let written = file.file;
    let row = Record::new(written.id.get())
        .column("id", "ID", written.id.get())
        .column("cluster_id", "CLUSTER", written.cluster.to_string())
        .column("dir", "DIRECTORY", written.dir.display().to_string());
    tool.print(&Document::One(row))
}
