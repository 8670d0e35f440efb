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
    /// What it did to each object, of a command about several; else nothing.
    pub parts: Vec<EventPart>,
}

/// What a command about several objects did to one of them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EventPart {
    /// As of an event.
    pub kind: String,
    /// As of an event.
    pub object: String,
    /// As of an event.
    pub what: String,
}

/// What an event says of one object.
#[derive(Clone, Copy, Debug)]
pub struct Told<'a> {
    /// The command.
    pub revision: Revision,
    /// As of an event.
    pub kind: &'a str,
    /// One sentence.
    pub what: &'a str,
    /// Who did it.
    pub who: &'a str,
}

impl Event {
    /// What it says of this object, if anything.
    pub fn told_of(&self, object: &str) -> Option<Told<'_>> {
        let (kind, what) = if self.object == object {
            (&self.kind, &self.what)
        } else {
            self.parts.iter().find(|part| part.object == object).map(|part| (&part.kind, &part.what))?
        };
        Some(Told { revision: self.revision, kind, what, who: &self.who })
    }
}
