//! The simulated cluster: nodes, network, MDM, clients, and one queue of what happens next.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, VecDeque};

use pflex_proto::ids::{ChunkId, ChunkIndex, DeviceId, Epoch, Incarnation, LayerId, PgId, PgIndex, PoolId, VtreeId};

use crate::replication::planted::{Bug, Planted};
use crate::replication::{
    ClientRead, ClientWrite, Effect, Event, LeaseGrant, LeaseRequest, Message, Outcome, PgConfig, Proposal, Refusal,
    RequestId, WriteKind,
};

use super::client::{Action, Client, Pending};
use super::history::History;
use super::mdm::Mdm;
use super::network::{Network, Pair};
use super::node::Node;
use super::oracle::Oracle;
use super::rng::Rng;
use super::store::{BLOCKS, Data};

pub(super) const MS: u64 = 1_000_000;
const NODES: u32 = 3;
const CHUNKS_PER_PG: u64 = 3;

/// One thing that will happen. What is meant for a node names the life it is meant for.
#[derive(Clone, Debug)]
pub(super) enum Item {
    Tick,
    Pg(PgId, Event<Data>),
    /// A store read whose result is taken now, not when it was asked for.
    Sample(PgId, Effect<Data>),
    Flush(PgId, crate::replication::Ticket),
    Message(Message<Data>),
    Connected(DeviceId, Incarnation),
    Disconnected(DeviceId, Incarnation),
    LeaseAsk(LeaseRequest),
    LeaseGive(LeaseGrant),
    RenewLeases,
    Request(ToServe),
}

/// A client's request on its way.
#[derive(Clone, Debug)]
pub(super) struct ToServe {
    client: usize,
    pending: u64,
    epoch: Epoch,
    body: Pending,
    low_water: pflex_proto::ids::OperationId,
}

enum Happening {
    ToNode(DeviceId, Incarnation, Item),
    Resume(DeviceId),
    Crash(DeviceId, u64),
    Restart(DeviceId),
    Reconnect(Pair),
    MdmRound,
    SignOfLife(DeviceId, Incarnation),
    Register(DeviceId, Incarnation),
    Propose(DeviceId, Incarnation, Proposal),
    Fetch(DeviceId, Incarnation, PgId),
    Call(usize),
    Resend(usize, u64, u64),
    Reply(usize, u64, Outcome<Data>),
    Fault,
}

/// See the module.
pub(super) struct World {
    pub(super) now: u64,
    pub(super) rng: Rng,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    happenings: HashMap<u64, Happening>,
    /// Numbers everything that happens; also the clients' clock.
    pub(super) next: u64,
    pub(super) nodes: BTreeMap<DeviceId, Node>,
    waiting: BTreeMap<DeviceId, VecDeque<(Incarnation, Item)>>,
    pub(super) network: Network,
    pub(super) mdm: Mdm,
    pub(super) clients: Vec<Client>,
    history: History,
    pub(super) oracle: Oracle,
    /// Which client's operation a node's request is.
    requests: HashMap<(DeviceId, RequestId), (usize, u64, ChunkId)>,
    next_value: u64,
    planted: Planted,
    /// While faults and load go on.
    pub(super) stormy: bool,
    told: BTreeMap<(DeviceId, PgId), (Epoch, Vec<pflex_proto::ids::Member>)>,
    watch_ends: BTreeMap<DeviceId, u64>,
    /// `PFLEX_SIM_TRACE`: print every event and effect.
    trace: bool,
    pub(super) finished_operations: u64,
}

impl World {
    pub(super) fn new(seed: u64, bug: Option<Bug>) -> Self {
        let mut rng = Rng::new(seed);
        let mut mdm = Mdm::default();
        let devices: Vec<DeviceId> = (1..=NODES).map(DeviceId).collect();
        for index in 0..rng.between(2, 4) as u32 {
            let copies = if rng.percent(70) { 2 } else { 3 };
            let replicas = (0..copies).map(|copy| devices[((index + copy) % NODES) as usize]).collect();
            mdm.create(PgId { pool: PoolId(1), index: PgIndex(index) }, replicas, Incarnation(1));
        }
        let mut nodes: BTreeMap<DeviceId, Node> =
            devices.iter().map(|device| (*device, Node::new(*device, &mut rng))).collect();
        for pg in mdm.pgs() {
            for device in mdm.replicas(pg) {
                nodes.get_mut(device).expect("made above").stores.entry(pg).or_default();
            }
        }
        let mut world = Self {
            now: 1_000 * MS,
            rng,
            queue: BinaryHeap::new(),
            happenings: HashMap::new(),
            next: 0,
            nodes,
            waiting: BTreeMap::new(),
            network: Network::default(),
            mdm,
            clients: (0..3).map(Client::new).collect(),
            history: History::default(),
            oracle: Oracle::default(),
            requests: HashMap::new(),
            next_value: 0,
            planted: Planted(bug),
            stormy: true,
            told: BTreeMap::new(),
            watch_ends: BTreeMap::new(),
            trace: std::env::var_os("PFLEX_SIM_TRACE").is_some(),
            finished_operations: 0,
        };
        for device in devices {
            world.restart(device);
        }
        for client in 0..world.clients.len() {
            for _ in 0..5 {
                world.after(MS, Happening::Call(client));
            }
        }
        world.after(MS, Happening::MdmRound);
        world.after(500 * MS, Happening::Fault);
        world
    }

    // ---- time

    fn at(&mut self, when: u64, happening: Happening) {
        self.next += 1;
        self.queue.push(Reverse((when, self.next)));
        self.happenings.insert(self.next, happening);
    }

    fn after(&mut self, delay: u64, happening: Happening) {
        self.at(self.now + delay, happening);
    }

    /// Runs until `until`, or until `done`.
    pub(super) fn run(&mut self, until: u64, done: impl Fn(&Self) -> bool) -> Result<bool, String> {
        while !done(self) {
            let Some(Reverse((when, id))) = self.queue.pop() else { return Ok(false) };
            if when > until {
                self.queue.push(Reverse((when, id)));
                self.now = until;
                return Ok(false);
            }
            self.now = when;
            let happening = self.happenings.remove(&id).expect("queued with it");
            self.happen(happening)?;
        }
        Ok(true)
    }

    fn happen(&mut self, happening: Happening) -> Result<(), String> {
        match happening {
            Happening::ToNode(device, incarnation, item) => self.to_node(device, incarnation, item)?,
            Happening::Resume(device) => {
                let waiting = self.waiting.remove(&device).unwrap_or_default();
                for (incarnation, item) in waiting {
                    self.to_node(device, incarnation, item)?;
                }
            }
            Happening::Crash(device, back_after) => self.crash(device, back_after),
            Happening::Restart(device) => self.restart(device),
            Happening::Reconnect(pair) => self.reconnect(pair),
            Happening::MdmRound => self.mdm_round(),
            Happening::SignOfLife(device, incarnation) => self.mdm.sign_of_life(self.now, device, incarnation),
            Happening::Register(device, incarnation) => self.mdm.register(self.now, device, incarnation),
            Happening::Propose(device, incarnation, proposal) => self.propose(device, incarnation, &proposal),
            Happening::Fetch(device, incarnation, pg) => self.tell(device, incarnation, pg),
            Happening::Call(client) => self.call(client),
            Happening::Resend(client, pending, tries) => self.resend(client, pending, tries),
            Happening::Reply(client, pending, outcome) => self.reply(client, pending, outcome)?,
            Happening::Fault => super::faults::strike(self),
        }
        Ok(())
    }

    // ---- nodes

    pub(super) fn to_node_after(&mut self, delay: u64, device: DeviceId, item: Item) {
        let incarnation = self.nodes[&device].incarnation;
        self.after(delay, Happening::ToNode(device, incarnation, item));
    }

    fn to_node(&mut self, device: DeviceId, incarnation: Incarnation, item: Item) -> Result<(), String> {
        let node = &self.nodes[&device];
        let stale = incarnation != node.incarnation
            // A message delayed from before a restart reaches the port of the new life: it must refuse it itself (S2).
            && !matches!(item, Item::Message(_) | Item::LeaseAsk(_) | Item::LeaseGive(_));
        if !node.up || stale {
            return Ok(());
        }
        if self.now < node.paused_until {
            self.waiting.entry(device).or_default().push_back((incarnation, item));
            return Ok(());
        }
        match item {
            Item::Tick => {
                self.to_node_after(50 * MS, device, Item::Tick);
                for pg in self.nodes[&device].pgs.keys().copied().collect::<Vec<_>>() {
                    self.step(device, pg, Event::Tick)?;
                }
                // The driver's duty: the only copy failed, so nobody can take over, and it starts anew.
                if self.nodes[&device].pgs.values().any(|pg| {
                    pg.status().failed
                        && pg.config().is_some_and(|config| config.primary == Some(device) && config.in_sync.len() == 1)
                }) {
                    self.crash(device, 100 * MS);
                }
            }
            Item::Pg(pg, event) => self.step(device, pg, event)?,
            Item::Sample(pg, effect) => {
                let event = self.sample(device, pg, effect);
                self.step(device, pg, event)?;
            }
            Item::Flush(pg, ticket) => {
                let node = self.nodes.get_mut(&device).expect("known node");
                let durable = node.stores.get_mut(&pg).and_then(|store| store.flush(ticket));
                if let Some(through) = durable {
                    self.step(device, pg, Event::Durable { through })?;
                }
            }
            Item::Message(message) => self.step(device, message.pg, Event::Message(message))?,
            Item::Connected(peer, life) => {
                let peer = super::mdm::member(peer, life);
                self.everywhere(device, &Event::PeerConnected(peer))?;
            }
            Item::Disconnected(peer, life) => {
                let peer = super::mdm::member(peer, life);
                self.everywhere(device, &Event::PeerDisconnected(peer))?;
            }
            Item::RenewLeases => {
                let again = self.rng.between(900, 1100) * MS;
                self.to_node_after(again, device, Item::RenewLeases);
                self.ask_for_leases(device);
            }
            Item::LeaseAsk(request) => self.give_lease(device, &request),
            Item::LeaseGive(grant) => {
                let node = self.nodes.get_mut(&device).expect("known node");
                let clock = node.clock(self.now);
                node.leases.granted(clock, grant);
            }
            Item::Request(request) => self.serve(device, request)?,
        }
        Ok(())
    }

    fn everywhere(&mut self, device: DeviceId, event: &Event<Data>) -> Result<(), String> {
        for pg in self.nodes[&device].pgs.keys().copied().collect::<Vec<_>>() {
            self.step(device, pg, event.clone())?;
        }
        Ok(())
    }

    fn step(&mut self, device: DeviceId, pg: PgId, event: Event<Data>) -> Result<(), String> {
        let quiet = matches!(event, Event::Tick | Event::Durable { .. });
        let told = (self.trace && !quiet).then(|| format!("{event:?}"));
        let effects = self.nodes.get_mut(&device).expect("known node").handle(self.now, pg, event);
        if let Some(told) = told {
            println!("{:>12} pg {pg} device {device} <- {told}", self.now / 1000);
        }
        for effect in effects {
            if self.trace {
                println!("{:>12} pg {pg} device {device} -> {effect:?}", self.now / 1000);
            }
            self.carry_out(device, pg, effect)?;
        }
        self.oracle.watermark(&self.nodes, device, pg)
    }

    fn carry_out(&mut self, device: DeviceId, pg: PgId, effect: Effect<Data>) -> Result<(), String> {
        let delay = self.nodes[&device].disk_delay(self.now, &mut self.rng);
        match effect {
            Effect::Apply { ticket, .. }
            | Effect::FixChunk { ticket, .. }
            | Effect::MarkUnsynced { ticket, .. }
            | Effect::WriteBlocks { ticket, .. }
            | Effect::SetVersion { ticket, .. }
            | Effect::ReplaceOperations { ticket, .. }
            | Effect::ClearFailure { ticket } => {
                let node = self.nodes.get_mut(&device).expect("known node");
                let fails = node.full && matches!(effect, Effect::Apply { .. });
                node.full &= !fails;
                let store = node.stores.get_mut(&pg).expect("a replica has a store");
                let place = super::store::place(&effect);
                let failed = store.change(ticket, effect, fails);
                if let Some(chunk) = place {
                    self.oracle.versions(pg, &store.applied, chunk)?;
                }
                let ends = node.flush_ends.entry(pg).or_default();
                *ends = (*ends).max(self.now + delay);
                let delay = *ends - self.now;
                if failed {
                    self.to_node_after(delay, device, Item::Pg(pg, Event::StoreFailed { ticket }));
                } else {
                    self.to_node_after(delay, device, Item::Flush(pg, ticket));
                }
            }
            Effect::Read { .. }
            | Effect::ListVersions { .. }
            | Effect::ReadSums { .. }
            | Effect::ReadDifference { .. } => {
                // The result is from any moment between asking and answering.
                let item = if self.rng.percent(50) {
                    Item::Pg(pg, self.sample(device, pg, effect))
                } else {
                    Item::Sample(pg, effect)
                };
                self.to_node_after(delay, device, item);
            }
            Effect::Merge { request, extent, data, .. } => {
                self.to_node_after(
                    delay,
                    device,
                    Item::Pg(pg, Event::Merged { request, merged: Some((extent, data)) }),
                );
            }
            Effect::Reserve { chunk } => {
                let granted = self.rng.percent(97);
                self.to_node_after(delay, device, Item::Pg(pg, Event::Reserved { chunk, granted }));
            }
            Effect::ReleaseReservations => {}
            Effect::Send(message) => self.send(device, message),
            Effect::Reply { request, outcome } => self.answer(device, pg, request, outcome)?,
            Effect::Propose(proposal) => {
                let delay = self.mdm_delay(device) + if self.rng.percent(10) { 1500 * MS } else { 0 };
                let incarnation = self.nodes[&device].incarnation;
                // The proposal is on its way; what is aimed at it is not to stop it.
                super::faults::aim_at_proposal(self, device, &proposal);
                self.after(delay, Happening::Propose(device, incarnation, proposal));
            }
            Effect::FetchConfig { pg, .. } => {
                let delay = self.mdm_delay(device);
                let incarnation = self.nodes[&device].incarnation;
                self.after(delay, Happening::Fetch(device, incarnation, pg));
            }
            Effect::RenewLeases => self.ask_for_leases(device),
        }
        Ok(())
    }

    fn sample(&self, device: DeviceId, pg: PgId, effect: Effect<Data>) -> Event<Data> {
        let store = &self.nodes[&device].stores[&pg];
        match effect {
            Effect::Read { request, chunk, extent } => {
                Event::ReadDone { request, data: Some(store.read(chunk, extent)) }
            }
            Effect::ListVersions { round, above } => Event::Listed { round, entries: store.list(above) },
            Effect::ReadSums { round, chunk } => Event::SumsRead { round, chunk, sums: store.sums(chunk) },
            Effect::ReadDifference { round, chunk, theirs } => {
                Event::DifferenceRead { round, chunk, image: Some(store.difference(chunk, &theirs)) }
            }
            other => panic!("not a store read: {other:?}"),
        }
    }

    // ---- network

    fn send(&mut self, device: DeviceId, message: Message<Data>) {
        let to = message.to.device;
        super::faults::aim_at_message(self, device, &message.body);
        if let Some(when) = self.network.send(self.now, device, to, &mut self.rng) {
            let incarnation = message.to.incarnation;
            let id = self.next + 1;
            self.at(when, Happening::ToNode(to, incarnation, Item::Message(message)));
            self.network.sent(device, to, id, when);
        }
    }

    fn reconnect(&mut self, pair: Pair) {
        let (a, b) = pair;
        let both = self.nodes[&a].up && self.nodes[&b].up;
        let lives = (self.nodes[&a].incarnation, self.nodes[&b].incarnation);
        if both && self.network.connect(self.now, pair) {
            self.to_node_after(MS / 10, a, Item::Connected(b, lives.1));
            self.to_node_after(MS / 10, b, Item::Connected(a, lives.0));
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
            self.to_node_after(delay, end, Item::Disconnected(other, life));
        }
        self.network.not_before(pair, self.now + last + MS);
    }

    fn ask_for_leases(&mut self, device: DeviceId) {
        for peer in self.nodes.keys().copied().filter(|peer| *peer != device).collect::<Vec<_>>() {
            let node = &self.nodes[&device];
            let request = node.leases.request(node.clock(self.now), self.nodes[&peer].member());
            if let Some(delay) = self.network.datagram(self.now, (device, peer), &mut self.rng) {
                self.to_node_after(delay, peer, Item::LeaseAsk(request));
            }
        }
    }

    fn give_lease(&mut self, device: DeviceId, request: &LeaseRequest) {
        let node = self.nodes.get_mut(&device).expect("known node");
        let epochs = node.pgs.iter().filter_map(|(id, pg)| Some((*id, pg.epoch()?))).collect();
        let clock = node.clock(self.now);
        let Some(grant) = node.leases.grant(clock, request, epochs) else { return };
        let to = request.from.device;
        if let Some(delay) = self.network.datagram(self.now, (device, to), &mut self.rng) {
            self.to_node_after(delay, to, Item::LeaseGive(grant));
        }
    }

    // ---- the MDM

    fn mdm_delay(&mut self, device: DeviceId) -> u64 {
        let cut = self.nodes[&device].mdm_cut_until.saturating_sub(self.now);
        cut + self.rng.between(MS / 2, 8 * MS)
    }

    fn mdm_round(&mut self) {
        self.after(100 * MS, Happening::MdmRound);
        self.mdm.judge(self.now);
        for device in self.nodes.keys().copied().collect::<Vec<_>>() {
            let (up, incarnation) = (self.nodes[&device].up, self.nodes[&device].incarnation);
            if up && self.now >= self.nodes[&device].paused_until && self.now >= self.nodes[&device].mdm_cut_until {
                let delay = self.mdm_delay(device);
                self.after(delay, Happening::SignOfLife(device, incarnation));
            }
            for pg in self.mdm.pgs() {
                let joiners = self.mdm.joiners(pg);
                let news = (self.mdm.config(pg).epoch, joiners);
                if up && self.told.get(&(device, pg)) != Some(&news) && self.mdm.replicas(pg).contains(&device) {
                    self.told.insert((device, pg), news);
                    self.tell(device, incarnation, pg);
                }
            }
        }
    }

    /// Sends a configuration; it is as old as its way is long.
    fn tell(&mut self, device: DeviceId, incarnation: Incarnation, pg: PgId) {
        let (config, joiners) = (self.mdm.config(pg).clone(), self.mdm.joiners(pg));
        let delay = self.mdm_delay(device) + if self.rng.percent(10) { self.rng.below(1000 * MS) } else { 0 };
        // One watch stream per device: news arrive in order.
        let arrives = self.watch_ends.entry(device).or_default();
        *arrives = (*arrives).max(self.now + delay);
        let when = *arrives;
        let item = Item::Pg(pg, Event::Config { config, joiners });
        self.at(when, Happening::ToNode(device, incarnation, item));
    }

    fn propose(&mut self, device: DeviceId, incarnation: Incarnation, proposal: &Proposal) {
        let accepted = self.mdm.propose(proposal, super::mdm::member(device, incarnation));
        if !accepted {
            let delay = self.mdm_delay(device);
            let event = Event::ProposalRejected { expected_epoch: proposal.expected_epoch };
            self.after(delay, Happening::ToNode(device, incarnation, Item::Pg(proposal.pg, event)));
        }
        self.tell(device, incarnation, proposal.pg);
    }

    // ---- faults

    pub(super) fn next_fault_after(&mut self, delay: u64) {
        self.after(delay, Happening::Fault);
    }

    pub(super) fn crash_after(&mut self, delay: u64, device: DeviceId, back_after: u64) {
        self.after(delay, Happening::Crash(device, back_after));
    }

    pub(super) fn crash(&mut self, device: DeviceId, back_after: u64) {
        if !self.nodes[&device].up {
            return;
        }
        for pair in self.pairs() {
            if pair.0 == device || pair.1 == device {
                self.cut(pair);
            }
        }
        self.nodes.get_mut(&device).expect("known node").crash(&mut self.rng);
        self.waiting.remove(&device);
        self.after(back_after, Happening::Restart(device));
    }

    fn restart(&mut self, device: DeviceId) {
        let (now, planted) = (self.now, self.planted);
        let node = self.nodes.get_mut(&device).expect("known node");
        if node.up {
            return;
        }
        node.open(now, planted);
        let incarnation = node.incarnation;
        self.told.retain(|(told, _), _| *told != device);
        // Registration may take longer than the old configuration to arrive: it must not be acted on (S2).
        let slow = if self.stormy && self.rng.percent(40) { self.rng.below(2500 * MS) } else { 0 };
        let delay = self.mdm_delay(device) + slow;
        self.after(delay, Happening::Register(device, incarnation));
        self.to_node_after(MS, device, Item::Tick);
        self.to_node_after(MS, device, Item::RenewLeases);
        for pair in self.pairs() {
            if incarnation == Incarnation(1) && pair.0 == device {
                self.after(MS, Happening::Reconnect(pair));
            }
        }
    }

    pub(super) fn pause(&mut self, device: DeviceId, length: u64) {
        let until = self.now + length;
        let node = self.nodes.get_mut(&device).expect("known node");
        if node.up && node.paused_until < self.now {
            node.paused_until = until;
            self.at(until, Happening::Resume(device));
        }
    }

    pub(super) fn pairs(&self) -> Vec<Pair> {
        let devices: Vec<DeviceId> = self.nodes.keys().copied().collect();
        let pairs = devices.iter().flat_map(|a| devices.iter().map(move |b| (*a, *b)));
        pairs.filter(|(a, b)| a < b).collect()
    }

    // ---- clients

    fn call(&mut self, client: usize) {
        if !self.stormy {
            return;
        }
        let pgs = self.mdm.pgs();
        let pg = *self.rng.pick(&pgs);
        let chunk = chunk(pg, self.rng.below(CHUNKS_PER_PG));
        let block = self.rng.below(BLOCKS as u64) as usize;
        let blocks = self.rng.between(1, (BLOCKS - block) as u64) as usize;
        let reads = self.rng.percent(50);
        self.begin(client, pg, chunk, block, blocks, reads);
    }

    fn begin(&mut self, client: usize, pg: PgId, chunk: ChunkId, block: usize, blocks: usize, reads: bool) {
        self.next += 1;
        let called = self.next;
        let action = if reads {
            Action::Read
        } else {
            let values: Data = (0..blocks).map(|block| self.next_value + 1 + block as u64).collect();
            self.next_value += blocks as u64;
            for (index, value) in values.iter().enumerate() {
                self.history.write_called((chunk, block + index), *value, called);
            }
            Action::Write(self.clients[client].next_operation(), values)
        };
        let pending = self.clients[client].call(Pending { pg, chunk, block, blocks, action, called, tries: 0 });
        self.resend(client, pending, 0);
    }

    /// Reads every block there is, to see what survived.
    pub(super) fn read_everything(&mut self) {
        for pg in self.mdm.pgs() {
            for index in 0..CHUNKS_PER_PG {
                self.begin(0, pg, chunk(pg, index), 0, BLOCKS, true);
            }
        }
    }

    fn resend(&mut self, client: usize, pending: u64, tries: u64) {
        let Some(body) = self.clients[client].pending.get_mut(&pending).filter(|body| body.tries == tries) else {
            return;
        };
        body.tries += 1;
        let body = body.clone();
        let low_water = self.clients[client].low_water();
        let config: PgConfig = self.mdm.config(body.pg).clone();
        // Mostly the primary; now and then somebody who was it.
        let replicas = self.mdm.replicas(body.pg).to_vec();
        let to = match config.primary {
            Some(primary) if self.rng.percent(95) => primary,
            Some(_) | None => *self.rng.pick(&replicas),
        };
        let (epoch, tries) = (config.epoch, body.tries);
        let request = ToServe { client, pending, epoch, body, low_water };
        let copies = if self.rng.percent(5) { 2 } else { 1 };
        for _ in 0..copies {
            if !self.stormy || !self.rng.percent(3) {
                let delay = self.client_delay();
                self.to_node_after(delay, to, Item::Request(request.clone()));
            }
        }
        let patience = self.rng.between(100, 600) * MS;
        self.after(patience, Happening::Resend(client, pending, tries));
    }

    fn client_delay(&mut self) -> u64 {
        if self.rng.percent(3) { self.rng.below(900 * MS) } else { self.rng.between(MS / 20, 2 * MS) }
    }

    fn serve(&mut self, device: DeviceId, request: ToServe) -> Result<(), String> {
        self.next += 1;
        let id = RequestId(self.next);
        let ToServe { client, pending, epoch, body, low_water } = request;
        let (pg, chunk, extent) = (body.pg, body.chunk, body.extent());
        let Some(store) = self.nodes[&device].stores.get(&pg) else { return Ok(()) };
        let creates_chunk = !store.applied.chunks.contains_key(&chunk);
        self.requests.insert((device, id), (client, pending, chunk));
        let event = match body.action {
            Action::Read => Event::Read(ClientRead { request: id, epoch, chunk, extent }),
            Action::Write(operation, data) => Event::Write(ClientWrite {
                request: id,
                epoch,
                client: self.clients[client].key,
                operation,
                low_water,
                chunk,
                extent,
                kind: WriteKind::Data(data),
                merge: self.rng.percent(5),
                creates_chunk,
            }),
        };
        self.step(device, pg, event)
    }

    fn answer(&mut self, device: DeviceId, pg: PgId, request: RequestId, outcome: Outcome<Data>) -> Result<(), String> {
        let Some((client, pending, chunk)) = self.requests.remove(&(device, request)) else {
            return Err(format!("request {request:?} was answered twice"));
        };
        self.oracle.answer(self.now, &self.nodes, device, pg, chunk, &outcome)?;
        if !self.stormy || !self.rng.percent(3) {
            let delay = self.client_delay();
            self.after(delay, Happening::Reply(client, pending, outcome));
        }
        Ok(())
    }

    fn reply(&mut self, client: usize, pending: u64, outcome: Outcome<Data>) -> Result<(), String> {
        self.next += 1;
        let returned = self.next;
        let Some(body) = self.clients[client].pending.get(&pending).cloned() else { return Ok(()) };
        match (outcome, &body.action) {
            (Outcome::Written { version, .. }, Action::Write(operation, values)) => {
                self.oracle.executed(self.clients[client].key, *operation, version)?;
                for (index, value) in values.iter().enumerate() {
                    self.history.write_returned((body.chunk, body.block + index), *value, returned);
                }
            }
            (Outcome::Read { data }, Action::Read) => {
                for (index, value) in data.iter().enumerate() {
                    self.history.read((body.chunk, body.block + index), *value, body.called, returned)?;
                }
            }
            (Outcome::Refused(Refusal::OldOperation), Action::Write(operation, _)) => {
                return Err(format!("{operation:?} was forgotten while its client still waits"));
            }
            (Outcome::Refused(_), _) => {
                let pause = self.rng.between(5, 40) * MS;
                self.after(pause, Happening::Resend(client, pending, body.tries));
                return Ok(());
            }
            (outcome, action) => return Err(format!("{action:?} was answered with {outcome:?}")),
        }
        self.clients[client].pending.remove(&pending);
        self.finished_operations += 1;
        let pause = self.rng.between(0, 50) * MS;
        self.after(pause, Happening::Call(client));
        Ok(())
    }

    pub(super) fn is_idle(&self) -> bool {
        self.clients.iter().all(|client| client.pending.is_empty())
    }

    pub(super) fn check_history(&self) -> Result<(), String> {
        self.history.check()
    }
}

fn chunk(pg: PgId, index: u64) -> ChunkId {
    ChunkId { vtree: VtreeId(1), layer: LayerId(0), index: ChunkIndex(u64::from(pg.index.0) * CHUNKS_PER_PG + index) }
}
