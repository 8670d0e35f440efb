//! Ids to names: the MDM's objects refer to one another by id, people by name. An object that is gone shows as `#7`.

use std::collections::HashMap;

use pflex_proto::pb::{ListRequest, admin_client::AdminClient, topology_client::TopologyClient};

use crate::{
    client::{Freshness, Session, ask},
    error::Failure,
};

/// Names of one kind of object.
#[derive(Default, Debug)]
pub(super) struct Names(HashMap<u32, String>);

impl Names {
    pub(super) fn of(&self, id: u32) -> String {
        self.0.get(&id).cloned().unwrap_or_else(|| format!("#{id}"))
    }

    pub(super) async fn domains(session: &Session, freshness: Freshness) -> Result<Self, Failure> {
        let reply = ask!(session, "list domains", freshness, AdminClient.list_domains(all(freshness)))?;
        Ok(Self(reply.domains.into_iter().map(|domain| (domain.id, domain.name)).collect()))
    }

    pub(super) async fn pools(session: &Session, freshness: Freshness) -> Result<Self, Failure> {
        let reply = ask!(session, "list pools", freshness, AdminClient.list_pools(all(freshness)))?;
        Ok(Self(reply.pools.into_iter().filter_map(|row| row.pool).map(|pool| (pool.id, pool.name)).collect()))
    }

    pub(super) async fn fault_sets(session: &Session, freshness: Freshness) -> Result<Self, Failure> {
        let reply = ask!(session, "list fault sets", freshness, TopologyClient.list_fault_sets(all(freshness)))?;
        Ok(Self(reply.fault_sets.into_iter().map(|set| (set.id, set.name)).collect()))
    }

    pub(super) async fn sdcs(session: &Session, freshness: Freshness) -> Result<Self, Failure> {
        let reply = ask!(session, "list SDCs", freshness, AdminClient.list_sdcs(all(freshness)))?;
        Ok(Self(reply.sdcs.into_iter().filter_map(|row| row.sdc).map(|sdc| (sdc.id, sdc.name)).collect()))
    }

    pub(super) async fn sds(session: &Session, freshness: Freshness) -> Result<Self, Failure> {
        let reply = ask!(session, "list SDSs", freshness, AdminClient.list_sds(all(freshness)))?;
        Ok(Self(reply.sds.into_iter().filter_map(|row| row.sds).map(|sds| (sds.id, sds.name)).collect()))
    }

    /// Each device by the name of its server.
    pub(super) async fn devices(session: &Session, freshness: Freshness) -> Result<Self, Failure> {
        let reply = ask!(session, "list SDSs", freshness, AdminClient.list_sds(all(freshness)))?;
        let mut names = HashMap::new();
        for row in reply.sds {
            let server = row.sds.map(|sds| sds.name).unwrap_or_default();
            names.extend(row.devices.iter().map(|device| (device.id, format!("{server}/{}", device.id))));
        }
        Ok(Self(names))
    }
}

/// A request for all objects of a kind.
pub(super) fn all(freshness: Freshness) -> ListRequest {
    ListRequest { stale: freshness.is_stale(), name: String::new() }
}

/// A request for one object; NOT_FOUND if there is none of that name.
pub(super) fn one(freshness: Freshness, name: &str) -> ListRequest {
    ListRequest { stale: freshness.is_stale(), name: name.to_owned() }
}

/// How fresh a request's answer must be.
pub(super) fn freshness(request: &ListRequest) -> Freshness {
    if request.stale { Freshness::Stale } else { Freshness::Linearizable }
}

/// The element of a list that was asked for by name. A server that answers with none has broken its contract, and the
/// user still gets "not found".
pub(super) fn only<T>(rows: Vec<T>, kind: &str, name: &str) -> Result<T, Failure> {
    rows.into_iter().next().ok_or_else(|| {
        Failure::new(crate::error::Exit::NotFound, format!("{kind} {name} does not exist"))
            .remedy(format!("`pflex {kind} list` shows those that do"))
    })
}
