//! What goes wrong, and when.

use pflex_proto::ids::{DeviceId, PgId};

use crate::replication::{Body, Proposal, ProposalReason};

use super::rng::Rng;
use super::store::Data;
use super::world::{MS, World};

/// One random fault, and the next one later.
pub(super) fn strike(world: &mut World) {
    if !world.stormy {
        return;
    }
    let devices: Vec<_> = world.nodes.keys().copied().collect();
    let device = *world.rng.pick(&devices);
    let pairs = world.pairs();
    let pair = *world.rng.pick(&pairs);
    let now = world.now;
    if world.mdm.writeback && world.rng.percent(12) {
        // Power fails everywhere, a little earlier here than there (S14).
        for device in devices {
            let (delay, down) = (world.rng.below(30 * MS), length(&mut world.rng, 20, 4500));
            world.crash_after(delay, device, down);
        }
        let calm = length(&mut world.rng, 5, 4500);
        return world.next_fault_after(calm);
    }
    match world.rng.below(100) {
        0..22 => {
            let down = length(&mut world.rng, 20, 4000);
            world.crash(device, down);
        }
        22..26 => {
            for device in devices {
                let down = length(&mut world.rng, 20, 1500);
                world.crash(device, down);
            }
        }
        26..41 => {
            let pause = length(&mut world.rng, 50, 8000);
            world.pause(device, pause);
        }
        41..61 => world.cut(pair),
        61..73 => {
            let until = now + length(&mut world.rng, 100, 6000);
            world.network.block(pair, until);
            if world.rng.percent(50) {
                world.cut(pair);
            }
        }
        73..83 => {
            let until = now + length(&mut world.rng, 100, 6000);
            world.nodes.get_mut(&device).expect("known node").mdm_cut_until = until;
        }
        // Alone: cut off from everybody, while its clients still reach it.
        83..88 => {
            let until = now + length(&mut world.rng, 1000, 8000);
            for pair in pairs.into_iter().filter(|(a, b)| *a == device || *b == device) {
                world.network.block(pair, until);
            }
            world.nodes.get_mut(&device).expect("known node").mdm_cut_until = until;
            world.fall_silent(device, 500);
        }
        88..95 => {
            let until = now + length(&mut world.rng, 100, 3000);
            world.nodes.get_mut(&device).expect("known node").slow_until = until;
        }
        _ => world.nodes.get_mut(&device).expect("known node").full = true,
    }
    let calm = length(&mut world.rng, 5, 4500);
    world.next_fault_after(calm);
}

/// Some moments are too short for chance to hit: a primary dies half-way through making the copies equal (S1).
pub(super) fn aim_at_message(world: &mut World, sender: DeviceId, body: &Body<Data>) {
    let chance = match body {
        Body::Fix { .. } => 20,
        Body::SyncChunk { .. } => 3,
        _ => 0,
    };
    if world.stormy && world.rng.percent(chance) {
        let (delay, down) = (world.rng.below(8 * MS), length(&mut world.rng, 20, 4000));
        world.crash_after(delay, sender, down);
    }
}

/// A join commits, and the primary does not hear of it, nor from the joiner (S3).
pub(super) fn aim_at_proposal(world: &mut World, primary: DeviceId, proposal: &Proposal) {
    let ProposalReason::JoinerSynced(joiner) = proposal.reason else { return };
    if world.stormy && world.rng.percent(20) {
        let until = world.now + length(&mut world.rng, 100, 8000);
        let pair = (primary.min(joiner.device), primary.max(joiner.device));
        world.network.block(pair, until);
        if world.rng.percent(50) {
            world.cut(pair);
        }
        world.nodes.get_mut(&primary).expect("known node").mdm_cut_until = until;
    }
}

/// Who takes over without the others dies soon after, while they are on their way back (S11).
pub(super) fn aim_at_successor(world: &mut World, device: DeviceId, pg: PgId) {
    let config = world.mdm.config(pg);
    let alone = config.to_activate && config.primary == Some(device);
    if world.stormy && alone && world.rng.percent(15) {
        let (delay, down) = (length(&mut world.rng, 1, 5000), world.rng.between(3500, 8000) * MS);
        world.crash_after(delay, device, down);
    }
}

/// Of all magnitudes alike, milliseconds in, nanoseconds out.
fn length(rng: &mut Rng, low_ms: u64, high_ms: u64) -> u64 {
    let ceiling = rng.between(low_ms, high_ms);
    rng.between(low_ms, ceiling) * MS
}

/// Everything is whole again, or will be as soon as crashed members are back.
pub(super) fn heal(world: &mut World) {
    world.stormy = false;
    world.network.heal();
    super::decay::heal(world);
    let now = world.now;
    for node in world.nodes.values_mut() {
        (node.slow_until, node.mdm_cut_until, node.full) = (0, 0, false);
        // A pause under way ends by its own.
        debug_assert!(node.paused_until < now + 10_000 * MS);
    }
}
