//! Scrubs of pools, and what devices say of faults of their disks.

use pflex_proto::ids::{Incarnation, LogTime};

use super::Moment;

/// The last scrub of a pool: every chunk read on every copy, and the copies compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PoolScrub {
    /// Its number; rises.
    pub pass: u64,
    /// When it was ordered.
    pub started: Moment,
    /// When every device had done its part; none while it runs.
    pub ended: Option<Moment>,
    /// What it found; nothing while it runs.
    pub found: ScrubFound,
}

/// What a scrub found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ScrubFound {
    /// Chunks that were compared.
    pub chunks: u64,
    /// Blocks that some copy could not read.
    pub bad_blocks: u64,
    /// Sound copies that differed (I4).
    pub mismatches: u64,
    /// Chunks of which something cannot be read on any copy.
    pub unreadable_chunks: u64,
}

impl PoolScrub {
    /// Whether it is under way.
    pub const fn runs(&self) -> bool {
        self.ended.is_none()
    }
}

/// Faults that one life of a device has counted, as far as they were noted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DeviceFaults {
    /// Which life.
    pub incarnation: Incarnation,
    /// Blocks that could not be read and came back from another copy.
    pub repaired_blocks: u64,
    /// Blocks that could be read on no copy, each time one was asked for.
    pub unreadable_blocks: u64,
    /// Blocks that its scrubs found unreadable on whichever copy.
    pub scrub_bad_blocks: u64,
    /// Sound copies that its scrubs found to differ (I4).
    pub scrub_mismatches: u64,
    /// When this was noted.
    pub noted: LogTime,
}

impl DeviceFaults {
    /// What this life has counted since `before`; all of it if that was another life.
    #[must_use]
    pub fn since(&self, before: Option<&Self>) -> Self {
        let none = Self::default();
        let before = before.filter(|before| before.incarnation == self.incarnation).unwrap_or(&none);
        Self {
            repaired_blocks: self.repaired_blocks.saturating_sub(before.repaired_blocks),
            unreadable_blocks: self.unreadable_blocks.saturating_sub(before.unreadable_blocks),
            scrub_bad_blocks: self.scrub_bad_blocks.saturating_sub(before.scrub_bad_blocks),
            scrub_mismatches: self.scrub_mismatches.saturating_sub(before.scrub_mismatches),
            ..*self
        }
    }

    /// Whether anything was counted.
    pub const fn any(&self) -> bool {
        self.repaired_blocks + self.unreadable_blocks + self.scrub_bad_blocks + self.scrub_mismatches > 0
    }

    /// Data is lost, or a rule of the system was broken.
    pub const fn is_critical(&self) -> bool {
        self.unreadable_blocks + self.scrub_mismatches > 0
    }

    /// For people, as the end of a sentence about the device.
    pub fn words(&self) -> String {
        let of = |count: u64, what: &str| (count > 0).then(|| format!("{count} {what}"));
        let said = [
            of(
                self.unreadable_blocks,
                "reads of blocks that no copy can read: their data is lost unless it is written again",
            ),
            of(self.scrub_mismatches, "copies differed although each was sound, and were made equal to the primary's"),
            of(self.repaired_blocks, "blocks could not be read and were put back from another copy"),
            of(self.scrub_bad_blocks, "unreadable blocks found by a scrub of the groups it leads"),
        ];
        said.into_iter().flatten().collect::<Vec<_>>().join("; ")
    }
}
