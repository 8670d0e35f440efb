//! What the log orders ([`Command`]) and what applying it answers ([`Outcome`]), as `proto/command.proto` defines them.
//!
//! They are protobuf because they are persisted and read by later versions; what they mean is decided only in
//! `state::apply`. Made by the API services (with a session) and by the leader itself (without).

use std::fmt;

use pflex_proto::ids::{ClientId, ClientSequence, Revision};

pub use crate::pb::pflex::mdm::log::v1 as proto;
pub use proto::{Command, ErrorCode, Outcome, command::Body, outcome::Result as Answer};

/// The newest command version this binary applies.
pub const COMMAND_VERSION: u32 = 2;

/// Which exactly-once session and request a command belongs to (S17).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// The session.
    pub client: ClientId,
    /// The request in it.
    pub sequence: ClientSequence,
    /// Every sequence below was answered.
    pub low_water: ClientSequence,
}

impl Command {
    /// A command of no session: idempotent, or guarded by a compare-and-set.
    pub fn internal(wall_time_ms: u64, body: Body) -> Self {
        Self { version: COMMAND_VERSION, wall_time_ms, body: Some(body), ..Self::default() }
    }

    /// A command executed once however often it is sent.
    pub fn once(request: Request, wall_time_ms: u64, body: Body) -> Self {
        Self {
            version: COMMAND_VERSION,
            client_id: request.client.get(),
            client_sequence: request.sequence.get(),
            low_water: request.low_water.get(),
            wall_time_ms,
            body: Some(body),
        }
    }
}

impl Outcome {
    /// What a command did.
    pub fn of(revision: Revision, answer: Answer) -> Self {
        Self { revision: revision.get(), result: Some(answer) }
    }

    /// The error, when the command was refused.
    pub fn error(&self) -> Option<&proto::Error> {
        match &self.result {
            Some(Answer::Error(error)) => Some(error),
            _ => None,
        }
    }
}

impl fmt::Display for proto::Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.object.is_empty() { f.write_str(&self.what) } else { write!(f, "{}: {}", self.object, self.what) }
    }
}

/// The secret is in the log, never in a message to a person (I7).
impl fmt::Debug for proto::BootstrapCluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BootstrapCluster").field("key_id", &self.key_id).finish_non_exhaustive()
    }
}

/// See [`proto::BootstrapCluster`].
impl fmt::Debug for proto::RotateSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RotateSecret { .. }")
    }
}

/// See [`proto::BootstrapCluster`].
impl fmt::Debug for crate::pb::pflex::mdm::rows::v1::Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret { .. }")
    }
}
