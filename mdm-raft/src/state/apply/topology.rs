//! Creating and deleting domains, pools, SDSs and SDCs. Deleting is refused while anything uses the object.

use pflex_proto::{
    ids::{DeviceId, PgId},
    rebuild::RebuildPolicy,
};

use super::{Effect, Refusal, created, done, rename, validate};
use crate::{
    command::{ErrorCode, proto},
    state::{
        State,
        limits::{MAX_COPIES, MAX_DOMAINS, MAX_PGS_PER_POOL, MAX_POOLS, MAX_SDCS, MAX_SDS},
        model::{Component, Domain, Kind, Pool, Sdc, Sds, Setting},
    },
};

pub(super) fn in_use(kind: &str, name: &str, what: impl Into<String>) -> Refusal {
    Refusal::new(ErrorCode::InUse, format!("{kind} {name}"), what)
}

impl State {
    pub(super) fn create_domain(&mut self, create: &proto::CreateDomain) -> Effect {
        let name = validate::name("domain", &create.name)?;
        if let Some(domain) = self.domain_by_name(&name) {
            return if create.if_not_exists {
                created(domain.id.get(), true)
            } else {
                Err(validate::exists("domain", &name))
            };
        }
        if self.domains.len() >= MAX_DOMAINS {
            return Err(validate::limit(format!("domain {name}"), MAX_DOMAINS, "domains"));
        }
        let id = self.take_id(|counters| {
            counters.domain = counters.domain.next();
            counters.domain
        });
        self.domains.put(Domain { id, name });
        created(id.get(), false)
    }

    /// A new pool takes the devices of its domain that have none.
    pub(super) fn create_pool(&mut self, create: &proto::CreatePool) -> Effect {
        let name = validate::name("pool", &create.name)?;
        if let Some(pool) = self.pool_by_name(&name) {
            return if create.if_not_exists {
                created(pool.id.get(), true)
            } else {
                Err(validate::exists("pool", &name))
            };
        }
        let object = format!("pool {name}");
        let domain = self.domain_or_only(&create.domain)?.id;
        if create.copies == 0 || create.copies > MAX_COPIES {
            return Err(validate::invalid(
                object,
                format!("it can have 1 to {MAX_COPIES} copies, not {}", create.copies),
            ));
        }
        if !create.pg_count.is_power_of_two() || create.pg_count > MAX_PGS_PER_POOL {
            let what = format!("{} placement groups: give a power of two up to {MAX_PGS_PER_POOL}", create.pg_count);
            return Err(validate::invalid(object, what));
        }
        let write_policy = validate::write_policy(create.write_policy)?;
        if self.pools.len() >= MAX_POOLS {
            return Err(validate::limit(object, MAX_POOLS, "pools"));
        }
        let id = self.take_id(|counters| {
            counters.pool = counters.pool.next();
            counters.pool
        });
        self.pools.put(Pool {
            id,
            domain,
            name,
            copies: create.copies,
            pg_count: create.pg_count,
            first_pg_count: create.pg_count,
            write_policy,
            used: false,
            left_alone: false,
            frozen: std::collections::BTreeMap::new(),
            rebuild: RebuildPolicy::default(),
            scrub: None,
        });
        let adopted: Vec<DeviceId> = self
            .devices
            .values()
            .filter(|d| d.pool.is_none() && self.sds.get(d.sds).is_some_and(|sds| sds.domain == domain))
            .map(|device| device.id)
            .collect();
        for device in adopted {
            self.devices.update(device, |device| device.pool = Some(id));
        }
        self.place_pool(id);
        created(id.get(), false)
    }

    pub(super) fn create_sds(&mut self, create: &proto::CreateSds) -> Effect {
        let name = validate::name("sds", &create.name)?;
        if let Some(sds) = self.sds_by_name(&name) {
            return if create.if_not_exists {
                created(sds.id.get(), true)
            } else {
                Err(validate::exists("sds", &name))
            };
        }
        if let Some(sds) = self.sds_formerly(&name) {
            return Err(rename::reserved("sds", &name, &sds.name));
        }
        let domain = self.domain_or_only(&create.domain)?.id;
        if self.sds.len() >= MAX_SDS {
            return Err(validate::limit(format!("sds {name}"), MAX_SDS, "SDSs"));
        }
        let fault_set = match create.fault_set.as_str() {
            "" => None,
            set => Some(self.fault_set_or_new(domain, set)?),
        };
        let id = self.take_id(|counters| {
            counters.sds = counters.sds.next();
            counters.sds
        });
        self.sds.put(Sds {
            id,
            name,
            domain,
            fault_set,
            registration: None,
            alive: false,
            former_name: None,
            awaited: false,
            proven_dead: false,
            maintenance: None,
            protected: None,
        });
        created(id.get(), false)
    }

    pub(super) fn create_sdc(&mut self, create: &proto::CreateSdc) -> Effect {
        let name = validate::name("sdc", &create.name)?;
        if let Some(sdc) = self.sdc_by_name(&name) {
            return if create.if_not_exists {
                created(sdc.id.get(), true)
            } else {
                Err(validate::exists("sdc", &name))
            };
        }
        if let Some(sdc) = self.sdc_formerly(&name) {
            return Err(rename::reserved("sdc", &name, &sdc.name));
        }
        if self.sdcs.len() >= MAX_SDCS {
            return Err(validate::limit(format!("sdc {name}"), MAX_SDCS, "SDCs"));
        }
        let id = self.take_id(|counters| {
            counters.sdc = counters.sdc.next();
            counters.sdc
        });
        let approved = self.settings().get(Setting::SdcApproval) == 0;
        self.sdcs.put(Sdc { id, name, registration: None, approved, former_name: None });
        created(id.get(), false)
    }

    pub(super) fn delete(&mut self, delete: &proto::Delete) -> Effect {
        let name = delete.name.as_str();
        match proto::Object::try_from(delete.kind) {
            Ok(proto::Object::Domain) => self.delete_domain(name),
            Ok(proto::Object::Pool) => self.delete_pool(name),
            Ok(proto::Object::Sds) => self.delete_sds(name),
            Ok(proto::Object::Sdc) => self.delete_sdc(name),
            Ok(proto::Object::Volume) => self.delete_volume(name),
            Ok(proto::Object::FaultSet) => self.delete_fault_set(name),
            Ok(proto::Object::Device | proto::Object::Unspecified) | Err(_) => {
                Err(validate::invalid(name, format!("kind {} is not deleted by name", delete.kind)))
            }
        }
    }

    fn delete_domain(&mut self, name: &str) -> Effect {
        let id = self.named_domain(name)?.id;
        if let Some(pool) = self.pools.values().find(|pool| pool.domain == id) {
            return Err(in_use("domain", name, format!("pool {} is in it", pool.name)));
        }
        if let Some(sds) = self.sds.values().find(|sds| sds.domain == id) {
            return Err(in_use("domain", name, format!("sds {} is in it", sds.name)));
        }
        if let Some(set) = self.fault_sets.values().find(|set| set.domain == id) {
            return Err(in_use("domain", name, format!("fault set {} is in it; delete it first", set.name)));
        }
        self.domains.remove(id);
        done(id.get())
    }

    /// Its devices stay, without a pool, and its groups go: their ids are never used again.
    fn delete_pool(&mut self, name: &str) -> Effect {
        let id = self.named_pool(name)?.id;
        if let Some(volume) = self.volumes.values().find(|volume| volume.pool == id) {
            return Err(in_use("pool", name, format!("volume {} is in it", volume.name)));
        }
        let pgs: Vec<PgId> = self.pgs_of(id).map(|pg| pg.id).collect();
        for pg in pgs {
            self.pgs.remove(pg);
        }
        let devices: Vec<DeviceId> = self.devices.values().filter(|d| d.pool == Some(id)).map(|d| d.id).collect();
        for device in devices {
            self.devices.update(device, |device| device.pool = None);
        }
        self.pools.remove(id);
        done(id.get())
    }

    fn delete_sds(&mut self, name: &str) -> Effect {
        let id = self.named_sds(name)?.id;
        let devices: Vec<DeviceId> = self.devices_of(id).map(|device| device.id).collect();
        if !devices.is_empty() {
            self.not_recovering(&format!("sds {name}"))?;
        }
        for device in self.devices_of(id) {
            let left = self.copies_on(device.id);
            if device.draining.is_none() || left > 0 {
                let copies = if left == 0 { String::new() } else { format!(" with {left} copies") };
                let what = format!(
                    "it has device {} ({}){copies}; `pflex sds drain {name}` empties it, or remove its devices first",
                    device.id, device.path
                );
                return Err(in_use("sds", name, what));
            }
        }
        // Drained and empty: nobody needs them.
        devices.into_iter().for_each(|device| drop(self.devices.remove(device)));
        self.sds.remove(id);
        self.forget_component(Component { kind: Kind::Sds, id: id.get() });
        done(id.get())
    }

    fn delete_sdc(&mut self, name: &str) -> Effect {
        let id = self.named_sdc(name)?.id;
        if let Some(mapping) = self.mappings.values().find(|mapping| mapping.sdc == id) {
            let volume = self.volumes.get(mapping.volume).map_or_else(String::new, |volume| volume.name.clone());
            return Err(in_use("sdc", name, format!("volume {volume} is mapped to it; unmap it first")));
        }
        self.sdcs.remove(id);
        self.forget_component(Component { kind: Kind::Sdc, id: id.get() });
        done(id.get())
    }

    /// Health and history of a deleted component go with it.
    pub(in crate::state) fn forget_component(&mut self, component: Component) {
        self.health.remove(component);
        self.metadata.remove(component);
        let history: Vec<_> = self
            .history
            .range((component, 0)..=(component, u64::MAX))
            .map(|row| (row.component, row.registration.count))
            .collect();
        for key in history {
            self.history.remove(key);
        }
    }
}
