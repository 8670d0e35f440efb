//! The first command of a cluster, and the status of its components.

use pflex_proto::ids::{ClusterGeneration, ClusterId, KeyId};

use super::{Context, Effect, Refusal, done, validate};
use crate::{
    command::{ErrorCode, proto},
    state::{
        State,
        model::{Cluster, Component, Health, Kind, Secret, SecretRow, Status},
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
        let secret = bootstrap
            .secret
            .as_slice()
            .try_into()
            .map_err(|_| validate::invalid("cluster", "its secret must have 32 bytes"))?;
        if bootstrap.key_id == 0 {
            return Err(validate::invalid("cluster", "key id 0 is none"));
        }
        let key = KeyId(bootstrap.key_id);
        self.config.put(ConfigRow::Cluster(Cluster { id, generation: ClusterGeneration(1), newest_key: key }));
        self.secrets.put(SecretRow { key, secret: Secret(secret) });
        done(0_u64)
    }

    pub(super) fn set_status(&mut self, context: Context, command: &proto::SetComponentStatus) -> Effect {
        let component = Component { kind: validate::kind(command.kind)?, id: command.id };
        let object = format!("{} {}", component.kind, component.id);
        let status = match proto::Status::try_from(command.status) {
            Ok(proto::Status::Active) => Status::Active,
            Ok(proto::Status::Stale) => Status::Stale,
            Ok(proto::Status::Down) => Status::Down,
            Ok(proto::Status::Unspecified) | Err(_) => {
                return Err(validate::invalid(object, format!("{} is no status", command.status)));
            }
        };
        let known = match component.kind {
            Kind::Sds => self.sds.contains(component.id.into()),
            Kind::Sdc => self.sdcs.contains(component.id.into()),
            Kind::Mdm | Kind::Mgmt => self.nodes.contains(component),
        };
        if !known {
            return Err(Refusal::new(ErrorCode::NotFound, object, "it is not registered"));
        }
        let why = validate::text(&object, "reason", &command.why)?;
        self.note_status(context, component, status, why);
        done(component.id)
    }

    /// Records a transition; the same status again is none.
    pub(super) fn note_status(&mut self, context: Context, component: Component, status: Status, why: String) {
        if self.health.get(component).is_none_or(|health| health.status != status) {
            self.health.put(Health { component, status, since: context.log_time, why });
        }
    }
}
