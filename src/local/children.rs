//! The processes that this `up` started: started apart from its terminal, watched until the cluster is healthy, and then
//! left to themselves.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read as _, Seek as _, SeekFrom},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use super::layout::{Layout, Process};
use crate::{
    daemon::Running,
    error::{Exit, Failure},
};

/// A log that has grown beyond this is set aside at the next start, in place of the one set aside before.
const LOG_LIMIT_BYTES: u64 = 64 << 20;
/// A killed process is gone after this, unless its disk hangs.
const DYING: Duration = Duration::from_millis(150);
/// What is read of a log to find a daemon's last words.
const LAST_WORDS_BYTES: u64 = 16 << 10;
/// Variables that do not override configuration; all other `PFLEX_*` are kept from the daemons, whose files are the truth.
const PASSED_ON: [&str; 2] = ["PFLEX_LOG", "PFLEX_LOG_FORMAT"];

/// A process of this run.
struct Started {
    process: Process,
    child: Child,
    /// Where its part of the log begins.
    log_start: u64,
}

/// What became of it.
#[derive(PartialEq, Eq, Debug)]
enum Now {
    Runs,
    /// It ended, because this process had its pid file first.
    Replaced {
        pid: i32,
    },
}

impl Started {
    fn look(&mut self, layout: &Layout) -> Result<Now, Failure> {
        let process = self.process;
        let ended = self.child.try_wait().map_err(|error| Failure::io(format!("watch {process}"), error))?;
        let Some(status) = ended else { return Ok(Now::Runs) };
        let exit = exit_of(status.code());
        if exit == Exit::Conflict
            && let Some(other) = find(layout, process)?
        {
            return Ok(Now::Replaced { pid: other.pid() });
        }
        let log = layout.log_file(process);
        let words = last_words(&log, self.log_start).unwrap_or_else(|| status.to_string());
        Err(Failure::new(exit, format!("{process} did not start: {words}"))
            .remedy(format!("its log is {}", log.display())))
    }
}

/// All processes of this run.
#[derive(Default)]
pub(super) struct Children(Vec<Started>);

impl Children {
    /// Starts a process with its configuration file.
    pub(super) fn start(&mut self, layout: &Layout, process: Process, otlp: Option<&str>) -> Result<(), Failure> {
        let failed = |error| Failure::io(format!("start {process}"), error);
        let log = open_log(layout.log_file(process)).map_err(failed)?;
        let log_start = log.metadata().map_err(failed)?.len();
        let mut command = Command::new(std::env::current_exe().map_err(failed)?);
        command.arg(process.kind.to_string()).arg("--config").arg(layout.config_file(process)).arg("--detach");
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("PFLEX_") && !PASSED_ON.contains(&&*text) {
                command.env_remove(&name);
            }
        }
        if let Some(url) = otlp {
            command.env("OTEL_EXPORTER_OTLP_ENDPOINT", url);
        }
        // A working directory that may be unmounted or removed is none for a daemon.
        command.current_dir("/").stdin(Stdio::null());
        command.stdout(log.try_clone().map_err(failed)?).stderr(log);
        let child = command.spawn().map_err(failed)?;
        self.0.push(Started { process, child, log_start });
        Ok(())
    }

    /// Fails if one of them has ended, with its own last words and exit status. One that ended because somebody else
    /// started the same daemon a moment earlier is no failure: that one runs, and is waited for in its place.
    pub(super) fn check(&mut self, layout: &Layout) -> Result<(), Failure> {
        let mut failure = None;
        self.0.retain_mut(|started| match started.look(layout) {
            Ok(Now::Runs) => true,
            Ok(Now::Replaced { pid }) => {
                eprintln!("{} runs already, as pid {pid}", started.process);
                false
            }
            Err(why) => {
                failure.get_or_insert(why);
                true
            }
        });
        failure.map_or(Ok(()), Err)
    }

    /// Those that ended since the last call, with how; for `--foreground`.
    pub(super) fn take_ended(&mut self) -> Vec<String> {
        let mut ended = Vec::new();
        self.0.retain_mut(|started| match started.child.try_wait() {
            Ok(Some(status)) => {
                ended.push(format!("{} ended ({status}); `pflex up` starts it again", started.process));
                false
            }
            Ok(None) | Err(_) => true,
        });
        ended
    }

    /// Ends all of them at once; for a first start that failed, where there is nothing to save.
    pub(super) fn kill(&mut self) {
        for started in &mut self.0 {
            drop(started.child.kill());
            drop(started.child.wait());
        }
        self.0.clear();
    }
}

/// A process of the cluster that runs, whoever started it.
pub(super) fn find(layout: &Layout, process: Process) -> Result<Option<Running>, Failure> {
    Running::find(&layout.pid_file(process))
}

/// Those of `processes` that run and go on running: one that was killed this moment still has its pid and its lock until
/// the kernel has torn it down, and would be taken for a healthy one.
pub(super) fn alive(layout: &Layout, processes: &[Process]) -> Result<Vec<Process>, Failure> {
    let mut found = Vec::new();
    for process in processes {
        if let Some(running) = find(layout, *process)? {
            found.push((*process, running));
        }
    }
    let deadline = Instant::now() + DYING;
    let mut alive = Vec::new();
    for (process, running) in found {
        if !running.wait(deadline.saturating_duration_since(Instant::now()))? {
            alive.push(process);
        }
    }
    Ok(alive)
}

fn open_log(path: PathBuf) -> std::io::Result<File> {
    if fs::metadata(&path).is_ok_and(|metadata| metadata.len() > LOG_LIMIT_BYTES) {
        fs::rename(&path, path.with_extension("old"))?;
    }
    OpenOptions::new().append(true).create(true).open(path)
}

/// The last error line after `start`, else the last line.
fn last_words(path: &PathBuf, start: u64) -> Option<String> {
    let mut file = File::open(path).ok()?;
    let end = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(start.max(end.saturating_sub(LAST_WORDS_BYTES)))).ok()?;
    let mut bytes = Vec::new();
    file.take(LAST_WORDS_BYTES).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let lines = || text.lines().rev().map(str::trim).filter(|line| !line.is_empty());
    let error = lines().find_map(|line| line.strip_prefix("error: "));
    error.or_else(|| lines().next()).map(ToOwned::to_owned)
}

/// A daemon's exit status means to `up` what it meant to the daemon; a signal is a failure.
fn exit_of(code: Option<i32>) -> Exit {
    match code {
        Some(2) => Exit::Usage,
        Some(3) => Exit::NotFound,
        Some(4) => Exit::Conflict,
        Some(5) => Exit::NotAllowed,
        Some(6) => Exit::Unreachable,
        Some(7) => Exit::TimedOut,
        Some(_) | None => Exit::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_words_are_those_of_this_run() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let (before, after) = ("INFO started\nerror: data port is taken\nINFO bye\n", "INFO again\n");
        fs::write(&path, format!("{before}{after}")).unwrap();
        assert_eq!(last_words(&path, 0).as_deref(), Some("data port is taken"));
        assert_eq!(last_words(&path, before.len() as u64).as_deref(), Some("INFO again"));
        assert_eq!(last_words(&dir.path().join("none"), 0), None);
    }

    /// A daemon of this run that has ended with `status`.
    fn ended(process: Process, status: &str) -> Started {
        let mut child = Command::new("sh").args(["-c", &format!("exit {status}")]).spawn().unwrap();
        child.wait().unwrap();
        Started { process, child, log_start: 0 }
    }

    #[test]
    fn a_daemon_that_somebody_else_started_first_is_no_failure() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().to_owned(), 0);
        let process = Process { kind: super::super::layout::Kind::Sds, index: 0 };
        fs::create_dir(layout.process_dir(process)).unwrap();

        let refused = Children(vec![ended(process, "4")]).check(&layout).unwrap_err();
        assert_eq!(refused.exit(), Exit::Conflict, "nobody else runs: it was refused for another reason");

        // This test's own process plays the daemon that was there first.
        let _first = crate::daemon::PidFile::take(&layout.pid_file(process)).unwrap();
        let mut children = Children(vec![ended(process, "4")]);
        children.check(&layout).unwrap();
        assert!(children.0.is_empty(), "it is somebody else's now");
        let broken = Children(vec![ended(process, "1")]).check(&layout).unwrap_err();
        assert_eq!(broken.exit(), Exit::Failed, "any other end is one");
    }

    #[test]
    fn a_daemons_status_is_passed_on() {
        assert_eq!(exit_of(Some(4)), Exit::Conflict);
        assert_eq!(exit_of(None), Exit::Failed);
        assert_eq!(exit_of(Some(0)), Exit::Failed, "ending at once is a failure, however politely");
    }
}
