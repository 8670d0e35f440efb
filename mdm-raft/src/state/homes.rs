//! Which copies get a new home, when, and what keeps one from having it: one answer for the planner (`liveness::homes`) and
//! for people (`pflex why`, `pflex rebuild list`).

use std::{collections::BTreeSet, fmt};

use pflex_proto::ids::{DeviceId, LogTime, PoolId};

use super::{
    State,
    model::{Device, Pg, Setting},
};
use crate::placement::{Candidate, FaultDomain};

/// What will become of a copy whose device is out of service.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Outlook {
    /// It gets a new home with the next look of the leader.
    Due,
    /// It would, but nothing moves now.
    Held(Hold),
    /// It gets one in so many milliseconds, unless its device is back by then.
    Later(u64),
    /// Never: its SDS is in maintenance, and comes back with it.
    Maintenance,
    /// No device in service fails apart from the other copies of its group (I5).
    NoDomain,
    /// Nobody serves its group, so nobody could fill another copy.
    Unserved,
    /// Its device is in service and had no room lately. It gets another home when another device has.
    NoRoom,
}

/// Why nothing moves.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Hold {
    /// Where copies are is known only at its end (S19).
    Recovery,
    /// A leader found so many servers silent that it doubts itself (S23): they may all be there.
    Brake,
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Recovery => "the recovery after a restore is not over",
            Self::Brake => "over half of the servers fell silent at once within the last minute (S23)",
        })
    }
}

/// As the end of a sentence about copies on a device.
impl fmt::Display for Outlook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Due => f.write_str("new homes are being given"),
            Self::Held(hold) => write!(f, "new homes wait: {hold}"),
            Self::Later(ms) => {
                write!(f, "new homes once rebuild.delay_ms has passed ({} s left)", ms.div_ceil(1_000))
            }
            Self::Maintenance => f.write_str("its server is in maintenance, so it keeps its place"),
            Self::NoDomain => f.write_str("no other fault domain has a device in service"),
            Self::Unserved => f.write_str("nobody serves its group"),
            Self::NoRoom => {
                f.write_str("its device has had no room for copies lately, and no other that may have it has")
            }
        }
    }
}

/// Where the copies of a pool may go.
#[derive(Clone, Debug)]
pub struct Places {
    /// Its devices in service.
    pub candidates: Vec<Candidate>,
    /// Those among them that are given nothing now, because they had no room lately.
    pub without_room: BTreeSet<DeviceId>,
    domains: BTreeSet<FaultDomain>,
    hold: Option<Hold>,
    now: LogTime,
    delay_ms: u64,
}

impl State {
    /// Where copies of a pool may go now.
    pub fn places_of(&self, pool: PoolId, now: LogTime) -> Places {
        let candidates = self.candidates(pool);
        let brake = self.eviction_hold().filter(|hold| hold.is_recent(now)).map(|_| Hold::Brake);
        let full = |device: &DeviceId| self.devices.get(*device).is_some_and(|row| row.without_room(now).is_some());
        let without_room: BTreeSet<DeviceId> =
            candidates.iter().map(|candidate| candidate.device).filter(full).collect();
        let has_room = |candidate: &&Candidate| !without_room.contains(&candidate.device);
        Places {
            domains: candidates.iter().filter(has_room).map(|candidate| candidate.domain).collect(),
            candidates,
            without_room,
            hold: if self.is_recovering() { Some(Hold::Recovery) } else { brake },
            now,
            delay_ms: self.settings().get(Setting::RebuildDelay),
        }
    }

    /// What will become of a group's copy on a device; none while that is in service, or in sync: then it has its home.
    pub fn outlook(&self, pg: &Pg, device: DeviceId, places: &Places) -> Option<Outlook> {
        let lost = self.devices.get(device)?;
        if lost.alive {
            let missing = pg.missing().any(|missing| missing == device);
            let full = missing && places.without_room.contains(&device) && !self.has_another_domain(pg, device, places);
            return full.then_some(Outlook::NoRoom);
        }
        // One that moves is on its way out: its new home is being filled already.
        if pg.config.member(device).is_some() || pg.leaving == Some(device) {
            return None;
        }
        Some(if pg.config.primary.is_none() {
            Outlook::Unserved
        } else if self.is_in_maintenance(lost.sds) {
            Outlook::Maintenance
        } else if !self.has_another_domain(pg, device, places) {
            Outlook::NoDomain
        } else {
            match (places.wait_ms(lost), places.hold) {
                (0, Some(hold)) => Outlook::Held(hold),
                // S11: as long as it may yet be chosen it keeps its place; its group's primary answers nothing so far.
                (0, None) if pg.is_complete_on(device) => Outlook::Unserved,
                (0, None) => Outlook::Due,
                (wait, _) => Outlook::Later(wait),
            }
        })
    }

    pub(super) fn has_another_domain(&self, pg: &Pg, device: DeviceId, places: &Places) -> bool {
        let others = pg.replicas.iter().filter(|other| **other != device).filter_map(|other| self.devices.get(*other));
        let taken: BTreeSet<FaultDomain> =
            others.map(|other| self.domain_of(other)).filter(|domain| places.domains.contains(domain)).collect();
        taken.len() < places.domains.len()
    }
}

impl Places {
    /// The devices that may be given copies.
    pub fn with_room(&self) -> Vec<Candidate> {
        let has_room = |candidate: &&Candidate| !self.without_room.contains(&candidate.device);
        self.candidates.iter().filter(has_room).copied().collect()
    }

    /// Why nothing moves.
    pub const fn hold(&self) -> Option<Hold> {
        self.hold
    }

    /// How long until copies on a device are given another. One of rows that do not say since when it is lost is lost
    /// long enough, and nobody waits for one that is to be taken out for good.
    fn wait_ms(&self, lost: &Device) -> u64 {
        if lost.draining.is_some() {
            return 0;
        }
        let due = lost.lost_at.map_or(0, |at| at.get().saturating_add(self.delay_ms));
        due.saturating_sub(self.now.get())
    }
}
