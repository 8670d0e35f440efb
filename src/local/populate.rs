//! What a new cluster gets: a domain, its servers and clients, a pool, a mapped volume. And waiting until it is well.
//!
//! Every step may be repeated: objects are made with "if it does not exist", so an `up` that was interrupted is finished
//! by the next one.

use std::time::{Duration, Instant};

use pflex_proto::pb::{
    Access, ClusterStatus, ClusterStatusRequest, CreateDomainRequest, CreatePoolRequest, CreateSdcRequest,
    CreateSdsRequest, CreateVolumeRequest, ListRequest, MapVolumeRequest, SdsRow, SdsStats, TokenMode, WritePolicy,
    admin_client::AdminClient, cluster_client::ClusterClient,
};

use super::{
    children::Children,
    layout::{Kind, Layout, Process},
    nbd_probe,
};
use crate::{
    client::{Freshness, Session, ask, change},
    error::{Exit, Failure, one_line},
    probe::{self, Answer},
    units::format_duration,
};

pub(super) const DOMAIN: &str = "default";
pub(super) const POOL: &str = "default";
pub(super) const VOLUME: &str = "demo";
pub(super) const VOLUME_BYTES: u64 = 1 << 30;
/// Two copies, or one where there is only one server.
const COPIES: u32 = 2;
/// Between two looks at something that takes seconds.
const PAUSE: Duration = Duration::from_millis(50);
/// One look at the status may take so long; the next one asks afresh.
const ONE_LOOK: Duration = Duration::from_secs(2);

/// The name of a server's or client's object: processes count from 0, objects from 1.
pub(super) fn sds_name(index: u32) -> String {
    format!("sds{}", index + 1)
}
/// See [`sds_name`].
pub(super) fn sdc_name(index: u32) -> String {
    format!("sdc{}", index + 1)
}

/// The domain.
pub(super) async fn create_domain(session: &Session) -> Result<(), Failure> {
    let request = CreateDomainRequest { request: None, name: DOMAIN.to_owned(), if_not_exists: true };
    change!(session, "create domain default", AdminClient.create_domain(request)).map(drop)
}

/// A server.
pub(super) async fn create_sds(session: &Session, index: u32) -> Result<(), Failure> {
    let name = sds_name(index);
    let what = format!("add SDS {name}");
    let request = CreateSdsRequest {
        request: None,
        name,
        domain: DOMAIN.to_owned(),
        fault_set: String::new(),
        if_not_exists: true,
    };
    change!(session, &what, AdminClient.create_sds(request)).map(drop)
}

/// A client.
pub(super) async fn create_sdc(session: &Session, index: u32) -> Result<(), Failure> {
    let name = sdc_name(index);
    let what = format!("add SDC {name}");
    let request = CreateSdcRequest { request: None, name, if_not_exists: true };
    change!(session, &what, AdminClient.create_sdc(request)).map(drop)
}

/// The pool; its servers are there already, so that its groups are assigned at once.
pub(super) async fn create_pool(session: &Session, servers: u32) -> Result<(), Failure> {
    let request = CreatePoolRequest {
        request: None,
        name: POOL.to_owned(),
        domain: DOMAIN.to_owned(),
        copies: COPIES.min(servers),
        pg_count: 0,
        write_policy: WritePolicy::Sync.into(),
        if_not_exists: true,
    };
    change!(session, "create pool default", AdminClient.create_pool(request)).map(drop)
}

/// The volume, mapped to the first client if there is one.
pub(super) async fn create_volume(session: &Session, clients: u32) -> Result<(), Failure> {
    let request = CreateVolumeRequest {
        request: None,
        name: VOLUME.to_owned(),
        pool: POOL.to_owned(),
        size_bytes: VOLUME_BYTES,
        token_mode: TokenMode::Lease.into(),
        if_not_exists: true,
    };
    change!(session, "create volume demo", AdminClient.create_volume(request))?;
    if clients == 0 {
        return Ok(());
    }
    let request = MapVolumeRequest {
        request: None,
        volume: VOLUME.to_owned(),
        sdc: sdc_name(0),
        access: Access::ReadWrite.into(),
        iops_limit: 0,
        bandwidth_limit: 0,
    };
    match change!(session, "map volume demo to sdc1", AdminClient.map_volume(request)) {
        // An earlier, interrupted run got this far.
        Err(failure) if failure.exit() == Exit::Conflict => Ok(()),
        other => other.map(drop),
    }
}

/// A device as its process opened it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Opened {
    device: u32,
    incarnation: u64,
}

/// The end of the whole command's patience, and what is watched meanwhile.
pub(super) struct Waiting<'a> {
    pub(super) layout: &'a Layout,
    pub(super) children: &'a mut Children,
    pub(super) deadline: Instant,
    pub(super) patience: Duration,
}

impl Waiting<'_> {
    /// Waits until the quorum has a leader and `good` says that it will do. `good` returns what is still missing.
    pub(super) async fn until(
        &mut self,
        session: &Session,
        good: impl Fn(&ClusterStatus) -> Result<(), String>,
    ) -> Result<ClusterStatus, Failure> {
        let session = session.within(ONE_LOOK);
        let mut missing;
        loop {
            self.children.check(self.layout)?;
            let request = ClusterStatusRequest { stale: false };
            let looked = ask!(session, "look at the cluster", Freshness::Linearizable, ClusterClient.status(request));
            match looked {
                Ok(status) => match good(&status) {
                    Ok(()) => return Ok(status),
                    Err(what) => missing = (Exit::TimedOut, what),
                },
                Err(failure) => missing = (failure.exit(), failure.to_string()),
            }
            self.pause(missing).await?;
        }
    }

    /// Waits until each of these processes, which this run started, serves; returns the devices they opened. Until then
    /// what the MDM says of one of them may be about its previous life.
    pub(super) async fn until_answering(&mut self, started: &[Process]) -> Result<Vec<Opened>, Failure> {
        let mut all = Vec::new();
        for process in started {
            let endpoint = match process.kind {
                Kind::Mdm => continue,
                Kind::Sds | Kind::Sdc => self.layout.port(*process, "management"),
            };
            loop {
                self.children.check(self.layout)?;
                let opened = match process.kind {
                    Kind::Sds => opened_by(probe::server(endpoint.clone(), ONE_LOOK).await),
                    Kind::Mdm | Kind::Sdc => match probe::client(endpoint.clone(), ONE_LOOK).await {
                        Answer::Serves(_) => Some(Vec::new()),
                        Answer::Nobody | Answer::Silent | Answer::Unreachable => None,
                    },
                };
                if let Some(opened) = opened {
                    all.extend(opened);
                    break;
                }
                self.pause((Exit::TimedOut, format!("{process} does not serve at {endpoint} yet"))).await?;
            }
        }
        Ok(all)
    }

    /// Waits until each of these servers beats and has brought a device, and the MDM knows the devices that were opened
    /// now by this life of theirs: only then has a pool a place for its copies, and is the MDM's verdict about the present.
    pub(super) async fn until_serving(
        &mut self,
        session: &Session,
        servers: &[String],
        opened: &[Opened],
    ) -> Result<(), Failure> {
        let session = session.within(ONE_LOOK);
        loop {
            self.children.check(self.layout)?;
            let request = ListRequest { stale: false, name: String::new() };
            let looked = ask!(session, "look at the servers", Freshness::Linearizable, AdminClient.list_sds(request));
            let missing = match looked {
                Ok(reply) => match all_serving(&reply.sds, servers).and_then(|()| all_known(&reply.sds, opened)) {
                    Ok(()) => return Ok(()),
                    Err(what) => (Exit::TimedOut, what),
                },
                Err(failure) => (failure.exit(), failure.to_string()),
            };
            self.pause(missing).await?;
        }
    }

    /// Waits until an NBD client could open the volume.
    pub(super) async fn until_open(&mut self, address: std::net::SocketAddr, volume: &str) -> Result<(), Failure> {
        loop {
            self.children.check(self.layout)?;
            // The probe blocks for a second at most; nothing else runs in this process meanwhile.
            let missing = match nbd_probe::is_open(address, volume) {
                Ok(true) => return Ok(()),
                Ok(false) => format!("the client does not serve {volume}"),
                Err(error) => format!("the client does not answer at {address}: {error}"),
            };
            self.pause((Exit::TimedOut, missing)).await?;
        }
    }

    async fn pause(&self, (exit, missing): (Exit, String)) -> Result<(), Failure> {
        if Instant::now() >= self.deadline {
            let waited = format_duration(self.patience);
            return Err(Failure::new(
                exit,
                format!("the cluster is not healthy after {waited}: {}", one_line(&missing)),
            )
            .remedy(format!("see the logs under {}, then run `pflex up` again", self.layout.dir().display())));
        }
        tokio::time::sleep(PAUSE).await;
        Ok(())
    }
}

/// Every member takes part.
pub(super) fn quorum_complete(status: &ClusterStatus) -> Result<(), String> {
    match status.members.iter().find(|member| member.state != "up") {
        _ if status.leader == 0 => Err("no MDM leads".to_owned()),
        Some(member) => Err(format!("mdm {} is {}", member.id, member.state)),
        None => Ok(()),
    }
}

/// Each of these names has registered and beats.
pub(super) fn all_active(status: &ClusterStatus, names: &[String]) -> Result<(), String> {
    for name in names {
        match status.components.iter().find(|component| component.name == *name) {
            Some(component) if component.status == "ACTIVE" => {}
            Some(component) => return Err(format!("{name} is {}", component.status)),
            None => return Err(format!("{name} has not registered")),
        }
    }
    Ok(())
}

/// Each of these servers is alive and has a device.
fn all_serving(rows: &[SdsRow], servers: &[String]) -> Result<(), String> {
    for name in servers {
        match rows.iter().find(|row| row.sds.as_ref().is_some_and(|sds| sds.name == *name)) {
            None => return Err(format!("{name} does not exist")),
            Some(row) if row.devices.is_empty() => return Err(format!("{name} has not brought its device")),
            Some(row) if row.sds.as_ref().is_none_or(|sds| !sds.alive) => {
                return Err(format!("{name} is {}", row.status));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// What a server's answer says of its devices; none if it does not serve.
fn opened_by(answer: Answer<SdsStats>) -> Option<Vec<Opened>> {
    match answer {
        Answer::Serves(stats) => {
            let devices = stats.devices.iter();
            Some(devices.map(|row| Opened { device: row.device_id, incarnation: row.incarnation }).collect())
        }
        Answer::Nobody | Answer::Silent | Answer::Unreachable => None,
    }
}

/// Each of these devices is registered as it was opened, or opened again since.
fn all_known(rows: &[SdsRow], opened: &[Opened]) -> Result<(), String> {
    for own in opened {
        let known = rows.iter().flat_map(|row| &row.devices).find(|device| device.id == own.device);
        match known {
            Some(device) if device.incarnation >= own.incarnation => {}
            Some(_) | None => return Err(format!("device {} has not registered", own.device)),
        }
    }
    Ok(())
}

/// The verdict is "ok".
pub(super) fn healthy(status: &ClusterStatus) -> Result<(), String> {
    if status.health == "ok" {
        return Ok(());
    }
    let reasons: Vec<String> =
        status.reasons.iter().map(|reason| format!("{}: {}", reason.object, reason.why)).collect();
    Err(format!("{}: {}", status.health, reasons.join(", ")))
}

#[cfg(test)]
mod tests {
    use pflex_proto::pb::{ClusterMember, Component, Device, Sds};

    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        let mut status = ClusterStatus { leader: 1, health: "ok".into(), ..ClusterStatus::default() };
        let down = ClusterMember { id: 2, state: "unreachable".into(), ..ClusterMember::default() };
        status.members = vec![down];
        assert_eq!(quorum_complete(&status).unwrap_err(), "mdm 2 is unreachable");
        let names = [sds_name(0), sdc_name(0)];
        status.components = vec![Component { name: "sds1".into(), status: "ACTIVE".into(), ..Component::default() }];
        assert_eq!(all_active(&status, &names).unwrap_err(), "sdc1 has not registered");
        let row = SdsRow { sds: Some(Sds { name: "sds1".into(), ..Sds::default() }), ..SdsRow::default() };
        assert_eq!(all_serving(&[row], &[sds_name(0)]).unwrap_err(), "sds1 has not brought its device");
        assert_eq!(healthy(&status), Ok(()));
        status.health = "critical".into();
        assert!(healthy(&status).is_err());
    }
    #[test]
    fn a_previous_life_is_not_the_present_one() {
        let known = |incarnation| {
            let device = Device { id: 7, incarnation, ..Device::default() };
            [SdsRow { devices: vec![device], ..SdsRow::default() }]
        };
        let opened = [Opened { device: 7, incarnation: 4 }];
        assert_eq!(all_known(&known(3), &opened).unwrap_err(), "device 7 has not registered");
        assert_eq!(all_known(&known(4), &opened), Ok(()));
        assert_eq!(all_known(&known(5), &opened), Ok(()), "it was started once more");
        assert!(all_known(&[], &opened).is_err());
    }
}
