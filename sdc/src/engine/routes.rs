//! Where placement groups are: fed by the cluster map and by what SDSs answer, read by every request.
//!
//! Knowledge only ever grows by epoch: a primary that refuses names a configuration that the map may not have brought
//! yet, and a map that is behind must not undo it.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};

use pflex_common::net::Endpoint;
use pflex_proto::ids::{DeviceId, Epoch, PgId, VolatilityId};
use pflex_proto::pg::PgConfig;
use tokio::sync::watch;

/// The primary of a placement group, in the epoch that made it one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The epoch a request must name.
    pub epoch: Epoch,
    /// Where it goes; none while no in-sync copy is alive.
    pub primary: Option<DeviceId>,
    /// The memory that writes are acknowledged with (S14).
    pub volatility: VolatilityId,
}

#[derive(Debug, Default)]
struct Table {
    pgs: HashMap<PgId, Route>,
    addresses: HashMap<DeviceId, Endpoint>,
}

/// The routes of one process.
#[derive(Debug)]
pub struct Routes {
    table: RwLock<Table>,
    changes: watch::Sender<u64>,
}

impl Default for Routes {
    fn default() -> Self {
        Self { table: RwLock::default(), changes: watch::Sender::new(0) }
    }
}

impl Routes {
    /// Takes a whole map: configurations of all placement groups, and the data-plane address of each device's SDS.
    pub fn replace<'a>(
        &self,
        configs: impl IntoIterator<Item = &'a PgConfig>,
        addresses: impl IntoIterator<Item = (DeviceId, Endpoint)>,
    ) {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let known = std::mem::take(&mut table.pgs);
        table.pgs = configs
            .into_iter()
            .map(|config| {
                let new = route_of(config);
                let newest = known.get(&config.pg).filter(|old| old.epoch > new.epoch);
                (config.pg, newest.copied().unwrap_or(new))
            })
            .collect();
        table.addresses = addresses.into_iter().collect();
        drop(table);
        self.notify();
    }

    /// Takes one configuration that an SDS answered with. Whether it was news.
    pub fn learn(&self, config: &PgConfig) -> bool {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let new = route_of(config);
        let is_news = table.pgs.get_mut(&config.pg).is_some_and(|route| {
            let newer = new.epoch > route.epoch;
            if newer {
                *route = new;
            }
            newer
        });
        drop(table);
        if is_news {
            self.notify();
        }
        is_news
    }

    /// The route of a placement group; `None` when the map has no such group.
    pub fn route(&self, pg: PgId) -> Option<Route> {
        self.table.read().unwrap_or_else(PoisonError::into_inner).pgs.get(&pg).copied()
    }

    /// The data-plane address of a device.
    pub fn address(&self, device: DeviceId) -> Option<Endpoint> {
        self.table.read().unwrap_or_else(PoisonError::into_inner).addresses.get(&device).cloned()
    }

    /// Tells of every change after this call.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn notify(&self) {
        self.changes.send_modify(|count| *count += 1);
    }
}

fn route_of(config: &PgConfig) -> Route {
    Route { epoch: config.epoch, primary: config.primary, volatility: config.volatility }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(epoch: u64, primary: u32) -> PgConfig {
        let primary = Some(DeviceId(primary));
        let (pg, epoch, volatility) = (PgId::default(), Epoch(epoch), VolatilityId(1));
        PgConfig {
            pg,
            epoch,
            primary,
            in_sync: vec![],
            replicas: vec![],
            volatility,
            forced: false,
            to_activate: false,
        }
    }

    #[test]
    fn an_older_map_does_not_undo_what_an_sds_answered() {
        let routes = Routes::default();
        routes.replace([&config(3, 1)], []);
        let mut changes = routes.subscribe();
        assert!(routes.learn(&config(5, 2)) && changes.has_changed().unwrap());
        changes.mark_unchanged();
        assert!(!routes.learn(&config(5, 1)) && !routes.learn(&config(4, 1)) && !changes.has_changed().unwrap());
        routes.replace([&config(4, 1)], []);
        let route = routes.route(PgId::default()).map(|route| (route.epoch, route.primary));
        assert_eq!(route, Some((Epoch(5), Some(DeviceId(2)))));
        routes.replace([&config(6, 3)], []);
        assert_eq!(routes.route(PgId::default()).and_then(|route| route.primary), Some(DeviceId(3)));
    }

    #[test]
    fn a_group_the_map_dropped_is_gone() {
        let routes = Routes::default();
        routes.replace([&config(3, 1)], []);
        routes.replace([], []);
        assert!(routes.route(PgId::default()).is_none() && !routes.learn(&config(9, 1)));
    }
}
