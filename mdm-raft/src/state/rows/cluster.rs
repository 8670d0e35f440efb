//! Rows of identity, counters, secrets and nodes. The singletons share the table `config`, keyed by name.

use pflex_proto::ids::{
    ClientId, ClusterGeneration, ClusterId, DeviceId, DomainId, FaultSetId, KeyId, LogTime, MdmId, PoolId, Revision,
    SdcId, SdsId, StoreUuid, TokenId, VolumeId,
};

use super::{
    Row, RowError, bad,
    key::{KeyWriter, one_u32, two_u32},
    open, optional, proto, seal,
    topology::registration,
};
use crate::state::{
    model::{
        Cluster, Component, Counters, EvictionHold, HistoryRow, JobId, Kind, Link, MdmStores, Node, Position, Secret,
        SecretRow, Setting, Settings, SnapshotId, TokenChain,
    },
    table::Table,
};

/// The rows of `config`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ConfigRow {
    /// Who the cluster is.
    Cluster(Cluster),
    /// The last ids given out.
    Counters(Counters),
    /// The last command.
    Position(Position),
    /// Ends of the token hash chain.
    TokenChain(TokenChain),
    /// What an operator has tuned.
    Settings(Settings),
    /// When a leader last held back verdicts.
    EvictionHold(EvictionHold),
    /// Which id belongs to which store of an MDM.
    MdmStores(MdmStores),
}

/// Which row of `config`; the text is the key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[allow(missing_docs, reason = "as `ConfigRow`")]
pub enum ConfigKey {
    Cluster,
    Counters,
    Position,
    TokenChain,
    Settings,
    EvictionHold,
    MdmStores,
}

impl ConfigKey {
    const ALL: [Self; 7] = [
        Self::Cluster,
        Self::Counters,
        Self::Position,
        Self::TokenChain,
        Self::Settings,
        Self::EvictionHold,
        Self::MdmStores,
    ];

    const fn text(self) -> &'static str {
        match self {
            Self::Cluster => "cluster",
            Self::Counters => "counters",
            Self::Position => "position",
            Self::TokenChain => "token-chain",
            Self::Settings => "settings",
            Self::EvictionHold => "eviction-hold",
            Self::MdmStores => "mdm-stores",
        }
    }
}

impl Row for ConfigRow {
    const TABLE: Table = Table::Config;
    type Key = ConfigKey;

    fn key(&self) -> ConfigKey {
        match self {
            Self::Cluster(_) => ConfigKey::Cluster,
            Self::Counters(_) => ConfigKey::Counters,
            Self::Position(_) => ConfigKey::Position,
            Self::TokenChain(_) => ConfigKey::TokenChain,
            Self::Settings(_) => ConfigKey::Settings,
            Self::EvictionHold(_) => ConfigKey::EvictionHold,
            Self::MdmStores(_) => ConfigKey::MdmStores,
        }
    }

    fn encode_key(key: ConfigKey) -> Vec<u8> {
        key.text().as_bytes().to_vec()
    }

    fn encode(&self) -> Vec<u8> {
        match self {
            Self::Cluster(cluster) => seal(&proto::Cluster {
                id: cluster.id.as_bytes().to_vec(),
                generation: cluster.generation.get(),
                newest_key: cluster.newest_key.get(),
                recovering: cluster.recovering,
                devices_of_backup: cluster.devices_of_backup.map_or(0, DeviceId::get),
            }),
            Self::Counters(c) => seal(&proto::Counters {
                domain: c.domain.get(),
                pool: c.pool.get(),
                fault_set: c.fault_set.get(),
                sds: c.sds.get(),
                device: c.device.get(),
                sdc: c.sdc.get(),
                node: c.node,
                volume: c.volume.get(),
                token: c.token.get(),
                client: c.client.get(),
                snapshot: c.snapshot.0,
                job: c.job.0,
            }),
            Self::Position(position) => {
                seal(&proto::Position { revision: position.revision.get(), log_time_ms: position.log_time.get() })
            }
            Self::TokenChain(chain) => {
                seal(&proto::TokenChain { anchor: chain.anchor.0.to_vec(), head: chain.head.0.to_vec() })
            }
            Self::Settings(settings) => seal(&proto::Settings {
                chosen: settings.chosen().map(|(key, value)| (key.to_owned(), value)).collect(),
            }),
            Self::MdmStores(stores) => {
                let stores = stores.iter().map(|(id, store)| (id.get(), store.as_bytes().to_vec()));
                seal(&proto::MdmStores { stores: stores.collect() })
            }
            Self::EvictionHold(hold) => seal(&proto::EvictionHold { by: hold.by, at_log_ms: hold.at.get() }),
        }
    }

    fn decode(key: &[u8], value: &[u8]) -> Result<Self, RowError> {
        let key = ConfigKey::ALL
            .into_iter()
            .find(|known| known.text().as_bytes() == key)
            .ok_or_else(|| RowError::Key { key: key.to_vec() })?;
        Ok(match key {
            ConfigKey::Cluster => {
                let row: proto::Cluster = open(value)?;
                Self::Cluster(Cluster {
                    id: ClusterId::from_slice(&row.id).map_err(|why| bad("cluster id", why))?,
                    generation: ClusterGeneration(row.generation),
                    newest_key: KeyId(row.newest_key),
                    recovering: row.recovering,
                    devices_of_backup: optional(row.devices_of_backup),
                })
            }
            ConfigKey::Counters => {
                let row: proto::Counters = open(value)?;
                Self::Counters(Counters {
                    domain: DomainId(row.domain),
                    pool: PoolId(row.pool),
                    fault_set: FaultSetId(row.fault_set),
                    sds: SdsId(row.sds),
                    device: DeviceId(row.device),
                    sdc: SdcId(row.sdc),
                    node: row.node,
                    volume: VolumeId(row.volume),
                    token: TokenId(row.token),
                    client: ClientId(row.client),
                    snapshot: SnapshotId(row.snapshot),
                    job: JobId(row.job),
                })
            }
            ConfigKey::Position => {
                let row: proto::Position = open(value)?;
                Self::Position(Position { revision: Revision(row.revision), log_time: LogTime(row.log_time_ms) })
            }
            ConfigKey::TokenChain => {
                let row: proto::TokenChain = open(value)?;
                Self::TokenChain(TokenChain { anchor: link(&row.anchor)?, head: link(&row.head)? })
            }
            ConfigKey::Settings => {
                let row: proto::Settings = open(value)?;
                let mut settings = Settings::default();
                for (key, value) in row.chosen {
                    // A setting of another version: this one goes by what it knows.
                    if let Some(setting) = Setting::of(&key) {
                        settings.set(setting, value);
                    }
                }
                Self::Settings(settings)
            }
            ConfigKey::MdmStores => {
                let row: proto::MdmStores = open(value)?;
                let store = |(id, store): (u64, Vec<u8>)| {
                    Ok((MdmId(id), StoreUuid::from_slice(&store).map_err(|why| bad("store", why))?))
                };
                Self::MdmStores(row.stores.into_iter().map(store).collect::<Result<_, RowError>>()?)
            }
            ConfigKey::EvictionHold => {
                let row: proto::EvictionHold = open(value)?;
                Self::EvictionHold(EvictionHold { by: row.by, at: LogTime(row.at_log_ms) })
            }
        })
    }
}

/// 32 bytes of a hash.
pub(super) fn link(bytes: &[u8]) -> Result<Link, RowError> {
    bytes.try_into().map(Link).map_err(|_| bad("link", format_args!("{} bytes long", bytes.len())))
}

impl Row for SecretRow {
    const TABLE: Table = Table::Secrets;
    type Key = KeyId;

    fn key(&self) -> KeyId {
        self.key
    }

    fn encode_key(key: KeyId) -> Vec<u8> {
        KeyWriter::default().u32(key.get()).done()
    }

    fn encode(&self) -> Vec<u8> {
        seal(&proto::Secret {
            secret: self.secret.0.to_vec(),
            last_expiry_log_ms: self.last_expiry.map_or(0, LogTime::get),
        })
    }

    fn decode(key: &[u8], value: &[u8]) -> Result<Self, RowError> {
        let row: proto::Secret = open(value)?;
        let length = row.secret.len();
        let secret = row.secret.try_into().map_err(|_| bad("secret", format_args!("{length} bytes long")))?;
        let last_expiry = Some(LogTime(row.last_expiry_log_ms)).filter(|at| *at > LogTime(0));
        Ok(Self { key: KeyId(one_u32(key)?), secret: Secret(secret), last_expiry })
    }
}

pub(super) const fn kind_code(kind: Kind) -> u32 {
    match kind {
        Kind::Mdm => 1,
        Kind::Sds => 2,
        Kind::Sdc => 3,
        Kind::Mgmt => 4,
    }
}

pub(super) fn kind_of(code: u32) -> Result<Kind, RowError> {
    Ok(match code {
        1 => Kind::Mdm,
        2 => Kind::Sds,
        3 => Kind::Sdc,
        4 => Kind::Mgmt,
        other => return Err(bad("component kind", other)),
    })
}

pub(super) fn component(key: &[u8]) -> Result<Component, RowError> {
    let (kind, id) = two_u32(key)?;
    Ok(Component { kind: kind_of(kind)?, id })
}

pub(super) fn component_key(component: Component) -> Vec<u8> {
    KeyWriter::default().u32(kind_code(component.kind)).u32(component.id).done()
}

impl Row for Node {
    const TABLE: Table = Table::ClusterNodes;
    type Key = Component;

    fn key(&self) -> Component {
        self.component
    }

    fn encode_key(key: Component) -> Vec<u8> {
        component_key(key)
    }

    fn encode(&self) -> Vec<u8> {
        seal(&proto::Node {
            kind: kind_code(self.component.kind),
            name: self.name.clone(),
            registration: Some((&self.registration).into()),
        })
    }

    fn decode(key: &[u8], value: &[u8]) -> Result<Self, RowError> {
        let row: proto::Node = open(value)?;
        let registration = registration(row.registration)?.ok_or_else(|| bad("registration", "missing"))?;
        Ok(Self { component: component(key)?, name: row.name, registration })
    }
}

impl Row for HistoryRow {
    const TABLE: Table = Table::RegistrationHistory;
    /// The component and which of its registrations.
    type Key = (Component, u64);

    fn key(&self) -> (Component, u64) {
        (self.component, self.registration.count)
    }

    fn encode_key((component, count): (Component, u64)) -> Vec<u8> {
        KeyWriter::default().u32(kind_code(component.kind)).u32(component.id).u64(count).done()
    }

    fn encode(&self) -> Vec<u8> {
        seal(&proto::Registration::from(&self.registration))
    }

    fn decode(key: &[u8], value: &[u8]) -> Result<Self, RowError> {
        let registration = registration(Some(open(value)?))?.ok_or_else(|| bad("registration", "missing"))?;
        let (head, _) = key.split_at_checked(8).ok_or_else(|| RowError::Key { key: key.to_vec() })?;
        let row = Self { component: component(head)?, registration };
        if Self::encode_key(row.key()) == key { Ok(row) } else { Err(RowError::Key { key: key.to_vec() }) }
    }
}
