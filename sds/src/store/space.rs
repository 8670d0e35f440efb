//! Free units, what is reserved of them (S4), and what is on its way to being free.
//!
//! A unit that a chunk let go is not free at once: a running checkpoint may still write into it and readers may still
//! read from it. It waits in quarantine until both are over.
//!
//! On a thin device, a file that takes its space from a file system, free units are *backed* some way ahead of their use:
//! a file system that is full is found out before a write is ordered that would need it, and the device is full then. Units that
//! were in use when the device was opened are not known to be backed: builds of before took them without. They are backed beside,
//! a few each second ([`OLD_BATCHES`]), and one for which there is no space makes the device full, too.

use std::collections::{BTreeMap, BTreeSet};

use pflex_proto::ids::{ChunkId, PgId};

use super::{chunk::Freed, record::UnitId};

/// Backed units beyond what is reserved: more than the chunks that come into being while one allocation runs. The owner
/// takes 64 requests before it hears of an allocation's end.
const AHEAD: usize = 128;
/// Allocations for units of before, between two looks of the owner, which come each second: 1 GiB a second. Nearly all find their
/// space there, which is a look at an extent.
const OLD_BATCHES: u32 = 64;
/// Of one allocation. One that fails is tried again in halves: the last megabytes of a file system count too.
const BATCH: u32 = 16;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Space {
    total: u32,
    /// The last one is taken first; low units go first.
    free: Vec<UnitId>,
    /// Free too, but whether there is space for them is not known. The same order.
    unbacked: Vec<UnitId>,
    thin: bool,
    /// Units that were taken before they were backed: they are backed as soon as may be.
    trusted: BTreeSet<UnitId>,
    /// Units that were in use when the device was opened.
    old: BTreeSet<UnitId>,
    /// Allocations for those until the owner looks again.
    old_batches: u32,
    /// Being backed: the first, and how many.
    backing: Option<(UnitId, u32)>,
    /// Those being backed are in use already.
    in_use: bool,
    /// The file system had no space, the last time it was asked.
    refused: bool,
    /// It is time to ask it again.
    again: bool,
    /// Units of the next allocation, at most.
    batch: u32,
    reserved: BTreeMap<PgId, BTreeSet<ChunkId>>,
    reserved_count: usize,
    pub(super) quarantine: Vec<Quarantined>,
    /// Units whose discard is running.
    pub(super) discarding: usize,
}

/// A unit that nobody references any more.
#[derive(Clone, Copy, Debug)]
pub(super) struct Quarantined {
    pub(super) freed: Freed,
    /// Not free before this checkpoint is over.
    pub(super) checkpoint: u64,
}

impl Space {
    /// With these units in use; the duplicate if one is used twice.
    pub(super) fn new(total: u32, thin: bool, used: impl Iterator<Item = UnitId>) -> Result<Self, UnitId> {
        let mut taken = vec![false; total as usize];
        for unit in used {
            match taken.get_mut(unit.0 as usize) {
                Some(slot @ false) => *slot = true,
                Some(true) | None => return Err(unit),
            }
        }
        let units: Vec<_> = (0..total).rev().filter(|unit| !taken[*unit as usize]).map(UnitId).collect();
        let (free, unbacked) = if thin { (Vec::new(), units) } else { (units, Vec::new()) };
        let old = (0..total).filter(|unit| thin && taken[*unit as usize]).map(UnitId).collect();
        Ok(Self { total, free, unbacked, thin, old, batch: BATCH, ..Self::default() })
    }

    pub(super) const fn total(&self) -> u32 {
        self.total
    }

    /// Units that are neither used nor reserved, and for which there is space as far as is known.
    pub(super) fn available(&self) -> usize {
        let hoped = if self.refused { 0 } else { self.unbacked.len() + self.coming() };
        (self.free.len() + hoped).saturating_sub(self.reserved_count)
    }

    /// Free units that are being backed.
    fn coming(&self) -> usize {
        self.backing.filter(|_| !self.in_use).map_or(0, |(_, count)| count as usize)
    }

    /// Free units for which the file system has no space.
    pub(super) fn refused(&self) -> usize {
        if self.refused { self.unbacked.len() } else { 0 }
    }

    pub(super) const fn reserved(&self) -> usize {
        self.reserved_count
    }

    /// Sets a unit aside for a chunk, if more than `keep` are left; once for each, however often it is asked.
    pub(super) fn reserve(&mut self, pg: PgId, chunk: ChunkId, keep: usize) -> bool {
        if self.reserved.get(&pg).is_some_and(|chunks| chunks.contains(&chunk)) {
            return true;
        }
        if self.available() <= keep {
            return false;
        }
        self.reserved.entry(pg).or_default().insert(chunk);
        self.reserved_count += 1;
        true
    }

    pub(super) fn release_one(&mut self, pg: PgId, chunk: ChunkId) {
        if let Some(chunks) = self.reserved.get_mut(&pg)
            && chunks.remove(&chunk)
        {
            self.reserved_count -= 1;
            if chunks.is_empty() {
                self.reserved.remove(&pg);
            }
        }
    }

    pub(super) fn release(&mut self, pg: PgId) {
        self.reserved_count -= self.reserved.remove(&pg).map_or(0, |chunks| chunks.len());
    }

    /// A unit for a chunk that has none: the reserved one, else any.
    pub(super) fn take(&mut self, pg: PgId, chunk: ChunkId) -> Option<UnitId> {
        if let Some(chunks) = self.reserved.get_mut(&pg)
            && chunks.remove(&chunk)
        {
            self.reserved_count -= 1;
            if chunks.is_empty() {
                self.reserved.remove(&pg);
            }
        } else if self.available() == 0 {
            return None;
        }
        self.free.pop().or_else(|| self.take_on_trust())
    }

    /// More chunks at once than were backed ahead. The next allocation makes it good, or finds that there is no space.
    fn take_on_trust(&mut self) -> Option<UnitId> {
        let unit = match (self.unbacked.pop(), &mut self.backing) {
            (Some(unit), _) => unit,
            // What becomes of the one under way is not waited for.
            (None, Some((first, count))) if !self.in_use && *count > 0 => {
                *count -= 1;
                UnitId(first.0 + *count)
            }
            (None, Some(_) | None) => return None,
        };
        self.trusted.insert(unit);
        Some(unit)
    }

    /// A unit to write a whole chunk to instead of over its old one. Optional work, so it leaves some for new chunks.
    pub(super) fn take_spare(&mut self) -> Option<UnitId> {
        let keep = (self.total as usize / 64).max(1);
        if self.available() <= keep { None } else { self.free.pop() }
    }

    /// A unit is free. `discarded`: its space went back to the file system.
    pub(super) fn give_back(&mut self, unit: UnitId, discarded: bool) {
        let unbacked = self.trusted.remove(&unit) | self.old.remove(&unit);
        if (discarded || unbacked) && self.thin {
            self.unbacked.push(unit);
            self.again = true;
        } else {
            self.free.push(unit);
        }
    }

    /// Units to back now, if it is time: the first, and how many follow each other.
    pub(super) fn back_next(&mut self) -> Option<(UnitId, u32)> {
        let vain = self.refused && !self.again;
        if self.backing.is_some() || vain {
            return None;
        }
        let first = self.trusted.first().copied();
        let short = self.free.len() < self.reserved_count + AHEAD;
        let ahead = if first.is_none() && short { self.unbacked.pop() } else { None };
        let old =
            if first.is_none() && ahead.is_none() && self.old_batches > 0 { self.old.first().copied() } else { None };
        self.in_use = ahead.is_none();
        self.old_batches -= u32::from(old.is_some());
        let first = first.or(ahead).or(old)?;
        self.again = false;
        let mut count = 1;
        while count < self.batch {
            let next = UnitId(first.0 + count);
            let follows = match (ahead, old) {
                (Some(_), _) => self.unbacked.pop_if(|unit| *unit == next).is_some(),
                (None, Some(_)) => self.old.contains(&next),
                (None, None) => self.trusted.contains(&next),
            };
            if !follows {
                break;
            }
            count += 1;
        }
        self.backing = Some((first, count));
        self.backing
    }

    /// What became of it. Returns whether the device has just found out that there is no space.
    pub(super) fn backed(&mut self, done: bool) -> bool {
        let Some((first, count)) = self.backing.take() else { return false };
        let units = (first.0..first.0 + count).rev().map(UnitId);
        if done {
            if self.in_use {
                units.for_each(|unit| _ = self.trusted.remove(&unit) | self.old.remove(&unit));
            } else {
                self.free.splice(0..0, units);
            }
            self.refused = false;
            self.batch = (self.batch * 2).min(BATCH);
            return false;
        }
        if !self.in_use {
            self.unbacked.extend(units);
        }
        self.batch = (count / 2).max(1);
        if count > 1 {
            self.again = true;
            return false;
        }
        self.give_up_hopes();
        !std::mem::replace(&mut self.refused, true)
    }

    /// What was set aside of units that there turned out to be no space for. Whoever counts on it is refused, which costs a group its
    /// copy here; to write there would cost the device.
    fn give_up_hopes(&mut self) {
        while self.reserved_count > self.free.len() {
            let Some(mut group) = self.reserved.last_entry() else { return };
            group.get_mut().pop_last();
            self.reserved_count -= 1;
            if group.get().is_empty() {
                group.remove();
            }
        }
    }

    /// Each second: somebody else may have given space back, and some units of before are due.
    pub(super) const fn ask_again(&mut self) {
        self.again = true;
        self.old_batches = OLD_BATCHES;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(index: u64) -> ChunkId {
        ChunkId { index: pflex_proto::ids::ChunkIndex(index), ..ChunkId::default() }
    }

    /// Backs what is due where there is room for so many units; whether it was news that there is none.
    fn back(space: &mut Space, mut room: u32) -> bool {
        let mut news = false;
        while let Some((_, count)) = space.back_next() {
            news |= space.backed(count <= room);
            room -= if count <= room { count } else { 0 };
        }
        news
    }

    #[test]
    fn units_are_backed_ahead_of_their_use_in_runs_and_low_ones_first() {
        let mut space = Space::new(300, true, [UnitId(10)].into_iter()).unwrap();
        assert_eq!(space.available(), 299);
        assert_eq!(space.back_next(), Some((UnitId(0), 10)), "up to the one in use");
        assert_eq!(space.back_next(), None, "one at a time");
        assert!(!space.backed(true));
        assert_eq!(space.back_next(), Some((UnitId(11), BATCH)));
        space.backed(true);
        assert!(!back(&mut space, 1000));
        assert!((AHEAD..AHEAD + BATCH as usize).contains(&space.free.len()), "enough is ahead");
        assert_eq!(space.take(PgId::default(), id(0)), Some(UnitId(0)));
        assert_eq!(space.available(), 298);
    }

    #[test]
    fn without_space_only_what_was_backed_is_available_and_a_discard_or_time_brings_hope() {
        let mut space = Space::new(200, true, std::iter::empty()).unwrap();
        assert!(back(&mut space, 91), "news");
        assert_eq!((space.available(), space.refused()), (91, 109), "the last ones one by one");
        assert!(!space.reserve(PgId::default(), id(199), 91), "kept");
        (0..91).for_each(|index| assert!(space.reserve(PgId::default(), id(index), 0)));
        assert!(!space.reserve(PgId::default(), id(91), 0), "full");
        (0..91)
            .for_each(|index| assert!(space.take(PgId::default(), id(index)).is_some(), "what is reserved is there"));
        assert_eq!(space.take(PgId::default(), id(150)), None);
        assert_eq!(space.back_next(), None, "not asked in vain");
        space.ask_again();
        assert_eq!((space.back_next(), space.available()), (Some((UnitId(91), 1)), 0), "hope is no space");
        assert!(!space.backed(false), "no news");
        space.give_back(UnitId(4), false);
        assert_eq!(space.available(), 1, "this one never lost its space");
        space.give_back(UnitId(3), true);
        assert_eq!(
            (space.back_next(), space.available()),
            (Some((UnitId(3), 1)), 1),
            "the file system got a unit back"
        );
        assert!(!space.backed(true));
        assert_eq!((space.available(), space.refused()), (111, 0));
    }

    #[test]
    fn what_was_taken_on_trust_is_backed_first_and_shows_when_there_is_no_space() {
        let mut space = Space::new(300, true, std::iter::empty()).unwrap();
        assert_eq!(space.back_next(), Some((UnitId(0), BATCH)));
        (0..100).for_each(|index| assert!(space.take(PgId::default(), id(index)).is_some()));
        space.backed(true);
        assert_eq!(space.back_next(), Some((UnitId(16), BATCH)), "units 16 to 115 are in use");
        assert_eq!(space.available(), 200);
        space.backed(true);
        space.give_back(UnitId(40), false);
        assert!(space.back_next().is_some());
        assert!(back(&mut space, 0) | space.backed(false) | back(&mut space, 0), "it is known before they are written");
        assert_eq!(space.available(), 16, "those of the first allocation");
        space.ask_again();
        back(&mut space, 1000);
        assert!(space.trusted.is_empty() && space.refused() == 0);
        assert_eq!(space.available(), 201);
    }

    #[test]
    fn what_is_reserved_is_there_while_the_last_units_are_being_backed() {
        let mut space = Space::new(10, true, std::iter::empty()).unwrap();
        (0..10).for_each(|index| assert!(space.reserve(PgId::default(), id(index), 0)));
        assert_eq!(space.back_next(), Some((UnitId(0), 10)));
        (0..10).for_each(|index| assert!(space.take(PgId::default(), id(index)).is_some(), "{index}"));
        assert_eq!(space.take(PgId::default(), id(11)), None);
        space.backed(true);
        assert_eq!((space.available(), space.back_next()), (0, Some((UnitId(0), 10))));
        space.backed(true);
        assert_eq!(space.back_next(), None);
    }

    #[test]
    fn units_of_before_are_backed_beside_a_few_at_a_time_and_show_when_there_is_no_space() {
        let mut space = Space::new(3000, true, (0..2000).map(UnitId)).unwrap();
        assert!(!back(&mut space, 5000));
        assert_eq!(space.old.len(), 2000, "what is to come goes first, and the rest when the owner looks");
        space.ask_again();
        assert!(!back(&mut space, 5000));
        assert_eq!(space.old.len(), 2000 - (OLD_BATCHES * BATCH) as usize);
        assert_eq!(space.available(), 1000);
        // One of them is let go: it may have no space.
        space.give_back(UnitId(1999), false);
        assert!(space.unbacked.contains(&UnitId(1999)));
        space.ask_again();
        assert!(back(&mut space, 30), "news");
        assert_eq!(
            (space.old.len(), space.refused()),
            (2000 - (OLD_BATCHES * BATCH) as usize - 31, space.unbacked.len())
        );
        assert_eq!(space.available(), space.free.len(), "only what is backed");
        for _ in 0..3 {
            space.ask_again();
            back(&mut space, 5000);
        }
        assert_eq!((space.old.len(), space.refused(), space.available()), (0, 0, 1001));
        assert!(Space::new(3, false, [UnitId(1)].into_iter()).unwrap().old.is_empty());
    }

    #[test]
    fn what_was_set_aside_in_hope_is_given_back_when_there_is_no_space() {
        let mut space = Space::new(100, true, std::iter::empty()).unwrap();
        let group = |index| PgId { index: pflex_proto::ids::PgIndex(index), ..PgId::default() };
        (0..20).for_each(|index| assert!(space.reserve(group(index % 3), id(index.into()), 0)));
        assert!(back(&mut space, 4), "news");
        assert_eq!((space.reserved(), space.available()), (4, 0));
        let taken = (0..20).filter(|index| space.take(group(index % 3), id(u64::from(*index))).is_some());
        assert_eq!(taken.count(), 4, "what is left of it is there, and nothing is taken on trust");
        assert!(space.trusted.is_empty());
        assert_eq!((space.reserved(), space.reserved.len()), (0, 0));
    }

    #[test]
    fn a_device_of_its_own_has_its_space_from_the_start() {
        let mut space = Space::new(3, false, std::iter::empty()).unwrap();
        assert_eq!((space.available(), space.back_next()), (3, None));
        space.give_back(UnitId(7), true);
        assert_eq!(space.available(), 4);
        assert_eq!(Space::new(3, false, [UnitId(1), UnitId(1)].into_iter()).unwrap_err(), UnitId(1));
    }
}
