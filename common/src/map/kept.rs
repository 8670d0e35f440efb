//! The part of a map that one client needs, as a message again: what it keeps for a start without the MDMs.

use pflex_proto::{ids::SdcId, pb, token::TokenMode};

use super::{Access, ClusterMap, Mapping, VolumeInfo};

impl ClusterMap {
    /// The volumes mapped to `sdc` and what leads to their data, as of revision 0: whoever begins with it asks for all.
    pub fn kept_for(&self, sdc: SdcId) -> pb::ClusterMap {
        let volumes: Vec<_> = self.volumes.values().filter_map(|volume| kept_volume(volume, sdc)).collect();
        let is_used = |pool: u32| volumes.iter().any(|volume| volume.pool_id == pool);
        let pools = self.pools.values().filter(|pool| is_used(pool.id.0)).map(|pool| pb::Pool {
            id: pool.id.0,
            name: pool.name.clone(),
            domain_id: pool.domain.0,
            copies: pool.copies,
            pg_count: pool.pg_count,
            write_policy: if pool.writeback { pb::WritePolicy::Writeback } else { pb::WritePolicy::Sync }.into(),
            ..Default::default()
        });
        let sds = self.sds.values().map(|sds| pb::Sds {
            id: sds.id.0,
            name: sds.name.clone(),
            domain_id: sds.domain.0,
            addresses: sds.data.as_ref().map(|data| pb::Addresses { data: data.to_string(), ..Default::default() }),
            alive: sds.alive,
            ..Default::default()
        });
        let devices = self.devices.values().map(|device| pb::Device {
            id: device.id.0,
            sds_id: device.sds.0,
            uuid: device.uuid.as_bytes().to_vec(),
            incarnation: device.incarnation.0,
            capacity_bytes: device.capacity.0,
            alive: device.alive,
            ..Default::default()
        });
        pb::ClusterMap {
            cluster_id: self.cluster.as_bytes().to_vec(),
            revision: 0,
            cluster_generation: self.generation.0,
            recovering: self.recovering,
            pools: pools.collect(),
            sds: sds.collect(),
            devices: devices.collect(),
            pgs: self.pgs.values().filter(|pg| is_used(pg.pg.pool.0)).map(|pg| pg.as_ref().into()).collect(),
            volumes,
            ..Default::default()
        }
    }
}

fn kept_volume(volume: &VolumeInfo, sdc: SdcId) -> Option<pb::Volume> {
    let Mapping { access, limits, .. } = volume.mapping(sdc)?;
    let access = match access {
        Access::ReadOnly => pb::Access::ReadOnly,
        Access::ReadWrite => pb::Access::ReadWrite,
    };
    let mapping = pb::Mapping {
        sdc_id: sdc.0,
        access: access.into(),
        iops_limit: limits.iops,
        bandwidth_limit: limits.bandwidth,
    };
    let token_mode = match volume.token_mode {
        TokenMode::Lease => pb::TokenMode::Lease,
        TokenMode::PerIo => pb::TokenMode::PerIo,
    };
    Some(pb::Volume {
        id: volume.id.0,
        name: volume.name.clone(),
        pool_id: volume.pool.0,
        size_bytes: volume.size.0,
        vtree_id: volume.vtree.0,
        layer_id: volume.layer.0,
        epoch: volume.epoch.0,
        token_mode: token_mode.into(),
        mappings: vec![mapping],
        created_at_ms: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_what_the_client_sees_and_no_more() {
        let mapping = |sdc_id, iops_limit| pb::Mapping {
            sdc_id,
            access: pb::Access::ReadWrite.into(),
            iops_limit,
            bandwidth_limit: 7,
        };
        let volume = |id: u64, pool_id, sdc| pb::Volume {
            id,
            name: format!("v{id}"),
            pool_id,
            size_bytes: 4096,
            vtree_id: id,
            epoch: 3,
            token_mode: pb::TokenMode::Lease.into(),
            mappings: vec![mapping(sdc, 5), mapping(99, 1)],
            ..Default::default()
        };
        let pool = |id| pb::Pool { id, name: format!("p{id}"), pg_count: 2, copies: 2, ..Default::default() };
        let pg = |pool_id| pb::Pg { id: Some(pb::PgId { pool_id, index: 1 }), epoch: 4, ..Default::default() };
        let sds = pb::Sds {
            id: 1,
            addresses: Some(pb::Addresses { data: "h:1".into(), control: "h:2".into(), ..Default::default() }),
            alive: true,
            ..Default::default()
        };
        let full = pb::ClusterMap {
            cluster_id: vec![1; 16],
            revision: 10,
            cluster_generation: 2,
            pools: vec![pool(1), pool(2)],
            sds: vec![sds],
            devices: vec![pb::Device { id: 8, sds_id: 1, uuid: vec![2; 16], incarnation: 3, ..Default::default() }],
            pgs: vec![pg(1), pg(2)],
            volumes: vec![volume(1, 1, 6), volume(2, 2, 7)],
            ..Default::default()
        };
        let map = ClusterMap::from_full(full).unwrap();
        let kept = ClusterMap::from_full(map.kept_for(SdcId(6))).unwrap();
        assert_eq!((kept.volumes.len(), kept.pools.len(), kept.pgs.len(), kept.revision.0), (1, 1, 1, 0));
        let (before, after) = (map.volume_named("v1").unwrap(), kept.volume_named("v1").unwrap());
        assert_eq!(after.mappings, before.mappings[..1]);
        assert_eq!(VolumeInfo { mappings: before.mappings.clone(), ..after.clone() }, *before);
        assert_eq!(kept.pools.values().next(), map.pools.values().next());
        assert_eq!(kept.devices.values().next(), map.devices.values().next());
        assert_eq!(kept.sds.values().next().unwrap().data, map.sds.values().next().unwrap().data);
        assert_eq!((kept.generation, kept.cluster), (map.generation, map.cluster));
    }
}
