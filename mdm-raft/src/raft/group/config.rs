//! How a member runs: who it is, where it listens, and openraft's settings.

use std::{net::SocketAddr, time::Duration};

use openraft::SnapshotPolicy;
use pflex_proto::ids::{ClusterId, MdmId};

use super::propose::PROPOSALS;
use crate::raft::{fatal::FatalHook, network::links::Links};

const HEARTBEAT_MS: u64 = 100;
/// openraft adds a lease of the longest election timeout before it counts one of these, so a dead leader is replaced
/// 800 to 1,000 ms after its last heartbeat. With 500 to 800 it took up to 1.6 s, measured, and a client that must be
/// served within 2 s needs some of that for its own retries.
const ELECTION_MIN_MS: u64 = 300;
const ELECTION_MAX_MS: u64 = 500;
/// A leader that lost its quorum falls silent for this long at a time, so that its followers may elect. Must be above
/// twice the longest election timeout.
const QUORUM_LOSS_PROBE_MS: u64 = 2_000;
const INSTALL_SNAPSHOT_MS: u64 = 10 * 60 * 1_000;
const SNAPSHOT_AFTER_ENTRIES: u64 = 10_000;
/// Proposals openraft holds; `PROPOSALS` bounds them before.
const API_QUEUE: u64 = 8_192;

/// How a member runs.
#[derive(Clone, Debug)]
pub struct GroupConfig {
    /// The cluster the store must belong to.
    pub cluster: ClusterId,
    /// The member the store must belong to.
    pub node: MdmId,
    /// The Raft port.
    pub listen: SocketAddr,
    /// Entries between two snapshots. Half as many stay in the log for members that lag a little.
    pub snapshot_after: u64,
    /// Proposals in flight at a time.
    pub proposals: usize,
    /// How long a proposal is waited for; after that its outcome is unknown.
    pub propose_timeout: Duration,
    /// How long a linearizable read is waited for.
    pub read_timeout: Duration,
    /// What happens when the store fails.
    pub fatal: FatalHook,
    /// The seam for fault injection.
    pub links: Links,
}

impl GroupConfig {
    /// The usual settings.
    pub fn new(cluster: ClusterId, node: MdmId, listen: SocketAddr) -> Self {
        Self {
            cluster,
            node,
            listen,
            snapshot_after: SNAPSHOT_AFTER_ENTRIES,
            proposals: PROPOSALS,
            propose_timeout: Duration::from_secs(5),
            read_timeout: Duration::from_secs(2),
            fatal: FatalHook::default(),
            links: Links::default(),
        }
    }

    pub(super) fn openraft(&self) -> Result<openraft::Config, openraft::ConfigError> {
        let config = openraft::Config {
            cluster_name: self.cluster.to_string(),
            heartbeat_interval: HEARTBEAT_MS,
            election_timeout_min: ELECTION_MIN_MS,
            election_timeout_max: ELECTION_MAX_MS,
            enable_pre_vote: Some(true),
            quorum_loss_probe_interval: Some(QUORUM_LOSS_PROBE_MS),
            // A restarted leader is elected like anybody else: it may have lost its unsynced `committed`.
            enable_leader_restore: Some(false),
            install_snapshot_timeout: INSTALL_SNAPSHOT_MS,
            snapshot_policy: SnapshotPolicy::LogsSinceLast(self.snapshot_after),
            max_in_snapshot_log_to_keep: self.snapshot_after / 2,
            purge_batch_size: (self.snapshot_after / 8).max(1),
            // Above the snapshot threshold, or a snapshot sent would be behind by the time it arrives.
            replication_lag_threshold: self.snapshot_after * 2,
            api_channel_size: Some(API_QUEUE),
            // A member that comes back should catch up soon; a dead one need not be asked often.
            backoff: "50ms ..500ms".into(),
            ..openraft::Config::default()
        };
        config.validate()
    }
}
