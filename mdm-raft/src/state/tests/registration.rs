//! Conversations about who takes part.

use super::world::{World, create_sdc, delete, opened, register_sdc, register_sds};
use crate::{
    command::{Answer, Body, ErrorCode, proto},
    state::{
        MapChange,
        model::{Component, Kind, Status},
    },
};

#[test]
fn nothing_happens_before_bootstrap_and_bootstrap_happens_once() {
    let mut world = World::default();
    let early = world.refused(create_sdc("c"));
    assert_eq!(early, ErrorCode::NotBootstrapped);
    let mut world = World::new();
    let again =
        Body::BootstrapCluster(proto::BootstrapCluster { cluster_id: vec![8; 16], secret: vec![1; 32], key_id: 2 });
    assert_eq!(world.refused(again), ErrorCode::AlreadyExists);
}

#[test]
fn the_secret_is_in_the_state_and_in_no_message() {
    let world = World::new();
    let (_, secret) = world.state.all_secrets().next().expect("bootstrap brings one");
    let shown = format!("{:?} {secret:?} {:?}", world.state, world.last);
    assert!(!shown.contains("9, 9"), "{shown}");
    let command = proto::BootstrapCluster { cluster_id: vec![1; 16], secret: vec![9; 32], key_id: 1 };
    assert!(!format!("{command:?}").contains('9'));
}

#[test]
fn an_sds_must_be_created_before_it_registers() {
    let mut world = World::with_sds(1);
    assert_eq!(world.refused(register_sds(9, 9, 1)), ErrorCode::NotFound);
    assert_eq!(world.refused(register_sdc("nobody", 9)), ErrorCode::NotFound);
}

#[test]
fn a_retried_registration_is_not_counted() {
    let mut world = World::with_sds(2);
    let before = world.state.clone();
    world.ok(register_sds(1, 1, 1));
    let changed = |w: &World| w.last.as_ref().unwrap().events.len();
    assert_eq!(changed(&world), 0, "the map is as it was");
    assert_eq!(world.state.sds_by_name("s1"), before.sds_by_name("s1"));
    world.ok(register_sds(1, 11, 2));
    assert_eq!(world.state.sds_by_name("s1").unwrap().registration.as_ref().unwrap().count, 2);
    assert!(changed(&world) > 0);
}

#[test]
fn a_device_belongs_to_one_sds_and_one_cluster() {
    let mut world = World::with_sds(2);
    let Body::RegisterComponent(mut thief) = register_sds(2, 12, 2) else { unreachable!() };
    thief.devices = vec![opened(1, 2)];
    assert_eq!(world.refused(Body::RegisterComponent(thief.clone())), ErrorCode::Precondition);
    thief.devices = vec![proto::OpenedDevice { device_id: 77, ..opened(70, 1) }];
    assert_eq!(world.refused(Body::RegisterComponent(thief.clone())), ErrorCode::Precondition, "another cluster's");
    thief.devices = vec![opened(2, 2), opened(2, 2)];
    assert_eq!(world.refused(Body::RegisterComponent(thief)), ErrorCode::Invalid);
}

#[test]
fn a_device_that_is_not_open_any_more_is_out_of_service() {
    let mut world = World::with_sds(3);
    let Body::RegisterComponent(mut bare) = register_sds(1, 11, 2) else { unreachable!() };
    bare.devices.clear();
    world.ok(Body::RegisterComponent(bare));
    assert!(!world.state.device(1.into()).unwrap().alive);
    assert!(world.state.sds_by_name("s1").unwrap().alive, "the SDS itself is there");
}

#[test]
fn mdms_and_consoles_register_by_name() {
    let mut world = World::new();
    for process in [1, 2] {
        let answer = world.ok(Body::RegisterComponent(proto::RegisterComponent {
            kind: proto::Kind::Mdm.into(),
            name: "mdm1".into(),
            process_id: vec![process; 16],
            ..Default::default()
        }));
        assert!(matches!(answer, Answer::Registered(r) if r.id == 1));
    }
    assert_eq!(world.state.all_nodes().next().unwrap().registration.count, 2);
}

#[test]
fn status_transitions_are_recorded_once() {
    let mut world = World::with_sds(1);
    let component = Component { kind: Kind::Sds, id: 1 };
    let set = |status: proto::Status, world: &mut World| {
        world.now += 1_000;
        world.ok(Body::SetComponentStatus(proto::SetComponentStatus {
            kind: proto::Kind::Sds.into(),
            id: 1,
            status: status.into(),
            why: "late".into(),
        }));
        world.state.health_of(component).cloned().unwrap()
    };
    let stale = set(proto::Status::Stale, &mut world);
    assert_eq!(stale.status, Status::Stale);
    assert_eq!(set(proto::Status::Stale, &mut world), stale, "the same again is no transition");
    assert_eq!(set(proto::Status::Active, &mut world).status, Status::Active);
}

#[test]
fn only_unused_objects_are_deleted() {
    let mut world = World::with_sds(2);
    assert_eq!(world.refused(delete(proto::Object::Domain, "d")), ErrorCode::InUse);
    assert_eq!(world.refused(delete(proto::Object::Sds, "s1")), ErrorCode::InUse);
    let remove = |id| Body::RemoveDevice(proto::RemoveDevice { device_id: id });
    assert_eq!(world.refused(remove(1)), ErrorCode::InUse, "the pool's groups are on it");

    world.ok(delete(proto::Object::Pool, "p"));
    assert!(world.last.as_ref().unwrap().events.iter().any(|e| matches!(e.change, MapChange::Removed(_))));
    for n in 1..=2 {
        world.ok(remove(n));
        world.ok(delete(proto::Object::Sds, &format!("s{n}")));
    }
    world.ok(delete(proto::Object::Domain, "d"));
    assert_eq!(world.reloaded(), world.state);
}

#[test]
fn a_new_pool_takes_the_devices_that_have_none() {
    let mut world = World::with_sds(2);
    world.ok(delete(proto::Object::Pool, "p"));
    world.ok(super::world::create_pool("q", 2, 4));
    assert_eq!(world.state.all_pgs().len(), 4);
    assert!(world.state.all_pgs().all(|pg| pg.id.pool.get() == 2), "pool ids are never used again");
}

#[test]
fn a_client_is_counted_above_what_it_has_seen_itself() {
    let mut world = World::new();
    world.ok(super::world::create_sdc("c"));
    let mut register = |process, registrations_seen| {
        let Body::RegisterComponent(body) = super::world::register_sdc("c", process) else { unreachable!() };
        let body = Body::RegisterComponent(proto::RegisterComponent { registrations_seen, ..body });
        match registrations_seen {
            0..=1_048_576 => match world.ok(body) {
                Answer::Registered(registered) => registered.registrations,
                other => panic!("{other:?}"),
            },
            _ => {
                assert_eq!(world.refused(body), ErrorCode::Invalid);
                0
            }
        }
    };
    assert_eq!((register(1, 0), register(1, 0), register(2, 1)), (1, 1, 2));
    assert_eq!(register(3, 40), 41, "the cluster has forgotten some");
    assert_eq!(register(4, 40), 42, "a copy of its directory gets another number");
    for process in 5..50 {
        register(process, 0);
    }
    register(60, u64::MAX);
    let component = Component { kind: Kind::Sdc, id: 1 };
    assert_eq!(world.state.registrations_of(component).count(), 16, "what is kept is bounded, also where counts skip");
    assert!(world.reloaded() == world.state);
}
