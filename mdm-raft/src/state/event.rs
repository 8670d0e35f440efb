//! What watchers of the cluster map are told about an apply: whole objects, never fields of them.

use std::collections::BTreeSet;

use pflex_proto::ids::{DeviceId, DomainId, PoolId, Revision, SdcId, SdsId, VolumeId};

use super::{
    State,
    model::{Device, Domain, Mapping, Pg, Pool, Sdc, Sds, Volume},
    rows::cluster::ConfigRow,
};

/// One change of the map.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MapEvent {
    /// The command that made it; a watcher applies all of one revision together.
    pub revision: Revision,
    /// What changed.
    pub change: MapChange,
}

/// The object as it is now, or that it is gone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MapChange {
    /// A protection domain.
    Domain(Domain),
    /// A pool.
    Pool(Pool),
    /// An SDS.
    Sds(Sds),
    /// A device.
    Device(Device),
    /// A placement group and its configuration.
    Pg(Pg),
    /// An SDC.
    Sdc(Sdc),
    /// A volume with all its mappings.
    Volume(Volume, Vec<Mapping>),
    /// Gone. The groups of a pool go with it.
    Removed(ObjectRef),
    /// A recovery is over (S19).
    RecoveryEnded,
}

/// Names an object that is gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the kinds of objects")]
pub enum ObjectRef {
    Domain(DomainId),
    Pool(PoolId),
    Sds(SdsId),
    Device(DeviceId),
    Sdc(SdcId),
    Volume(VolumeId),
}

impl State {
    /// The map changes of the running apply, in an order that never names an object before it exists.
    pub(super) fn map_changes(&self) -> Vec<MapChange> {
        let mut changes = Vec::new();
        let mut removed = Vec::new();
        /// One event for each changed row of a table whose rows are map objects.
        macro_rules! table {
            ($table:ident, $kind:ident) => {
                for (id, _, now) in self.$table.changes() {
                    match now {
                        Some(row) => changes.push(MapChange::$kind(row.clone())),
                        None => removed.push(MapChange::Removed(ObjectRef::$kind(id))),
                    }
                }
            };
        }
        table!(domains, Domain);
        table!(pools, Pool);
        table!(sds, Sds);
        table!(devices, Device);
        table!(sdcs, Sdc);
        // Whose configuration was only activated (S11) has nothing that a client acts by; its primary asked for it, and is
        // told by the answer.
        let pgs = self.pgs.changes().filter(|(_, before, now)| {
            before
                .zip(*now)
                .is_none_or(|(before, now)| before.config.epoch != now.config.epoch || before.forced != now.forced)
        });
        changes.extend(pgs.filter_map(|(_, _, now)| now.cloned().map(MapChange::Pg)));
        // A volume's mappings are part of it.
        let volumes: BTreeSet<VolumeId> = self
            .volumes
            .changes()
            .map(|(id, ..)| id)
            .chain(self.mappings.changes().map(|((volume, _), ..)| volume))
            .collect();
        for id in volumes {
            match self.volumes.get(id) {
                Some(volume) => {
                    let mappings = self.mappings_of(id).cloned().collect();
                    changes.push(MapChange::Volume(volume.clone(), mappings));
                }
                None => removed.push(MapChange::Removed(ObjectRef::Volume(id))),
            }
        }
        changes.extend(removed);
        let recovering = |row: &ConfigRow| matches!(row, ConfigRow::Cluster(cluster) if cluster.recovering);
        if self.config.changes().any(|(_, before, _)| before.is_some_and(recovering)) && !self.is_recovering() {
            changes.push(MapChange::RecoveryEnded);
        }
        changes
    }
}
