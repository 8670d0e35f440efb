//! The configuration of an MDM, for the commands that make its store before it ever ran.

use std::{fs, path::Path, time::Duration};

use pflex_common::net::Endpoint;
use pflex_mdm::daemon::{ConfigError, MdmConfig, MdmConfigFile};
use pflex_proto::pb::{ClusterStatusRequest, cluster_client::ClusterClient};
use toml::Table;

use crate::error::{Exit, Failure, one_line};

/// For one MDM to say that it has a leader.
const ASK: Duration = Duration::from_secs(1);

/// What the daemon would run with, and which MDMs its file names.
pub(super) struct MdmFile {
    pub(super) resolved: MdmConfig,
    pub(super) file: MdmConfigFile,
    others: Vec<Endpoint>,
}

impl MdmFile {
    pub(super) fn load(path: &Path) -> Result<Self, Failure> {
        let file = parse(path)?;
        let others = match &file.join {
            Some(join) => join.mdm.clone(),
            None => file.members.iter().map(|member| member.api.clone()).collect(),
        };
        let refuse = |error: ConfigError| {
            Failure::new(Exit::Usage, format!("configuration {}: {error}", path.display())).cause(error)
        };
        Ok(Self { resolved: MdmConfig::try_from(file.clone()).map_err(refuse)?, file, others })
    }

    /// An MDM of the file that answers and knows of a leader: then the cluster is alive.
    pub(super) async fn who_has_a_leader(&self) -> Option<&Endpoint> {
        for mdm in &self.others {
            let mut client = ClusterClient::new(mdm.channel());
            let asked = client.status(ClusterStatusRequest { stale: true });
            let answer = tokio::time::timeout(ASK, asked).await;
            if answer.is_ok_and(|answer| answer.is_ok_and(|status| status.into_inner().leader != 0)) {
                return Some(mdm);
            }
        }
        None
    }
}

/// As the daemon reads it; what is the command line's in it does not matter here.
fn parse(path: &Path) -> Result<MdmConfigFile, Failure> {
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
