//! Lookups by name and by device uuid: derived from the tables, never stored.

use std::collections::BTreeMap;

use pflex_proto::ids::{DeviceId, DeviceUuid, DomainId, FaultSetId, PoolId, SdcId, SdsId, VolumeId};

use super::State;

/// Which object has a name. Names are unique per kind in the whole cluster.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub(super) struct Names {
    pub(super) domains: BTreeMap<String, DomainId>,
    pub(super) pools: BTreeMap<String, PoolId>,
    pub(super) fault_sets: BTreeMap<String, FaultSetId>,
    pub(super) sds: BTreeMap<String, SdsId>,
    pub(super) sdcs: BTreeMap<String, SdcId>,
    pub(super) volumes: BTreeMap<String, VolumeId>,
    pub(super) devices: BTreeMap<DeviceUuid, DeviceId>,
}

impl Names {
    /// From the whole tables.
    pub(super) fn of(state: &State) -> Self {
        Self {
            domains: state.domains.values().map(|row| (row.name.clone(), row.id)).collect(),
            pools: state.pools.values().map(|row| (row.name.clone(), row.id)).collect(),
            fault_sets: state.fault_sets.values().map(|row| (row.name.clone(), row.id)).collect(),
            sds: state.sds.values().map(|row| (row.name.clone(), row.id)).collect(),
            sdcs: state.sdcs.values().map(|row| (row.name.clone(), row.id)).collect(),
            volumes: state.volumes.values().map(|row| (row.name.clone(), row.id)).collect(),
            devices: state.devices.values().map(|row| (row.uuid, row.id)).collect(),
        }
    }
}

impl State {
    /// Follows what the running apply has changed. A command never looks up a name it has just made.
    pub(super) fn refresh_names(&mut self) {
        /// Forgets the names of the rows as they were, learns those of the rows as they are.
        macro_rules! follow {
            ($($table:ident by $field:ident),*) => {$(
                for (_, before, _) in self.$table.changes() {
                    if let Some(row) = before {
                        self.names.$table.remove(&row.$field);
                    }
                }
                for (id, _, now) in self.$table.changes() {
                    if let Some(row) = now {
                        self.names.$table.insert(row.$field.clone(), id);
                    }
                }
            )*};
        }
        follow!(domains by name, pools by name, fault_sets by name, sds by name, sdcs by name, volumes by name);
        follow!(devices by uuid);
    }
}
