//! Every socket of every component is opened here, so that certificates, limits and fault injection have one place.
//!
//! Nothing is encrypted yet: the seam is [`Endpoint`] and [`listen`], which will take the process's identity.

mod endpoint;
mod guard;
mod listen;

pub use endpoint::{ConnectError, Endpoint, ParseEndpointError, connect_data, tune_data};
pub use guard::{ConnectionLimits, Guarded, Incoming};
pub use listen::{ListenError, incoming, incoming_within, listen};
