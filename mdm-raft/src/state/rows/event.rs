//! Rows of events.

use pflex_proto::ids::{LogTime, Revision};

use super::{
    Row, RowError, bad,
    key::{KeyWriter, one_u64},
    open, proto, seal,
};
use crate::state::{
    model::{Event, EventPart, Severity},
    table::Table,
};

impl Row for Event {
    const TABLE: Table = Table::Events;
    type Key = Revision;

    fn key(&self) -> Revision {
        self.revision
    }

    fn encode_key(key: Revision) -> Vec<u8> {
        KeyWriter::default().u64(key.get()).done()
    }

    fn encode(&self) -> Vec<u8> {
        seal(&proto::Event {
            log_time_ms: self.at.get(),
            at_wall_ms: self.at_wall_ms,
            severity: match self.severity {
                Severity::Info => 1,
                Severity::Warning => 2,
                Severity::Critical => 3,
            },
            kind: self.kind.clone(),
            object: self.object.clone(),
            what: self.what.clone(),
            who: self.who.clone(),
            parts: self
                .parts
                .iter()
                .cloned()
                .map(|EventPart { kind, object, what }| proto::EventPart { kind, object, what })
                .collect(),
        })
    }

    fn decode(key: &[u8], value: &[u8]) -> Result<Self, RowError> {
        let row: proto::Event = open(value)?;
        Ok(Self {
            revision: Revision(one_u64(key)?),
            at: LogTime(row.log_time_ms),
            at_wall_ms: row.at_wall_ms,
            severity: match row.severity {
                1 => Severity::Info,
                2 => Severity::Warning,
                3 => Severity::Critical,
                other => return Err(bad("severity", other)),
            },
            kind: row.kind,
            object: row.object,
            what: row.what,
            who: row.who,
            parts: row
                .parts
                .into_iter()
                .map(|proto::EventPart { kind, object, what }| EventPart { kind, object, what })
                .collect(),
        })
    }
}
