//! The nouns of the state. Domain types: what is on disk is in `rows`, what travels is in `pflex_proto::pb`.

mod cluster;
mod pg;
mod session;
mod token;
mod topology;
mod volume;

pub use cluster::{Cluster, Component, Counters, Health, Kind, Node, Position, Secret, SecretRow, Status};
pub use pg::{Pg, PgConfig};
pub use session::{KeptOutcome, Session};
pub use token::{IoToken, Link, TokenChain, TokenUse};
pub use topology::{Addresses, Device, Domain, FaultSet, HistoryRow, Pool, Registration, Sdc, Sds, WritePolicy};
pub use volume::{Access, Mapping, TokenMode, Volume};
