//! Stale reads and lost writes, found without a search: a read may not return a value that an acknowledged write had
//! replaced, wholly after the value was there and wholly before the read began.
//!
//! This finds most of what [`super::linear`] would refuse, and unlike it all of it, each with the write that proves it.

use std::collections::HashMap;

use super::{
    finding::Finding,
    operations::{Entry, Position, Register, Step},
};
use crate::history::Value;

/// More of a kind for one block would only be noise.
const MOST_FINDINGS: usize = 5;

/// Finds stale reads; if the last read of the block is one, that is a lost write.
pub(super) fn check(register: &Register) -> Vec<Finding> {
    let block = register.block;
    let (mut writes, mut reads): (Vec<&Entry>, Vec<&Entry>) =
        register.entries.iter().partition(|entry| matches!(entry.step, Step::Write(_)));
    let end_of: HashMap<Value, Position> =
        writes.iter().map(|write| (value(write), there_by(register, write))).collect();
    writes.retain(|write| write.acknowledged);
    writes.sort_by_key(|write| write.end);
    // Of the writes that ended by then, the one that began last is the hardest to explain away.
    let mut latest: Vec<&Entry> = Vec::new();
    for write in &writes {
        latest.push(latest.last().copied().filter(|last| last.start > write.start).unwrap_or(write));
    }
    reads.sort_by_key(|read| read.start);
    let witness = |read: &Entry| {
        let ended = writes.partition_point(|write| write.end < read.start);
        let write = *latest[..ended].last()?;
        // The initial value was there before everything.
        let overwritten = end_of.get(&value(read)).is_none_or(|end| *end < write.start);
        (overwritten && value(write) != value(read)).then_some(write)
    };
    let stale = reads.iter().filter_map(|read| witness(read).map(|write| (*read, write)));
    let mut findings: Vec<_> = stale
        .take(MOST_FINDINGS)
        .map(|(read, write)| Finding::Stale { block, read: read.op, value: value(read), overwritten_by: write.op })
        .collect();
    if let Some(last) = reads.last()
        && let Some(write) = witness(last)
    {
        findings.push(Finding::Lost { block, read: last.op, value: value(last), write: write.op });
    }
    findings
}

/// By when a write has certainly taken effect: its own end, or the end of the first read that saw it.
fn there_by(register: &Register, write: &Entry) -> Position {
    let seen =
        register.entries.iter().filter(|entry| entry.step == Step::Read(value(write))).map(|entry| entry.end).min();
    seen.map_or(write.end, |seen| seen.min(write.end))
}

const fn value(entry: &Entry) -> Value {
    match entry.step {
        Step::Read(value) | Step::Write(value) => value,
    }
}
