//! When pools are scrubbed, and what becomes of what devices say of their disks. Stateless over the state and the last
//! beats: a new leader just goes on.

use std::collections::BTreeMap;

use pflex_proto::ids::{DeviceId, LogTime};

use super::HeardScrub;
use crate::{
    command::{Body, proto},
    state::{
        State,
        model::{DeviceFaults, Pool, Setting},
    },
};

/// One device's faults are noted so often at most; counts say how many there were.
const NOTE_EVERY_MS: u64 = 60_000;

/// What follows from a look.
pub(crate) fn commands(
    state: &State,
    now: LogTime,
    disks: &BTreeMap<DeviceId, (DeviceFaults, HeardScrub)>,
) -> Vec<Body> {
    let notes = disks.iter().filter_map(|(id, (faults, _))| note(state, now, *id, faults));
    let scrubs = state.all_pools().filter_map(|pool| scrub(state, now, pool, disks));
    notes.chain(scrubs).collect()
}

fn note(state: &State, now: LogTime, id: DeviceId, faults: &DeviceFaults) -> Option<Body> {
    let device = state.device(id).filter(|device| device.incarnation == faults.incarnation)?;
    let known = device.faults.as_ref();
    let due = known.is_none_or(|known| now.get().saturating_sub(known.noted.get()) >= NOTE_EVERY_MS);
    (due && faults.since(known).any()).then(|| {
        Body::NoteDevice(proto::NoteDevice {
            device_id: id.get(),
            incarnation: faults.incarnation.get(),
            repaired_blocks: faults.repaired_blocks,
            unreadable_blocks: faults.unreadable_blocks,
            scrub_bad_blocks: faults.scrub_bad_blocks,
            scrub_mismatches: faults.scrub_mismatches,
        })
    })
}

/// A scrub that is due, or one that every device in service has done its part of.
fn scrub(
    state: &State,
    now: LogTime,
    pool: &Pool,
    disks: &BTreeMap<DeviceId, (DeviceFaults, HeardScrub)>,
) -> Option<Body> {
    let Some(running) = pool.scrub.filter(|scrub| scrub.runs()) else {
        let interval_ms = state.settings().get(Setting::ScrubInterval) * 1_000;
        let last = pool.scrub.map_or(0, |scrub| scrub.started.at.get());
        let due = pool.used && interval_ms > 0 && now.get().saturating_sub(last) >= interval_ms;
        return due.then(|| Body::StartScrub(proto::StartScrub { pool: pool.name.clone() }));
    };
    // Who was done may have got the lead of a group since whose last primary had not come to it. A beat that follows from
    // every configuration there is says so.
    let newest = state.pgs_of(pool.id).map(|pg| pg.since).max().unwrap_or_default();
    let mut found = proto::ScrubFound::default();
    let mut devices = state.all_devices().filter(|device| device.pool == Some(pool.id) && device.alive).peekable();
    // Nobody has looked at anything.
    devices.peek()?;
    for device in devices {
        let (_, part) = disks.get(&device.id)?;
        if part.pass != running.pass || !part.done || part.as_of < newest {
            return None;
        }
        found.chunks += part.found.chunks;
        found.bad_blocks += part.found.bad_blocks;
        found.mismatches += part.found.mismatches;
        found.unreadable_chunks += part.found.unreadable_chunks;
    }
    Some(Body::EndScrub(proto::EndScrub { pool_id: pool.id.get(), pass: running.pass, found: Some(found) }))
}
