//! The configuration of an SDC: as written in its file, and as checked.

use std::path::PathBuf;
use std::time::Duration;

use pflex_common::net::Endpoint;
use pflex_common::registration::is_legal_name;
use serde::{Deserialize, Serialize};

use crate::nbd::BUSY_POLL_US;

/// As written. Only `mdm` has no default: everything else comes from the discovery registry (ARCHITECTURE section 2).
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ConfigFile {
    /// The name it registers with.
    #[serde(default = "default_name")]
    pub name: String,
    /// MDMs, host:port.
    pub mdm: Vec<Endpoint>,
    /// Where it keeps its identity.
    pub data_dir: PathBuf,
    /// NBD over TCP.
    #[serde(default = "default_nbd")]
    pub nbd: Endpoint,
    /// NBD over a unix socket; none by default.
    #[serde(default)]
    pub nbd_socket: Option<PathBuf>,
    /// TLS on the TCP port; none by default, and then anybody who reaches it is served in plain text.
    #[serde(default)]
    pub nbd_tls: Option<NbdTls>,
    /// Control plane.
    #[serde(default = "default_control")]
    pub control: Endpoint,
    /// Management plane.
    #[serde(default = "default_management")]
    pub management: Endpoint,
    /// An IO that could not be done in this many seconds fails with EIO.
    #[serde(default = "default_io_deadline_s")]
    pub io_deadline_s: u64,
    /// Threads of block IO; 0 is a half of the processors, 4 at most.
    #[serde(default)]
    pub data_threads: usize,
    /// How long, in microseconds, a thread of block IO looks for the next request of a client before it sleeps. 0 is never:
    /// that saves processor time, and costs a wake-up for each request at depth 1.
    #[serde(default = "default_busy_poll_us")]
    pub busy_poll_us: u64,
}

/// TLS for NBD: what comes by TCP must speak it (FORCEDTLS of the protocol document).
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct NbdTls {
    /// A directory with `ca-cert.pem`, `server-cert.pem` and `server-key.pem`.
    pub certificates: PathBuf,
    /// Whether clients must show a certificate that the authority signed. If not, whoever reaches the port is served.
    #[serde(default = "default_verify_clients")]
    pub verify_clients: bool,
}

const fn default_verify_clients() -> bool {
    true
}

fn default_name() -> String {
    "sdc1".to_owned()
}

fn default_control() -> Endpoint {
    Endpoint::new("127.0.0.1", 8003)
}

fn default_management() -> Endpoint {
    Endpoint::new("127.0.0.1", 8004)
}

fn default_nbd() -> Endpoint {
    Endpoint::new("127.0.0.1", 8005)
}

const fn default_io_deadline_s() -> u64 {
    120
}

const fn default_busy_poll_us() -> u64 {
    BUSY_POLL_US
}

/// The most threads that are taken without being asked for.
const MOST_THREADS_UNASKED: usize = 4;
/// The most that can be asked for.
const MOST_THREADS: usize = 64;
/// Longer than any request takes that a client sends as soon as it has its answer; more would only burn the processor.
const MOST_BUSY_POLL_US: u64 = 10_000;
/// The longest path of a unix socket on Linux.
const MOST_SOCKET_PATH: usize = 107;

/// As checked.
#[derive(Clone, Debug)]
pub struct SdcConfig {
    /// The name it registers with.
    pub name: String,
    /// MDMs; at least one.
    pub mdm: Vec<Endpoint>,
    /// Where it keeps its identity.
    pub data_dir: PathBuf,
    /// NBD over TCP.
    pub nbd: Endpoint,
    /// NBD over a unix socket.
    pub nbd_socket: Option<PathBuf>,
    /// TLS on the TCP port.
    pub nbd_tls: Option<NbdTls>,
    /// Control plane.
    pub control: Endpoint,
    /// Management plane.
    pub management: Endpoint,
    /// When an IO fails with EIO.
    pub io_deadline: Duration,
    /// Threads of block IO; at least one.
    pub data_threads: usize,
    /// How long a client's next request is looked for before its task sleeps.
    pub busy_poll: Duration,
}

/// What is wrong with a configuration: what, which, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Nobody to ask.
    #[error("`mdm` is empty; give at least one HOST:PORT")]
    NoMdm,
    /// A name that cannot be one.
    #[error("`name` is {0:?}; use 1 to 63 letters, digits, `-`, `_` or `.`, the first a letter or digit")]
    Name(String),
    /// No time at all.
    #[error("`io_deadline_s` is 0; give at least 1")]
    NoDeadline,
    /// More threads than make sense.
    #[error("`data_threads` is {0}; at most {MOST_THREADS}")]
    Threads(usize),
    /// A thread that never sleeps.
    #[error("`busy_poll_us` is {0}; at most {MOST_BUSY_POLL_US}")]
    BusyPoll(u64),
    /// A path that no socket can have.
    #[error("`nbd_socket` has {0} bytes; a unix socket's path has at most {MOST_SOCKET_PATH}")]
    SocketPath(usize),
}

impl ConfigFile {
    /// Checks it.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn validate(self) -> Result<SdcConfig, ConfigError> {
        if self.mdm.is_empty() {
            return Err(ConfigError::NoMdm);
        }
        if !is_legal_name(&self.name) {
            return Err(ConfigError::Name(self.name));
        }
        if self.io_deadline_s == 0 {
            return Err(ConfigError::NoDeadline);
        }
        if self.data_threads > MOST_THREADS {
            return Err(ConfigError::Threads(self.data_threads));
        }
        if self.busy_poll_us > MOST_BUSY_POLL_US {
            return Err(ConfigError::BusyPoll(self.busy_poll_us));
        }
        let path_length = self.nbd_socket.as_ref().map_or(0, |path| path.as_os_str().len());
        if path_length > MOST_SOCKET_PATH {
            return Err(ConfigError::SocketPath(path_length));
        }
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let unasked = (processors / 2).clamp(1, MOST_THREADS_UNASKED);
        Ok(SdcConfig {
            name: self.name,
            mdm: self.mdm,
            data_dir: self.data_dir,
            nbd: self.nbd,
            nbd_socket: self.nbd_socket,
            nbd_tls: self.nbd_tls,
            control: self.control,
            management: self.management,
            io_deadline: Duration::from_secs(self.io_deadline_s),
            data_threads: if self.data_threads == 0 { unasked } else { self.data_threads },
            busy_poll: Duration::from_micros(self.busy_poll_us),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(json: serde_json::Value) -> ConfigFile {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn a_list_of_mdms_and_a_directory_are_enough() {
        let config = file(serde_json::json!({"mdm": ["127.0.0.1:8001"], "data_dir": "/tmp/x"})).validate().unwrap();
        assert_eq!((config.name.as_str(), config.nbd.port(), config.io_deadline.as_secs()), ("sdc1", 8005, 120));
        assert!(config.data_threads >= 1);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let wrong = |json| file(json).validate().unwrap_err().to_string();
        assert!(wrong(serde_json::json!({"mdm": [], "data_dir": "x"})).contains("`mdm` is empty"));
        assert!(wrong(serde_json::json!({"mdm": ["h:1"], "data_dir": "x", "name": "a b"})).contains("\"a b\""));
        assert!(
            wrong(serde_json::json!({"mdm": ["h:1"], "data_dir": "x", "io_deadline_s": 0})).contains("io_deadline_s")
        );
        let unknown = serde_json::json!({"mdm": ["h:1"], "data_dir": "x", "nbdd": "h:1"});
        assert!(serde_json::from_value::<ConfigFile>(unknown).unwrap_err().to_string().contains("nbdd"));
    }
}
