//! How each domain type is kept in a row: big-endian key, one format byte, protobuf (`proto/rows.proto`).
//!
//! A row that does not decode stops the load: a state with a hole in it would answer wrongly (I8).

mod bad_token;
pub mod cluster;
mod event;
mod health;
mod key;
mod pg;
mod recovery;
mod session;
mod token;
mod topology;
mod volume;
mod work;

use prost::Message;

use super::table::Table;
pub(crate) use crate::pb::pflex::mdm::rows::v1 as proto;

/// The format byte of every row written today.
const FORMAT: u8 = 1;

/// A type that is the row of a table.
pub trait Row: Clone + PartialEq {
    /// Its table.
    const TABLE: Table;
    /// What orders the table.
    type Key: Copy + Ord + std::fmt::Debug;

    /// The key of this row.
    fn key(&self) -> Self::Key;
    /// A key as the store has it.
    fn encode_key(key: Self::Key) -> Vec<u8>;
    /// The value as the store has it.
    fn encode(&self) -> Vec<u8>;
    /// A row read back.
    ///
    /// # Errors
    /// When the bytes are not a row of this table.
    fn decode(key: &[u8], value: &[u8]) -> Result<Self, RowError>;
}

/// Why bytes are not a row.
#[derive(Debug, thiserror::Error)]
pub enum RowError {
    /// The key has the wrong length or number.
    #[error("key {key:02x?} is not one of this table")]
    Key {
        /// The key.
        key: Vec<u8>,
    },
    /// The value is empty or from a newer version.
    #[error("row format {found:?}, this binary reads {FORMAT}")]
    Format {
        /// The first byte, if any.
        found: Option<u8>,
    },
    /// The value is no protobuf of this table.
    #[error("row does not decode")]
    Protobuf(#[from] prost::DecodeError),
    /// A field has a value that cannot be.
    #[error("field {field} cannot be {value}")]
    Field {
        /// Which.
        field: &'static str,
        /// What it was.
        value: String,
    },
}

fn seal(message: &impl Message) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1 + message.encoded_len());
    bytes.push(FORMAT);
    message.encode_raw(&mut bytes);
    bytes
}

fn open<M: Message + Default>(value: &[u8]) -> Result<M, RowError> {
    match value.split_first() {
        Some((&FORMAT, body)) => Ok(M::decode(body)?),
        found => Err(RowError::Format { found: found.map(|(byte, _)| *byte) }),
    }
}

fn bad(field: &'static str, value: impl std::fmt::Display) -> RowError {
    RowError::Field { field, value: value.to_string() }
}

/// 0 is no id: counters start at 1.
fn optional<Id: From<u32>>(raw: u32) -> Option<Id> {
    (raw != 0).then(|| Id::from(raw))
}
