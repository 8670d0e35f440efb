//! The placement groups double (S25): the MDM says so once, in the middle of the load, and each device follows when it hears of it
//! (`worker::sorting`), at the first configuration of any group that comes from a map with more groups.
//!
//! Of the chunks of a group those with an odd number go to the other half.

use pflex_proto::ids::{ChunkId, DeviceId, PgId, PgIndex};

use super::load::CHUNKS_PER_PG;
use super::moves::Stage;
use super::node::Node;
use super::store::{Image, PgStore};
use super::world::{MS, World};
use crate::replication::Ticket;

/// How many groups there were, and whether there are twice as many.
#[derive(Clone, Copy, Debug)]
pub(super) struct Groups {
    pub(super) first: u32,
    pub(super) doubled: bool,
}

impl Groups {
    /// The group of a chunk.
    pub(super) fn of(&self, chunk: ChunkId) -> PgId {
        let (whole, number) = (chunk.index.0 / (CHUNKS_PER_PG + 1), chunk.index.0 % (CHUNKS_PER_PG + 1));
        let pg = PgId { pool: pflex_proto::ids::PoolId(1), index: PgIndex(whole as u32) };
        if self.doubled && number % 2 == 1 { self.half(pg) } else { pg }
    }

    pub(super) fn half(&self, pg: PgId) -> PgId {
        PgId { index: PgIndex(pg.index.0 + self.first), ..pg }
    }

    /// The group that was one with this one.
    pub(super) fn whole(&self, pg: PgId) -> PgId {
        PgId { index: PgIndex(pg.index.0 % self.first), ..pg }
    }

    pub(super) fn is_half(&self, pg: PgId) -> bool {
        pg.index.0 >= self.first
    }
}

impl World {
    pub(super) fn double(&mut self) {
        self.mdm.double(self.groups.first);
        self.groups.doubled = true;
        // Too short a moment for chance to hit: the lead of a half goes to another copy at once, and the primary of what was one
        // group hears of neither. It reads on, as long as it has leases (S6).
        for pg in self.mdm.pgs().into_iter().filter(|pg| self.groups.is_half(*pg)).collect::<Vec<_>>() {
            let config = self.mdm.config(pg).clone();
            let Some(primary) = config.primary.filter(|_| self.stormy && self.rng.percent(30)) else { continue };
            let other = config.in_sync.iter().map(|member| member.device).find(|device| *device != primary);
            let Some(other) = other else { continue };
            self.mdm.move_lead(pg, other);
            let until = self.now + self.rng.between(1_000, 6_000) * MS;
            self.nodes.get_mut(&primary).expect("known node").mdm_cut_until = until;
            self.network.block((primary.min(other), primary.max(other)), until);
        }
    }

    /// The device hears of it.
    pub(super) fn sort(&mut self, device: DeviceId) -> Result<(), String> {
        let groups = Groups { doubled: true, ..self.groups };
        for pg in self.nodes[&device].pgs.keys().copied().collect::<Vec<_>>() {
            let node = self.nodes.get_mut(&device).expect("known node");
            let (clock, mut effects) = (node.clock(self.now), Vec::new());
            let core = node.pgs.get_mut(&pg).expect("just seen");
            core.pause(clock, &node.leases, &mut effects);
            for effect in effects {
                self.carry_out(device, pg, effect)?;
            }
        }
        self.nodes.get_mut(&device).expect("known node").sort(groups);
        Ok(())
    }
}

impl Node {
    fn sort(&mut self, groups: Groups) {
        self.doubled = true;
        let wholes: Vec<PgId> = self.stores.keys().copied().filter(|pg| !groups.is_half(*pg)).collect();
        for pg in wholes {
            let half = groups.half(pg);
            let goes = |chunk| groups.of(chunk) == half;
            let store = self.stores.get_mut(&pg).expect("just seen").split(goes);
            self.stores.insert(half, store);
            let earlier = self.pgs.remove(&half);
            if let Some(core) = self.pgs.get_mut(&pg) {
                let mut core = core.split_off(half, goes);
                if let Some(earlier) = earlier {
                    core.hears(earlier);
                }
                self.pgs.insert(half, core);
            }
            if let Some(Stage::Dropping | Stage::Forgetting { .. }) = self.departed.get(&pg) {
                self.stores.get_mut(&half).expect("just made").row = false;
                self.departed.insert(half, Stage::Dropping);
            }
            if let Some(epoch) = self.dropped_in.get(&pg) {
                self.dropped_in.insert(half, *epoch);
            }
        }
    }

    /// The store that has a group now: that of both halves, as long as this device has not heard.
    pub(super) fn store_of(&self, pg: PgId, groups: Groups) -> Option<&PgStore> {
        self.stores.get(&if self.doubled { pg } else { groups.whole(pg) })
    }

    /// The store that has a chunk now.
    pub(super) fn store_with(&self, chunk: ChunkId, groups: Groups) -> Option<&PgStore> {
        self.stores.get(&Groups { doubled: self.doubled, ..groups }.of(chunk))
    }
}

impl PgStore {
    /// Everything that was asked for is durable by then.
    fn split(&mut self, goes: impl Fn(ChunkId) -> bool) -> Self {
        self.flush_all();
        self.reserved.clear();
        let mut half = Self::default();
        (half.applied, half.durable) = (self.applied.split(&goes), self.durable.split(&goes));
        half.failed = self.failed.map(|_| Ticket(0));
        (half.row, half.dropped) = (self.row, self.dropped);
        half
    }
}

impl Image {
    fn split(&mut self, goes: impl Fn(ChunkId) -> bool) -> Self {
        self.floor = self.recovered().highest;
        let mut half = self.clone();
        half.chunks.retain(|chunk, _| goes(*chunk));
        half.bad.retain(|(chunk, _)| goes(*chunk));
        half.operations.retain_chunks(&goes);
        self.chunks.retain(|chunk, _| !goes(*chunk));
        self.bad.retain(|(chunk, _)| !goes(*chunk));
        self.operations.retain_chunks(|chunk| !goes(chunk));
        half
    }
}
