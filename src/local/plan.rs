//! What `up` is to start, from its flags and from what the directory already is. Pure.

use super::{
    layout::{self, Counts, MOST_OFFSET},
    marker::Marker,
};
use crate::{
    error::{Exit, Failure},
    units::format_size,
};

const DEFAULT_COUNTS: Counts = Counts { mdm: 3, sds: 3, sdc: 1 };
const DEFAULT_DEVICE_SIZE_BYTES: u64 = 16 << 30;
/// Below this a device has no room for its journal and a volume worth the name.
const LEAST_DEVICE_SIZE_BYTES: u64 = 1 << 30;
/// On one machine more are no test of anything.
const MOST_DEVICES: u32 = 16;

/// What the flags say; what they leave out is the directory's, else the default.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Wishes {
    pub(super) mdm: Option<u32>,
    pub(super) sds: Option<u32>,
    pub(super) sdc: Option<u32>,
    pub(super) port_offset: Option<u16>,
    pub(super) device_size_bytes: Option<u64>,
    pub(super) devices: Option<u32>,
}

/// What will be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Plan {
    pub(super) counts: Counts,
    pub(super) port_offset: u16,
    pub(super) device_size_bytes: u64,
    /// Of each SDS.
    pub(super) devices: u32,
}

/// Decides. An existing cluster may get more servers and clients; everything else about it is settled.
pub(super) fn plan(existing: Option<&Marker>, wishes: Wishes) -> Result<Plan, Failure> {
    let plan = match existing {
        None => fresh(wishes),
        Some(marker) => continued(marker, wishes)?,
    };
    if plan.port_offset > MOST_OFFSET {
        return Err(Failure::new(Exit::Usage, format!("--port-offset {}: ports end at 65535", plan.port_offset))
            .remedy(format!("give at most {MOST_OFFSET}")));
    }
    if plan.device_size_bytes < LEAST_DEVICE_SIZE_BYTES || plan.device_size_bytes % (1 << 20) != 0 {
        return Err(Failure::new(
            Exit::Usage,
            format!("--device-size {}: a device has at least 1GiB and whole MiB", plan.device_size_bytes),
        )
        .remedy("give another size"));
    }
    if !(1..=MOST_DEVICES).contains(&plan.devices) {
        return Err(Failure::new(Exit::Usage, format!("--devices {}: give 1 to {MOST_DEVICES}", plan.devices))
            .remedy("give another number"));
    }
    layout::check_counts(plan.counts)?;
    Ok(plan)
}

fn fresh(wishes: Wishes) -> Plan {
    Plan {
        counts: Counts {
            mdm: wishes.mdm.unwrap_or(DEFAULT_COUNTS.mdm),
            sds: wishes.sds.unwrap_or(DEFAULT_COUNTS.sds),
            sdc: wishes.sdc.unwrap_or(DEFAULT_COUNTS.sdc),
        },
        port_offset: wishes.port_offset.unwrap_or(0),
        device_size_bytes: wishes.device_size_bytes.unwrap_or(DEFAULT_DEVICE_SIZE_BYTES),
        devices: wishes.devices.unwrap_or(1),
    }
}

fn continued(marker: &Marker, wishes: Wishes) -> Result<Plan, Failure> {
    let has = marker.counts();
    let settled = |what: String, remedy: &str| Failure::new(Exit::Conflict, what).remedy(remedy);
    if let Some(mdm) = wishes.mdm.filter(|mdm| *mdm != has.mdm) {
        return Err(settled(
            format!("--mdm {mdm}: this cluster has {} MDMs, and a quorum is changed online only", has.mdm),
            "leave out --mdm, or give another --dir",
        ));
    }
    if let Some(offset) = wishes.port_offset.filter(|offset| *offset != marker.port_offset) {
        return Err(settled(
            format!("--port-offset {offset}: this cluster was made with {}", marker.port_offset),
            "leave out --port-offset, or give another --dir",
        ));
    }
    if let Some(size) = wishes.device_size_bytes.filter(|size| *size != marker.device_size_bytes) {
        let made = format_size(marker.device_size_bytes);
        return Err(settled(
            format!("--device-size {}: the devices of this cluster have {made}", format_size(size)),
            "leave out --device-size, or give another --dir",
        ));
    }
    if let Some(devices) = wishes.devices.filter(|devices| *devices != marker.devices) {
        return Err(settled(
            format!("--devices {devices}: the servers of this cluster have {} each", marker.devices),
            "leave out --devices, or add a [[device]] to the configuration of a server and start it again",
        ));
    }
    let grown = |flag: &str, wish: Option<u32>, has: u32| match wish {
        Some(wish) if wish < has => Err(settled(
            format!("--{flag} {wish}: this cluster has {has}, and `up` takes none away"),
            "remove one by name with `sds remove` or `sdc remove`",
        )),
        wish => Ok(wish.unwrap_or(has)),
    };
    let counts =
        Counts { mdm: has.mdm, sds: grown("sds", wishes.sds, has.sds)?, sdc: grown("sdc", wishes.sdc, has.sdc)? };
    Ok(Plan {
        counts,
        port_offset: marker.port_offset,
        device_size_bytes: marker.device_size_bytes,
        devices: marker.devices,
    })
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn marker() -> Marker {
        let counts = Counts { mdm: 1, sds: 2, sdc: 1 };
        let plan = Plan { counts, port_offset: 100, device_size_bytes: 2 << 30, devices: 1 };
        Marker::new(&plan, Uuid::new_v4)
    }

    #[test]
    fn a_new_cluster_has_the_defaults() {
        let plan = plan(None, Wishes::default()).unwrap();
        assert_eq!(plan.counts, Counts { mdm: 3, sds: 3, sdc: 1 });
        assert_eq!((plan.port_offset, plan.device_size_bytes, plan.devices), (0, 16 << 30, 1));
    }

    #[test]
    fn an_existing_cluster_keeps_what_it_is_and_may_grow() {
        let same = plan(Some(&marker()), Wishes::default()).unwrap();
        assert_eq!(same, Plan { counts: marker().counts(), port_offset: 100, device_size_bytes: 2 << 30, devices: 1 });
        let more = plan(Some(&marker()), Wishes { sds: Some(4), ..Wishes::default() }).unwrap();
        assert_eq!(more.counts.sds, 4);
    }

    #[test]
    fn what_is_settled_is_a_conflict() {
        for wishes in [
            Wishes { mdm: Some(3), ..Wishes::default() },
            Wishes { sds: Some(1), ..Wishes::default() },
            Wishes { sdc: Some(0), ..Wishes::default() },
            Wishes { port_offset: Some(0), ..Wishes::default() },
            Wishes { device_size_bytes: Some(1 << 30), ..Wishes::default() },
            Wishes { devices: Some(2), ..Wishes::default() },
        ] {
            assert_eq!(plan(Some(&marker()), wishes).unwrap_err().exit(), Exit::Conflict, "{wishes:?}");
        }
    }

    #[test]
    fn what_can_never_be_is_a_usage_error() {
        for wishes in [
            Wishes { mdm: Some(4), ..Wishes::default() },
            Wishes { port_offset: Some(60_000), ..Wishes::default() },
            Wishes { device_size_bytes: Some(1), ..Wishes::default() },
        ] {
            assert_eq!(plan(None, wishes).unwrap_err().exit(), Exit::Usage, "{wishes:?}");
        }
    }
}
