//! Snapshots as records: what may follow what. Nothing carries them out yet, so only tests propose these commands.

use pflex_proto::ids::VolumeId;

use super::{Context, Effect, Refusal, created, done, validate};
use crate::{
    command::{ErrorCode, proto},
    state::{
        State,
        limits::MAX_SNAPSHOTS_PER_VOLUME,
        model::{Snapshot, SnapshotId, SnapshotState},
    },
};

impl State {
    /// It begins as preparing: its number is known, and no SDC writes under it yet (S22).
    pub(super) fn create_snapshot(&mut self, context: Context, create: &proto::CreateSnapshot) -> Effect {
        let volume = self.named_volume(&create.volume)?;
        let (volume, size) = (volume.id, volume.size);
        let name = validate::name("snapshot", &create.name)?;
        let object = format!("snapshot {}@{name}", create.volume);
        if self.snapshots_of(volume).any(|snapshot| snapshot.name == name) {
            let what = "the volume has a snapshot of this name already; choose another";
            return Err(Refusal::new(ErrorCode::AlreadyExists, object, what));
        }
        if self.snapshots_of(volume).count() >= MAX_SNAPSHOTS_PER_VOLUME {
            return Err(validate::limit(object, MAX_SNAPSHOTS_PER_VOLUME, "snapshots of one volume"));
        }
        let id = self.take_id(|counters| {
            counters.snapshot = SnapshotId(counters.snapshot.0 + 1);
            counters.snapshot
        });
        let (created_at, created_wall_ms) = (context.log_time, context.wall_time_ms);
        let state = SnapshotState::Preparing;
        self.snapshots.put(Snapshot { id, volume, name, size, state, created: created_at, created_wall_ms });
        created(id.0, false)
    }

    /// Preparing, ready, deleting, gone; what was never ready may go at once.
    pub(super) fn set_snapshot_state(&mut self, set: &proto::SetSnapshotState) -> Effect {
        let key = (VolumeId(set.volume_id), SnapshotId(set.snapshot_id));
        let object = format!("snapshot {}", key.1);
        let Some(snapshot) = self.snapshots.get(key) else {
            return Err(Refusal::new(ErrorCode::NotFound, object, "there is no snapshot of this id"));
        };
        let before = snapshot.state;
        let now = match (before, set.state()) {
            (SnapshotState::Preparing | SnapshotState::Ready, proto::SnapshotState::Ready) => SnapshotState::Ready,
            (SnapshotState::Ready | SnapshotState::Deleting, proto::SnapshotState::Deleting) => SnapshotState::Deleting,
            (SnapshotState::Preparing | SnapshotState::Deleting, proto::SnapshotState::Gone) => {
                self.snapshots.remove(key);
                return done(key.1.0);
            }
            (_, wanted) => {
                let wanted = wanted.as_str_name().trim_start_matches("SNAPSHOT_STATE_").to_lowercase();
                return Err(Refusal::new(
                    ErrorCode::Precondition,
                    object,
                    format!("it is {before}, and cannot be {wanted} next"),
                ));
            }
        };
        self.snapshots.update(key, |snapshot| snapshot.state = now);
        done(key.1.0)
    }
}
