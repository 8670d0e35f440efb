//! The judges. Each reads the history and knows nothing of the product.
//!
//! [`operations`] pairs the events and sets aside what no order can explain: torn blocks and values from nowhere.
//! [`overwritten`] names stale reads and lost acknowledged writes, each with its witness. [`linear`] is the whole truth:
//! is there an order of all operations on a block that explains every answer? The first two say quickly and readably what
//! the third would also refuse.
//!
//! Blocks are judged one by one: linearizability is local (Herlihy and Wing 1990, theorem 1).

mod finding;
mod linear;
mod operations;
mod overwritten;

#[cfg(test)]
mod tests;

pub use finding::Finding;
pub use operations::{HistoryError, Operation, Outcome};

use crate::history::{Action, Event};

/// The verdict on a history.
#[derive(Debug, Default)]
pub struct Report {
    /// What is wrong; empty if nothing is.
    pub findings: Vec<Finding>,
    /// Operations begun.
    pub operations: usize,
    /// Reads that returned something.
    pub reads: usize,
    /// Writes that were acknowledged.
    pub writes: usize,
    /// Writes whose outcome is unknown.
    pub unknown: usize,
    /// Operations that certainly did not happen.
    pub failed: usize,
    /// The longest that a completed operation took.
    pub longest_us: u64,
}

/// Judges a history.
///
/// # Errors
/// When it is no history: an end without a beginning, or two.
pub fn check(events: &[Event]) -> Result<Report, HistoryError> {
    let all = operations::pair(events)?;
    let mut report = Report { operations: all.len(), ..Report::default() };
    for operation in &all {
        match (&operation.outcome, operation.action) {
            (Outcome::Ok(_), Action::Read) => report.reads += 1,
            (Outcome::Ok(_), Action::Write(_)) => report.writes += 1,
            (Outcome::Unknown, Action::Write(_)) => report.unknown += 1,
            (Outcome::Unknown, Action::Read) | (Outcome::Fail, _) => report.failed += 1,
        }
        if let Outcome::Ok(_) = operation.outcome {
            report.longest_us = report.longest_us.max(operation.took_us);
        }
    }
    for block in operations::by_block(all) {
        let (register, mut broken) = operations::explainable(block);
        report.findings.append(&mut broken);
        report.findings.extend(overwritten::check(&register));
        report.findings.extend(linear::check(&register).err());
    }
    Ok(report)
}
