//! The pid file of a daemon: who runs here, and proof that it still does.
//!
//! The daemon holds an exclusive lock on the file for as long as it lives; the kernel drops it with the process. So a pid
//! in an unlocked file is history, whatever process has that number now, and two daemons never share a directory.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, Read as _, Seek as _, Write as _},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};

use crate::error::{Exit, Failure};

/// Somebody who only looks whether the file is locked holds the lock for an instant; that is no daemon.
const LOCK_PATIENCE: Duration = Duration::from_millis(500);
const LOCK_RETRY: Duration = Duration::from_millis(20);

/// Held by a daemon from start to end.
#[derive(Debug)]
pub(crate) struct PidFile {
    file: File,
}

impl PidFile {
    /// Locks the file and writes this process's pid into it.
    pub(crate) fn take(path: &Path) -> Result<Self, Failure> {
        let failed = |error| Failure::io(format!("pid file {}", path.display()), error);
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(failed)?;
        let started = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if started.elapsed() < LOCK_PATIENCE => std::thread::sleep(LOCK_RETRY),
                Err(TryLockError::WouldBlock) => {
                    let pid = read_pid(&mut file).map_or(String::new(), |pid| format!(" as pid {pid}"));
                    return Err(Failure::new(
                        Exit::Conflict,
                        format!("this daemon runs already{pid} (pid file {})", path.display()),
                    )
                    .remedy("stop it first"));
                }
                Err(TryLockError::Error(error)) => return Err(failed(error)),
            }
        }
        file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(failed)?;
        Ok(Self { file })
    }
}

/// A clean end leaves the file empty; the lock goes with the process in any case.
impl Drop for PidFile {
    fn drop(&mut self) {
        drop(self.file.set_len(0));
    }
}

fn read_pid(file: &mut File) -> Option<i32> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.read_to_string(&mut text).ok()?;
    text.trim().parse().ok().filter(|pid| *pid > 0)
}

/// A daemon that was running when looked at. Refers to that process and never to a later one with its number.
#[derive(Debug)]
pub(crate) struct Running {
    pid: i32,
    process: OwnedFd,
    path: PathBuf,
}

impl Running {
    /// The daemon behind a pid file; none if it does not run.
    pub(crate) fn find(path: &Path) -> Result<Option<Self>, Failure> {
        let failed = |error| Failure::io(format!("pid file {}", path.display()), error);
        let mut file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        if !is_locked(&file).map_err(failed)? {
            return Ok(None);
        }
        // A daemon locks first and writes its pid then, so an empty locked file is one that starts or ends right now.
        let Some(pid) = read_pid(&mut file) else { return Ok(None) };
        let Some(process) = Pid::from_raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) else {
            return Ok(None);
        };
        // The lock was held before and after the process was taken hold of, so this process is the holder and not one
        // that got its number in between.
        let same = is_locked(&file).map_err(failed)? && is_pflex(pid);
        Ok(same.then(|| Self { pid, process, path: path.to_owned() }))
    }

    pub(crate) const fn pid(&self) -> i32 {
        self.pid
    }

    /// Asks it to end, or ends it.
    pub(crate) fn signal(&self, signal: Signal) -> Result<(), Failure> {
        match pidfd_send_signal(&self.process, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(Failure::io(format!("signal pid {} ({})", self.pid, self.path.display()), error.into())),
        }
    }

    /// Waits until it has ended; returns whether it did in time.
    pub(crate) fn wait(&self, limit: Duration) -> Result<bool, Failure> {
        let started = Instant::now();
        loop {
            let left = limit.saturating_sub(started.elapsed());
            let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
            let mut fds = [PollFd::new(&self.process, PollFlags::IN)];
            match poll(&mut fds, Some(&timeout)) {
                Ok(0) => return Ok(false),
                Ok(_) => return Ok(true),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(Failure::io(format!("wait for pid {}", self.pid), error.into())),
            }
        }
    }
}

/// Whether somebody else holds the lock. Asking takes a shared lock for an instant.
fn is_locked(file: &File) -> io::Result<bool> {
    match file.try_lock_shared() {
        Ok(()) => file.unlock().map(|()| false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// A last look before signals are sent: is it this program at all?
fn is_pflex(pid: i32) -> bool {
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let program = command.split(|byte| *byte == 0).next().unwrap_or_default();
    let name = Path::new(std::str::from_utf8(program).unwrap_or_default()).file_name().unwrap_or_default();
    name.to_string_lossy().starts_with("pflex")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_daemon_is_refused_and_names_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        let first = PidFile::take(&path).unwrap();
        let failure = PidFile::take(&path).unwrap_err();
        assert_eq!(failure.exit(), Exit::Conflict);
        assert!(failure.to_string().contains(&format!("as pid {}", std::process::id())), "{failure}");
        drop(first);
        PidFile::take(&path).unwrap();
    }

    #[test]
    fn a_stale_pid_is_not_trusted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        assert!(Running::find(&path).unwrap().is_none(), "no file");
        // This very process is alive, but does not hold the lock: the number in the file is history.
        std::fs::write(&path, std::process::id().to_string()).unwrap();
        assert!(Running::find(&path).unwrap().is_none(), "an unlocked file");
    }

    #[test]
    fn the_holder_of_the_lock_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        let _held = PidFile::take(&path).unwrap();
        // Test binaries are named pflex-<hash>.
        let running = Running::find(&path).unwrap().unwrap();
        assert_eq!(running.pid(), std::process::id() as i32);
        assert!(!running.wait(Duration::ZERO).unwrap(), "it has not ended");
    }
}
