//! Conversations about snapshots: records that nothing carries out yet.

use super::world::{GIB, World, create_volume, delete};
use crate::{
    command::{Answer, Body, ErrorCode, proto},
    state::{limits::MAX_SNAPSHOTS_PER_VOLUME, model::SnapshotState},
};

pub(super) fn create_snapshot(volume: &str, name: &str) -> Body {
    Body::CreateSnapshot(proto::CreateSnapshot { volume: volume.into(), name: name.into() })
}

pub(super) fn set_snapshot(volume_id: u64, snapshot_id: u64, state: proto::SnapshotState) -> Body {
    Body::SetSnapshotState(proto::SetSnapshotState { volume_id, snapshot_id, state: state.into() })
}

fn id(answer: &Answer) -> u64 {
    let Answer::Created(created) = answer else { panic!("{answer:?}") };
    created.id
}

#[test]
fn snapshots_have_names_of_their_own_in_a_volume_and_keep_it() {
    let mut world = World::with_sds(2);
    world.ok(create_volume("v", GIB));
    world.ok(create_volume("w", GIB));
    let first = id(&world.ok(create_snapshot("v", "monday")));
    assert_eq!(world.refused(create_snapshot("v", "monday")), ErrorCode::AlreadyExists);
    assert_eq!(world.refused(create_snapshot("v", "a@b")), ErrorCode::Invalid);
    assert_eq!(world.refused(create_snapshot("x", "monday")), ErrorCode::NotFound);
    let other = id(&world.ok(create_snapshot("w", "monday")));
    assert!(other > first, "numbers are never given out twice");
    let snapshot = world.state.snapshots_of(1.into()).next().unwrap();
    assert_eq!((snapshot.state, snapshot.size.get()), (SnapshotState::Preparing, GIB));
    assert_eq!(world.refused(delete(proto::Object::Volume, "v")), ErrorCode::InUse);

    let set = |state| set_snapshot(1, first, state);
    assert_eq!(world.refused(set(proto::SnapshotState::Deleting)), ErrorCode::Precondition, "it is not ready yet");
    world.ok(set(proto::SnapshotState::Ready));
    assert_eq!(world.refused(set(proto::SnapshotState::Preparing)), ErrorCode::Precondition);
    assert_eq!(
        world.refused(set(proto::SnapshotState::Gone)),
        ErrorCode::Precondition,
        "its layer is to be merged first"
    );
    world.ok(set(proto::SnapshotState::Deleting));
    world.ok(set(proto::SnapshotState::Gone));
    assert_eq!(world.refused(set(proto::SnapshotState::Ready)), ErrorCode::NotFound);
    world.ok(delete(proto::Object::Volume, "v"));
    world.ok(set_snapshot(2, other, proto::SnapshotState::Gone));
    world.ok(delete(proto::Object::Volume, "w"));
    assert!(world.reloaded() == world.state);
}

#[test]
fn a_volume_has_126_snapshots_at_most() {
    let mut world = World::with_sds(2);
    world.ok(create_volume("v", GIB));
    for n in 0..MAX_SNAPSHOTS_PER_VOLUME {
        world.ok(create_snapshot("v", &format!("s{n}")));
    }
    assert_eq!(world.refused(create_snapshot("v", "more")), ErrorCode::Limit);
    world.ok(set_snapshot(1, 1, proto::SnapshotState::Gone));
    world.ok(create_snapshot("v", "more"));
    assert!(world.reloaded() == world.state);
}
