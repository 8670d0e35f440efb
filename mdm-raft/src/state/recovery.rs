//! Which copies of a group count as in sync after a restore from backup (S19). Pure.
//!
//! A backup is older than the configurations that followed it, so what it calls in sync may have left its group since. The
//! devices know better: each makes a configuration durable *before* it acts in it, as primary, backup or joiner, keeps the
//! newest one, and loses it only together with its data. From that follows:
//!
//! - whoever has the newest configuration that anybody reports has every write that was acknowledged before it; it is
//!   taken, whether it was activated or not (PacificA: a committed configuration holds all that was acknowledged);
//! - a device that reports, and has nothing to say of a group, has no copy of it any more: it lost its data (S13), and is
//!   not in sync, whoever names it;
//! - a configuration whose primary reports an older one was never served (S11). Its primary took part in everything that
//!   was served before, so whoever is in sync in a configuration at least as new as the primary's has everything, too.

use std::collections::BTreeSet;

use pflex_proto::ids::{DeviceId, Member};

use super::model::{GroupReports, KnownConfig};

/// What the reports say of a group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Choice {
    /// The newest configuration that is known.
    pub newest: KnownConfig,
    /// Devices that reported and hold every acknowledged write. In the order of the newest configuration.
    pub good: Vec<DeviceId>,
    /// Members of the newest configuration that have not reported: they hold every acknowledged write, if they exist.
    pub silent: Vec<Member>,
    /// Members of it that reported and have no copy any more.
    pub emptied: Vec<Member>,
}

/// What to make of the reports; `reported` says which devices have reported all they know. None if nothing is known.
pub fn choose(reports: &GroupReports, reported: impl Fn(DeviceId) -> bool) -> Option<Choice> {
    let newest = reports.base.iter().chain(reports.by.values()).max_by_key(|known| known.order())?;
    let says = |device: DeviceId| reports.by.get(&device).filter(|_| reported(device));
    let mut good: Vec<DeviceId> =
        newest.in_sync.iter().map(|member| member.device).filter(|device| says(*device).is_some()).collect();
    if let Some(primary) = newest.primary.and_then(says)
        && primary.order() < newest.order()
    {
        let earlier = reports.by.keys().copied().filter(|device| {
            !newest.names(*device)
                && says(*device).is_some_and(|own| own.names(*device) && own.order() >= primary.order())
        });
        good.extend(earlier);
    }
    let (emptied, silent) = newest
        .in_sync
        .iter()
        .filter(|member| says(member.device).is_none())
        .partition(|member| reported(member.device));
    Some(Choice { newest: newest.clone(), good, silent, emptied })
}

/// Whether a device that was waited for in vain, and registers after the recovery, still counts in a group that kept its
/// place. It does unless it knows better: that it had left, or that it lost its data.
pub fn still_counts(reports: Option<&GroupReports>, device: DeviceId) -> bool {
    let Some(reports) = reports else { return false };
    let Some(own) = reports.by.get(&device) else { return false };
    // An older one than was chosen: others, who knew more, named this device.
    own.names(device) || reports.base.as_ref().is_some_and(|chosen| own.order() < chosen.order())
}

/// The devices that a configuration needs to be known.
pub fn devices_of(known: &KnownConfig) -> BTreeSet<DeviceId> {
    known.replicas.iter().copied().chain(known.in_sync.iter().map(|member| member.device)).collect()
}
