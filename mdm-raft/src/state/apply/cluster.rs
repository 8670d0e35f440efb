//! The first command of a cluster, its members, and the end of a recovery.

use pflex_proto::ids::{ClusterGeneration, ClusterId, KeyId, MdmId, StoreUuid};

use super::{Effect, Refusal, done, secret::secret, validate};
use crate::{
    command::{ErrorCode, proto},
    state::{
        State,
        limits::MAX_MDM_IDS,
        model::{Cluster, Kind, SecretRow},
        rows::cluster::ConfigRow,
    },
};

impl State {
    /// Gives the cluster its identity and first secret. A second one is refused, so several members may try.
    pub(super) fn bootstrap(&mut self, bootstrap: &proto::BootstrapCluster) -> Effect {
        if let Some(cluster) = self.cluster() {
            let what = "it was bootstrapped before; its identity never changes";
            return Err(Refusal::new(ErrorCode::AlreadyExists, format!("cluster {}", cluster.id), what));
        }
        let id = ClusterId::from_slice(&bootstrap.cluster_id)
            .map_err(|why| validate::invalid("cluster", format!("its id is no uuid: {why}")))?;
        let secret = secret(&bootstrap.secret)?;
        if bootstrap.key_id == 0 {
            return Err(validate::invalid("cluster", "key id 0 is none"));
        }
        let key = KeyId(bootstrap.key_id);
        self.config.put(ConfigRow::Cluster(Cluster {
            id,
            generation: ClusterGeneration(1),
            newest_key: key,
            recovering: false,
            devices_of_backup: None,
        }));
        self.secrets.put(SecretRow { key, secret, last_expiry: None });
        done(0_u64)
    }

    /// Notes which stores the MDMs have. An id that belongs to another store is refused.
    pub(super) fn record_mdms(&mut self, record: &proto::RecordMdms) -> Effect {
        let mut stores = self.mdm_stores();
        for entry in &record.stores {
            let (id, object) = (MdmId(entry.id), format!("mdm {}", entry.id));
            let store = StoreUuid::from_slice(&entry.store)
                .map_err(|why| validate::invalid(object.clone(), format!("its store is no uuid: {why}")))?;
            match stores.insert(id, store) {
                Some(before) if before != store => {
                    let what = "the id belonged to another store; a node that lost its store comes back only under a \
                                new id: `pflex cluster replace-node`";
                    return Err(Refusal::new(ErrorCode::AlreadyExists, object, what));
                }
                Some(_) | None => {}
            }
        }
        if stores.len() > MAX_MDM_IDS {
            return Err(validate::limit("mdm", MAX_MDM_IDS, "ids"));
        }
        validate::text("mdm", "reason", &record.what)?;
        self.config.put(ConfigRow::MdmStores(stores));
        for id in &record.removed {
            let name = format!("mdm{id}");
            let registered = self.nodes.values().find(|node| node.component.kind == Kind::Mdm && node.name == name);
            if let Some(component) = registered.map(|node| node.component) {
                self.nodes.remove(component);
                self.forget_component(component);
            }
        }
        done(0_u64)
    }
}
