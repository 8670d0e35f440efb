//! The `pflex` binary: the daemons, a whole cluster on one host, and the command line.
//!
//! Reading order: [`cli`] (what can be typed, one noun per file), [`context`] and [`client`] (which cluster, and talking
//! to it), [`probe`] (talking to a storage process), [`output`] and [`error`] (what comes back), [`local`] (`up` and
//! `down`), [`daemon`] (`mdm`, `sds`, `sdc`).

mod cli;
mod client;
mod confirm;
mod context;
mod daemon;
mod error;
mod local;
mod output;
mod probe;
mod trace;
mod units;

use std::process::ExitCode;

/// For the daemons, which allocate and free small messages on many threads all the time. What stays free for ten seconds goes
/// back to the system.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    cli::main()
}
