//! The state's nouns as the messages of `pflex_proto::pb`.

use std::collections::BTreeMap;

use pflex_proto::{
    ids::{DeviceId, FaultSetId, LogTime, PoolId, ProcessId, Revision, SdsId},
    pb,
};

use crate::{
    command::proto,
    liveness::{Liveness, Reports},
    state::{
        MapChange, MapEvent, ObjectRef, State,
        model::{
            Access, Addresses, Component, Device, Domain, Kind, Mapping, NodeMetadata, Pg, Pool, Registration, Sdc,
            Sds, Status, TokenMode, Volume, WritePolicy,
        },
    },
};

pub(crate) fn domain(domain: &Domain) -> pb::Domain {
    pb::Domain { id: domain.id.get(), name: domain.name.clone() }
}

pub(crate) fn pool(pool: &Pool) -> pb::Pool {
    let write_policy = match pool.write_policy {
        WritePolicy::Sync => pb::WritePolicy::Sync,
        WritePolicy::Writeback => pb::WritePolicy::Writeback,
    };
    pb::Pool {
        id: pool.id.get(),
        name: pool.name.clone(),
        domain_id: pool.domain.get(),
        copies: pool.copies,
        pg_count: pool.pg_count,
        write_policy: write_policy.into(),
        frozen: pool
            .frozen
            .iter()
            .map(|(index, freeze)| pb::Frozen {
                index: index.get(),
                device_id: freeze.device.get(),
                revision: freeze.at.get(),
            })
            .collect(),
        rebuild: Some(pool.rebuild.into()),
        first_pg_count: pool.first_pg_count,
    }
}

fn addresses(addresses: &Addresses) -> pb::Addresses {
    let Addresses { data, control, management, raft, api, nbd } = addresses.clone();
    pb::Addresses { data, control, management, raft, api, nbd }
}

/// Tells starts apart without saying the id, by which a process proves to be the registered one.
fn process_mark(process: ProcessId) -> Vec<u8> {
    const BYTES: usize = 8;
    ring::digest::digest(&ring::digest::SHA256, process.as_bytes()).as_ref()[..BYTES].to_vec()
}

pub(crate) fn sds(sds: &Sds) -> pb::Sds {
    pb::Sds {
        id: sds.id.get(),
        name: sds.name.clone(),
        domain_id: sds.domain.get(),
        fault_set_id: sds.fault_set.map_or(0, FaultSetId::get),
        addresses: sds.registration.as_ref().map(|registration| addresses(&registration.addresses)),
        alive: sds.alive,
        proven_dead: sds.proven_dead,
        maintenance_since_ms: sds.maintenance.map(|since| since.wall_ms),
        protected_since_ms: sds.protected.map(|since| since.wall_ms),
    }
}

pub(crate) fn device(device: &Device) -> pb::Device {
    pb::Device {
        id: device.id.get(),
        sds_id: device.sds.get(),
        uuid: device.uuid.as_bytes().to_vec(),
        incarnation: device.incarnation.get(),
        capacity_bytes: device.capacity.get(),
        path: device.path.clone(),
        alive: device.alive,
        pool_id: device.pool.map_or(0, PoolId::get),
        slow: device.slow.clone().unwrap_or_default(),
        draining_since_ms: device.draining.map(|since| since.wall_ms),
    }
}

pub(crate) fn sdc(sdc: &Sdc) -> pb::Sdc {
    let addresses = sdc.registration.as_ref().map(|registration| addresses(&registration.addresses));
    pb::Sdc { id: sdc.id.get(), name: sdc.name.clone(), addresses, approved: sdc.approved }
}

pub(crate) fn pg(pg: &Pg) -> pb::Pg {
    let member = |member: &pflex_proto::ids::Member| pb::Member {
        device_id: member.device.get(),
        sds_id: member.sds.get(),
        incarnation: member.incarnation.get(),
    };
    pb::Pg {
        id: Some(pb::PgId { pool_id: pg.id.pool.get(), index: pg.id.index.get() }),
        epoch: pg.config.epoch.get(),
        primary_device_id: pg.config.primary.map_or(0, DeviceId::get),
        in_sync: pg.config.in_sync.iter().map(member).collect(),
        replica_device_ids: pg.replicas.iter().map(|device| device.get()).collect(),
        volatility: pg.config.volatility.get(),
        forced: pg.forced,
        leaving_device_id: pg.leaving.map_or(0, DeviceId::get),
        fallback_device_ids: pg.holders.iter().map(|member| member.device.get()).collect(),
    }
}

/// A configuration as the outcome of a command has it.
pub(crate) fn pg_config(config: &proto::PgConfig) -> pb::Pg {
    let member = |member: &proto::Member| pb::Member {
        device_id: member.device_id,
        sds_id: member.sds_id,
        incarnation: member.incarnation,
    };
    pb::Pg {
        id: Some(pb::PgId { pool_id: config.pool_id, index: config.index }),
        epoch: config.epoch,
        primary_device_id: config.primary_device_id,
        in_sync: config.in_sync.iter().map(member).collect(),
        replica_device_ids: config.replica_device_ids.clone(),
        volatility: config.volatility,
        // Only a primary that serves is told this way, and then it is one no more.
        forced: false,
        leaving_device_id: 0,
        fallback_device_ids: Vec::new(),
    }
}

fn mapping(mapping: &Mapping) -> pb::Mapping {
    let access = match mapping.access {
        Access::ReadOnly => pb::Access::ReadOnly,
        Access::ReadWrite => pb::Access::ReadWrite,
    };
    pb::Mapping {
        sdc_id: mapping.sdc.get(),
        access: access.into(),
        iops_limit: mapping.iops_limit,
        bandwidth_limit: mapping.bandwidth_limit,
    }
}

pub(crate) fn volume<'a>(volume: &Volume, mappings: impl Iterator<Item = &'a Mapping>) -> pb::Volume {
    let token_mode = match volume.token_mode {
        TokenMode::Lease => pb::TokenMode::Lease,
        TokenMode::PerIo => pb::TokenMode::PerIo,
    };
    pb::Volume {
        id: volume.id.get(),
        name: volume.name.clone(),
        pool_id: volume.pool.get(),
        size_bytes: volume.size.get(),
        vtree_id: volume.vtree.get(),
        layer_id: volume.layer.get(),
        epoch: volume.epoch.get(),
        token_mode: token_mode.into(),
        mappings: mappings.map(mapping).collect(),
        created_at_ms: volume.created_wall_ms,
    }
}

/// A volume with its mappings.
pub(crate) fn volume_in(state: &State, row: &Volume) -> pb::Volume {
    volume(row, state.mappings_of(row.id))
}

/// The whole map at a revision.
pub(crate) fn full_map(state: &State, revision: Revision) -> pb::ClusterMap {
    let (cluster_id, cluster_generation) =
        state.cluster().map(|c| (c.id.as_bytes().to_vec(), c.generation.get())).unwrap_or_default();
    pb::ClusterMap {
        cluster_id,
        revision: revision.get(),
        cluster_generation,
        domains: state.all_domains().map(domain).collect(),
        pools: state.all_pools().map(pool).collect(),
        sds: state.all_sds().map(sds).collect(),
        devices: state.all_devices().map(device).collect(),
        pgs: state.all_pgs().map(pg).collect(),
        sdcs: state.all_sdcs().map(sdc).collect(),
        volumes: state.all_volumes().map(|row| volume_in(state, row)).collect(),
        recovering: state.is_recovering(),
    }
}

/// All changes of one revision.
pub(crate) fn update(revision: Revision, events: &[MapEvent]) -> pb::MapUpdate {
    let mut update = pb::MapUpdate { revision: revision.get(), ..pb::MapUpdate::default() };
    for event in events {
        match &event.change {
            MapChange::Domain(row) => update.domains.push(domain(row)),
            MapChange::Pool(row) => update.pools.push(pool(row)),
            MapChange::Sds(row) => update.sds.push(sds(row)),
            MapChange::Device(row) => update.devices.push(device(row)),
            MapChange::Pg(row) => update.pgs.push(pg(row)),
            MapChange::Sdc(row) => update.sdcs.push(sdc(row)),
            MapChange::Volume(row, mappings) => update.volumes.push(volume(row, mappings.iter())),
            MapChange::Removed(object) => update.removed.push(removed(*object)),
            MapChange::RecoveryEnded => update.recovery_ended = true,
        }
    }
    update
}

fn removed(object: ObjectRef) -> pb::Removed {
    let (kind, id) = match object {
        ObjectRef::Domain(id) => (pb::ObjectKind::Domain, id.get().into()),
        ObjectRef::Pool(id) => (pb::ObjectKind::Pool, id.get().into()),
        ObjectRef::Sds(id) => (pb::ObjectKind::Sds, id.get().into()),
        ObjectRef::Device(id) => (pb::ObjectKind::Device, id.get().into()),
        ObjectRef::Sdc(id) => (pb::ObjectKind::Sdc, id.get().into()),
        ObjectRef::Volume(id) => (pb::ObjectKind::Volume, id.get()),
    };
    pb::Removed { kind: kind.into(), id }
}

/// ACTIVE, STALE, DOWN, or NEVER-SEEN before the first registration.
pub(crate) fn status_of(state: &State, component: Component, registered: bool) -> String {
    match state.health_of(component) {
        Some(health) => health.status.to_string(),
        None if registered => Status::Active.to_string(),
        None => "NEVER-SEEN".to_owned(),
    }
}

/// Bytes of volumes that a pool holds, as its SDSs reported last. An SDS reports the sum of its devices; where they are
/// in several pools, each gets a share by capacity.
pub(crate) fn used_of(state: &State, pool: &Pool, used: &BTreeMap<SdsId, u64>) -> u64 {
    let raw: u128 = used
        .iter()
        .map(|(sds, used)| {
            let capacity = |device: &Device| u128::from(device.capacity.get());
            let all: u128 = state.devices_of(*sds).map(capacity).sum();
            let here: u128 = state.devices_of(*sds).filter(|device| device.pool == Some(pool.id)).map(capacity).sum();
            u128::from(*used) * here / all.max(1)
        })
        .sum();
    u64::try_from(raw / u128::from(pool.copies)).unwrap_or(u64::MAX)
}

/// What the leader alone knows of components.
pub(crate) struct Heard<'a> {
    pub(crate) reports: &'a Reports,
    pub(crate) liveness: &'a Liveness,
    /// Log time now.
    pub(crate) now: LogTime,
    /// Whether this member leads: what another one heard once is old.
    pub(crate) leading: bool,
}

impl Heard<'_> {
    fn ms_ago(&self, component: Component) -> Option<u64> {
        let beat = if component.kind == Kind::Sds { self.liveness.silence(component.id.into()) } else { None };
        let silence = beat.into_iter().chain(self.reports.silence(component)).min().filter(|_| self.leading)?;
        u64::try_from(silence.as_millis()).ok()
    }
}

/// Everything in the discovery registry.
pub(crate) fn components(state: &State, heard: &Heard<'_>) -> Vec<pb::Component> {
    let sds = state.all_sds().map(|sds| sds_component(state, heard, sds));
    let sdcs = state.all_sdcs().map(|sdc| sdc_component(state, heard, sdc));
    let nodes =
        state.all_nodes().map(|node| component_row(state, heard, node.component, &node.name, Some(&node.registration)));
    nodes.chain(sds).chain(sdcs).collect()
}

pub(crate) fn sds_component(state: &State, heard: &Heard<'_>, sds: &Sds) -> pb::Component {
    let component = Component { kind: Kind::Sds, id: SdsId::get(sds.id) };
    let kept_out = state.sds_kept_out(sds.id, heard.now).filter(|_| !sds.alive);
    pb::Component {
        kept_out_until_log_ms: kept_out.map_or(0, LogTime::get),
        ..component_row(state, heard, component, &sds.name, sds.registration.as_ref())
    }
}

pub(crate) fn sdc_component(state: &State, heard: &Heard<'_>, sdc: &Sdc) -> pb::Component {
    let component = Component { kind: Kind::Sdc, id: sdc.id.get() };
    component_row(state, heard, component, &sdc.name, sdc.registration.as_ref())
}

fn component_row(
    state: &State,
    heard: &Heard<'_>,
    component: Component,
    name: &str,
    registration: Option<&Registration>,
) -> pb::Component {
    let health = state.health_of(component);
    let [minute, hour, day] = state.oscillation_of(component, heard.now);
    pb::Component {
        kind: kind(component.kind).into(),
        id: component.id,
        name: name.to_owned(),
        addresses: registration.map(|r| addresses(&r.addresses)),
        version: registration.map(|r| r.version.clone()).unwrap_or_default(),
        status: status_of(state, component, registration.is_some()),
        registered_at_ms: registration.map_or(0, |r| r.at_wall_ms),
        registrations: registration.map_or(0, |r| r.count),
        why: health.map(|health| health.why.clone()).unwrap_or_default(),
        since_log_ms: health.map_or(0, |health| health.since.get()),
        heard_ms_ago: heard.ms_ago(component),
        oscillation: Some(pb::Oscillation { minute, hour, day }),
        host: state.machine_of(component).map(machine),
        kept_out_until_log_ms: 0,
    }
}

fn machine(metadata: &NodeMetadata) -> pb::HostInfo {
    let NodeMetadata { component: _, host_name, os, kernel, architecture, booted_at_ms, cores, memory_bytes } =
        metadata.clone();
    pb::HostInfo { host_name, os, kernel, architecture, booted_at_ms, cores, memory_bytes }
}

/// The command's machine from a request's.
pub(crate) fn command_host(host: pb::HostInfo) -> proto::Host {
    let pb::HostInfo { host_name: name, os, kernel, architecture, booted_at_ms, cores, memory_bytes } = host;
    proto::Host { name, os, kernel, architecture, booted_at_ms, cores, memory_bytes }
}

pub(crate) fn registration(registration: &Registration) -> pb::RegistrationRow {
    pb::RegistrationRow {
        count: registration.count,
        at_ms: registration.at_wall_ms,
        version: registration.version.clone(),
        host_name: registration.host_name.clone(),
        addresses: Some(addresses(&registration.addresses)),
        process_mark: process_mark(registration.process),
    }
}

pub(crate) const fn kind(kind: Kind) -> pb::ComponentKind {
    match kind {
        Kind::Mdm => pb::ComponentKind::Mdm,
        Kind::Sds => pb::ComponentKind::Sds,
        Kind::Sdc => pb::ComponentKind::Sdc,
        Kind::Mgmt => pb::ComponentKind::Mgmt,
    }
}

/// The command's addresses from a request's.
pub(crate) fn command_addresses(addresses: pb::Addresses) -> proto::Addresses {
    let pb::Addresses { data, control, management, raft, api, nbd } = addresses;
    proto::Addresses { data, control, management, raft, api, nbd }
}
