//! The configuration as written, and as validated.
//!
//! A member is either one of the first, which all list one another and their stores, or it joins: then it makes its store
//! itself at its first start and waits until `cluster add-node` or `replace-node` names it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::PathBuf,
};

use pflex_common::net::Endpoint;
use pflex_proto::{
    ids::{ClusterId, MdmId, StoreUuid},
    pb::Addresses,
};
use serde::{Deserialize, Serialize};

use crate::{api::Limits, raft::MdmNode};

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
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<MemberFile>,
    /// Instead of `members`: this member joins a cluster that runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub join: Option<JoinFile>,
    /// How much it takes at a time.
    #[serde(default)]
    pub limits: Limits,
}

/// How a member that is added later is reached, and whom it joins.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct JoinFile {
    /// Where clients reach it.
    pub api: Endpoint,
    /// Where the other members reach it.
    pub raft: Endpoint,
    /// The client API of members of that cluster.
    pub mdm: Vec<Endpoint>,
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
    #[error("`members` is empty; list the first members of the cluster, or those to join in a `join` section")]
    NoMembers,
    /// A first member has nobody to join.
    #[error("`members` and `join` exclude each other; a node that is added later has only `join`")]
    MembersAndJoin,
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
    pub(super) addresses: Addresses,
    /// The store this member must have (S18); none for one that joins: it makes its own.
    pub(super) store: Option<StoreUuid>,
    /// The first members; none for a member that joins.
    pub(super) first: BTreeMap<MdmId, MdmNode>,
    pub(super) apis: Vec<Endpoint>,
    pub(super) limits: Limits,
}

impl TryFrom<MdmConfigFile> for MdmConfig {
    type Error = ConfigError;

    fn try_from(file: MdmConfigFile) -> Result<Self, ConfigError> {
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
        let own = Self::own(&file)?;
        if file.id == MdmId(0) {
            return Err(ConfigError::BadId(file.id));
        }
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
            addresses: Addresses { api: own.api.to_string(), raft: own.raft.to_string(), ..Addresses::default() },
            store: own.store,
            first: members,
            apis: own.peers,
            limits: file.limits,
        })
    }
}

impl MdmConfig {
    /// The cluster it is for.
    pub const fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// The member whose start begins the cluster's life: one must, and it must always be the same.
    pub(super) fn bootstraps(&self) -> bool {
        self.first.keys().next() == Some(&self.id)
    }

    fn own(file: &MdmConfigFile) -> Result<Own, ConfigError> {
        match &file.join {
            Some(_) if !file.members.is_empty() => Err(ConfigError::MembersAndJoin),
            Some(join) if join.mdm.is_empty() => Err(ConfigError::NoMembers),
            Some(join) => {
                let JoinFile { api, raft, mdm } = join.clone();
                Ok(Own { api, raft, store: None, peers: mdm })
            }
            None if file.members.is_empty() => Err(ConfigError::NoMembers),
            None => {
                let own = file.members.iter().find(|member| member.id == file.id);
                let own = own.ok_or(ConfigError::NotAMember(file.id))?.clone();
                let peers = file.members.iter().map(|member| member.api.clone()).collect();
                Ok(Own { api: own.api, raft: own.raft, store: Some(own.store), peers })
            }
        }
    }
}

/// What both kinds of member say of themselves.
struct Own {
    api: Endpoint,
    raft: Endpoint,
    store: Option<StoreUuid>,
    peers: Vec<Endpoint>,
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
            join: None,
            limits: Limits::default(),
        }
    }

    #[test]
    fn a_node_that_joins_lists_whom_it_joins_and_no_stores() {
        let join = JoinFile {
            api: Endpoint::new("127.0.0.1", 8_031),
            raft: Endpoint::new("127.0.0.1", 8_032),
            mdm: vec![Endpoint::new("127.0.0.1", 8_001)],
        };
        let joining = MdmConfigFile { id: MdmId(4), members: vec![], join: Some(join.clone()), ..file() };
        let config = MdmConfig::try_from(joining.clone()).unwrap();
        assert_eq!((config.store, config.bootstraps(), config.listen_api.port()), (None, false, 8_031));
        let refused = |file: MdmConfigFile| MdmConfig::try_from(file).unwrap_err();
        assert!(matches!(refused(MdmConfigFile { join: Some(join.clone()), ..file() }), ConfigError::MembersAndJoin));
        let nobody = JoinFile { mdm: vec![], ..join };
        assert!(matches!(refused(MdmConfigFile { join: Some(nobody), ..joining.clone() }), ConfigError::NoMembers));
        assert!(matches!(refused(MdmConfigFile { id: MdmId(0), ..joining }), ConfigError::BadId(_)));
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
