//! Conversations about volumes and mappings.

use super::world::{GIB, World, create_sdc, create_volume, delete, map, unmap};
use crate::{
    command::{Answer, Body, ErrorCode, proto},
    state::MapChange,
};

fn resize(name: &str, size: u64) -> Body {
    Body::ResizeVolume(proto::ResizeVolume { name: name.into(), size_bytes: size })
}

fn rename(name: &str, new: &str) -> Body {
    Body::Rename(proto::Rename { kind: proto::Object::Volume.into(), name: name.into(), new_name: new.into() })
}

#[test]
fn sizes_and_names_are_checked() {
    let mut world = World::with_sds(2);
    for size in [0, 1, 4095, 4097, (1 << 50) + 4096, u64::MAX] {
        assert_eq!(world.refused(create_volume("v", size)), ErrorCode::Invalid, "size {size}");
    }
    for name in ["", "-v", "a b", "v@s", "a/b", "\u{1f}", &"x".repeat(64)] {
        assert_eq!(world.refused(create_volume(name, GIB)), ErrorCode::Invalid, "name {name:?}");
    }
    world.ok(create_volume("v", 4096));
    assert_eq!(world.refused(create_volume("v", 4096)), ErrorCode::AlreadyExists);
    let again = Body::CreateVolume(proto::CreateVolume {
        name: "v".into(),
        size_bytes: 4096,
        if_not_exists: true,
        ..Default::default()
    });
    assert!(matches!(world.ok(again), Answer::Created(created) if created.existed && created.id == 1));
    assert_eq!(world.refused(delete(proto::Object::Volume, "nobody")), ErrorCode::NotFound);
}

#[test]
fn a_pool_promises_five_times_what_it_has() {
    let mut world = World::with_sds(2);
    world.ok(create_volume("a", 40 * GIB));
    assert_eq!(
        world.refused(create_volume("b", 11 * GIB)),
        ErrorCode::NoCapacity,
        "2 x 10 GiB in two copies, times five"
    );
    world.ok(create_volume("b", 10 * GIB));
    assert_eq!(world.refused(resize("b", 10 * GIB + 4096)), ErrorCode::NoCapacity);
    assert_eq!(world.refused(resize("b", GIB)), ErrorCode::Precondition, "no shrinking");
    world.ok(delete(proto::Object::Volume, "a"));
    world.ok(resize("b", 50 * GIB));
}

#[test]
fn unmapping_raises_the_epoch_that_voids_tokens() {
    let mut world = World::with_sds(2);
    world.ok(create_volume("v", GIB));
    world.ok(create_sdc("c"));
    world.ok(map("v", "c"));
    let events = &world.last.as_ref().unwrap().events;
    assert!(
        matches!(&events[..], [e] if matches!(&e.change, MapChange::Volume(v, m) if v.id.get() == 1 && m.len() == 1))
    );
    assert_eq!(world.refused(delete(proto::Object::Volume, "v")), ErrorCode::InUse);
    assert_eq!(world.refused(delete(proto::Object::Sdc, "c")), ErrorCode::InUse);

    let Answer::Unmapped(unmapped) = world.ok(unmap("v", "c")) else { panic!() };
    assert_eq!((unmapped.volume_epoch, unmapped.tokens_expire_log_ms), (2, world.now + 70_000));
    assert_eq!(world.refused(unmap("v", "c")), ErrorCode::NotFound);
    world.ok(delete(proto::Object::Volume, "v"));
    world.ok(create_volume("v", GIB));
    assert_eq!(world.state.volume_by_name("v").unwrap().id.get(), 2, "ids are never used again");
}

#[test]
fn taking_write_access_away_revokes() {
    let mut world = World::with_sds(2);
    world.ok(create_volume("v", GIB));
    world.ok(create_sdc("c"));
    let with = |access: proto::Access| {
        Body::MapVolume(proto::MapVolume {
            volume: "v".into(),
            sdc: "c".into(),
            access: access.into(),
            ..Default::default()
        })
    };
    for (access, epoch) in [(proto::Access::ReadWrite, 1), (proto::Access::ReadOnly, 2), (proto::Access::ReadWrite, 2)]
    {
        world.ok(with(access));
        assert_eq!(world.state.volume_by_name("v").unwrap().epoch.get(), epoch);
    }
}

#[test]
fn renaming_keeps_names_unique() {
    let mut world = World::with_sds(2);
    world.ok(create_volume("a", GIB));
    world.ok(create_volume("b", GIB));
    assert_eq!(world.refused(rename("a", "b")), ErrorCode::AlreadyExists);
    world.ok(rename("a", "c"));
    world.ok(rename("b", "a"));
    assert_eq!(world.state.volume_by_name("a").unwrap().id.get(), 2);
    assert_eq!(world.reloaded(), world.state);
}

#[test]
fn a_pool_that_had_a_volume_is_not_placed_anew_after_its_last() {
    let mut world = World::with_sds(2);
    world.ok(create_volume("v", GIB));
    world.ok(delete(proto::Object::Volume, "v"));
    world.ok(super::world::create_sds("s3"));
    world.ok(super::world::register_sds(3, 3, 1));
    assert!(!world.state.all_pgs().any(|pg| pg.replicas.contains(&3.into())), "sequences of its groups have begun");
}

#[test]
fn limits_change_alone_and_revoke_nothing() {
    let mut world = World::with_sds(2);
    world.ok(create_volume("v", GIB));
    world.ok(create_sdc("c"));
    let limit = |iops_limit, bandwidth_limit| {
        Body::LimitMapping(proto::LimitMapping { volume: "v".into(), sdc: "c".into(), iops_limit, bandwidth_limit })
    };
    assert_eq!(world.refused(limit(Some(1), None)), ErrorCode::NotFound, "it is not mapped");
    let read_only = proto::MapVolume {
        volume: "v".into(),
        sdc: "c".into(),
        access: proto::Access::ReadOnly.into(),
        ..Default::default()
    };
    world.ok(Body::MapVolume(read_only));
    let before = world.state.mapping(1.into(), 1.into()).unwrap().clone();
    for (change, iops, bandwidth) in
        [(limit(Some(500), None), 500, 0), (limit(None, Some(7)), 500, 7), (limit(Some(0), None), 0, 7)]
    {
        assert!(matches!(world.ok(change), Answer::Done(_)), "nothing is waited for");
        let now = world.state.mapping(1.into(), 1.into()).unwrap();
        assert_eq!((now.iops_limit, now.bandwidth_limit, now.access), (iops, bandwidth, before.access));
    }
    assert_eq!(world.state.volume_by_name("v").unwrap().epoch.get(), 1, "tokens stay good");
    assert!(world.reloaded() == world.state);
}
