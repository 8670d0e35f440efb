//! Blocks go bad on disks, one copy of each at a time: reads of them fail until they are written again; and scrubs, which
//! find them (S13).

use pflex_proto::ids::{ChunkId, DeviceId, PgId};

use crate::replication::{Body, Event, ScrubOutcome};

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
    let store = |device: &DeviceId| world.nodes[device].store_with(chunk, world.groups);
    let bad = |device: &DeviceId| store(device).is_some_and(|store| store.applied.bad.contains(&(chunk, block)));
    let Some(version) = world.nodes[&device].stores.get(&pg).and_then(|store| store.version(chunk)) else { return };
    let others: Vec<DeviceId> = world.mdm.replicas(pg).iter().copied().filter(|other| *other != device).collect();
    let in_sync = &world.mdm.config(pg).in_sync;
    let has_it = |other: &DeviceId| {
        let node = &world.nodes[other];
        let same = store(other).is_some_and(|store| store.version(chunk) == Some(version));
        node.up && in_sync.contains(&node.member()) && same
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

/// Now and then a primary looks at a chunk on all copies; from some moment on until it has looked at all.
pub(super) fn scrub_sometimes(world: &mut World, device: DeviceId, pg: PgId) -> Result<(), String> {
    let wanted = world.to_scrub.keys().find(|(of, _)| *of == pg).map(|(_, chunk)| *chunk);
    let chunk = match wanted {
        Some(chunk) if world.mdm.config(pg).primary == Some(device) => Some(chunk),
        Some(_) => None,
        None if world.decays && world.stormy && world.decay.percent(10) => {
            let store = world.nodes[&device].stores.get(&pg);
            let chunks: Vec<ChunkId> =
                store.into_iter().flat_map(|store| store.applied.chunks.keys().copied()).collect();
            (!chunks.is_empty()).then(|| *world.decay.pick(&chunks))
        }
        None => None,
    };
    let Some(chunk) = chunk else { return Ok(()) };
    let confirmed = world.decay.percent(50);
    world.step(device, pg, Event::Scrub { chunk, confirmed })
}

/// A scrub has ended. Copies of a chunk that nobody writes are equal, unless they were made to differ (I4).
pub(super) fn scrubbed(world: &mut World, pg: PgId, chunk: ChunkId, outcome: ScrubOutcome) -> Result<(), String> {
    let ScrubOutcome::Checked(found) = outcome else { return Ok(()) };
    if found.differing > 0 && !world.falsified.contains(&chunk) {
        return Err(format!("I4: pg {pg}: a scrub of {chunk} finds {found:?}"));
    }
    // Not seen before the last time.
    if let Some(left) = world.to_scrub.get_mut(&(pg, chunk)) {
        *left -= 1;
        if *left == 0 {
            world.to_scrub.remove(&(pg, chunk));
        }
    }
    Ok(())
}

/// In calm: every chunk, twice; some copies differ from their primaries' before.
pub(super) fn scrub_everything(world: &mut World) {
    for pg in world.mdm.pgs() {
        let Some(primary) = world.mdm.config(pg).primary else { continue };
        let replicas = world.mdm.replicas(pg).to_vec();
        let chunks: Vec<ChunkId> = world.nodes[&primary].stores[&pg].applied.chunks.keys().copied().collect();
        for chunk in chunks {
            world.to_scrub.insert((pg, chunk), 2);
            if world.decay.percent(30) {
                let device = *world.decay.pick(&replicas);
                let block = world.decay.below(BLOCKS as u64) as usize;
                if device != primary && world.nodes[&device].stores[&pg].version(chunk).is_some() {
                    world.falsified.insert(chunk);
                    let node = world.nodes.get_mut(&device).expect("known node");
                    node.stores.get_mut(&pg).expect("a replica has a store").falsify(chunk, block);
                }
            }
        }
    }
}

/// Everything was scrubbed, so nothing is bad anywhere.
pub(super) fn none_anywhere(world: &World) -> Result<(), String> {
    for (device, node) in &world.nodes {
        for (pg, store) in &node.stores {
            if !store.applied.bad.is_empty() {
                return Err(format!("S13: pg {pg} on {device}: scrubbed and not repaired: {:?}", store.applied.bad));
            }
        }
    }
    Ok(())
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
