//! The command line's conversation with the MDM: one client, the time a command may take, errors as [`Failure`]s.

use std::time::Duration;

use pflex_common::{
    mdm::{Connection, MdmClient, MdmError, Patience, RequestId},
    net::Endpoint,
};
use tonic::{Code, Response, Status};

use crate::{
    error::{Exit, Failure},
    trace::Trace,
    units::format_duration,
};

/// How long a command waits by default. Longer than an election and a lost attempt together, shorter than patience.
pub(crate) const DEFAULT_TIMEOUT: Duration = Duration::from_secs(15);
/// For one member when any will do: a dead one must not hold up the answer of the next.
const ONE_MEMBER: Duration = Duration::from_millis(1_500);

/// Characters of a caller's name: a user and a host, with room.
const MAX_CALLER: usize = 128;

/// A read may say that a stale answer will do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Freshness {
    /// Linearizable, from the leader.
    Linearizable,
    /// From any member, without a leader.
    Stale,
}

impl Freshness {
    pub(crate) fn is_stale(self) -> bool {
        self == Self::Stale
    }
}

/// Who is at the keyboard, for the audit: until people log in, what their host says of them.
fn caller() -> String {
    let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    let user = variable("USER").or_else(|| variable("LOGNAME")).unwrap_or_else(|| "somebody".to_owned());
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = format!("{user}@{}", host.trim());
    name.chars().filter(|c| !c.is_control()).take(MAX_CALLER).collect()
}

/// What every noun gets.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    mdm: MdmClient,
    timeout: Duration,
    trace: Trace,
}

impl Session {
    pub(crate) fn new(members: Vec<Endpoint>, timeout: Duration, trace: Trace) -> Self {
        Self { mdm: MdmClient::new(caller(), members), timeout, trace }
    }

    /// Sent with every call of the macros below.
    pub(crate) const fn trace(&self) -> Trace {
        self.trace
    }

    pub(crate) const fn timeout(&self) -> Duration {
        self.timeout
    }

    /// The same conversation with another limit.
    #[must_use]
    pub(crate) fn within(&self, timeout: Duration) -> Self {
        Self { timeout, ..self.clone() }
    }

    /// A call that changes nothing. `what` names it in an error: "list volumes".
    pub(crate) async fn read<T, F, Fut>(&self, what: &str, freshness: Freshness, call: F) -> Result<T, Failure>
    where
        T: Send,
        F: Fn(Connection) -> Fut + Sync,
        Fut: Future<Output = Result<Response<T>, Status>> + Send,
    {
        match freshness {
            Freshness::Linearizable => {
                self.mdm.read(self.patience(), call).await.map_err(|error| self.failure(what, "", error))
            }
            Freshness::Stale => self.read_any(what, call).await,
        }
    }

    /// A call that changes something, exactly once.
    pub(crate) async fn write<T, F, Fut>(&self, what: &str, call: F) -> Result<T, Failure>
    where
        T: Send,
        F: Fn(Connection, RequestId) -> Fut + Sync,
        Fut: Future<Output = Result<Response<T>, Status>> + Send,
    {
        self.mdm.write(self.patience(), call).await.map_err(|error| self.failure(what, "; nothing was changed", error))
    }

    async fn read_any<T, F, Fut>(&self, what: &str, call: F) -> Result<T, Failure>
    where
        F: Fn(Connection) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        let mut last = Status::unavailable("no member answered");
        for _ in 0..self.mdm.members().len() {
            let (endpoint, connection) = self.mdm.any_member();
            match tokio::time::timeout(ONE_MEMBER.min(self.timeout), call(connection)).await {
                Ok(Ok(answer)) => return Ok(answer.into_inner()),
                Ok(Err(error)) => last = error,
                Err(_) => last = Status::unavailable(format!("{endpoint} did not answer")),
            }
        }
        Err(Failure::status(what, last))
    }

    const fn patience(&self) -> Patience {
        Patience::within(self.timeout)
    }

    /// `assurance` is what can be said of the cluster if nobody executed the request.
    fn failure(&self, what: &str, assurance: &str, error: MdmError) -> Failure {
        let waited = format_duration(self.timeout);
        match error {
            MdmError::Refused(status) => Failure::status(what, *status),
            MdmError::NoLeader { ref members, .. } => Failure::new(
                Exit::Unreachable,
                format!("{what}: no MDM leader among {members} within {waited}{assurance}"),
            )
            .remedy("a majority of the MDMs must run; `pflex cluster status --stale` shows what one of them knows")
            .cause(error),
            MdmError::Unknown { ref last, .. } => {
                // A member that answered "no quorum" is another matter than one that did not answer at all.
                let silent = matches!(last.code(), Code::DeadlineExceeded | Code::Cancelled);
                let exit = if silent { Exit::TimedOut } else { Exit::Unreachable };
                Failure::new(exit, format!("{what}: no answer within {waited}; it may have happened or not"))
                    .remedy("look with the `list` command, then run it again")
                    .cause(error)
            }
        }
    }
}

/// `ask!(session, "list volumes", freshness, AdminClient.list_volumes(request))`
macro_rules! ask {
    ($session:expr, $what:expr, $freshness:expr, $client:ident . $method:ident ($request:expr)) => {{
        let request = $request;
        $session
            .read($what, $freshness, |connection| {
                let request = $session.trace().carry(request.clone());
                async move { $client::new(connection).$method(request).await }
            })
            .await
    }};
}

/// `change!(session, "create volume demo", AdminClient.create_volume(CreateVolumeRequest { ... }))`; the request's id is
/// filled in.
macro_rules! change {
    ($session:expr, $what:expr, $client:ident . $method:ident ($request:expr)) => {{
        let request = $request;
        $session
            .write($what, |connection, id| {
                let mut request = request.clone();
                request.request = Some(id);
                let request = $session.trace().carry(request);
                async move { $client::new(connection).$method(request).await }
            })
            .await
    }};
}

pub(crate) use {ask, change};

#[cfg(test)]
mod tests {
    use pflex_proto::status::{Reason, status};

    use super::*;

    fn exit(error: MdmError) -> Exit {
        Session::new(vec![], Duration::from_secs(5), Trace::new(1, 1)).failure("create volume demo", "", error).exit()
    }

    #[test]
    fn without_a_leader_the_status_is_6_and_without_an_answer_7() {
        let waited = Duration::from_secs(5);
        assert_eq!(exit(MdmError::NoLeader { members: "a:1".into(), waited, last: None }), Exit::Unreachable);
        let silent = Box::new(Status::deadline_exceeded("a:1 did not answer"));
        assert_eq!(exit(MdmError::Unknown { waited, last: silent }), Exit::TimedOut);
        let lost = Box::new(status(Reason::NoQuorum, "1 of 3 members answer"));
        assert_eq!(exit(MdmError::Unknown { waited, last: lost }), Exit::Unreachable);
        assert_eq!(exit(MdmError::Refused(Box::new(status(Reason::InUse, "mapped")))), Exit::Conflict);
    }
}
