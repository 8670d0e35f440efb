//! The judges on histories made by hand, and against one that tries every order.

use proptest::{prelude::*, test_runner::Config};

use super::{
    operations::{Register, by_block, explainable, pair},
    *,
};
use crate::history::{Block, Content, OperationId, ProcessId, Value, What};

/// Writes histories down briefly. Each operation gets the next number.
#[derive(Default)]
struct Script {
    events: Vec<Event>,
    next: u64,
}

impl Script {
    fn push(&mut self, what: What) {
        self.events.push(Event { at_us: self.events.len() as u64, what });
    }

    fn begin(&mut self, action: Action) -> OperationId {
        let op = OperationId(self.next);
        self.next += 1;
        self.push(What::Invoke { op, process: ProcessId(op.0 as u32), block: Block(0), action });
        op
    }

    fn begin_write(&mut self, value: u64) -> OperationId {
        self.begin(Action::Write(Value(value)))
    }

    fn acknowledge(&mut self, op: OperationId) {
        self.push(What::Ok { op, content: None });
    }

    fn lose_track(&mut self, op: OperationId) {
        self.push(What::Unknown { op, why: "closed".into() });
    }

    fn see(&mut self, op: OperationId, value: u64) {
        self.push(What::Ok { op, content: Some(Content::Whole(Value(value))) });
    }

    fn write(&mut self, value: u64) -> OperationId {
        let op = self.begin_write(value);
        self.acknowledge(op);
        op
    }

    fn read(&mut self, value: u64) -> OperationId {
        let op = self.begin(Action::Read);
        self.see(op, value);
        op
    }

    fn findings(&self) -> Vec<Finding> {
        check(&self.events).unwrap().findings
    }
}

fn is_not_linearizable(finding: &Finding) -> bool {
    matches!(finding, Finding::NotLinearizable { .. })
}

#[test]
fn one_after_another_is_right() {
    let mut script = Script::default();
    script.read(0);
    script.write(1);
    script.read(1);
    script.write(2);
    script.read(2);
    assert_eq!(script.findings(), []);
    let report = check(&script.events).unwrap();
    assert_eq!((report.operations, report.reads, report.writes, report.longest_us), (5, 3, 2, 1));
}

#[test]
fn a_read_during_a_write_sees_either_and_then_never_the_older() {
    let mut script = Script::default();
    script.write(1);
    let write = script.begin_write(2);
    script.read(1);
    script.read(2);
    script.acknowledge(write);
    script.read(2);
    assert_eq!(script.findings(), []);

    let mut script = Script::default();
    script.write(1);
    let write = script.begin_write(2);
    script.read(2);
    script.read(1);
    script.acknowledge(write);
    assert!(script.findings().iter().any(is_not_linearizable));
}

#[test]
fn writes_side_by_side_end_in_one_order_for_all_readers() {
    let mut script = Script::default();
    let (one, two) = (script.begin_write(1), script.begin_write(2));
    script.acknowledge(one);
    script.acknowledge(two);
    script.read(1);
    assert_eq!(script.findings(), [], "the second to end may have been first");
    script.read(2);
    assert!(script.findings().iter().any(is_not_linearizable), "but not afterwards");
}

#[test]
fn an_unknown_write_takes_effect_late_or_never() {
    let mut script = Script::default();
    script.write(1);
    let lost = script.begin_write(2);
    script.lose_track(lost);
    let never = script.begin_write(3);
    script.lose_track(never);
    script.read(1);
    script.write(4);
    script.read(4);
    script.read(2);
    script.read(2);
    assert_eq!(script.findings(), [], "late is not wrong");
    script.read(4);
    assert!(script.findings().iter().any(is_not_linearizable), "but it happens once");
}

#[test]
fn an_operation_without_an_end_is_unknown() {
    let mut script = Script::default();
    script.begin_write(1);
    script.read(0);
    script.read(1);
    assert_eq!(script.findings(), []);
}

#[test]
fn a_stale_read_is_found_with_its_witness() {
    let mut script = Script::default();
    script.write(1);
    let newer = script.write(2);
    let read = script.read(1);
    script.read(2);
    let findings = script.findings();
    let stale = Finding::Stale { block: Block(0), read, value: Value(1), overwritten_by: newer };
    assert_eq!(findings[0], stale);
    assert!(is_not_linearizable(&findings[1]));
    assert_eq!(findings.len(), 2);
    assert!(findings[1].to_string().contains("it is the read 2 of 0.1;"), "{}", findings[1]);
}

#[test]
fn a_lost_write_is_found_also_where_nothing_was_there_before() {
    let mut script = Script::default();
    let write = script.write(1);
    let read = script.read(0);
    let findings = script.findings();
    assert!(findings.contains(&Finding::Lost { block: Block(0), read, value: Value(0), write }), "{findings:?}");
    assert!(findings.iter().any(is_not_linearizable));
}

#[test]
fn a_write_that_comes_back_from_the_dead_is_found() {
    // The write was acknowledged once: its being sent again must not undo a newer one.
    let mut script = Script::default();
    script.write(1);
    script.read(1);
    script.write(2);
    script.read(2);
    script.read(1);
    assert!(matches!(script.findings()[0], Finding::Stale { .. }));
}

#[test]
fn a_write_that_certainly_failed_must_not_be_seen() {
    let mut script = Script::default();
    let op = script.begin_write(1);
    script.push(What::Fail { op, why: "refused".into() });
    script.read(0);
    assert_eq!(script.findings(), []);
    let read = script.read(1);
    assert_eq!(script.findings(), [Finding::FromNowhere { block: Block(0), read, value: Value(1) }]);
}

#[test]
fn torn_blocks_and_values_from_nowhere_are_found() {
    let mut script = Script::default();
    let torn = script.begin(Action::Read);
    script.push(What::Ok { op: torn, content: Some(Content::Broken("torn".into())) });
    let early = script.read(1);
    script.write(1);
    let unknown = script.read(7);
    let block = Block(0);
    assert_eq!(
        script.findings(),
        [
            Finding::Broken { block, read: torn, what: "torn".into() },
            Finding::FromNowhere { block, read: early, value: Value(1) },
            Finding::FromNowhere { block, read: unknown, value: Value(7) },
        ]
    );
}

#[test]
fn what_no_recorder_writes_is_refused() {
    let mut script = Script::default();
    let op = script.write(1);
    script.acknowledge(op);
    assert_eq!(check(&script.events).unwrap_err(), HistoryError::Twice { op, at: 2 });
    let mut script = Script::default();
    script.acknowledge(OperationId(9));
    assert_eq!(check(&script.events).unwrap_err(), HistoryError::NeverBegun { op: OperationId(9), at: 0 });
    let mut script = Script::default();
    script.write(1);
    let op = script.write(1);
    assert_eq!(check(&script.events).unwrap_err(), HistoryError::SameValue { op, value: Value(1) });
}

#[test]
fn a_long_history_with_many_clients_is_judged() {
    // Eight clients overlap all the time; a search that tried orders one by one would not end.
    let mut script = Script::default();
    let mut under_way = std::collections::VecDeque::new();
    for value in 1..200 {
        under_way.push_back(script.begin_write(value));
        if under_way.len() == 8 {
            let op = under_way.pop_front().unwrap();
            script.acknowledge(op);
            script.read(value - 7);
        }
    }
    assert_eq!(script.findings(), []);
    script.read(1);
    assert!(script.findings().iter().any(is_not_linearizable));
}

/// Tries every order in which each operation comes after all that ended before it began.
fn brute_force(all: &[Operation]) -> bool {
    fn search(all: &[Operation], placed: u32, value: Value) -> bool {
        let left = |index: usize| placed & (1 << index) == 0;
        // Unknown operations need no place, failed ones must have none.
        let mut owed = (0..all.len()).filter(|index| left(*index) && matches!(all[*index].outcome, Outcome::Ok(_)));
        if owed.next().is_none() {
            return true;
        }
        (0..all.len()).filter(|index| left(*index)).any(|index| {
            let one = &all[index];
            let first = (0..all.len()).all(|other| {
                !left(other) || !matches!(all[other].outcome, Outcome::Ok(_)) || all[other].end >= one.start
            });
            let next = match (&one.outcome, one.action) {
                (Outcome::Fail, _) | (Outcome::Unknown, Action::Read) => None,
                (Outcome::Ok(Some(Content::Whole(seen))), Action::Read) => (*seen == value).then_some(value),
                (Outcome::Ok(_), Action::Read) => None,
                (Outcome::Ok(_) | Outcome::Unknown, Action::Write(new)) => Some(new),
            };
            first && next.is_some_and(|next| search(all, placed | 1 << index, next))
        })
    }
    search(all, 0, Value::INITIAL)
}

/// A tiny history: operations with any intervals; writes write their own number plus one, reads see anything.
fn tiny() -> impl Strategy<Value = Vec<Event>> {
    (2_usize..=7)
        .prop_flat_map(|count| {
            let order: Vec<usize> = (0..count).chain(0..count).collect();
            let kinds = prop::collection::vec((any::<bool>(), 0..=count as u64, 0_u8..6), count);
            (Just(order).prop_shuffle(), kinds)
        })
        .prop_map(|(order, kinds)| {
            let mut script = Script::default();
            let mut begun = std::collections::HashMap::new();
            for index in order {
                let (is_write, seen, fate) = kinds[index];
                let Some(op) = begun.get(&index).copied() else {
                    let action = if is_write { Action::Write(Value(index as u64 + 1)) } else { Action::Read };
                    begun.insert(index, script.begin(action));
                    continue;
                };
                match (fate, is_write) {
                    (0, _) => script.lose_track(op),
                    (1, true) => script.push(What::Fail { op, why: "refused".into() }),
                    (_, true) => script.acknowledge(op),
                    (_, false) => script.see(op, seen),
                }
            }
            script.events
        })
}

fn register(events: &[Event]) -> (Register, Vec<Finding>) {
    explainable(by_block(pair(events).unwrap()).remove(0))
}

proptest! {
    #![proptest_config(Config::with_cases(4_000))]

    /// proptest prints what failed; PROPTEST_RNG_SEED repeats a run.
    #[test]
    fn the_search_agrees_with_trying_every_order(events in tiny()) {
        let right = brute_force(&pair(&events).unwrap());
        let (register, broken) = register(&events);
        let found = broken.is_empty() && linear::check(&register).is_ok();
        prop_assert_eq!(found, right, "{:#?}", events);
        // The quick judge never accuses wrongly.
        prop_assert!(!right || overwritten::check(&register).is_empty(), "{:#?}", events);
    }
}
