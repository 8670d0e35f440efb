//! Whether a call that failed may be asked elsewhere, again, or not at all.

use std::time::Duration;

use pflex_proto::status::{self, Reason};
use tonic::{Code, Status};

/// No server of ours asks for more; a longer pause would look like an outage.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(5);

/// What an attempt's failure means for the call.
pub(super) enum Verdict {
    /// Definite: hand it to the caller.
    Final,
    /// Not executed: ask elsewhere.
    NotExecuted,
    /// Not executed, and the server asks for a pause.
    Overloaded(Duration),
    /// It may have been executed.
    Ambiguous,
}

/// What `error` means. `pause` is for a server that asks for one without saying how long.
pub(super) fn judge(error: &Status, pause: Duration) -> Verdict {
    match status::reason(error) {
        Some(Reason::Overloaded) => {
            let asked = status::retry_after_ms(error).map_or(pause, Duration::from_millis);
            Verdict::Overloaded(asked.min(LONGEST_RETRY_AFTER))
        }
        // A member of before a restore may still run beside those of after it.
        Some(Reason::NotLeader | Reason::Removed | Reason::DeadlinePassed | Reason::OlderGeneration) => {
            Verdict::NotExecuted
        }
        Some(Reason::UnknownOutcome | Reason::NoQuorum) => Verdict::Ambiguous,
        Some(_) => Verdict::Final,
        // Made by tonic, not by a server of ours. A refused connect was certainly not executed, all else may have been.
        None => match error.code() {
            Code::Unavailable | Code::Unknown | Code::Internal if refused(error) => Verdict::NotExecuted,
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown | Code::Internal => {
                Verdict::Ambiguous
            }
            _ => Verdict::Final,
        },
    }
}

/// Whether the connection was never made.
fn refused(error: &Status) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        if error.downcast_ref::<std::io::Error>().is_some_and(|io| io.kind() == std::io::ErrorKind::ConnectionRefused) {
            return true;
        }
        source = error.source();
    }
    false
}
