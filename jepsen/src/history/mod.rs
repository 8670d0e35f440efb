//! The history: what clients asked for and were told, and what was done to the cluster, in one order.
//!
//! An operation is an `Invoke`, recorded before the first byte of its request leaves, and at most one end, recorded after
//! the last byte of its answer came. The recorded interval is therefore never shorter than the real one, so a checker that
//! trusts the order of events accuses nobody wrongly. The order is that of the list; times are for people.

mod recorder;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use recorder::{Recorder, load};

/// One operation; unique in a history, in the order of invocation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct OperationId(pub u64);

/// One sequence of operations, each begun after the one before has ended. A client whose operation ended unknown goes on
/// as another process, because that operation may still be under way.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct ProcessId(pub u32);

/// A block of the workload, counted from 0; where it lies in the volume is the workload's business.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Block(pub u64);

/// What a write puts in a block. No two writes of a run have the same, so a read names the write it saw.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Value(pub u64);

/// Values of one client; enough for days, and it keeps them readable: client 3's 17th write is 3000000017.
const VALUES_OF_A_CLIENT: u64 = 1_000_000_000;

impl Value {
    /// A block that was never written: zeros.
    pub const INITIAL: Self = Self(0);

    /// The `count`th value of a client, both counted from 1.
    pub fn of(client: u64, count: u64) -> Self {
        debug_assert!(client > 0 && count < VALUES_OF_A_CLIENT, "else it would be another client's");
        Self(client * VALUES_OF_A_CLIENT + count)
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::INITIAL => f.write_str("zeros"),
            Self(value) => write!(f, "{}.{}", value / VALUES_OF_A_CLIENT, value % VALUES_OF_A_CLIENT),
        }
    }
}

/// What was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Read the whole block.
    Read,
    /// Write the whole block.
    Write(Value),
}

/// What a read found.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Content {
    /// All of one write, made for this block.
    Whole(Value),
    /// Anything else, in words: parts of several writes, another block's content, or bytes nobody wrote.
    Broken(String),
}

/// What happened.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum What {
    /// An operation is about to be sent.
    Invoke {
        /// Which.
        op: OperationId,
        /// Whose.
        process: ProcessId,
        /// Where.
        block: Block,
        /// What.
        action: Action,
    },
    /// It was done; `content` is there for reads only.
    Ok {
        /// Which.
        op: OperationId,
        /// What a read found.
        content: Option<Content>,
    },
    /// It was certainly not done, nor will it be.
    Fail {
        /// Which.
        op: OperationId,
        /// What the client was told.
        why: String,
    },
    /// It may have been done, or may be done later, or never.
    Unknown {
        /// Which.
        op: OperationId,
        /// What the client was told.
        why: String,
    },
    /// Something was done to the cluster.
    Fault {
        /// In words.
        text: String,
    },
}

/// One line of the history.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Event {
    /// Monotonic time since the run began.
    pub at_us: u64,
    /// What happened then.
    #[serde(flatten)]
    pub what: What,
}
