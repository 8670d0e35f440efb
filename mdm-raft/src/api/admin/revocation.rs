//! Waiting until no SDS accepts the old tokens of a volume any more (S20).
//!
//! An SDS confirms by the revision in its beats: it says a revision once it is in force and older admissions have
//! drained. One that is not heard is waited for only so long; its tokens end by themselves.

use std::time::Duration;

use pflex_proto::ids::{ProcessId, Revision, SdsId, VolumeId};

use crate::api::Api;

/// Just over one beat. Below the time a client gives one attempt: its retry would only ask the same again.
const WAIT: Duration = Duration::from_millis(1_200);

impl Api {
    /// Waits a little for every SDS that may serve the volume; returns the names of those that have not confirmed.
    pub(super) async fn await_revocation(&self, revision: Revision, volume: VolumeId) -> Vec<String> {
        let mut beats = self.liveness().beats();
        let deadline = tokio::time::Instant::now() + WAIT;
        loop {
            beats.mark_unchanged();
            let unconfirmed: Vec<(String, bool)> = self
                .servers_of(volume)
                .into_iter()
                .filter(|(sds, process, ..)| self.liveness().applied(*sds, *process).is_none_or(|at| at < revision))
                .map(|(_, _, name, alive)| (name, alive))
                .collect();
            // One that is lost will not answer now; it is named, not waited for.
            let worth_waiting = unconfirmed.iter().any(|(_, alive)| *alive);
            let next_beat = tokio::time::timeout_at(deadline, beats.changed());
            if !worth_waiting || !matches!(next_beat.await, Ok(Ok(()))) {
                return unconfirmed.into_iter().map(|(name, _)| name).collect();
            }
        }
    }

    /// The registered SDSs of the volume's domain; of all domains when the volume is gone.
    fn servers_of(&self, volume: VolumeId) -> Vec<(SdsId, ProcessId, String, bool)> {
        self.look(|state| {
            let pool = state.volume(volume).and_then(|volume| state.pool(volume.pool));
            let domain = pool.map(|pool| pool.domain);
            state
                .all_sds()
                .filter(|sds| domain.is_none_or(|domain| sds.domain == domain))
                .filter_map(|sds| Some((sds.id, sds.registration.as_ref()?.process, sds.name.clone(), sds.alive)))
                .collect()
        })
    }
}
