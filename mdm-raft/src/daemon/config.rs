//! The configuration as written, and as validated.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::PathBuf,
};

use pflex_common::net::Endpoint;
use pflex_proto::ids::{ClusterId, MdmId, StoreUuid};
use serde::{Deserialize, Serialize};

use crate::raft::MdmNode;

/// As it stands in the file.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct MdmConfigFile {
    /// The cluster, a uuid.
    pub cluster: ClusterId,
    /// Which of the members this is.
    pub id: MdmId,
    /// The store.
    pub dir: PathBuf,
    /// Where the API listens, if not at the address its member entry tells others.
    #[serde(default)]
    pub listen_api: Option<SocketAddr>,
    /// Where Raft listens, if not at the address its member entry tells others.
    #[serde(default)]
    pub listen_raft: Option<SocketAddr>,
    /// The first members of the cluster, this one among them; used until the cluster has its own list.
    pub members: Vec<MemberFile>,
}

/// One of the first members.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct MemberFile {
    /// Its id, from 1.
    pub id: MdmId,
    /// Where clients reach it.
    pub api: Endpoint,
    /// Where the other members reach it.
    pub raft: Endpoint,
    /// Its store (S18), a uuid; made with the configuration, before the store.
    pub store: StoreUuid,
}

/// A configuration that cannot work.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// There is nobody.
    #[error("`members` is empty; list the first members of the cluster")]
    NoMembers,
    /// Ids must tell members apart.
    #[error("member id {0} is 0 or listed twice; ids are unique and begin at 1")]
    BadId(MdmId),
    /// A store belongs to one member.
    #[error("store {0} is listed twice; each member has its own")]
    SharedStore(StoreUuid),
    /// Who is this?
    #[error("`members` has no entry for this member, id {0}")]
    NotAMember(MdmId),
    /// Listening needs an address, not a name.
    #[error("cannot listen at {endpoint}: it is not an IP address and port; set `{key}`")]
    NotAnAddress {
        /// What the member entry says.
        endpoint: Endpoint,
        /// The key that overrides it.
        key: &'static str,
    },
}

/// A configuration that can work.
#[derive(Clone, Debug)]
pub struct MdmConfig {
    pub(super) cluster: ClusterId,
    pub(super) id: MdmId,
    pub(super) dir: PathBuf,
    pub(super) listen_api: SocketAddr,
    pub(super) listen_raft: SocketAddr,
    pub(super) members: BTreeMap<MdmId, MdmNode>,
    pub(super) apis: Vec<Endpoint>,
}

impl TryFrom<MdmConfigFile> for MdmConfig {
    type Error = ConfigError;

    fn try_from(file: MdmConfigFile) -> Result<Self, ConfigError> {
        if file.members.is_empty() {
            return Err(ConfigError::NoMembers);
        }
        let mut members = BTreeMap::new();
        let mut stores = BTreeSet::new();
        for member in &file.members {
            let node = MdmNode {
                raft_address: member.raft.to_string(),
                api_address: member.api.to_string(),
                store: member.store,
            };
            if member.id == MdmId(0) || members.insert(member.id, node).is_some() {
                return Err(ConfigError::BadId(member.id));
            }
            if !stores.insert(member.store) {
                return Err(ConfigError::SharedStore(member.store));
            }
        }
        let own = file.members.iter().find(|member| member.id == file.id).ok_or(ConfigError::NotAMember(file.id))?;
        let listen = |given: Option<SocketAddr>, endpoint: &Endpoint, key| match given {
            Some(address) => Ok(address),
            None => {
                endpoint.to_string().parse().map_err(|_| ConfigError::NotAnAddress { endpoint: endpoint.clone(), key })
            }
        };
        Ok(Self {
            cluster: file.cluster,
            id: file.id,
            dir: file.dir,
            listen_api: listen(file.listen_api, &own.api, "listen-api")?,
            listen_raft: listen(file.listen_raft, &own.raft, "listen-raft")?,
            members,
            apis: file.members.iter().map(|member| member.api.clone()).collect(),
        })
    }
}

impl MdmConfig {
    /// The member whose start begins the cluster's life: one must, and it must always be the same.
    pub(super) fn bootstraps(&self) -> bool {
        self.members.keys().next() == Some(&self.id)
    }

    /// The store this member must have.
    pub(super) fn store(&self) -> StoreUuid {
        self.members[&self.id].store
    }

    pub(super) fn node(&self) -> &MdmNode {
        &self.members[&self.id]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> MdmConfigFile {
        let member = |id: u64| MemberFile {
            id: MdmId(id),
            api: Endpoint::new("127.0.0.1", 8_001),
            raft: Endpoint::new("127.0.0.1", 8_002),
            store: StoreUuid(uuid::Uuid::from_u128(id.into())),
        };
        MdmConfigFile {
            cluster: ClusterId(uuid::Uuid::from_u128(9)),
            id: MdmId(2),
            dir: "/tmp/x".into(),
            listen_api: None,
            listen_raft: None,
            members: vec![member(1), member(2)],
        }
    }

    #[test]
    fn a_good_file_is_taken_and_survives_json() {
        let config = MdmConfig::try_from(file()).unwrap();
        assert!(!config.bootstraps());
        assert_eq!(config.listen_api.port(), 8_001);
        let text = serde_json::to_string(&file()).unwrap();
        assert_eq!(serde_json::from_str::<MdmConfigFile>(&text).unwrap(), file());
        assert!(serde_json::from_str::<MdmConfigFile>(&text.replace("\"id\":2", "\"idd\":2")).is_err());
    }

    #[test]
    fn contradictions_are_named() {
        let refused = |change: fn(&mut MdmConfigFile)| {
            let mut file = file();
            change(&mut file);
            MdmConfig::try_from(file).unwrap_err().to_string()
        };
        assert!(refused(|f| f.members.clear()).contains("empty"));
        assert!(refused(|f| f.members[1].id = MdmId(1)).contains("twice"));
        assert!(refused(|f| f.members[1].store = f.members[0].store).contains("its own"));
        assert!(refused(|f| f.id = MdmId(7)).contains("no entry"));
        assert!(refused(|f| f.members[1].raft = Endpoint::new("host", 1)).contains("listen-raft"));
    }
}
