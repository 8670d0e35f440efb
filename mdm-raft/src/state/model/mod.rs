//! The nouns of the state. Domain types: what is on disk is in `rows`, what travels is in `pflex_proto::pb`.

mod bad_token;
mod cluster;
mod event;
mod health;
mod job;
mod pg;
mod recovery;
mod sample;
mod scrub;
mod session;
mod settings;
mod snapshot;
mod token;
mod topology;
mod volume;

pub use bad_token::{BadSource, BadTokens, Flaws};
pub use cluster::{
    Cluster, Component, Counters, EvictionHold, Kind, MdmStores, Node, NodeMetadata, Position, Secret, SecretRow,
};
pub use event::{Event, EventPart, Severity, Told};
pub use health::{Health, LOSS_WINDOWS_MS, Losses, MAX_LOSSES_KEPT, Status, clock_words};
pub use job::{JobId, JobKind, JobState, Moment, RebuildJob};
pub use pg::{Pg, PgConfig};
pub use recovery::{GroupReports, KnownConfig};
pub use sample::{ClusterMetrics, HeartbeatLog, Heartbeats};
pub use scrub::{DeviceFaults, PoolScrub, ScrubFound};
pub use session::{KeptOutcome, Session};
pub use settings::{Setting, Settings};
pub use snapshot::{Snapshot, SnapshotId, SnapshotState};
pub use token::{IoToken, Link, TokenChain, TokenUse};
pub use topology::{
    Addresses, Device, Domain, FaultSet, Freeze, HistoryRow, NoRoom, Pool, Registration, Sdc, Sds, WritePolicy,
};
pub use volume::{Access, Mapping, TokenMode, Volume};
