//! The nouns of the state. Domain types: what is on disk is in `rows`, what travels is in `pflex_proto::pb`.

mod cluster;
mod event;
mod pg;
mod session;
mod settings;
mod token;
mod topology;
mod volume;

pub use cluster::{
    Cluster, Component, Counters, EvictionHold, Health, Kind, MdmStores, Node, Position, Secret, SecretRow, Status,
};
pub use event::{Event, Severity};
pub use pg::{Pg, PgConfig};
pub use session::{KeptOutcome, Session};
pub use settings::{Setting, Settings};
pub use token::{IoToken, Link, TokenChain, TokenUse};
pub use topology::{Addresses, Device, Domain, FaultSet, HistoryRow, Pool, Registration, Sdc, Sds, WritePolicy};
pub use volume::{Access, Mapping, TokenMode, Volume};
