//! `bench-mdm`: load on a group of metadata managers, or the same load on etcd.
//!
//! It starts no process and kills none: `scripts/bench-mdm.sh` does, and calls this for each figure. Every command prints
//! one JSON object on one line.
//!
//! Reading order: `target` (what an operation is, on either system), `load` (clients that each have one operation in
//! flight), `latency`, `gap` (what a leader's death costs), `fill` (many objects), `fleet` (many servers and clients that
//! beat and renew).

mod fill;
mod fleet;
mod gap;
mod latency;
mod load;
mod target;

use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use pflex_common::net::Endpoint;

/// Load on the metadata managers, or the same on etcd.
#[derive(Parser, Debug)]
#[command(name = "bench-mdm")]
struct Args {
    #[command(subcommand)]
    command: Command,
    /// The members' client ports.
    #[arg(long, global = true, value_delimiter = ',', value_name = "HOST:PORT,...")]
    at: Vec<Endpoint>,
}

/// Which system is measured.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum System {
    /// This one.
    Pflex,
    /// Its peer.
    Etcd,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Durable writes: a volume is renamed, a key put.
    Writes(LoadArgs),
    /// Linearizable reads of one volume, one key.
    Reads(LoadArgs),
    /// Writes for a while and prints the longest time between two acknowledgements.
    Gap(LoadArgs),
    /// Makes pools and volumes, as fast as it goes.
    Fill(fill::FillArgs),
    /// Simulated storage servers and clients that beat, report, watch the map and renew tokens.
    Fleet(fleet::FleetArgs),
}

#[derive(clap::Args, Debug)]
struct LoadArgs {
    #[arg(long)]
    system: System,
    /// Each has a connection of its own and one operation in flight.
    #[arg(long, default_value_t = 1)]
    clients: u32,
    #[arg(long, default_value_t = 8)]
    seconds: u64,
}

impl LoadArgs {
    fn duration(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    anyhow::ensure!(!args.at.is_empty(), "--at says where the members answer");
    let line = match args.command {
        Command::Writes(load) => load::run(load::Kind::Write, &load, args.at).await?,
        Command::Reads(load) => load::run(load::Kind::Read, &load, args.at).await?,
        Command::Gap(load) => gap::run(&load, args.at).await?,
        Command::Fill(fill) => fill::run(&fill, args.at).await?,
        Command::Fleet(fleet) => fleet::run(&fleet, args.at).await?,
    };
    println!("{line}");
    Ok(())
}
