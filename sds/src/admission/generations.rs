//! The newest session generation of each (SDC, volume) at this device (S9).
//!
//! Kept in memory only: after a restart of the SDS no request of an earlier connection can still be queued here, and
//! the clients' operation ids (S7) catch what is resent.

use std::collections::HashMap;

use pflex_proto::ids::{Generation, SdcId, VolumeId};

/// Newest generations.
#[derive(Debug, Default)]
pub(crate) struct Generations {
    newest: HashMap<(SdcId, VolumeId), Generation>,
}

/// A session that may not be opened.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Superseded;

impl Generations {
    /// Takes a new session's generation; true if it retires older ones.
    ///
    /// # Errors
    /// [`Superseded`]: it is lower than the newest, or equal to that of another process (a clone, S9).
    pub(crate) fn open(&mut self, sdc: SdcId, volume: VolumeId, generation: Generation) -> Result<bool, Superseded> {
        match self.newest.get(&(sdc, volume)) {
            Some(newest) if *newest == generation => Ok(false),
            Some(newest) if newest.order() >= generation.order() => Err(Superseded),
            Some(_) | None => {
                self.newest.insert((sdc, volume), generation);
                Ok(true)
            }
        }
    }

    /// Volumes that are deleted; their ids are never given out again.
    pub(crate) fn forget_volumes(&mut self, deleted: &impl Fn(VolumeId) -> bool) {
        self.newest.retain(|(_, volume), _| !deleted(*volume));
    }

    /// Whether no newer generation was opened since.
    pub(crate) fn is_newest(&self, sdc: SdcId, volume: VolumeId, generation: Generation) -> bool {
        self.newest.get(&(sdc, volume)) == Some(&generation)
    }
}

#[cfg(test)]
mod tests {
    use pflex_proto::ids::ProcessId;

    use super::*;

    #[test]
    fn lower_generations_and_clones_are_refused() {
        let of =
            |boot, counter, process: u8| Generation { boot, counter, process: ProcessId::from_bytes([process; 16]) };
        let mut generations = Generations::default();
        let mut open = |generation| generations.open(SdcId(1), VolumeId(1), generation);
        assert_eq!(open(of(1, 1, 1)), Ok(true));
        assert_eq!(open(of(1, 1, 1)), Ok(false), "another connection of the same generation");
        assert_eq!(open(of(1, 1, 2)), Err(Superseded), "a clone");
        assert_eq!(open(of(1, 2, 1)), Ok(true));
        assert_eq!(open(of(1, 1, 1)), Err(Superseded));
        assert_eq!(open(of(2, 1, 2)), Ok(true), "a restarted SDC has a higher boot counter");
        assert!(!generations.is_newest(SdcId(1), VolumeId(1), of(1, 2, 1)));
    }
}
