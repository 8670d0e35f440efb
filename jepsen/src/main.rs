//! `jepsen`: real processes under faults for as long as you like.
//!
//! Exit status: 0 nothing is wrong, 1 a promise was broken (or the run could not be carried out), 2 usage.

use std::{
    path::PathBuf,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use clap::Parser;
use pflex_jepsen::run::{Config, Faults, HISTORY, judge, run};

/// Starts a cluster, reads and writes it while its processes are killed and paused, and says whether every answer can be
/// explained.
#[derive(Parser, Debug)]
#[command(name = "jepsen", after_help = "Example:\n  jepsen --pflex target/release/pflex --seconds 300 --dir /tmp/run")]
struct Args {
    /// The binary to test.
    #[arg(long, required_unless_present = "judge")]
    pflex: Option<PathBuf>,
    /// How long faults go on.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Repeats a schedule; timing is never repeated [default: from the clock].
    #[arg(long)]
    seed: Option<u64>,
    /// For the history and, if something is wrong, logs and data; new or empty.
    #[arg(long, required_unless_present = "judge")]
    dir: Option<PathBuf>,
    /// SDCs that the volume is mapped to; the clients use them in turn.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=8))]
    sdcs: u32,
    /// Clients that read and write.
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..=32))]
    clients: u32,
    /// Blocks they contend for.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=4096))]
    blocks: u64,
    /// The longest that a client thinks between two operations, in ms.
    #[arg(long, default_value_t = 10)]
    think_ms: u64,
    /// Hurt servers while others are away: IO may stall, but nothing may be lost.
    #[arg(long)]
    rough: bool,
    /// Only judge this history again.
    #[arg(long, value_name = "FILE", exclusive = true)]
    judge: Option<PathBuf>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let outcome = match (&args.judge, &args.pflex, &args.dir) {
        (Some(history), ..) => judge(history),
        (None, Some(pflex), Some(dir)) => {
            if dir.join(HISTORY).exists() {
                eprintln!("error: {} holds a run already; give another --dir", dir.display());
                return ExitCode::from(2);
            }
            let seed = args.seed.unwrap_or_else(seed_from_clock);
            eprintln!("seed {seed}");
            let time = Duration::from_secs(args.seconds);
            let config = Config {
                pflex: pflex.clone(),
                dir: dir.clone(),
                seed,
                sdcs: args.sdcs,
                clients: args.clients,
                blocks: args.blocks,
                most_think_time: Duration::from_millis(args.think_ms),
                faults: if args.rough { Faults::RoughFor(time) } else { Faults::For(time) },
                look_at_each_copy: true,
            };
            let stop = stop_on_signal();
            run(&config, &|| stop.load(Ordering::Relaxed))
        }
        (None, ..) => unreachable!("the command line requires both"),
    };
    match outcome {
        Ok(verdict) => {
            println!("{verdict}");
            if verdict.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn seed_from_clock() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs())
}

/// The first SIGINT or SIGTERM ends the run early, with its cluster; a handler needs a runtime, so it gets a thread.
fn stop_on_signal() -> Arc<AtomicBool> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    std::thread::spawn(move || {
        use tokio::signal::unix::{SignalKind, signal};
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            flag.store(true, Ordering::Relaxed);
            std::io::Result::Ok(())
        })
    });
    stop
}
