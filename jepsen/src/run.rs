//! One run: a cluster, a workload, a nemesis, and the verdict.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    checker::{self, HistoryError, Report},
    cluster::{Cluster, ClusterError, Process, Role, Shape},
    history::{ProcessId, Recorder},
    nbd::NbdClient,
    nemesis::{Nemesis, Round, Schedule},
    workload::{Load, Workload, read_all},
};

/// The history's name in the directory of the run.
pub const HISTORY: &str = "history.jsonl";
const VOLUME: &str = "jepsen";
const SDS: u32 = 3;
/// Longer than an SDC keeps trying (120 s), so that its answer is heard.
const PATIENCE: Duration = Duration::from_secs(150);
/// For reads after the run: no client has this number.
const LAST_READER: ProcessId = ProcessId(u32::MAX);
/// The export may come a moment after the cluster is healthy.
const OPENING: Duration = Duration::from_secs(60);
/// How long the cluster may take to notice that a server was killed; much longer than it should.
const NOTICING: Duration = Duration::from_secs(60);
const LOOK_PERIOD: Duration = Duration::from_millis(100);

/// What ends a run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The cluster: it did not start, did not heal, did not obey.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// The history is none: a bug here.
    #[error("the history makes no sense: {0}")]
    History(#[from] HistoryError),
    /// The history's file.
    #[error("history: {0}")]
    File(#[from] io::Error),
}

/// Which faults.
#[derive(Clone, Debug)]
pub enum Faults {
    /// From the seed, for so long.
    For(Duration),
    /// As `For`, with overlapping storage faults and no peace between rounds.
    RoughFor(Duration),
    /// These.
    These(Vec<Round>),
}

/// What to do.
#[derive(Clone, Debug)]
pub struct Config {
    /// The `pflex` binary.
    pub pflex: PathBuf,
    /// Where; the cluster gets a directory in it.
    pub dir: PathBuf,
    /// Decides everything that is not timing.
    pub seed: u64,
    /// SDCs to which the volume is mapped read-write: clients use them in turn.
    pub sdcs: u32,
    /// Clients.
    pub clients: u32,
    /// Blocks.
    pub blocks: u64,
    /// The longest a client thinks between two operations.
    pub most_think_time: Duration,
    /// Which faults.
    pub faults: Faults,
    /// At the end, reads everything with each server away in turn: both copies of each block are looked at.
    pub look_at_each_copy: bool,
}

/// How it went.
#[derive(Debug)]
pub struct Verdict {
    /// What the judges say.
    pub report: Report,
    /// What the product did wrong besides wrong answers.
    pub trouble: Vec<String>,
    /// Rounds of faults.
    pub rounds: usize,
}

impl Verdict {
    /// Whether nothing is wrong.
    pub fn is_good(&self) -> bool {
        self.report.findings.is_empty() && self.trouble.is_empty()
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = &self.report;
        for finding in &report.findings {
            writeln!(f, "VIOLATION {finding}")?;
        }
        for trouble in &self.trouble {
            writeln!(f, "TROUBLE {trouble}")?;
        }
        let word = if self.is_good() { "linearizable" } else { "FAILED" };
        write!(
            f,
            "{word}: {} operations ({} reads, {} writes, {} writes unknown, {} failed), {} rounds of faults, longest {} ms",
            report.operations,
            report.reads,
            report.writes,
            report.unknown,
            report.failed,
            self.rounds,
            report.longest_us / 1000
        )
    }
}

/// Runs it. The history stays in `dir`, and on any failure the cluster's logs and data too. `stop` ends it early.
///
/// # Errors
/// When it could not be carried out; a broken promise is in the verdict.
pub fn run(config: &Config, stop: &dyn Fn() -> bool) -> Result<Verdict, RunError> {
    let dir = std::path::absolute(&config.dir)?;
    std::fs::create_dir_all(&dir)?;
    let recorder = Arc::new(Recorder::create(&dir.join(HISTORY))?);
    let shape = Shape {
        pflex: std::path::absolute(&config.pflex)?,
        dir: dir.join("cluster"),
        mdm: 3,
        sds: SDS,
        sdc: config.sdcs,
        seed: config.seed,
    };
    let mut cluster = Cluster::start(shape)?;
    let outcome = hurt_and_judge(config, &mut cluster, &recorder, stop);
    if !outcome.as_ref().is_ok_and(Verdict::is_good) {
        cluster.keep();
    }
    // Whatever went wrong, what was recorded is on disk.
    drop(recorder.events()?);
    outcome
}

fn hurt_and_judge(
    config: &Config,
    cluster: &mut Cluster,
    recorder: &Arc<Recorder>,
    stop: &dyn Fn() -> bool,
) -> Result<Verdict, RunError> {
    let mut load = Load {
        // Known once the volume is there, whose size the load knows.
        servers: Vec::new(),
        export: VOLUME.to_owned(),
        clients: config.clients,
        blocks: config.blocks,
        seed: config.seed,
        patience: PATIENCE,
        most_think_time: config.most_think_time,
    };
    load.servers = cluster.create_volume(VOLUME, load.volume_bytes())?;
    recorder.fault(format!("seed {}", config.seed));
    let workload = Workload::start(&load, recorder);
    let (rough, rounds, until): (_, Box<dyn Iterator<Item = Round>>, _) = match &config.faults {
        Faults::For(time) => (false, Box::new(Schedule::new(config.seed, SDS, config.sdcs, false)), Some(*time)),
        Faults::RoughFor(time) => (true, Box::new(Schedule::new(config.seed, SDS, config.sdcs, true)), Some(*time)),
        Faults::These(rounds) => (false, Box::new(rounds.clone().into_iter()), None),
    };
    let started = Instant::now();
    let over = || stop() || until.is_some_and(|until| started.elapsed() > until);
    let mut nemesis = Nemesis::new(cluster, recorder, rough, stop);
    let mut count = 0;
    let hurt = rounds.take_while(|_| !over()).try_for_each(|round| {
        count += 1;
        nemesis.round(&round)
    });
    // Also when something failed: the answers until then are worth judging.
    let mended = hurt.and_then(|()| nemesis.mend());
    let mut trouble = nemesis.into_trouble();
    if let Err(error) = mended {
        trouble.push(format!("the cluster does not heal: {error}"));
        // Clients that wait for it would wait long, and end nothing but unknown.
        cluster.kill_all()?;
        workload.stop();
    } else {
        workload.stop();
        last_look(&load, cluster, recorder, &mut trouble, "all servers up");
        if config.look_at_each_copy && !stop() {
            look_at_each_copy(&load, cluster, recorder, &mut trouble)?;
        }
    }
    trouble.extend(cluster.panics());
    Ok(Verdict { report: checker::check(&recorder.events()?)?, trouble, rounds: count })
}

/// With each server away in turn, every block is read from where else it is.
fn look_at_each_copy(
    load: &Load,
    cluster: &mut Cluster,
    recorder: &Recorder,
    trouble: &mut Vec<String>,
) -> Result<(), RunError> {
    for index in 0..SDS {
        let victim = Process { role: Role::Sds, index };
        recorder.fault(format!("kill {victim} for a last look"));
        cluster.kill(victim)?;
        // Until the loss is noticed the cluster calls itself healthy, also when asked after the server was started
        // again; the next one would then be killed before this one is back.
        let noticed = until(NOTICING, || cluster.health().is_err());
        if !noticed {
            trouble.push(format!("{victim} was killed, and {} s later the cluster is healthy", NOTICING.as_secs()));
        }
        last_look(load, cluster, recorder, trouble, &format!("{victim} away"));
        recorder.fault("up");
        cluster.up()?;
        recorder.fault("healthy");
    }
    Ok(())
}

fn last_look(load: &Load, cluster: &Cluster, recorder: &Recorder, trouble: &mut Vec<String>, when: &str) {
    recorder.fault(format!("last look, {when}"));
    for (nth, server) in load.servers.iter().enumerate() {
        let open = || NbdClient::open(*server, &load.export, load.patience).is_ok();
        let outcome = until(OPENING, open).then(|| read_all(load, *server, LAST_READER, recorder));
        let why = match outcome {
            Some(Ok(())) => continue,
            Some(Err(error)) => error.to_string(),
            None => "the export does not open".to_owned(),
        };
        let health = cluster.health().map_or_else(|error| error.to_string(), |()| "healthy".to_owned());
        trouble.push(format!("{when}: not all blocks can be read at sdc{nth}: {why}; the cluster says: {health}"));
    }
}

/// Waits until something is so; returns false if it is not by `limit`.
fn until(limit: Duration, mut is_so: impl FnMut() -> bool) -> bool {
    let started = Instant::now();
    loop {
        if is_so() {
            return true;
        }
        if started.elapsed() > limit {
            return false;
        }
        std::thread::sleep(LOOK_PERIOD);
    }
}

/// Judges a history again.
///
/// # Errors
/// When it cannot be read, or is none.
pub fn judge(history: &Path) -> Result<Verdict, RunError> {
    let report = checker::check(&crate::history::load(history)?)?;
    Ok(Verdict { report, trouble: Vec::new(), rounds: 0 })
}
