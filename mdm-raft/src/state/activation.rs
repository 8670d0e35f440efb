//! Which configurations must be activated before their primary answers (S11), and who may be chosen until then.
//!
//! *The schedule*: {A,B} serves, A dies, {B} commits, and before B has answered anything its disk is lost. A still has
//! every acknowledged write, but is no member any more. So a group remembers its **holders**, the copies that have every
//! acknowledged write, as long as its primary has not said that it is about to answer alone with its in-sync copies: if
//! none of those is alive, one of the holders is chosen. `activate` (`ReconfigurePgs`) ends that: its primary answers only
//! after it has committed.
//!
//! A configuration whose in-sync copies include all holders needs none, because whatever is acknowledged in it is durable
//! on every one of them, and every one of them granted the lease that reads need. Such are: a joiner that comes (S3), a
//! lead that moves, a copy that restarted (S2), the return of the last one. With what follows, by induction over epochs:
//! *while holders are noted nothing is answered, every holder has all that was acknowledged before, and who is in sync is a
//! holder*:
//! - the first configuration that leaves a copy out takes those in sync before as holders; whether its primary had
//!   answered is not known, and makes no difference;
//! - every later one takes its in-sync copies from the holders. Nobody else can come: joiners are proposed only by primaries
//!   that answer, and proposals of others are refused;
//! - nothing destroys what a holder has: it is filled as a joiner, moved or dropped only by a primary that answers. What
//!   reconciliation (S1) undoes on one that is in sync was never acknowledged, and is nothing that another one would miss;
//! - `activate` names the epoch: it commits before another configuration does, or never.
//!
//! Four things end it without: a proposal that takes in as many copies as it lets go (a move that arrives), for its primary
//! answers already and no redundancy is lost; a forced promotion (S12) and the end of a recovery (S19), which choose anew;
//! and the placing of a pool that holds nothing. A copy that loses its place, or its data (S13), is no holder any more.

use pflex_proto::ids::{DeviceId, Member};

use super::model::Pg;

impl Pg {
    /// Every copy that has all acknowledged writes.
    pub fn complete(&self) -> &[Member] {
        if self.holders.is_empty() { &self.config.in_sync } else { &self.holders }
    }

    /// Whether a copy counts, dead or alive: it must keep its place and its data.
    pub fn is_complete_on(&self, device: DeviceId) -> bool {
        self.complete().iter().any(|member| member.device == device)
    }

    /// Its primary may answer: it has said so, or need not.
    pub fn is_activated(&self) -> bool {
        self.holders.is_empty()
    }

    /// Holders beyond the in-sync copies: who may yet be chosen.
    pub fn fallback(&self) -> impl Iterator<Item = &Member> {
        self.holders.iter().filter(|member| self.config.member(member.device).is_none())
    }

    /// Follows a change of configuration. `before` were complete.
    pub(super) fn carry_holders(&mut self, before: Vec<Member>) {
        let (in_sync, replicas) = (&self.config.in_sync, &self.replicas);
        self.holders = before;
        self.holders.retain(|holder| replicas.contains(&holder.device));
        for holder in &mut self.holders {
            // S2: a restarted copy keeps its place under its new life.
            if let Some(now) = in_sync.iter().find(|now| now.device == holder.device) {
                holder.incarnation = holder.incarnation.max(now.incarnation);
            }
        }
        if self.holders.iter().all(|holder| in_sync.contains(holder)) {
            self.holders.clear();
        }
    }

    /// The configuration is activated, or chosen for good.
    pub(super) fn activate(&mut self) {
        self.holders.clear();
        self.drop_forgetful();
    }

    /// S14: who serves has the memory that counts from now on; and only of copies that count it matters what they forgot.
    pub(super) fn drop_forgetful(&mut self) {
        let mut forgot = std::mem::take(&mut self.forgot);
        forgot.retain(|device| match self.config.member(*device) {
            Some(_in_sync) => self.config.primary.is_none(),
            None => self.is_complete_on(*device),
        });
        self.forgot = forgot;
    }
}
