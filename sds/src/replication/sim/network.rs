//! Connections between pairs of devices: in order while they last, broken at any point; and datagrams for leases.

use std::collections::HashMap;

use pflex_proto::ids::DeviceId;

use super::rng::Rng;
use super::world::MS;

/// Two devices, the lower one first.
pub(super) type Pair = (DeviceId, DeviceId);

#[derive(Default)]
struct Link {
    up: bool,
    /// Both ends have to notice the end of one connection before the next.
    not_before: u64,
    /// Nothing arrives before this.
    blocked_until: u64,
    /// Of each direction: what is under way (queue id and arrival).
    under_way: HashMap<DeviceId, Vec<(u64, u64)>>,
}

/// See the module.
#[derive(Default)]
pub(super) struct Network {
    links: HashMap<Pair, Link>,
}

fn pair(a: DeviceId, b: DeviceId) -> Pair {
    if a < b { (a, b) } else { (b, a) }
}

impl Network {
    /// When a message sent now arrives; none: there is no connection.
    pub(super) fn send(&mut self, now: u64, from: DeviceId, to: DeviceId, rng: &mut Rng) -> Option<u64> {
        let link = self.links.entry(pair(from, to)).or_default();
        if !link.up {
            return None;
        }
        let delay = if rng.percent(2) { rng.below(300 * MS) } else { rng.between(MS / 50, 2 * MS) };
        let under_way = link.under_way.entry(from).or_default();
        under_way.retain(|(_, arrives)| *arrives >= now);
        // In order within the connection.
        let last = under_way.last().map_or(0, |(_, arrives)| *arrives);
        Some((now.max(link.blocked_until) + delay).max(last))
    }

    pub(super) fn sent(&mut self, from: DeviceId, to: DeviceId, id: u64, arrives: u64) {
        let link = self.links.entry(pair(from, to)).or_default();
        link.under_way.entry(from).or_default().push((id, arrives));
    }

    pub(super) fn connect(&mut self, now: u64, pair: Pair) -> bool {
        let link = self.links.entry(pair).or_default();
        let connects = !link.up && now >= link.not_before && now >= link.blocked_until;
        link.up |= connects;
        connects
    }

    /// Breaks the connection; what was under way in each direction, in order. None: there was none.
    pub(super) fn cut(&mut self, pair: Pair) -> Option<Vec<Vec<u64>>> {
        let link = self.links.entry(pair).or_default();
        if !std::mem::take(&mut link.up) {
            return None;
        }
        let mut directions: Vec<_> = link.under_way.drain().collect();
        directions.sort_unstable_by_key(|(from, _)| *from);
        Some(directions.into_iter().map(|(_, sent)| sent.into_iter().map(|(id, _)| id).collect()).collect())
    }

    pub(super) fn not_before(&mut self, pair: Pair, when: u64) {
        self.links.entry(pair).or_default().not_before = when;
    }

    /// Packets of this pair vanish until then; connections stay and deliver afterwards.
    pub(super) fn block(&mut self, pair: Pair, until: u64) {
        self.links.entry(pair).or_default().blocked_until = until;
    }

    pub(super) fn heal(&mut self) {
        for link in self.links.values_mut() {
            link.blocked_until = 0;
        }
    }

    /// How long a lease message takes; none: it is lost.
    pub(super) fn datagram(&mut self, now: u64, ends: Pair, rng: &mut Rng) -> Option<u64> {
        let blocked = self.links.entry(pair(ends.0, ends.1)).or_default().blocked_until > now;
        let delay = if rng.percent(5) { rng.below(2500 * MS) } else { rng.between(MS / 50, 3 * MS) };
        (!blocked && !rng.percent(3)).then_some(delay)
    }
}
