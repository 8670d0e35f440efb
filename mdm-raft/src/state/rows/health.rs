//! Rows of health, of machines, and of samples.

use pflex_proto::ids::{LogTime, Revision};

use super::{
    Row, RowError, bad,
    cluster::{component, component_key, kind_code, kind_of},
    key::{KeyWriter, one_u64},
    open, proto, seal,
};
use crate::state::{
    model::{ClusterMetrics, Component, Health, HeartbeatLog, Heartbeats, Losses, NodeMetadata, Status},
    table::Table,
};

pub(super) fn losses_message(losses: &Losses) -> Vec<u64> {
    losses.times().iter().map(|at| at.get()).collect()
}

pub(super) fn losses(row: Vec<u64>) -> Losses {
    row.into_iter().map(LogTime).collect::<Vec<_>>().into()
}

impl Row for Health {
    const TABLE: Table = Table::ComponentHealth;
    type Key = Component;

    fn key(&self) -> Component {
        self.component
    }

    fn encode_key(key: Component) -> Vec<u8> {
        component_key(key)
    }

    fn encode(&self) -> Vec<u8> {
        let status = match self.status {
            Status::Active => 1,
            Status::Stale => 2,
            Status::Down => 3,
        };
        seal(&proto::Health {
            status,
            since_log_ms: self.since.get(),
            why: self.why.clone(),
            revision: self.revision.get(),
            losses_log_ms: losses_message(&self.losses),
            clock_ahead_ms: self.clock_ahead_ms.unwrap_or(0),
        })
    }

    fn decode(key: &[u8], value: &[u8]) -> Result<Self, RowError> {
        let row: proto::Health = open(value)?;
        let status = match row.status {
            1 => Status::Active,
            2 => Status::Stale,
            3 => Status::Down,
            other => return Err(bad("status", other)),
        };
        Ok(Self {
            component: component(key)?,
            status,
            since: LogTime(row.since_log_ms),
            why: row.why,
            revision: Revision(row.revision),
            losses: losses(row.losses_log_ms),
            clock_ahead_ms: Some(row.clock_ahead_ms).filter(|ahead| *ahead != 0),
        })
    }
}

impl Row for NodeMetadata {
    const TABLE: Table = Table::NodeMetadata;
    type Key = Component;

    fn key(&self) -> Component {
        self.component
    }

    fn encode_key(key: Component) -> Vec<u8> {
        component_key(key)
    }

    fn encode(&self) -> Vec<u8> {
        seal(&proto::NodeMetadata {
            host_name: self.host_name.clone(),
            os: self.os.clone(),
            kernel: self.kernel.clone(),
            architecture: self.architecture.clone(),
            booted_at_ms: self.booted_at_ms,
            cores: self.cores,
            memory_bytes: self.memory_bytes,
        })
    }

    fn decode(key: &[u8], value: &[u8]) -> Result<Self, RowError> {
        let row: proto::NodeMetadata = open(value)?;
        Ok(Self {
            component: component(key)?,
            host_name: row.host_name,
            os: row.os,
            kernel: row.kernel,
            architecture: row.architecture,
            booted_at_ms: row.booted_at_ms,
            cores: row.cores,
            memory_bytes: row.memory_bytes,
        })
    }
}

/// The parts of `Row` that are the same for both tables of samples.
macro_rules! keyed_by_revision {
    ($table:ident) => {
        const TABLE: Table = Table::$table;
        type Key = Revision;

        fn key(&self) -> Revision {
            self.revision
        }

        fn encode_key(key: Revision) -> Vec<u8> {
            KeyWriter::default().u64(key.get()).done()
        }
    };
}

impl Row for HeartbeatLog {
    keyed_by_revision!(HeartbeatLog);

    fn encode(&self) -> Vec<u8> {
        let sample = |sample: &Heartbeats| proto::HeartbeatSample {
            kind: kind_code(sample.component.kind),
            id: sample.component.id,
            reports: sample.reports,
            longest_gap_ms: sample.longest_gap_ms,
            silent_ms: sample.silent_ms,
        };
        seal(&proto::HeartbeatLog {
            log_time_ms: self.at.get(),
            at_wall_ms: self.at_wall_ms,
            samples: self.samples.iter().map(sample).collect(),
        })
    }

    fn decode(key: &[u8], value: &[u8]) -> Result<Self, RowError> {
        let row: proto::HeartbeatLog = open(value)?;
        let sample = |sample: proto::HeartbeatSample| {
            Ok(Heartbeats {
                component: Component { kind: kind_of(sample.kind)?, id: sample.id },
                reports: sample.reports,
                longest_gap_ms: sample.longest_gap_ms,
                silent_ms: sample.silent_ms,
            })
        };
        Ok(Self {
            revision: Revision(one_u64(key)?),
            at: LogTime(row.log_time_ms),
            at_wall_ms: row.at_wall_ms,
            samples: row.samples.into_iter().map(sample).collect::<Result<_, RowError>>()?,
        })
    }
}

impl Row for ClusterMetrics {
    keyed_by_revision!(ClusterMetrics);

    fn encode(&self) -> Vec<u8> {
        seal(&proto::ClusterMetrics {
            log_time_ms: self.at.get(),
            at_wall_ms: self.at_wall_ms,
            values: self.values.clone(),
        })
    }

    fn decode(key: &[u8], value: &[u8]) -> Result<Self, RowError> {
        let row: proto::ClusterMetrics = open(value)?;
        Ok(Self {
            revision: Revision(one_u64(key)?),
            at: LogTime(row.log_time_ms),
            at_wall_ms: row.at_wall_ms,
            values: row.values,
        })
    }
}
