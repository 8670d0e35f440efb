//! What an operator may tune while the cluster runs: each a number with a default and bounds.

use std::collections::BTreeMap;

/// Declares the settings once: key, unit, default, bounds, meaning.
macro_rules! settings {
    ($($setting:ident = $key:literal, $default:literal, $least:literal..=$most:literal, $what:literal;)*) => {
        /// One tunable number.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        pub enum Setting {
            $(#[doc = $what] $setting,)*
        }

        impl Setting {
            /// Every setting.
            pub const ALL: &'static [Self] = &[$(Self::$setting),*];

            /// Its name, with its unit at the end. Part of the format: never renamed.
            pub const fn key(self) -> &'static str {
                match self { $(Self::$setting => $key,)* }
            }

            /// What holds until it is changed.
            pub const fn default(self) -> u64 {
                match self { $(Self::$setting => $default,)* }
            }

            /// The least and the most it may be.
            pub const fn bounds(self) -> (u64, u64) {
                match self { $(Self::$setting => ($least, $most),)* }
            }

            /// What it does, for people.
            pub const fn what(self) -> &'static str {
                match self { $(Self::$setting => $what,)* }
            }
        }
    };
}

settings! {
    // No safety hangs on silence: who takes over waits out leases (S6). A proof ends that wait, together with what the
    // copy that takes over has seen itself (S8).
    LivenessSilence = "liveness.silence_ms", 3_000, 1_000..=60_000,
        "an SDS not heard for this long is lost, and so long a new leader waits before it judges";
    LivenessRefused = "liveness.refused_ms", 100, 50..=10_000,
        "a broken stream and a refused connection are believed after this long";
    ProofOfDeath = "liveness.proof_of_death", 1, 0..=1,
        "1: closed connections and refused new ones prove an SDS dead; 0: only silence counts (firewalls that refuse)";
    DeviceStall = "liveness.device_stall_ms", 5_000, 1_000..=120_000,
        "a device whose IO waits and does not progress for this long is lost";
    HealthStale = "health.stale_ms", 30_000, 10_000..=600_000,
        "a component whose last health report is this old is STALE";
    HealthDown = "health.down_ms", 60_000, 20_000..=3_600_000,
        "a component whose last health report is this old is DOWN";
    ClockTolerance = "clock.tolerance_ms", 2_000, 0..=3_600_000,
        "a component whose wall clock differs from the leader's by more is told of, and nothing else; 0: by any";
    HealthSample = "health.sample_ms", 60_000, 0..=3_600_000,
        "how often health and sums are recorded (10 s at least); 0 records nothing";
    ReadmissionMost = "readmission.most_ms", 300_000, 0..=3_600_000,
        "how long a server or device that keeps failing is kept out at most (S23); 0 takes it back at once";
    RebuildDelay = "rebuild.delay_ms", 600_000, 0..=604_800_000,
        "copies on a device that is out of service for this long get a new home";
    ScrubInterval = "scrub.interval_s", 604_800, 0..=31_536_000,
        "every chunk of a pool is read on every copy and compared this often; 0: only when an operator asks for it";
    ScrubRate = "scrub.rate_mib_s", 8, 0..=10_000,
        "how fast each device reads for a scrub of the groups that it leads; 0: as fast as it can";
    LeadReturn = "lead.return_ms", 5_000, 0..=86_400_000,
        "a device gets leads, and copies of others, once in service for this long, and once more for each loss in the hour";
    SdcApproval = "sdc.approval", 0, 0..=1,
        "0: an SDC that is added may use what is mapped to it (open); 1: once an operator has approved it, too (approved)";
    RebalanceAuto = "rebalance.auto", 1, 0..=1,
        "1: copies move by themselves to devices that hold less than their share, new ones above all; 0: only when asked";
    MovesPerDevice = "rebalance.groups_per_device", 4, 1..=1_024,
        "groups that a device fills, or is filled in, at a time while copies move; new moves wait beyond";
}

/// The settings that differ from their defaults.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Settings(BTreeMap<&'static str, u64>);

impl Setting {
    /// The setting of a key.
    pub fn of(key: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|setting| setting.key() == key)
    }
}

impl Settings {
    /// What holds.
    pub fn get(&self, setting: Setting) -> u64 {
        self.0.get(setting.key()).copied().unwrap_or_else(|| setting.default())
    }

    /// Sets it; the default is kept as no entry, so that a later default reaches everybody who never chose.
    pub fn set(&mut self, setting: Setting, value: u64) {
        if value == setting.default() {
            self.0.remove(setting.key());
        } else {
            self.0.insert(setting.key(), value);
        }
    }

    /// What was chosen, by key.
    pub fn chosen(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.0.iter().map(|(key, value)| (*key, *value))
    }
}
