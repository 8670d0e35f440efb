//! The map itself.

use std::sync::Arc;

use pflex_proto::{
    geometry::pg_of,
    ids::{
        ChunkIndex, ClusterGeneration, ClusterId, DeviceId, PgId, PgIndex, PoolId, Revision, SdcId, SdsId, VolumeId,
    },
    pb,
    pg::{MalformedMessage, PgConfig},
};

use super::{DeviceInfo, PoolInfo, SdcInfo, SdsInfo, Table, TableKey, VolumeInfo};

/// Everything an SDS or SDC must know, as of one revision. Tables are shared between versions of the map: an update
/// copies only the part of them that it changes.
#[derive(Clone, Debug, Default)]
pub struct ClusterMap {
    /// The cluster.
    pub cluster: ClusterId,
    /// As of which change.
    pub revision: Revision,
    /// Raised by a restore (S19).
    pub generation: ClusterGeneration,
    /// A restore is not over: no group is served and no chunk deleted (S19).
    pub recovering: bool,
    /// Pools by id.
    pub pools: Table<PoolId, PoolInfo>,
    /// Storage servers by id.
    pub sds: Table<SdsId, Arc<SdsInfo>>,
    /// Devices by id.
    pub devices: Table<DeviceId, DeviceInfo>,
    /// Configurations of placement groups.
    pub pgs: Table<PgId, Arc<PgConfig>>,
    /// Client hosts by id.
    pub sdcs: Table<SdcId, SdcInfo>,
    /// Volumes by id.
    pub volumes: Table<VolumeId, Arc<VolumeInfo>>,
}

impl ClusterMap {
    /// From the full map at the start of a watch.
    ///
    /// # Errors
    /// [`MalformedMessage`].
    pub fn from_full(full: pb::ClusterMap) -> Result<Self, MalformedMessage> {
        let cluster = ClusterId::from_slice(&full.cluster_id)
            .map_err(|source| MalformedMessage::Uuid { field: "cluster_id", source })?;
        let generation = ClusterGeneration(full.cluster_generation);
        let mut map = Self { cluster, generation, recovering: full.recovering, ..Self::default() };
        map.apply(pb::MapUpdate {
            revision: full.revision,
            domains: full.domains,
            pools: full.pools,
            sds: full.sds,
            devices: full.devices,
            pgs: full.pgs,
            sdcs: full.sdcs,
            volumes: full.volumes,
            removed: Vec::new(),
            recovery_ended: false,
        })?;
        Ok(map)
    }

    /// Applies all changes of one revision. An update that is not newer changes nothing.
    ///
    /// # Errors
    /// [`MalformedMessage`]; the map may have part of the update then and must be listed again.
    pub fn apply(&mut self, update: pb::MapUpdate) -> Result<(), MalformedMessage> {
        let revision = Revision(update.revision);
        if revision <= self.revision && self.revision != Revision(0) {
            return Ok(());
        }
        insert_all(&mut self.pools, update.pools, |pool: PoolInfo| (pool.id, pool))?;
        insert_all(&mut self.sds, update.sds, |sds: SdsInfo| (sds.id, Arc::new(sds)))?;
        insert_all(&mut self.devices, update.devices, |device: DeviceInfo| (device.id, device))?;
        insert_all(&mut self.sdcs, update.sdcs, |sdc: SdcInfo| (sdc.id, sdc))?;
        insert_all(&mut self.volumes, update.volumes, |volume: VolumeInfo| (volume.id, Arc::new(volume)))?;
        for pg in &update.pgs {
            let config = PgConfig::try_from(pg)?;
            // Epochs only grow (I3): an older configuration can only be a server's mistake.
            if self.pgs.get(&config.pg).is_none_or(|known| known.epoch <= config.epoch) {
                self.pgs.insert(config.pg, Arc::new(config));
            }
        }
        for removed in &update.removed {
            self.remove(removed);
        }
        self.recovering &= !update.recovery_ended;
        self.revision = revision;
        Ok(())
    }

    fn remove(&mut self, removed: &pb::Removed) {
        let small = u32::try_from(removed.id).unwrap_or(u32::MAX);
        match removed.kind() {
            pb::ObjectKind::Pool => {
                let pool = PoolId(small);
                if let Some(gone) = self.pools.get(&pool) {
                    for index in (0..gone.pg_count).map(PgIndex) {
                        self.pgs.remove(&PgId { pool, index });
                    }
                }
                self.pools.remove(&pool);
            }
            pb::ObjectKind::Sds => self.sds.remove(&SdsId(small)),
            pb::ObjectKind::Device => self.devices.remove(&DeviceId(small)),
            pb::ObjectKind::Sdc => self.sdcs.remove(&SdcId(small)),
            pb::ObjectKind::Volume => self.volumes.remove(&VolumeId(removed.id)),
            pb::ObjectKind::Domain | pb::ObjectKind::Unspecified => {}
        }
    }

    /// The placement group of a volume's chunk; none if the pool is not known (yet).
    pub fn pg_of(&self, volume: &VolumeInfo, chunk: ChunkIndex) -> Option<PgId> {
        let pool = self.pools.get(&volume.pool)?;
        Some(PgId { pool: pool.id, index: pg_of(volume.vtree, chunk, pool.pg_count) })
    }

    /// The volume of that name.
    pub fn volume_named(&self, name: &str) -> Option<&VolumeInfo> {
        self.volumes.values().find(|volume| volume.name == name).map(AsRef::as_ref)
    }

    /// Whether the copy on `device` is alive: device and server are, as far as the MDM knows.
    pub fn device_alive(&self, device: DeviceId) -> bool {
        let device = self.devices.get(&device).filter(|device| device.alive);
        device.and_then(|device| self.sds.get(&device.sds)).is_some_and(|sds| sds.alive)
    }
}

fn insert_all<K: TableKey, M, P, V: Clone>(
    table: &mut Table<K, V>,
    messages: Vec<M>,
    row: fn(P) -> (K, V),
) -> Result<(), MalformedMessage>
where
    P: TryFrom<M, Error = MalformedMessage>,
{
    for message in messages {
        let (key, value) = row(P::try_from(message)?);
        table.insert(key, value);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(id: u64, name: &str) -> pb::Volume {
        pb::Volume { id, name: name.into(), pool_id: 1, size_bytes: 1 << 30, vtree_id: id, ..Default::default() }
    }

    fn map() -> ClusterMap {
        let pool = pb::Pool { id: 1, pg_count: 4, copies: 2, ..Default::default() };
        let full = pb::ClusterMap {
            cluster_id: vec![1; 16],
            revision: 10,
            pools: vec![pool],
            volumes: vec![volume(1, "a")],
            pgs: vec![pg(5)],
            ..Default::default()
        };
        ClusterMap::from_full(full).unwrap()
    }

    fn pg(epoch: u64) -> pb::Pg {
        pb::Pg { id: Some(pb::PgId { pool_id: 1, index: 0 }), epoch, ..Default::default() }
    }

    #[test]
    fn an_update_is_applied_once_and_whole() {
        let mut map = map();
        let removed = vec![pb::Removed { kind: pb::ObjectKind::Volume.into(), id: 1 }];
        let update = pb::MapUpdate { revision: 11, volumes: vec![volume(2, "b")], removed, ..Default::default() };
        map.apply(update).unwrap();
        assert!(map.volume_named("a").is_none());
        assert_eq!(map.volume_named("b").unwrap().id, VolumeId(2));
        map.apply(pb::MapUpdate { revision: 11, volumes: vec![volume(3, "c")], ..Default::default() }).unwrap();
        assert!(map.volume_named("c").is_none(), "a revision that is already there changes nothing");
    }

    #[test]
    fn the_groups_of_a_pool_go_with_it() {
        let mut map = map();
        map.apply(pb::MapUpdate { revision: 11, pgs: vec![pg(5)], ..Default::default() }).unwrap();
        let removed = vec![pb::Removed { kind: pb::ObjectKind::Pool.into(), id: 1 }];
        map.apply(pb::MapUpdate { revision: 12, removed, ..Default::default() }).unwrap();
        assert!(map.pools.is_empty() && map.pgs.is_empty());
    }

    /// A measurement: run with `--run-ignored all --no-capture`.
    #[test]
    #[ignore = "a measurement"]
    fn what_a_change_of_one_volume_of_many_costs() {
        const VOLUMES: u64 = 100_000;
        const CHANGES: u64 = 1_000;
        let volumes = (1..=VOLUMES).map(|id| volume(id, &format!("volume-{id}"))).collect();
        let pools = vec![pb::Pool { id: 1, pg_count: 4, copies: 2, ..Default::default() }];
        let full = pb::ClusterMap { cluster_id: vec![1; 16], revision: 1, pools, volumes, ..Default::default() };
        let began = std::time::Instant::now();
        let mut map = Arc::new(ClusterMap::from_full(full).unwrap());
        println!("a full map of {VOLUMES} volumes: {} ms", began.elapsed().as_millis());
        let plain: std::collections::HashMap<VolumeId, VolumeInfo> =
            map.volumes.iter().map(|(id, volume)| (*id, volume.as_ref().clone())).collect();
        let began = std::time::Instant::now();
        let copy = std::hint::black_box(plain.clone());
        println!("a copy of the whole table: {} us", began.elapsed().as_micros());
        assert_eq!(copy.len(), map.volumes.len());
        let (mut took, mut compared) = (std::time::Duration::ZERO, std::time::Duration::ZERO);
        for n in 0..CHANGES {
            let before = Arc::clone(&map);
            let volumes = vec![volume(1 + n * 7 % VOLUMES, "renamed")];
            let began = std::time::Instant::now();
            let mut next = map.as_ref().clone();
            next.apply(pb::MapUpdate { revision: 2 + n, volumes, ..Default::default() }).unwrap();
            map = Arc::new(next);
            took += began.elapsed();
            let began = std::time::Instant::now();
            assert_eq!(map.volumes.changed_since(&before.volumes).len(), 1);
            compared += began.elapsed();
        }
        let each = |all: std::time::Duration| all.as_micros() / u128::from(CHANGES);
        println!("a change of one: {} us; finding what changed: {} us", each(took), each(compared));
    }

    #[test]
    fn epochs_only_grow() {
        let mut map = map();
        map.apply(pb::MapUpdate { revision: 12, pgs: vec![pg(4)], ..Default::default() }).unwrap();
        assert_eq!(map.pgs.values().next().unwrap().epoch.get(), 5);
    }

    #[test]
    fn a_recovery_ends_once() {
        let full = pb::ClusterMap { cluster_id: vec![1; 16], revision: 10, recovering: true, ..Default::default() };
        let mut map = ClusterMap::from_full(full).unwrap();
        map.apply(pb::MapUpdate { revision: 11, ..Default::default() }).unwrap();
        assert!(map.recovering);
        map.apply(pb::MapUpdate { revision: 12, recovery_ended: true, ..Default::default() }).unwrap();
        map.apply(pb::MapUpdate { revision: 13, ..Default::default() }).unwrap();
        assert!(!map.recovering);
    }

    #[test]
    fn a_malformed_map_is_refused() {
        let bad = pb::Pool { id: 1, pg_count: 3, ..Default::default() };
        let full = pb::ClusterMap { cluster_id: vec![1; 16], pools: vec![bad], ..Default::default() };
        assert!(ClusterMap::from_full(full).is_err());
        assert!(ClusterMap::from_full(pb::ClusterMap { cluster_id: vec![1; 3], ..Default::default() }).is_err());
    }
}
