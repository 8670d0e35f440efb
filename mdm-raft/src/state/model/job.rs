//! Rebuilds as they are recorded: a pool has copies that are not in sync, and how far filling them is.

use std::fmt;

use pflex_proto::ids::{LogTime, PoolId, Revision};

/// A rebuild, drain or rebalance; never given out twice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct JobId(pub u64);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a job is for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum JobKind {
    /// Copies that are missing are filled.
    Rebuild,
    /// Copies leave devices that are being emptied.
    Drain,
    /// Copies go to devices that hold less than their share.
    Rebalance,
}

impl JobKind {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Rebuild, Self::Drain, Self::Rebalance];
}

impl fmt::Display for JobKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rebuild => "rebuild",
            Self::Drain => "drain",
            Self::Rebalance => "rebalance",
        })
    }
}

/// How far it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum JobState {
    /// No missing copy can be filled now: its device is out of service, or nobody serves its group. No copy moves.
    Waiting,
    /// At least one is being filled, or about to be.
    Running,
    /// Every group of the pool is whole; everything has moved that was to.
    Done,
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Done => "done",
        })
    }
}

/// When something happened, and by which command.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Moment {
    /// The command.
    pub revision: Revision,
    /// Its log time.
    pub at: LogTime,
    /// The proposer's wall clock; for people.
    pub wall_ms: u64,
}

/// Copies of a pool that are filled: missing ones, or such that move. Opened, followed and finished by `apply` alone, from the
/// placement groups; only of a rebalance the planner says what it has not begun. A pool has at most one of each kind that is
/// not done, and that is the newest of its kind.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RebuildJob {
    /// Where.
    pub pool: PoolId,
    /// Which.
    pub id: JobId,
    /// What for.
    pub kind: JobKind,
    /// How far.
    pub state: JobState,
    /// Groups that lack a copy now, or have one that is to move.
    pub groups_left: u32,
    /// Of a rebalance: groups whose copies have not begun to move.
    pub planned: u32,
    /// Groups that became whole, or whose copies have moved, since it was opened; never less.
    pub groups_done: u64,
    /// When a group first lacked a copy, or one was first to move.
    pub opened: Moment,
    /// When nothing was left to do.
    pub finished: Option<Moment>,
    /// When `state` began, and how many groups were done then.
    pub since: LogTime,
    /// See `since`.
    pub done_before: u64,
    /// What happened when it was opened, for people.
    pub why: String,
}

impl RebuildJob {
    /// Whether it changes no more.
    pub const fn is_finished(&self) -> bool {
        matches!(self.state, JobState::Done)
    }

    /// How long it takes or took, in log time.
    pub fn duration_ms(&self, now: LogTime) -> u64 {
        self.finished.map_or(now, |finished| finished.at).get().saturating_sub(self.opened.at.get())
    }

    /// When it will be done, going by the groups that became whole while it ran. None while that says nothing.
    pub fn eta_ms(&self, now: LogTime) -> Option<u64> {
        let done = self.groups_done.checked_sub(self.done_before).filter(|done| *done > 0)?;
        let took = now.get().saturating_sub(self.since.get());
        (self.state == JobState::Running).then(|| took.saturating_mul(u64::from(self.groups_left)) / done)
    }
}
