//! What a new primary waits for before it answers (S6): until nothing that this device granted to an earlier primary, in
//! this life or an earlier one, can still be in use.
//!
//! A primary answers reads only with leases of all other in-sync copies, so what this device granted is all that matters
//! to this device's groups. A grant ends by itself; earlier when its holder says that it has left the epoch, which every
//! message of a newer epoch says, or when its holder is proven dead (S8).

use pflex_proto::ids::Member;

use super::lease::Leases;
use super::types::Time;

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Waits {
    /// When everything has lapsed that this device granted in an earlier life, and forgot.
    forgotten: Time,
    /// Earlier primaries, and when what they were granted lapses.
    holders: Vec<(Member, Time)>,
}

impl Waits {
    pub(super) const fn new(forgotten: Time) -> Self {
        Self { forgotten, holders: Vec::new() }
    }

    /// There was no earlier primary, and no earlier life of this device granted anything for the group.
    pub(super) fn nothing_was_granted(&mut self) {
        self.forgotten = Time(0);
    }

    /// The group leaves the epoch of this primary.
    pub(super) fn holder(&mut self, now: Time, holder: Member, lapses: Time) {
        self.holders.retain(|(known, until)| *until > now && *known != holder);
        if lapses > now {
            self.holders.push((holder, lapses));
        }
    }

    /// It has left every earlier epoch, and refused what it had not answered.
    pub(super) fn handed_back(&mut self, holder: Member) {
        self.holders.retain(|(known, _)| *known != holder);
    }

    pub(super) fn are_over(&self, now: Time, leases: &Leases) -> bool {
        let over = |(holder, until): &(Member, Time)| now >= *until || leases.is_dead(*holder);
        now >= self.forgotten && self.holders.iter().all(over)
    }
}
