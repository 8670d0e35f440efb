//! Connections between devices that share placement groups: one for replication and one for leases per pair, dialed by
//! the device with the lower id and used in both directions.

use std::{collections::HashMap, sync::atomic::Ordering, time::Duration};

use bytes::{Bytes, BytesMut};
use pflex_common::{
    frames::{Frame, FrameQueue, FrameReader},
    net::{Endpoint, connect_data},
};
use pflex_proto::{
    codec::{CodecError, Reader, Wire},
    data::{Hello, HelloReply, PROTOCOL_VERSION, Peer, Refusal},
    frame::FrameKind,
    ids::{ClusterId, DeviceId, Incarnation, Member, SdsId},
};
use tokio::{net::TcpStream, sync::mpsc};
use tokio_util::sync::CancellationToken;

use super::{
    connection::{self, MAX_UNSENT_BYTES},
    effects::copied_if_small,
    wire,
    worker::{Connection, Party, Worker},
};
use crate::{
    admission::ConnectionId,
    payload::Payload,
    replication::{Body, Event, Message},
};

/// Between two attempts to reach a peer.
const REDIAL: Duration = Duration::from_millis(50);
/// A peer that accepts and does not answer the greeting is not there.
const GREETING_TIMEOUT: Duration = Duration::from_secs(2);
/// Links that come up at the same time; each waits for the loop.
const MAX_LINK_EVENTS: usize = 64;

/// A dialed connection whose greeting was answered.
#[derive(Debug)]
pub(super) struct LinkUp {
    member: Member,
    lease: bool,
    stream: TcpStream,
    leftover: BytesMut,
    gone: tokio_util::sync::DropGuard,
}

/// Which links are up, and the tasks that dial.
#[derive(Debug)]
pub(super) struct Links {
    cluster: ClusterId,
    own: Member,
    up: mpsc::Sender<LinkUp>,
    dialing: HashMap<DeviceId, (Endpoint, CancellationToken)>,
    replication: HashMap<DeviceId, (Member, ConnectionId)>,
    leases: HashMap<DeviceId, (Member, ConnectionId)>,
}

impl Links {
    pub(super) fn new(cluster: ClusterId, own: Member) -> (Self, mpsc::Receiver<LinkUp>) {
        let (up, receiver) = mpsc::channel(MAX_LINK_EVENTS);
        let links =
            Self { cluster, own, up, dialing: HashMap::new(), replication: HashMap::new(), leases: HashMap::new() };
        (links, receiver)
    }

    /// Dials exactly these peers, of those with a higher id than ours.
    pub(super) fn dial(&mut self, peers: &HashMap<DeviceId, (SdsId, Endpoint)>) {
        self.dialing.retain(|device, (endpoint, stop)| {
            let wanted = peers.get(device).is_some_and(|(_, wanted)| wanted == endpoint);
            if !wanted {
                stop.cancel();
            }
            wanted
        });
        for (device, (sds, endpoint)) in peers {
            if *device <= self.own.device || self.dialing.contains_key(device) {
                continue;
            }
            let stop = CancellationToken::new();
            for lease in [false, true] {
                let dialer = Dialer {
                    cluster: self.cluster,
                    own: self.own,
                    device: *device,
                    sds: *sds,
                    endpoint: endpoint.clone(),
                    lease,
                    up: self.up.clone(),
                };
                tokio::task::spawn_local(stop.clone().run_until_cancelled_owned(dialer.run()));
            }
            self.dialing.insert(*device, (endpoint.clone(), stop));
        }
    }

    pub(super) fn stop(&mut self) {
        for (_, stop) in self.dialing.values() {
            stop.cancel();
        }
    }

    /// The connection to this life of a peer.
    pub(super) fn replication_to(&self, member: Member) -> Option<ConnectionId> {
        self.replication.get(&member.device).filter(|(known, _)| *known == member).map(|(_, id)| *id)
    }

    /// Whether any connection to this life of a peer is up.
    pub(super) fn reach(&self, member: Member) -> bool {
        let is_it = |link: Option<&(Member, ConnectionId)>| link.is_some_and(|(known, _)| *known == member);
        is_it(self.replication.get(&member.device)) || is_it(self.leases.get(&member.device))
    }

    pub(super) fn connected(&self) -> impl Iterator<Item = Member> + '_ {
        self.replication.values().map(|(member, _)| *member)
    }

    pub(super) fn lease_links(&self) -> Vec<(Member, ConnectionId)> {
        self.leases.values().copied().collect()
    }

    /// Whether this was the peer's present link.
    pub(super) fn replication_down(&mut self, member: Member, id: ConnectionId) -> bool {
        let present = self.replication.get(&member.device).is_some_and(|(_, known)| *known == id);
        if present {
            self.replication.remove(&member.device);
        }
        present
    }

    pub(super) fn lease_down(&mut self, member: Member, id: ConnectionId) {
        if self.leases.get(&member.device).is_some_and(|(_, known)| *known == id) {
            self.leases.remove(&member.device);
        }
    }
}

/// A body that is encoded already.
struct Encoded(Vec<u8>);

impl Wire for Encoded {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.0);
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        Ok(Self(reader.take(reader.remaining())?.to_vec()))
    }
}

struct Dialer {
    cluster: ClusterId,
    own: Member,
    device: DeviceId,
    sds: SdsId,
    endpoint: Endpoint,
    lease: bool,
    up: mpsc::Sender<LinkUp>,
}

impl Dialer {
    /// Until cancelled.
    async fn run(self) {
        loop {
            match tokio::time::timeout(GREETING_TIMEOUT, self.greet()).await {
                Ok(Ok((member, stream, leftover))) => {
                    let gone = CancellationToken::new();
                    let guard = gone.clone().drop_guard();
                    let up = LinkUp { member, lease: self.lease, stream, leftover, gone: guard };
                    if self.up.send(up).await.is_err() {
                        return;
                    }
                    gone.cancelled().await;
                }
                Ok(Err(error)) => tracing::debug!(peer = %self.endpoint, %error, "no link to the peer"),
                Err(_) => tracing::debug!(peer = %self.endpoint, "the peer does not answer the greeting"),
            }
            tokio::time::sleep(REDIAL).await;
        }
    }

    async fn greet(&self) -> anyhow::Result<(Member, TcpStream, BytesMut)> {
        let stream = connect_data(&self.endpoint).await?;
        let peer = if self.lease { Peer::Lease(self.own) } else { Peer::Replication(self.own) };
        let hello = Hello {
            oldest: PROTOCOL_VERSION,
            newest: PROTOCOL_VERSION,
            cluster: self.cluster,
            device: self.device,
            peer,
        };
        let mut queue = FrameQueue::default();
        queue.push(FrameKind::Hello, 1, &hello, Bytes::new());
        let mut reader = FrameReader::new(stream);
        queue.send_all(reader.stream_mut()).await?;
        let answer = reader.next().await?.ok_or_else(|| anyhow::anyhow!("closed before the greeting was answered"))?;
        match answer.header.kind {
            FrameKind::HelloReply => {
                let reply: HelloReply = answer.message()?;
                let member = Member { device: self.device, sds: self.sds, incarnation: reply.incarnation };
                let (stream, leftover) = reader.into_parts();
                Ok((member, stream, leftover))
            }
            _ => anyhow::bail!("refused: {}", answer.message::<Refusal>()?.why),
        }
    }
}

/// S2: a link is to one life of a device. It is taken if the map has the device on that server in no later life (it may hear
/// of this one yet), and if no later life has its link here: an old process that comes to late must not cut it off.
fn is_welcome(member: Member, known: Option<(SdsId, Incarnation)>, linked: Option<Member>) -> Result<(), String> {
    match known {
        None => Err(format!("the map here has no device {}", member.device)),
        Some((sds, _)) if sds != member.sds => Err(format!("device {} is of sds {sds}", member.device)),
        Some((_, incarnation)) if incarnation > member.incarnation => {
            Err(format!("device {} lives in incarnation {incarnation}", member.device))
        }
        Some(_) => match linked {
            Some(later) if later.incarnation > member.incarnation => Err(format!("{later} is linked here")),
            Some(_) | None => Ok(()),
        },
    }
}

impl Worker {
    /// Whether a link of this life of a peer may be taken.
    pub(super) fn welcome(&self, member: Member) -> Result<(), String> {
        let known = self.map.devices.get(&member.device).map(|device| (device.sds, device.incarnation));
        let links = [&self.links.replication, &self.links.leases];
        let linked = links.iter().filter_map(|links| links.get(&member.device).map(|(linked, _)| *linked));
        is_welcome(member, known, linked.max_by_key(|linked| linked.incarnation))
    }

    pub(super) fn on_link(&mut self, link: LinkUp) {
        if let Err(why) = self.welcome(link.member) {
            // Dropped, and dialed again.
            return tracing::debug!(peer = %link.member, why, "a link is not taken");
        }
        let party = if link.lease { Party::Lease(link.member) } else { Party::Replication(link.member) };
        self.register(party, link.stream, link.leftover, Some(link.gone));
    }

    /// Takes a connection into service.
    pub(super) fn register(
        &mut self,
        party: Party,
        stream: TcpStream,
        leftover: BytesMut,
        gone: Option<tokio_util::sync::DropGuard>,
    ) -> ConnectionId {
        let id = self.next_connection;
        self.next_connection = ConnectionId(id.0 + 1);
        let inbox = match party {
            Party::Sdc { .. } => self.client_inbox.clone(),
            Party::Replication(_) | Party::Lease(_) => self.peer_inbox.clone(),
        };
        let address = stream.peer_addr().ok().map(|address| address.ip());
        let outgoing = connection::start(id, stream, leftover, inbox);
        self.connections.insert(id, Connection { party, address, outgoing, dirty: false, _gone: gone });
        match party {
            Party::Sdc { .. } => {}
            Party::Lease(member) => {
                self.deaths.is_here(member);
                if let Some((_, old)) = self.links.leases.insert(member.device, (member, id)) {
                    self.close(old);
                }
                self.renew_leases = true;
            }
            Party::Replication(member) => {
                self.deaths.is_here(member);
                // The old link's end comes first, so that its cores know what was lost with it.
                if let Some((_, old)) = self.links.replication.get(&member.device).copied() {
                    self.close(old);
                }
                self.links.replication.insert(member.device, (member, id));
                self.tell_all(|| Event::PeerConnected(member));
            }
        }
        id
    }

    /// Queues a frame on a connection.
    pub(super) fn push(
        &mut self,
        id: ConnectionId,
        kind: FrameKind,
        request_id: u64,
        message: &impl Wire,
        payload: Bytes,
    ) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.outgoing.push(kind, request_id, message, payload);
        if !connection.dirty {
            connection.dirty = true;
            self.dirty.push(id);
        }
    }

    /// To another copy; into the void if there is no link to that life of it.
    pub(super) fn send(&mut self, message: &Message<Payload>) {
        let Some(id) = self.links.replication_to(message.to) else { return };
        if let Body::SyncChunk { image, .. } = &message.body {
            let data = image.runs.iter().filter_map(|run| run.data.as_ref());
            let bytes = data.map(|payload| payload.data.len() as u64).sum();
            self.counters.resync_sent_bytes.fetch_add(bytes, Ordering::Relaxed);
            self.resync.sent(bytes);
        }
        let mut body = Vec::with_capacity(256);
        let payload = wire::encode(message, &mut body);
        self.push(id, FrameKind::Replication, 0, &Encoded(body), payload);
        let unsent = self.connections.get(&id).map_or(0, |connection| connection.outgoing.unsent_bytes());
        if unsent > MAX_UNSENT_BYTES {
            self.drop_peer(id, message.to, "it does not read what it is sent");
        }
    }

    pub(super) fn on_peer_frame(&mut self, id: ConnectionId, member: Member, frame: &Frame) {
        let decoded = (frame.header.kind == FrameKind::Replication)
            .then(|| wire::decode(&frame.body, copied_if_small(&frame.payload)));
        let message = match decoded {
            Some(Ok(message))
                if message.from == member && wire::payloads(&message).into_iter().all(Payload::is_sound) =>
            {
                message
            }
            Some(Ok(_)) => return self.drop_peer(id, member, "a message with a wrong sender or damaged data"),
            Some(Err(error)) => return self.drop_peer(id, member, &error.to_string()),
            None => return self.drop_peer(id, member, "a frame that has no place on a replication link"),
        };
        self.slot(message.pg);
        self.events.push_back((message.pg, Event::Message(message)));
    }

    pub(super) fn on_lease_frame(&mut self, id: ConnectionId, member: Member, frame: &Frame) {
        let message = match frame.message::<wire::LeaseMessage>() {
            Ok(message) if frame.header.kind == FrameKind::Lease => message,
            Ok(_) => return self.drop_peer(id, member, "a frame that has no place on a lease link"),
            Err(error) => return self.drop_peer(id, member, &error.to_string()),
        };
        let now = self.time();
        match message {
            wire::LeaseMessage::Request(request) if request.from == member => {
                let shared = self.slots.iter().filter_map(|(pg, slot)| {
                    let config = self.map.pgs.get(pg)?;
                    let shares = config.replicas.contains(&member.device) || config.member(member.device).is_some();
                    Some((*pg, slot.core.epoch().filter(|_| shares)?))
                });
                if let Some(grant) = self.leases.grant(now, &request, shared.collect()) {
                    self.push(id, FrameKind::Lease, 0, &wire::LeaseMessage::Grant(grant), Bytes::new());
                }
            }
            wire::LeaseMessage::Grant(grant) if grant.from == member => self.leases.granted(now, grant),
            wire::LeaseMessage::Request(_) | wire::LeaseMessage::Grant(_) => {
                self.drop_peer(id, member, "a lease message of another sender");
            }
        }
    }

    pub(super) fn ask_for_leases(&mut self) {
        let now = self.time();
        for (member, id) in self.links.lease_links() {
            let request = self.leases.request(now, member);
            self.push(id, FrameKind::Lease, 0, &wire::LeaseMessage::Request(request), Bytes::new());
        }
    }

    fn drop_peer(&mut self, id: ConnectionId, member: Member, why: &str) {
        tracing::warn!(peer = %member, why, "closing a link to a peer");
        self.close(id);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use pflex_common::map::ClusterMap;
    use pflex_proto::pb;

    use super::*;
    use crate::worker::{Accepted, Command, DeviceHandle, testing};

    fn member(device: u32, incarnation: u64) -> Member {
        Member { device: DeviceId(device), sds: SdsId(device), incarnation: Incarnation(incarnation) }
    }

    #[test]
    fn a_peer_is_welcome_in_the_life_that_is_known_or_a_later_one() {
        let known = Some((SdsId(3), Incarnation(5)));
        assert!(is_welcome(member(3, 5), known, None).is_ok());
        assert!(is_welcome(member(3, 6), known, Some(member(3, 5))).is_ok(), "the map may be behind");
        assert!(is_welcome(member(3, 5), known, Some(member(3, 5))).is_ok(), "its link broke");
        assert!(is_welcome(member(3, 4), known, None).is_err(), "it is over");
        assert!(is_welcome(member(3, 5), known, Some(member(3, 6))).is_err(), "a later one is here");
        assert!(is_welcome(member(3, 5), Some((SdsId(4), Incarnation(5))), None).is_err(), "of another server");
        assert!(is_welcome(member(3, 5), None, None).is_err(), "nobody knows it");
    }

    fn map() -> ClusterMap {
        let device = pb::Device {
            id: 3,
            sds_id: 3,
            uuid: vec![3; 16],
            incarnation: 5,
            capacity_bytes: 1 << 30,
            alive: true,
            ..Default::default()
        };
        let cluster_id = vec![1; 16];
        ClusterMap::from_full(pb::ClusterMap { cluster_id, revision: 10, devices: vec![device], ..Default::default() })
            .unwrap()
    }

    /// Connects as a peer; the link if it was taken.
    async fn connect(device: &DeviceHandle, peer: Member) -> Option<FrameReader<TcpStream>> {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let ours = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (theirs, _) = listener.accept().unwrap();
        for stream in [&ours, &theirs] {
            stream.set_nonblocking(true).unwrap();
        }
        let hello = Hello {
            oldest: PROTOCOL_VERSION,
            newest: PROTOCOL_VERSION,
            cluster: testing::CLUSTER,
            device: DeviceId(1),
            peer: Peer::Replication(peer),
        };
        let accepted = Accepted { stream: theirs, hello, request_id: 1, leftover: BytesMut::new() };
        device.send(Command::Accepted(accepted)).await;
        let mut reader = FrameReader::new(TcpStream::from_std(ours).unwrap());
        let answer = reader.next().await.unwrap().expect("an answer");
        (answer.header.kind == FrameKind::HelloReply).then_some(reader)
    }

    #[tokio::test]
    async fn an_older_life_of_a_peer_never_takes_the_link_of_the_newer() {
        let (device, _reports) = testing::device();
        assert!(connect(&device, member(3, 5)).await.is_none(), "there is no map yet");
        device.send(Command::Map(Arc::new(map()))).await;
        assert!(connect(&device, member(3, 4)).await.is_none(), "older than the map's");
        assert!(connect(&device, member(9, 1)).await.is_none(), "not in the map");
        let mut present = connect(&device, member(3, 6)).await.expect("newer than the map's");
        assert!(connect(&device, member(3, 5)).await.is_none(), "older than the one that is linked");
        let _again = connect(&device, member(3, 6)).await.expect("the same life dials again");
        // Only now it is replaced.
        let ended = tokio::time::timeout(GREETING_TIMEOUT * 15, present.next()).await.expect("it is closed");
        assert!(!matches!(ended, Ok(Some(_))));
        device.stop().await;
    }
}
