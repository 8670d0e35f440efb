//! How fast a pool's copies are filled, and what space is kept for that (ARCHITECTURE section 6): an operator's choice,
//! kept by the MDM, carried out by each device for itself.

use std::fmt;

use crate::{pb, pg::MalformedMessage};

/// What filling copies may take from applications.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum RebuildMode {
    /// As fast as it goes.
    Unlimited,
    /// Never more than the limits.
    Limit,
    /// The limits hold while applications use the device.
    #[default]
    FavorAppIo,
}

impl RebuildMode {
    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unlimited => "unlimited",
            Self::Limit => "limit",
            Self::FavorAppIo => "favor-app-io",
        }
    }
}

impl RebuildMode {
    /// In persisted formats, and in the protobuf.
    pub const fn number(self) -> u32 {
        match self {
            Self::Unlimited => 1,
            Self::Limit => 2,
            Self::FavorAppIo => 3,
        }
    }

    /// Of [`Self::number`].
    pub const fn from_number(number: u32) -> Option<Self> {
        match number {
            1 => Some(Self::Unlimited),
            2 => Some(Self::Limit),
            3 => Some(Self::FavorAppIo),
            _ => None,
        }
    }
}

impl fmt::Display for RebuildMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A pool's policy. The limits are those of one device that fills copies of others; a copy that is filled from several
/// devices gets the sum.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RebuildPolicy {
    /// When the limits hold.
    pub mode: RebuildMode,
    /// Bytes a second that a device sends to copies it fills; 0: no such limit.
    pub bytes_per_second: u64,
    /// Chunks of 1 MiB that a device copies at once, over all its groups.
    pub concurrency: u32,
    /// Nothing is copied until it is resumed.
    pub paused: bool,
    /// Of each device's space so much is kept for copies that lose their place: clients get none of it.
    pub spare_percent: u32,
}

impl RebuildPolicy {
    /// No device copies more at once.
    pub const MAX_CONCURRENCY: u32 = 64;
    /// No more of a device is kept.
    pub const MAX_SPARE_PERCENT: u32 = 50;
    /// The least limit: below, a chunk would take longer than anybody waits for one.
    pub const LEAST_BYTES_PER_SECOND: u64 = 1 << 20;
}

impl Default for RebuildPolicy {
    fn default() -> Self {
        Self {
            mode: RebuildMode::FavorAppIo,
            bytes_per_second: 32 << 20,
            concurrency: 1,
            paused: false,
            spare_percent: 10,
        }
    }
}

impl TryFrom<i32> for RebuildMode {
    type Error = MalformedMessage;

    fn try_from(mode: i32) -> Result<Self, MalformedMessage> {
        let number = u32::try_from(mode).unwrap_or(u32::MAX);
        Self::from_number(number).ok_or(MalformedMessage::Value { field: "rebuild.mode", value: number.into() })
    }
}

impl From<RebuildPolicy> for pb::RebuildPolicy {
    fn from(policy: RebuildPolicy) -> Self {
        let RebuildPolicy { mode, bytes_per_second, concurrency, paused, spare_percent } = policy;
        Self { mode: mode.number() as i32, bytes_per_second, concurrency, paused, spare_percent }
    }
}

impl TryFrom<pb::RebuildPolicy> for RebuildPolicy {
    type Error = MalformedMessage;

    fn try_from(policy: pb::RebuildPolicy) -> Result<Self, MalformedMessage> {
        let pb::RebuildPolicy { mode, bytes_per_second, concurrency, paused, spare_percent } = policy;
        Ok(Self { mode: mode.try_into()?, bytes_per_second, concurrency: concurrency.max(1), paused, spare_percent })
    }
}
