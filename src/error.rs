//! The one error type of the binary: an exit status, one line for people, and the cause for `-v`.
//!
//! The line says what was tried on which object, why it failed and what to do. Scripts read the exit status only, so each
//! failure decides on one where it is made; nothing maps texts to statuses afterwards.

use std::{error::Error, fmt, io};

use pflex_proto::status::{self, Reason};
use tonic::{Code, Status};

/// The exit statuses of the contract. Clap's own usage errors are `Usage` too.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Exit {
    /// Everything asked for was done.
    Done = 0,
    /// It failed for a reason that has no status of its own.
    Failed = 1,
    /// The command line or a value on it is wrong; nothing was tried.
    Usage = 2,
    /// An object that was named does not exist.
    NotFound = 3,
    /// The state of things forbids it: a name is taken, something is in use, a disk is full.
    Conflict = 4,
    /// Not authenticated, or not allowed.
    NotAllowed = 5,
    /// No MDM answered, or none of them leads.
    Unreachable = 6,
    /// The time given by `--timeout` is over; a change that was asked for may have happened.
    TimedOut = 7,
    /// `status --check` found the cluster degraded.
    Degraded = 8,
}

/// Why a command ended without doing what it was asked to.
#[derive(Debug)]
pub(crate) struct Failure {
    exit: Exit,
    what: String,
    remedy: Option<String>,
    cause: Option<Box<dyn Error + Send + Sync>>,
}

impl Failure {
    pub(crate) fn new(exit: Exit, what: impl Into<String>) -> Self {
        Self { exit, what: what.into(), remedy: None, cause: None }
    }

    /// What the reader can do about it.
    #[must_use]
    pub(crate) fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// What led to it; printed by `-v` only.
    #[must_use]
    pub(crate) fn cause(mut self, cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.cause = Some(cause.into());
        self
    }

    /// An operating-system error. The system's reason stands in the line itself: without it the line explains nothing.
    pub(crate) fn io(what: impl fmt::Display, error: io::Error) -> Self {
        let (exit, remedy) = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                (Exit::Conflict, Some("free space there and run the command again"))
            }
            io::ErrorKind::PermissionDenied => (Exit::NotAllowed, Some("check the owner and the permissions")),
            io::ErrorKind::NotFound => (Exit::NotFound, None),
            _ => (Exit::Failed, None),
        };
        let mut failure = Self::new(exit, format!("{what}: {}", plain(&error)));
        failure.remedy = remedy.map(ToOwned::to_owned);
        failure.cause(error)
    }

    /// An answer of the MDM. `what` names the action and the object: "create volume demo".
    pub(crate) fn status(what: impl fmt::Display, status: Status) -> Self {
        let (exit, remedy) = match status::reason(&status) {
            Some(reason) => by_reason(reason),
            None => by_code(status.code()),
        };
        let what = what.to_string();
        let why = if status.message().is_empty() { status.code().description() } else { status.message() };
        let mut failure = Self::new(exit, format!("{what}: {}", unrepeated(&what, why)));
        // The MDM's own advice knows more than ours.
        failure.remedy = remedy.filter(|_| !why.contains("; ")).map(ToOwned::to_owned);
        failure.cause(status)
    }

    pub(crate) const fn exit(&self) -> Exit {
        self.exit
    }

    /// The causes, outermost first, one a line; for `-v`.
    pub(crate) fn chain(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut next = self.cause.as_deref().map(|cause| cause as &(dyn Error + 'static));
        while let Some(cause) = next {
            lines.push(one_line(&cause.to_string()));
            next = cause.source();
        }
        lines
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", one_line(&self.what))?;
        match &self.remedy {
            Some(remedy) => write!(f, "; {}", one_line(remedy)),
            None => Ok(()),
        }
    }
}

/// "create volume demo" and "volume demo: no space" need not name the volume twice.
fn unrepeated<'a>(what: &str, why: &'a str) -> &'a str {
    match why.split_once(": ") {
        Some((object, rest)) if what.ends_with(object) => rest,
        _ => why,
    }
}

/// What each reason of the MDM means to a script, and what a person can do about it.
fn by_reason(reason: Reason) -> (Exit, Option<&'static str>) {
    match reason {
        Reason::NotLeader | Reason::NoQuorum | Reason::Behind | Reason::Removed => {
            (Exit::Unreachable, Some("a majority of the MDMs must run; `pflex cluster status --stale` shows them"))
        }
        Reason::UnknownOutcome => {
            (Exit::Unreachable, Some("it may have happened or not: look with `list`, then run it again"))
        }
        Reason::SessionExpired | Reason::OutcomeForgotten => {
            (Exit::Failed, Some("whether it happened is unknown: look with `list`, then run it again"))
        }
        Reason::NotFound => (Exit::NotFound, Some("the `list` command of its kind shows what exists")),
        Reason::AlreadyExists => (Exit::Conflict, Some("choose another name")),
        Reason::InUse | Reason::ReportFirst | Reason::Precondition | Reason::NoCapacity => (Exit::Conflict, None),
        Reason::StaleEpoch => (Exit::Conflict, Some("something else changed it meanwhile: run it again")),
        Reason::LimitReached => (Exit::Conflict, Some("remove what is not needed any more")),
        Reason::OlderGeneration => {
            (Exit::Conflict, Some("that MDM is of before a restore: stop it, and name the restored ones with --mdm"))
        }
        Reason::WrongCluster => (Exit::Conflict, Some("check --mdm, PFLEX_MDM and the current context")),
        Reason::Invalid => (Exit::Usage, None),
        Reason::NotAllowed => (Exit::NotAllowed, None),
        Reason::DeadlinePassed => (Exit::TimedOut, Some("nothing was changed; give a longer --timeout")),
        Reason::Overloaded => (Exit::Failed, Some("try again in a moment")),
        Reason::Compacted => (Exit::Failed, Some("run it again")),
        Reason::Internal => (Exit::Failed, Some("the MDM's log says more")),
    }
}

/// The same for a status that no server of ours made: the transport's own, or a proxy's.
fn by_code(code: Code) -> (Exit, Option<&'static str>) {
    match code {
        Code::Ok => (Exit::Done, None),
        Code::InvalidArgument => (Exit::Usage, None),
        Code::NotFound => (Exit::NotFound, None),
        Code::AlreadyExists | Code::FailedPrecondition | Code::Aborted | Code::ResourceExhausted | Code::OutOfRange => {
            (Exit::Conflict, None)
        }
        Code::PermissionDenied | Code::Unauthenticated => (Exit::NotAllowed, None),
        Code::Unavailable => (Exit::Unreachable, Some("check that the MDMs run and that --mdm names them")),
        // The transport reports a deadline of its own as a cancellation.
        Code::DeadlineExceeded | Code::Cancelled => {
            (Exit::TimedOut, Some("a change may have happened: look with `list`, or give a longer --timeout"))
        }
        Code::Unimplemented => (Exit::Failed, Some("the MDM is of another version than this command")),
        Code::Unknown | Code::Internal | Code::DataLoss => (Exit::Failed, None),
    }
}

/// The system's text without "(os error 28)", which says nothing to a person.
fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_lowercase()
}

/// Messages from elsewhere may have line breaks; an error is one line.
pub(crate) fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The whole mapping, because scripts depend on it.
    #[test]
    fn every_reason_has_its_exit_status() {
        let expected = [
            (Reason::NotLeader, 6),
            (Reason::UnknownOutcome, 6),
            (Reason::NoQuorum, 6),
            (Reason::SessionExpired, 1),
            (Reason::OutcomeForgotten, 1),
            (Reason::NotFound, 3),
            (Reason::AlreadyExists, 4),
            (Reason::InUse, 4),
            (Reason::Precondition, 4),
            (Reason::StaleEpoch, 4),
            (Reason::Invalid, 2),
            (Reason::LimitReached, 4),
            (Reason::NoCapacity, 4),
            (Reason::Overloaded, 1),
            (Reason::WrongCluster, 4),
            (Reason::OlderGeneration, 4),
            (Reason::ReportFirst, 4),
            (Reason::NotAllowed, 5),
            (Reason::Compacted, 1),
            (Reason::Behind, 6),
            (Reason::Removed, 6),
            (Reason::DeadlinePassed, 7),
            (Reason::Internal, 1),
        ];
        for (reason, exit) in expected {
            let failure = Failure::status("create volume demo", status::status(reason, "why"));
            assert_eq!(failure.exit() as u8, exit, "{reason:?}");
        }
    }

    #[test]
    fn a_foreign_status_goes_by_its_code() {
        for (code, exit) in
            [(Code::Unavailable, 6), (Code::DeadlineExceeded, 7), (Code::Cancelled, 7), (Code::Unauthenticated, 5)]
        {
            assert_eq!(Failure::status("x", Status::new(code, "")).exit() as u8, exit, "{code:?}");
        }
    }

    #[test]
    fn a_failure_is_one_line_and_keeps_its_causes_for_later() {
        let failure = Failure::status("create volume demo", status::status(Reason::NotFound, "no pool\nx"));
        assert_eq!(
            failure.to_string(),
            "create volume demo: no pool x; the `list` command of its kind shows what exists"
        );
        assert_eq!(failure.chain().len(), 1);
    }

    #[test]
    fn an_object_is_named_once() {
        let failure = Failure::status("create volume demo", status::status(Reason::InUse, "volume demo: it is mapped"));
        assert_eq!(failure.to_string(), "create volume demo: it is mapped");
        let failure = Failure::status("create volume demo", status::status(Reason::InUse, "pool p: it is full"));
        assert_eq!(failure.to_string(), "create volume demo: pool p: it is full");
    }

    #[test]
    fn a_full_disk_is_a_conflict_and_says_so_in_words() {
        let failure = Failure::io("write /d/cluster.toml", io::Error::from_raw_os_error(28));
        assert_eq!(failure.exit(), Exit::Conflict);
        assert_eq!(
            failure.to_string(),
            "write /d/cluster.toml: no space left on device; free space there and run the command again"
        );
    }
}
