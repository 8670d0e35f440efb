//! Scrubs of pools as the log has them, and what is noted of disks.
//!
//! The state says only that a pass is wanted and how the last one ended; how far it is, devices say in their beats.

use pflex_proto::ids::{DeviceId, Incarnation, PoolId};

use super::{Context, Effect, Refusal, done};
use crate::{
    command::{ErrorCode, proto},
    state::{
        State,
        model::{DeviceFaults, Moment, PoolScrub, ScrubFound},
    },
};

impl State {
    pub(super) fn start_scrub(&mut self, context: Context, start: &proto::StartScrub) -> Effect {
        let pool = self.named_pool(&start.pool)?;
        let (id, last) = (pool.id, pool.scrub);
        if let Some(scrub) = last.filter(PoolScrub::runs) {
            let what = format!("scrub {} of it is under way", scrub.pass);
            return Err(Refusal::new(ErrorCode::Precondition, format!("pool {}", start.pool), what));
        }
        let scrub = PoolScrub {
            pass: last.map_or(0, |scrub| scrub.pass) + 1,
            started: now(context),
            ended: None,
            found: ScrubFound::default(),
        };
        self.pools.update(id, |pool| pool.scrub = Some(scrub));
        done(id.get())
    }

    pub(super) fn end_scrub(&mut self, context: Context, end: &proto::EndScrub) -> Effect {
        let id = PoolId(end.pool_id);
        let runs = |scrub: &PoolScrub| scrub.runs() && scrub.pass == end.pass;
        if !self.pools.get(id).and_then(|pool| pool.scrub).is_some_and(|scrub| runs(&scrub)) {
            let what = format!("scrub {} of it is not under way", end.pass);
            return Err(Refusal::new(ErrorCode::Precondition, format!("pool #{id}"), what));
        }
        let found = end.found.unwrap_or_default();
        let found = ScrubFound {
            chunks: found.chunks,
            bad_blocks: found.bad_blocks,
            mismatches: found.mismatches,
            unreadable_chunks: found.unreadable_chunks,
        };
        self.pools.update(id, |pool| {
            if let Some(scrub) = &mut pool.scrub {
                (scrub.ended, scrub.found) = (Some(now(context)), found);
            }
        });
        done(id.get())
    }

    /// What is no more than was noted before changes nothing, and is no event.
    pub(super) fn note_device(&mut self, context: Context, note: &proto::NoteDevice) -> Effect {
        let id = DeviceId(note.device_id);
        let faults = DeviceFaults {
            incarnation: Incarnation(note.incarnation),
            repaired_blocks: note.repaired_blocks,
            unreadable_blocks: note.unreadable_blocks,
            scrub_bad_blocks: note.scrub_bad_blocks,
            scrub_mismatches: note.scrub_mismatches,
            noted: context.log_time,
        };
        let Some(device) = self.devices.get(id).filter(|device| device.incarnation == faults.incarnation) else {
            let what = format!("its life {} is not the one that is registered", note.incarnation);
            return Err(Refusal::new(ErrorCode::Precondition, format!("device {id}"), what));
        };
        if faults.since(device.faults.as_ref()).any() {
            self.devices.update(id, |device| device.faults = Some(faults));
        }
        done(id.get())
    }
}

const fn now(context: Context) -> Moment {
    Moment { revision: context.revision, at: context.log_time, wall_ms: context.wall_time_ms }
}
