//! Which parts of a device take space: consecutive extents of one state each.

use pflex_proto::ids::ByteCount;

/// What is stored of an extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtentState {
    /// It takes space, or that is not known: always a safe thing to say.
    Data,
    /// Nothing is stored, and it reads as zeros.
    Hole,
}

/// Consecutive bytes in one state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// How many; not zero.
    pub length: ByteCount,
    /// Their state.
    pub state: ExtentState,
}

/// Extents put together in order: neighbours of one state become one, and no more than a limit are kept.
#[derive(Debug)]
pub struct Extents {
    list: Vec<Extent>,
    limit: usize,
    full: bool,
}

impl Extents {
    /// None yet, `limit` at most.
    pub const fn new(limit: usize) -> Self {
        Self { list: Vec::new(), limit, full: false }
    }

    /// Adds what comes next; nothing when the limit is reached, from then on for good.
    pub fn push(&mut self, state: ExtentState, length: u64) {
        if length == 0 || self.full {
            return;
        }
        let has_place = self.list.len() < self.limit;
        match self.list.last_mut() {
            Some(last) if last.state == state => last.length.0 += length,
            Some(_) | None if has_place => self.list.push(Extent { length: ByteCount(length), state }),
            Some(_) | None => self.full = true,
        }
    }

    /// Whether more would not be kept.
    pub const fn is_full(&self) -> bool {
        self.full
    }

    /// What was put together.
    pub fn into_list(self) -> Vec<Extent> {
        self.list
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_one_extent_and_the_limit_ends_the_list() {
        let mut extents = Extents::new(2);
        for (state, length) in [(ExtentState::Hole, 5), (ExtentState::Hole, 3), (ExtentState::Data, 1)] {
            extents.push(state, length);
        }
        assert!(!extents.is_full());
        extents.push(ExtentState::Hole, 4);
        extents.push(ExtentState::Data, 4);
        assert!(extents.is_full());
        let list: Vec<_> = extents.into_list().iter().map(|extent| (extent.state, extent.length.0)).collect();
        assert_eq!(list, [(ExtentState::Hole, 8), (ExtentState::Data, 1)]);
    }
}
