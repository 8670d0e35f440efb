//! Finishing a change of the voters that nobody carries out any more.
//!
//! openraft changes voters in two entries, and the second is proposed by whoever asked for the first. If its leader dies
//! between the two, or the caller's time is over, the group stays between two sets of voters: it works, but needs a
//! majority of both, so that it bears fewer failures than anyone believes. Each leader looks for that and goes on to the
//! newer set, which is what the change was for; going back would undo what its caller may already count on.

use std::{
    sync::Weak,
    time::{Duration, Instant},
};

use openraft::async_runtime::watch::WatchReceiver as _;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::{Group, Inner};
use crate::raft::types::LogId;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(250);
/// So long is left to whoever makes the change, or, after its leader's death, repeats its command.
const LEFT_ALONE: Duration = Duration::from_secs(2);

/// A membership between two sets of voters, and since when this member sees it as leader.
type Seen = Option<(Option<LogId>, Instant)>;

/// Looks until `stop`, or until the group is gone.
pub(super) async fn run(group: Weak<Inner>, stop: CancellationToken) {
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut seen: Seen = None;
    let work = async {
        loop {
            looks.tick().await;
            // Held for the look only: who drops the last handle ends the group.
            let Some(group) = group.upgrade().map(Group) else { return };
            seen = look(&group, seen, Instant::now());
            let Some((_, since)) = seen.filter(|(_, since)| since.elapsed() >= LEFT_ALONE) else { continue };
            tracing::warn!(
                "a change of the voters was left half done {} ms ago or earlier; finishing it",
                since.elapsed().as_millis()
            );
            match group.settle().await {
                Ok(()) => tracing::info!(voters = ?group.status().voters, "the change of the voters is finished"),
                Err(error) => tracing::warn!("the change of the voters is still half done: {error}"),
            }
            seen = None;
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = work => {}
    }
}

/// What there is to be finished now: the same as before, or something newer, or nothing.
fn look(group: &Group, before: Seen, now: Instant) -> Seen {
    let metrics = group.0.raft.metrics().borrow_watched().clone();
    let membership = &metrics.membership_config;
    if !metrics.state.is_leader() || membership.membership().get_joint_config().len() < 2 || group.is_changing() {
        return None;
    }
    let made = *membership.log_id();
    Some(before.filter(|(id, _)| *id == made).unwrap_or((made, now)))
}
