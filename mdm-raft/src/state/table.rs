//! The tables of `state.db` and what an apply changes in them.

macro_rules! tables {
    ($($(#[$doc:meta])* $table:ident = $name:literal,)*) => {
        /// A table of the replicated state: one column family each.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum Table {
            $($(#[$doc])* $table,)*
        }

        impl Table {
            /// Every table.
            pub const ALL: &'static [Self] = &[$(Self::$table),*];

            /// The column family. Part of the format: never renamed.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$table => $name,)*
                }
            }
        }
    };
}

tables! {
    /// Cluster identity, id counters, position, token chain.
    Config = "config",
    /// Generations of the cluster secret.
    Secrets = "secrets",
    /// Exactly-once sessions (S17).
    Sessions = "sessions",
    /// First outcomes, per session and sequence.
    SessionOutcomes = "session_outcomes",
    /// Protection domains.
    ProtectionDomains = "protection_domains",
    /// Storage pools.
    StoragePools = "storage_pools",
    /// Fault sets.
    FaultSets = "fault_sets",
    /// SDSs.
    SdsNodes = "sds_nodes",
    /// Devices.
    Devices = "devices",
    /// SDCs.
    SdcClients = "sdc_clients",
    /// Registered MDMs and consoles.
    ClusterNodes = "cluster_nodes",
    /// The last registrations of every component.
    RegistrationHistory = "registration_history",
    /// The machines of components.
    NodeMetadata = "node_metadata",
    /// Samples of how components reported.
    HeartbeatLog = "heartbeat_log",
    /// Samples of sums over the cluster.
    ClusterMetrics = "cluster_metrics",
    /// ACTIVE, STALE or DOWN, per component.
    ComponentHealth = "component_health",
    /// Placement groups.
    Replicas = "replicas",
    /// Volumes.
    Volumes = "volumes",
    /// Snapshots of volumes. Nothing makes one yet; see `model::Snapshot`.
    Snapshots = "snapshots",
    /// Pools with copies that are not in sync, and how far filling them is.
    RebuildJobs = "rebuild_jobs",
    /// Which SDC may use which volume.
    VolumeMappings = "volume_mappings",
    /// Issued tokens and their use.
    IoTokens = "io_tokens",
    /// Tokens that SDSs refused, by who sent them.
    BadTokens = "bad_tokens",
    /// The newest changes, with who and why.
    Events = "events",
    /// What was known of placement groups before a restore, as devices report it.
    GroupReports = "group_reports",
}

/// One row an apply wrote (`Some`) or deleted (`None`).
#[derive(Clone, PartialEq, Eq)]
pub struct RowChange {
    /// The table.
    pub table: Table,
    /// Big-endian, so that the store's order is the ids'.
    pub key: Vec<u8>,
    /// Format byte and protobuf.
    pub value: Option<Vec<u8>>,
}

/// Without the value: rows hold secrets (I7).
impl std::fmt::Debug for RowChange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RowChange")
            .field("table", &self.table)
            .field("key", &self.key)
            .field("bytes", &self.value.as_ref().map(Vec::len))
            .finish()
    }
}
