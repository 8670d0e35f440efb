//! The loop: pick an event, change the state, let the cores decide, carry effects out, flush.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use pflex_common::{
    clock::{LogTimeFollower, MonotonicTime},
    frames::Frame,
    map::ClusterMap,
};
use pflex_proto::{
    ids::{ClusterId, DeviceId, Member, PgId, TokenId},
    pb::TokenUse,
    pg::PgConfig,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::MissedTickBehavior,
};

use super::{
    command::{Command, Report},
    connection::{Incoming, Outgoing},
    deaths::{self, Deaths},
    departed::{self, Departed},
    effects::{Fetched, Slot},
    handle::DeviceCounters,
    links::{LinkUp, Links},
    memory::Memory,
    orphans::{Orphans, PURGE_BATCH, SWEEP_EVERY},
    pending::{Asks, Pending, PendingRequests},
    resync::Resync,
    scrub::Scrub,
    sorting::Unsorted,
    thread::WorkerConfig,
};
use crate::{
    admission::{BadTokens, ConnectionId, Heard, Sessions, Surroundings, told},
    payload::Payload,
    replication::{Effect, Event, JoinTrouble, Leases, Time, limits},
    store::{self, MetaError, PgReport, Store},
};

/// Frames of clients that wait for the loop. More would only add latency: the sockets hold them as well.
const CLIENT_INBOX: usize = 256;
/// Frames of other copies that wait. A lane of their own, taken first: a client flood never delays replication (S24).
const PEER_INBOX: usize = 1024;
/// Frames taken before the loop looks at anything else.
const BATCH: usize = 64;
/// Between two looks for copies that have lost their place.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Copies without room that a beat names; the others when these are settled.
const MAX_NO_ROOM: usize = 64;
/// Between two times that other copies are asked for leases.
const RENEWAL_PAUSE: Duration = Duration::from_millis(5);
/// How often token uses go to the MDM.
const USES_EVERY: Duration = Duration::from_secs(5);
/// Used tokens that are told of at once: in per-io mode each operation has one.
pub(super) const MOST_USES: usize = 16_384;

/// Who is at the other end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Party {
    Sdc { sdc: pflex_proto::ids::SdcId, process: pflex_proto::ids::ProcessId },
    Replication(Member),
    Lease(Member),
}

/// An open connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) party: Party,
    /// None if it was gone before it could be asked.
    pub(super) address: Option<std::net::IpAddr>,
    pub(super) outgoing: Outgoing,
    /// Has frames queued since the last flush.
    pub(super) dirty: bool,
    /// Dropped with the connection; tells the dialing task, if there is one, to dial again.
    pub(super) _gone: Option<tokio_util::sync::DropGuard>,
}

/// See the module.
pub(super) struct Worker {
    pub(super) cluster: ClusterId,
    pub(super) own: Member,
    pub(super) store: Store,
    pub(super) leases: Leases,
    pub(super) slots: HashMap<PgId, Slot>,
    pub(super) recovered: HashMap<PgId, PgReport>,
    pub(super) connections: HashMap<ConnectionId, Connection>,
    pub(super) next_connection: ConnectionId,
    pub(super) dirty: Vec<ConnectionId>,
    pub(super) links: Links,
    pub(super) deaths: Deaths,
    pub(super) sessions: Sessions,
    pub(super) pending: PendingRequests,
    pub(super) map: Arc<ClusterMap>,
    pub(super) log_time: LogTimeFollower,
    pub(super) events: VecDeque<(PgId, Event<Payload>)>,
    pub(super) uses: HashMap<TokenId, TokenUse>,
    pub(super) bad_tokens: BadTokens,
    pub(super) counters: Arc<DeviceCounters>,
    pub(super) reports: mpsc::Sender<Report>,
    /// One for each store read in flight, and those are bounded by the cores.
    pub(super) fetched: mpsc::UnboundedSender<Fetched>,
    pub(super) client_inbox: mpsc::Sender<Incoming>,
    pub(super) peer_inbox: mpsc::Sender<Incoming>,
    pub(super) renew_leases: bool,
    pub(super) orphans: Orphans,
    pub(super) memory: Memory,
    pub(super) departed: Departed,
    pub(super) resync: Resync,
    pub(super) scrub: Scrub,
    /// The groups of the pool have doubled, and the chunks are not sorted yet.
    pub(super) unsorted: Option<Unsorted>,
    /// One for each row that is being deleted.
    pub(super) forgotten: mpsc::UnboundedSender<(PgId, Result<(), MetaError>)>,
    lanes: Lanes,
    last_renewal: MonotonicTime,
    last_uses: MonotonicTime,
    last_sweep: MonotonicTime,
    last_look: MonotonicTime,
}

/// What the store knew of volumes when it was opened: their chunks, and who wrote them.
fn known_volumes(config: &WorkerConfig) -> HashSet<u64> {
    let clients = config.opened.pgs.iter().flat_map(|report| {
        let low_waters = report.operations.low_waters.iter().map(|(client, _)| client.volume.0);
        low_waters.chain(report.operations.entries.iter().map(|entry| entry.client.volume.0))
    });
    config.store.vtrees().into_iter().map(|tree| tree.0).chain(clients).collect()
}

/// The receiving ends.
struct Lanes {
    commands: mpsc::Receiver<Command>,
    clients: mpsc::Receiver<Incoming>,
    peers: mpsc::Receiver<Incoming>,
    fetched: mpsc::UnboundedReceiver<Fetched>,
    links: mpsc::Receiver<LinkUp>,
    refused: mpsc::Receiver<Member>,
    /// One for each map with changes, and those come one after the other.
    remembered: mpsc::UnboundedReceiver<Result<(), MetaError>>,
    forgotten: mpsc::UnboundedReceiver<(PgId, Result<(), MetaError>)>,
}

impl Worker {
    pub(super) fn new(config: WorkerConfig, counters: Arc<DeviceCounters>, commands: mpsc::Receiver<Command>) -> Self {
        let (client_inbox, clients) = mpsc::channel(CLIENT_INBOX);
        let (peer_inbox, peers) = mpsc::channel(PEER_INBOX);
        let (fetched, fetched_receiver) = mpsc::unbounded_channel();
        let (links, link_receiver) = Links::new(config.cluster, config.own);
        let (deaths, refused) = Deaths::new();
        let known = known_volumes(&config);
        let (memory, remembered) = Memory::new(config.opened.configs.clone());
        let (forgotten, forgotten_receiver) = mpsc::unbounded_channel();
        let data = config.opened.pgs.iter().map(|report| report.pg);
        let rests = departed::rests(data, config.opened.configs.iter().map(|(pg, _)| *pg));
        let departed = Departed::new(config.own.device, config.registered, config.departed_grace, rests);
        let opened_at = Time(u64::try_from(config.opened_at.since_boot().as_nanos()).unwrap_or(u64::MAX));
        Self {
            cluster: config.cluster,
            own: config.own,
            store: config.store,
            leases: Leases::new(config.own, opened_at),
            slots: HashMap::new(),
            recovered: config.opened.pgs.into_iter().map(|report| (report.pg, report)).collect(),
            connections: HashMap::new(),
            next_connection: ConnectionId(1),
            dirty: Vec::new(),
            links,
            deaths,
            sessions: Sessions::new(config.cluster, config.own),
            pending: PendingRequests::default(),
            map: Arc::default(),
            log_time: LogTimeFollower::default(),
            events: VecDeque::new(),
            uses: HashMap::new(),
            bad_tokens: BadTokens::default(),
            counters,
            reports: config.reports,
            fetched,
            client_inbox,
            peer_inbox,
            renew_leases: false,
            orphans: Orphans::new(config.registered, known),
            memory,
            departed,
            resync: Resync::default(),
            scrub: Scrub::default(),
            unsorted: None,
            forgotten,
            lanes: Lanes {
                commands,
                clients,
                peers,
                fetched: fetched_receiver,
                links: link_receiver,
                refused,
                remembered,
                forgotten: forgotten_receiver,
            },
            last_renewal: MonotonicTime::default(),
            last_uses: MonotonicTime::now(),
            last_sweep: MonotonicTime::now(),
            last_look: MonotonicTime::now(),
        }
    }

    /// Until told to stop.
    pub(super) async fn run(mut self) {
        let mut tick = tokio::time::interval(limits::TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut peer_frames, mut client_frames) = (Vec::with_capacity(BATCH), Vec::with_capacity(BATCH));
        let stopped = loop {
            // A full journal stops new client requests at their sockets, nothing else (S24).
            let takes_clients = self.store.stats().waiting_changes == 0;
            let pause = self.renewal_pause();
            tokio::select! {
                biased;
                command = self.lanes.commands.recv() => match command {
                    Some(Command::Stop(done)) => break Some(done),
                    None => break None,
                    Some(command) => self.on_command(command),
                },
                durable = self.store.durable() => self.on_durable(durable),
                _ = self.lanes.peers.recv_many(&mut peer_frames, BATCH) => self.on_incoming(&mut peer_frames),
                Some(fetched) = self.lanes.fetched.recv() => self.on_fetched(fetched),
                Some(link) = self.lanes.links.recv() => self.on_link(link),
                Some(member) = self.lanes.refused.recv() => self.on_refused(member),
                Some(result) = self.lanes.remembered.recv() => self.on_remembered(result),
                Some(forgotten) = self.lanes.forgotten.recv() => self.on_forgotten(forgotten),
                _ = self.lanes.clients.recv_many(&mut client_frames, BATCH), if takes_clients => {
                    self.on_incoming(&mut client_frames);
                }
                _ = tick.tick() => self.on_tick(),
                () = tokio::time::sleep(pause.unwrap_or_default()), if pause.is_some() => {}
            }
            self.settle();
            self.sort_if_ready().await;
            self.counters.turns.fetch_add(1, Ordering::Relaxed);
        };
        self.stop(stopped).await;
    }

    async fn stop(mut self, done: Option<oneshot::Sender<()>>) {
        self.send_uses();
        for connection in self.connections.values() {
            connection.outgoing.close();
        }
        self.links.stop();
        if let Err(poison) = self.store.close().await {
            tracing::error!(device = %self.own.device, error = %poison, "the device was not closed cleanly");
        }
        if let Some(done) = done {
            // Whoever asked may have given up waiting.
            let _ = done.send(());
        }
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Accepted(accepted) => self.on_accepted(accepted),
            Command::Map(map) => self.on_map(map),
            Command::Stamp { term, log_time, at } => self.log_time.observe(term, log_time, at),
            Command::Secrets(secrets) => {
                let newest = secrets.iter().map(|secret| secret.id().get()).max().unwrap_or(0);
                self.sessions.set_secrets(secrets);
                self.counters.newest_key.store(newest, Ordering::Release);
            }
            Command::Scrub(order) => self.on_scrub_order(order),
            Command::ProposalRejected { pg, expected_epoch } => {
                self.events.push_back((pg, Event::ProposalRejected { expected_epoch }));
            }
            Command::Activated { pg, epoch } => self.events.push_back((pg, Event::Activated { epoch })),
            #[cfg(test)]
            Command::Hang { begun, until } => {
                let _ = begun.send(());
                let _ = until.recv();
            }
            Command::Stop(_) => unreachable!("the loop takes it"),
        }
    }

    fn on_incoming(&mut self, frames: &mut Vec<Incoming>) {
        for incoming in frames.drain(..) {
            match incoming {
                Incoming::Frame(id, frame) => self.on_frame(id, frame),
                Incoming::Closed(id, error) => {
                    if error.as_ref().is_none_or(deaths::closed_by_peer) {
                        self.suspect(id);
                    }
                    if let Some(error) = error {
                        tracing::debug!(
                            connection = id.0,
                            error = &error as &dyn std::error::Error,
                            "connection ended"
                        );
                    }
                    self.close(id);
                }
            }
            // Decide at once: a session opened by one frame admits the next.
            self.decide();
        }
    }

    fn on_frame(&mut self, id: ConnectionId, frame: Frame) {
        // Frames of a connection that was closed here meanwhile are as lost as those still in the socket.
        let Some(party) = self.connections.get(&id).map(|connection| connection.party) else { return };
        match party {
            Party::Sdc { sdc, process } => self.on_client_frame(id, sdc, process, frame),
            Party::Replication(member) => self.on_peer_frame(id, member, &frame),
            Party::Lease(member) => self.on_lease_frame(id, member, &frame),
        }
    }

    pub(super) fn on_tick(&mut self) {
        let now = MonotonicTime::now();
        for pg in self.slots.keys() {
            self.events.push_back((*pg, Event::Tick { jitter: rand::random() }));
        }
        self.discard_expired();
        if now.since(self.last_renewal) >= limits::LEASE_RENEWAL {
            self.renew_leases = true;
        }
        if now.since(self.last_uses) >= USES_EVERY {
            self.last_uses = now;
            self.send_uses();
        }
        if now.since(self.last_sweep) >= SWEEP_EVERY {
            self.last_sweep = now;
            self.sweep(now);
        }
        if now.since(self.last_look) >= LOOK_EVERY {
            self.last_look = now;
            self.store.look_for_space();
            self.store.use_rest();
            self.look_for_departed(now);
        }
        self.purge();
        self.scrub_next();
        self.publish();
    }

    /// Looks for what deleted volumes left behind.
    fn sweep(&mut self, now: MonotonicTime) {
        self.orphans.sweep(now, &self.map, &self.store.vtrees());
        let Some(deleted) = self.orphans.deleted(&self.map) else { return };
        self.store.forget_clients(|client| deleted(client.volume));
        for slot in self.slots.values_mut() {
            slot.core.forget_clients(|client| deleted(client.volume));
        }
        self.sessions.forget_volumes(&deleted);
    }

    /// Frees some space of deleted volumes and of copies that lost their place, unless changes wait for the journal already.
    fn purge(&mut self) {
        // Nor while the chunks are to be sorted: a group of which nothing is left would take a configuration of after it.
        if self.store.stats().waiting_changes > 0 || self.store.poison().is_some() || self.unsorted.is_some() {
            return;
        }
        let Some(tree) = self.orphans.next(&self.map) else { return self.drop_departed() };
        match self.store.trim_tree(tree, PURGE_BATCH) {
            Ok(0) => {
                tracing::info!(device = %self.own.device, volume = %tree, "the space of a deleted volume is free");
                self.orphans.purged(tree);
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(volume = %tree, %error, "space of a deleted volume is not freed yet"),
        }
    }

    /// S20: a write that still waits to be ordered when its token has expired is not ordered any more.
    fn discard_expired(&mut self) {
        let Some(log_time) = self.log_time.now(MonotonicTime::now()) else { return };
        let expired = |pending: &Pending| pending.asks == Asks::Write && pending.authority.token().expires <= log_time;
        let expired = self.pending.matching(expired);
        self.cancel(expired);
    }

    pub(super) fn send_uses(&mut self) {
        if !self.uses.is_empty() {
            let uses = self.uses.drain().map(|(_, used)| used).collect();
            // Accounting never slows IO: what finds no room is lost, and said so.
            if self.reports.try_send(Report::Uses(uses)).is_err() {
                tracing::warn!(device = %self.own.device, "token uses were not reported: too many reports wait");
            }
        }
        let bad: Vec<_> = self.bad_tokens.take().into_iter().map(told).collect();
        if !bad.is_empty() && self.reports.try_send(Report::BadTokens(bad)).is_err() {
            tracing::warn!(device = %self.own.device, "refused tokens were not reported: too many reports wait");
        }
    }

    pub(super) fn publish(&mut self) {
        use crate::replication::RoleName;
        let mut roles = [0_u32; 3];
        let (mut resync_chunks, mut joins) = (0_u64, 0);
        let mut stuck = 0_u32;
        let (mut trouble, mut troubled, mut no_room) = (None, 0_usize, Vec::new());
        for (pg, slot) in &self.slots {
            let status = slot.core.status();
            if let Some(why) = status.trouble {
                troubled += 1;
                if let JoinTrouble::NoSpace { device } = why
                    && no_room.len() < MAX_NO_ROOM
                {
                    no_room.push((*pg, device));
                }
                trouble = trouble.into_iter().chain([(*pg, why)]).min_by_key(|(pg, _)| *pg);
            }
            joins += u32::from(status.joining.is_some());
            let alone = slot.core.config().is_some_and(|config| config.in_sync == [self.own]);
            stuck += u32::from(status.failed && alone);
            resync_chunks += status.joining.and_then(|(_, chunks)| chunks).unwrap_or(0) as u64;
            match status.role {
                RoleName::Opening { .. } | RoleName::Serving => roles[0] += 1,
                RoleName::Backup { .. } | RoleName::Orphan => roles[1] += 1,
                // A copy that has lost its place is in no set either, and joins nothing.
                RoleName::Joiner => {
                    let joins = |config: &Arc<PgConfig>| config.replicas.contains(&self.own.device);
                    roles[2] += u32::from(slot.config.as_ref().is_some_and(joins));
                }
                RoleName::Outside => {}
            }
        }
        if joins == 0 {
            self.resync.rest();
        }
        let trouble = trouble.map(|(pg, why)| said(pg, why, troubled - 1));
        self.counters.say_join_trouble(trouble);
        self.counters.say_no_room(no_room);
        let stats = self.store.stats();
        let unit = u64::from(pflex_proto::geometry::CHUNK_SIZE);
        let counters = &self.counters;
        counters.stuck_groups.store(stuck, Ordering::Relaxed);
        counters.pgs_primary.store(roles[0], Ordering::Relaxed);
        counters.pgs_backup.store(roles[1], Ordering::Relaxed);
        counters.pgs_joining.store(roles[2], Ordering::Relaxed);
        counters.resync_left_bytes.store(self.resync.estimate(resync_chunks), Ordering::Relaxed);
        counters.capacity_bytes.store(u64::from(stats.units_total) * unit, Ordering::Relaxed);
        let free = (stats.units_available + stats.units_refused).min(stats.units_total);
        let used = u64::from(stats.units_total - free);
        counters.used_bytes.store(used * unit, Ordering::Relaxed);
        counters.journal_bytes.store(stats.journal_bytes, Ordering::Relaxed);
        counters.journal_used_bytes.store(stats.journal_used_bytes, Ordering::Relaxed);
        counters.waiting.store(!self.pending.is_empty(), Ordering::Relaxed);
        counters.starved.store(stats.units_refused > 0, Ordering::Relaxed);
        counters.full.store(stats.units_available as usize <= self.spare_units(), Ordering::Relaxed);
        if let Some(poison) = self.store.poison() {
            counters.poison.get_or_init(|| format!("{poison}: {}", poison.cause));
        }
    }

    /// After every event: decide until nothing is left to decide, then let the sockets have what is queued.
    pub(super) fn settle(&mut self) {
        self.decide();
        self.fill_copies();
        if self.renew_leases {
            self.renew();
        }
        for id in self.dirty.drain(..) {
            if let Some(connection) = self.connections.get_mut(&id) {
                connection.dirty = false;
                connection.outgoing.flush();
            }
        }
        let confirmed = self.pending.confirmed();
        self.counters.confirmed.store(confirmed.0, Ordering::Release);
    }

    /// A grant is for all groups at once, so a burst of new epochs is worth few of them.
    fn renew(&mut self) {
        let now = MonotonicTime::now();
        if now.since(self.last_renewal) >= RENEWAL_PAUSE {
            (self.last_renewal, self.renew_leases) = (now, false);
            self.ask_for_leases();
        }
    }

    /// How long leases are not asked for that are to be asked for; none: there are none.
    fn renewal_pause(&self) -> Option<Duration> {
        let left = || RENEWAL_PAUSE.saturating_sub(MonotonicTime::now().since(self.last_renewal));
        self.renew_leases.then(left)
    }

    pub(super) fn decide(&mut self) {
        let mut effects: Vec<Effect<Payload>> = Vec::new();
        while let Some((pg, event)) = self.events.pop_front() {
            let now = self.time();
            let Some(slot) = self.slots.get_mut(&pg) else { continue };
            slot.core.handle(now, &self.leases, event, &mut effects);
            let demand = slot.core.demand();
            for effect in effects.drain(..) {
                self.carry_out(pg, effect);
            }
            self.resync.note(pg, demand);
        }
    }

    /// What clients do not get of this device.
    pub(super) fn spare_units(&self) -> usize {
        self.resync.spare_units(self.store.stats().units_total)
    }

    /// Lets groups copy their next chunks to those who fill copies, as far as the policy allows now.
    fn fill_copies(&mut self) {
        let now = self.time();
        while let Some(pg) = self.resync.grant(now) {
            self.events.push_back((pg, Event::SyncPermit));
            self.decide();
            // Requests that wait go before the next one.
            if !self.lanes.clients.is_empty() {
                return;
            }
        }
    }

    pub(super) fn time(&self) -> Time {
        Time(u64::try_from(MonotonicTime::now().since_boot().as_nanos()).unwrap_or(u64::MAX))
    }

    pub(super) fn surroundings(&self) -> Surroundings<'_> {
        Surroundings { map: &self.map, heard: Heard::of(&self.log_time, MonotonicTime::now()) }
    }

    pub(super) fn on_durable(&mut self, durable: Result<Vec<store::Durable>, store::Poison>) {
        match durable {
            Ok(durable) => {
                for store::Durable { pg, through } in durable {
                    if let Some(through) = self.slots.get_mut(&pg).and_then(|slot| slot.durable(through)) {
                        self.events.push_back((pg, Event::Durable { through }));
                    }
                }
            }
            Err(poison) => {
                tracing::error!(device = %self.own.device, error = &poison as &dyn std::error::Error, "device out of service");
                for (pg, slot) in &mut self.slots {
                    self.events.push_back((*pg, Event::StoreFailed { ticket: slot.fail(), no_space: false }));
                }
            }
        }
    }

    pub(super) fn close(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.remove(&id) else { return };
        connection.outgoing.close();
        match connection.party {
            Party::Sdc { .. } => self.sessions.close(id),
            Party::Lease(member) => self.links.lease_down(member, id),
            Party::Replication(member) => {
                if self.links.replication_down(member, id) {
                    self.joiner_gone(member);
                    self.tell_all(|| Event::PeerDisconnected(member));
                }
            }
        }
    }

    /// Writes wait for a joiner from proposing on (S3), and joins wait for others before they are proposed.
    fn joiner_gone(&self, joiner: Member) {
        let fills = |slot: &Slot| slot.core.status().joining.is_some_and(|(member, _)| member == joiner);
        if self.slots.values().any(fills) {
            let (reports, device) = (self.reports.clone(), self.own.device);
            // Behind the proposals that it is about.
            tokio::task::spawn_local(async move { drop(reports.send(Report::JoinerGone { device, joiner }).await) });
        }
    }

    pub(super) fn tell_all(&mut self, event: impl Fn() -> Event<Payload>) {
        let events = self.slots.keys().map(|pg| (*pg, event()));
        self.events.extend(events);
    }

    /// The device of a replica as the map knows it.
    pub(super) fn member_of(&self, device: DeviceId) -> Option<Member> {
        let info = self.map.devices.get(&device)?;
        Some(Member { device, sds: info.sds, incarnation: info.incarnation })
    }
}

/// For a person: why a copy is not filled, and in how many other groups something is wrong as well.
fn said(pg: PgId, trouble: JoinTrouble, others: usize) -> String {
    let mut said = match trouble {
        JoinTrouble::Unreadable { chunk } => {
            format!("chunk {chunk} of group {pg} cannot be read, so a copy of the group stays incomplete")
        }
        JoinTrouble::NoSpace { device } => format!("no space on device {device} for group {pg}"),
        JoinTrouble::CannotApply { device } => format!("device {device} cannot apply the writes of group {pg}"),
    };
    if others > 0 {
        said.push_str(&format!(" (and {others} other groups)"));
    }
    said
}
