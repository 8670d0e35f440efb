//! `pflex cluster restore` and `end-recovery`: a cluster whose MDMs are lost begins again from a backup (rule S19).

use std::path::Path;

use pflex_mdm::daemon::{self, RestoreError};
use pflex_proto::pb::{EndRecoveryRequest, cluster_client::ClusterClient};

use super::{
    Tool,
    backup::{check, record},
    mdm_file::MdmFile,
};
use crate::{
    client::change,
    confirm::{ConfirmArgs, confirm_to},
    error::{Exit, Failure},
    output::{Document, Record},
};

/// Makes the store of the MDM that `config` configures from `backup`.
pub(super) async fn restore(tool: &Tool, backup: &Path, config: &Path, args: ConfirmArgs) -> Result<(), Failure> {
    let what = format!("restore {}", backup.display());
    let file = MdmFile::load(config)?;
    let checked = check(backup)?;
    if let Some(mdm) = file.who_has_a_leader().await {
        let why = format!("{what}: the cluster has a leader, says the MDM at {mdm}; nothing was changed");
        return Err(Failure::new(Exit::Conflict, why)
            .remedy("a restore is for a cluster whose MDMs are lost; replace a lost one with `cluster replace-node`"));
    }
    if args.dry_run {
        eprintln!("the backup is whole; a restore was not made");
        return tool.print(&Document::One(record(backup, &checked)));
    }
    let cluster = file.resolved.cluster().to_string();
    let deed = format!(
        "make a new beginning of cluster {cluster} at revision {}, and give up every decision since",
        checked.head.revision
    );
    if !confirm_to(args, &deed, &cluster)? {
        return Ok(());
    }
    let restored = daemon::restore(&file.resolved, backup).map_err(|error| {
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

/// Lets placement groups be served again. What only the SDSs in `without` know or hold is given up.
pub(super) async fn end_recovery(tool: &Tool, without: Vec<String>, args: ConfirmArgs) -> Result<(), Failure> {
    let session = tool.session()?;
    if !without.is_empty() || args.dry_run {
        let names = without.join(", ");
        let deed = match without.as_slice() {
            [] => "end the recovery".to_owned(),
            _ => format!("end the recovery and give up what only {names} knew or holds"),
        };
        if !confirm_to(args, &deed, &names)? {
            return Ok(());
        }
    }
    let request = EndRecoveryRequest { request: None, without };
    change!(session, "end the recovery", ClusterClient.end_recovery(request))?;
    eprintln!("the recovery is over; placement groups may be served");
    Ok(())
}
