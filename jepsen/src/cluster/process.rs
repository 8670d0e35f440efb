//! Finding and signalling one process of the cluster, and never another.

use std::{fmt, fs, io, os::fd::OwnedFd, path::Path, time::Duration};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};

/// What a process is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Role {
    /// Metadata manager.
    Mdm,
    /// Storage server.
    Sds,
    /// Client, with the NBD server.
    Sdc,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mdm => "mdm",
            Self::Sds => "sds",
            Self::Sdc => "sdc",
        })
    }
}

/// One process, by its directory's name: counted from 0, as `up` counts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Process {
    /// What it is.
    pub role: Role,
    /// Which of them.
    pub index: u32,
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.role, self.index)
    }
}

/// A process that ran when looked at; refers to it and never to a later one with its number.
#[derive(Debug)]
pub struct Running {
    handle: OwnedFd,
}

impl Running {
    /// The process that wrote `pid_file`, if it runs with `config` on its command line. A dead one has no command line,
    /// even if nobody has waited for it yet.
    pub fn find(pid_file: &Path, config: &Path) -> Option<Self> {
        let pid: i32 = fs::read_to_string(pid_file).ok()?.trim().parse().ok()?;
        let handle = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
        // Looked at after the handle was taken: if it is ours now, so is what the handle refers to.
        let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let config = config.as_os_str().as_encoded_bytes();
        command.split(|byte| *byte == 0).any(|word| word == config).then_some(Self { handle })
    }

    /// Sends a signal; to a process that has ended it is nothing.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(&self.handle, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until it has ended; returns whether it did.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn wait(&self, limit: Duration) -> io::Result<bool> {
        let timeout = Timespec { tv_sec: limit.as_secs() as i64, tv_nsec: limit.subsec_nanos().into() };
        loop {
            match poll(&mut [PollFd::new(&self.handle, PollFlags::IN)], Some(&timeout)) {
                Ok(ready) => return Ok(ready > 0),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;

    /// `sleep` with a further argument that stands for a configuration file.
    fn sleeper(config: &Path) -> Child {
        Command::new("sh").args(["-c", "read line"]).arg(config).stdin(std::process::Stdio::piped()).spawn().unwrap()
    }

    #[test]
    fn only_the_process_with_that_configuration_is_found_and_it_dies() {
        let dir = tempfile::tempdir().unwrap();
        let (config, pid_file) = (dir.path().join("config.toml"), dir.path().join("pid"));
        assert!(Running::find(&pid_file, &config).is_none(), "no pid file");
        let mut child = sleeper(&config);
        fs::write(&pid_file, format!("{}\n", child.id())).unwrap();
        assert!(Running::find(&pid_file, &dir.path().join("other")).is_none(), "somebody else's number");
        // It shows its command line a moment after it was spawned.
        let found = std::iter::repeat_with(|| Running::find(&pid_file, &config)).flatten().next().expect("endless");
        assert!(!found.wait(Duration::ZERO).unwrap());
        found.signal(Signal::KILL).unwrap();
        assert!(found.wait(Duration::from_secs(60)).unwrap());
        assert!(Running::find(&pid_file, &config).is_none(), "dead, though nobody has waited for it");
        child.wait().unwrap();
        found.signal(Signal::KILL).unwrap();
    }
}
