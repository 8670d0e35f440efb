//! Bounded samples: how regularly components reported, and sums over the cluster. The rest of what they report stays in the
//! leader's memory.

use std::collections::BTreeMap;

use pflex_proto::ids::{LogTime, Revision};

use super::Component;

/// How one component reported between two samples.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Heartbeats {
    /// Whose.
    pub component: Component,
    /// How many reports.
    pub reports: u32,
    /// The longest time between two of them.
    pub longest_gap_ms: u64,
    /// Since the last one.
    pub silent_ms: u64,
}

/// One sample of all components.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HeartbeatLog {
    /// The command.
    pub revision: Revision,
    /// Its log time.
    pub at: LogTime,
    /// The leader's wall clock; for people.
    pub at_wall_ms: u64,
    /// One entry a component.
    pub samples: Vec<Heartbeats>,
}

/// One sample of the cluster's sums, taken by the same command.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClusterMetrics {
    /// The command.
    pub revision: Revision,
    /// Its log time.
    pub at: LogTime,
    /// The leader's wall clock; for people.
    pub at_wall_ms: u64,
    /// By name; whole numbers, so that equal means equal.
    pub values: BTreeMap<String, u64>,
}
