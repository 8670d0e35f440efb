//! What to do after a request was not done: the one place that tells what waiting can cure from what it cannot.

use pflex_proto::data::{Refusal, RefusalCode};

use super::link::AttemptError;
use crate::block::IoError;

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Send it again at once: something was learned.
    Again,
    /// Send it again after a pause, or when the map changes.
    Wait,
    /// Send it again when there is another token.
    NewToken,
    /// Send it again for a moment: the SDS may not have heard of a change that this client knows (a mapping, a new size). If
    /// it still says so then, it is right.
    Grace(IoError),
    /// It cannot succeed.
    Final(IoError),
}

/// Judges an attempt. `learned` says whether the configuration in a refusal was news.
pub fn judge(error: &AttemptError, learned: bool) -> Verdict {
    match error {
        // The primary moved, or the session is a newer one by now: the next attempt is another one.
        AttemptError::Moved | AttemptError::Retired => Verdict::Again,
        AttemptError::Unreachable(_) | AttemptError::Lost | AttemptError::BadReply(_) => Verdict::Wait,
        AttemptError::NoToken => Verdict::NewToken,
        AttemptError::NoOperationToken(_) => Verdict::Wait,
        AttemptError::Refused(refusal) => judge_refusal(refusal, learned),
    }
}

fn judge_refusal(refusal: &Refusal, learned: bool) -> Verdict {
    let failed = || Verdict::Final(IoError::Failed(refusal.why.clone()));
    match refusal.code {
        RefusalCode::WrongEpoch | RefusalCode::NotPrimary if learned => Verdict::Again,
        // The SDS is behind this client, or both know no better yet.
        RefusalCode::WrongEpoch | RefusalCode::NotPrimary => Verdict::Wait,
        // A mix-up of addresses, which the map will mend.
        RefusalCode::WrongCluster | RefusalCode::WrongTarget | RefusalCode::WrongVersion => Verdict::Wait,
        // The link opens another session for the next attempt.
        RefusalCode::NoSession | RefusalCode::StaleGeneration => Verdict::Wait,
        RefusalCode::NotAuthentic | RefusalCode::TokenExpired => Verdict::NewToken,
        RefusalCode::NotReady | RefusalCode::Busy | RefusalCode::ShuttingDown => Verdict::Wait,
        // The same operation id makes these safe (S7).
        RefusalCode::OutcomeUnknown | RefusalCode::BadChecksum => Verdict::Wait,
        RefusalCode::NoSpace => Verdict::Final(IoError::NoSpace),
        // Its mode never changes, so the map of one side is not of this volume.
        RefusalCode::NotAllowed | RefusalCode::NoOperationToken => {
            Verdict::Grace(IoError::NotAllowed(refusal.why.clone()))
        }
        RefusalCode::BadRange | RefusalCode::BadRequest => Verdict::Grace(IoError::Invalid(refusal.why.clone())),
        RefusalCode::LostMemory => Verdict::Final(IoError::LostMemory(refusal.why.clone())),
        RefusalCode::Unreadable => failed(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(code: RefusalCode) -> AttemptError {
        AttemptError::Refused(Refusal { code, config: None, why: "why".into() })
    }

    #[test]
    fn a_wrong_epoch_is_sent_again_at_once_only_when_it_was_news() {
        for code in [RefusalCode::WrongEpoch, RefusalCode::NotPrimary] {
            assert_eq!(judge(&refused(code), true), Verdict::Again);
            assert_eq!(judge(&refused(code), false), Verdict::Wait, "or two that disagree would spin");
        }
    }

    #[test]
    fn only_what_waiting_cannot_cure_is_final() {
        let is_final = |code| matches!(judge(&refused(code), false), Verdict::Final(_));
        for code in [RefusalCode::NoSpace, RefusalCode::Unreadable, RefusalCode::LostMemory] {
            assert!(is_final(code), "{code:?}");
        }
        for code in [
            RefusalCode::Busy,
            RefusalCode::NotReady,
            RefusalCode::OutcomeUnknown,
            RefusalCode::ShuttingDown,
            RefusalCode::TokenExpired,
        ] {
            assert!(!is_final(code), "{code:?}");
        }
        assert_eq!(judge(&AttemptError::Lost, false), Verdict::Wait);
        for code in [RefusalCode::NotAllowed, RefusalCode::BadRange, RefusalCode::BadRequest] {
            assert!(matches!(judge(&refused(code), false), Verdict::Grace(_)), "{code:?}: its map may be behind");
        }
    }
}
