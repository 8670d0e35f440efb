//! A client that finds the MDM leader and follows it.
//!
//! [`MdmClient::read`] is for calls that change nothing: any failure is retried elsewhere until the deadline.
//! [`MdmClient::write`] is for calls that do: each gets one [`RequestId`], the same on every retry, so that the MDM
//! executes it once however often it arrives (S17).

mod client;
mod error;
mod session;

pub use client::{Connection, MdmClient, Patience};
pub use error::MdmError;
pub use pflex_proto::pb::RequestId;
