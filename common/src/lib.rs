//! What every process has alike, so that components stay apart and still behave the same.
//!
//! Reading order: [`clock`], [`durable`], [`shutdown`], [`telemetry`], [`net`] (every socket goes through it), [`frames`]
//! (the data plane's envelope over a socket), [`mdm`] (the leader-following client), [`map`] (the cluster map and its
//! watch), [`registration`] (how an SDS or SDC introduces itself), [`host`] (what a process says of its machine),
//! [`histogram`] (how long things took), [`tls`] (certificates from files).

pub mod clock;
pub mod durable;
pub mod frames;
pub mod histogram;
pub mod host;
pub mod map;
pub mod mdm;
pub mod net;
pub mod registration;
pub mod shutdown;
pub mod telemetry;
pub mod tls;
