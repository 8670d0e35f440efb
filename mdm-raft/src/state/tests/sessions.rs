//! Conversations about exactly-once (S17).

use pflex_proto::ids::{ClientId, ClientSequence};

use prost::Message as _;

use super::{
    World, code,
    world::{create_sdc, register_sdc},
};
use crate::{
    command::{Answer, Body, ErrorCode, Request, proto},
    state::limits::{MAX_OUTCOMES_PER_SESSION, SESSION_IDLE_MS},
};

fn open(world: &mut World) -> ClientId {
    let answer = world.ok(Body::OpenClientSession(proto::OpenClientSession { name: "test".into() }));
    let Answer::SessionOpened(opened) = answer else { panic!("{answer:?}") };
    ClientId(opened.client_id)
}

fn request(client: ClientId, sequence: u64, low_water: u64) -> Request {
    Request { client, sequence: ClientSequence(sequence), low_water: ClientSequence(low_water) }
}

#[test]
fn a_retry_returns_the_first_outcome_and_does_nothing() {
    let mut world = World::new();
    let client = open(&mut world);
    let first = world.say_once(request(client, 1, 0), create_sdc("c"));
    let retry = world.say_once(request(client, 1, 0), create_sdc("c"));
    assert_eq!(first, retry, "with the revision of the first");
    assert_eq!(world.state.all_sdcs().len(), 1);

    let refused = world.say_once(request(client, 2, 0), create_sdc("c"));
    assert_eq!(code(&refused), Some(ErrorCode::AlreadyExists));
    world.ok(super::world::delete(proto::Object::Sdc, "c"));
    let retry = world.say_once(request(client, 2, 0), create_sdc("c"));
    assert_eq!(retry, refused, "a refusal is an outcome too");
}

#[test]
fn outcomes_survive_a_restart() {
    let mut world = World::new();
    let client = open(&mut world);
    let first = world.say_once(request(client, 1, 0), create_sdc("c"));
    world.state = world.reloaded();
    assert_eq!(world.say_once(request(client, 1, 0), create_sdc("c")), first);
}

#[test]
fn an_unknown_session_says_so_and_executes_nothing() {
    let mut world = World::new();
    let outcome = world.say_once(request(ClientId(99), 1, 0), create_sdc("c"));
    assert_eq!(code(&outcome), Some(ErrorCode::SessionExpired));
    assert_eq!(world.state.all_sdcs().len(), 0);
}

#[test]
fn an_idle_session_expires_by_log_time() {
    let mut world = World::new();
    let client = open(&mut world);
    world.now += SESSION_IDLE_MS;
    assert_eq!(code(&world.say_once(request(client, 1, 0), create_sdc("a"))), None);
    world.now += SESSION_IDLE_MS + 1;
    assert_eq!(code(&world.say_once(request(client, 2, 0), create_sdc("b"))), Some(ErrorCode::SessionExpired));
    // Opening one clears away the others that are idle.
    let idle = open(&mut world);
    world.now += SESSION_IDLE_MS + 1;
    open(&mut world);
    assert_eq!(code(&world.say_once(request(idle, 1, 0), create_sdc("b"))), Some(ErrorCode::SessionExpired));
}

#[test]
fn the_low_water_mark_forgets_and_refuses_what_is_below() {
    let mut world = World::new();
    let client = open(&mut world);
    for sequence in 1..=3 {
        world.say_once(request(client, sequence, 0), create_sdc(&format!("c{sequence}")));
    }
    world.say_once(request(client, 4, 3), create_sdc("c4"));
    assert_eq!(code(&world.say_once(request(client, 2, 3), create_sdc("c2"))), Some(ErrorCode::OutcomeForgotten));
    assert_eq!(code(&world.say_once(request(client, 3, 3), create_sdc("c3"))), None, "3 is not below 3");
}

#[test]
fn a_sequence_names_one_request() {
    let mut world = World::new();
    let client = open(&mut world);
    world.say_once(request(client, 1, 0), create_sdc("a"));
    assert_eq!(code(&world.say_once(request(client, 1, 0), create_sdc("b"))), Some(ErrorCode::Invalid));
    assert_eq!(code(&world.say_once(request(client, 0, 0), create_sdc("b"))), Some(ErrorCode::Invalid));
}

#[test]
fn at_most_1024_answers_are_outstanding() {
    let mut world = World::new();
    let client = open(&mut world);
    let max = u64::from(MAX_OUTCOMES_PER_SESSION);
    for sequence in 1..=max {
        world.say_once(request(client, sequence, 0), create_sdc(&format!("c{sequence}")));
    }
    let over = world.say_once(request(client, max + 1, 0), create_sdc("more"));
    assert_eq!(code(&over), Some(ErrorCode::Limit));
    let after = world.say_once(request(client, max + 1, max), create_sdc("more"));
    assert_eq!(code(&after), None, "not executed before, so executed now");
}

/// A client that never says what has arrived cannot make every member keep its long answers.
#[test]
fn long_answers_count_for_several() {
    let mut world = World::new();
    let client = open(&mut world);
    world.ok(create_sdc("c"));
    world.ok(register_sdc("c", 1));
    let refused =
        proto::IssueTokens { sdc_id: 1, process_id: vec![1; 16], volume_ids: (1..=16_000).collect(), plans: vec![] };
    let mut ask = |sequence, low_water| {
        let outcome = world.say_once(request(client, sequence, low_water), Body::IssueTokens(refused.clone()));
        (code(&outcome), outcome.encoded_len())
    };
    let answers = (1..100).take_while(|sequence| ask(*sequence, 0).0.is_none()).count() as u64;
    let (kept, length) = (answers as usize, ask(1, 0).1);
    assert!((4..=5).contains(&((kept * length) >> 20)), "{kept} of {length} bytes");
    assert_eq!(ask(answers + 2, answers).0, None, "they have arrived, so there is room");
    world.state.check().unwrap();
    assert_eq!(world.reloaded(), world.state);
}

#[test]
fn a_closed_session_is_gone() {
    let mut world = World::new();
    let client = open(&mut world);
    world.say_once(request(client, 1, 0), create_sdc("a"));
    let closed = world.say_once(request(client, 2, 2), Body::CloseClientSession(proto::CloseClientSession {}));
    assert_eq!(code(&closed), None);
    assert_eq!(code(&world.say_once(request(client, 3, 2), create_sdc("b"))), Some(ErrorCode::SessionExpired));
    assert_eq!(world.reloaded(), world.state);
}
