//! The contract between all processes: ids, sizes, frames, tokens, protobuf types. Nothing here does I/O.
//!
//! Reading order: [`ids`], [`geometry`], [`codec`], [`frame`], [`data`], [`token`], [`status`], [`pb`].

pub mod geometry;
pub mod ids;
pub mod pb;
