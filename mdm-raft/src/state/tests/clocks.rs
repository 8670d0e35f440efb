//! Conversations about wall clocks that are off.

use super::{
    health,
    world::{World, create_sdc, register_sdc},
};
use crate::{
    command::{Body, proto},
    state::model::{Severity, Status},
};

fn judge(verdicts: &[(proto::Kind, u32, i64)]) -> Body {
    let verdict = |(kind, id, ahead_ms): &(proto::Kind, u32, i64)| proto::ClockVerdict {
        kind: (*kind).into(),
        id: *id,
        ahead_ms: *ahead_ms,
    };
    Body::JudgeClock(proto::JudgeClock { verdicts: verdicts.iter().map(verdict).collect() })
}

fn told(world: &World) -> Vec<(Severity, String)> {
    let events = world.state.events.values().filter(|event| event.kind == "component.clock");
    events.map(|event| (event.severity, format!("{} {}", event.object, event.what))).collect()
}

#[test]
fn a_clock_that_is_off_is_told_of_and_outlives_a_change_of_status_until_it_is_right() {
    let mut world = World::with_sds(2);
    world.ok(create_sdc("c"));
    world.ok(register_sdc("c", 1));
    world.ok(judge(&[(proto::Kind::Sdc, 1, -12_340), (proto::Kind::Sdc, 9, 5_000)]));
    let words = "its clock is 12.3 s behind the leader's; IO goes on, and times in its log are not to be compared";
    assert_eq!(told(&world), [(Severity::Warning, format!("sdc c {words}"))], "who is not there is passed over");
    world.ok(judge(&[(proto::Kind::Sdc, 1, -12_340)]));
    assert_eq!(told(&world).len(), 1, "said again, it is no news");

    world.ok(health::set(vec![health::entry(proto::Kind::Sdc, 1, proto::Status::Stale)]));
    assert_eq!(told(&world).len(), 1);
    let off: Vec<_> = world.state.clocks_off().map(|(component, ahead)| (component.id, ahead)).collect();
    assert_eq!(off, [(1, -12_340)]);
    assert_eq!(world.reloaded(), world.state);

    world.ok(judge(&[(proto::Kind::Sdc, 1, 0), (proto::Kind::Sds, 1, 70_000), (proto::Kind::Sds, 2, 70_000)]));
    assert_eq!(world.state.clocks_off().count(), 2);
    let last = told(&world).pop().unwrap();
    assert_eq!(last.0, Severity::Warning);
    assert!(
        last.1.contains("sdc c its clock agrees") && last.1.contains("sds s2 its clock is 70.0 s ahead"),
        "{last:?}"
    );
    let component = crate::state::model::Component { kind: crate::state::model::Kind::Sds, id: 1 };
    assert_eq!(world.state.health_of(component).unwrap().status, Status::Active, "it is well all the same");
}
