//! Conversations about fault sets, new names, and where devices belong.

use std::collections::BTreeSet;

use super::world::{
    GIB, World, create_pool, create_sdc, create_sds, create_volume, delete, opened, register_sdc, register_sds,
};
use crate::{
    command::{Body, ErrorCode, proto},
    placement::FaultDomain,
};

pub(super) fn create_fault_set(name: &str) -> Body {
    Body::CreateFaultSet(proto::CreateFaultSet { name: name.into(), ..Default::default() })
}

pub(super) fn rename(kind: proto::Object, name: &str, new_name: &str) -> Body {
    Body::Rename(proto::Rename { kind: kind.into(), name: name.into(), new_name: new_name.into() })
}

pub(super) fn assign(device_id: u32, pool: &str) -> Body {
    Body::AssignDevice(proto::AssignDevice { device_id, pool: pool.into(), if_not_exists: false })
}

pub(super) fn remove(device_id: u32) -> Body {
    Body::RemoveDevice(proto::RemoveDevice { device_id })
}

fn sds_in(name: &str, fault_set: &str) -> Body {
    Body::CreateSds(proto::CreateSds { name: name.into(), fault_set: fault_set.into(), ..Default::default() })
}

fn registering_as(name: &str, n: u8, process: u8, incarnation: u64) -> Body {
    let Body::RegisterComponent(register) = register_sds(n, process, incarnation) else { unreachable!() };
    Body::RegisterComponent(proto::RegisterComponent { name: name.into(), ..register })
}

/// Domain `d`, pool `p` of two copies, four SDSs in two racks.
fn racks() -> World {
    let mut world = World::new();
    world.ok(Body::CreateDomain(proto::CreateDomain { name: "d".into(), if_not_exists: false }));
    world.ok(create_fault_set("left"));
    world.ok(create_pool("p", 2, 16));
    for n in 1..=4_u8 {
        world.ok(sds_in(&format!("s{n}"), if n <= 2 { "left" } else { "right" }));
        world.ok(register_sds(n, n, 1));
    }
    world
}

#[test]
fn copies_are_in_different_fault_sets_and_a_pool_waits_for_as_many_as_it_has_copies() {
    let world = racks();
    for pg in world.state.all_pgs() {
        let sets: BTreeSet<FaultDomain> = pg
            .replicas
            .iter()
            .map(|device| world.state.sds(world.state.device(*device).unwrap().sds).unwrap().fault_domain())
            .collect();
        assert_eq!(sets.len(), 2, "pg {} has both copies in one rack", pg.id);
        assert!(sets.iter().all(|domain| matches!(domain, FaultDomain::Set(_))));
    }
    assert_eq!(world.state.all_pgs().len(), 16);

    let mut one_rack = World::new();
    one_rack.ok(Body::CreateDomain(proto::CreateDomain { name: "d".into(), if_not_exists: false }));
    one_rack.ok(create_pool("p", 2, 16));
    for n in 1..=3_u8 {
        one_rack.ok(sds_in(&format!("s{n}"), "only"));
        one_rack.ok(register_sds(n, n, 1));
    }
    assert_eq!(one_rack.state.all_pgs().len(), 0, "three servers that fail together are one place");
    assert_eq!(one_rack.refused(create_volume("v", GIB)), ErrorCode::Precondition);
}

#[test]
fn a_fault_set_is_made_once_and_goes_when_nobody_is_in_it() {
    let mut world = racks();
    assert_eq!(world.refused(create_fault_set("left")), ErrorCode::AlreadyExists);
    assert_eq!(world.refused(create_fault_set("a b")), ErrorCode::Invalid);
    world.ok(Body::CreateFaultSet(proto::CreateFaultSet {
        name: "left".into(),
        if_not_exists: true,
        ..Default::default()
    }));
    assert_eq!(world.refused(delete(proto::Object::FaultSet, "left")), ErrorCode::InUse);
    assert_eq!(world.refused(delete(proto::Object::FaultSet, "middle")), ErrorCode::NotFound);

    world.ok(create_fault_set("middle"));
    assert_eq!(world.refused(rename(proto::Object::FaultSet, "middle", "left")), ErrorCode::AlreadyExists);
    world.ok(rename(proto::Object::FaultSet, "middle", "centre"));
    world.ok(delete(proto::Object::FaultSet, "centre"));

    world.ok(Body::CreateDomain(proto::CreateDomain { name: "e".into(), if_not_exists: false }));
    let elsewhere =
        proto::CreateSds { name: "s9".into(), domain: "e".into(), fault_set: "left".into(), ..Default::default() };
    assert_eq!(world.refused(Body::CreateSds(elsewhere)), ErrorCode::Invalid, "left is in domain d");
    let there = proto::CreateFaultSet { name: "far".into(), domain: "e".into(), ..Default::default() };
    world.ok(Body::CreateFaultSet(there));
    assert_eq!(world.refused(delete(proto::Object::Domain, "e")), ErrorCode::InUse);
    world.ok(delete(proto::Object::FaultSet, "far"));
    world.ok(delete(proto::Object::Domain, "e"));
    assert!(world.reloaded() == world.state);
}

#[test]
fn a_refused_name_changes_nothing() {
    let mut world = World::with_sds(2);
    world.ok(create_sdc("c1"));
    world.ok(create_sdc("c2"));
    world.ok(Body::CreateDomain(proto::CreateDomain { name: "e".into(), if_not_exists: false }));
    let q = proto::CreatePool { name: "q".into(), domain: "d".into(), copies: 1, pg_count: 4, ..Default::default() };
    world.ok(Body::CreatePool(q));
    for (kind, old, taken) in [
        (proto::Object::Domain, "d", "e"),
        (proto::Object::Pool, "p", "q"),
        (proto::Object::Sds, "s1", "s2"),
        (proto::Object::Sdc, "c1", "c2"),
    ] {
        let before = world.state.dump().len();
        assert_eq!(world.refused(rename(kind, old, taken)), ErrorCode::AlreadyExists, "{kind:?}");
        assert_eq!(world.refused(rename(kind, old, "a b")), ErrorCode::Invalid, "{kind:?}");
        assert_eq!(world.refused(rename(kind, "nobody", "x")), ErrorCode::NotFound, "{kind:?}");
        assert_eq!(world.state.dump().len(), before);
        world.ok(rename(kind, old, old));
        assert!(world.last.as_ref().unwrap().events.is_empty(), "{kind:?}: its own name is no change");
        world.ok(rename(kind, old, "fresh"));
        world.ok(rename(kind, "fresh", old));
    }
    assert_eq!(world.refused(rename(proto::Object::Device, "1", "x")), ErrorCode::Invalid);
    assert!(world.state.sds_by_name("s1").unwrap().former_name.is_none(), "back at the name it knows");
}

#[test]
fn a_renamed_server_answers_to_its_old_name_until_it_registers_under_the_new_one() {
    let mut world = World::with_sds(2);
    let id = world.state.sds_by_name("s1").unwrap().id;
    world.ok(rename(proto::Object::Sds, "s1", "alpha"));
    world.ok(rename(proto::Object::Sds, "alpha", "beta"));
    assert_eq!(
        world.refused(create_sds("s1")),
        ErrorCode::AlreadyExists,
        "its process would take the other for itself"
    );
    assert_eq!(world.refused(rename(proto::Object::Sds, "s2", "s1")), ErrorCode::AlreadyExists);
    world.ok(create_sds("alpha"));

    // Restarted with the file as it was.
    world.ok(register_sds(1, 11, 2));
    assert_eq!(world.state.sds_by_name("beta").unwrap().registration.as_ref().unwrap().count, 2);
    assert!(world.state.events_after(0.into()).next_back().unwrap().object == "sds beta");
    assert_eq!(world.refused(create_sds("s1")), ErrorCode::AlreadyExists);

    // And with the new name in it.
    world.ok(registering_as("beta", 1, 12, 3));
    assert_eq!(world.state.sds_by_name("beta").unwrap().id, id);
    assert_eq!(world.refused(register_sds(1, 13, 4)), ErrorCode::NotFound);
    world.ok(create_sds("s1"));
    assert!(world.reloaded() == world.state);

    world.ok(create_sdc("c"));
    world.ok(rename(proto::Object::Sdc, "c", "k"));
    assert_eq!(world.refused(create_sdc("c")), ErrorCode::AlreadyExists);
    world.ok(register_sdc("c", 1));
    world.ok(register_sdc("k", 2));
    world.ok(create_sdc("c"));
}

#[test]
fn a_server_restarts_though_the_pool_in_its_file_was_renamed() {
    let mut world = World::with_sds(2);
    world.ok(rename(proto::Object::Pool, "p", "q"));
    let Body::RegisterComponent(mut again) = register_sds(1, 11, 2) else { unreachable!() };
    again.devices[0].pool = "p".into();
    world.ok(Body::RegisterComponent(again.clone()));
    again.process_id = vec![12; 16];
    again.devices.push(proto::OpenedDevice { pool: "p".into(), ..opened(50, 1) });
    again.devices[0].incarnation = 3;
    assert_eq!(
        world.refused(Body::RegisterComponent(again)),
        ErrorCode::NotFound,
        "a new device needs a pool there is"
    );
}

#[test]
fn a_device_goes_only_without_copies_and_a_pool_that_held_nothing_does_without_it() {
    let mut world = World::with_sds(4);
    world.ok(remove(4));
    assert!(world.state.all_pgs().all(|pg| !pg.replicas.contains(&4.into())), "the pool was empty");
    world.ok(create_volume("v", GIB));
    let outcome = world.say(remove(3));
    let error = outcome.error().expect("it holds copies");
    assert_eq!(error.code(), ErrorCode::InUse);
    assert!(
        error.what.contains("of pool p and ") && error.what.contains("`pflex device drain 3` moves them"),
        "{}",
        error.what
    );
    assert_eq!(world.refused(remove(4)), ErrorCode::NotFound);
    assert!(world.reloaded() == world.state);
}

#[test]
fn a_device_is_given_to_a_pool_of_its_domain_while_it_holds_nothing() {
    let mut world = World::with_sds(3);
    let q = proto::CreatePool { name: "q".into(), domain: "d".into(), copies: 1, pg_count: 4, ..Default::default() };
    world.ok(Body::CreatePool(q));
    assert_eq!(world.state.pgs_of(2.into()).count(), 0);
    world.ok(assign(3, "q"));
    assert!(world.state.pgs_of(2.into()).all(|pg| pg.replicas == [3.into()]));
    assert!(world.state.pgs_of(1.into()).all(|pg| !pg.replicas.contains(&3.into())));
    assert_eq!(world.refused(assign(3, "q")), ErrorCode::AlreadyExists);
    world.ok(Body::AssignDevice(proto::AssignDevice { device_id: 3, pool: "q".into(), if_not_exists: true }));
    assert!(world.last.as_ref().unwrap().events.is_empty(), "it is there already");
    assert_eq!(world.refused(assign(2, "q")), ErrorCode::InUse, "pool p needs both that are left");
    assert_eq!(world.refused(assign(9, "q")), ErrorCode::NotFound);
    assert_eq!(world.refused(assign(3, "x")), ErrorCode::NotFound);
    world.ok(Body::CreateDomain(proto::CreateDomain { name: "e".into(), if_not_exists: false }));
    let far =
        proto::CreatePool { name: "far".into(), domain: "e".into(), copies: 1, pg_count: 4, ..Default::default() };
    world.ok(Body::CreatePool(far));
    assert_eq!(world.refused(assign(3, "far")), ErrorCode::Invalid);
    assert!(world.reloaded() == world.state);
}
