//! The configuration of an SDS: as written in its file, and as checked.

use std::path::PathBuf;

use pflex_common::{net::Endpoint, registration::is_legal_name};
use serde::{Deserialize, Serialize};

/// As written. Only `name`, `mdm`, `data_dir` and one device have no default.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ConfigFile {
    /// The name it was created under (`pflex sds add NAME`).
    pub name: String,
    /// MDMs, host:port.
    pub mdm: Vec<Endpoint>,
    /// Where `sds_local.db` and its identity are.
    pub data_dir: PathBuf,
    /// Data plane.
    #[serde(default = "default_data")]
    pub data: Endpoint,
    /// Control plane.
    #[serde(default = "default_control")]
    pub control: Endpoint,
    /// Management plane.
    #[serde(default = "default_management")]
    pub management: Endpoint,
    /// Its devices.
    #[serde(default)]
    pub device: Vec<DeviceFile>,
}

/// A device as written.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceFile {
    /// A file, made and formatted if it does not exist, or a raw block device.
    pub path: PathBuf,
    /// Bytes of a file that is made; ignored where there is one.
    #[serde(default = "default_size_bytes")]
    pub size_bytes: u64,
    /// Bytes of its journal when it is formatted. By default a 64th of the device, at least 64 MiB and at most 1 GiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub journal_bytes: Option<u64>,
    /// The pool it is for; empty is the first one of the server's domain. Counts when the device is first seen.
    #[serde(default)]
    pub pool: String,
    /// Take all of a file's space when it is made, so that it cannot run out later.
    #[serde(default)]
    pub preallocate: bool,
    /// Take a file's space only as blocks are written. By default a chunk's whole megabyte is taken before its first
    /// write is acknowledged; without that a full file system takes the device out of service.
    #[serde(default)]
    pub sparse: bool,
    /// Format a raw block device that is blank, so that a new disk comes into use at the next start. One that holds
    /// anything is never formatted.
    #[serde(default)]
    pub format_if_blank: bool,
}

fn default_data() -> Endpoint {
    Endpoint::new("127.0.0.1", 9700)
}

fn default_control() -> Endpoint {
    Endpoint::new("127.0.0.1", 9100)
}

fn default_management() -> Endpoint {
    Endpoint::new("127.0.0.1", 9200)
}

const fn default_size_bytes() -> u64 {
    16 << 30
}

/// Smaller devices could not hold their journal and a few chunks.
const LEAST_SIZE_BYTES: u64 = 256 << 20;
/// Each has a thread; PowerFlex documents as many.
const MOST_DEVICES: usize = 64;

/// As checked.
#[derive(Clone, Debug)]
pub struct SdsConfig {
    pub(crate) name: String,
    pub(crate) mdm: Vec<Endpoint>,
    pub(crate) data_dir: PathBuf,
    pub(crate) data: Endpoint,
    pub(crate) control: Endpoint,
    pub(crate) management: Endpoint,
    pub(crate) devices: Vec<DeviceFile>,
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
    /// Nothing to store on, or more than there can be.
    #[error("there are {0} `[[device]]` entries; give 1 to {MOST_DEVICES}")]
    Devices(usize),
    /// A device too small for anything.
    #[error("device {path} has `size_bytes` {size}; give at least {LEAST_SIZE_BYTES}")]
    TooSmall {
        /// Which.
        path: PathBuf,
        /// As written.
        size: u64,
    },
    /// The same path twice.
    #[error("device {0} is listed twice; remove one")]
    Twice(PathBuf),
}

impl ConfigFile {
    /// Checks it.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn validate(self) -> Result<SdsConfig, ConfigError> {
        if self.mdm.is_empty() {
            return Err(ConfigError::NoMdm);
        }
        if !is_legal_name(&self.name) {
            return Err(ConfigError::Name(self.name));
        }
        if self.device.is_empty() || self.device.len() > MOST_DEVICES {
            return Err(ConfigError::Devices(self.device.len()));
        }
        for (index, device) in self.device.iter().enumerate() {
            if device.size_bytes < LEAST_SIZE_BYTES {
                return Err(ConfigError::TooSmall { path: device.path.clone(), size: device.size_bytes });
            }
            if self.device[..index].iter().any(|earlier| earlier.path == device.path) {
                return Err(ConfigError::Twice(device.path.clone()));
            }
        }
        Ok(SdsConfig {
            name: self.name,
            mdm: self.mdm,
            data_dir: self.data_dir,
            data: self.data,
            control: self.control,
            management: self.management,
            devices: self.device,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(path: &str) -> DeviceFile {
        DeviceFile {
            path: path.into(),
            size_bytes: 1 << 30,
            journal_bytes: None,
            pool: String::new(),
            preallocate: false,
            sparse: false,
            format_if_blank: false,
        }
    }

    fn file() -> ConfigFile {
        ConfigFile {
            name: "sds1".into(),
            mdm: vec![Endpoint::new("127.0.0.1", 8001)],
            data_dir: "/tmp/x".into(),
            data: default_data(),
            control: default_control(),
            management: default_management(),
            device: vec![device("/tmp/x/device0")],
        }
    }

    #[test]
    fn each_mistake_is_named() {
        assert!(file().validate().is_ok());
        assert!(matches!(ConfigFile { mdm: vec![], ..file() }.validate(), Err(ConfigError::NoMdm)));
        assert!(matches!(ConfigFile { name: "a b".into(), ..file() }.validate(), Err(ConfigError::Name(_))));
        assert!(matches!(ConfigFile { device: vec![], ..file() }.validate(), Err(ConfigError::Devices(0))));
        let small = DeviceFile { size_bytes: 4096, ..device("/d") };
        assert!(matches!(ConfigFile { device: vec![small], ..file() }.validate(), Err(ConfigError::TooSmall { .. })));
        let twice = vec![device("/d"), device("/d")];
        assert!(matches!(ConfigFile { device: twice, ..file() }.validate(), Err(ConfigError::Twice(_))));
    }
}
