//! What clients saw, and whether one register per block could have shown it.
//!
//! Every written value is unique, so linearizability of a register is decidable in polynomial time (Gibbons and Korach,
//! "Testing Shared Memories", 1997, section 5): each value with its write and reads is a zone from the earliest end to
//! the latest start of them. No two forward zones may overlap, no backward zone may lie inside a forward one.

use std::collections::BTreeMap;

use pflex_proto::ids::{ChunkId, Version};

/// A block of a volume.
pub(super) type Register = (ChunkId, usize);

/// A moment; every call and return has its own.
pub(super) type Moment = u64;

#[derive(Clone, Copy)]
struct Zone {
    written_from: Moment,
    earliest_end: Moment,
    latest_start: Moment,
    earliest_read_end: Moment,
    acked: bool,
    read: bool,
    /// Its place among the writes of its chunk, as it was answered.
    version: Option<Version>,
    /// A FLUSH or FUA promised that it, or what came after it, survives (S14).
    flushed: bool,
}

impl Zone {
    /// As if it had been asked for, and nothing been seen of it yet.
    const fn asked(at: Moment) -> Self {
        Self {
            written_from: at,
            earliest_end: Moment::MAX,
            latest_start: at,
            earliest_read_end: Moment::MAX,
            acked: false,
            read: false,
            version: None,
            flushed: false,
        }
    }
}

/// See the module.
#[derive(Default)]
pub(super) struct History {
    zones: BTreeMap<Register, BTreeMap<u64, Zone>>,
    /// Values that no loss of memory can bring back, and since when: something later was flushed (S14).
    gone: BTreeMap<(Register, u64), Moment>,
}

impl History {
    pub(super) fn write_called(&mut self, register: Register, value: u64, at: Moment) {
        self.zones.entry(register).or_default().insert(value, Zone::asked(at));
    }

    pub(super) fn write_returned(&mut self, register: Register, value: u64, at: Moment) {
        let zone = self.zones.entry(register).or_default().get_mut(&value).expect("called before");
        zone.acked = true;
        zone.earliest_end = zone.earliest_end.min(at);
    }

    /// Where the write stands in its chunk's order.
    pub(super) fn write_placed(&mut self, register: Register, value: u64, version: Version) {
        if let Some(zone) = self.zones.entry(register).or_default().get_mut(&value) {
            zone.version = Some(version);
        }
    }

    pub(super) fn version(&self, register: Register, value: u64) -> Option<Version> {
        self.zones.get(&register)?.get(&value)?.version
    }

    /// S14: it survives every loss of memory from now on, unless something later does.
    pub(super) fn flushed(&mut self, register: Register, value: u64) {
        if let Some(zone) = self.zones.entry(register).or_default().get_mut(&value) {
            zone.flushed = true;
        }
    }

    /// S14: no copy of these chunks kept its memory. What was not flushed may be there or not, as if it had not been answered
    /// yet; what was flushed hides all that came before it, for ever.
    pub(super) fn lose_unflushed(&mut self, at: Moment, chunk: impl Fn(ChunkId) -> bool) {
        for (register, values) in self.zones.iter_mut().filter(|((of, _), _)| chunk(*of)) {
            let floor = values.values().filter(|zone| zone.flushed).filter_map(|zone| zone.version).max();
            if floor.is_some() {
                self.gone.insert((*register, 0), at);
            }
            values.remove(&0);
            values.retain(|value, zone| {
                let superseded = zone.version.is_some() && zone.version < floor;
                if superseded {
                    self.gone.insert((*register, *value), at);
                }
                !superseded
            });
            for zone in values.values_mut() {
                let Zone { version, flushed, .. } = *zone;
                *zone = Zone { version, flushed, ..Zone::asked(zone.written_from) };
            }
        }
    }

    /// Zero is what every block held before the beginning.
    pub(super) fn read(
        &mut self,
        register: Register,
        value: u64,
        called: Moment,
        returned: Moment,
    ) -> Result<(), String> {
        if let Some(gone) = self.gone.get(&(register, value)) {
            // It was read before, and the answer was on its way.
            if called < *gone {
                return Ok(());
            }
            return Err(format!("S14: {register:?}: {value} is back, and something after it was flushed"));
        }
        let values = self.zones.entry(register).or_default();
        if value == 0 {
            values.entry(0).or_insert(Zone {
                written_from: 0,
                earliest_end: 0,
                latest_start: 0,
                earliest_read_end: Moment::MAX,
                acked: true,
                read: true,
                version: None,
                flushed: false,
            });
        }
        let Some(zone) = values.get_mut(&value) else {
            return Err(format!("{register:?}: read {value}, which nobody wrote"));
        };
        zone.read = true;
        zone.earliest_end = zone.earliest_end.min(returned);
        zone.earliest_read_end = zone.earliest_read_end.min(returned);
        zone.latest_start = zone.latest_start.max(called);
        Ok(())
    }

    /// S12: what was acknowledged for these chunks may be lost. From here on any value that was ever asked for may be
    /// what there is, as if no write had been answered and nothing been read.
    pub(super) fn lose(&mut self, chunk: impl Fn(ChunkId) -> bool) {
        for (_, values) in self.zones.iter_mut().filter(|((of, _), _)| chunk(*of)) {
            values.remove(&0);
            for zone in values.values_mut() {
                *zone = Zone::asked(zone.written_from);
            }
        }
    }

    pub(super) fn check(&self) -> Result<(), String> {
        for (register, values) in &self.zones {
            let zones: Vec<(u64, Zone)> =
                values.iter().filter(|(_, zone)| zone.acked || zone.read).map(|(v, z)| (*v, *z)).collect();
            for (value, zone) in &zones {
                if zone.earliest_read_end < zone.written_from {
                    return Err(format!("{register:?}: {value} was read before it was written"));
                }
            }
            let mut forward: Vec<(Moment, Moment, u64)> = zones
                .iter()
                .filter(|(_, zone)| zone.earliest_end < zone.latest_start)
                .map(|(value, zone)| (zone.earliest_end, zone.latest_start, *value))
                .collect();
            forward.sort_unstable();
            for pair in forward.windows(2) {
                if pair[0].1 > pair[1].0 {
                    return Err(format!(
                        "{register:?} is not linearizable: {} was current during {}..{}, {} during {}..{}",
                        pair[0].2, pair[0].0, pair[0].1, pair[1].2, pair[1].0, pair[1].1
                    ));
                }
            }
            for (value, zone) in zones.iter().filter(|(_, zone)| zone.earliest_end >= zone.latest_start) {
                // The zones do not overlap, so only the last one that starts before can contain this one.
                let before = forward.partition_point(|(start, ..)| *start < zone.latest_start);
                if let Some((start, end, other)) = before.checked_sub(1).map(|last| forward[last])
                    && start < zone.latest_start
                    && zone.earliest_end < end
                {
                    return Err(format!(
                        "{register:?} is not linearizable: {value} took effect during {}..{}, \
                         while {other} was current during {start}..{end}",
                        zone.latest_start, zone.earliest_end
                    ));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(block: usize) -> Register {
        (ChunkId::default(), block)
    }

    #[test]
    fn a_lost_write_and_a_write_executed_twice_are_seen() {
        let mut lost = History::default();
        lost.write_called(at(0), 1, 1);
        lost.write_returned(at(0), 1, 2);
        lost.read(at(0), 0, 3, 4).expect("known value");
        assert!(lost.check().is_err(), "an acknowledged write was not read");

        let mut twice = History::default();
        twice.write_called(at(0), 1, 1);
        twice.read(at(0), 1, 2, 3).expect("known value");
        twice.write_called(at(0), 2, 4);
        twice.write_returned(at(0), 2, 5);
        assert!(twice.check().is_ok());
        twice.read(at(0), 1, 6, 7).expect("known value");
        assert!(twice.check().is_err(), "1 is back after 2");
        assert!(History::default().read(at(0), 9, 1, 2).is_err(), "out of nowhere");
    }

    #[test]
    fn an_unanswered_write_may_appear_once_at_any_time_after() {
        let mut history = History::default();
        history.write_called(at(0), 1, 1);
        history.write_called(at(0), 2, 2);
        history.write_returned(at(0), 2, 3);
        history.read(at(0), 2, 4, 5).expect("known value");
        history.read(at(0), 1, 6, 7).expect("known value");
        assert!(history.check().is_ok());
        history.read(at(0), 2, 8, 9).expect("known value");
        assert!(history.check().is_err());
    }
}
