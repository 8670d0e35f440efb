//! Placement groups and their configurations (PacificA: the Raft group is the configuration manager).

use std::collections::BTreeSet;

use pflex_proto::ids::{DeviceId, Epoch, Member, PgId, Revision, VolatilityId};

/// Who may serve a group. Changes only by compare-and-set on the epoch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PgConfig {
    /// Grows by one with every change.
    pub epoch: Epoch,
    /// Serves IO; none when no in-sync copy is alive, and then nobody may.
    pub primary: Option<DeviceId>,
    /// Every copy that has all acknowledged writes, by incarnation (S2). Never empty.
    pub in_sync: Vec<Member>,
    /// Changes when an epoch opens with no member that kept its memory (S14).
    pub volatility: VolatilityId,
}

impl PgConfig {
    /// The membership of a device.
    pub fn member(&self, device: DeviceId) -> Option<&Member> {
        self.in_sync.iter().find(|member| member.device == device)
    }
}

/// A placement group. Joiners are not stored: one is a replica whose device is alive but not in sync.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pg {
    /// Which one.
    pub id: PgId,
    /// Where its copies belong; one more than copies while one of them moves.
    pub replicas: Vec<DeviceId>,
    /// Who may serve it now.
    pub config: PgConfig,
    /// The command that opened this configuration: its event says why. 0 in rows of before events were kept.
    pub since: Revision,
    /// This configuration is a forced promotion (S12).
    pub forced: bool,
    /// Its copy moves to the last of the replicas, and leaves when that is in sync (`state::moving`).
    pub leaving: Option<DeviceId>,
    /// Who has every acknowledged write until this configuration is activated: the in-sync copies and others. Empty: it is
    /// activated, or need not be (`state::activation`).
    pub holders: Vec<Member>,
    /// Copies of a writeback pool, in sync or holders, that restarted while another one may have kept its memory: none of
    /// these serves before that is known (S2, S14). While there is a primary only holders that are not in sync.
    pub forgot: BTreeSet<DeviceId>,
}
