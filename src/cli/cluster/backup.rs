//! `pflex cluster backup` and `restore`.
//!
//! A backup is received into a file beside the one asked for, read back and checked to its end, synced, and only then given
//! its name, which must be free: there is never half a backup under a name that looks like one.

use std::{
    fs::{self, File},
    io::{self, BufReader, Write as _},
    path::{Path, PathBuf},
};

use pflex_common::durable;
use pflex_mdm::backup::{BackupReader, Head};
use pflex_proto::{
    ids::ClusterId,
    pb::{BackupRequest, cluster_client::ClusterClient},
};
use tokio::time::Instant;

use super::Tool;
use crate::{
    client::{Freshness, Session, ask},
    error::{Exit, Failure},
    output::{Document, Record},
};

/// What a file holds, checked to its end.
pub(super) struct Checked {
    pub(super) head: Head,
    rows: u64,
    bytes: u64,
}

/// Makes a backup of the cluster in `path`.
pub(super) async fn back_up(tool: &Tool, path: &Path) -> Result<(), Failure> {
    let what = format!("back up the cluster to {}", path.display());
    // Said before anything is sent; the name is tried again at the end, when it counts.
    if path.exists() {
        return Err(taken(&what));
    }
    let session = tool.session()?;
    let partial = Partial::create(path, &what)?;
    receive(&session, &what, &partial.0).await?;
    let checked = check(&partial.0).map_err(|failure| Failure::new(failure.exit(), format!("{what}: {failure}")))?;
    match fs::hard_link(&partial.0, path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(taken(&what)),
        Err(error) => return Err(Failure::io(&what, error)),
    }
    drop(partial);
    durable::sync_parent(path).map_err(|error| Failure::new(Exit::Failed, format!("{what}: {error}")).cause(error))?;
    tool.print(&Document::One(record(path, &checked)))
}

async fn receive(session: &Session, what: &str, path: &Path) -> Result<(), Failure> {
    let deadline = Instant::now() + session.timeout().max(super::LONG);
    let mut parts = ask!(session, what, Freshness::Linearizable, ClusterClient.backup(BackupRequest {}))?;
    let mut file = File::options().append(true).open(path).map_err(|error| Failure::io(what, error))?;
    loop {
        let part = tokio::time::timeout_at(deadline, parts.message()).await;
        let part = part.map_err(|_| Failure::new(Exit::TimedOut, format!("{what}: the MDM stopped sending")))?;
        match part.map_err(|status| Failure::status(what, status))? {
            Some(part) => file.write_all(&part.data).map_err(|error| Failure::io(what, error))?,
            None => break,
        }
    }
    file.sync_all().map_err(|error| Failure::io(what, error))
}

/// Reads a backup to its end.
pub(super) fn check(path: &Path) -> Result<Checked, Failure> {
    let what = format!("read backup {}", path.display());
    let file = File::open(path).map_err(|error| Failure::io(&what, error))?;
    let bytes = file.metadata().map_err(|error| Failure::io(&what, error))?.len();
    let refused = |error| Failure::new(Exit::Conflict, format!("backup {}: {error}", path.display())).cause(error);
    let mut reader = BackupReader::new(BufReader::new(file)).map_err(refused)?;
    let mut rows = 0;
    while let Some(item) = reader.next_rows().map_err(refused)? {
        rows += item.rows.len() as u64;
    }
    Ok(Checked { head: reader.head().clone(), rows, bytes })
}

fn taken(what: &str) -> Failure {
    Failure::new(Exit::Conflict, format!("{what}: the file is there already"))
        .remedy("a backup never overwrites; choose another name")
}

pub(super) fn record(path: &Path, checked: &Checked) -> Record {
    let cluster = ClusterId::from_slice(&checked.head.cluster).map(|id| id.to_string()).unwrap_or_default();
    Record::new(path.display().to_string())
        .column("file", "FILE", path.display().to_string())
        .column("cluster_id", "CLUSTER", cluster)
        .column("revision", "REVISION", checked.head.revision)
        .column("rows", "ROWS", checked.rows)
        .column("bytes", "BYTES", checked.bytes)
}

/// A file on its way; gone when dropped.
struct Partial(PathBuf);

impl Partial {
    fn create(path: &Path, what: &str) -> Result<Self, Failure> {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".partial-{}", std::process::id()));
        let partial = path.with_file_name(name);
        // For its owner only: it has no secrets, but everything else about the cluster.
        let mut options = File::options();
        options.write(true).create_new(true);
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        options.open(&partial).map_err(|error| Failure::io(what, error))?;
        Ok(Self(partial))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // A leftover is named as what it is.
        drop(fs::remove_file(&self.0));
    }
}
