//! Every bound and every time of the replication core, each with its reason.

use std::time::Duration;

/// Ordered and uncommitted writes of one placement group. A device has some hundred groups and a queue depth far below
/// this in each; reconciliation after a failure has at most this many chunks to compare.
pub const MAX_IN_FLIGHT: usize = 256;

/// Writes of one group that wait for a chunk (being synced, merged or reserved). They hold their data in memory.
pub const MAX_HELD: usize = 256;

/// Reads of one group between admission and answer.
pub const MAX_READS: usize = 1024;

/// Resends that wait for one in-flight write. A client has one, or two around a reconnect.
pub const MAX_WAITERS: usize = 8;

/// Operation records of one (SDC, volume) in one group. A client raises its low-water mark with every write, so this
/// is reached only by one that never does; it is answered `Busy`.
pub const MAX_OPERATIONS_PER_CLIENT: usize = 4096;

/// Operations of all clients together, and clients (SDC and volume): a table goes whole into one frame and one journal
/// record of 4 MiB (56 and 20 bytes each) and into lists of 65,536. The rest is for writes that are ordered already.
pub const MAX_OPERATIONS_PER_PG: usize = 48 << 10;
/// See [`MAX_OPERATIONS_PER_PG`].
pub const MAX_CLIENTS_PER_PG: usize = 48 << 10;
const _: () = assert!(56 * (MAX_OPERATIONS_PER_PG + 4096) + 20 * MAX_CLIENTS_PER_PG < (4 << 20) - (64 << 10));

/// FLUSHes and FUA writes of one group that wait for the disks. Each client has a few at once.
pub const MAX_FLUSHES: usize = 4096;

/// Entries in one page of a version list: 40 bytes each stay far below the frame limit.
pub const LIST_PAGE: usize = 8192;

/// Chunks being compared or copied at once per group and peer: enough to hide a round trip, at most 4 MiB of memory.
pub const SYNC_PARALLEL: usize = 4;

/// How often the driver sends `Event::Tick`.
pub const TICK: Duration = Duration::from_millis(50);

/// An in-sync copy that owes an answer this long is proposed for removal; writes stall as long (S23: 1 s without
/// progress while IO waits is a lost device).
pub const BACKUP_SILENT: Duration = Duration::from_secs(1);

/// A broken connection may come back within this before its copy is proposed for removal.
pub const RECONNECT_GRACE: Duration = Duration::from_millis(300);

/// A joiner that owes an answer this long is dropped, without an epoch change (S10).
pub const JOINER_SILENT: Duration = Duration::from_secs(1);

/// Before the next attempt with a joiner that was dropped, or with a chunk that it could not be given.
pub const JOIN_RETRY: Duration = Duration::from_secs(1);

/// What does not heal by itself (no space, an unreadable block) is tried less and less often, up to this.
pub const JOIN_RETRY_MOST: Duration = Duration::from_secs(60);

/// Before a proposal is made that the MDM has refused: the map that shows why is on its way.
pub const PROPOSAL_RETRY: Duration = TICK;

/// Each refusal in a row doubles that, up to this: a refusal is a command of the log.
pub const PROPOSAL_RETRY_MOST: Duration = Duration::from_secs(5);

/// A scrub of one chunk takes no longer: each copy reads 1 MiB, behind everything else that its disk does.
pub const SCRUB_PATIENCE: Duration = Duration::from_secs(30);

/// A holder counts this from the moment it asked.
pub const LEASE: Duration = Duration::from_secs(3);

/// A granter counts this from the moment it answered: 10 % more, for clocks that run at different rates.
pub const LEASE_GRANTED: Duration = Duration::from_millis(3300);

/// How often a holder asks.
pub const LEASE_RENEWAL: Duration = Duration::from_secs(1);
