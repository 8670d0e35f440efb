//! What happened to the cluster, for people: who did what when, and what broke.

use std::fmt;

use pflex_proto::ids::{LogTime, Revision};

/// How much an event matters to whoever is on call.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Severity {
    /// Somebody changed something, or something is well again.
    Info,
    /// Something is lost and the cluster serves on.
    Warning,
    /// Data cannot be reached.
    Critical,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Critical => "critical",
        })
    }
}

/// One command that changed something: the audit of the log. There is at most one per revision.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Event {
    /// The command.
    pub revision: Revision,
    /// Its log time: what orders and ages events.
    pub at: LogTime,
    /// The proposer's wall clock; for people.
    pub at_wall_ms: u64,
    /// How much it matters.
    pub severity: Severity,
    /// What kind of thing happened, as `noun.verb`: stable, for filters and alerts.
    pub kind: String,
    /// What it happened to, as `noun name`.
    pub object: String,
    /// One sentence.
    pub what: String,
    /// Who did it.
    pub who: String,
}
