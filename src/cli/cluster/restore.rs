//! `pflex cluster restore` and `end-recovery`: a cluster whose MDMs are lost begins again from a backup (rule S19).

use std::{fs, path::Path, time::Duration};

use pflex_common::net::Endpoint;
use pflex_mdm::daemon::{self, MdmConfig, MdmConfigFile, RestoreError};
use pflex_proto::pb::{ClusterStatusRequest, EndRecoveryRequest, cluster_client::ClusterClient};
use toml::Table;

use super::{
    Tool,
    backup::{check, record},
};
use crate::{
    client::change,
    error::{Exit, Failure, one_line},
    output::{Document, Record},
};

/// For one MDM of the old cluster to say that it has a leader.
const ASK: Duration = Duration::from_secs(1);

/// Makes the store of the MDM that `config` configures from `backup`.
pub(super) async fn restore(tool: &Tool, backup: &Path, config: &Path, dry_run: bool) -> Result<(), Failure> {
    let what = format!("restore {}", backup.display());
    let file = load(config)?;
    let old: Vec<Endpoint> = match &file.join {
        Some(join) => join.mdm.clone(),
        None => file.members.iter().map(|member| member.api.clone()).collect(),
    };
    let refuse = |error: daemon::ConfigError| {
        Failure::new(Exit::Usage, format!("configuration {}: {error}", config.display())).cause(error)
    };
    let resolved = MdmConfig::try_from(file).map_err(refuse)?;
    let checked = check(backup)?;
    for mdm in &old {
        if has_leader(mdm).await {
            let why = format!("{what}: the cluster has a leader, says the MDM at {mdm}; nothing was changed");
            return Err(Failure::new(Exit::Conflict, why).remedy(
                "a restore is for a cluster whose MDMs are lost; replace a lost one with `cluster replace-node`",
            ));
        }
    }
    if dry_run {
        eprintln!("the backup is whole; a restore was not made");
        return tool.print(&Document::One(record(backup, &checked)));
    }
    let restored = daemon::restore(&resolved, backup).map_err(|error| {
        let exit = match &error {
            RestoreError::Open { .. } => Exit::NotFound,
            RestoreError::Backup { .. } | RestoreError::OtherCluster { .. } | RestoreError::Store(_) => Exit::Conflict,
            RestoreError::State { .. } | RestoreError::Randomness => Exit::Failed,
        };
        Failure::new(exit, format!("{what}: {error}")).cause(error)
    })?;
    eprintln!("restored; next: start it with `pflex mdm --config {}`, add other MDMs with", config.display());
    eprintln!("`pflex cluster add-node`, start every SDS, and then `pflex cluster end-recovery`");
    let row = Record::new(restored.cluster.to_string())
        .column("cluster_id", "CLUSTER", restored.cluster.to_string())
        .column("generation", "GENERATION", restored.generation.get())
        .column("backup_revision", "BACKUP REVISION", restored.backup_revision.get())
        .column("store", "STORE", restored.store.to_string());
    tool.print(&Document::One(row))
}

/// Lets placement groups be served again.
pub(super) async fn end_recovery(tool: &Tool, force: bool) -> Result<(), Failure> {
    let session = tool.session()?;
    let request = EndRecoveryRequest { request: None, force };
    change!(session, "end the recovery", ClusterClient.end_recovery(request))?;
    eprintln!("the recovery is over; placement groups may be served");
    Ok(())
}

/// The configuration as the daemon reads it; what is the command line's in it does not matter here.
fn load(path: &Path) -> Result<MdmConfigFile, Failure> {
    let text = fs::read_to_string(path)
        .map_err(|error| Failure::io(format!("read configuration {}", path.display()), error))?;
    let refuse = |error: toml::de::Error| {
        let why = format!("configuration {}: {}", path.display(), one_line(error.message()));
        Failure::new(Exit::Usage, why)
    };
    let mut table: Table = text.parse().map_err(refuse)?;
    table.remove("pid-file");
    table.try_into().map_err(refuse)
}

async fn has_leader(mdm: &Endpoint) -> bool {
    let mut client = ClusterClient::new(mdm.channel());
    let asked = client.status(ClusterStatusRequest { stale: true });
    let answer = tokio::time::timeout(ASK, asked).await;
    answer.is_ok_and(|answer| answer.is_ok_and(|status| status.into_inner().leader != 0))
}
