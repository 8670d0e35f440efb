//! From events to operations, and from operations to what a register's history may hold.

use std::collections::{BTreeMap, HashMap};

use super::finding::Finding;
use crate::history::{Action, Block, Content, Event, OperationId, Value, What};

/// The place of an event in the history; the only notion of time that judges use.
pub(super) type Position = usize;

/// A history that no recorder writes.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HistoryError {
    /// An end without a beginning.
    #[error("operation {} ends at event {at} without having begun", .op.0)]
    NeverBegun {
        /// Which.
        op: OperationId,
        /// Where.
        at: usize,
    },
    /// Two beginnings, or two ends.
    #[error("operation {} begins or ends a second time at event {at}", .op.0)]
    Twice {
        /// Which.
        op: OperationId,
        /// Where.
        at: usize,
    },
    /// Two writes of the same value: a read could not tell them apart.
    #[error("operation {} writes value {value} a second time", .op.0)]
    SameValue {
        /// The second.
        op: OperationId,
        /// What both write.
        value: Value,
    },
}

/// How an operation ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Done; a read has found something.
    Ok(Option<Content>),
    /// Certainly never done.
    Fail,
    /// Perhaps done, perhaps later; also an operation without an end.
    Unknown,
}

/// An operation of the history.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Operation {
    /// Which.
    pub op: OperationId,
    /// Where.
    pub block: Block,
    /// What.
    pub action: Action,
    /// The event that began it.
    pub start: usize,
    /// The event that ended it; `usize::MAX` while it may still be under way.
    pub end: usize,
    /// How.
    pub outcome: Outcome,
    /// From beginning to end.
    pub took_us: u64,
}

/// Pairs beginnings and ends, in the order of beginning.
pub(super) fn pair(events: &[Event]) -> Result<Vec<Operation>, HistoryError> {
    let mut all: Vec<Operation> = Vec::new();
    let mut index: HashMap<OperationId, usize> = HashMap::new();
    for (at, event) in events.iter().enumerate() {
        let (op, outcome) = match &event.what {
            What::Invoke { op, block, action, .. } => {
                if index.insert(*op, all.len()).is_some() {
                    return Err(HistoryError::Twice { op: *op, at });
                }
                // Its time of beginning stays here until it ends.
                all.push(Operation {
                    op: *op,
                    block: *block,
                    action: *action,
                    start: at,
                    end: Position::MAX,
                    outcome: Outcome::Unknown,
                    took_us: event.at_us,
                });
                continue;
            }
            What::Ok { op, content } => (op, Outcome::Ok(content.clone())),
            What::Fail { op, .. } => (op, Outcome::Fail),
            What::Unknown { op, .. } => (op, Outcome::Unknown),
            What::Fault { .. } => continue,
        };
        let operation = index.get(op).map(|place| &mut all[*place]).ok_or(HistoryError::NeverBegun { op: *op, at })?;
        if operation.end != Position::MAX {
            return Err(HistoryError::Twice { op: *op, at });
        }
        operation.took_us = event.at_us.saturating_sub(operation.took_us);
        operation.end = at;
        operation.outcome = outcome;
    }
    let mut values = HashMap::new();
    for operation in &mut all {
        if let Action::Write(value) = operation.action
            && values.insert(value, operation.op).is_some()
        {
            return Err(HistoryError::SameValue { op: operation.op, value });
        }
        if operation.outcome == Outcome::Unknown {
            operation.end = Position::MAX;
        }
    }
    Ok(all)
}

/// One list for each block.
pub(super) fn by_block(all: Vec<Operation>) -> Vec<Vec<Operation>> {
    let mut blocks: BTreeMap<Block, Vec<Operation>> = BTreeMap::new();
    for operation in all {
        blocks.entry(operation.block).or_default().push(operation);
    }
    blocks.into_values().collect()
}

/// What a step of a register does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    Read(Value),
    Write(Value),
}

/// An operation of one register that must have its place in the order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Entry {
    pub(super) op: OperationId,
    pub(super) step: Step,
    pub(super) start: Position,
    /// Of a write that ended unknown: the end of the first read that saw it, for by then it was there.
    pub(super) end: Position,
    /// Whether the client was told that it was done. So was every read here.
    pub(super) acknowledged: bool,
}

/// The operations of one block that an order must explain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Register {
    pub(super) block: Block,
    /// In the order of beginning.
    pub(super) entries: Vec<Entry>,
}

/// Takes from the operations of one block what says nothing (failed ones, and unknown writes that nobody saw: whatever
/// order explains the history, it does so without them too, because values are unique) and what nothing can explain.
pub(super) fn explainable(operations: Vec<Operation>) -> (Register, Vec<Finding>) {
    let block = operations.first().map_or(Block(0), |operation| operation.block);
    let began: HashMap<Value, Position> = operations
        .iter()
        .filter_map(|operation| match (operation.action, &operation.outcome) {
            (Action::Write(_), Outcome::Fail) | (Action::Read, _) => None,
            (Action::Write(value), Outcome::Ok(_) | Outcome::Unknown) => Some((value, operation.start)),
        })
        .collect();
    let mut findings = Vec::new();
    let mut entries = Vec::new();
    let mut first_seen: HashMap<Value, Position> = HashMap::new();
    for operation in &operations {
        let Operation { op, start, end, .. } = *operation;
        let (Action::Read, Outcome::Ok(content)) = (operation.action, &operation.outcome) else { continue };
        let value = match content {
            Some(Content::Whole(value)) => *value,
            Some(Content::Broken(what)) => {
                findings.push(Finding::Broken { block, read: op, what: what.clone() });
                continue;
            }
            None => continue,
        };
        if value != Value::INITIAL && began.get(&value).is_none_or(|began| *began > end) {
            findings.push(Finding::FromNowhere { block, read: op, value });
            continue;
        }
        let seen = first_seen.entry(value).or_insert(end);
        *seen = end.min(*seen);
        entries.push(Entry { op, step: Step::Read(value), start, end, acknowledged: true });
    }
    for operation in &operations {
        let Operation { op, start, .. } = *operation;
        let Action::Write(value) = operation.action else { continue };
        let (end, acknowledged) = match (&operation.outcome, first_seen.get(&value)) {
            (Outcome::Ok(_), _) => (operation.end, true),
            (Outcome::Unknown, Some(seen)) => (*seen, false),
            (Outcome::Unknown, None) | (Outcome::Fail, _) => continue,
        };
        entries.push(Entry { op, step: Step::Write(value), start, end, acknowledged });
    }
    entries.sort_by_key(|entry| entry.start);
    (Register { block, entries }, findings)
}
