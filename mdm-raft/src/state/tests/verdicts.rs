//! Conversations about the verdicts of one look: one command, one revision, each for itself and all at once.

use pflex_proto::ids::{DeviceId, Revision, SdsId};

use super::world::{GIB, World, create_volume, judge, lost, register_sds, returned};
use crate::{
    command::{Answer, Body, ErrorCode, proto},
    state::{MapChange, limits::MAX_VERDICTS, model::Severity},
};

/// The error of each verdict.
fn results(world: &mut World, body: Body) -> Vec<Option<ErrorCode>> {
    let Answer::Judged(judged) = world.ok(body) else { panic!("not judged") };
    judged.results.into_iter().map(|result| result.error.map(|error| error.code())).collect()
}

fn alive(world: &World) -> Vec<u32> {
    world.state.all_sds().filter(|sds| sds.alive).map(|sds| sds.id.get()).collect()
}

#[test]
fn a_hundred_servers_are_lost_and_return_in_one_revision_each() {
    let mut world = World::with_sds(104);
    world.ok(create_volume("v", GIB));
    let revision = world.revision;
    assert_eq!(results(&mut world, judge((1..=100).map(|n| lost(n, n)))), vec![None; 100]);
    assert_eq!(alive(&world), [101, 102, 103, 104]);
    assert_eq!(world.revision, revision + 1);
    let told = |world: &World| {
        let events = &world.last.as_ref().unwrap().events;
        assert!(events.iter().all(|event| event.revision == Revision(world.revision)), "one update to each watcher");
        events.iter().filter(|event| matches!(event.change, MapChange::Sds(_))).count()
    };
    assert_eq!(told(&world), 100);
    assert_eq!(results(&mut world, judge((1..=100).map(|n| returned(n, n, 1)))), vec![None; 100]);
    assert_eq!((alive(&world).len(), told(&world), world.revision), (104, 100, revision + 2));
    assert!(world.reloaded() == world.state);
}

#[test]
fn a_refused_verdict_does_not_stop_the_others() {
    let mut world = World::with_sds(3);
    world.ok(create_volume("v", GIB));
    let bad_words = Body::SdsLost(proto::SdsLost { why: "x".repeat(2_000), ..lost_message(3, 3) });
    let body = judge([lost(1, 77), lost(99, 1), lost(2, 2), lost(2, 2), bad_words]);
    use ErrorCode::{Invalid, NotFound, Stale};
    assert_eq!(results(&mut world, body), [Some(Stale), Some(NotFound), None, Some(Invalid), Some(Invalid)]);
    assert_eq!(alive(&world), [1, 3]);

    let before = world.state.clone();
    let all_refused = judge([lost(1, 77), lost(99, 1)]);
    assert_eq!(results(&mut world, all_refused), [Some(Stale), Some(NotFound)]);
    assert_eq!(world.state.events_after(Revision(0)).count(), before.events_after(Revision(0)).count());
    let empty = Body::JudgeSds(proto::JudgeSds { verdicts: vec![proto::SdsVerdict::default()] });
    assert_eq!(results(&mut world, empty), [Some(Invalid)]);
    let too_many = Body::JudgeSds(proto::JudgeSds { verdicts: vec![Default::default(); MAX_VERDICTS + 1] });
    assert_eq!(world.refused(too_many), ErrorCode::Limit);
    assert!(world.reloaded() == world.state);
}

/// S8: the map says of which process the leader has proof that it has ended, and of no other.
#[test]
fn a_proof_of_death_holds_until_a_process_is_heard() {
    let mut world = World::with_sds(3);
    let proven = |world: &World| world.state.sds(SdsId(2)).unwrap().proven_dead;
    world.ok(lost(2, 2));
    assert!(!proven(&world), "silence proves nothing");
    world.ok(returned(2, 2, 1));
    let dead = || Body::SdsLost(proto::SdsLost { proven_dead: true, ..lost_message(2, 2) });
    world.ok(dead());
    assert!(proven(&world) && world.reloaded() == world.state);
    world.ok(returned(2, 2, 1));
    assert!(!proven(&world), "it was no proof");
    world.ok(dead());
    world.ok(register_sds(2, 22, 2));
    assert!(!proven(&world), "of the process before");
}

fn lost_message(n: u8, process: u8) -> proto::SdsLost {
    let Body::SdsLost(lost) = lost(n, process) else { unreachable!("as said") };
    lost
}

/// One after the other, the group would move to the second copy before that is lost too, and the first would have to
/// wait for it although it has everything.
#[test]
fn both_copies_lost_at_one_look_stay_in_sync_and_the_first_that_returns_serves() {
    let mut world = World::with_sds(3);
    world.ok(create_volume("v", GIB));
    let index = world.pg_between(1, 2);
    let epoch = world.pg(index).config.epoch;
    world.ok(judge([lost(1, 1), lost(2, 2)]));
    let config = world.pg(index).config.clone();
    assert_eq!((config.primary, config.in_sync.len(), config.epoch), (None, 2, epoch.next()));
    world.ok(judge([returned(1, 1, 1)]));
    let config = &world.pg(index).config;
    assert_eq!(config.primary, Some(DeviceId(1)));
    assert_eq!(config.in_sync.iter().map(|member| member.sds).collect::<Vec<_>>(), [SdsId(1)]);

    // A group is never given to a server that the same look found lost, whatever their order.
    let mut one_way = World::with_sds(3);
    one_way.ok(create_volume("v", GIB));
    let mut other_way =
        World { state: one_way.state.clone(), revision: one_way.revision, now: one_way.now, ..World::new() };
    one_way.ok(judge([lost(1, 1), lost(3, 3)]));
    other_way.ok(judge([lost(3, 3), lost(1, 1)]));
    let configs = |world: &World| world.state.all_pgs().map(|pg| pg.config.clone()).collect::<Vec<_>>();
    assert_eq!(configs(&one_way), configs(&other_way));
    assert!(one_way.state.all_pgs().all(|pg| pg.config.primary.is_none_or(|device| device == DeviceId(2))));
}

#[test]
fn losses_and_returns_of_one_look_take_effect_together() {
    let mut world = World::with_sds(2);
    world.ok(create_volume("v", GIB));
    // Server 1 flaps; each time server 2 has everything.
    for _ in 0..4 {
        world.ok(lost(1, 1));
        world.now += 1;
        if world.state.sds_kept_out(SdsId(1), world.now.into()).is_none() {
            world.ok(returned(1, 1, 1));
        }
    }
    assert_eq!(alive(&world), [2]);
    // It misses what server 2 has written, so the loss of server 2 is no reason to take it back early.
    let body = judge([returned(1, 1, 1), lost(2, 2)]);
    assert_eq!(results(&mut world, body), [Some(ErrorCode::Precondition), None]);
    assert!(world.state.all_pgs().all(|pg| pg.config.primary.is_none() && pg.config.in_sync[0].sds == SdsId(2)));
    let revision = world.revision;
    world.now += 60_000;
    let body = judge([returned(2, 2, 1), returned(1, 1, 1)]);
    assert_eq!(results(&mut world, body), [None, None]);
    assert!(world.state.all_pgs().all(|pg| pg.config.primary == Some(DeviceId(2))));
    assert_eq!(world.revision, revision + 1);
    assert!(world.reloaded() == world.state);
}

#[test]
fn the_event_of_many_has_words_for_each() {
    let mut world = World::with_sds(3);
    world.ok(create_volume("v", GIB));
    world.ok(judge([lost(1, 1), lost(2, 2)]));
    let event = world.state.events_after(Revision(0)).next_back().unwrap().clone();
    assert_eq!((event.kind.as_str(), event.object.as_str()), ("sds.lost", "cluster"));
    assert!(
        event.what.starts_with("sds s1 silent for 3 s; sds s2 silent for 3 s; 8 placement groups"),
        "{}",
        event.what
    );
    assert_eq!(event.severity, Severity::Critical);
    let of: Vec<_> = event.parts.iter().map(|part| part.object.as_str()).collect();
    assert_eq!(of, ["sds s1", "sds s2", "pool p"], "each server, and the rebuild that begins");
    let why = world.state.why("sds s2");
    assert_eq!(why[0].causes[0].revision, Some(event.revision), "{why:?}");
    assert!(format!("{why:?}").contains("last change: silent for 3 s (sds.lost), by the leader"), "{why:?}");
    assert!(world.reloaded() == world.state);

    world.ok(judge([returned(1, 1, 1), lost(99, 1)]));
    let event = world.state.events_after(Revision(0)).next_back().unwrap();
    assert_eq!((event.kind.as_str(), event.object.as_str()), ("sds.return", "sds s1"), "only what was accepted");
}

#[test]
fn a_slow_disk_is_said_kept_and_explained_until_it_is_not_slow_any_more() {
    let judge = |device_id, why: &str| Body::JudgeDisk(proto::JudgeDisk { device_id, why: why.into() });
    let mut world = World::with_sds(3);
    world.ok(judge(2, "25 ms an operation"));
    let told = world.state.events_after(Revision(0)).next_back().cloned().expect("it is said");
    assert_eq!((told.kind.as_str(), told.object.as_str()), ("device.slow", "device 2"));
    world.state = world.reloaded();
    let causes = |world: &World| world.state.why("device 2").remove(0).causes;
    let says = |world: &World| causes(world).iter().any(|cause| cause.what == "it is slow: 25 ms an operation");
    assert!(says(&world), "{:?}", causes(&world));
    world.ok(judge(2, ""));
    assert!(!says(&world));
    assert_eq!(world.refused(judge(9, "slow")), ErrorCode::NotFound);
}
