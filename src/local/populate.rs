//! What a new cluster gets: a domain, its servers and clients, a pool, a mapped volume. And waiting until it is well.
//!
//! Every step may be repeated: objects are made with "if it does not exist", so an `up` that was interrupted is finished
//! by the next one.

use std::time::{Duration, Instant};

use pflex_proto::pb::{
    Access, ClusterStatus, ClusterStatusRequest, CreateDomainRequest, CreatePoolRequest, CreateSdcRequest,
    CreateSdsRequest, CreateVolumeRequest, ListRequest, MapVolumeRequest, SdsRow, TokenMode, WritePolicy,
    admin_client::AdminClient, cluster_client::ClusterClient,
};

use super::{children::Children, layout::Layout, nbd_probe};
use crate::{
    client::{Freshness, Session, ask, change},
    error::{Exit, Failure, one_line},
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

    /// Waits until each of these servers beats and has brought a device: only then has a pool a place for its copies.
    pub(super) async fn until_serving(&mut self, session: &Session, servers: &[String]) -> Result<(), Failure> {
        let session = session.within(ONE_LOOK);
        loop {
            self.children.check(self.layout)?;
            let request = ListRequest { stale: false, name: String::new() };
            let looked = ask!(session, "look at the servers", Freshness::Linearizable, AdminClient.list_sds(request));
            let missing = match looked {
                Ok(reply) => match all_serving(&reply.sds, servers) {
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
    use pflex_proto::pb::{ClusterMember, Component, Sds};

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
}
