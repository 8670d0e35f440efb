//! A client that finds the MDM leader and follows it.
//!
//! [`MdmClient::read`] is for calls that change nothing: any failure is retried elsewhere until the deadline.
//! [`MdmClient::write`] is for calls that do: each gets one [`RequestId`], the same on every retry, so that the MDM
//! executes it once however often it arrives (S17).

mod client;
mod connection;
mod error;
mod session;
mod verdict;

pub use client::{MdmClient, Patience};
pub use connection::Connection;
pub use error::MdmError;
pub use pflex_proto::pb::RequestId;
