//! The leader-following client.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use pflex_proto::{
    ids::{ClientId, ClusterId},
    pb::{OpenClientRequest, RequestId, sessions_client::SessionsClient},
    status::{self, Reason},
};
use rand::RngExt as _;
use tonic::{
    Code, Request, Response, Status,
    metadata::MetadataValue,
    service::{Interceptor, interceptor::InterceptedService},
    transport::Channel,
};

use super::{MdmError, session::Session};
use crate::net::Endpoint;

/// First pause after every member was asked in vain; doubles up to [`LONGEST_PAUSE`]. An election takes 0.5 to 1.5 s.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);

/// How long a call may take, and how long one member may take to answer before another is asked.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For the whole call.
    pub deadline: Duration,
    /// For one attempt: a frozen leader must not use up the whole deadline.
    pub attempt: Duration,
}

impl Patience {
    /// `deadline` in all, with attempts of 1.5 s.
    pub const fn within(deadline: Duration) -> Self {
        Self { deadline, attempt: Duration::from_millis(1_500) }
    }
}

/// A channel that names the client's cluster in every call.
pub type Connection = InterceptedService<Channel, NameCluster>;

/// Adds the metadata by which a server refuses clients of another cluster.
#[derive(Clone, Debug)]
pub struct NameCluster(Option<ClusterId>);

impl Interceptor for NameCluster {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(cluster) = self.0 {
            let value = MetadataValue::try_from(cluster.to_string()).expect("a uuid is ASCII");
            request.metadata_mut().insert(status::CLUSTER_ID, value);
        }
        Ok(request)
    }
}

/// Finds the leader among the configured members and whoever they name. Cheap to clone; clones share one session.
#[derive(Clone, Debug)]
pub struct MdmClient {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    name: String,
    members: Vec<Endpoint>,
    state: Mutex<State>,
    /// Held across the await so that concurrent first writes open one session, not many.
    session: tokio::sync::Mutex<Option<Session>>,
}

#[derive(Debug, Default)]
struct State {
    cluster: Option<ClusterId>,
    channels: HashMap<Endpoint, Channel>,
    leader: Option<Endpoint>,
    turn: usize,
    /// A session in which a request will never be answered. Its low-water mark would stand still and the MDM would have
    /// to keep every later outcome, so the next write opens another session.
    abandoned: Option<ClientId>,
}

/// A request on its way. Dropped before it was answered, whether the caller gave up or was cancelled, it takes its
/// session with it.
struct Unanswered<'a> {
    shared: &'a Shared,
    request: RequestId,
    answered: bool,
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        if !self.answered {
            let mut state = self.shared.state.lock().expect("no code panics while it holds this lock");
            state.abandoned = Some(ClientId(self.request.client_id));
        }
    }
}

/// What an attempt's failure means for the call.
enum Verdict {
    /// Definite: hand it to the caller.
    Final,
    /// Not executed: ask elsewhere.
    NotExecuted,
    /// It may have been executed.
    Ambiguous,
}

impl MdmClient {
    /// `name` says who asks, for the audit; `members` is the configured list.
    pub fn new(name: impl Into<String>, members: Vec<Endpoint>) -> Self {
        let shared =
            Shared { name: name.into(), members, state: Mutex::default(), session: tokio::sync::Mutex::default() };
        Self { shared: Arc::new(shared) }
    }

    /// From now on every call names this cluster.
    pub fn set_cluster(&self, cluster: ClusterId) {
        self.state().cluster = Some(cluster);
    }

    /// The configured members.
    pub fn members(&self) -> &[Endpoint] {
        &self.shared.members
    }

    /// A call that changes nothing, on the leader.
    ///
    /// # Errors
    /// See [`MdmError`]; never `Unknown`.
    pub async fn read<T, F, Fut>(&self, patience: Patience, call: F) -> Result<T, MdmError>
    where
        F: Fn(Connection) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        match self.attempts(patience, call).await {
            Err(MdmError::Unknown { waited, last }) => {
                Err(MdmError::NoLeader { members: self.member_list(), waited, last: Some(last) })
            }
            other => other,
        }
    }

    /// A call that changes something, exactly once however often it must be sent.
    ///
    /// # Errors
    /// See [`MdmError`].
    pub async fn write<T, F, Fut>(&self, patience: Patience, call: F) -> Result<T, MdmError>
    where
        F: Fn(Connection, RequestId) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        let started = Instant::now();
        loop {
            let left = Patience { deadline: patience.deadline.saturating_sub(started.elapsed()), ..patience };
            let request = self.begin(left).await?;
            let mut unanswered = Unanswered { shared: &self.shared, request, answered: false };
            let outcome = self.attempts(left, |connection| call(connection, request)).await;
            unanswered.answered = !matches!(outcome, Err(MdmError::Unknown { .. }));
            drop(unanswered);
            let mut session = self.shared.session.lock().await;
            let ours = session.as_mut().filter(|session| session.client() == ClientId(request.client_id));
            match &outcome {
                // A session that was already gone before this request reached it: nothing was executed, start over.
                Err(error @ MdmError::Refused(_)) if error.reason() == Some(Reason::SessionExpired) => {
                    if ours.is_some() {
                        *session = None;
                    }
                    if started.elapsed() < patience.deadline {
                        continue;
                    }
                }
                Err(MdmError::Unknown { .. }) => {}
                Ok(_) | Err(MdmError::Refused(_) | MdmError::NoLeader { .. }) => {
                    if let Some(session) = ours {
                        session.answered(request);
                    }
                }
            }
            return outcome;
        }
    }

    /// A connection to a member other than the last one tried, for streams that any member serves.
    pub fn any_member(&self) -> (Endpoint, Connection) {
        let mut state = self.state();
        state.turn = state.turn.wrapping_add(1);
        let endpoint = self.shared.members[state.turn % self.shared.members.len()].clone();
        let connection = state.connection(&endpoint);
        (endpoint, connection)
    }

    /// A connection to the leader as last known, else to some member; [`Self::not_here`] says that it was wrong.
    pub fn leader_guess(&self) -> (Endpoint, Connection) {
        let mut state = self.state();
        let endpoint = match &state.leader {
            Some(leader) => leader.clone(),
            None => {
                state.turn = state.turn.wrapping_add(1);
                self.shared.members[state.turn % self.shared.members.len()].clone()
            }
        };
        let connection = state.connection(&endpoint);
        (endpoint, connection)
    }

    /// `endpoint` failed or is not the leader; `hint` is what it said.
    pub fn not_here(&self, endpoint: &Endpoint, error: &Status) {
        let hinted = status::leader_hint(error).and_then(|hint| hint.address?.parse().ok());
        let mut state = self.state();
        match hinted {
            Some(leader) if leader != *endpoint => state.leader = Some(leader),
            _ if state.leader.as_ref() == Some(endpoint) => state.leader = None,
            _ => {}
        }
    }

    async fn begin(&self, patience: Patience) -> Result<RequestId, MdmError> {
        let mut session = self.shared.session.lock().await;
        let abandoned = self.state().abandoned.take();
        if abandoned.is_some() && session.as_ref().map(Session::client) == abandoned {
            *session = None;
        }
        let open = match session.as_mut() {
            Some(open) => open,
            None => {
                let opened = self
                    .read(patience, |connection| {
                        let request = OpenClientRequest { name: self.shared.name.clone() };
                        async move { SessionsClient::new(connection).open_client(request).await }
                    })
                    .await?;
                session.insert(Session::new(ClientId(opened.client_id)))
            }
        };
        Ok(open.begin())
    }

    async fn attempts<T, F, Fut>(&self, patience: Patience, call: F) -> Result<T, MdmError>
    where
        F: Fn(Connection) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        let started = Instant::now();
        let mut pause = FIRST_PAUSE;
        let mut ambiguous = false;
        let mut last = None;
        for attempt in 1_usize.. {
            let left = patience.deadline.saturating_sub(started.elapsed());
            if left.is_zero() {
                break;
            }
            let (endpoint, connection) = self.leader_guess();
            let answer = match tokio::time::timeout(patience.attempt.min(left), call(connection)).await {
                Ok(answer) => answer,
                Err(_) => Err(Status::deadline_exceeded(format!("{endpoint} did not answer"))),
            };
            let error = match answer {
                Ok(response) => {
                    self.state().leader = Some(endpoint);
                    return Ok(response.into_inner());
                }
                Err(error) => error,
            };
            let verdict = judge(&error);
            // Once an earlier attempt may have been executed, "session expired" no longer means "not executed".
            let expired_after_ambiguous = ambiguous && status::reason(&error) == Some(Reason::SessionExpired);
            match verdict {
                Verdict::Final if !expired_after_ambiguous => return Err(MdmError::Refused(Box::new(error))),
                Verdict::Final => {
                    return Err(MdmError::Unknown { waited: started.elapsed(), last: Box::new(error) });
                }
                Verdict::NotExecuted => {}
                Verdict::Ambiguous => ambiguous = true,
            }
            let hinted = status::leader_hint(&error).is_some_and(|hint| hint.address.is_some());
            self.not_here(&endpoint, &error);
            last = Some(Box::new(error));
            // A named leader is asked at once; after a full round without one, give an election time.
            if !hinted && attempt.is_multiple_of(self.shared.members.len()) {
                let jittered = pause.mul_f64(rand::rng().random_range(0.5..1.0));
                tokio::time::sleep(jittered.min(patience.deadline.saturating_sub(started.elapsed()))).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
        let waited = started.elapsed();
        match last {
            Some(last) if ambiguous => Err(MdmError::Unknown { waited, last }),
            last => Err(MdmError::NoLeader { members: self.member_list(), waited, last }),
        }
    }

    fn member_list(&self) -> String {
        self.shared.members.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.shared.state.lock().expect("no code panics while it holds this lock")
    }
}

impl State {
    fn connection(&mut self, endpoint: &Endpoint) -> Connection {
        let channel = self.channels.entry(endpoint.clone()).or_insert_with(|| endpoint.channel()).clone();
        InterceptedService::new(channel, NameCluster(self.cluster))
    }
}

fn judge(error: &Status) -> Verdict {
    match status::reason(error) {
        Some(Reason::NotLeader | Reason::Overloaded) => Verdict::NotExecuted,
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

#[cfg(test)]
mod tests {
    use super::*;

    fn client(ports: &[u16]) -> MdmClient {
        MdmClient::new("test", ports.iter().map(|port| Endpoint::new("127.0.0.1", *port)).collect())
    }

    async fn closed_port() -> u16 {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap().port()
    }

    #[tokio::test]
    async fn with_nobody_listening_a_write_was_certainly_not_executed() {
        let client = client(&[closed_port().await, closed_port().await]);
        let patience = Patience::within(Duration::from_millis(200));
        let error = client
            .write(patience, |_, _| async { Ok(Response::new(())) })
            .await
            .expect_err("there is no session to be had");
        assert!(matches!(error, MdmError::NoLeader { .. }), "{error:?}");
    }

    #[tokio::test]
    async fn a_hint_is_followed_and_a_final_answer_is_returned() {
        let client = client(&[1, 2]);
        let hint = status::LeaderHint { id: None, address: Some("127.0.0.1:9".into()), term: 1 };
        let asked = std::sync::atomic::AtomicUsize::new(0);
        let error = client
            .read(Patience::within(Duration::from_secs(5)), |_| {
                let first = asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 0;
                let error = if first { status::not_leader(&hint) } else { status::status(Reason::NotFound, "no x") };
                async move { Err::<Response<()>, _>(error) }
            })
            .await
            .unwrap_err();
        assert_eq!(error.reason(), Some(Reason::NotFound));
        assert_eq!(client.leader_guess().0, Endpoint::new("127.0.0.1", 9));
    }

    #[tokio::test]
    async fn a_session_with_an_unanswered_request_is_not_used_again() {
        let client = client(&[1]);
        let patience = Patience { deadline: Duration::from_millis(50), attempt: Duration::from_millis(20) };
        *client.shared.session.lock().await = Some(Session::new(ClientId(7)));
        let error = client.write::<(), _, _>(patience, |_, _| std::future::pending()).await.unwrap_err();
        assert!(matches!(error, MdmError::Unknown { .. }), "{error:?}");
        let error = client.write(patience, |_, _| async { Ok(Response::new(())) }).await;
        assert!(matches!(error, Err(MdmError::NoLeader { .. })), "a new session is asked for: {error:?}");
    }

    #[tokio::test]
    async fn a_cancelled_write_takes_its_session_with_it() {
        let client = client(&[1]);
        let patience = Patience::within(Duration::from_secs(5));
        *client.shared.session.lock().await = Some(Session::new(ClientId(7)));
        let write = client.write::<(), _, _>(patience, |_, _| std::future::pending());
        assert!(tokio::time::timeout(Duration::from_millis(20), write).await.is_err());
        assert_eq!(client.state().abandoned, Some(ClientId(7)));
    }

    #[tokio::test]
    async fn an_attempt_without_answer_makes_the_outcome_unknown() {
        let client = client(&[1]);
        let patience = Patience { deadline: Duration::from_millis(50), attempt: Duration::from_millis(20) };
        let error = client.attempts::<(), _, _>(patience, |_| std::future::pending()).await.unwrap_err();
        assert!(matches!(error, MdmError::Unknown { .. }), "{error:?}");
    }
}
