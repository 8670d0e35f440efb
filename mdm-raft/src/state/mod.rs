//! The replicated state and what commands do to it: pure, no clock, no randomness, no I/O (ARCHITECTURE section 4).
//!
//! Reading order: `model` (the nouns), `table` and `rows` (how they are kept), `tracked` (a table that knows what
//! changed), `apply` (the commands), `check` (the invariants), `query`, `why` and `event` (what others see
//! of it), `limits`, `restore` and `recovery` (beginning again from a backup).
//!
//! Invariants:
//! - the same commands give the same state, rows and outcomes on every member;
//! - the rows of all applies, loaded, are the state: nothing lives only in memory but what `load` derives;
//! - a refused command changes nothing but its session.

mod activation;
mod apply;
mod check;
mod event;
mod homes;
pub mod limits;
mod missing;
pub mod model;
mod moving;
mod names;
mod query;
mod rebuild;
pub mod recovery;
mod restore;
pub mod rows;
mod sums;
pub mod table;
#[cfg(test)]
mod tests;
mod tracked;
mod why;

use pflex_proto::ids::{LogTime, Revision};

pub use event::{MapChange, MapEvent, ObjectRef};
pub use homes::{Hold, Outlook, Places};
pub use moving::Stuck;
pub use query::{PgState, PoolUsage};
pub use restore::{RestoreError, RestoredState};
pub use table::{RowChange, Table};
pub use tracked::Tracked;
pub use why::{Cause, Explanation};

use self::{
    model::{
        BadTokens, Cluster, ClusterMetrics, Counters, Device, Domain, Event, EvictionHold, FaultSet, GroupReports,
        Health, HeartbeatLog, HistoryRow, IoToken, KeptOutcome, Mapping, MdmStores, Node, NodeMetadata, Pg, Pool,
        Position, RebuildJob, Sdc, Sds, SecretRow, Session, Settings, Snapshot, TokenChain, Volume,
    },
    names::Names,
    rows::{
        RowError,
        cluster::{ConfigKey, ConfigRow},
    },
    sums::Sums,
};
use crate::command::Outcome;

/// What one command did.
#[derive(Debug)]
pub struct Applied {
    /// What its proposer is told.
    pub outcome: Outcome,
    /// What the store writes, in one batch.
    pub rows: Vec<RowChange>,
    /// What watchers of the map are told.
    pub events: Vec<MapEvent>,
}

/// A row that could not be loaded; the store is damaged or newer than this binary.
#[derive(Debug, thiserror::Error)]
#[error("row {key:02x?} of table {table} cannot be loaded", table = table.name())]
pub struct LoadError {
    /// Where.
    pub table: Table,
    /// Which row.
    pub key: Vec<u8>,
    /// Why.
    #[source]
    pub source: RowError,
}

/// A row as a store has it: table, key, value.
pub type StoredRow = (Table, Box<[u8]>, Box<[u8]>);

/// Everything the cluster has agreed on.
#[derive(Clone, Default)]
pub struct State {
    config: Tracked<ConfigRow>,
    secrets: Tracked<SecretRow>,
    sessions: Tracked<Session>,
    outcomes: Tracked<KeptOutcome>,
    domains: Tracked<Domain>,
    pools: Tracked<Pool>,
    fault_sets: Tracked<FaultSet>,
    sds: Tracked<Sds>,
    devices: Tracked<Device>,
    sdcs: Tracked<Sdc>,
    nodes: Tracked<Node>,
    history: Tracked<HistoryRow>,
    metadata: Tracked<NodeMetadata>,
    health: Tracked<Health>,
    heartbeats: Tracked<HeartbeatLog>,
    metrics: Tracked<ClusterMetrics>,
    pgs: Tracked<Pg>,
    volumes: Tracked<Volume>,
    snapshots: Tracked<Snapshot>,
    jobs: Tracked<RebuildJob>,
    mappings: Tracked<Mapping>,
    tokens: Tracked<IoToken>,
    bad_tokens: Tracked<BadTokens>,
    events: Tracked<Event>,
    group_reports: Tracked<GroupReports>,
    /// Derived from the tables after each apply and at load.
    names: Names,
    /// As `names`.
    sums: Sums,
}

/// Runs the same code on every table.
macro_rules! each_table {
    ($state:expr, $table:ident => $code:expr) => {{
        each_table!(@ $state, $table => $code; config secrets sessions outcomes domains pools fault_sets sds devices
            sdcs nodes history metadata health heartbeats metrics pgs volumes snapshots jobs mappings
            tokens bad_tokens events group_reports);
    }};
    (@ $state:expr, $table:ident => $code:expr; $($field:ident)*) => {
        $({ let $table = &mut $state.$field; $code; })*
    };
}
use each_table;

impl State {
    /// The state of a store's rows; they may come in any order.
    ///
    /// # Errors
    /// At the first row that does not decode.
    pub fn load(rows: impl Iterator<Item = StoredRow>) -> Result<Self, LoadError> {
        let mut state = Self::default();
        for (table, key, value) in rows {
            state.load_row(table, &key, &value).map_err(|source| LoadError { table, key: key.into(), source })?;
        }
        state.names = Names::of(&state);
        state.sums = Sums::of(&state);
        Ok(state)
    }

    fn load_row(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<(), RowError> {
        match table {
            Table::Config => self.config.load(key, value),
            Table::Secrets => self.secrets.load(key, value),
            Table::Sessions => self.sessions.load(key, value),
            Table::SessionOutcomes => self.outcomes.load(key, value),
            Table::ProtectionDomains => self.domains.load(key, value),
            Table::StoragePools => self.pools.load(key, value),
            Table::FaultSets => self.fault_sets.load(key, value),
            Table::SdsNodes => self.sds.load(key, value),
            Table::Devices => self.devices.load(key, value),
            Table::SdcClients => self.sdcs.load(key, value),
            Table::ClusterNodes => self.nodes.load(key, value),
            Table::RegistrationHistory => self.history.load(key, value),
            Table::NodeMetadata => self.metadata.load(key, value),
            Table::HeartbeatLog => self.heartbeats.load(key, value),
            Table::ClusterMetrics => self.metrics.load(key, value),
            Table::ComponentHealth => self.health.load(key, value),
            Table::Replicas => self.pgs.load(key, value),
            Table::Volumes => self.volumes.load(key, value),
            Table::Snapshots => self.snapshots.load(key, value),
            Table::RebuildJobs => self.jobs.load(key, value),
            Table::VolumeMappings => self.mappings.load(key, value),
            Table::IoTokens => self.tokens.load(key, value),
            Table::BadTokens => self.bad_tokens.load(key, value),
            Table::Events => self.events.load(key, value),
            Table::GroupReports => self.group_reports.load(key, value),
        }
    }

    /// Every row of the state, as a store has them.
    pub fn dump(&self) -> Vec<StoredRow> {
        let mut rows = Vec::new();
        let mut copy = self.clone();
        each_table!(copy, table => rows.extend(table.dump()));
        rows
    }

    /// The last command applied.
    pub fn position(&self) -> Position {
        match self.config.get(ConfigKey::Position) {
            Some(ConfigRow::Position(position)) => *position,
            _ => Position::default(),
        }
    }

    /// Log index of the last command applied.
    pub fn revision(&self) -> Revision {
        self.position().revision
    }

    /// Log time of the last command applied.
    pub fn log_time(&self) -> LogTime {
        self.position().log_time
    }

    /// Who the cluster is; none before the bootstrap command.
    pub fn cluster(&self) -> Option<&Cluster> {
        match self.config.get(ConfigKey::Cluster) {
            Some(ConfigRow::Cluster(cluster)) => Some(cluster),
            _ => None,
        }
    }

    fn counters(&self) -> Counters {
        match self.config.get(ConfigKey::Counters) {
            Some(ConfigRow::Counters(counters)) => counters.clone(),
            _ => Counters::default(),
        }
    }

    /// What an operator has tuned.
    pub fn settings(&self) -> Settings {
        match self.config.get(ConfigKey::Settings) {
            Some(ConfigRow::Settings(settings)) => settings.clone(),
            _ => Settings::default(),
        }
    }

    /// Whether a restore from backup is not over yet (S19).
    pub fn is_recovering(&self) -> bool {
        self.cluster().is_some_and(|cluster| cluster.recovering)
    }

    /// Which id belongs to which store of an MDM.
    pub fn mdm_stores(&self) -> MdmStores {
        match self.config.get(ConfigKey::MdmStores) {
            Some(ConfigRow::MdmStores(stores)) => stores.clone(),
            _ => MdmStores::default(),
        }
    }

    /// When a leader last held back verdicts (S23).
    pub fn eviction_hold(&self) -> Option<EvictionHold> {
        match self.config.get(ConfigKey::EvictionHold) {
            Some(ConfigRow::EvictionHold(hold)) => Some(*hold),
            _ => None,
        }
    }

    fn token_chain(&self) -> TokenChain {
        match self.config.get(ConfigKey::TokenChain) {
            Some(ConfigRow::TokenChain(chain)) => *chain,
            _ => TokenChain::default(),
        }
    }
}

/// Two states are equal when their tables are.
impl PartialEq for State {
    fn eq(&self, other: &Self) -> bool {
        self.dump() == other.dump()
    }
}

/// Counts only: the tables are large and hold secrets (I7).
impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State")
            .field("position", &self.position())
            .field("sds", &self.sds.len())
            .field("pgs", &self.pgs.len())
            .field("volumes", &self.volumes.len())
            .finish_non_exhaustive()
    }
}
