//! Whether a port is free, and who has it if not. `up` looks before it starts anything, so that a taken port leaves
//! nothing half-started; the daemon's own bind decides all the same.

use std::{
    fs, io,
    net::{SocketAddr, TcpListener},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use pflex_common::net::Endpoint;

use super::layout::Process;
use crate::error::{Exit, Failure};

/// How long the kernel may take to tear a killed process down.
const DYING: Duration = Duration::from_secs(3);
const DYING_PERIOD: Duration = Duration::from_millis(20);
/// `LISTEN` in `/proc/net/tcp`.
const LISTEN_STATE: &str = "0A";

/// Fails with the port and, where the system tells, the process that has it.
pub(super) fn check_free(process: Process, plane: &str, endpoint: &Endpoint) -> Result<(), Failure> {
    let what = || format!("{process}: {plane} port {endpoint}");
    let address: SocketAddr =
        endpoint.to_string().parse().map_err(|_| Failure::new(Exit::Usage, format!("{} is no address", what())))?;
    match bind(address) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let owner = owner(address.port()).map_or(String::new(), |owner| format!(" by {owner}"));
            Err(Failure::new(Exit::Conflict, format!("{} is taken{owner}", what()))
                .remedy("stop that process, or choose other ports with --port-offset"))
        }
        Err(error) => Err(Failure::io(format!("{} cannot be used", what()), error)),
    }
}

/// A process that was killed this moment may still have its ports: it belongs to nobody by now, and they are free soon.
fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let started = Instant::now();
    loop {
        match TcpListener::bind(address) {
            Err(error)
                if error.kind() == io::ErrorKind::AddrInUse
                    && owner(address.port()).is_none()
                    && started.elapsed() < DYING =>
            {
                thread::sleep(DYING_PERIOD);
            }
            bound => return bound,
        }
    }
}

/// "qemu-nbd (pid 1234)": the process that listens on a port, as far as this user may see.
fn owner(port: u16) -> Option<String> {
    let inodes: Vec<String> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|table| fs::read_to_string(table).ok())
        .flat_map(|table| listening_inodes(&table, port))
        .collect();
    let holds = |pid: &Path| {
        fs::read_dir(pid.join("fd")).into_iter().flatten().flatten().any(|fd| {
            let target = fs::read_link(fd.path()).unwrap_or_default();
            inodes.iter().any(|inode| target.as_os_str() == format!("socket:[{inode}]").as_str())
        })
    };
    let mut processes = fs::read_dir("/proc").ok()?.flatten().map(|entry| entry.path());
    let pid = processes.find(|path| is_pid(path) && holds(path))?;
    let name = fs::read_to_string(pid.join("comm")).unwrap_or_default();
    Some(format!("{} (pid {})", name.trim(), pid.file_name()?.display()))
}

fn is_pid(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().bytes().all(|byte| byte.is_ascii_digit()))
}

/// The socket inodes that listen on `port`, from a table of proc(5): local address is the second column, state the fourth,
/// inode the tenth.
fn listening_inodes(table: &str, port: u16) -> Vec<String> {
    let suffix = format!(":{port:04X}");
    let inode = |line: &str| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let listens = columns.get(1)?.ends_with(&suffix) && *columns.get(3)? == LISTEN_STATE;
        listens.then(|| columns.get(9).map(ToString::to_string)).flatten()
    };
    table.lines().skip(1).filter_map(inode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::layout::Kind;

    #[test]
    fn a_taken_port_names_the_process_that_has_it() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = Endpoint::new("127.0.0.1", listener.local_addr().unwrap().port());
        let process = Process { kind: Kind::Sds, index: 1 };
        let failure = check_free(process, "data", &endpoint).unwrap_err();
        assert_eq!(failure.exit(), Exit::Conflict);
        let line = failure.to_string();
        assert!(line.starts_with(&format!("sds1: data port {endpoint} is taken by ")), "{line}");
        assert!(line.contains(&format!("(pid {})", std::process::id())), "{line}");
        drop(listener);
        check_free(process, "data", &endpoint).unwrap();
    }

    #[test]
    fn only_listening_sockets_count() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
                     0: 0100007F:1F41 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000 0 4242 1\n   \
                     1: 0100007F:1F41 0100007F:9999 01 00000000:00000000 00:00000000 00000000  1000 0 4243 1\n";
        assert_eq!(listening_inodes(table, 8001), ["4242"]);
        assert!(listening_inodes(table, 8002).is_empty());
    }
}
