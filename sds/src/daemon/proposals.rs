//! Configuration changes that wait to be put to the MDM, all of a server's together.
//!
//! Pure. Of a group's proposals the one for the newest epoch counts, and of those the last. One that was never put to an MDM can be
//! withdrawn: it can never commit. A joiner that is gone before its join was put is taken back at once, so that nobody's writes wait
//! for it (S3: from proposing on it counts until the outcome is known). What was put, and not answered, may have committed: only
//! the MDM ends that.

use std::collections::HashMap;

use pflex_proto::ids::{DeviceId, Epoch, Member, PgId};

use crate::replication::{Proposal, ProposalReason};

/// What data threads ask for.
#[derive(Debug)]
pub(super) enum Asked {
    /// To propose this.
    Make(DeviceId, Proposal),
    /// Not to propose that this one is in sync, if that was not done yet.
    Withdraw(DeviceId, Member),
}

#[derive(Debug)]
struct Waiting {
    device: DeviceId,
    proposal: Proposal,
    put: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Proposals(HashMap<PgId, Waiting>);

impl Proposals {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes one in; returns the groups whose proposals are never made, with their epochs.
    pub(super) fn take(&mut self, asked: Asked) -> Vec<(PgId, Epoch)> {
        match asked {
            Asked::Make(device, proposal) => {
                let is_newer = |known: &Waiting| known.proposal.expected_epoch <= proposal.expected_epoch;
                if self.0.get(&proposal.pg).is_none_or(is_newer) {
                    self.0.insert(proposal.pg, Waiting { device, proposal, put: false });
                }
                Vec::new()
            }
            Asked::Withdraw(device, joiner) => {
                let reason = ProposalReason::JoinerSynced(joiner);
                let gone =
                    |waiting: &Waiting| !waiting.put && (waiting.device, waiting.proposal.reason) == (device, reason);
                let gone = self.0.extract_if(|_, waiting| gone(waiting));
                gone.map(|(pg, waiting)| (pg, waiting.proposal.expected_epoch)).collect()
            }
        }
    }

    /// Whether nothing but joins waits.
    pub(super) fn are_joins(&self) -> bool {
        self.0.values().all(|waiting| matches!(waiting.proposal.reason, ProposalReason::JoinerSynced(_)))
    }

    /// All of them, which are put to the MDM now.
    pub(super) fn put(&mut self) -> Vec<(DeviceId, Proposal)> {
        self.0.values_mut().for_each(|waiting| waiting.put = true);
        self.0.values().map(|waiting| (waiting.device, waiting.proposal.clone())).collect()
    }

    /// They are decided.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use pflex_proto::ids::{Incarnation, PgIndex, PoolId, SdsId};

    use super::*;

    fn pg(index: u32) -> PgId {
        PgId { pool: PoolId(1), index: PgIndex(index) }
    }

    fn member(device: u32) -> Member {
        Member { device: DeviceId(device), sds: SdsId(device), incarnation: Incarnation(1) }
    }

    fn proposal(group: u32, epoch: u64, reason: ProposalReason) -> Asked {
        let proposal = Proposal { pg: pg(group), expected_epoch: Epoch(epoch), in_sync: Vec::new(), reason };
        Asked::Make(DeviceId(1), proposal)
    }

    #[test]
    fn a_joiner_that_is_gone_before_its_join_was_put_is_taken_back_and_later_only_the_mdm_decides() {
        let join = |group, of| proposal(group, 5, ProposalReason::JoinerSynced(member(of)));
        let mut proposals = Proposals::default();
        for asked in [join(1, 2), join(2, 3), join(3, 2), proposal(4, 5, ProposalReason::BackupSilent(member(2)))] {
            assert_eq!(proposals.take(asked), []);
        }
        assert!(!proposals.are_joins());
        assert_eq!(proposals.take(Asked::Withdraw(DeviceId(9), member(2))), [], "others' are others'");
        let mut gone = proposals.take(Asked::Withdraw(DeviceId(1), member(2)));
        gone.sort();
        assert_eq!(gone, [(pg(1), Epoch(5)), (pg(3), Epoch(5))]);
        assert_eq!(proposals.put().len(), 2);
        // No answer came.
        assert_eq!(proposals.take(Asked::Withdraw(DeviceId(1), member(3))), [], "it may have committed");
        assert_eq!(proposals.put().len(), 2, "and is put again");
        // The same group's next one was not.
        assert_eq!(proposals.take(proposal(2, 6, ProposalReason::JoinerSynced(member(3)))), []);
        assert_eq!(proposals.take(proposal(2, 5, ProposalReason::Activation)), []);
        assert_eq!(proposals.take(Asked::Withdraw(DeviceId(1), member(3))), [(pg(2), Epoch(6))]);
        proposals.clear();
        assert!(proposals.is_empty() && proposals.are_joins());
    }
}
