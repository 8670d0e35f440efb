//! `pflex mdm|sds|sdc|mgmt`: one daemon in this process, until SIGTERM or SIGINT.
//!
//! The component crates do the work; here is what all have alike: the configuration from file, variables and flags, the
//! pid file, the log, signals, and an exit status that says why it ended.

mod exit;
mod pid_file;
mod settings;

use std::{error::Error, path::PathBuf, time::Duration};

use pflex_common::{
    shutdown::{self, Shutdown},
    telemetry,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::{
    cli::Target,
    error::{Exit, Failure},
};
use exit::ended;
use pflex_mdm::{
    daemon::{DaemonError, MdmConfig, MdmConfigFile},
    raft::StoreError,
};
pub(crate) use pid_file::{PidFile, Running};
pub(crate) use settings::PID_FILE;
use settings::Settings;

/// Flags of each daemon. Every key of the file can be given by `--set KEY=VALUE` or by a variable `PFLEX_<KIND>_<KEY>`.
#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Running the daemon")]
pub(crate) struct DaemonArgs {
    /// Run the daemon with this configuration.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Override a key of the file; wins over the variable PFLEX_<KIND>_<KEY>, which wins over the file.
    #[arg(long, value_name = "KEY=VALUE", requires = "config")]
    set: Vec<String>,
    /// Become a session of its own, so that closing the terminal does not end it.
    #[arg(long, hide = true, requires = "config")]
    detach: bool,
}

/// `pflex sds --config ...`
pub(crate) type SdsArgs = DaemonArgs;
/// `pflex sdc --config ...`
pub(crate) type SdcArgs = DaemonArgs;

/// `pflex mdm --config ...`
#[derive(clap::Args, Debug)]
#[command(
    arg_required_else_help = true,
    after_help = "A configuration with a `join` section instead of `members` (deploy/mdm-join.toml) makes an empty store \
    and waits until\n`pflex cluster add-node` or `replace-node` names it.\n\n\
    Example:\n  pflex mdm --config /etc/pflex/mdm.toml"
)]
pub(crate) struct MdmArgs {
    #[command(flatten)]
    daemon: DaemonArgs,
}

/// `pflex mgmt --config ...`
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  pflex mgmt --config /etc/pflex/mgmt.toml")]
pub(crate) struct MgmtArgs {
    #[command(flatten)]
    daemon: DaemonArgs,
}

pub(crate) fn mgmt(args: MgmtArgs) -> Result<(), Failure> {
    drop(args.daemon);
    pflex_mgmt::run().map_err(|error| Failure::new(Exit::Failed, error.to_string()))
}

pub(crate) fn mdm(args: MdmArgs) -> Result<(), Failure> {
    let settings = Settings::load("mdm", &args.daemon, None)?;
    let _pid_file = start(&args.daemon, &settings)?;
    let config = MdmConfig::try_from(settings.parse::<MdmConfigFile>()?).map_err(|error| settings.refuse(error))?;
    serve(settings.kind, async |shutdown| pflex_mdm::daemon::run(config, shutdown).await)
}

/// Makes the empty store of a new MDM; once in its life (S18). One that an interrupted run made is as good: the daemon
/// compares it with what the configuration names.
pub(crate) fn init_mdm(who: &str, file: MdmConfigFile) -> Result<(), Failure> {
    let config = MdmConfig::try_from(file)
        .map_err(|error| Failure::new(Exit::Usage, format!("configuration of {who}: {error}")))?;
    match pflex_mdm::daemon::init(&config) {
        Ok(()) | Err(DaemonError::Store(StoreError::Exists { .. })) => Ok(()),
        Err(error) => Err(ended(who, &error)),
    }
}

pub(crate) fn sds(args: SdsArgs, target: Target) -> Result<(), Failure> {
    let settings = Settings::load("sds", &args, target.mdm.clone())?;
    let _pid_file = start(&args, &settings)?;
    let config = sds_config(&settings)?;
    serve("sds", async |shutdown| {
        let (ask, asked) = tokio::sync::mpsc::channel(1);
        // Without the signal it serves all the same.
        if let Ok(mut hangups) = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup()) {
            tokio::spawn(async move { while hangups.recv().await.is_some() && ask.send(()).await.is_ok() {} });
        }
        let read = move || {
            let settings = Settings::load("sds", &args, target.mdm.clone()).and_then(|settings| sds_config(&settings));
            settings.map_err(|failure| failure.to_string())
        };
        pflex_sds::daemon::run(config, pflex_sds::daemon::Reload::new(asked, read), shutdown).await
    })
}

fn sds_config(settings: &Settings) -> Result<pflex_sds::daemon::SdsConfig, Failure> {
    let file: pflex_sds::daemon::ConfigFile = settings.parse()?;
    file.validate().map_err(|error| settings.refuse(error))
}

pub(crate) fn sdc(args: SdcArgs, target: Target) -> Result<(), Failure> {
    let settings = Settings::load("sdc", &args, target.mdm)?;
    let _pid_file = start(&args, &settings)?;
    let file: pflex_sdc::daemon::ConfigFile = settings.parse()?;
    let config = file.validate().map_err(|error| settings.refuse(error))?;
    serve(settings.kind, async |shutdown| pflex_sdc::daemon::run(config, shutdown).await)
}

/// What comes before the daemon's own start. The pid file is held from here to the end of the process.
fn start(args: &DaemonArgs, settings: &Settings) -> Result<Option<PidFile>, Failure> {
    if args.detach {
        // Fails only for the leader of a process group, which then is no child of `up` and needs no new session.
        let _ = rustix::process::setsid();
    }
    telemetry::start();
    raise_file_limit();
    settings.pid_file.as_deref().map(PidFile::take).transpose()
}

/// A connection is a file, and an MDM or SDS has thousands; the usual soft limit of 1,024 is for programs that use
/// `select`. Raised as far as the hard limit goes.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    // Not allowed to: then connections beyond the soft limit are refused, which the listeners log.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// What is still running when a daemon has ended gets this long.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Runs a daemon to its end. Signals are caught before it starts, so that none is lost on the way.
fn serve<E: Error + Send + Sync + 'static>(
    kind: &'static str,
    daemon: impl AsyncFnOnce(Shutdown) -> Result<(), E>,
) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .thread_name(kind)
        .enable_all()
        .build()
        .map_err(|error| Failure::io("start the runtime", error))?;
    let outcome = runtime.block_on(async {
        let shutdown = shutdown::on_signal().map_err(|error| Failure::io("catch signals", error))?;
        daemon(shutdown).await.map_err(|error| ended(kind, &error))
    });
    // A thread that hangs in a disk must not keep the process.
    runtime.shutdown_timeout(LAST_WORDS);
    outcome
}
