//! What lies between nodes: their connections, their leases, and the MDM.

use pflex_proto::ids::{DeviceId, Incarnation, PgId};

use crate::replication::{Event, LeaseRequest, Message, Proposal, ProposalReason};

use super::moves::Told;
use super::network::Pair;
use super::store::Data;
use super::world::{Happening, Item, MS, World};

impl World {
    pub(super) fn send(&mut self, device: DeviceId, message: Message<Data>) {
        let to = message.to.device;
        super::faults::aim_at_message(self, device, &message.body);
        super::decay::aim_at_message(self, device, message.pg, &message.body);
        if let Some(when) = self.network.send(self.now, device, to, &mut self.rng) {
            let incarnation = message.to.incarnation;
            let id = self.next + 1;
            self.at(when, Happening::ToNode(to, incarnation, Item::Message(message)));
            self.network.sent(device, to, id, when);
        }
    }

    pub(super) fn reconnect(&mut self, pair: Pair) {
        let (a, b) = pair;
        let both = self.nodes[&a].up && self.nodes[&b].up;
        let lives = (self.nodes[&a].incarnation, self.nodes[&b].incarnation);
        if both && self.network.connect(self.now, pair) {
            self.node_after(MS / 10, a, Item::Connected(b, lives.1));
            self.node_after(MS / 10, b, Item::Connected(a, lives.0));
        }
        let again = self.rng.between(20, 60) * MS;
        self.after(again, Happening::Reconnect(pair));
    }

    /// The connection of a pair breaks: of what is under way some is lost, and each end notices when it does.
    pub(super) fn cut(&mut self, pair: Pair) {
        let Some(under_way) = self.network.cut(pair) else { return };
        for mut direction in under_way {
            let kept = self.rng.below(direction.len() as u64 + 1) as usize;
            for id in direction.drain(kept..) {
                self.happenings.insert(id, Happening::Resume(DeviceId(0)));
            }
        }
        let (a, b) = pair;
        let mut last = 0;
        for (end, other) in [(a, b), (b, a)] {
            let delay = if self.rng.percent(85) { self.rng.below(20 * MS) } else { self.rng.below(1500 * MS) };
            last = last.max(delay);
            let life = self.nodes[&other].incarnation;
            self.node_after(delay, end, Item::Disconnected(other, life));
        }
        self.network.not_before(pair, self.now + last + MS);
    }

    pub(super) fn ask_for_leases(&mut self, device: DeviceId) {
        for peer in self.nodes.keys().copied().filter(|peer| *peer != device).collect::<Vec<_>>() {
            let node = &self.nodes[&device];
            let request = node.leases.request(node.clock(self.now), self.nodes[&peer].member());
            if let Some(delay) = self.network.datagram(self.now, (device, peer), &mut self.rng) {
                self.node_after(delay, peer, Item::LeaseAsk(request));
            }
        }
    }

    pub(super) fn give_lease(&mut self, device: DeviceId, request: &LeaseRequest) {
        let node = self.nodes.get_mut(&device).expect("known node");
        let epochs = node.pgs.iter().filter_map(|(id, pg)| Some((*id, pg.epoch()?))).collect();
        let clock = node.clock(self.now);
        let Some(grant) = node.leases.grant(clock, request, epochs) else { return };
        let to = request.from.device;
        if let Some(delay) = self.network.datagram(self.now, (device, to), &mut self.rng) {
            self.node_after(delay, to, Item::LeaseGive(grant));
        }
    }

    pub(super) fn mdm_delay(&mut self, device: DeviceId) -> u64 {
        let cut = self.nodes[&device].mdm_cut_until.saturating_sub(self.now);
        cut + self.rng.between(MS / 2, 8 * MS)
    }

    pub(super) fn mdm_round(&mut self) {
        self.after(100 * MS, Happening::MdmRound);
        self.mdm.judge(self.now);
        self.plan_moves();
        for device in self.nodes.keys().copied().collect::<Vec<_>>() {
            let (up, incarnation) = (self.nodes[&device].up, self.nodes[&device].incarnation);
            if up && self.now >= self.nodes[&device].paused_until && self.now >= self.nodes[&device].mdm_cut_until {
                let delay = self.mdm_delay(device);
                self.after(delay, Happening::SignOfLife(device, incarnation));
            }
            for pg in self.mdm.pgs() {
                let joiners = self.mdm.joiners(pg);
                let trusted = self.mdm.knows(super::mdm::member(device, incarnation));
                let news = (self.mdm.config(pg).epoch, joiners, trusted);
                let concerned = self.mdm.replicas(pg).contains(&device) || self.nodes[&device].pgs.contains_key(&pg);
                if up && self.told.get(&(device, pg)) != Some(&news) && concerned {
                    self.told.insert((device, pg), news);
                    super::faults::aim_at_successor(self, device, pg);
                    self.tell(device, incarnation, pg);
                }
            }
        }
    }

    /// Sends a configuration; it is as old as its way is long.
    pub(super) fn tell(&mut self, device: DeviceId, incarnation: Incarnation, pg: PgId) {
        let (config, joiners) = (self.mdm.config(pg).clone(), self.mdm.joiners(pg));
        let delay = self.mdm_delay(device) + if self.rng.percent(10) { self.rng.below(1000 * MS) } else { 0 };
        // One watch stream per device: news arrive in order.
        let arrives = self.watch_ends.entry(device).or_default();
        *arrives = (*arrives).max(self.now + delay);
        let when = *arrives;
        let (replicas, leaving) = (self.mdm.replicas(pg).to_vec(), self.mdm.leaving(pg));
        let trusted = self.mdm.knows(super::mdm::member(device, incarnation));
        let item = Item::Told(pg, Told { config, joiners, replicas, leaving, trusted, doubled: self.groups.doubled });
        self.at(when, Happening::ToNode(device, incarnation, item));
    }

    pub(super) fn propose(&mut self, device: DeviceId, incarnation: Incarnation, proposal: &Proposal) {
        let accepted = self.mdm.propose(proposal, super::mdm::member(device, incarnation));
        if !accepted {
            let delay = self.mdm_delay(device);
            let event = Event::ProposalRejected { expected_epoch: proposal.expected_epoch };
            self.after(delay, Happening::ToNode(device, incarnation, Item::Pg(proposal.pg, event)));
        } else if proposal.reason == ProposalReason::Activation {
            let delay = self.mdm_delay(device);
            let event = Event::Activated { epoch: proposal.expected_epoch };
            self.after(delay, Happening::ToNode(device, incarnation, Item::Pg(proposal.pg, event)));
        }
        self.tell(device, incarnation, proposal.pg);
    }
}
