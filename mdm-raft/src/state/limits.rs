//! What the state machine refuses to exceed (I10, ARCHITECTURE section 12: PowerFlex's documented limits times four).
//!
//! They are part of what a command means: changing one is a change of `COMMAND_VERSION`.

/// Protection domains.
pub const MAX_DOMAINS: usize = 1_024;
/// Pools.
pub const MAX_POOLS: usize = 4_096;
/// Fault sets: one for each SDS at most.
pub const MAX_FAULT_SETS: usize = 2_048;
/// SDSs.
pub const MAX_SDS: usize = 2_048;
/// Devices, eight per SDS.
pub const MAX_DEVICES: usize = 16_384;
/// SDCs.
pub const MAX_SDCS: usize = 8_192;
/// Registered MDMs and consoles.
pub const MAX_NODES: usize = 1_024;
/// Ids that MDMs ever had: one more with each node that is replaced.
pub const MAX_MDM_IDS: usize = 4_096;
/// Volumes.
pub const MAX_VOLUMES: usize = 524_288;
/// Snapshots of one volume: PowerFlex's documented limit.
pub const MAX_SNAPSHOTS_PER_VOLUME: usize = 126;
/// Finished rebuilds, drains and rebalances kept of each pool: a day of one disk that comes and goes does not push out those of other pools.
pub const MAX_REBUILDS_KEPT: usize = 8;
/// Bytes kept of what opened a rebuild.
pub const MAX_REBUILD_WHY_BYTES: usize = 256;
/// Mappings of one volume: every watcher gets them all with each change.
pub const MAX_MAPPINGS_PER_VOLUME: usize = 1_024;
/// Bytes of a volume: 1 PiB.
pub const MAX_VOLUME_BYTES: u64 = 1 << 50;
/// Placement groups of a pool; all are rows of one command when the pool is placed.
pub const MAX_PGS_PER_POOL: u32 = 4_096;
/// Copies that one command moves: each move stops its group's IO for a moment, and the next command follows a second later.
pub const MAX_MOVES: usize = 512;
/// Copies of a placement group.
pub const MAX_COPIES: u32 = 4;
/// Bytes of a name.
pub const MAX_NAME_BYTES: usize = 63;
/// Bytes of an address, a version or a path.
pub const MAX_TEXT_BYTES: usize = 1_024;
/// Devices one registration may list.
pub const MAX_DEVICES_PER_SDS: usize = 64;
/// Proposals, volumes or token uses in one command, so that one apply stays short.
pub const MAX_BATCH: usize = 16_384;
/// Operations that one command issues tokens for: each leaves a record, and its answer is kept for repeats.
pub const MAX_PLANS: usize = 512;
/// Verdicts about SDSs in one command: all of a pool of the usual size at once. Each leaves its words in the event.
pub const MAX_VERDICTS: usize = 512;

/// Volumes are thin: their sizes may add up to this many times what the pool can hold (its devices' bytes divided by
/// the copies). Five is what PowerFlex allows at most; beyond it a pool can fill up faster than anyone can react.
pub const OVERCOMMIT_RATIO: u64 = 5;

/// Groups in one report of a device after a restore (S19): some 100 bytes each.
pub const MAX_REPORTED_GROUPS: usize = 1_024;
/// Groups that devices report after a restore and the backup does not know: pools that came after it.
pub const MAX_UNKNOWN_GROUPS: usize = 65_536;

/// Sessions open at once.
pub const MAX_SESSIONS: usize = 65_536;
/// Outcomes kept above a client's low-water mark (S17), one of 4 KiB and more counting for several; a client with more in
/// flight is refused until it moves it.
pub const MAX_OUTCOMES_PER_SESSION: u32 = 1_024;
/// A session unused for this long is forgotten: longer than any deadline of a retry, short enough that a command line
/// run each second holds a few thousand.
pub const SESSION_IDLE_MS: u64 = 3_600_000;

/// How long a token is good (S21).
pub const TOKEN_LIFE_MS: u64 = 60_000;
/// No token of before a revocation is good anywhere after this (S20): 67.5 s of real time bound it on an SDS that hears no
/// MDM, by the proof in the SDS's `admission::freshness`; the rest is for clocks that run apart (500 ppm are 34 ms).
pub const REVOKED_WITHIN_MS: u64 = 67_500 + 2_500;
/// How long an expired token stays in `io_tokens` for the audit.
pub const TOKEN_RETENTION_MS: u64 = 600_000;
/// Rows of `io_tokens`; beyond it the oldest go first, even before their retention ends.
pub const MAX_TOKENS: usize = 262_144;
/// Sources of refused tokens told apart: somebody who makes up names fills the table, and no more.
pub const MAX_BAD_SOURCES: usize = 4_096;
/// A source of refused tokens that was silent for so long makes room for another: a day.
pub const BAD_SOURCE_RETENTION_MS: u64 = 24 * 3_600_000;
/// Between two events about one source of refused tokens.
pub const BAD_SOURCE_TOLD_EVERY_MS: u64 = 60_000;
/// Events kept: days of a busy cluster, some twenty megabytes.
pub const MAX_EVENTS: usize = 65_536;
/// Samples of heartbeats kept: an hour of one a minute, each with all components.
pub const MAX_HEARTBEAT_SAMPLES: usize = 60;
/// Samples of sums over the cluster kept: a day of one a minute.
pub const MAX_METRIC_SAMPLES: usize = 1_440;
/// Metrics of one sample.
pub const MAX_METRICS_PER_SAMPLE: usize = 128;
/// Registrations that a component can count: what an SDC makes of them fits above its other counters.
pub const MAX_REGISTRATIONS: u64 = 1 << 20;
/// Registrations remembered per component.
pub const MAX_REGISTRATIONS_KEPT: usize = 16;
