//! Is there an order of all operations on a register, each between its beginning and its end, that explains every read?
//!
//! The search is Wing and Gong's (1993) over sets of states instead of one after another, with Lowe's two savings (2017):
//! states already met are not met again, and a write is given its place only once something has to come after it. The
//! history is walked through event by event; a configuration is what the register could hold by now, with the operations
//! under way that have had their place already. When the last configuration dies, the operation at which it died is the one
//! that nothing explains. Polynomial but for the writes under way at once, which are as many as clients.

use std::collections::{BTreeSet, HashSet};

use super::{
    finding::Finding,
    operations::{Entry, Position, Register, Step},
};
use crate::history::Value;

/// Ends the search: memory for more would be better spent on a second run.
const MOST_CONFIGURATIONS: usize = 500_000;
/// The bits of a configuration; a run has fewer clients than this, and most are at other blocks.
const MOST_UNDER_WAY: usize = 64;

/// Operations under way, each in a slot of its own from its beginning to its end.
struct UnderWay<'a> {
    slots: [Option<&'a Entry>; MOST_UNDER_WAY],
}

impl<'a> UnderWay<'a> {
    /// Returns false if no slot is free.
    fn begin(&mut self, entry: &'a Entry) -> bool {
        let free = self.slots.iter_mut().find(|slot| slot.is_none());
        free.map(|slot| *slot = Some(entry)).is_some()
    }

    fn slot(&self, entry: &Entry) -> usize {
        let is_it = |slot: &Option<&Entry>| slot.is_some_and(|other| other.op == entry.op);
        self.slots.iter().position(is_it).expect("an operation ends after it began")
    }

    fn all(&self) -> impl Iterator<Item = (usize, &'a Entry)> {
        self.slots.iter().enumerate().filter_map(|(slot, entry)| entry.map(|entry| (slot, entry)))
    }
}

/// One way in which the past could have gone.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Configuration {
    value: Value,
    /// The slots of those under way that have had their place, as bits.
    placed: u64,
}

impl Configuration {
    /// Gives every read under way that would be right now its place now: it changes nothing for the others, and later it
    /// might be wrong.
    fn settle(mut self, under_way: &UnderWay<'_>) -> Self {
        for (slot, entry) in under_way.all() {
            if entry.step == Step::Read(self.value) {
                self.placed |= 1 << slot;
            }
        }
        self
    }

    const fn has(self, slot: usize) -> bool {
        self.placed & (1 << slot) != 0
    }
}

/// Judges one block.
pub(super) fn check(register: &Register) -> Result<(), Finding> {
    let block = register.block;
    let mut configurations = HashSet::from([Configuration { value: Value::INITIAL, placed: 0 }]);
    let mut under_way = UnderWay { slots: [None; MOST_UNDER_WAY] };
    for (_, edge) in edges(&register.entries) {
        match edge {
            Edge::Begin(index) => {
                let entry = &register.entries[index];
                if !under_way.begin(entry) {
                    return Err(Finding::Undecided { block, at: entry.op });
                }
                configurations = configurations.into_iter().map(|one| one.settle(&under_way)).collect();
            }
            Edge::End(index) => {
                let entry = &register.entries[index];
                let slot = under_way.slot(entry);
                let Some(explained) = place(slot, &configurations, &under_way) else {
                    return Err(Finding::Undecided { block, at: entry.op });
                };
                if explained.is_empty() {
                    let state = describe(entry, &configurations, &under_way);
                    return Err(Finding::NotLinearizable { block, stuck: entry.op, state });
                }
                configurations = explained;
                under_way.slots[slot] = None;
            }
        }
    }
    Ok(())
}

/// The beginning or end of an entry.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Edge {
    Begin(usize),
    End(usize),
}

/// All edges in order. A write that is known only from the read that saw it ends together with that read; which of the
/// two ends is met first does not matter, because the read cannot have its place before the write.
fn edges(entries: &[Entry]) -> Vec<(Position, Edge)> {
    let mut all: Vec<_> = entries
        .iter()
        .enumerate()
        .flat_map(|(index, entry)| [(entry.start, Edge::Begin(index)), (entry.end, Edge::End(index))])
        .collect();
    all.sort();
    all
}

/// The configurations in which the operation in `slot` has had its place, and its slot is free again; `None` if there are
/// too many.
fn place(
    slot: usize,
    configurations: &HashSet<Configuration>,
    under_way: &UnderWay<'_>,
) -> Option<HashSet<Configuration>> {
    let mut explained = HashSet::new();
    let mut met = configurations.clone();
    let mut open: Vec<_> = configurations.iter().copied().collect();
    while let Some(one) = open.pop() {
        if one.has(slot) {
            explained.insert(Configuration { placed: one.placed & !(1 << slot), ..one });
            continue;
        }
        for (other, entry) in under_way.all() {
            let Step::Write(value) = entry.step else { continue };
            if one.has(other) {
                continue;
            }
            let next = Configuration { value, placed: one.placed | 1 << other }.settle(under_way);
            if met.insert(next) {
                open.push(next);
            }
        }
        if met.len() > MOST_CONFIGURATIONS {
            return None;
        }
    }
    Some(explained)
}

fn describe(stuck: &Entry, configurations: &HashSet<Configuration>, under_way: &UnderWay<'_>) -> String {
    let what = |entry: &Entry| match entry.step {
        Step::Read(value) => format!("read {} of {value}", entry.op.0),
        Step::Write(value) => format!("write {} of {value}", entry.op.0),
    };
    let possible: BTreeSet<_> = configurations.iter().map(|one| one.value).collect();
    let possible: Vec<_> = possible.iter().map(Value::to_string).collect();
    let others: Vec<_> =
        under_way.all().filter(|(_, entry)| entry.op != stuck.op).map(|(_, entry)| what(entry)).collect();
    format!(
        "it is the {}; the block could hold {}; under way: {}",
        what(stuck),
        possible.join(" or "),
        if others.is_empty() { "nothing else".to_owned() } else { others.join(", ") }
    )
}
