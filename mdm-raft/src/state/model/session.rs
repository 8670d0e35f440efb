//! Exactly-once sessions (S17).

use pflex_proto::ids::{ClientId, ClientSequence, LogTime};
use prost::Message as _;

use crate::command::Outcome;

/// A client's session.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Session {
    /// Its id.
    pub client: ClientId,
    /// Who opened it, for people.
    pub name: String,
    /// Log time of its last command.
    pub last_seen: LogTime,
    /// Outcomes of sequences below are gone.
    pub low_water: ClientSequence,
    /// How much of [`KeptOutcome::weight`] is kept.
    pub kept: u32,
}

/// The first outcome of one request.
#[derive(Clone, PartialEq, Debug)]
pub struct KeptOutcome {
    /// The session.
    pub client: ClientId,
    /// The request.
    pub sequence: ClientSequence,
    /// CRC32C of the command's body: a reused number with another body is the client's mistake, not a retry.
    pub fingerprint: u32,
    /// What it answered.
    pub outcome: Outcome,
}

impl KeptOutcome {
    /// What it counts against the limit of its session: one, and one more for each whole 4 KiB.
    pub fn weight(&self) -> u32 {
        1 + u32::try_from(self.outcome.encoded_len() >> 12).unwrap_or(u32::MAX - 1)
    }
}
