//! A whole cluster of real processes in one directory, driven by `pflex` commands and hurt by signals.
//!
//! `pflex up` makes it and brings it back; single processes are started as `up` would. Signals go by a process handle that
//! was checked against the pid file and the command line first ([`process`]), so nobody else is ever hit. When a
//! [`Cluster`] is dropped all its processes are killed; its directory goes too, unless somebody wants the logs.

mod ports;
pub mod process;

use std::{
    collections::BTreeSet,
    fs::{self, OpenOptions},
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

pub use process::{Process, Role};
use rustix::process::Signal;

/// Two runs at the same moment may find the same ports free; the later one looks again.
const MOST_PORT_TRIES: u16 = 40;
/// The status with which `pflex` refuses what is in the way.
const EXIT_CONFLICT: i32 = 4;
/// SIGKILL needs no cooperation, only the end of a system call.
const DYING: Duration = Duration::from_secs(20);
/// A daemon writes its pid before anything else.
const STARTING: Duration = Duration::from_secs(60);
const STARTING_PERIOD: Duration = Duration::from_millis(5);
const LOOK_PERIOD: Duration = Duration::from_millis(100);
/// What of a log is quoted.
const LAST_LINES: usize = 4;

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// A file or process of ours.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// A `pflex` command ended badly.
    #[error("pflex {command}: exit status {status:?}: {stderr}")]
    Command {
        /// Its arguments.
        command: String,
        /// Its exit status.
        status: Option<i32>,
        /// What it said.
        stderr: String,
    },
    /// A process that should run does not.
    #[error("{0} does not run")]
    NotRunning(Process),
    /// A killed process does not go.
    #[error("{0} was killed and is still there")]
    Undying(Process),
    /// No leader is known.
    #[error("no MDM leads")]
    NoLeader,
    /// All ports are taken.
    #[error("no free ports in {MOST_PORT_TRIES} tries")]
    NoPorts,
}

fn failed(what: impl Into<String>) -> impl FnOnce(io::Error) -> ClusterError {
    let what = what.into();
    move |source| ClusterError::Io { what, source }
}

/// What to start.
#[derive(Clone, Debug)]
pub struct Shape {
    /// The `pflex` binary.
    pub pflex: PathBuf,
    /// Where; it must not exist, or be empty.
    pub dir: PathBuf,
    /// How many metadata managers.
    pub mdm: u32,
    /// How many storage servers.
    pub sds: u32,
    /// How many clients with an NBD server.
    pub sdc: u32,
    /// Where to look for free ports first.
    pub seed: u64,
}

/// A cluster that runs, or lies in ruins.
#[derive(Debug)]
pub struct Cluster {
    shape: Shape,
    port_offset: u16,
    /// Those started one by one; ours to reap.
    children: Vec<(Process, Child)>,
    /// Those that were not killed since they were last started: any of them that is gone ended by itself.
    expected: BTreeSet<Process>,
    keep: bool,
}

impl Cluster {
    /// Makes a cluster and waits until it is healthy.
    ///
    /// # Errors
    /// Any; nothing stays running.
    pub fn start(shape: Shape) -> Result<Self, ClusterError> {
        fs::create_dir_all(&shape.dir).map_err(failed(format!("make {}", shape.dir.display())))?;
        let mut cluster = Self { shape, port_offset: 0, children: Vec::new(), expected: BTreeSet::new(), keep: false };
        for attempt in 0..MOST_PORT_TRIES {
            cluster.port_offset = ports::offset(cluster.shape.seed, attempt);
            if !ports::are_free(&cluster.processes(), cluster.port_offset) {
                continue;
            }
            match cluster.up() {
                Err(ClusterError::Command { status: Some(EXIT_CONFLICT), stderr, .. }) if stderr.contains("taken") => {}
                Err(error) => {
                    cluster.keep = true;
                    return Err(error);
                }
                Ok(()) => {
                    // The faults of an hour make any server one that keeps failing: it would be kept out for longer than
                    // a round may take to heal.
                    cluster.expect("settings set readmission.most_ms=5000", &[])?;
                    return Ok(cluster);
                }
            }
        }
        Err(ClusterError::NoPorts)
    }

    /// All its processes.
    pub fn processes(&self) -> Vec<Process> {
        let of = |role, count| (0..count).map(move |index| Process { role, index });
        of(Role::Mdm, self.shape.mdm)
            .chain(of(Role::Sds, self.shape.sds))
            .chain(of(Role::Sdc, self.shape.sdc))
            .collect()
    }

    /// Starts what does not run and waits until all is healthy.
    ///
    /// # Errors
    /// When that takes too long, or something does not start.
    pub fn up(&mut self) -> Result<(), ClusterError> {
        let Shape { mdm, sds, sdc, .. } = &self.shape;
        let (mdm, sds, sdc) = (mdm.to_string(), sds.to_string(), sdc.to_string());
        let (dir, offset) = (self.shape.dir.display().to_string(), self.port_offset.to_string());
        let flags = ["--dir", &dir, "--port-offset", &offset, "--no-mgmt", "--mdm", &mdm, "--sds", &sds, "--sdc", &sdc];
        let outcome = self.expect("up --timeout 5m", &flags);
        // Also when it failed: what it started is there, and by now must stay.
        self.expected = self.processes().into_iter().filter(|process| self.find(*process).is_some()).collect();
        outcome.map(drop)
    }

    /// Makes a volume, mapped to all clients; returns where it is exported.
    ///
    /// # Errors
    /// When a command fails.
    pub fn create_volume(&self, name: &str, bytes: u64) -> Result<Vec<SocketAddr>, ClusterError> {
        self.expect("volume create", &[name, "--size", &bytes.to_string()])?;
        let map = |index| {
            self.expect("volume map", &[name, &format!("sdc{}", index + 1)])?;
            Ok(ports::nbd(self.port_offset, index))
        };
        (0..self.shape.sdc).map(map).collect()
    }

    /// Ends a process at once and waits until it is gone.
    ///
    /// # Errors
    /// When it did not run, or does not go.
    pub fn kill(&mut self, process: Process) -> Result<(), ClusterError> {
        let found = self.find(process).ok_or(ClusterError::NotRunning(process))?;
        self.expected.remove(&process);
        found.signal(Signal::KILL).map_err(failed(format!("kill {process}")))?;
        self.wait_until_gone(process, &found)
    }

    /// Ends all processes at the same moment, as far as one thread can, and waits until they are gone.
    ///
    /// # Errors
    /// When one does not go.
    pub fn kill_all(&mut self) -> Result<(), ClusterError> {
        self.expected.clear();
        let all = self.processes();
        let found: Vec<_> = all.iter().filter_map(|process| Some((*process, self.find(*process)?))).collect();
        for (process, one) in &found {
            one.signal(Signal::KILL).map_err(failed(format!("kill {process}")))?;
        }
        found.iter().try_for_each(|(process, one)| self.wait_until_gone(*process, one))
    }

    fn wait_until_gone(&mut self, process: Process, found: &process::Running) -> Result<(), ClusterError> {
        let gone = found.wait(DYING).map_err(failed(format!("wait for {process}")))?;
        self.reap();
        if gone { Ok(()) } else { Err(ClusterError::Undying(process)) }
    }

    /// Stops a process where it is, with all its connections open.
    ///
    /// # Errors
    /// When it does not run.
    pub fn pause(&self, process: Process) -> Result<(), ClusterError> {
        self.signal(process, Signal::STOP)
    }

    /// Lets a paused process go on.
    ///
    /// # Errors
    /// When it does not run.
    pub fn resume(&self, process: Process) -> Result<(), ClusterError> {
        self.signal(process, Signal::CONT)
    }

    fn signal(&self, process: Process, signal: Signal) -> Result<(), ClusterError> {
        let found = self.find(process).ok_or(ClusterError::NotRunning(process))?;
        found.signal(signal).map_err(failed(format!("signal {process}")))
    }

    /// Starts one process as `up` would, and waits until it is known by its pid file: an `up` right afterwards would not
    /// see it otherwise, and stumble over its ports. If it ends instead, [`Self::take_fallen`] tells.
    ///
    /// # Errors
    /// When it cannot be spawned.
    pub fn start_one(&mut self, process: Process) -> Result<(), ClusterError> {
        self.reap();
        let what = || format!("start {process}");
        let log = OpenOptions::new().append(true).create(true).open(self.log_file(process)).map_err(failed(what()))?;
        let mut command = Command::new(&self.shape.pflex);
        command.arg(process.role.to_string()).arg("--config").arg(self.config_file(process)).arg("--detach");
        self.environment(&mut command);
        command.stdin(Stdio::null()).stdout(log.try_clone().map_err(failed(what()))?).stderr(log);
        let child = command.spawn().map_err(failed(what()))?;
        self.children.push((process, child));
        self.expected.insert(process);
        let started = Instant::now();
        while started.elapsed() < STARTING && self.find(process).is_none() && self.is_our_child(process) {
            thread::sleep(STARTING_PERIOD);
            self.reap();
        }
        Ok(())
    }

    /// Processes that ended though nobody killed them, with the last lines of their logs. Each is told once.
    pub fn take_fallen(&mut self) -> Vec<(Process, String)> {
        self.reap();
        let started: BTreeSet<_> = self.children.iter().map(|(process, _)| *process).collect();
        let gone = |process: &Process| !started.contains(process) && self.find(*process).is_none();
        let fallen: Vec<_> = self.expected.iter().copied().filter(gone).collect();
        for process in &fallen {
            self.expected.remove(process);
        }
        fallen.into_iter().map(|process| (process, self.last_lines(process))).collect()
    }

    /// Lines of all logs that only a bug writes.
    pub fn panics(&self) -> Vec<String> {
        let mut found = Vec::new();
        for process in self.processes() {
            let log = fs::read(self.log_file(process)).unwrap_or_default();
            let log = String::from_utf8_lossy(&log);
            found.extend(
                log.lines().filter(|line| line.contains("panicked at")).map(|line| format!("{process}: {line}")),
            );
        }
        found
    }

    /// The process of the MDM that leads.
    ///
    /// # Errors
    /// When nobody does, or nobody says.
    pub fn leader(&self) -> Result<Process, ClusterError> {
        let json = self.expect("cluster status -o json --timeout 5s", &[])?;
        let json: serde_json::Value =
            serde_json::from_str(&json).map_err(|error| failed("read cluster status")(error.into()))?;
        let id = json["leader"].as_u64().filter(|id| *id > 0).ok_or(ClusterError::NoLeader)?;
        Ok(Process { role: Role::Mdm, index: id as u32 - 1 })
    }

    /// Whether `status --check` finds nothing to complain about; if it does, what.
    ///
    /// # Errors
    /// With its output.
    pub fn health(&self) -> Result<(), ClusterError> {
        self.expect("status --check --timeout 5s", &[]).map(drop)
    }

    /// Waits until it is healthy, but no longer than `limit` or until `stop` says so.
    ///
    /// # Errors
    /// With the last complaint.
    pub fn wait_until_healthy(&self, limit: Duration, stop: &dyn Fn() -> bool) -> Result<(), ClusterError> {
        let started = Instant::now();
        loop {
            match self.health() {
                Ok(()) => return Ok(()),
                Err(error) if started.elapsed() > limit || stop() => return Err(error),
                Err(_) => thread::sleep(LOOK_PERIOD),
            }
        }
    }

    /// Keeps the directory when the cluster is dropped.
    pub fn keep(&mut self) {
        self.keep = true;
    }

    /// Runs a command that must end well; returns its stdout.
    ///
    /// # Errors
    /// When it does not.
    pub fn expect(&self, words: &str, more: &[&str]) -> Result<String, ClusterError> {
        let output = self.pflex(words, more).map_err(failed(format!("run pflex {words}")))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        // `status --check` complains on stdout.
        let said = [&output.stderr[..], &output.stdout[..]].map(|text| String::from_utf8_lossy(text).trim().to_owned());
        Err(ClusterError::Command {
            command: [&[words], more].concat().join(" "),
            status: output.status.code(),
            stderr: said.join("\n").trim().to_owned(),
        })
    }

    fn pflex(&self, words: &str, more: &[&str]) -> io::Result<Output> {
        let mut command = Command::new(&self.shape.pflex);
        command.args(words.split_whitespace()).args(more).stdin(Stdio::null());
        self.environment(&mut command);
        command.output()
    }

    /// Its own client configuration, so that it neither sees nor changes the user's.
    fn environment(&self, command: &mut Command) {
        command.env_clear().env("HOME", &self.shape.dir).env("XDG_CONFIG_HOME", self.shape.dir.join("client"));
        for name in ["PFLEX_LOG", "RUST_BACKTRACE"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
    }

    fn find(&self, process: Process) -> Option<process::Running> {
        process::Running::find(&self.process_dir(process).join("pid"), &self.config_file(process))
    }

    fn process_dir(&self, process: Process) -> PathBuf {
        self.shape.dir.join(process.to_string())
    }

    fn config_file(&self, process: Process) -> PathBuf {
        self.process_dir(process).join("config.toml")
    }

    fn log_file(&self, process: Process) -> PathBuf {
        self.process_dir(process).join("log")
    }

    fn last_lines(&self, process: Process) -> String {
        let log = fs::read(self.log_file(process)).unwrap_or_default();
        let log = String::from_utf8_lossy(&log).into_owned();
        let lines: Vec<_> = log.lines().rev().take(LAST_LINES).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    fn is_our_child(&self, process: Process) -> bool {
        self.children.iter().any(|(child, _)| *child == process)
    }

    fn reap(&mut self) {
        self.children.retain_mut(|(_, child)| matches!(child.try_wait(), Ok(None)));
    }

    /// Where it lives.
    pub fn dir(&self) -> &Path {
        &self.shape.dir
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Err(error) = self.kill_all() {
            eprintln!("warning: {error}");
        }
        // A process that has no pid file yet is known by its handle only.
        for (_, child) in &mut self.children {
            drop(child.kill());
            drop(child.wait());
        }
        if self.keep || thread::panicking() {
            eprintln!("logs and data of the cluster are in {}", self.shape.dir.display());
        } else if let Err(error) = fs::remove_dir_all(&self.shape.dir) {
            eprintln!("warning: remove {}: {error}", self.shape.dir.display());
        }
    }
}
