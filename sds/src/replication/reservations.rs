//! What other copies have set aside for chunks that no write has created yet (S4), as their primary knows it.
//!
//! A write that is refused or discarded after the copies were asked would leave their space set aside for as long as the
//! epoch lasts. So each chunk that was asked for stays here until a write with data is ordered on it, which uses the space
//! up, or until nothing waits for it any more: then the copies are told.

use std::collections::BTreeMap;

use pflex_proto::ids::{ChunkId, Member};

use super::base::{Base, Cx};
use super::message::Body;
use super::planted::Bug;
use super::primary::Primary;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Reservations {
    /// The copies that owe an answer, once for each question. One that is told in between that the space is not needed
    /// would take it back after the answer that is still under way.
    asked: BTreeMap<ChunkId, Vec<Member>>,
}

impl Reservations {
    pub(super) fn ask(&mut self, chunk: ChunkId, member: Member) {
        self.asked.entry(chunk).or_default().push(member);
    }

    pub(super) fn answered(&mut self, chunk: ChunkId, member: Member) {
        if let Some(owing) = self.asked.get_mut(&chunk)
            && let Some(place) = owing.iter().position(|owes| *owes == member)
        {
            owing.swap_remove(place);
        }
    }

    /// The connection broke, and with it the questions.
    pub(super) fn disconnected(&mut self, member: Member) {
        self.asked.values_mut().for_each(|owing| owing.retain(|owes| *owes != member));
    }

    /// A write with data was ordered: every copy uses what it has set aside.
    pub(super) fn used(&mut self, chunk: ChunkId) {
        self.asked.remove(&chunk);
    }
}

impl<D: Clone> Primary<D> {
    /// Every unordered write waits in a hold of its chunk: without one nobody needs the space.
    pub(super) fn release_unused(&mut self, base: &Base<D>, cx: &mut Cx<'_, D>) {
        // What is said into a broken connection is lost, and then nobody would say it again.
        let all_hear = self.backups.iter().all(|backup| base.is_connected(backup.member));
        if !all_hear || base.planted.is(Bug::KeepReservations) {
            return;
        }
        let unused = |(chunk, owing): (&ChunkId, &Vec<Member>)| {
            (owing.is_empty() && !self.holds.is_held(*chunk)).then_some(*chunk)
        };
        for chunk in self.reservations.asked.iter().filter_map(unused).collect::<Vec<_>>() {
            self.reservations.used(chunk);
            for backup in &self.backups {
                base.send(cx, backup.member, Body::Unreserve { round: backup.round, chunk });
            }
        }
    }
}
