//! Conversations with the state: one file per noun, and random ones over all commands.

mod activation;
mod bad_tokens;
mod chosen;
mod clocks;
mod doubling;
mod drains;
mod events;
mod health;
mod homes;
mod leader;
mod leads;
mod maintenance;
mod moves;
mod pgs;
mod planted;
mod promotion;
mod protected;
mod random;
mod rebuild_policy;
mod rebuilds;
mod recovery;
mod registration;
mod rooms;
mod scrubs;
mod secrets;
mod sessions;
mod snapshots;
mod tokens;
mod topology;
mod verdicts;
mod volumes;
mod why;
mod world;
mod writeback;

use world::{World, code};
