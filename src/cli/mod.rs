//! The command line: what can be typed, and what each part of it leads to.
//!
//! One noun per file; each has an `Args` and a `run`. Every failure ends here as one line on stderr and an exit status.

mod cluster;
mod complete;
mod completions;
mod device;
mod device_stats;
mod domain;
mod doubling;
mod drain;
mod event;
mod fault_set;
mod health;
mod limits;
mod maintenance;
mod names;
mod object;
mod pg;
mod pool;
mod rebalance;
mod rebuild;
mod scrub;
mod sdc;
mod sdc_stats;
mod sds;
mod settings;
mod status;
mod target;
mod token;
mod topology;
mod usage;
mod view;
mod vitals;
mod volume;
mod why;

use std::{process::ExitCode, time::Duration};

use clap::{CommandFactory as _, Parser as _, Subcommand};
use clap_complete::CompleteEnv;
use uuid::Uuid;

use crate::{
    client::{DEFAULT_TIMEOUT, Session},
    daemon,
    error::{Exit, Failure},
    local,
    output::{self, Document, Format},
    trace::Trace,
    units::parse_duration,
};
pub(crate) use target::Target;
use target::TopTarget;

/// Software-defined block storage: volumes from the disks of ordinary servers.
#[derive(clap::Parser, Debug)]
#[command(
    name = "pflex",
    version,
    arg_required_else_help = true,
    disable_help_subcommand = true,
    after_help = "Examples:\n  pflex up                                 start a whole cluster on this host\n  \
                  pflex volume create db --size 10GiB      make a volume\n  \
                  pflex volume map db sdc1                 show it to a client\n  \
                  pflex status --check                     exit status 8 if anything is degraded\n\n\
                  Exit status: 0 done, 1 failed, 2 usage, 3 not found, 4 conflict or precondition, 5 not allowed,\n\
                  6 no leader or unreachable, 7 timed out, 8 `status --check` found the cluster degraded."
)]
struct Cli {
    #[command(flatten)]
    options: Options,
    #[command(flatten)]
    target: TopTarget,
    #[command(subcommand)]
    command: Command,
}

/// Options of every command.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Options of every command")]
pub(crate) struct Options {
    /// How to print [default: table].
    #[arg(short, long, global = true, value_enum, value_name = "FORMAT")]
    pub(crate) output: Option<Format>,
    /// How long to try before giving up, like 500ms, 5s or 2m [default: 15s; for up 2m].
    #[arg(long, global = true, value_parser = parse_duration, value_name = "TIME")]
    pub(crate) timeout: Option<Duration>,
    /// On an error, also print what caused it, and the trace id that went with every call.
    #[arg(short, long, global = true)]
    pub(crate) verbose: bool,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Start a whole cluster on this host, or what of it is not running.
    Up(local::UpArgs),
    /// Stop the cluster on this host.
    Down(local::DownArgs),
    /// Health in one screen.
    Status(status::Args),
    /// The MDM quorum.
    #[command(after_help = "Example:\n  pflex cluster status -o table")]
    Cluster(cluster::Args),
    /// Protection domains.
    #[command(after_help = "Example:\n  pflex domain list")]
    Domain(domain::Args),
    /// Storage pools.
    #[command(after_help = "Example:\n  pflex pool list")]
    Pool(pool::Args),
    /// Servers that fail together.
    #[command(after_help = "Example:\n  pflex fault-set list")]
    FaultSet(fault_set::Args),
    /// Placement groups: the parts of a pool that are replicated together.
    #[command(after_help = "Example:\n  pflex pg list --unhealthy")]
    Pg(pg::Args),
    /// Storage servers; with --config, run one.
    Sds(sds::Args),
    /// The servers' disks.
    #[command(after_help = "Example:\n  pflex device list")]
    Device(device::Args),
    /// Storage clients; with --config, run one.
    Sdc(sdc::Args),
    /// Volumes.
    #[command(
        after_help = "Examples:\n  pflex volume list\n  pflex volume create db --size 10GiB\n  pflex volume map db sdc1"
    )]
    Volume(volume::Args),
    /// Copies that are being filled again.
    #[command(after_help = "Example:\n  pflex rebuild list --watch")]
    Rebuild(rebuild::Args),
    /// IO tokens.
    #[command(after_help = "Example:\n  pflex token list")]
    Token(token::Args),
    /// Health of each component.
    Health(health::Args),
    /// Everything there is, as a tree.
    Topology(topology::Args),
    /// What happened, who did it, and when.
    #[command(after_help = "Example:\n  pflex event list --since 1h")]
    Event(event::Args),
    /// Why an object is in its state.
    Why(why::Args),
    /// Limits, and how close the cluster is to them.
    Limits(limits::Args),
    /// Numbers to tune while the cluster runs.
    #[command(after_help = "Example:\n  pflex settings list")]
    Settings(settings::Args),
    /// Run a metadata manager.
    Mdm(daemon::MdmArgs),
    /// Run the console.
    Mgmt(daemon::MgmtArgs),
    /// Print a completion script for a shell.
    Completions(completions::Args),
}

/// Parses, runs, reports. If a shell asks for completions, that is all there is to do.
pub(crate) fn main() -> ExitCode {
    CompleteEnv::with_factory(Cli::command).var(completions::VARIABLE).bin("pflex").complete();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage::report(&error),
    };
    let verbose = cli.options.verbose;
    let trace = Trace::new(Uuid::new_v4().as_u128(), Uuid::new_v4().as_u64_pair().0);
    match run(cli, trace) {
        Ok(exit) => ExitCode::from(exit as u8),
        Err(failure) => {
            eprintln!("error: {failure}");
            if verbose {
                failure.chain().iter().for_each(|cause| eprintln!("  caused by: {cause}"));
                eprintln!("  trace id: {trace}");
            }
            ExitCode::from(failure.exit() as u8)
        }
    }
}

fn run(cli: Cli, trace: Trace) -> Result<Exit, Failure> {
    let Cli { options, target: top, command } = cli;
    let tool = |target: Target| Tool { options: options.clone(), target: top.clone().under(target), trace };
    let done = |result: Result<(), Failure>| result.map(|()| Exit::Done);
    match command {
        Command::Up(args) => done(local::up(args, &options, trace)),
        Command::Down(args) => done(local::down(args, &options)),
        Command::Mdm(args) => done(daemon::mdm(args)),
        Command::Mgmt(args) => done(daemon::mgmt(args)),
        Command::Completions(args) => done(completions::run(args)),
        Command::Sds(args) => match args.verb {
            Some(verb) => done(tool(args.target).block_on(async |tool| sds::run(verb, tool).await)),
            None => done(daemon::sds(args.daemon, args.target)),
        },
        Command::Sdc(args) => match args.verb {
            Some(verb) => done(tool(args.target).block_on(async |tool| sdc::run(verb, tool).await)),
            None => done(daemon::sdc(args.daemon, args.target)),
        },
        Command::Status(args) => tool(args.target.clone()).block_on(async |tool| status::run(args, tool).await),
        Command::Cluster(args) => done(tool(args.target).block_on(async |tool| cluster::run(args.verb, tool).await)),
        Command::Domain(args) => done(tool(args.target).block_on(async |tool| domain::run(args.verb, tool).await)),
        Command::Pool(args) => done(tool(args.target).block_on(async |tool| pool::run(args.verb, tool).await)),
        Command::FaultSet(args) => done(tool(args.target).block_on(async |tool| fault_set::run(args.verb, tool).await)),
        Command::Pg(args) => done(tool(args.target).block_on(async |tool| pg::run(args.verb, tool).await)),
        Command::Device(args) => done(tool(args.target).block_on(async |tool| device::run(args.verb, tool).await)),
        Command::Volume(args) => done(tool(args.target).block_on(async |tool| volume::run(args.verb, tool).await)),
        Command::Rebuild(args) => done(tool(args.target).block_on(async |tool| rebuild::run(args.verb, tool).await)),
        Command::Token(args) => done(tool(args.target).block_on(async |tool| token::run(args.verb, tool).await)),
        Command::Event(args) => done(tool(args.target).block_on(async |tool| event::run(args.verb, tool).await)),
        Command::Why(args) => done(tool(args.target.clone()).block_on(async |tool| why::run(args, tool).await)),
        Command::Limits(args) => done(tool(args.target.clone()).block_on(async |tool| limits::run(args, tool).await)),
        Command::Settings(args) => done(tool(args.target).block_on(async |tool| settings::run(args.verb, tool).await)),
        Command::Topology(args) => {
            done(tool(args.target.clone()).block_on(async |tool| topology::run(args, tool).await))
        }
        Command::Health(args) => done(tool(args.target.clone()).block_on(async |tool| health::run(args, tool).await)),
    }
}

/// What a verb needs: the cluster, and how to print.
pub(crate) struct Tool {
    options: Options,
    target: Target,
    trace: Trace,
}

impl Tool {
    /// Runs one verb on a runtime of its own. One thread is enough: a verb waits far more than it works.
    fn block_on<T>(self, verb: impl AsyncFnOnce(&Self) -> Result<T, Failure>) -> Result<T, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Failure::io("start the runtime", error))?;
        runtime.block_on(verb(&self))
    }

    /// The conversation with the MDM; made when a verb first needs it.
    fn session(&self) -> Result<Session, Failure> {
        let members = self.target.members()?;
        Ok(Session::new(members, self.options.timeout.unwrap_or(DEFAULT_TIMEOUT), self.trace))
    }

    /// The format asked for, else `default`.
    fn format(&self, default: Format) -> Format {
        self.options.output.unwrap_or(default)
    }

    fn print(&self, document: &Document) -> Result<(), Failure> {
        output::print(document, self.format(Format::Table))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    /// The command lines in a help text, without what a shell does around them.
    fn examples(help: &str) -> Vec<&str> {
        let lines = help.lines().filter(|line| line.starts_with("  "));
        let commands = lines.filter_map(|line| line.find("pflex ").map(|at| &line[at..]));
        commands
            .map(|line| line.split([')', '|', '>']).next().unwrap_or_default())
            .map(|line| line.split("  ").next().unwrap_or_default().trim())
            .collect()
    }

    /// Each help ends with something to copy, and that is a command of this program: a leaf's is its own.
    #[test]
    fn every_command_has_an_example_that_can_be_typed() {
        fn check(command: &clap::Command, path: &str) {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let examples = examples(&help);
            assert!(!examples.is_empty(), "no example in the help of {path}");
            assert!(examples.iter().any(|line| line.starts_with(path)), "no example of {path} itself in {examples:?}");
            for line in examples {
                let parsed = Cli::try_parse_from(line.split_whitespace());
                assert!(
                    parsed.is_ok(),
                    "{path}: `{line}` is no command: {}",
                    parsed.err().map_or(String::new(), |e| e.to_string())
                );
            }
            for verb in command.get_subcommands() {
                check(verb, &format!("{path} {}", verb.get_name()));
            }
        }
        check(&Cli::command(), "pflex");
    }

    /// What the contract promises of every verb of a kind.
    #[test]
    fn verbs_of_a_kind_have_the_flags_of_their_kind() {
        fn check(command: &clap::Command, path: &str) {
            let verbs: Vec<_> = command.get_subcommands().collect();
            if !verbs.is_empty() {
                let noun = command.get_name();
                return verbs.iter().for_each(|verb| check(verb, &format!("{path} {noun}")));
            }
            let name = command.get_name();
            let flags: &[&str] = match name {
                "list" | "show" | "status" | "health" | "history" | "topology" | "chunks" => &["watch", "stale"],
                "create" | "add" => &["if_not_exists"],
                "delete" | "remove" | "resize" | "down" => &["yes", "dry_run"],
                "map" | "unmap" | "enter" | "exit" => &["wait"],
                _ => &[],
            };
            for flag in flags {
                assert!(command.get_arguments().any(|arg| arg.get_id() == flag), "{path} {name}: no {flag}");
            }
        }
        check(&Cli::command(), "");
        for option in ["output", "timeout", "verbose"] {
            let options = Cli::command();
            let found = options.get_arguments().find(|arg| arg.get_id() == option).map(clap::Arg::is_global_set);
            assert_eq!(found, Some(true), "{option}");
        }
    }

    fn parses(line: &str) -> bool {
        Cli::try_parse_from(line.split_whitespace()).is_ok()
    }

    #[test]
    fn options_stand_before_or_after_the_verb() {
        for line in [
            "pflex volume list -o json",
            "pflex -o json volume list",
            "pflex volume --mdm a:1 list",
            "pflex --mdm a:1 volume list",
            "pflex volume list --mdm a:1 --timeout 5s",
            "pflex sds list --mdm a:1",
            "pflex sds --config f.toml --mdm a:1",
            "pflex up --mdm 3 --sds 3",
            "pflex volume list --watch",
            "pflex volume list --watch=500ms",
            "pflex status --check",
            "pflex cluster status",
        ] {
            assert!(parses(line), "{line}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for line in [
            "pflex volume create x",
            "pflex volume create x --size 0",
            "pflex volume create x --size 1000",
            "pflex volume list --timeout never",
            "pflex snapshot list",
            "pflex volume list --watch 2s",
        ] {
            assert!(!parses(line), "{line}");
        }
    }
}
