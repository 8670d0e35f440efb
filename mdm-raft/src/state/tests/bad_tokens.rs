//! Conversations about refused tokens.

use std::net::Ipv4Addr;

use super::world::{World, create_sdc};
use crate::{
    command::{Body, ErrorCode, proto},
    state::{
        limits::{BAD_SOURCE_RETENTION_MS, MAX_BAD_SOURCES},
        model::{BadSource, Flaws, Severity},
    },
};

/// From 10.0.0.1, so many forged.
pub(super) fn note(sds_id: u32, sdc_id: u32, forged: u64) -> proto::NoteBadTokens {
    proto::NoteBadTokens { sds_id, sources: vec![source(sdc_id, [10, 0, 0, 1], forged)] }
}

fn source(sdc_id: u32, address: [u8; 4], forged: u64) -> proto::BadTokens {
    let address = Ipv4Addr::from(address).to_ipv6_mapped().octets().to_vec();
    proto::BadTokens { sdc_id, address, forged, ..Default::default() }
}

fn told(world: &World) -> Vec<(Severity, String)> {
    let events = world.state.events.values().filter(|event| event.kind == "token.refused");
    events.map(|event| (event.severity, format!("{} {}", event.object, event.what))).collect()
}

fn forged(world: &World) -> Vec<u64> {
    world.state.bad_tokens.values().map(|row| row.refused.forged).collect()
}

#[test]
fn a_source_is_told_of_once_a_minute_however_many_servers_refuse_it() {
    let mut world = World::with_sds(2);
    world.ok(create_sdc("c"));
    world.ok(Body::NoteBadTokens(note(1, 1, 3)));
    let first = (Severity::Warning, "sdc c from 10.0.0.1, refused for their tokens: 3 forged".to_owned());
    assert_eq!(told(&world), [first]);
    for (after, sds) in [(0, 2), (20_000, 1), (39_999, 2)] {
        world.now += after;
        world.ok(Body::NoteBadTokens(note(sds, 1, 1)));
        assert_eq!(told(&world).len(), 1);
    }
    assert_eq!(forged(&world), [6], "they are counted all the same");
    world.now += 1;
    world.ok(Body::NoteBadTokens(note(1, 1, 1)));
    assert_eq!(told(&world)[1].1, "sdc c from 10.0.0.1, refused for their tokens: 4 forged", "and told with the next");
    assert_eq!(told(&world).len(), 2);
    assert_eq!(world.state.events.values().last().unwrap().who, "sds s1");
    assert_eq!(world.reloaded(), world.state);
}

#[test]
fn who_may_be_honest_is_no_warning() {
    let mut world = World::with_sds(1);
    let late = proto::BadTokens { expired: 2, revoked: 1, unknown_key: 1, ..source(7, [10, 0, 0, 1], 0) };
    world.ok(Body::NoteBadTokens(proto::NoteBadTokens { sds_id: 1, sources: vec![late] }));
    let words = "sdc #7 from 10.0.0.1, refused for their tokens: 1 of an unknown key, 2 expired, 1 revoked";
    assert_eq!(told(&world), [(Severity::Info, words.to_owned())]);
    for accused in [
        Flaws { forged: 1, ..Flaws::default() },
        Flaws { replayed: 1, ..Flaws::default() },
        Flaws { foreign: 1, ..Flaws::default() },
    ] {
        assert!(accused.accuse(), "{accused:?}");
    }
}

#[test]
fn several_sources_of_a_report_are_one_event_and_one_source_named_twice_is_one() {
    let mut world = World::with_sds(1);
    let sources = vec![source(1, [10, 0, 0, 1], 1), source(2, [10, 0, 0, 2], 1), source(1, [10, 0, 0, 1], 1)];
    world.ok(Body::NoteBadTokens(proto::NoteBadTokens { sds_id: 1, sources }));
    assert_eq!(told(&world).len(), 1);
    let event = world.state.events.values().last().unwrap();
    let parts: Vec<_> = event.parts.iter().map(|part| part.what.as_str()).collect();
    let said =
        ["from 10.0.0.1, refused for their tokens: 2 forged", "from 10.0.0.2, refused for their tokens: 1 forged"];
    assert_eq!(parts, said);
}

#[test]
fn names_that_are_made_up_fill_the_table_and_no_more() {
    let mut world = World::with_sds(1);
    let made_up = |from: u32, count: usize| {
        let sources = (from..).take(count).map(|sdc| source(sdc, [10, 0, 0, 1], 1)).collect();
        Body::NoteBadTokens(proto::NoteBadTokens { sds_id: 1, sources })
    };
    world.ok(made_up(1, MAX_BAD_SOURCES + 10));
    assert_eq!(world.state.bad_tokens.len(), MAX_BAD_SOURCES + 1);
    assert_eq!(world.state.bad_tokens.get(BadSource::OTHERS).unwrap().refused.forged, 10);
    world.ok(made_up(1, 1));
    assert_eq!(forged(&world)[1], 2, "who is in the table stays in it");
    world.now += BAD_SOURCE_RETENTION_MS + 1;
    world.ok(made_up(1_000_000, 2));
    assert_eq!(world.state.bad_tokens.len(), 2, "a day later there is room again");
}

#[test]
fn what_makes_no_sense_is_refused() {
    let mut world = World::with_sds(1);
    assert_eq!(world.refused(Body::NoteBadTokens(note(9, 1, 1))), ErrorCode::NotFound);
    let mut short = note(1, 1, 1);
    short.sources[0].address.pop();
    assert_eq!(world.refused(Body::NoteBadTokens(short)), ErrorCode::Invalid);
    assert_eq!(world.state.bad_tokens.len(), 0);
}
