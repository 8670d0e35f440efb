//! Copies that move from one living device to another, and devices that are being emptied (drained).
//!
//! While a copy moves its group has one place more than copies: `leaving` names the one that goes, the last one is where it
//! goes. The newcomer is filled and proposed like any joiner (S3); with the command that accepts it the old copy leaves, so
//! at no moment does the group have fewer in-sync copies than before. Until then the old copy is a full member, dead or
//! alive: if its device is lost the newcomer is filled all the same, and if that comes back first nothing was lost. A
//! newcomer that dies ends its move at once.

use std::fmt;

use pflex_proto::ids::{DeviceId, Member, PoolId, SdsId};

use super::{
    Hold, Places, State,
    model::{Device, Pg},
};

/// The places of a group's copies.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Homes {
    pub(super) replicas: Vec<DeviceId>,
    pub(super) leaving: Option<DeviceId>,
}

/// At rest.
impl From<Vec<DeviceId>> for Homes {
    fn from(replicas: Vec<DeviceId>) -> Self {
        Self { replicas, leaving: None }
    }
}

impl Pg {
    /// How many copies it is to have.
    pub fn copies(&self) -> usize {
        self.replicas.len() - usize::from(self.leaving.is_some())
    }

    /// Where the copy goes that moves.
    pub fn newcomer(&self) -> Option<DeviceId> {
        self.leaving.and(self.replicas.last().copied())
    }

    /// Where its copies are when nothing moves any more.
    pub fn places(&self) -> impl Iterator<Item = DeviceId> {
        self.replicas.iter().copied().filter(|device| Some(*device) != self.leaving)
    }

    pub(super) fn homes(&self) -> Homes {
        Homes { replicas: self.replicas.clone(), leaving: self.leaving }
    }

    /// Without its move. One whose newcomer has everything goes on: it is a copy like the others, and if it is lost now, it
    /// may yet be the one to be chosen (S11).
    pub(super) fn called_off(&self) -> Homes {
        let Some(newcomer) = self.newcomer() else { return self.homes() };
        if self.is_complete_on(newcomer) {
            return self.homes();
        }
        self.without_newcomer(newcomer)
    }

    pub(super) fn without_newcomer(&self, newcomer: DeviceId) -> Homes {
        self.replicas.iter().copied().filter(|device| *device != newcomer).collect::<Vec<_>>().into()
    }

    /// After its move, if these copies in sync let the old one go: all that there are to be are there without it.
    pub(super) fn arrived(&self, in_sync: &[Member]) -> Option<Homes> {
        let (leaving, newcomer) = (self.leaving?, self.newcomer()?);
        let has = |device| in_sync.iter().any(|member| member.device == device);
        // Whether the old one is itself in sync says nothing: while another copy is missing it keeps its place.
        let others = in_sync.iter().filter(|member| member.device != leaving).count();
        let over = has(newcomer) && others >= self.copies();
        over.then(|| self.places().collect::<Vec<_>>().into())
    }
}

/// What keeps the copy on a device that is being emptied from moving now.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Stuck {
    /// Nothing moves.
    Held(Hold),
    /// Nobody serves its group.
    Unserved,
    /// Copies that are missing come first.
    Degraded,
    /// Its SDS is in maintenance.
    Maintenance,
    /// No device in service that may have it fails apart from the other copies of its group (I5).
    NoDomain,
    /// Its device is out of service: what is lost gets another home in its own way.
    Lost,
}

impl fmt::Display for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Held(hold) => hold.fmt(f),
            Self::Unserved => f.write_str("nobody serves their groups"),
            Self::Degraded => f.write_str("their groups lack copies, which are filled first"),
            Self::Maintenance => f.write_str("their server is in maintenance"),
            Self::NoDomain => f.write_str("no other fault domain has a device in service that may have them"),
            Self::Lost => f.write_str("their device is out of service, and gets no moves but new homes"),
        }
    }
}

impl State {
    /// Whether a device is being emptied, or is empty because of that: it gets no copies.
    pub fn is_draining(&self, id: DeviceId) -> bool {
        self.devices.get(id).is_some_and(|device| device.draining.is_some())
    }

    /// Whether all devices of an SDS are being emptied; `false` for one without any.
    pub fn is_sds_draining(&self, id: SdsId) -> bool {
        let mut devices = self.devices_of(id).peekable();
        devices.peek().is_some() && devices.all(|device| device.draining.is_some())
    }

    /// How many copies a device has a place for, those that come and those that go included.
    pub fn copies_on(&self, id: DeviceId) -> usize {
        self.pgs.values().filter(|pg| pg.replicas.contains(&id)).count()
    }

    /// The devices of a pool that are being emptied.
    pub fn draining_in(&self, pool: PoolId) -> impl Iterator<Item = &Device> {
        let devices = self.sums.draining.get(&pool).into_iter().flatten();
        devices.filter_map(|id| self.devices.get(*id))
    }

    /// Groups of a pool with a copy on its way, by the device that it leaves.
    pub fn moving_in(&self, pool: PoolId) -> impl Iterator<Item = (DeviceId, u32)> {
        self.sums.moving.get(&pool).into_iter().flatten().map(|(device, groups)| (*device, *groups))
    }

    /// Why the copy of a group on a device cannot move now; none: it can, or is on its way.
    pub fn stuck(&self, pg: &Pg, device: &Device, places: &Places) -> Option<Stuck> {
        if pg.leaving == Some(device.id) {
            return None;
        }
        if let Some(hold) = places.hold() {
            return Some(Stuck::Held(hold));
        }
        Some(if pg.config.primary.is_none() {
            Stuck::Unserved
        } else if !device.alive {
            Stuck::Lost
        } else if self.is_in_maintenance(device.sds) {
            Stuck::Maintenance
        } else if !pg.is_whole() {
            Stuck::Degraded
        } else if !self.has_another_domain(pg, device.id, places) {
            Stuck::NoDomain
        } else {
            return None;
        })
    }

    /// What copies on devices of a pool that are being emptied wait for, each reason once.
    pub(super) fn drain_waits_for(&self, pool: PoolId, places: &Places) -> Vec<String> {
        let mut reasons = std::collections::BTreeMap::<Stuck, u32>::new();
        for device in self.draining_in(pool) {
            for pg in self.pgs_of(pool).filter(|pg| pg.replicas.contains(&device.id)) {
                if let Some(stuck) = self.stuck(pg, device, places) {
                    *reasons.entry(stuck).or_default() += 1;
                }
            }
        }
        let words = |(stuck, copies): (&Stuck, &u32)| {
            let copies = if *copies == 1 { "1 copy stays".to_owned() } else { format!("{copies} copies stay") };
            format!("{copies}: {stuck}")
        };
        reasons.iter().map(words).collect()
    }
}
