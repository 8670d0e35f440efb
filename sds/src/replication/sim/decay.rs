//! Blocks go bad on disks, one copy of each at a time: reads of them fail until they are written again (S13).

use pflex_proto::ids::{ChunkId, DeviceId, PgId};

use crate::replication::Body;

use super::store::{BLOCKS, Data};
use super::world::World;

/// Just before a request looks at the chunk.
pub(super) fn aim_at_request(world: &mut World, device: DeviceId, pg: PgId, chunk: ChunkId) {
    if world.stormy && world.decay.percent(5) {
        let block = world.decay.below(BLOCKS as u64) as usize;
        spoil(world, device, pg, chunk, block);
    }
}

/// Just before a chunk is compared, by a primary that opens its epoch or fills a joiner; or just when a copy is asked
/// for what another one cannot read, which it then cannot either, in another place.
pub(super) fn aim_at_message(world: &mut World, sender: DeviceId, pg: PgId, body: &Body<Data>) {
    if let Body::SumsRequest { chunk, .. } | Body::FetchBlocks { chunk, .. } = body
        && world.stormy
        && world.decay.percent(5)
    {
        let block = world.decay.below(BLOCKS as u64) as usize;
        spoil(world, sender, pg, *chunk, block);
    }
}

/// In calm: many blocks, each on one copy.
pub(super) fn everywhere(world: &mut World) {
    for pg in world.mdm.pgs() {
        let replicas = world.mdm.replicas(pg).to_vec();
        let chunks: Vec<ChunkId> = world.nodes[&replicas[0]].stores[&pg].applied.chunks.keys().copied().collect();
        for chunk in chunks {
            for block in 0..BLOCKS {
                let device = *world.decay.pick(&replicas);
                if world.decay.percent(50) {
                    spoil(world, device, pg, chunk, block);
                }
            }
        }
    }
}

/// One block, if another copy that is in sync and up has it.
fn spoil(world: &mut World, device: DeviceId, pg: PgId, chunk: ChunkId, block: usize) {
    if !world.decays {
        return;
    }
    let bad = |device: &DeviceId| world.nodes[device].stores[&pg].applied.bad.contains(&(chunk, block));
    let Some(version) = world.nodes[&device].stores.get(&pg).and_then(|store| store.version(chunk)) else { return };
    let others: Vec<DeviceId> = world.mdm.replicas(pg).iter().copied().filter(|other| *other != device).collect();
    let in_sync = &world.mdm.config(pg).in_sync;
    let has_it = |other: &DeviceId| {
        let node = &world.nodes[other];
        node.up && in_sync.contains(&node.member()) && node.stores[&pg].version(chunk) == Some(version)
    };
    let elsewhere = !others.iter().any(bad) && others.iter().any(has_it);
    if elsewhere && world.nodes[&device].stores[&pg].can_lose(chunk, block) {
        let node = world.nodes.get_mut(&device).expect("known node");
        node.stores.get_mut(&pg).expect("seen above").spoil(chunk, block);
    }
}

/// What is left is readable again: some of it may be on the only copy in sync.
pub(super) fn heal(world: &mut World) {
    for store in world.nodes.values_mut().flat_map(|node| node.stores.values_mut()) {
        store.applied.bad.clear();
        store.durable.bad.clear();
    }
}

/// Everything was read, so everything that was bad where reads go is repaired.
pub(super) fn none_at_primaries(world: &World) -> Result<(), String> {
    for pg in world.mdm.pgs() {
        let Some(primary) = world.mdm.config(pg).primary else { continue };
        let bad = &world.nodes[&primary].stores[&pg].applied.bad;
        if !bad.is_empty() {
            return Err(format!("S13: pg {pg} on {primary}: read and not repaired: {bad:?}"));
        }
    }
    Ok(())
}
