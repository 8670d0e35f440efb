//! Read leases between two devices, both ends (S6). Pure: the driver passes times and carries the messages.
//!
//! A grant covers many placement groups at once. It lists the epoch the granter knows of each; the holder may use it
//! for a group only in exactly that epoch, which is how a grant *excludes* groups. So a granter that learned of a
//! newer epoch needs no extra message: its next grant no longer counts for the old primary, and what it granted before
//! lapses `LEASE_GRANTED` after the last grant of the older epoch.

use std::collections::HashMap;

use pflex_proto::ids::{DeviceId, Epoch, Incarnation, Member, PgId};

use super::limits::{LEASE, LEASE_GRANTED};
use super::types::Time;

/// Asks for leases on everything the two devices share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseRequest {
    /// The holder-to-be, in this life.
    pub from: Member,
    /// The granter, in this life.
    pub to: Member,
    /// The holder's clock when it asked; comes back in the grant, means nothing to the granter.
    pub asked_at: Time,
}

/// Grants what was asked for the groups listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseGrant {
    /// The granter, in this life.
    pub from: Member,
    /// The holder, in this life.
    pub to: Member,
    /// From the request.
    pub asked_at: Time,
    /// The epoch the granter knows of each shared group.
    pub epochs: Vec<(PgId, Epoch)>,
}

/// One device's leases, held and granted.
#[derive(Debug)]
pub struct Leases {
    own: Member,
    /// A restarted granter forgot what it granted, so it waits as if it had granted everything just before.
    opened_at: Time,
    held: HashMap<Member, Held>,
    granted: HashMap<Member, Time>,
    /// Of each device the newest life that has ended.
    dead: HashMap<DeviceId, Incarnation>,
}

#[derive(Debug)]
struct Held {
    until: Time,
    epochs: HashMap<PgId, Epoch>,
}

impl Leases {
    /// For a device opened at this moment.
    pub fn new(own: Member, opened_at: Time) -> Self {
        Self { own, opened_at, held: HashMap::new(), granted: HashMap::new(), dead: HashMap::new() }
    }

    /// What to send to a peer every `LEASE_RENEWAL`, and at once on `Effect::RenewLeases`.
    pub fn request(&self, now: Time, peer: Member) -> LeaseRequest {
        LeaseRequest { from: self.own, to: peer, asked_at: now }
    }

    /// Answers a request. `epochs` are the groups this device has in common with the asker, each with the epoch its
    /// `Pg` is in at this moment (`Pg::epoch`). None: the request is for another life of this device (S2).
    pub fn grant(&mut self, now: Time, request: &LeaseRequest, epochs: Vec<(PgId, Epoch)>) -> Option<LeaseGrant> {
        if request.to != self.own {
            return None;
        }
        if self.is_dead(request.from) {
            // It lives, or did when it asked: a proof was wrong, or this comes late. What it gets now is waited for.
            let earlier = Incarnation(request.from.incarnation.0.saturating_sub(1));
            self.dead.insert(request.from.device, earlier);
        }
        self.granted.retain(|_, until| *until > now);
        self.granted.insert(request.from, now.plus(LEASE_GRANTED));
        Some(LeaseGrant { from: self.own, to: request.from, asked_at: request.asked_at, epochs })
    }

    /// Takes a grant. An older one that arrives late changes nothing.
    pub fn granted(&mut self, now: Time, grant: LeaseGrant) {
        // `asked_at` ahead of the clock can only be a forged or misrouted grant.
        if grant.to != self.own || grant.asked_at > now {
            return;
        }
        let until = grant.asked_at.plus(LEASE);
        if self.held.get(&grant.from).is_some_and(|held| held.until >= until) {
            return;
        }
        self.held.retain(|_, held| held.until > now);
        self.held.insert(grant.from, Held { until, epochs: grant.epochs.into_iter().collect() });
    }

    /// Whether `granter` lets this device answer reads of the group in this epoch now.
    pub fn holds(&self, now: Time, granter: Member, pg: PgId, epoch: Epoch) -> bool {
        self.held.get(&granter).is_some_and(|held| now < held.until && held.epochs.get(&pg) == Some(&epoch))
    }

    /// This life of a device, and all before it, have ended (S8): whatever was granted to them is in nobody's use. The
    /// driver says so when a newer life has registered, or when its own connections were closed by the peer, new ones are
    /// refused, and the MDM has found the same. Whether that was news.
    pub fn ended(&mut self, device: DeviceId, incarnation: Incarnation) -> bool {
        let known = self.dead.entry(device).or_default();
        let news = *known < incarnation;
        *known = incarnation.max(*known);
        news
    }

    /// Whether this life is known to have ended.
    pub(super) fn is_dead(&self, member: Member) -> bool {
        self.dead.get(&member.device).is_some_and(|ended| member.incarnation <= *ended)
    }

    /// From when on nothing can be in use that this device granted in an earlier life.
    pub(super) fn earlier_life_lapses(&self) -> Time {
        self.opened_at.plus(LEASE_GRANTED)
    }

    /// When what was last granted to this holder lapses; time zero when nothing was.
    pub(super) fn lapses(&self, holder: Member) -> Time {
        self.granted.get(&holder).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use pflex_proto::ids::{DeviceId, Incarnation, PgIndex, PoolId, SdsId};

    use super::*;

    fn member(n: u32, incarnation: u64) -> Member {
        Member { device: DeviceId(n), sds: SdsId(n), incarnation: Incarnation(incarnation) }
    }
    const PG: PgId = PgId { pool: PoolId(1), index: PgIndex(7) };
    const fn at(ms: u64) -> Time {
        Time(ms * 1_000_000)
    }

    #[test]
    fn a_grant_counts_from_asking_and_lapses_before_the_granter_stops_waiting() {
        let (a, b) = (member(1, 1), member(2, 1));
        let (mut holder, mut granter) = (Leases::new(a, at(0)), Leases::new(b, at(0)));
        let request = holder.request(at(10_000), b);
        let grant = granter.grant(at(10_500), &request, vec![(PG, Epoch(5))]).expect("addressed to it");
        holder.granted(at(11_000), grant);
        assert!(holder.holds(at(12_999), b, PG, Epoch(5)));
        assert!(!holder.holds(at(13_000), b, PG, Epoch(5)));
        assert_eq!(granter.lapses(a), at(13_800));
    }

    #[test]
    fn a_grant_of_another_epoch_or_life_is_worth_nothing() {
        let (a, b) = (member(1, 1), member(2, 1));
        let (mut holder, mut granter) = (Leases::new(a, at(0)), Leases::new(b, at(0)));
        let grant = granter.grant(at(1), &holder.request(at(0), b), vec![(PG, Epoch(6))]).expect("addressed to it");
        holder.granted(at(2), grant.clone());
        assert!(!holder.holds(at(3), b, PG, Epoch(5)), "the granter knows a newer epoch");
        assert!(!holder.holds(at(3), member(2, 2), PG, Epoch(6)), "granted by an earlier life");
        assert!(granter.grant(at(4), &holder.request(at(4), member(2, 2)), vec![]).is_none());
        let mut reborn = Leases::new(member(1, 2), at(3));
        reborn.granted(at(4), grant);
        assert!(!reborn.holds(at(4), b, PG, Epoch(6)), "granted to an earlier life");
    }

    #[test]
    fn a_life_that_asks_again_after_a_proof_of_its_death_is_waited_for() {
        let (a, b) = (member(1, 3), member(2, 1));
        let (holder, mut granter) = (Leases::new(a, at(0)), Leases::new(b, at(0)));
        assert!(granter.ended(a.device, a.incarnation) && !granter.ended(a.device, a.incarnation));
        assert!(granter.is_dead(a) && granter.is_dead(member(1, 2)) && !granter.is_dead(member(1, 4)));
        granter.grant(at(10), &holder.request(at(10), b), vec![(PG, Epoch(5))]).expect("addressed to it");
        assert!(!granter.is_dead(a) && granter.is_dead(member(1, 2)));
    }

    #[test]
    fn a_reopened_granter_waits_out_what_it_forgot() {
        let granter = Leases::new(member(2, 2), at(100));
        assert_eq!(granter.earlier_life_lapses(), at(100).plus(Duration::from_millis(3300)));
    }
}
