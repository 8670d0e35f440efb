//! The contract between all processes: ids, sizes, frames, tokens, protobuf types. Nothing here does I/O.
//!
//! Reading order: [`ids`], [`geometry`], [`pg`], [`rebuild`], [`codec`], [`frame`], [`data`], [`token`], [`status`], [`pb`].

pub mod codec;
pub mod data;
pub mod frame;
pub mod geometry;
pub mod ids;
pub mod pb;
pub mod pg;
pub mod rebuild;
pub mod status;
pub mod token;
