//! Who is alive: the leader's soft state, and the verdicts it turns into commands (ARCHITECTURE section 6).
//!
//! Reading order: `tracker` (pure: what was heard, and what follows), `device` (the same of one device), `brake` (which
//! verdicts wait, S23), `handle` (the tracker behind its lock), `worker` (ticks, probes, proposes), `judgement` (verdicts
//! as commands), `homes` (what was lost for long gets another place), `leads` (who came or
//! returned leads its share), `moves` (drains and rebalances), `maintenance` (who is prepared for it enters), `scrubs` (when pools are
//! read through, and what devices say of their disks), `reports` (the 10 s health heartbeat, apart from this), `health` (what is logged of it).
//!
//! Only the leader judges. Whatever it concludes takes effect as a logged command that names the process it was about,
//! so a verdict that comes late hits nobody else.

mod brake;
mod clocks;
mod device;
mod handle;
mod health;
pub(crate) mod homes;
mod judgement;
pub(crate) mod leads;
pub(crate) mod maintenance;
pub(crate) mod moves;
mod reports;
pub(crate) mod scrubs;
mod slow;
mod tracker;
mod worker;

pub use handle::Liveness;
pub use reports::Reports;
pub use worker::run;

pub(crate) use device::{HeardDevice, HeardScrub, Resync};
pub(crate) use handle::StreamId;
pub(crate) use reports::MAX_METRICS;
pub(crate) use tracker::Heard;
