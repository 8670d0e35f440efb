//! The simulated cluster: nodes, network, MDM, clients, and one queue of what happens next.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, VecDeque};

use pflex_proto::ids::{ChunkId, DeviceId, Epoch, Incarnation, Member, PgId, PgIndex, PoolId};

use crate::replication::planted::{Bug, Planted};
use crate::replication::{
    Effect, Event, Extent, LeaseGrant, LeaseRequest, Message, Outcome, Pg, Proposal, Recovered, RequestId,
    VerifiedChunk,
};

use super::client::Client;
use super::doubling::Groups;
use super::history::History;
use super::load::ToServe;
use super::mdm::Mdm;
use super::moves::{Plans, Told};
use super::network::{Network, Pair};
use super::node::Node;
use super::oracle::Oracle;
use super::rng::Rng;
use super::store::Data;

pub(super) const MS: u64 = 1_000_000;
const NODES: u32 = 3;

/// One thing that will happen. What is meant for a node names the life it is meant for.
#[derive(Clone, Debug)]
pub(super) enum Item {
    Tick,
    Pg(PgId, Event<Data>),
    Told(PgId, Told),
    /// A store read whose result is taken now, not when it was asked for.
    Sample(PgId, Effect<Data>),
    Flush(PgId, crate::replication::Ticket),
    Message(Message<Data>),
    Connected(DeviceId, Incarnation),
    Disconnected(DeviceId, Incarnation),
    LeaseAsk(LeaseRequest),
    LeaseGive(LeaseGrant),
    RenewLeases,
    /// This life of another device is proven to have ended.
    Ended(DeviceId, Incarnation),
    Request(ToServe),
}

pub(super) enum Happening {
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
    Double,
}

/// See the module.
pub(super) struct World {
    pub(super) now: u64,
    pub(super) rng: Rng,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    pub(super) happenings: HashMap<u64, Happening>,
    /// Numbers everything that happens; also the clients' clock.
    pub(super) next: u64,
    pub(super) nodes: BTreeMap<DeviceId, Node>,
    waiting: BTreeMap<DeviceId, VecDeque<(Incarnation, Item)>>,
    pub(super) network: Network,
    pub(super) mdm: Mdm,
    pub(super) groups: Groups,
    pub(super) clients: Vec<Client>,
    pub(super) history: History,
    pub(super) oracle: Oracle,
    /// Which client's operation a node's request is.
    pub(super) requests: HashMap<(DeviceId, RequestId), (usize, u64, ChunkId)>,
    pub(super) next_value: u64,
    /// Chances of blocks that go bad; of their own, so that they change no other chance.
    pub(super) decay: Rng,
    /// Whether blocks go bad in this run. A repair holds its chunk, and what is rare without faults of disks is rarer
    /// still with them: every second run has none.
    pub(super) decays: bool,
    pub(super) planted: Planted,
    /// In worlds where copies move.
    pub(super) plans: Option<Plans>,
    pub(super) made: Vec<(DeviceId, PgId)>,
    /// Chunks to scrub until it is done, and how often.
    pub(super) to_scrub: BTreeMap<(PgId, ChunkId), u32>,
    /// Copies of which chunks were made to differ on purpose.
    pub(super) falsified: BTreeSet<ChunkId>,
    /// While faults and load go on.
    pub(super) stormy: bool,
    pub(super) told: BTreeMap<(DeviceId, PgId), (Epoch, Vec<Member>, bool)>,
    pub(super) watch_ends: BTreeMap<DeviceId, u64>,
    /// `PFLEX_SIM_TRACE`: print every event and effect.
    trace: bool,
    pub(super) finished_operations: u64,
    /// How often a group lost its memory (S14).
    pub(super) memory_losses: u64,
}

impl World {
    /// Copies and leads move, and there is a place more than in other worlds; every other one has a writeback pool.
    pub(super) fn with_moves(seed: u64, bug: Option<Bug>) -> Self {
        let mut world = Self::with_nodes(seed, bug, seed.is_multiple_of(2), NODES + 1);
        world.plans = Some(Plans::new(seed));
        world
    }

    /// The groups double in the middle of it, in every other one while copies and leads move. A third has a writeback pool.
    pub(super) fn with_doubling(seed: u64, bug: Option<Bug>) -> Self {
        let moves = seed.is_multiple_of(2);
        let mut world = Self::with_nodes(seed, bug, seed.is_multiple_of(3), NODES + u32::from(moves));
        world.plans = moves.then(|| Plans::new(seed));
        let when = world.rng.between(1_000, 20_000) * MS;
        world.after(when, Happening::Double);
        world
    }

    pub(super) fn new(seed: u64, bug: Option<Bug>, writeback: bool) -> Self {
        Self::with_nodes(seed, bug, writeback, NODES)
    }

    fn with_nodes(seed: u64, bug: Option<Bug>, writeback: bool, count: u32) -> Self {
        let mut rng = Rng::new(seed);
        let mut mdm = Mdm::new(writeback, Planted(bug));
        let devices: Vec<DeviceId> = (1..=count).map(DeviceId).collect();
        for index in 0..rng.between(2, 4) as u32 {
            let copies = if rng.percent(70) { 2 } else { 3 };
            let replicas = (0..copies).map(|copy| devices[((index + copy) % count) as usize]).collect();
            mdm.create(PgId { pool: PoolId(1), index: PgIndex(index) }, replicas, Incarnation(1));
        }
        let groups = Groups { first: mdm.pgs().len() as u32, doubled: false };
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
            groups,
            oracle: Oracle::new(groups),
            requests: HashMap::new(),
            next_value: 0,
            decay: Rng::new(seed ^ 0x5eed_bad0_b10c),
            decays: seed.is_multiple_of(2),
            planted: Planted(bug),
            plans: None,
            made: Vec::new(),
            to_scrub: BTreeMap::new(),
            falsified: BTreeSet::new(),
            stormy: true,
            told: BTreeMap::new(),
            watch_ends: BTreeMap::new(),
            trace: std::env::var_os("PFLEX_SIM_TRACE").is_some(),
            finished_operations: 0,
            memory_losses: 0,
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

    pub(super) fn at(&mut self, when: u64, happening: Happening) {
        self.next += 1;
        self.queue.push(Reverse((when, self.next)));
        self.happenings.insert(self.next, happening);
    }

    pub(super) fn after(&mut self, delay: u64, happening: Happening) {
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
            Happening::ToNode(device, incarnation, item) => self.arrive(device, incarnation, item)?,
            Happening::Resume(device) => {
                let waiting = self.waiting.remove(&device).unwrap_or_default();
                for (incarnation, item) in waiting {
                    self.arrive(device, incarnation, item)?;
                }
            }
            // What was aimed and comes after the storm misses.
            Happening::Crash(device, back_after) if self.stormy => self.crash(device, back_after),
            Happening::Crash(..) => {}
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
            Happening::Double => self.double(),
        }
        self.memory_lost()
    }

    // ---- nodes

    pub(super) fn node_after(&mut self, delay: u64, device: DeviceId, item: Item) {
        let incarnation = self.nodes[&device].incarnation;
        self.after(delay, Happening::ToNode(device, incarnation, item));
    }

    fn arrive(&mut self, device: DeviceId, incarnation: Incarnation, item: Item) -> Result<(), String> {
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
                self.node_after(50 * MS, device, Item::Tick);
                if self.plans.is_some() {
                    self.look_for_departed(device)?;
                    self.oracle.no_half_copies(&self.nodes[&device])?;
                }
                for pg in self.nodes[&device].pgs.keys().copied().collect::<Vec<_>>() {
                    super::decay::scrub_sometimes(self, device, pg)?;
                    // Not of the generator of chances: what is tried again when is no fault.
                    let jitter = (self.now / MS % 65_521) as u16;
                    self.step(device, pg, Event::Tick { jitter })?;
                    if self.nodes[&device].pgs[&pg].demand().wants {
                        self.step(device, pg, Event::SyncPermit)?;
                    }
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
            Item::Told(pg, told) => self.configure(device, pg, told)?,
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
            // Of a primary that was sooner.
            Item::Message(message) if self.is_early(device, message.pg) => {
                let node = self.nodes.get_mut(&device).expect("known node");
                let core =
                    Pg::with_planted(message.pg, node.member(), Recovered::default(), &node.leases, self.planted);
                node.pgs.insert(message.pg, core);
                self.step(device, message.pg, Event::Message(message))?;
            }
            // For a copy that nobody here knows of.
            Item::Message(message) if !self.nodes[&device].pgs.contains_key(&message.pg) => {}
            Item::Message(message) => self.step(device, message.pg, Event::Message(message))?,
            Item::Connected(peer, life) => {
                let peer = super::mdm::member(peer, life);
                self.nodes.get_mut(&device).expect("known node").connected.push(peer);
                self.everywhere(device, &Event::PeerConnected(peer))?;
            }
            Item::Disconnected(peer, life) => {
                let peer = super::mdm::member(peer, life);
                self.nodes.get_mut(&device).expect("known node").connected.retain(|known| *known != peer);
                self.everywhere(device, &Event::PeerDisconnected(peer))?;
            }
            Item::RenewLeases => {
                let again = self.rng.between(900, 1100) * MS;
                self.node_after(again, device, Item::RenewLeases);
                self.ask_for_leases(device);
            }
            Item::Ended(other, life) => {
                self.nodes.get_mut(&device).expect("known node").leases.ended(other, life);
                self.everywhere(device, &Event::Tick { jitter: 0 })?;
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

    fn is_early(&self, device: DeviceId, pg: PgId) -> bool {
        let node = &self.nodes[&device];
        self.groups.is_half(pg) && !node.doubled && !node.pgs.contains_key(&pg)
    }

    fn everywhere(&mut self, device: DeviceId, event: &Event<Data>) -> Result<(), String> {
        for pg in self.nodes[&device].pgs.keys().copied().collect::<Vec<_>>() {
            self.step(device, pg, event.clone())?;
        }
        Ok(())
    }

    pub(super) fn step(&mut self, device: DeviceId, pg: PgId, event: Event<Data>) -> Result<(), String> {
        let quiet = matches!(event, Event::Tick { .. } | Event::Durable { .. });
        let told = (self.trace && !quiet).then(|| format!("{event:?}"));
        let effects = self.nodes.get_mut(&device).expect("known node").handle(self.now, pg, event);
        if let Some(told) = told {
            println!("{:>12} pg {pg} device {device} <- {told}", self.now / 1000);
        }
        let mut failed = None;
        for effect in effects {
            if self.trace {
                println!("{:>12} pg {pg} device {device} -> {effect:?}", self.now / 1000);
            }
            failed = failed.or(self.carry_out(device, pg, effect)?);
        }
        if let Some(failed) = failed {
            return self.step(device, pg, failed);
        }
        // Else with the next tick.
        if self.nodes[&device].pgs[&pg].demand().wants && self.decay.percent(50) {
            self.node_after(MS, device, Item::Pg(pg, Event::SyncPermit));
        }
        self.oracle.watermark(&self.nodes, device, pg)
    }

    /// What its core must hear before anything else: that its store has failed.
    pub(super) fn carry_out(
        &mut self,
        device: DeviceId,
        pg: PgId,
        effect: Effect<Data>,
    ) -> Result<Option<Event<Data>>, String> {
        let mut delay = self.nodes[&device].disk_delay(self.now, &mut self.rng);
        if self.mdm.writeback && self.rng.percent(20) {
            delay += self.rng.below(60 * MS);
        }
        match effect {
            Effect::Apply { ticket, .. }
            | Effect::FixChunk { ticket, .. }
            | Effect::MarkUnsynced { ticket, .. }
            | Effect::WriteBlocks { ticket, .. }
            | Effect::SetVersion { ticket, .. }
            | Effect::Repair { ticket, .. }
            | Effect::ReplaceOperations { ticket, .. }
            | Effect::ClearFailure { ticket } => {
                let node = self.nodes.get_mut(&device).expect("known node");
                let fails = node.full && matches!(effect, Effect::Apply { .. });
                node.full &= !fails;
                let volatility = node.pgs[&pg].config().map(|config| config.volatility).unwrap_or_default();
                let store = node.stores.get_mut(&pg).expect("a replica has a store");
                let place = super::store::place(&effect);
                let failed = store.change(ticket, effect, volatility, fails, self.planted);
                if let Some(chunk) = place {
                    self.oracle.versions(pg, &store.applied, chunk)?;
                }
                let ends = node.flush_ends.entry(pg).or_default();
                *ends = (*ends).max(self.now + delay);
                let delay = *ends - self.now;
                let held = !failed && !store.has_failed();
                if held && self.mdm.writeback && self.rng.percent(90) {
                    self.node_after(MS / 50, device, Item::Pg(pg, Event::Held { through: ticket }));
                }
                if failed {
                    return Ok(Some(Event::StoreFailed { ticket, no_space: fails }));
                }
                self.node_after(delay, device, Item::Flush(pg, ticket));
            }
            Effect::Read { .. }
            | Effect::ListVersions { .. }
            | Effect::ReadSums { .. }
            | Effect::FindUnreadable { .. }
            | Effect::ReadBlocks { .. }
            | Effect::Verify { .. }
            | Effect::ReadDifference { .. } => {
                // The result is from any moment between asking and answering.
                let item = if self.rng.percent(50) {
                    Item::Pg(pg, self.sample(device, pg, effect))
                } else {
                    Item::Sample(pg, effect)
                };
                self.node_after(delay, device, item);
            }
            Effect::Merge { request, chunk, extent, data } => {
                let read = self.nodes[&device].stores[&pg].read(chunk, extent);
                let merged = read.map(|_| (extent, data));
                self.node_after(delay, device, Item::Pg(pg, Event::Merged { request, merged }));
            }
            Effect::Scrubbed { chunk, outcome } => super::decay::scrubbed(self, pg, chunk, outcome)?,
            Effect::Unreadable { chunk, .. } => self.oracle.unreadable(&self.nodes, device, pg, chunk)?,
            Effect::Reserve { chunk } => {
                let granted = self.rng.percent(97);
                let store = self.nodes.get_mut(&device).and_then(|node| node.stores.get_mut(&pg));
                let store = store.expect("a replica has a store");
                if granted && !store.applied.chunks.contains_key(&chunk) {
                    store.reserved.insert(chunk);
                }
                self.node_after(delay, device, Item::Pg(pg, Event::Reserved { chunk, granted }));
            }
            Effect::Unreserve { chunk } => {
                let node = self.nodes.get_mut(&device).expect("known node");
                node.stores.get_mut(&pg).expect("a replica has a store").reserved.remove(&chunk);
            }
            Effect::ReleaseReservations => {
                let node = self.nodes.get_mut(&device).expect("known node");
                node.stores.get_mut(&pg).expect("a replica has a store").reserved.clear();
            }
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
        Ok(None)
    }

    fn sample(&self, device: DeviceId, pg: PgId, effect: Effect<Data>) -> Event<Data> {
        let store = &self.nodes[&device].stores[&pg];
        match effect {
            Effect::Read { request, chunk, extent } => Event::ReadDone { request, data: store.read(chunk, extent) },
            Effect::ListVersions { round, above } => Event::Listed { round, entries: store.list(above) },
            Effect::ReadSums { round, chunk } => Event::SumsRead { round, chunk, sums: store.sums(chunk) },
            Effect::ReadDifference { round, chunk, theirs } => {
                Event::DifferenceRead { round, chunk, image: store.difference(chunk, &theirs) }
            }
            Effect::FindUnreadable { round, chunk, extent } => {
                let (version, blocks) = (store.version(chunk), store.unreadable(chunk, extent));
                Event::UnreadableFound { round, chunk, version, blocks }
            }
            Effect::ReadBlocks { round, chunk, extent } => {
                let mut data = store.read(chunk, extent);
                if self.planted.is(Bug::RepairUnverified) {
                    data = data.or_else(|| Some(vec![u64::MAX]));
                }
                let version = store.version(chunk);
                Event::BlocksRead { round, chunk, extent, version, data }
            }
            Effect::Verify { round, chunk } => {
                let (version, sums, bad) =
                    (store.version(chunk), store.sums(chunk), store.unreadable(chunk, Extent::CHUNK));
                Event::Verified { round, chunk, verified: VerifiedChunk { version, sums, bad } }
            }
            other => panic!("not a store read: {other:?}"),
        }
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
        self.prove_dead(device, 400);
        self.after(back_after, Happening::Restart(device));
    }

    /// S8: others learn that this life of a device has ended, each when it does, within so many milliseconds or never.
    fn prove_dead(&mut self, device: DeviceId, within: u64) {
        let life = self.nodes[&device].incarnation;
        for other in self.nodes.keys().copied().filter(|other| *other != device).collect::<Vec<_>>() {
            if self.nodes[&other].up && self.rng.percent(80) {
                let delay = self.rng.below(within * MS);
                self.node_after(delay, other, Item::Ended(device, life));
            }
        }
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
        self.node_after(MS, device, Item::Tick);
        self.node_after(MS, device, Item::RenewLeases);
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
            self.fall_silent(device, 500);
        }
    }

    /// A device does not answer. That proves nothing (S8), unless the bug is planted that takes it for a proof.
    pub(super) fn fall_silent(&mut self, device: DeviceId, within: u64) {
        if self.planted.is(Bug::SilenceIsProof) {
            self.prove_dead(device, within);
        }
    }

    pub(super) fn pairs(&self) -> Vec<Pair> {
        let devices: Vec<DeviceId> = self.nodes.keys().copied().collect();
        let pairs = devices.iter().flat_map(|a| devices.iter().map(move |b| (*a, *b)));
        pairs.filter(|(a, b)| a < b).collect()
    }

    pub(super) fn check_history(&self) -> Result<(), String> {
        self.history.check()
    }
}
