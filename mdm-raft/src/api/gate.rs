//! Before a service: until when the caller waits. What nobody waits for any more is not proposed, and no request holds its
//! place for ever, whether its body never comes or its answer.
//!
//! tonic ends an answer that is late for `grpc-timeout`, but it asks the service first; a request that was late when it
//! came would be in the log by then.

use std::{
    convert::Infallible,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use pflex_proto::status::{self, Reason};
use tonic::{
    Code, Status,
    body::Body,
    codegen::{BoxFuture, Service, http},
    server::NamedService,
};

/// Above the longest step of any request: a snapshot of the largest cluster. Streams are answered at once, and go on.
const LONGEST: Duration = Duration::from_secs(120);
const TIMEOUT: &str = "grpc-timeout";

tokio::task_local! {
    /// When the caller of the running request stops waiting, if it said so.
    static DEADLINE: Option<Instant>;
}

/// Refuses what nobody waits for any more. To be asked last before a command is handed to the log.
pub(super) fn in_time() -> Result<(), Status> {
    // No request runs where the leader itself proposes.
    match DEADLINE.try_with(|deadline| *deadline).ok().flatten() {
        Some(deadline) if Instant::now() >= deadline => {
            let what = "the caller's deadline had passed when its request was read; nothing was changed";
            Err(status::status(Reason::DeadlinePassed, what))
        }
        Some(_) | None => Ok(()),
    }
}

/// A service behind the gate.
#[derive(Clone)]
pub(super) struct Gate<S>(S);

impl<S> Gate<S> {
    pub(super) const fn new(service: S) -> Self {
        Self(service)
    }
}

impl<S: NamedService> NamedService for Gate<S> {
    const NAME: &'static str = S::NAME;
}

impl<S, B> Service<http::Request<B>> for Gate<S>
where
    S: Service<http::Request<B>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let given = request.headers().get(TIMEOUT).and_then(|value| parse(value.to_str().ok()?));
        let deadline = given.and_then(|timeout| Instant::now().checked_add(timeout));
        let answer = DEADLINE.scope(deadline, self.0.call(request));
        Box::pin(async move {
            match tokio::time::timeout(LONGEST, answer).await {
                Ok(answer) => answer.map(said_precisely),
                Err(_) => {
                    let what =
                        format!("no answer within {} s; the request may have been carried out", LONGEST.as_secs());
                    Ok(status::status(Reason::UnknownOutcome, what).into_http())
                }
            }
        })
    }
}

/// tonic calls a message that does not parse its own error, and one that is too long a range. Both are the caller's.
fn said_precisely(answer: http::Response<Body>) -> http::Response<Body> {
    // Only an answer without a body has its status among the headers.
    let Some(status) = Status::from_header_map(answer.headers()) else { return answer };
    let unreadable = match status.code() {
        Code::Internal => status.message().contains("decode"),
        Code::OutOfRange => status.message().contains("message length too large"),
        _ => false,
    };
    if !unreadable || status::reason(&status).is_some() {
        return answer;
    }
    let what = format!("the request was not read: {}; nothing was changed", status.message());
    status::status(Reason::Invalid, what).into_http()
}

/// `grpc-timeout`: at most eight digits and a unit.
fn parse(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 {
        return None;
    }
    let n: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(n * 3_600),
        "M" => Duration::from_secs(n * 60),
        "S" => Duration::from_secs(n),
        "m" => Duration::from_millis(n),
        "u" => Duration::from_micros(n),
        "n" => Duration::from_nanos(n),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_is_read_and_nonsense_is_none() {
        assert_eq!(parse("1500m"), Some(Duration::from_millis(1_500)));
        assert_eq!(parse("2H"), Some(Duration::from_secs(7_200)));
        assert_eq!(parse("99999999M").map(|long| long.as_secs()), Some(99_999_999 * 60));
        for bad in ["", "S", "1", "-1S", "999999999S", "1x", "é"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[tokio::test]
    async fn only_a_passed_deadline_refuses() {
        assert!(in_time().is_ok(), "nobody waits, so nobody is late");
        DEADLINE.scope(None, async { assert!(in_time().is_ok()) }).await;
        let later = Instant::now() + Duration::from_secs(60);
        DEADLINE.scope(Some(later), async { assert!(in_time().is_ok()) }).await;
        let refused = DEADLINE.scope(Some(Instant::now()), async { in_time() }).await.unwrap_err();
        assert_eq!(status::reason(&refused), Some(Reason::DeadlinePassed));
        assert_eq!(refused.code(), tonic::Code::DeadlineExceeded);
    }
}
