//! What can be wrong with a history, each with the operations that show it.

use std::fmt;

use crate::history::{Block, OperationId, Value};

/// A broken promise of the product.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Finding {
    /// A block that is of no single write: torn, of another block, or garbage.
    Broken {
        /// Where.
        block: Block,
        /// The read.
        read: OperationId,
        /// What it found, in words.
        what: String,
    },
    /// A value that was not being written to this block by anybody before the read ended.
    FromNowhere {
        /// Where.
        block: Block,
        /// The read.
        read: OperationId,
        /// What it found.
        value: Value,
    },
    /// A read of a value that had been overwritten before the read began.
    Stale {
        /// Where.
        block: Block,
        /// The read.
        read: OperationId,
        /// What it found.
        value: Value,
        /// The acknowledged write that began after `value` was there and ended before the read began.
        overwritten_by: OperationId,
    },
    /// As `Stale`, and no read from then on saw that write or a later one: it is gone for good, as far as the history goes.
    Lost {
        /// Where.
        block: Block,
        /// The last read of the block.
        read: OperationId,
        /// What it found.
        value: Value,
        /// The acknowledged write that is missing.
        write: OperationId,
    },
    /// No order of the operations explains all answers.
    NotLinearizable {
        /// Where.
        block: Block,
        /// The first operation whose answer cannot be explained.
        stuck: OperationId,
        /// The values that the block could have had when all before it had been explained, and what was under way.
        state: String,
    },
    /// The search for an order became too large. Says nothing about the product; fewer clients help.
    Undecided {
        /// Where.
        block: Block,
        /// How far it came.
        at: OperationId,
    },
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broken { block, read, what } => write!(f, "block {}: read {} found {what}", block.0, read.0),
            Self::FromNowhere { block, read, value } => {
                write!(f, "block {}: read {} found value {value}, which nobody had written there", block.0, read.0)
            }
            Self::Stale { block, read, value, overwritten_by } => write!(
                f,
                "block {}: read {} found value {value}, stale: write {} had overwritten it",
                block.0, read.0, overwritten_by.0
            ),
            Self::Lost { block, read, value, write } => write!(
                f,
                "block {}: acknowledged write {} is lost: the last read, {}, found the older value {value}",
                block.0, write.0, read.0
            ),
            Self::NotLinearizable { block, stuck, state } => {
                write!(f, "block {}: not linearizable: nothing explains the answer to {}; {state}", block.0, stuck.0)
            }
            Self::Undecided { block, at } => {
                write!(f, "block {}: undecided: too many possible orders at operation {}", block.0, at.0)
            }
        }
    }
}
