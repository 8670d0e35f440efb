//! The nemesis: hurts the cluster on a schedule that comes from a seed, and mends it again.
//!
//! [`schedule`] decides without a clock or a cluster: rounds of faults, each with a beginning and an end. [`driver`] carries
//! them out. Between rounds the cluster becomes healthy again, so that no round asks for more than the product promises:
//! one SDS and one MDM at a time, or everything at once with all disks kept. A rough schedule does not wait, and
//! overlaps storage faults: then IO may stall for as long as it likes, but still nothing may be lost or stale.

mod driver;
mod schedule;

pub use driver::Nemesis;
pub use schedule::{Fault, Round, Schedule, Target};
