//! Proof of death (S8), this device's half of it: which peers have ended, so that nobody waits for the leases they held.
//!
//! A life of a peer has ended when a newer one has registered; or when its own connections here were closed by its end,
//! new ones are refused, and the leader of the MDMs has found the same. Either half alone proves nothing: a firewall may
//! refuse, and a process that ends may close its listener before its last connection. Timeouts prove nothing.

use std::{collections::HashMap, io, sync::Arc, time::Duration};

use pflex_common::{
    frames::FramesError,
    net::{Endpoint, connect_data},
};
use pflex_proto::ids::{DeviceId, Incarnation, Member};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::worker::{Party, Worker};
use crate::{
    admission::ConnectionId,
    replication::{Event, limits::LEASE_GRANTED},
};

/// Between two tries of a peer that closed its connections. A process that ends cleanly closes its listener last.
const TRY_EVERY: Duration = Duration::from_millis(20);
/// Peers found refused that wait for the loop.
const MAX_REFUSED: usize = 64;

/// Peers that closed their connections.
#[derive(Debug)]
pub(super) struct Deaths {
    found: mpsc::Sender<Member>,
    /// Being tried; dropping it ends that.
    tried: HashMap<DeviceId, (Member, DropGuard)>,
    /// New connections are refused.
    refused: HashMap<DeviceId, Member>,
}

impl Deaths {
    pub(super) fn new() -> (Self, mpsc::Receiver<Member>) {
        let (found, receiver) = mpsc::channel(MAX_REFUSED);
        (Self { found, tried: HashMap::new(), refused: HashMap::new() }, receiver)
    }

    /// A connection of this or a later life of the device is up.
    pub(super) fn is_here(&mut self, member: Member) {
        self.tried.remove(&member.device);
        self.refused.remove(&member.device);
    }

    fn try_whether_it_refuses(&mut self, member: Member, at: Endpoint) {
        let stop = CancellationToken::new();
        let found = self.found.clone();
        let trying = stop.clone().run_until_cancelled_owned(async move {
            // Afterwards the leases have lapsed anyway.
            if let Ok(()) = tokio::time::timeout(LEASE_GRANTED, until_refused(&at)).await {
                // Nobody takes it when the device closes.
                let _ = found.send(member).await;
            }
        });
        self.tried.insert(member.device, (member, stop.drop_guard()));
        tokio::task::spawn_local(trying);
    }
}

async fn until_refused(at: &Endpoint) {
    loop {
        match connect_data(at).await {
            Err(error) if error.refused() => return,
            Ok(_) | Err(_) => tokio::time::sleep(TRY_EVERY).await,
        }
    }
}

/// Whether a connection ended because the other end closed it, and not because of what it said or how long it took.
pub(super) fn closed_by_peer(error: &FramesError) -> bool {
    let FramesError::Io(error) = error else { return matches!(error, FramesError::Truncated) };
    matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
}

impl Worker {
    /// A connection was closed by its other end. If that is a peer, it may have died.
    pub(super) fn suspect(&mut self, id: ConnectionId) {
        let party = self.connections.get(&id).map(|connection| connection.party);
        let Some(Party::Replication(member) | Party::Lease(member)) = party else { return };
        if self.deaths.tried.get(&member.device).is_some_and(|(tried, _)| *tried == member) {
            return;
        }
        let Some(at) = self.map.sds.get(&member.sds).and_then(|sds| sds.data.clone()) else { return };
        self.deaths.try_whether_it_refuses(member, at);
    }

    pub(super) fn on_refused(&mut self, member: Member) {
        let tried = self.deaths.tried.remove(&member.device);
        if tried.is_some_and(|(tried, _)| tried == member) && !self.links.reach(member) {
            self.deaths.refused.insert(member.device, member);
            self.learn_of_deaths();
        }
    }

    /// The map and this device's own connections together say who has ended.
    pub(super) fn learn_of_deaths(&mut self) {
        let mut news = false;
        let map = Arc::clone(&self.map);
        for (id, device) in map.devices.iter() {
            // A newer life has registered: the device was opened again, which its lock allows to one process at a time.
            news |= self.leases.ended(*id, Incarnation(device.incarnation.0.saturating_sub(1)));
            let proven = map.sds.get(&device.sds).is_some_and(|sds| sds.proven_dead);
            let refused = self.deaths.refused.get(id).is_some_and(|member| member.incarnation == device.incarnation);
            if proven && refused {
                tracing::info!(device = %self.own.device, peer = %id, "the peer is proven dead; nobody waits for its leases");
                news |= self.leases.ended(*id, device.incarnation);
            }
        }
        if news {
            self.tell_all(|| Event::Tick { jitter: rand::random() });
        }
    }
}
