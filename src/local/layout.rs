//! Where the processes of a local cluster live: names, directories and ports. Pure.
//!
//! Process directories count from 0 (`mdm0`, `sds2`, `sdc0`), cluster objects from 1 (MDM id 1, `sds3`, `sdc1`). Ports are
//! those of ARCHITECTURE section 2 plus the offset.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use pflex_common::net::Endpoint;

use crate::error::{Exit, Failure};

/// All listen here: the cluster of `up` is for one host, and nothing of it is encrypted yet.
pub(crate) const HOST: &str = "127.0.0.1";
/// An SDS's ports run from 9100, 9200 and 9700 on, and an SDC's and MDM's up to 9099: more would collide.
pub(super) const MOST_SERVERS: u32 = 100;
/// As for servers.
pub(super) const MOST_CLIENTS: u32 = 100;
/// The highest port of the scheme; the offset must leave room for it.
const HIGHEST_PORT: u16 = 9_799;
/// The largest offset that keeps all ports valid.
pub(super) const MOST_OFFSET: u16 = u16::MAX - HIGHEST_PORT;

/// What a process is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Kind {
    Mdm,
    Sds,
    Sdc,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mdm => "mdm",
            Self::Sds => "sds",
            Self::Sdc => "sdc",
        })
    }
}

/// One process of the cluster.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Process {
    pub(crate) kind: Kind,
    /// From 0.
    pub(crate) index: u32,
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.kind, self.index)
    }
}

/// How many of each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Counts {
    pub(super) mdm: u32,
    pub(super) sds: u32,
    pub(super) sdc: u32,
}

impl Counts {
    /// All processes, in the order they are started.
    pub(super) fn processes(self) -> Vec<Process> {
        let of = |kind, count| (0..count).map(move |index| Process { kind, index });
        of(Kind::Mdm, self.mdm).chain(of(Kind::Sds, self.sds)).chain(of(Kind::Sdc, self.sdc)).collect()
    }
}

/// Files and ports of a cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Layout {
    dir: PathBuf,
    port_offset: u16,
}

impl Layout {
    /// `port_offset` was checked against [`MOST_OFFSET`].
    pub(super) fn new(dir: PathBuf, port_offset: u16) -> Self {
        Self { dir, port_offset }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn process_dir(&self, process: Process) -> PathBuf {
        self.dir.join(process.to_string())
    }

    pub(super) fn config_file(&self, process: Process) -> PathBuf {
        self.process_dir(process).join("config.toml")
    }

    pub(super) fn pid_file(&self, process: Process) -> PathBuf {
        self.process_dir(process).join("pid")
    }

    pub(super) fn log_file(&self, process: Process) -> PathBuf {
        self.process_dir(process).join("log")
    }

    pub(super) fn data_dir(&self, process: Process) -> PathBuf {
        self.process_dir(process).join("data")
    }

    /// A device of an SDS: a sparse file.
    pub(super) fn device_file(&self, process: Process, number: u32) -> PathBuf {
        self.process_dir(process).join(format!("device{number}"))
    }

    /// The unix socket of an SDC's NBD server.
    pub(super) fn nbd_socket(&self, process: Process) -> PathBuf {
        self.process_dir(process).join("nbd.sock")
    }

    /// The ports of a process, with what each is for.
    pub(super) fn ports(&self, process: Process) -> Vec<(&'static str, Endpoint)> {
        let spread: &[(&'static str, u16, u16)] = match process.kind {
            Kind::Mdm => &[("client API", 8001, 10), ("Raft", 8002, 10)],
            Kind::Sds => &[("data", 9700, 1), ("control", 9100, 1), ("management", 9200, 1)],
            Kind::Sdc => &[("control", 8003, 10), ("management", 8004, 10), ("NBD", 8005, 10)],
        };
        let port = |base: u16, step: u16| base + step * process.index as u16 + self.port_offset;
        spread.iter().map(|(plane, base, step)| (*plane, Endpoint::new(HOST, port(*base, *step)))).collect()
    }

    /// One port of a process. Asking for a plane the kind does not have is a bug here.
    pub(super) fn port(&self, process: Process, plane: &str) -> Endpoint {
        let ports = self.ports(process);
        let found = ports.into_iter().find(|(name, _)| *name == plane);
        found.map(|(_, endpoint)| endpoint).expect("callers name planes that this kind has")
    }

    /// The client API of each MDM.
    pub(super) fn mdm_members(&self, count: u32) -> Vec<Endpoint> {
        (0..count).map(|index| self.port(Process { kind: Kind::Mdm, index }, "client API")).collect()
    }

    /// The NBD URI of a volume at the first client.
    pub(super) fn nbd_uri(&self, volume: &str) -> String {
        format!("nbd://{}/{volume}", self.port(Process { kind: Kind::Sdc, index: 0 }, "NBD"))
    }
}

/// Refuses counts that cannot be served.
pub(super) fn check_counts(counts: Counts) -> Result<Counts, Failure> {
    let usage = |what: String, remedy: &str| Err(Failure::new(Exit::Usage, what).remedy(remedy));
    if ![1, 3, 5].contains(&counts.mdm) {
        return usage(format!("--mdm {}: a quorum has 1, 3 or 5 members", counts.mdm), "give one of these");
    }
    if counts.sds == 0 || counts.sds > MOST_SERVERS {
        return usage(format!("--sds {}: a local cluster has 1 to {MOST_SERVERS} servers", counts.sds), "give fewer");
    }
    if counts.sdc > MOST_CLIENTS {
        return usage(
            format!("--sdc {}: a local cluster has at most {MOST_CLIENTS} clients", counts.sdc),
            "give fewer",
        );
    }
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const LARGEST: Counts = Counts { mdm: 5, sds: MOST_SERVERS, sdc: MOST_CLIENTS };

    #[test]
    fn ports_are_those_of_the_architecture() {
        let layout = Layout::new("/d".into(), 0);
        let ports =
            |kind, index| layout.ports(Process { kind, index }).iter().map(|(_, at)| at.port()).collect::<Vec<_>>();
        assert_eq!(ports(Kind::Mdm, 2), [8021, 8022]);
        assert_eq!(ports(Kind::Sds, 1), [9701, 9101, 9201]);
        assert_eq!(ports(Kind::Sdc, 0), [8003, 8004, 8005]);
        assert_eq!(layout.nbd_uri("demo"), "nbd://127.0.0.1:8005/demo");
    }

    #[test]
    fn no_two_processes_share_a_port_and_the_offset_fits() {
        let layout = Layout::new("/d".into(), MOST_OFFSET);
        let all: Vec<_> = LARGEST.processes().into_iter().flat_map(|process| layout.ports(process)).collect();
        let distinct: BTreeSet<_> = all.iter().map(|(_, endpoint)| endpoint.port()).collect();
        assert_eq!(all.len(), distinct.len());
        assert_eq!(distinct.last(), Some(&u16::MAX));
    }

    #[test]
    fn names_count_from_zero() {
        let counts = Counts { mdm: 1, sds: 2, sdc: 1 };
        let names: Vec<_> = counts.processes().iter().map(ToString::to_string).collect();
        assert_eq!(names, ["mdm0", "sds0", "sds1", "sdc0"]);
    }

    #[test]
    fn impossible_counts_are_usage_errors() {
        assert!(check_counts(LARGEST).is_ok());
        for (mdm, sds, sdc) in [(2, 3, 1), (0, 3, 1), (3, 0, 1), (3, 101, 1), (3, 3, 101)] {
            assert_eq!(check_counts(Counts { mdm, sds, sdc }).unwrap_err().exit(), Exit::Usage);
        }
    }
}
