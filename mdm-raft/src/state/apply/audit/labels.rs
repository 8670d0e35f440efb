//! How the audit names objects.

use std::collections::BTreeSet;

use pflex_proto::ids::{DeviceId, SdcId, SdsId};

use super::LISTED;
use crate::{command::proto, state::State};

impl State {
    pub(super) fn group_label(&self, pool: &str, index: u32) -> String {
        self.pool_by_name(pool).map_or_else(|| format!("pg {pool}.{index}"), |pool| format!("pg {}.{index}", pool.id))
    }

    pub(super) fn device_labels(&self, devices: &BTreeSet<DeviceId>) -> String {
        let mut said: Vec<String> = devices.iter().take(LISTED).map(|id| self.device_label(*id)).collect();
        if devices.len() > LISTED {
            said.push(format!("{} more", devices.len() - LISTED));
        }
        said.join(", ")
    }

    pub(super) fn device_label(&self, id: DeviceId) -> String {
        let sds = self.device(id).map(|device| format!(" of {}", self.sds_label(device.sds)));
        format!("device {id}{}", sds.unwrap_or_default())
    }

    pub(in crate::state::apply) fn sds_label(&self, id: SdsId) -> String {
        self.sds(id).map_or_else(|| format!("sds #{id}"), |sds| format!("sds {}", sds.name))
    }

    pub(super) fn component_name(&self, kind: proto::Kind, id: u32) -> String {
        let name = match kind {
            proto::Kind::Sds => self.sds(SdsId(id)).map(|sds| sds.name.clone()),
            proto::Kind::Sdc => self.sdc(SdcId(id)).map(|sdc| sdc.name.clone()),
            _ => self.all_nodes().find(|node| node.component.id == id).map(|node| node.name.clone()),
        };
        name.unwrap_or_else(|| format!("#{id}"))
    }
}

pub(super) fn counted_copies(copies: u32) -> String {
    if copies == 1 { "1 copy".to_owned() } else { format!("{copies} copies") }
}

/// `1 device`, `2 devices`.
pub(super) fn counted(n: usize, noun: &str) -> String {
    if n == 1 { format!("1 {noun}") } else { format!("{n} {noun}s") }
}

pub(super) const fn kind_word(kind: proto::Kind) -> &'static str {
    match kind {
        proto::Kind::Mdm => "mdm",
        proto::Kind::Sds => "sds",
        proto::Kind::Sdc => "sdc",
        proto::Kind::Mgmt => "mgmt",
        proto::Kind::Unspecified => "component",
    }
}
